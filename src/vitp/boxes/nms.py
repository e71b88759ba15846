"""Non-maximum suppression: of boxes that overlap by more than a threshold, the one with the highest score stays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from vitp.boxes.iou import overlapping

_BLOCK = 2048  # boxes judged at a time: bounds the pairs held where thousands of boxes lie on one another


@torch.no_grad()
def rotated_nms(
    boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None, limit: int | None = None
) -> Tensor:
    """Indices [K] of the rotated boxes that stay, by falling score; of equal scores the earlier one comes first.

    The kept set is that of the greedy rule: a box is dropped where one that stays, of a higher score and the same label,
    has a rotated IoU above the threshold with it. The overlaps are found on the boxes' device, in float64; the rule
    itself, a matter of a few thousand bits, runs on the host.

    Args:
        boxes: rotated boxes [N, 5]. One with a number that is not finite overlaps nothing and stays.
        scores: [N]; NaN counts as lowest.
        threshold: IoU in [0, 1] above which the lower score is dropped.
        labels: integers [N]; boxes of different labels do not touch each other.
        limit: stop after so many boxes.
    """
    assert 0 <= threshold <= 1, f"an IoU threshold lies in [0, 1], got {threshold}"
    order = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argsort(descending=True, stable=True)
    kept = order[:0]
    for block in torch.split(order, _BLOCK):
        block = _survivors(boxes, labels, kept, block, threshold)
        rows, columns = [], []
        own, group = boxes[block], None if labels is None else labels[block]
        for i, j, iou in overlapping(own, own, group, group, ascending=True):
            over = iou > threshold
            rows.append(i[over])
            columns.append(j[over])
        if rows:
            block = block[greedy(len(block), torch.cat(rows), torch.cat(columns)).to(block.device)]
        kept = torch.cat((kept, block))
        if limit is not None and len(kept) >= limit:
            return kept[:limit]
    return kept


def nms(
    boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None, limit: int | None = None
) -> Tensor:
    """As `rotated_nms`, for boxes (x1, y1, x2, y2) [N, 4], by torchvision's kernel.

    Labels keep boxes apart by moving them in float64 from a common origin: torchvision's own way, in float32 and from
    zero, mixes labels where coordinates are negative and loses digits where they are large.
    """
    if labels is not None and len(boxes):
        rank = torch.unique(labels, return_inverse=True)[1]
        boxes = boxes.double()
        boxes = boxes - boxes.min()
        boxes = boxes + (rank * (boxes.max() + 1))[:, None]
    kept: Tensor = torchvision.ops.nms(boxes, scores.to(boxes.dtype), threshold)
    return kept[:limit]


def _survivors(boxes: Tensor, labels: Tensor | None, kept: Tensor, block: Tensor, threshold: float) -> Tensor:
    """What of a block the boxes kept so far leave."""
    if not len(kept):
        return block
    alive = torch.ones_like(block, dtype=torch.bool)
    groups = (None, None) if labels is None else (labels[kept], labels[block])
    for _, j, iou in overlapping(boxes[kept], boxes[block], *groups):
        alive[j[iou > threshold]] = False
    return block[alive]


def greedy(count: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Which of `count` boxes stay [count]; box rows[k] suppresses the later box columns[k] if it stays itself."""
    i: NDArray[np.int64] = rows.cpu().numpy()
    j: NDArray[np.int64] = columns.cpu().numpy()
    by_row = np.argsort(i, kind="stable")
    i, j = i[by_row], j[by_row]
    heads, begins = np.unique(i, return_index=True)
    stays = np.ones(count, dtype=bool)
    for head, (begin, end) in zip(heads.tolist(), pairwise([*begins.tolist(), len(i)]), strict=True):
        if stays[head]:
            stays[j[begin:end]] = False
    return torch.from_numpy(stays)
