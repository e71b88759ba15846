"""Objects in DOTA's text files: eight numbers, a class and a difficulty a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vitp.datasets.objects_config import DotaConfig
from vitp.datasets.objects_table import ObjectItem, TableBuilder
from vitp.errors import DataError
from vitp.synthesis.labels import Corners, read_label_text

_DIGITS = 9  # of a difficulty, at most: what a computer holds (ours)
_FIX = "write x1 y1 x2 y2 x3 y3 x4 y4 class difficulty"


def dota_line(text: str, where: str) -> tuple[Corners, str, int]:
    """Corners, class and difficulty of a line; without one the difficulty is 0. Corners may be NaN or infinite.

    Raises:
        DataError: other fields, or no numbers where there must be some.
    """
    parts = text.split()
    if len(parts) not in (9, 10):
        raise DataError(f"has {len(parts)} fields; {_FIX}", where)
    try:
        a, b, c, d, e, f, g, h = map(float, parts[:8])
    except ValueError as error:
        raise DataError(f"'{' '.join(parts[:8])[:60]}' are no eight numbers; {_FIX}", where) from error
    if len(parts) == 10 and not (parts[9].isdecimal() and len(parts[9]) <= _DIGITS):
        raise DataError(f"'{parts[9][:20]}' stands where difficult is 0 or 1; {_FIX}", where)
    return (a, b, c, d, e, f, g, h), parts[8], int(parts[9]) if len(parts) == 10 else 0


def is_header(text: str) -> bool:
    """Whether a line is none of an object: blank, or ``imagesource:GoogleEarth``, ``acquisition dates:...``, ``gsd:0.2``."""
    if not text.strip():
        return True
    first = text.split()[0]
    try:
        float(first)
    except ValueError:
        return ":" in text
    return False


def dota_lines(file: Path) -> Iterator[tuple[int, tuple[Corners, str, int]]]:
    """Number of the line, and corners, class and difficulty, of every object in a file.

    Raises:
        DataError: with file:line: a line is neither object nor header.
    """
    for number, text in enumerate(read_label_text(file).splitlines(), 1):
        if not is_header(text):
            yield number, dota_line(text, f"{file}:{number}")


def read_dota_objects(items: list[ObjectItem], config: DotaConfig) -> tuple[list[ObjectItem], TableBuilder]:
    """The objects of all images.

    Raises:
        DataError: with file:line: a line of another shape.
    """
    found = TableBuilder(quads=True, outlined=False)
    for item in items:
        found.begin(item.labels)
        for number, (corners, name, difficulty) in dota_lines(item.labels) if item.labels is not None else ():
            found.add(name, corners, number, difficult=difficulty in config.ignore_difficulty)
    return items, found
