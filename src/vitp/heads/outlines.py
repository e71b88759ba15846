"""Outlines as masks inside a box.

Shape legend: P boxes, M x M cells, E edges of all outlines together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitp.boxes.objects import Outline


def filled(outlines: Sequence[Outline], boxes: Tensor, cells: int) -> Tensor:
    """Which cells of each box have their centre inside the outline: 0 or 1, float32 [P, M, M].

    A point is inside a ring where a line from it crosses the ring an odd number of times, and inside an outline where it is
    inside one of its rings: the parts of an object that another hides, as COCO writes them.

    Args:
        outlines: of each box; no rings: an empty mask.
        boxes: (x1, y1, x2, y2) [P, 4].
        cells: M.
    """
    out = boxes.new_zeros(len(outlines), cells, cells)
    rings = [(number, ring) for number, rings in enumerate(outlines) for ring in rings]
    if not rings:
        return out
    lengths = np.array([len(ring) for _, ring in rings])
    follow = [np.roll(ring, -1, axis=0) for _, ring in rings]
    starts, ends = (
        torch.from_numpy(np.concatenate(points).astype(np.float32)).to(boxes)
        for points in ([ring for _, ring in rings], follow)
    )  # [E, 2]
    owner = torch.tensor([number for number, _ in rings], device=boxes.device)
    ring = torch.from_numpy(np.repeat(np.arange(len(rings)), lengths)).to(boxes.device)
    own = boxes[owner[ring]]
    scale = cells / (own[:, 2:] - own[:, :2])
    ax, ay = ((starts - own[:, :2]) * scale).unbind(1)  # in cells
    bx, by = ((ends - own[:, :2]) * scale).unbind(1)
    y = torch.arange(cells, device=boxes.device) + 0.5
    edge, row = ((ay[:, None] <= y) != (by[:, None] <= y)).nonzero(as_tuple=True)
    x = ax[edge] + (y[row] - ay[edge]) / (by[edge] - ay[edge]) * (bx[edge] - ax[edge])
    column = (x - 0.5).ceil().clamp(0, cells).long()  # the first cell whose centre lies at or beyond the crossing
    crossings = torch.zeros(len(rings), cells, cells + 1, dtype=torch.int32, device=boxes.device)
    crossings.index_put_((ring[edge], row, column), torch.ones_like(column, dtype=torch.int32), accumulate=True)
    inside = (crossings.cumsum(2)[..., :cells] % 2).to(out.dtype)
    return (out.index_add_(0, owner, inside) > 0).to(out.dtype)
