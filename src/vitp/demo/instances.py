"""From drawn outlines to annotations: visible polygon, oriented box (le90), horizontal box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitp.demo.site import Point

LEAST_VISIBLE = 0.3  # objects less visible than this are drawn but not annotated
Obb = tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object, coordinates in pixels (x right, y down; pixel i covers [i, i + 1)).

    `polygon` float32 [N, 2] is the part of the outline inside the image. `obb` (cx, cy, w, h, angle) is the tightest box round
    that polygon in the object's own direction, le90: w >= h, angle in [-pi/2, pi/2), clockwise positive. `bbox`
    (x1, y1, x2, y2) is the tightest upright box, inside the image. `visible_fraction` is the visible share of the area.
    """

    category: str
    polygon: NDArray[np.float32]
    obb: Obb
    bbox: tuple[float, float, float, float]
    visible_fraction: float


def area(polygon: Sequence[Point]) -> float:
    """Area of a simple polygon."""
    total = 0.0
    for i in range(len(polygon)):
        (xa, ya), (xb, yb) = polygon[i - 1], polygon[i]
        total += xa * yb - xb * ya
    return abs(total) / 2.0


def clip(polygon: Sequence[Point], size: float) -> list[Point]:
    """The part of a polygon inside the square [0, size]^2 (Sutherland and Hodgman, 1974)."""
    points = list(polygon)
    for axis, limit, sign in ((0, 0.0, 1.0), (0, size, -1.0), (1, 0.0, 1.0), (1, size, -1.0)):
        kept: list[Point] = []
        for i in range(len(points)):
            a, b = points[i - 1], points[i]
            da, db = sign * (a[axis] - limit), sign * (b[axis] - limit)
            if (da < 0.0) != (db < 0.0):
                share = da / (da - db)
                kept.append((a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share))
            if db >= 0.0:
                kept.append(b)
        points = kept
    # Rounding of the crossings must not leave the image.
    return [(min(max(x, 0.0), size), min(max(y, 0.0), size)) for x, y in points]


def oriented_box(polygon: Sequence[Point], angle: float) -> Obb:
    """The tightest box round `polygon` with one side along `angle`, in le90 form."""
    c, s = math.cos(angle), math.sin(angle)
    along = [x * c + y * s for x, y in polygon]
    across = [y * c - x * s for x, y in polygon]
    a0, a1, b0, b1 = min(along), max(along), min(across), max(across)
    a, b, w, h = (a0 + a1) / 2.0, (b0 + b1) / 2.0, a1 - a0, b1 - b0
    if h > w:
        w, h, angle = h, w, angle + math.pi / 2.0
    angle = (angle + math.pi / 2.0) % math.pi - math.pi / 2.0
    if angle >= math.pi / 2.0:  # the remainder of a tiny negative number may round up to pi
        angle -= math.pi
    return (a * c - b * s, a * s + b * c, w, h, angle)


def annotate(category: str, outline: Sequence[Point], angle: float, size: int) -> Instance | None:
    """The annotation of an outline in pixels, or None when too little of it is in the image."""
    xs = [x for x, _ in outline]
    ys = [y for _, y in outline]
    x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    visible: Sequence[Point] = outline
    fraction = 1.0
    if x1 < 0.0 or y1 < 0.0 or x2 > size or y2 > size:
        if x2 <= 0.0 or y2 <= 0.0 or x1 >= size or y1 >= size:
            return None
        visible = clip(outline, float(size))
        fraction = area(visible) / area(outline) if len(visible) >= 3 else 0.0
        if fraction < LEAST_VISIBLE:
            return None
        xs = [x for x, _ in visible]
        ys = [y for _, y in visible]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    polygon = np.array(visible, dtype=np.float32)
    return Instance(category, polygon, oriented_box(visible, angle), (x1, y1, x2, y2), min(fraction, 1.0))


def touches(outline: Sequence[Point], size: int) -> bool:
    """Whether any part of an outline in pixels lies inside the image."""
    xs = [x for x, _ in outline]
    ys = [y for _, y in outline]
    if max(xs) <= 0.0 or max(ys) <= 0.0 or min(xs) >= size or min(ys) >= size:
        return False
    return len(clip(outline, float(size))) >= 3
