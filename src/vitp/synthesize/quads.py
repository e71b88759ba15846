"""Oriented boxes in text: ``<ref>phrase</ref><quad>[[x1, y1, x2, y2, x3, y3, x4, y4], ...]</quad>``.

Coordinates are whole numbers 0-1000 of the original image's width and height, x to the right, y down, as in the box
notation of `vitp.instruction.grammar`, which leaves ``<quad>`` alone. The corners follow the outline clockwise as seen,
from the top-left-most one: the smallest x + y in these units, the higher of two with the same sum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vitp.errors import DataError
from vitp.instruction.grammar import SCALE
from vitp.synthesize.labels import Corners, polygon_area

Quad = tuple[int, int, int, int, int, int, int, int]

_NOTATION = re.compile(r"<quad>(.*?)</quad>", re.DOTALL)
_LIST = re.compile(r"\s*\[\s*\[[0-9, ]+\](?:\s*,\s*\[[0-9, ]+\])*\s*\]\s*", re.ASCII)


def normalise_quad(corners: Corners, width: int, height: int) -> Quad | None:
    """Four corners in pixels to 0-1000, clipped, clockwise, from the top-left-most.

    None where nothing is left to write: the outline crosses itself, is not convex, or collapses when rounded.
    """
    sides = (width, height)
    whole = [min(max(round(value / sides[i % 2] * SCALE), 0), SCALE) for i, value in enumerate(corners)]
    points = list(zip(whole[0::2], whole[1::2], strict=True))
    if polygon_area(whole) < 0:
        points.reverse()
    turns = [_turn(points[i], points[(i + 1) % 4], points[(i + 2) % 4]) for i in range(4)]
    if min(turns) <= 0:
        return None
    first = min(range(4), key=lambda i: (sum(points[i]), points[i][1]))
    (a, b), (c, d), (e, f), (g, h) = (points[(first + i) % 4] for i in range(4))
    return a, b, c, d, e, f, g, h


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    """Positive where a, b, c turn clockwise as seen (y down)."""
    return (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])


def print_quads(phrase: str, quads: Sequence[Quad]) -> str:
    """The notation of one grounding; `parse_quads` reads its numbers back."""
    assert quads
    inside = ", ".join(f"[{', '.join(map(str, quad))}]" for quad in quads)
    return f"<ref>{phrase}</ref><quad>[{inside}]</quad>"


def parse_quads(text: str) -> list[Quad]:
    """All quads of a text, in order.

    Raises:
        DataError: a list that is malformed, or a quad without eight numbers 0-1000.
    """
    found: list[Quad] = []
    for match in _NOTATION.finditer(text):
        fix = "write <quad>[[x1, y1, x2, y2, x3, y3, x4, y4], ...]</quad>, whole numbers 0-1000"
        if not _LIST.fullmatch(match[1]):
            raise DataError(f"'{match[1][:60]}' is no list of quads; {fix}")
        for inner in re.findall(r"\[([0-9, ]+)\]", match[1]):
            numbers = [part.strip() for part in inner.split(",")]
            if len(numbers) != 8 or not all(n.isdecimal() and int(n) <= SCALE for n in numbers):
                raise DataError(f"'[{inner}]' is no quad; {fix}")
            a, b, c, d, e, f, g, h = map(int, numbers)
            found.append((a, b, c, d, e, f, g, h))
    return found
