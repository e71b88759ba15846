"""Overlap of boxes: rotated, plain, and of circumscribed boxes.

The area that two rectangles share is taken slice by slice in the frame of the second: along an edge of the first, clip
the edge's x to the second's width and its y to the second's height, and integrate y dx; the sum over the four edges is the
area. Clipping is continuous, so edges that coincide, touch or lie inside each other are no special cases and need no
tolerance. All geometry is float64, relative to the centres, whatever the type of the input; a shared area within the
rounding of that counts as none, so that boxes which only touch have IoU 0.

Boxes whose sides are not positive, or with a number that is not finite, overlap nothing (IoU 0, even with themselves).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitp.boxes.formats import to_xyxy

_CHUNK = {"cpu": 1 << 14, "cuda": 1 << 22}  # pairs at a time: what fits the second-level cache; what fills the device
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 26}  # cells of the pre-filter at a time


@torch.no_grad()
def rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [N, M] of every rotated box of `a` [N, 5] with every one of `b` [M, 5]; no gradient.

    Besides the result, memory stays bounded: circumscribed boxes are compared block by block, and only the pairs that
    touch are computed. Where even N x M is too much, `overlapping` gives the pairs alone.
    """
    out = a.new_zeros(len(a), len(b), dtype=_result_type(a))
    flat = out.view(-1)
    for i, j, iou in overlapping(a, b):
        flat[i * len(b) + j] = iou.to(out.dtype)
    return out


@torch.no_grad()
def rotated_iou_pairs(a: Tensor, b: Tensor) -> Tensor:
    """IoU [N] of rotated boxes `a` [N, 5] with `b` [N, 5], pair by pair; no gradient."""
    assert a.shape == b.shape, f"pairs need equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}"
    a64, b64, size = a.double(), b.double(), _CHUNK.get(a.device.type, 1 << 22)
    parts = [_iou(a64[k : k + size], b64[k : k + size]) for k in range(0, len(a), size)]
    return torch.cat(parts).to(_result_type(a)) if parts else a.new_zeros(0, dtype=_result_type(a))


