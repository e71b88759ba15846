"""English and coarse places, shared by whoever writes questions and answers: numbers, lists, parts and halves.

The demo's scenes and `vitp synthesize` word the same facts in the same way, so that one may continue where the other
stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

P = TypeVar("P", bound=np.generic)
Corners = tuple[float, float, float, float]

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
HALF = 0.88  # ours: share of what a half must hold for it to lie there
_FRACTIONS = (
    (0.25, "less than a quarter"),
    (0.5, "between a quarter and a half"),
    (0.75, "between a half and three quarters"),
    (1.01, "more than three quarters"),
)
_UNCLEAR = 0.03  # distance from a border between two fractions within which neither is said
_SIDES = (("to the left of", "to the right of"), ("above", "below"))

RELATION = (
    "Is the {a} {side} the {b}?",
    "Does the {a} lie {side} the {b}?",
    "Relative to the {b}: is the {a} {side} it?",
)
GROUND_ONE = (
    "Where is <ref>the {one}</ref>? Answer with its box.",
    "Give the bounding box of the {one}.",
    "Locate the {one}.",
)
GROUND_ALL = (
    "Give the bounding boxes of all {many}.",
    "Locate every {one}.",
    "Where are <ref>the {many}</ref>? Answer with their boxes.",
)


def with_article(noun: str) -> str:
    """``a ship``, ``an airplane``, ``a unit``."""
    lower = noun.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(("uni", "use", "eu", "one"))
    return f"an {noun}" if vowel else f"a {noun}"


def listed(parts: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def percent(share: float) -> int:
    """To the nearest five percent."""
    return round(share * 20) * 5


def fraction(share: float) -> str | None:
    """``less than a quarter`` and so on; None close to a border between two of them."""
    if any(abs(share - limit) < _UNCLEAR for limit, _ in _FRACTIONS):
        return None
    return next(words for limit, words in _FRACTIONS if share < limit)


def third(position: float, margin: float) -> int | None:
    """0, 1 or 2 of a position in [0, 1]; None close to a border between thirds."""
    if min(abs(position - 1 / 3), abs(position - 2 / 3)) < margin:
        return None
    return min(2, int(position * 3))


def ninth(row: int, column: int) -> str:
    """Name of one of 3 x 3 parts."""
    return "centre" if row == column == 1 else f"{ROWS[row]} {COLUMNS[column]}"


def edges(side: int, parts: int) -> list[int]:
    """Borders between so many parts of a side, in pixels."""
    return [round(i * side / parts) for i in range(parts + 1)]


def part_of(pixels: NDArray[P], parts: int, row: int, column: int) -> NDArray[P]:
    """One of parts x parts pieces of pixels [H, W]."""
    down, across = edges(pixels.shape[0], parts), edges(pixels.shape[1], parts)
    return pixels[down[row] : down[row + 1], across[column] : across[column + 1]]


def half_with(here: NDArray[np.bool_]) -> str | None:
    """left, right, top or bottom: the half of [H, W] that holds nearly all true pixels, if exactly one does."""
    down, across = here.shape[0] // 2, here.shape[1] // 2
    least = HALF * int(here.sum())
    halves = {"left": here[:, :across], "right": here[:, -across:], "top": here[:down], "bottom": here[-down:]}
    sides = [side for side, half in halves.items() if int(half.sum()) >= least]
    return sides[0] if len(sides) == 1 else None


def relation(a: Corners, b: Corners, axis: int) -> bool | None:
    """Whether box `a` ends before box `b` begins along x (axis 0) or y (1); None where the two overlap along it."""
    first = a[axis + 2] <= b[axis]
    return first if first or b[axis + 2] <= a[axis] else None


def side(axis: int, low: bool) -> str:
    """``to the left of``, ``to the right of``, ``above`` or ``below``."""
    return _SIDES[axis][0 if low else 1]
