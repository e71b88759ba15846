"""From objects as they are written to objects one can learn from: what is unusable is dropped, and all of it is counted.

Shape legend: N objects of one image.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from vitp.boxes.objects import Objects, Outline
from vitp.datasets.object_geometry import Points, enclosing, quad_areas, uncrossed
from vitp.datasets.object_place import seen_part
from vitp.datasets.objects_report import Findings
from vitp.datasets.objects_table import ObjectItem, ObjectTable, Size

NOT_FINITE = "objects with a coordinate that is not finite, or beyond ten million pixels"
NO_AREA = "objects without area"
OUTSIDE = "objects outside their image"
CROSSED = "quads whose sides cross, their corners put in order"
CUT = "objects that reach over the border of their image by more than a pixel, their boxes cut there"
BAD_RING = "parts of outlines with fewer than three points or a coordinate that is not finite, left out"
NO_OUTLINE = "objects without outline, no part of what masks learn"
_FAR = 1e7  # pixels: no image is that large
_LEAST = 1e-3  # pixels: sides and square pixels below which rounding is all there is


def settle(table: ObjectTable, index: int, item: ObjectItem, size: Size, findings: Findings | None = None) -> Objects:
    """The objects of an image of (H, W) that can be used; what is unusual goes to `findings`."""
    rows = table.rows(index)
    written = table.corners(rows)
    near: NDArray[np.bool_] = np.abs(written).reshape(-1, 8) < _FAR
    finite: NDArray[np.bool_] = np.logical_and.reduce(near, 1)  # false for NaN
    known, crossed = np.where(finite[:, None, None], written, 0.0), np.zeros(len(written), dtype=np.bool_)
    if table.quads is not None:
        known, crossed = uncrossed(known)
    flat = _flat(known, upright=table.quads is None)
    boxes = enclosing(known) if len(known) else np.zeros((0, 4))
    limit = np.array([size[1], size[0]] * 2, dtype=np.float64)
    over = np.maximum(-boxes, boxes - limit).max(1, initial=0.0)
    for i in np.flatnonzero(finite & ~flat & (over > 0)):
        boxes[i], area = seen_part([known[i]], size)
        over[i] = np.inf if area < _LEAST else over[i]
    outside = finite & ~flat & np.isinf(over)
    kept = finite & ~flat & ~outside
    if findings is not None:
        marks = ((NOT_FINITE, ~finite), (NO_AREA, finite & flat), (OUTSIDE, outside), (CROSSED, crossed & kept))
        for what, which in (*marks, (CUT, kept & (over > 1))):
            for i in np.flatnonzero(which):
                row = rows.start + int(i)
                findings.add(what, partial(table.where, row, item), dropped=what in (NOT_FINITE, NO_AREA, OUTSIDE))
    chosen = rows.start + np.flatnonzero(kept)
    return Objects(
        boxes=torch.from_numpy(boxes[kept]).float(),
        labels=torch.from_numpy(table.labels[chosen]),
        difficult=torch.from_numpy(table.difficult[chosen]),
        crowd=torch.from_numpy(table.crowd[chosen]),
        quads=None if table.quads is None else torch.from_numpy(known[kept]).float(),
        outlines=None
        if table.points is None
        else tuple(_outline(table, row, item, findings) for row in chosen.tolist()),
    )


def _flat(quads: Points, *, upright: bool) -> NDArray[np.bool_]:
    """Which have no area. An upright box whose far side lies before its near side has none either."""
    if upright:
        sides = quads[:, 2] - quads[:, 0]
        return np.asarray((sides < _LEAST).any(1))
    return np.asarray(quad_areas(quads) < _LEAST)


def _outline(table: ObjectTable, row: int, item: ObjectItem, findings: Findings | None) -> Outline:
    rings = table.outline(row)
    good = tuple(ring for ring in rings if len(ring) > 2 and (np.abs(ring) < _FAR).all())
    if findings is not None and len(good) < len(rings):
        findings.add(BAD_RING, partial(table.where, row, item))
    if findings is not None and not good:
        findings.add(NO_OUTLINE, partial(table.where, row, item))
    return good
