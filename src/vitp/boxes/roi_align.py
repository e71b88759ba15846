"""RoIAlign of rotated boxes, over one feature map or a pyramid of them, as one weighted gather of feature rows.

The maps become one table of rows (one row a pixel, its channels side by side). A cell of the output is then a weighted sum
of rows, four a sampling point, which is what `torch.nn.functional.embedding_bag` computes, forward and backward. All
levels share the table, so that no box has to be sorted by level and nothing waits for the device.

Sampling follows torchvision's `roi_align` (He et al., Mask R-CNN, 2017, section 3), which it equals at angle zero: the
points of a cell are the centres of its grid; a point more than one pixel outside the map counts as zero; one within that
pixel takes the value at the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Rois(NamedTuple):
    """One entry a box [R]: geometry in pixels of its level, and where its map lies in the table."""

    cx: Tensor
    cy: Tensor
    w: Tensor
    h: Tensor
    cos: Tensor
    sin: Tensor
    rows: Tensor  # height of the map
    columns: Tensor  # width of the map
    start: Tensor  # row of the table that holds pixel (0, 0)


def rotated_roi_align(
    features: Tensor,
    boxes: Tensor,
    image: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Features [R, C, h, w] of rotated boxes on one map; gradients reach the features, not the boxes.

    Args:
        features: [B, C, H, W]. Half types are computed in float32 and returned in their own type.
        boxes: rotated boxes [R, 5] in pixels of the image.
        image: which image each box lies on, integers [R] in [0, B).
        output_size: cells (h, w): h down the box's own y axis, w along its own x axis.
        spatial_scale: size of the map over that of the image.
        sampling_ratio: points a side of a cell (2: released Oriented R-CNN config); 0: as many as cover the cell, at least one.
        aligned: pixel centres lie at half numbers, as they do (torchvision's `aligned=True`); False: the old rule,
            which takes them at whole numbers and makes boxes one pixel of the map wide at least.
    """
    level = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    return _align([features], boxes, image, level, output_size, [spatial_scale], sampling_ratio, aligned)


def multilevel_rotated_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    output_size: int | tuple[int, int],
    strides: Sequence[int],
    sampling_ratio: int = 2,
    finest_size: float = 56.0,
) -> Tensor:
    """As `rotated_roi_align`, each box on the level of its size.

    Args:
        features: maps [B, C, H_l, W_l], finest first.
        boxes: rotated boxes [R, 5] in pixels of the image.
        image: which image each box lies on, integers [R].
        output_size: cells (h, w).
        strides: pixels of the image a pixel of each map stands for.
        sampling_ratio: points a side of a cell; 0: adaptive.
        finest_size: see `assign_levels`.
    """
    assert len(features) == len(strides), f"{len(features)} maps but {len(strides)} strides"
    level = assign_levels(boxes, len(features), finest_size)
    return _align(features, boxes, image, level, output_size, [1 / s for s in strides], sampling_ratio, True)


def assign_levels(boxes: Tensor, levels: int, finest_size: float = 56.0) -> Tensor:
    """Level [R] of each box, 0 the finest: floor(log2(sqrt(area) / finest_size)), within the levels there are.

    Args:
        boxes: (x1, y1, x2, y2) [R, 4] or rotated [R, 5].
        levels: how many there are.
        finest_size: boxes below twice this size go to the finest level (56: released configs; Lin et al., FPN, 2017, Eq. 1).
    """
    w, h = (boxes[:, 2], boxes[:, 3]) if boxes.shape[1] == 5 else (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    size = (w.clamp_min(0).float() * h.clamp_min(0).float()).sqrt()
    level = (size / finest_size + 1e-6).log2().floor()  # 1e-6: the tolerance of the reference
    return level.nan_to_num(0).clamp(0, levels - 1).long()


def _align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    output_size: int | tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    assert boxes.shape[1:] == (5,), f"rotated boxes have shape [R, 5], got {tuple(boxes.shape)}"
    out = (output_size, output_size) if isinstance(output_size, int) else output_size
    channels, given = features[0].shape[1], features[0].dtype
    kind = torch.float64 if given == torch.float64 else torch.float32
    table = _table(features, kind)
    if not len(boxes):
        return (table[:0].view(0, channels, 1, 1) + table.new_zeros(0, channels, *out)).to(given)  # keeps the graph
    with torch.no_grad():
        rois = _place(features, boxes.to(kind), image, level, scales, aligned)
        if sampling_ratio > 0:
            index, weight = _fixed(rois, out, sampling_ratio)
            offsets = None
        else:
            index, weight, offsets = _adaptive(rois, out)
    cells = F.embedding_bag(index, table, offsets, per_sample_weights=weight, mode="sum")  # [R * h * w, C]
    return cells.view(len(boxes), *out, channels).permute(0, 3, 1, 2).to(given)


def _table(features: Sequence[Tensor], kind: torch.dtype) -> Tensor:
    """Rows [pixels of all maps, C] of maps [B, C, H, W]: level after level, image after image; differentiable."""
    first = features[0]
    if len(features) == 1 and first.dtype == kind and first.is_contiguous(memory_format=torch.channels_last):
        return first.permute(0, 2, 3, 1).reshape(-1, first.shape[1])  # lies so already
    rows: Tensor = _Rows.apply(kind, *features)
    return rows


class _Rows(torch.autograd.Function):
    """Copies image by image: torch transposes matrices in cache-sized blocks, twice as fast as a permuted batch."""

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, *features: Tensor) -> Tensor:
        ctx.like = [(m.shape, m.dtype) for m in features]
        table = features[0].new_empty(
            sum(m.shape[0] * m.shape[2] * m.shape[3] for m in features), features[0].shape[1], dtype=kind
        )
        begin = 0
        for picture in (picture for m in features for picture in m.flatten(2)):
            table[begin : begin + picture.shape[1]].copy_(picture.t())
            begin += picture.shape[1]
        return table

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        begin, out = 0, []
        for shape, kind in ctx.like:
            grad = grads[0].new_empty(shape, dtype=kind)
            for picture in grad.flatten(2):
                picture.copy_(grads[0][begin : begin + picture.shape[1]].t())
                begin += picture.shape[1]
            out.append(grad)
        return None, *out


