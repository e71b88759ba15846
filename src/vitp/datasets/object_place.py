"""The objects of an image after the image has moved, and what its border leaves of them.

Shape legend: N objects, K points of a ring.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from vitp.boxes.objects import Objects, Outline
from vitp.datasets.object_geometry import (
    Affine,
    Points,
    clip_ring,
    corners_of,
    enclosing,
    signed_area,
)

Size = tuple[int, int]  # H, W
_SLACK = 1e-3  # pixels by which rounding may put a point beyond the border it lies on


def moved_objects(objects: Objects, move: Affine, source: Size, picture: Size, visible: float) -> Objects:
    """Objects of an image of size `source` in a picture that shows it moved.

    An object stays if the picture shows at least the share `visible` of the area that the image showed. Quads stay whole;
    boxes enclose what is seen, and outlines are cut at the border. Where the picture is turned, the box of an object with
    an outline encloses the outline, and of one that has a box alone the turned box.
    """
    if not len(objects):
        return objects
    whole = corners_of(objects.boxes.double().numpy()) if objects.quads is None else objects.quads.double().numpy()
    moved = move.points(whole)
    boxes = enclosing(moved)
    shares = np.ones(len(objects))
    for i in _not_inside(whole, source) | _not_inside(moved, picture):
        boxes[i], shares[i] = _seen([whole[i]], move, source, picture)
    outlines: list[Outline] | None = None
    if objects.outlines is not None:
        outlines = []
        for i, rings in enumerate(objects.outlines):
            given = [ring.astype(np.float64) for ring in rings]
            if rings and objects.quads is None and (shares[i] < 1 or not move.keeps_axes):
                boxes[i], shares[i] = _seen(given, move, source, picture)
            outlines.append(_cut([move.points(ring) for ring in given], picture))
    seen = _clipped(boxes, picture).astype(np.float32)
    kept = np.flatnonzero((shares >= visible - _SLACK) & (shares > 0) & _has_area(seen))
    quads = None
    if objects.quads is not None:
        ordered = moved if move.determinant > 0 else moved[:, [0, 3, 2, 1]]  # a mirror turns clockwise about
        quads = torch.from_numpy(ordered).float()
    found = replace(
        objects,
        boxes=torch.from_numpy(seen),
        quads=quads,
        outlines=None if outlines is None else tuple(outlines),
    )
    return found if len(kept) == len(found) else found.take(torch.from_numpy(kept))


def seen_part(rings: list[Points], size: Size) -> tuple[Points, float]:
    """The box [4] around what a picture shows of rings, and the area of that; zeros where it shows nothing."""
    parts = [clip_ring(ring, size) for ring in rings]
    area = sum(abs(signed_area(part)) for part in parts)
    points = [part for part in parts if len(part)]
    return (enclosing(np.concatenate(points)) if points else np.zeros(4)), area


def _seen(rings: list[Points], move: Affine, source: Size, picture: Size) -> tuple[Points, float]:
    """The box around what is seen of rings given in the source image, and its share of what was seen before."""
    before = [clip_ring(ring, source) for ring in rings]
    area = sum(abs(signed_area(part)) for part in before) * abs(move.determinant)
    box, left = seen_part([move.points(part) for part in before if len(part)], picture)
    return box, left / area if area > 0 else 0.0


def _not_inside(points: Points, size: Size) -> set[int]:
    """Which of N times K points [N, K, 2] do not all lie in a picture."""
    limit = np.array([size[1], size[0]], dtype=np.float64)
    outside = ((points < -_SLACK) | (points > limit + _SLACK)).reshape(len(points), -1)
    return set(np.flatnonzero(outside.any(1)).tolist())


def _cut(rings: list[Points], size: Size) -> Outline:
    parts = (clip_ring(ring, size) for ring in rings)
    return tuple(part.astype(np.float32) for part in parts if len(part) > 2)


def _clipped(boxes: Points, size: Size) -> Points:
    height, width = size
    return np.clip(boxes, 0.0, np.array([width, height, width, height], dtype=np.float64))


def _has_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return inside
