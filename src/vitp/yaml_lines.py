"""YAML whose every key and item knows its line; read to report mistakes, written to read back the same.

Plain scalars follow the core schema of YAML 1.2.2 (section 10.3) rather than PyYAML's YAML 1.1: ``1e-3`` is a float,
``no`` and ``2024-01-01`` are texts, only ``true`` and ``false`` are booleans. Merge keys (``<<``) work.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitp.errors import ConfigError

Loc = tuple[Hashable, ...]

_TAG = "tag:yaml.org,2002:"
_RESOLVERS: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {
    None: [
        (_TAG + "null", re.compile(r"(~|null|Null|NULL|)$")),
        (_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$")),
        (_TAG + "int", re.compile(r"([-+]?[0-9]+(_[0-9]{3})*|0x[0-9a-fA-F]+)$")),
        (_TAG + "float", re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)$")),
        (_TAG + "float", re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")),
        (_TAG + "merge", re.compile(r"<<$")),
    ]
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS


class _Dumper(yaml.SafeDumper):
    """Block style with short lists in brackets, and no anchors."""

    yaml_implicit_resolvers = _RESOLVERS  # so that the text "1e-3" gets its quotes

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_scalar(self, tag: str, value: Any, style: str | None = None) -> yaml.ScalarNode:
        quote = isinstance(value, str) and re.search("[\x85\u2028\u2029]", value)  # else they would end the line
        return super().represent_scalar(tag, value, '"' if quote else style)

    def represent_sequence(
        self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = all(isinstance(item, yaml.ScalarNode) for item in node.value)
        return node


def _scalar(node: yaml.ScalarNode) -> Any:
    """Value of a scalar; raises ValueError for a tag that is not plain data, or text that does not fit its tag."""
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text.replace("_", ""), 16 if text.startswith("0x") else 10)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise ValueError(f"the tag '{node.tag}' is not supported; write a plain value")


@dataclass
class Document:
    """A recipe being read: plain data, the line of each key and item, and the mistakes found so far."""

    name: str
    data: Any = field(default_factory=dict)
    lines: dict[Loc, int] = field(default_factory=dict)  # 0: the command line
    mistakes: list[tuple[int, str]] = field(default_factory=list)
    from_command_line: bool = False

    def blame(self, loc: Loc, text: str, line: int | None = None) -> None:
        """Note a mistake at a place in the data; `line` where the place does not tell it (0: the command line)."""
        if line is None:  # the line of the nearest thing that is written down
            line = next((self.lines[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in self.lines), 0)
        self.mistakes.append((line, ": ".join(part for part in (".".join(map(str, loc)), text) if part)))

    def report(self) -> str:
        """All mistakes, one a line: those of the file in its order, then those of the command line."""
        ordered = sorted(self.mistakes, key=lambda mistake: mistake[0] or float("inf"))
        return "\n".join(f"{f'{self.name}:{line}' if line else 'command line'}: {text}" for line, text in ordered)

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        """Data of a YAML node, noting the lines of what it holds."""
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*loc, index)] = self._line(item)
            return [self.build(item, (*loc, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, loc)
        assert isinstance(node, yaml.ScalarNode)
        try:
            return _scalar(node)
        except ValueError as error:
            self.blame(loc, str(error), self._line(node))
            return None

    def _line(self, node: yaml.Node) -> int:
        return 0 if self.from_command_line else node.start_mark.line + 1

    def _build_mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[Hashable, Any]:
        data: dict[Hashable, Any] = {}
        for key_node, value_node, merged in self._pairs(node, loc):
            if not isinstance(key_node, yaml.ScalarNode):
                self.blame(loc, "a key must be a plain text", self._line(key_node))
                continue
            key = self.build(key_node, loc)
            here = (*loc, key)
            if key in data and not merged:
                self.blame(here, f"this key was already given in line {self.lines[here]}", self._line(key_node))
            elif key not in data:
                self.lines[here] = self._line(key_node)
                data[key] = self.build(value_node, here)
        return data

    def _pairs(self, node: yaml.MappingNode, loc: Loc) -> list[tuple[yaml.Node, yaml.Node, bool]]:
        """(key, value, came from a merge) of a mapping; its own keys first, so that they win."""
        own = [(key, value, False) for key, value in node.value if key.tag != _TAG + "merge"]
        merged: list[tuple[yaml.Node, yaml.Node, bool]] = []
        for donors in (value for key, value in node.value if key.tag == _TAG + "merge"):
            for donor in donors.value if isinstance(donors, yaml.SequenceNode) else [donors]:
                if isinstance(donor, yaml.MappingNode):
                    merged += [(key, value, True) for key, value, _ in self._pairs(donor, loc)]
                else:
                    self.blame(loc, "'<<' takes a mapping, as in '<<: *base'", self._line(donor))
        return own + merged


def parse(text: str) -> yaml.Node | None:
    """Node of a YAML text, None for an empty one; raises yaml.YAMLError or RecursionError."""
    node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    return node


def write(data: Any) -> str:
    """YAML text of plain data, keys in their order."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
    )
    return text


def read(path: Path) -> Document:
    """Read a recipe's YAML; raises ConfigError where there is nothing to validate."""
    if path.is_dir():
        names = ", ".join(sorted(item.name for item in path.iterdir() if item.suffix in (".yaml", ".yml")))
        raise ConfigError(f"{path} is a folder; name one recipe in it ({names or 'it has no .yaml file'})")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(_not_found(path)) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ConfigError(f"{path}:{line}: the byte 0x{byte:02x} is not UTF-8; save the recipe as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    document = Document(str(path))
    try:
        node = parse(text)
        if node is None:
            raise ConfigError(f"{path} is empty; a recipe is a mapping of keys to values")
        if not isinstance(node, yaml.MappingNode):
            found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            line = node.start_mark.line + 1
            raise ConfigError(f"{path}:{line}: a recipe is a mapping of keys to values, found {found}")
        document.lines[()] = node.start_mark.line + 1
        document.data = document.build(node, ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = "; indent with spaces, not tabs" if "\\t" in str(error.problem) else ""
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: the character {error.character!r} is not allowed in YAML") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias contains itself") from None
    return document


def _not_found(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path} does not exist, and neither does the folder {path.parent}"
    names = sorted(item.name for item in path.parent.iterdir() if item.suffix in (".yaml", ".yml"))
    similar = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if similar:
        return f"{path} does not exist; did you mean {' or '.join(similar)}?"
    return f"{path} does not exist; the recipes in that folder are: {', '.join(names[:12]) or 'none'}"
