"""Multi-scale deformable attention (Zhu et al. 2021, Deformable DETR, section 4.1) in plain torch.

Every query reads a few points of every level of a pyramid, bilinearly, and sums them with its own weights. The sum has
two forms with one result: `sample_grid` (``grid_sample`` a level) and `sample_bag` (one ``embedding_bag`` over weighted
rows). `choose_form` says which one runs.

Shape legend: B images, Q queries, M heads, D channels a head, L levels, P points, S = sum of h * w over the levels,
K = L * P * 4 corners read by a query and head.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Shapes = Sequence[tuple[int, int]]  # (height, width) of each level
_RADIX = 1 << 16  # numpy sorts 16-bit keys by counting, several times faster than any comparison
_INT32 = 1 << 31
_WIDTH = 8  # channels a head; at 6, bags take twice the time of grids forward and backward, at 8 three quarters
_CORNERS = 1 << 16  # at 25,000 bags take twice the time, at 100,000 three quarters


def choose_form(device: torch.device, width: int, corners: int) -> Literal["grid", "bag"]:
    """Which form samples; measured by bench/deformable.py on one core.

    Bags win on the CPU from 8 channels a head on (the released ViT-L has 16), since ``grid_sample`` pays for every
    channel and a bag for every corner, and from some ten thousands of corners on, which pay for its fixed costs. On CUDA
    neither has been measured here: grids, one fused kernel. Export and compilation take grids too: ONNX has GridSample
    and no weighted bag.

    Args:
        device: where the values lie.
        width: channels of a head.
        corners: read in all, B * Q * M * K.
    """
    captured = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    fast = device.type == "cpu" and width >= _WIDTH and corners >= _CORNERS
    return "bag" if fast and not captured else "grid"


def sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples, in fp32 (or fp64) whatever comes in; see `choose_form`.

    Args:
        value: [B, S, M, D], the levels one after the other, each row by row.
        shapes: height and width of each level.
        locations: [B, Q, M, L, P, 2], x and y as shares of a level's width and height; outside 0-1 reads zeros.
        weights: [B, Q, M, L, P].

    Returns:
        [B, Q, M * D] in the type of `value`.
    """
    assert value.shape[1] == sum(h * w for h, w in shapes), (value.shape, shapes)
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    bags = choose_form(value.device, value.shape[3], weights.numel() * 4) == "bag"
    form = sample_bag if bags else sample_grid
    with torch.autocast(value.device.type, enabled=False):
        return form(value.to(exact), shapes, locations.to(exact), weights.to(exact)).to(value.dtype)