@torch.no_grad()
def overlapping(
    a: Tensor,
    b: Tensor,
    group_a: Tensor | None = None,
    group_b: Tensor | None = None,
    ascending: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pairs whose circumscribed boxes overlap, in chunks: index into `a`, index into `b`, IoU (float64).

    Args:
        a: rotated boxes [N, 5].
        b: rotated boxes [M, 5].
        group_a: integers [N]; only boxes of the same group are compared.
        group_b: integers [M], given where `group_a` is.
        ascending: only pairs whose index into `a` is the smaller one; for a set against itself.
    """
    a64, b64, size = a.double(), b.double(), _CHUNK.get(a.device.type, 1 << 22)
    for i, j in _candidates(to_xyxy(a64), to_xyxy(b64), group_a, group_b):
        if ascending:
            smaller = i < j
            i, j = i[smaller], j[smaller]
        for k in range(0, len(i), size):
            rows, columns = i[k : k + size], j[k : k + size]
            yield rows, columns, _iou(a64[rows], b64[columns])


@torch.no_grad()
def plain_overlapping(a: Tensor, b: Tensor, least: float = 0.0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pairs of plain boxes that overlap by `least` at least, in chunks: index into `a`, index into `b`, IoU (float64).

    For sets whose matrix would not fit, such as thousands of true boxes against the anchors of a large image. The boxes of `b`
    are taken by size, one octave at a time: small ones lie close together along x, and of boxes whose areas differ by
    more than `least` none can overlap by as much.

    Args:
        a: boxes (x1, y1, x2, y2) [N, 4].
        b: boxes [M, 4].
        least: IoU in [0, 1]; 0 gives every pair that shares an area.
    """
    a64, b64 = a.double(), b.double()
    area_a, area_b = _area(a64), _area(b64)
    octave = (b64[:, 2:] - b64[:, :2]).amax(1).clamp_min(1).log2().nan_to_num(0, 0, 0).int()
    octave = torch.where(b64.isfinite().all(1), octave, -1)
    for size in range(int(octave.max()) + 1 if len(b) else 0):
        columns = (octave == size).nonzero().squeeze(1)
        if not len(columns):
            continue
        low, high = area_b[columns].aminmax()
        rows = ((area_a >= low * least) & (area_a * least <= high)).nonzero().squeeze(1)
        for i, j in _candidates(a64[rows], b64[columns], None, None):
            i, j = rows[i], columns[j]
            left, right = a64[i], b64[j]
            w, h = (torch.minimum(left[:, 2:], right[:, 2:]) - torch.maximum(left[:, :2], right[:, :2])).unbind(1)
            shared = w * h
            iou = shared / (area_a[i] + area_b[j] - shared)
            enough = iou >= max(least, torch.finfo(iou.dtype).tiny)
            yield i[enough], j[enough], iou[enough]


def plain_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [N, M] of boxes (x1, y1, x2, y2) `a` [N, 4] with `b` [M, 4]; zero where neither has an area."""
    shared = _shared(a, b)
    union = _area(a)[:, None] + _area(b)[None] - shared
    return torch.where(shared > 0, shared / union, torch.zeros_like(shared))


def plain_ioa(a: Tensor, b: Tensor) -> Tensor:
    """Share [N, M] of the area of each box of `a` [N, 4] that lies in each of `b` [M, 4]; for regions to ignore."""
    shared = _shared(a, b)
    return torch.where(shared > 0, shared / _area(a)[:, None], torch.zeros_like(shared))


def circumscribed_iou(a: Tensor, b: Tensor) -> Tensor:
    """`plain_iou` [N, M] of the circumscribed boxes; each side may be rotated [., 5] or plain [., 4] already."""
    return plain_iou(*(to_xyxy(boxes) if boxes.shape[-1] == 5 else boxes for boxes in (a, b)))


def _shared(a: Tensor, b: Tensor) -> Tensor:
    sides = [
        (torch.minimum(a[:, None, k + 2], b[None, :, k + 2]) - torch.maximum(a[:, None, k], b[None, :, k])).clamp_min_(
            0
        )
        for k in (0, 1)
    ]
    return sides[0].mul_(sides[1])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _result_type(boxes: Tensor) -> torch.dtype:
    return torch.float64 if boxes.dtype == torch.float64 else torch.float32


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of float64 pairs [K, 5]."""
    a, b = a.T.contiguous(), b.T.contiguous()
    area_a, area_b = (boxes[2].clamp_min(0) * boxes[3].clamp_min(0) for boxes in (a, b))
    shared = _intersection(a, b).minimum(area_a).minimum(area_b)
    # Rounding leaves a little of what only touches: less than this many times how far the pair reaches.
    reach = (a[:4] - b[:4]).abs().sum(0) + 2 * (b[2] + b[3])
    noise = 4e-15 * reach * torch.minimum(a[2:4].amax(0), b[2:4].amax(0))
    return torch.where(shared > noise, shared / (area_a + area_b - shared), torch.zeros_like(shared))  # false for NaN


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Shared area [K] of rectangles [5, K] each, float64; a rounding error below zero is possible."""
    turn = a[4] - b[4]
    cos, sin, cos_b, sin_b = turn.cos(), turn.sin(), b[4].cos(), b[4].sin()
    dx, dy = a[0] - b[0], a[1] - b[1]
    half_w, half_h = b[2] / 2, b[3] / 2
    ux, uy = a[2] / 2 * cos, a[2] / 2 * sin  # half sides of a, in b's frame
    vx, vy = a[3] / -2 * sin, a[3] / 2 * cos
    px, py = dx * cos_b + dy * sin_b, dy * cos_b - dx * sin_b
    sx, tx, sy, ty = ux + vx, ux - vx, uy + vy, uy - vy
    x0 = torch.stack((px - sx, px + tx, px + sx, px - tx))  # corners of a, clockwise: [4, K]
    y0 = torch.stack((py - sy, py + ty, py + sy, py - ty))
    x1, y1 = x0.roll(-1, 0), y0.roll(-1, 0)
    left = x0.clamp(-half_w, half_w)
    right = left.roll(-1, 0)
    # Slopes of the two directions; an upright edge covers no x, so any number does for it.
    slope = torch.stack((torch.where(ux == 0, ux, uy / ux), torch.where(vx == 0, vx, vy / vx))).repeat(2, 1)
    ya = (left - x0).mul_(slope).add_(y0)
    yb = (right - x1).mul_(slope).add_(y1)
    # Mean of the clipped y between ya and yb: its linear part, and what lies above and below.
    ca, cb = ya.clamp(-half_h, half_h), yb.clamp(-half_h, half_h)
    above = torch.maximum(yb, half_h).sub_(torch.maximum(ya, half_h))
    below = torch.minimum(yb, -half_h).sub_(torch.minimum(ya, -half_h))
    rise = yb - ya
    mean = (cb - ca).mul_(cb + ca).mul_(0.5).add_(above.sub_(below).mul_(half_h)).div_(rise)
    mean = torch.where(rise == 0, ca, mean)
    return (right - left).mul_(mean).sum(0).neg_()


def _candidates(
    a: Tensor, b: Tensor, group_a: Tensor | None, group_b: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Index pairs of boxes (x1, y1, x2, y2), float64, of the same group that overlap; block by block.

    Both sides are sorted along x, so that a block of rows meets a short range of columns.
    """
    if not len(a) or not len(b):
        return
    if group_a is not None and group_b is not None:
        a, b = _apart(a, b, group_a, group_b)
    a, b = _finite_only(a), _finite_only(b)
    order_a, order_b = a[:, 0].argsort(), b[:, 0].argsort()
    a, b = a[order_a], b[order_b]
    budget = _BLOCK.get(a.device.type, 1 << 26)
    rows = min(max(budget // len(b), 32), len(a))
    starts = torch.arange(0, len(a), rows, device=a.device)
    lowest = a[starts, 0]
    highest = torch.stack([part[:, 2].max() for part in torch.split(a, rows)])
    reach = b[:, 2].cummax(0).values
    first = torch.searchsorted(reach, lowest, right=True)
    last = torch.searchsorted(b[:, 0].contiguous(), highest)
    for k, (low, high) in enumerate(torch.stack((first, last), 1).tolist()):
        part = a[k * rows : (k + 1) * rows]
        for start in range(low, high, max(budget // len(part), 1)):
            other = b[start : min(start + max(budget // len(part), 1), high)].T
            touch = part[:, 0:1] < other[2]
            touch &= part[:, 2:3] > other[0]
            touch &= part[:, 1:2] < other[3]
            touch &= part[:, 3:4] > other[1]
            i, j = touch.nonzero(as_tuple=True)
            yield order_a[i + k * rows], order_b[j + start]


def _apart(a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (x1, y1, x2, y2) moved along x so that those of different groups cannot meet."""
    rank = torch.unique(torch.cat((group_a, group_b)), return_inverse=True)[1]
    low, high = torch.cat((a, b))[:, 0::2].nan_to_num(0, 0, 0).aminmax()
    shift = rank.to(a.dtype) * (high - low + 1)
    moved = []
    for boxes, by in zip((a, b), torch.split(shift, [len(a), len(b)]), strict=True):
        x1, y1, x2, y2 = boxes.unbind(1)
        x1 = (x1 + by).nextafter(x1.new_tensor(-torch.inf))  # the sum's rounding must not part what overlaps
        moved.append(torch.stack((x1, y1, x2 + by, y2), 1))
    return moved[0], moved[1]


def _finite_only(boxes: Tensor) -> Tensor:
    """Boxes with a number that is not finite made into ones that lie nowhere, so that sorting and comparing stay sound."""
    nowhere = boxes.new_tensor((torch.inf, torch.inf, -torch.inf, -torch.inf))
    return torch.where(boxes.isfinite().all(1, keepdim=True), boxes, nowhere)
