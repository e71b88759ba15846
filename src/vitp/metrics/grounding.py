"""How well the boxes of an answer fit those of its reference, in the notation of `vitp.instruction.grammar`.

A question's boxes are matched one to one, the best-fitting pair first. With one box on either side the accuracy is the
usual share of answers with an intersection over union (IoU) of at least 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitp.instruction.grammar import GrammarError, parse_boxes
from vitp.instruction.quads import parse_quads
from vitp.metrics.text import normalise

LEAST_IOU = 0.5  # the usual threshold of referring-expression comprehension

Point = tuple[float, float]
Outline = tuple[Point, ...]  # corners of a convex shape, in one turning direction


@dataclass(frozen=True, slots=True)
class Shape:
    """A box or an oriented box of an answer: its outline, its corners as numbers, and what it is said to show."""

    outline: Outline
    phrase: str | None


@dataclass(frozen=True, slots=True)
class Fit:
    """How an answer's boxes fit. Both figures are over the larger of the two numbers of boxes, so that too many cost too.

    accuracy: share of boxes matched with an IoU of at least 0.5; iou: mean IoU of the matched, the others counting 0;
    readable: whether the answer holds boxes that can be read.
    """

    accuracy: float
    iou: float
    readable: bool


def shapes(text: str) -> list[Shape]:
    """All boxes and oriented boxes of a text, in order of kind.

    Raises:
        GrammarError: the notation is broken.
    """
    found = []
    for grounding in parse_boxes(text):
        phrase = None if grounding.phrase is None else normalise(grounding.phrase)
        for x1, y1, x2, y2 in grounding.boxes:
            found.append(Shape(((x1, y1), (x2, y1), (x2, y2), (x1, y2)), phrase))
    for quad in parse_quads(text):
        points = tuple(zip(map(float, quad[0::2]), map(float, quad[1::2]), strict=True))
        found.append(Shape(_hull(points), None))
    return found


def fit(answer: str, reference: str) -> Fit:
    """Compare the boxes of an answer with those of its reference.

    Where the reference names several things, a box only fits one that is named the same.

    Raises:
        GrammarError: the reference cannot be read.
    """
    wanted = shapes(reference)
    assert wanted, "the reference holds no box"
    try:
        given = shapes(answer)
    except GrammarError:
        given = []
    if not given:
        return Fit(0.0, 0.0, False)
    named = len({shape.phrase for shape in wanted}) > 1
    matched = _match(given, wanted, by_name=named)
    most = max(len(given), len(wanted))
    return Fit(sum(iou >= LEAST_IOU for iou in matched) / most, sum(matched) / most, True)


def _match(given: Sequence[Shape], wanted: Sequence[Shape], *, by_name: bool) -> list[float]:
    """IoU of the matched pairs, best first; no shape is in two of them."""
    pairs = sorted(
        (
            (intersection_over_union(a.outline, b.outline), i, j)
            for i, a in enumerate(given)
            for j, b in enumerate(wanted)
            if not by_name or a.phrase == b.phrase
        ),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    left, right, found = set(range(len(given))), set(range(len(wanted))), []
    for iou, i, j in pairs:
        if iou > 0 and i in left and j in right:
            left.remove(i)
            right.remove(j)
            found.append(iou)
    return found


def intersection_over_union(first: Outline, second: Outline) -> float:
    """Of two convex outlines with the same turning direction; 0 where either has no area."""
    areas = area(first), area(second)
    if min(areas) <= 0:
        return 0.0
    common = area(_clip(first, second))
    return common / (sum(areas) - common)


def area(outline: Sequence[Point]) -> float:
    """By the shoelace formula; positive where the corners turn clockwise as seen (y down)."""
    turned = zip(outline, [*outline[1:], *outline[:1]], strict=True)
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in turned) / 2


def _side(a: Point, b: Point, c: Point) -> float:
    """Positive where a, b, c turn clockwise as seen (y down)."""
    return (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])


def _clip(outline: Outline, frame: Outline) -> list[Point]:
    """What of `outline` lies in `frame`: cut along one side of it after the other (Sutherland and Hodgman 1974)."""
    rest = list(outline)
    for a, b in zip(frame, [*frame[1:], frame[0]], strict=True):
        corners, rest = rest, []
        for start, end in zip(corners, [*corners[1:], *corners[:1]], strict=True):
            before, after = _side(a, b, start), _side(a, b, end)
            if before >= 0:
                rest.append(start)
            if before * after < 0:
                t = before / (before - after)
                rest.append((start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])))
    return rest


def _hull(points: Sequence[Point]) -> Outline:
    """The convex hull, clockwise as seen; what a model draws need be no proper outline (monotone chain, Andrew 1979)."""
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return tuple(ordered)
    halves = []
    for line in (ordered, ordered[::-1]):
        half: list[Point] = []
        for point in line:
            while len(half) > 1 and _side(half[-2], half[-1], point) <= 0:
                half.pop()
            half.append(point)
        halves += half[:-1]
    return tuple(halves)