def sample_grid(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample` by one ``grid_sample`` a level; all of one floating type."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B * M, Q, P, 2]
    shares = weights.permute(3, 0, 2, 1, 4).reshape(len(shapes), batch * heads, 1, queries, -1)  # [L, B * M, 1, Q, P]
    total = None
    start = 0
    for level, (h, w) in enumerate(shapes):
        rows = value[:, start : start + h * w]
        start += h * w
        planes = rows.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w)
        read = functional.grid_sample(planes, grids[level], align_corners=False)  # [B * M, D, Q, P]
        part = (read * shares[level]).sum(-1)
        total = part if total is None else total + part
    assert total is not None
    return total.view(batch, heads * width, queries).transpose(1, 2)


def sample_bag(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample` by one weighted bag of rows for each query and head; all of one floating type, CPU."""
    return cast(Tensor, _BagSampling.apply(value, tuple(shapes), locations, weights))


class _BagSampling(torch.autograd.Function):
    """The four corners of every point become rows of a table with a weight each: a sparse matrix times the values.

    Autograd's own backward of ``embedding_bag`` sorts 64-bit keys and adds row by row. Here the gradient of the values
    is again a bag, over the matrix transposed by a counting sort, and that of the weights is a sampled product.
    All planes (image and head) lie apart, so that one fits into the cache. Small axes come first while corners are
    computed, [L, P, N] with N = B * M * Q: element-wise work on short inner axes took ten times the bag's time.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        batch, cells, heads, width = value.shape
        queries = locations.shape[1]
        table = value.transpose(1, 2).reshape(-1, width)  # rows (b, m, s)
        places = locations.permute(3, 5, 4, 0, 2, 1).contiguous().view(len(shapes), 2, locations.shape[4], -1)
        shares = weights.permute(3, 4, 0, 2, 1).contiguous().view(len(shapes), locations.shape[4], -1)  # [L, P, N]
        bags = batch * heads * queries
        kind = torch.int32 if max(len(table), bags * shares.shape[0] * shares.shape[1] * 4) < _INT32 else torch.int64
        plane = (torch.arange(batch * heads, dtype=kind) * cells).repeat_interleave(queries)  # [N]: first row
        keys, corner_weights, sides, outside = _corners(places, shares, shapes, plane)
        out = functional.embedding_bag(keys, table, per_sample_weights=corner_weights, mode="sum")
        ctx.save_for_backward(table, keys, corner_weights, shares, sides, outside)
        ctx.sizes = (batch, cells, heads, width, queries)
        ctx.shapes = shapes
        return out.view(batch, heads, queries, width).transpose(1, 2).reshape(batch, queries, heads * width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        table, keys, corner_weights, shares, sides, outside = ctx.saved_tensors
        batch, cells, heads, width, queries = ctx.sizes
        levels, points, _ = shares.shape
        gradient = gradient.reshape(batch, queries, heads, width).transpose(1, 2).reshape(-1, width)  # rows (b, m, q)
        to_value = to_locations = to_weights = None
        if ctx.needs_input_grad[0]:
            to_table = _transposed_bag(keys, corner_weights, gradient, batch * heads, cells)
            to_value = to_table.view(batch, heads, cells, width).transpose(1, 2)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            products = _row_products(keys, gradient, table).view(len(keys), -1).t().contiguous()
            products = products.view(levels, 2, 2, points, -1)  # [L, y, x, P, N]
            left, right, top, bottom = sides  # [L, P, N] each
            by_left = products[:, 0, 0] * top + products[:, 1, 0] * bottom
            by_right = products[:, 0, 1] * top + products[:, 1, 1] * bottom
            to_shares = by_left * left + by_right * right
            to_weights = to_shares.view(levels, points, batch, heads, queries).permute(2, 4, 3, 0, 1)
            by_top = products[:, 0, 0] * left + products[:, 0, 1] * right
            by_bottom = products[:, 1, 0] * left + products[:, 1, 1] * right
            for side, beyond in zip((by_left, by_right, by_top, by_bottom), outside, strict=True):
                side.masked_fill_(beyond, 0.0)
            steps = torch.stack([by_right.sub_(by_left), by_bottom.sub_(by_top)]).mul_(shares)  # [2, L, P, N]
            for level, (h, w) in enumerate(ctx.shapes):
                steps[0, level] *= w
                steps[1, level] *= h
            to_locations = steps.view(2, levels, points, batch, heads, queries).permute(3, 5, 4, 1, 2, 0)
        return to_value, None, to_locations, to_weights


def _corners(places: Tensor, shares: Tensor, shapes: Shapes, plane: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of the table each bag reads, and with which weights.

    Args:
        places: locations [L, 2 (x, y), P, N].
        shares: attention weights [L, P, N].
        shapes: height and width of each level.
        plane: first table row [N] of each bag's image and head.

    Returns:
        rows [N, K] and weights [N, K], K running over level, (top, bottom), (left, right) and point; interpolation
        weights [4 (left, right, top, bottom), L, P, N], 0 outside the level; and what lies outside, likewise.
    """
    levels, _, points, bags = places.shape
    rows = torch.empty(levels, 2, 2, points, bags, dtype=plane.dtype)
    weights = torch.empty(levels, 2, 2, points, bags, dtype=places.dtype)
    sides = torch.empty(4, levels, points, bags, dtype=places.dtype)
    outside = torch.empty(4, levels, points, bags, dtype=torch.bool)
    start = 0
    for level, (h, w) in enumerate(shapes):
        cells = []
        for axis, length in enumerate((w, h)):
            at = places[level, axis] * length - 0.5
            low = at.floor()
            share = at.sub_(low)
            for high in (0, 1):
                side, beyond = sides[2 * axis + high, level], outside[2 * axis + high, level]
                near = low + high
                clamped = near.clamp(0, length - 1)
                torch.ne(clamped, near, out=beyond)
                torch.sub(1.0, share, out=side) if high == 0 else side.copy_(share)
                side.masked_fill_(beyond, 0.0)
                cells.append(clamped.to(plane.dtype).clamp_(0, length - 1))  # again: a location may be NaN
        for high in (0, 1):
            row = cells[2 + high].mul_(w).add_(plane).add_(start)
            share = sides[2 + high, level] * shares[level]
            for right in (0, 1):
                torch.add(row, cells[right], out=rows[level, high, right])
                torch.mul(share, sides[right, level], out=weights[level, high, right])
        start += h * w
    return rows.view(-1, bags).t().contiguous(), weights.view(-1, bags).t().contiguous(), sides, outside


def _transposed_bag(keys: Tensor, weights: Tensor, gradient: Tensor, planes: int, cells: int) -> Tensor:
    """For every table row, the weighted sum of the gradient rows [N, D] whose bags [N, K] name it: [planes * S, D]."""
    flat = keys.flatten()
    counts = torch.bincount(flat, minlength=planes * cells)
    offsets = functional.pad(counts[:-1].cumsum(0), (1, 0)).to(flat.dtype)
    order = _order(flat.view(planes, -1), cells)
    bags = torch.div(order, keys.shape[1], rounding_mode="floor")
    shares = weights.flatten().index_select(0, order)
    return functional.embedding_bag(bags, gradient, offsets, per_sample_weights=shares, mode="sum")


def _order(keys: Tensor, cells: int) -> Tensor:
    """Positions [planes * n] that sort keys [planes, n], whose planes rise and hold `cells` keys each."""
    planes, length = keys.shape
    if cells > _RADIX:
        return keys.flatten().argsort(stable=True).to(keys.dtype)
    first = torch.arange(planes, dtype=keys.dtype).view(-1, 1)
    inside = (keys - first * cells).numpy().astype(np.uint16)
    order = torch.from_numpy(np.argsort(inside, axis=1, kind="stable")).to(keys.dtype)
    return order.add_(first * length).flatten()


def _row_products(keys: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    """Products of each gradient row [N, D] with the table rows its bag [N, K] names: [N * K]."""
    bags, size = keys.shape
    if size > len(table):  # torch refuses patterns with more entries than the full product has
        return (table[keys.long()] * gradient[:, None]).sum(-1).flatten()
    starts = torch.arange(0, bags * size + 1, size, dtype=keys.dtype)
    with warnings.catch_warnings():  # torch announces once a process that its CSR tensors are young
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        pattern = torch.sparse_csr_tensor(
            starts,
            keys.flatten(),
            torch.zeros(bags * size, dtype=table.dtype),
            (bags, len(table)),
            check_invariants=False,
        )
        return cast(Tensor, torch.sparse.sampled_addmm(pattern, gradient, table.t(), beta=0.0).values())


def centres(shape: tuple[int, int], cell: tuple[float, float], device: torch.device) -> Tensor:
    """Centres (x, y) of a map's cells [h * w, 2], each cell `cell` = (height, width) large, row by row."""
    down = (torch.arange(shape[0], device=device, dtype=torch.float32) + 0.5) * cell[0]
    across = (torch.arange(shape[1], device=device, dtype=torch.float32) + 0.5) * cell[1]
    y, x = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


class DeformableAttention(nn.Module):
    """Queries [B, Q, C] read `points` places of each of `levels` maps through `heads` heads."""

    def __init__(
        self, channels: int, *, heads: int = 16, levels: int = 1, points: int = 4, value_ratio: float = 1.0
    ) -> None:
        """Attention whose values have ``channels * value_ratio`` channels; `heads` divides that number."""
        super().__init__()
        inner = int(channels * value_ratio)
        assert inner % heads == 0, f"{heads} heads do not divide {inner} channels"
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, inner)
        self.output_proj = nn.Linear(inner, channels)
        self.reset()

    def reset(self) -> None:
        """Deformable DETR's start: head m looks in direction m, point p lies p cells away, all weigh the same."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        turn = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ray = torch.stack([turn.cos(), turn.sin()], -1)
        ray = ray / ray.abs().amax(-1, keepdim=True)  # onto the border of a square of side 2
        distance = torch.arange(1, self.points + 1, dtype=torch.float32)
        start = ray[:, None, None, :] * distance[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(start.expand(-1, self.levels, -1, -1).flatten())

    def forward(self, query: Tensor, references: Tensor, feature: Tensor, shapes: Shapes) -> Tensor:
        """Read `feature` around each query's reference point.

        Args:
            query: [B, Q, C].
            references: [Q, L, 2], x and y as shares of each level's width and height.
            feature: [B, S, C], the levels one after the other.
            shapes: height and width of each level.

        Returns:
            [B, Q, C].
        """
        batch, queries, _ = query.shape
        value = self.value_proj(feature).view(batch, feature.shape[1], self.heads, -1)
        offsets = self.sampling_offsets(query).view(batch, queries, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, queries, self.heads, -1).float().softmax(-1)
        sizes = torch.tensor([(w, h) for h, w in shapes], device=query.device, dtype=torch.float32)
        locations = references[None, :, None, :, None, :] + offsets.float() / sizes[:, None]
        read = sample(value, shapes, locations, weights.view(batch, queries, self.heads, self.levels, self.points))
        return cast(Tensor, self.output_proj(read))
