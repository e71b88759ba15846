"""The rectangle of least area around points: one of its sides lies along the convex hull (Freeman and Shapira, 1975)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PAIRS = tuple(combinations(range(4), 2))
_Points = NDArray[np.float64]


def min_rectangles_of_quads(points: Tensor) -> Tensor:
    """Rectangles [..., 5] (w along the chosen side, not regularised) of least area around four points [..., 4, 2].

    All six lines through two points are tried, the sides of the outline first. That no hull is built does no harm: a
    line that is no side of the hull cannot do better than the best side.
    """
    order = sorted(range(6), key=lambda k: _PAIRS[k] in ((0, 2), (1, 3)))
    first = torch.tensor([_PAIRS[k][0] for k in order], device=points.device)
    second = torch.tensor([_PAIRS[k][1] for k in order], device=points.device)
    middle = points.mean(-2, keepdim=True)
    local = points - middle  # sums of small numbers, for outlines far from the origin
    lines = local[..., second, :] - local[..., first, :]  # [..., 6, 2]
    length = lines.norm(dim=-1, keepdim=True)
    along = torch.where(length > 0, lines / length, lines.new_tensor((1.0, 0.0)))  # unit vectors, [..., 6, 2]
    across = torch.stack((-along[..., 1], along[..., 0]), -1)
    u = local @ along.mT  # [..., 4, 6]
    v = local @ across.mT
    low, high = torch.stack((u, v), -1).aminmax(dim=-3)  # [..., 6, 2]
    size = high - low
    area = size.prod(-1).masked_fill((length == 0).squeeze(-1), torch.inf)
    area = torch.where(area.isinf().all(-1, keepdim=True), torch.zeros_like(area), area)  # one point four times
    best = area.argmin(-1, keepdim=True)[..., None]  # [..., 1, 1]; the first of equals

    def chosen(values: Tensor) -> Tensor:
        return values.gather(-2, best.expand(*best.shape[:-1], 2)).squeeze(-2)

    centre, along, across = chosen((low + high) / 2), chosen(along), chosen(across)
    middle = middle.squeeze(-2) + centre[..., :1] * along + centre[..., 1:] * across
    return torch.cat((middle, chosen(size), torch.atan2(along[..., 1:], along[..., :1])), -1)


def min_rectangle(points: Tensor) -> Tensor:
    """The rectangle [5] of least area around points [K, 2], float64, K >= 1 (w along the chosen side, not regularised).

    Rotating calipers: for each side of the hull the outermost points in four directions are found by their place among
    the directions of the sides, O(K log K) in all.
    """
    given: _Points = points.double().cpu().numpy()
    middle = given.mean(0)
    hull = _hull(given - middle)
    if len(hull) < 3:  # a point or a line
        end = hull[-1] - hull[0]
        centre = middle + (hull[0] + hull[-1]) / 2
        return torch.tensor(
            [*centre, float(np.hypot(*end)), 0.0, float(np.arctan2(end[1], end[0]))], dtype=torch.float64
        )
    sides = np.roll(hull, -1, 0) - hull
    unit = sides / np.linalg.norm(sides, axis=1, keepdims=True)
    normal = np.stack((-unit[:, 1], unit[:, 0]), 1)
    right, far, left = (_outermost(hull, sides, direction) for direction in (unit, normal, -unit))
    u0, u1 = (left * unit).sum(1), (right * unit).sum(1)
    v0, v1 = (hull * normal).sum(1), (far * normal).sum(1)
    k = int(np.argmin((u1 - u0) * (v1 - v0)))
    centre = middle + (u0[k] + u1[k]) / 2 * unit[k] + (v0[k] + v1[k]) / 2 * normal[k]
    return torch.tensor(
        [*centre, u1[k] - u0[k], v1[k] - v0[k], float(np.arctan2(unit[k, 1], unit[k, 0]))], dtype=torch.float64
    )


def _outermost(hull: _Points, sides: _Points, directions: _Points) -> _Points:
    """For each direction the hull's point that lies farthest along it."""
    # Along the hull (positive turns) a point is outermost for the directions between the normals of its two sides.
    normals = np.unwrap(np.arctan2(-sides[:, 0], sides[:, 1]))
    wanted = np.arctan2(directions[:, 1], directions[:, 0])
    wanted = normals[0] + np.remainder(wanted - normals[0], 2 * np.pi)
    at = np.searchsorted(normals, wanted, side="left") % len(hull)
    near = hull[(at[:, None] + np.arange(-1, 2)) % len(hull)]  # rounding of angles can miss by one: [K, 3, 2]
    best = np.argmax((near * directions[:, None]).sum(2), 1)
    return np.asarray(near[np.arange(len(hull)), best])


def _hull(points: _Points) -> _Points:
    """Convex hull with positive turns and no three points in a line (Andrew's monotone chain, 1979)."""
    unique = np.unique(points, axis=0)
    if len(unique) < 3:
        return unique
    rows: list[tuple[float, float]] = [(float(x), float(y)) for x, y in unique]
    chains = []
    for run in (rows, rows[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in run:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        chains.append(chain[:-1])
    return np.array(chains[0] + chains[1])
