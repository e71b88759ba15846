"""Objects found in overlapping windows of one picture, each of them kept once.

Two windows see an object that lies where they overlap; one that a window's side cuts is seen whole by a neighbour if the overlap
is as wide as the object. So whole finds come before cut ones, each by falling score, and one that stays removes those of its
label that it overlaps by more than a threshold, and of the cut ones also those that lie within it for the most part, however
small their IoU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitp.boxes.coders import as_rotated
from vitp.boxes.iou import overlapping
from vitp.boxes.nms import greedy

# Share of a cut find inside a whole one from which it is a part of that (ours): a rectangle around a cut-off corner is half
# empty.
INSIDE = 0.4


@torch.no_grad()
def merge_windows(boxes: Tensor, scores: Tensor, labels: Tensor, cut: Tensor, threshold: float) -> Tensor:
    """Indices [K] of the finds that stay, by falling score.

    Args:
        boxes: [N, 4] (x1, y1, x2, y2) or [N, 5] rotated boxes, in the picture's pixels.
        scores: [N].
        labels: [N]; only boxes of the same label touch each other.
        cut: bool [N]: whether a side of its window, which is no side of the picture, may have cut the object.
        threshold: IoU in [0, 1] above which the later of two goes.
    """
    assert 0 <= threshold <= 1, f"an IoU threshold lies in [0, 1], got {threshold}"
    rank = scores.argsort(descending=True, stable=True)
    order = rank[cut[rank].to(torch.int8).argsort(stable=True)]
    rotated, group, partial = as_rotated(boxes[order]), labels[order], cut[order]
    area = rotated[:, 2].double() * rotated[:, 3].double()
    before, after = [order[:0]], [order[:0]]
    for i, j, iou in overlapping(rotated, rotated, group, group, ascending=True):
        shared = iou * (area[i] + area[j]) / (1 + iou)
        goes = (iou > threshold) | (partial[j] & ~partial[i] & (shared > INSIDE * area[j]))
        before.append(i[goes])
        after.append(j[goes])
    kept = order[greedy(len(order), torch.cat(before), torch.cat(after)).to(order.device)]
    return kept[scores[kept].argsort(descending=True, stable=True)]


def cut_by_window(
    boxes: Tensor, window: tuple[int, int, int, int], picture: tuple[int, int], margin: float = 2.0
) -> Tensor:
    """Which boxes [N, 4] reach a side of their window that is no side of the picture, bool [N].

    Args:
        boxes: x1, y1, x2, y2 in the picture's pixels.
        window: left, top, right, bottom, likewise.
        picture: height and width.
        margin: pixels from the side that count as reaching it.
    """
    left, top, right, bottom = window
    height, width = picture
    reaches = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if left > 0:
        reaches |= boxes[:, 0] <= left + margin
    if top > 0:
        reaches |= boxes[:, 1] <= top + margin
    if right < width:
        reaches |= boxes[:, 2] >= right - margin
    if bottom < height:
        reaches |= boxes[:, 3] >= bottom - margin
    return reaches
