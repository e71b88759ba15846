"""JSON label files whose mistakes are told with their line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vitp.errors import DataError
from vitp.synthesis.labels import read_label_text


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: with the line: not JSON, or cut off.
    """
    text = read_label_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = "ends too early" if error.pos >= len(text.rstrip()) else f"is no JSON ({error.msg})"
        raise DataError(f"{cut}; copy the file again or correct it", f"{path}:{error.lineno}") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"is no JSON that can be read ({error}); write it anew", str(path)) from error


def entry_line(path: Path, key: str, index: int) -> str:
    """``file:line`` where an entry of the list under a key begins; it takes a pass over the file."""
    text = read_label_text(path)
    decoder = json.JSONDecoder()
    for match in re.finditer(rf'"{re.escape(key)}"\s*:\s*\[\s*', text):
        position = match.end()
        try:
            for _ in range(index):
                position = decoder.raw_decode(text, position)[1]
                gap = re.compile(r"\s*,\s*").match(text, position)
                if gap is None:
                    break
                position = gap.end()
            else:
                return f"{path}:{text.count(chr(10), 0, position) + 1}"
        except json.JSONDecodeError:
            continue
    return str(path)


class Entries:
    """A list under a key of a JSON file, and the line of each entry, looked up only for a message."""

    def __init__(self, path: Path, document: Any, key: str) -> None:
        """Find the list.

        Raises:
            DataError: the document is no object, or holds no list under that key.
        """
        self.path, self.key = path, key
        found = document.get(key) if isinstance(document, dict) else None
        if not isinstance(found, list):
            raise DataError(f"holds no list under '{key}'; write {{\"{key}\": [...], ...}}", f"{path}:1")
        self.items: list[Any] = found

    def where(self, index: int) -> str:
        """``file:line`` where an entry begins."""
        return entry_line(self.path, self.key, index)

    def mistake(self, index: int, found: str, fix: str) -> DataError:
        """What is wrong with an entry."""
        return DataError(f"entry {index + 1} of '{self.key}' {found}; {fix}", self.where(index))

    def mapping(self, index: int) -> dict[str, Any]:
        """An entry that must be an object."""
        entry = self.items[index]
        if not isinstance(entry, dict):
            raise self.mistake(index, f"is {entry!r:.40}", "write an object {...}")
        return entry

    def whole(self, index: int, key: str) -> int:
        """A whole number of an entry."""
        value = self.mapping(index).get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.mistake(index, f"has {value!r:.40} as '{key}'", "write a whole number")
        return value

    def text(self, index: int, key: str) -> str:
        """A text of an entry that is not blank."""
        value = self.mapping(index).get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.mistake(index, f"has {value!r:.40} as '{key}'", "write a text")
        return value

    def numbers(self, index: int, key: str, value: object) -> list[float]:
        """A list of numbers of an entry."""
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
            raise self.mistake(index, f"has {value!r:.40} as '{key}'", "write a list of numbers")
        try:
            return [float(v) for v in value]
        except OverflowError as error:
            raise self.mistake(index, f"has a number in '{key}' that no computer holds", "correct it") from error
