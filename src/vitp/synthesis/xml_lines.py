"""Small XML files as plain nodes that know their line. Anything that could expand or point outside is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from vitp.errors import DataError

MAX_BYTES = 64 << 20  # ours: one image's labels are far smaller
_MAX_DEPTH = 64


@dataclass
class Node:
    """One element."""

    tag: str
    line: int
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        """Direct children of that name."""
        return [child for child in self.children if child.tag == tag]

    def find(self, tag: str) -> Node | None:
        """The first direct child of that name."""
        return next((child for child in self.children if child.tag == tag), None)


def read_xml(path: Path) -> Node:
    """The root element of a file.

    A document type declaration, and with it every entity, is refused: labels need none, and that is where exponential
    expansion and reading of other files come from.

    Raises:
        DataError: with the line: not well-formed, too large, too deep, or with a document type.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); correct the path or its permissions", str(path)) from error
    if data is None:
        raise DataError(f"has more than {MAX_BYTES >> 20} MB, which no label file of one image has", str(path))
    parser = expat.ParserCreate()
    top = Node("", 0)
    stack = [top]

    def start(tag: str, _: dict[str, str]) -> None:
        if len(stack) > _MAX_DEPTH:
            raise DataError("is nested too deeply for labels; write it anew", f"{path}:{parser.CurrentLineNumber}")
        node = Node(tag, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)

    def end(_: str) -> None:
        stack.pop()

    def text(piece: str) -> None:
        stack[-1].text += piece

    def doctype(*_: object) -> None:
        fix = "labels need none; remove the <!DOCTYPE ...> and its entities"
        raise DataError(f"declares a document type; {fix}", f"{path}:{parser.CurrentLineNumber}")

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, DataError):
            raise
        line = f":{error.lineno}" if isinstance(error, expat.ExpatError) else ""
        reason = expat.ErrorString(error.code) if isinstance(error, expat.ExpatError) else str(error)
        raise DataError(f"is no whole XML file ({reason}); copy it again or correct it", f"{path}{line}") from error
    return top.children[0]


def xml_text(node: Node, tag: str, file: Path) -> str:
    """The text of a child.

    Raises:
        DataError: with file:line: there is none.
    """
    child = node.find(tag)
    if child is None or not child.text.strip():
        raise DataError(f"<{node.tag}> has no <{tag}>; add it", f"{file}:{(child or node).line}")
    return child.text.strip()


def xml_number(node: Node, tag: str, file: Path, *, finite: bool = True) -> float:
    """The number that a child holds; NaN and infinity only where they need not be `finite`.

    Raises:
        DataError: with file:line: there is none.
    """
    text = xml_text(node, tag, file)
    try:
        value: float | None = float(text)
    except ValueError:
        value = None
    if value is None or (finite and not math.isfinite(value)):
        line = (node.find(tag) or node).line
        raise DataError(f"<{tag}> is '{text[:40]}'; write a number", f"{file}:{line}")
    return value
