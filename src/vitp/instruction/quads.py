"""Oriented boxes in text: ``<ref>phrase</ref><quad>[[x1, y1, x2, y2, x3, y3, x4, y4], ...]</quad>``.

Coordinates are whole numbers 0-1000 of the original image's width and height, x to the right, y down, as in the box
notation of `vitp.instruction.grammar`, which leaves ``<quad>`` alone. The corners follow the outline clockwise as seen,
from the top-left-most one: the smallest x + y in these units, the higher of two with the same sum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vitp.instruction.grammar import SCALE, Box, GrammarError, number_lists

Quad = tuple[int, int, int, int, int, int, int, int]
_Point = tuple[int, int]

_TAG = re.compile(r"</?quad>")


def parse_quads(text: str) -> list[Quad]:
    """All quads of a text, in order, with their corners as written.

    Raises:
        GrammarError: unbalanced or nested tags, a malformed list, or coordinates outside 0-1000.
    """
    return [quad for _, _, quads in _scan(text) for quad in quads]


def map_quads(text: str, transform: Callable[[Box], Box]) -> str:
    """The text with every quad moved, its corners in the order of this notation; all else stays as it is.

    Args:
        text: any text.
        transform: one of the moves of `vitp.instruction.grammar`. A corner moves as a box of no extent.

    Raises:
        GrammarError: as `parse_quads`, or the transform moved a corner out of the image.
    """
    pieces: list[str] = []
    done = 0
    for start, end, quads in _scan(text):
        moved = [in_order([transform((x, y, x, y))[:2] for x, y in _corners(quad)]) for quad in quads]
        for quad in moved:
            _check_range(quad, start)
        pieces += [text[done:start], _print_list(moved)]
        done = end
    return "".join([*pieces, text[done:]])


def print_quads(phrase: str, quads: Sequence[Quad]) -> str:
    """The notation of one grounding; `parse_quads` reads its numbers back."""
    assert quads
    return f"<ref>{phrase}</ref><quad>{_print_list(quads)}</quad>"


def normalise_quad(corners: Sequence[float], width: int, height: int) -> Quad | None:
    """Four corners in pixels (x1, y1, ..., x4, y4) to 0-1000, clipped, in the order of this notation.

    None where nothing is left to write: the outline crosses itself, is not convex, or collapses when rounded.
    """
    sides = (width, height)
    whole = [min(max(round(value / sides[i % 2] * SCALE), 0), SCALE) for i, value in enumerate(corners)]
    quad = in_order(list(zip(whole[0::2], whole[1::2], strict=True)))
    points = _corners(quad)
    turns = [_turn(points[i], points[(i + 1) % 4], points[(i + 2) % 4]) for i in range(4)]
    return quad if min(turns) > 0 else None


def in_order(points: Sequence[_Point]) -> Quad:
    """Four corners along an outline, either way round, to a quad: clockwise, from the top-left-most."""
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    if sum(x * v - u * y for (x, y), (u, v) in pairs) < 0:  # shoelace: negative where anticlockwise with y down
        points = points[::-1]
    rotations = ([*points[i:], *points[:i]] for i in range(4))
    a, b, c, d = min(rotations, key=lambda r: (sum(r[0]), r[0][1], r))  # r: of corners that coincide
    return *a, *b, *c, *d


def _turn(a: _Point, b: _Point, c: _Point) -> int:
    """Positive where a, b, c turn clockwise as seen (y down)."""
    return (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])


def _corners(quad: Quad) -> list[_Point]:
    return list(zip(quad[0::2], quad[1::2], strict=True))


def _print_list(quads: Sequence[Quad]) -> str:
    return "[" + ", ".join(f"[{', '.join(map(str, quad))}]" for quad in quads) + "]"


def _check_range(quad: Quad, position: int) -> None:
    if min(quad) < 0 or max(quad) > SCALE:
        fix = f"coordinates are whole numbers 0-{SCALE} of the image's width and height"
        raise GrammarError("quad-range", f"the quad {list(quad)} leaves the image", fix, position)


def _scan(text: str) -> list[tuple[int, int, list[Quad]]]:
    """Start and end of every list between quad tags, and what it holds."""
    found: list[tuple[int, int, list[Quad]]] = []
    tags = list(_TAG.finditer(text)) if "quad>" in text else []
    for opening, closing in zip(tags[::2], [*tags[1::2], None], strict=False):
        if opening[0] == "</quad>":
            raise GrammarError("quad-syntax", f"{opening[0]} closes nothing", "remove it or open it", opening.start())
        if closing is None or closing[0] != "</quad>":
            fix = "write </quad> before the next tag"
            raise GrammarError("quad-syntax", f"{opening[0]} is not closed", fix, opening.start())
        start, end = opening.end(), closing.start()
        quads: list[Quad] = []
        for numbers, position in number_lists(text[start:end], start, "quad"):
            a, b, c, d, e, f, g, h = numbers
            quads.append((a, b, c, d, e, f, g, h))
            _check_range(quads[-1], position)
        found.append((start, end, quads))
    return found