def _place(
    features: Sequence[Tensor], boxes: Tensor, image: Tensor, level: Tensor, scales: Sequence[float], aligned: bool
) -> _Rois:
    starts = [0]
    for m in features:
        starts.append(starts[-1] + m.shape[0] * m.shape[2] * m.shape[3])
    sizes = torch.tensor([[m.shape[2], m.shape[3], s] for m, s in zip(features, starts, strict=False)])
    assert starts[-1] < 2**31, f"{starts[-1]:,} pixels in one call; align fewer images at a time"
    sizes = sizes.to(boxes.device, torch.int32)  # half the memory of long; embedding_bag takes both
    rows, columns, start = sizes[level].unbind(1)
    scale = boxes.new_tensor(scales)[level]
    cx, cy, w, h = (boxes[:, :4] * scale[:, None]).unbind(1)
    if aligned:
        cx, cy = cx - 0.5, cy - 0.5
    else:  # the box grows from its first corner, as torchvision's does
        grow_w, grow_h = (1 - w).clamp_min(0) / 2, (1 - h).clamp_min(0) / 2
        cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
        cx, cy = cx + grow_w * cos - grow_h * sin, cy + grow_w * sin + grow_h * cos
        w, h = w.clamp_min(1), h.clamp_min(1)
    first = start + image.to(start.dtype) * rows * columns
    return _Rois(cx, cy, w, h, boxes[:, 4].cos(), boxes[:, 4].sin(), rows, columns, first)


def _fixed(rois: _Rois, out: tuple[int, int], ratio: int) -> tuple[Tensor, Tensor]:
    """Rows of the table and their weights, [R * h * w, 4 * ratio**2] each, at `ratio` points a side of a cell."""
    points = (torch.arange(cells * ratio, device=rois.cx.device, dtype=rois.cx.dtype).view(-1, ratio) for cells in out)
    v, u = ((at + 0.5) / at.numel() - 0.5 for at in points)
    along = u[None, None, :, None, :]  # [R, h, w, points down, points along]
    down = v[None, :, None, :, None]
    shape = (-1, 1, 1, 1, 1)
    index, weight = _corners(_Rois(*(value.view(shape) for value in rois)), along, down)
    bags = len(rois.cx) * out[0] * out[1]
    return index.view(bags, -1), weight.div_(ratio * ratio).view(bags, -1)


def _adaptive(rois: _Rois, out: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weights and the start of each cell's, where each box has as many points as cover its cells."""
    down = (rois.h / out[0]).nan_to_num(0, 0, 0).ceil().clamp_min(0).long()  # points down a cell [R]
    along = (rois.w / out[1]).nan_to_num(0, 0, 0).ceil().clamp_min(0).long()
    points = down * along
    cells = out[0] * out[1]
    per_cell = points.repeat_interleave(cells)  # [R * h * w]
    ends = per_cell.cumsum(0)
    total = int(ends[-1])
    cell = torch.arange(len(per_cell), device=ends.device).repeat_interleave(per_cell, output_size=total)
    within = torch.arange(total, device=ends.device) - (ends - per_cell)[cell]
    roi, place = cell // cells, cell % cells
    kind, wide = rois.cx.dtype, along[roi]
    u = (place % out[1] + ((within % wide).to(kind) + 0.5) / wide) / out[1] - 0.5
    v = (place // out[1] + ((within // wide).to(kind) + 0.5) / down[roi]) / out[0] - 0.5
    index, weight = _corners(_Rois(*(value[roi] for value in rois)), u, v)
    weight = weight / points[roi][:, None].to(kind)
    return index.view(-1), weight.view(-1), ((ends - per_cell) * 4).int()


def _corners(rois: _Rois, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around each point (u, v), in units of the box from its centre: rows and weights, [..., 4]."""
    dx, dy = u * rois.w, v * rois.h
    x = rois.cx + dx * rois.cos - dy * rois.sin
    y = rois.cy + dx * rois.sin + dy * rois.cos
    inside = (x >= -1) & (x <= rois.columns) & (y >= -1) & (y <= rois.rows)  # torchvision's rule; false for NaN
    x = torch.where(inside, x, 0).clamp_min_(0).minimum(rois.columns - 1)
    y = torch.where(inside, y, 0).clamp_min_(0).minimum(rois.rows - 1)
    x0, y0 = x.floor(), y.floor()
    fx, fy = x - x0, y - y0
    left, top = x0.int(), y0.int()
    right, bottom = (left + 1).minimum(rois.columns - 1), (top + 1).minimum(rois.rows - 1)
    above, below = rois.start + top * rois.columns, rois.start + bottom * rois.columns
    index = torch.stack((above + left, above + right, below + left, below + right), -1)
    valid = inside.to(fy.dtype)
    fy = fy * valid
    gy = valid - fy
    weight = torch.stack((gy - gy * fx, gy * fx, fy - fy * fx, fy * fx), -1)
    return index, weight
