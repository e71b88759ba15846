"""Points, polygons and boxes under an affine map, and what a picture's border leaves of them.

Coordinates are pixels with y down; the top-left corner of the top-left pixel is (0, 0). All geometry is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitp.boxes.formats import from_quads, from_rectangles, regularise, to_quads

Points = NDArray[np.float64]  # [..., 2]
_EQUAL = 1e-9  # relative difference of two scales that count as one


@dataclass(frozen=True)
class Affine:
    """x' = a x + b y + c, y' = d x + e y + f."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    def then(self, after: Affine) -> Affine:
        """First itself, then `after`."""
        return Affine(
            after.a * self.a + after.b * self.d,
            after.a * self.b + after.b * self.e,
            after.a * self.c + after.b * self.f + after.c,
            after.d * self.a + after.e * self.d,
            after.d * self.b + after.e * self.e,
            after.d * self.c + after.e * self.f + after.f,
        )

    @property
    def determinant(self) -> float:
        """By which areas grow; negative where the map mirrors."""
        return self.a * self.e - self.b * self.d

    @property
    def keeps_axes(self) -> bool:
        """Whether upright boxes stay upright boxes."""
        return (self.b == 0 and self.d == 0) or (self.a == 0 and self.e == 0)

    def inverse(self) -> Affine:
        """The way back."""
        k = self.determinant
        assert k != 0, "a map onto a line has no inverse"
        a, b, d, e = self.e / k, -self.b / k, -self.d / k, self.a / k
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def points(self, points: Points) -> Points:
        """Points [..., 2] moved."""
        x, y = points[..., 0], points[..., 1]
        return np.stack((self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f), -1)

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes [N, 4] (x1, y1, x2, y2) or rotated boxes [N, 5] (le90) moved, in their own type and place.

        A rotated box that is scaled unevenly becomes a parallelogram; it is given as the rectangle of least area around
        that. Upright boxes under a map that turns them are given as what encloses them.
        """
        if boxes.shape[-1] == 4:
            corners = boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].reshape(*boxes.shape[:-1], 4, 2)
            moved = self._moved(corners)
            return torch.cat((moved.amin(-2), moved.amax(-2)), -1).to(boxes)
        assert boxes.shape[-1] == 5, f"boxes have 4 or 5 numbers, got {tuple(boxes.shape)}"
        quads = self._moved(to_quads(boxes.double()))
        if self._keeps_shape:
            if self.determinant < 0:
                quads = quads.flip(-2)
            return regularise(from_rectangles(quads)).to(boxes)
        return from_quads(quads).to(boxes)

    @property
    def _keeps_shape(self) -> bool:
        """Whether rectangles stay rectangles whatever their angle."""
        size = math.hypot(self.a, self.d)
        skew = self.a * self.b + self.d * self.e
        return abs(size - math.hypot(self.b, self.e)) <= _EQUAL * size and abs(skew) <= _EQUAL * size * size

    def _moved(self, points: Tensor) -> Tensor:
        matrix = torch.tensor([[self.a, self.d], [self.b, self.e]], dtype=torch.float64, device=points.device)
        return points.double() @ matrix + matrix.new_tensor((self.c, self.f))


def scaling(x: float, y: float) -> Affine:
    """Stretched from the origin."""
    return Affine(a=x, e=y)


def shift(x: float, y: float) -> Affine:
    """Moved along."""
    return Affine(c=x, f=y)


def rotation(degrees: float, size: tuple[int, int]) -> Affine:
    """Turned anticlockwise as seen about the centre of a picture of (H, W), as torchvision's `rotate` does it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = size
    turn = Affine(cos, sin, 0.0, -sin, cos, 0.0)
    return shift(-width / 2, -height / 2).then(turn).then(shift(width / 2, height / 2))


# --------------------------------------------------------------------------------------------------------------- polygons


def signed_area(ring: Points) -> float:
    """Area of a ring [K, 2] (shoelace); positive where it turns clockwise as seen."""
    if len(ring) < 3:
        return 0.0
    x, y = ring[:, 0] - ring[0, 0], ring[:, 1] - ring[0, 1]  # small numbers, for rings far from the origin
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def clip_ring(ring: Points, size: tuple[int, int]) -> Points:
    """The part of a ring [K, 2] inside a picture of (H, W), [L, 2]; L is 0 where nothing is.

    Sutherland and Hodgman (1974). Of concave rings, parts may be joined by lines along the border, which have no area.
    """
    height, width = size
    for axis, bound, sign in ((0, 0.0, 1.0), (0, float(width), -1.0), (1, 0.0, 1.0), (1, float(height), -1.0)):
        if not len(ring):
            break
        ring = _clip_side(ring, axis, bound, sign)
    return ring


def _clip_side(ring: Points, axis: int, bound: float, sign: float) -> Points:
    """The part of a ring on one side of a line along an axis."""
    depth = sign * (ring[:, axis] - bound)
    inside = depth >= 0
    if inside.all():
        return ring
    if not inside.any():
        return ring[:0]
    following, next_depth = np.roll(ring, -1, 0), np.roll(depth, -1)
    crossing = inside != np.roll(inside, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(crossing, depth / (depth - next_depth), 0.0)
    between = ring + share[:, None] * (following - ring)
    between[:, axis] = bound
    both = np.stack((ring, between), 1).reshape(-1, 2)  # each corner, then the crossing after it
    kept: Points = both[np.stack((inside, crossing), 1).reshape(-1)]
    return kept


def enclosing(points: Points) -> Points:
    """(x1, y1, x2, y2) [..., 4] around points [..., K, 2]."""
    return np.concatenate((points.min(-2), points.max(-2)), -1)


def corners_of(boxes: Points) -> Points:
    """Corners [N, 4, 2] of boxes [N, 4], clockwise as seen from the top-left one."""
    corners: Points = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    return corners


def uncrossed(quads: Points) -> tuple[Points, NDArray[np.bool_]]:
    """Quads [N, 4, 2] with their corners clockwise and no sides that cross, and which had sides that cross [N].

    The first corner stays the first. A quad whose sides cross gets its corners in order of their direction from their
    mean; a concave one stays as it is.
    """
    if not len(quads):
        return quads, np.zeros(0, dtype=np.bool_)
    crossed = _sides_cross(quads, 0, 1, 2, 3) | _sides_cross(quads, 1, 2, 3, 0)
    fixed = quads.copy()
    if crossed.any():
        bad = fixed[crossed]
        arms = bad - bad.mean(1, keepdims=True)
        direction = np.arctan2(arms[..., 1], arms[..., 0])
        order = np.argsort(np.mod(direction - direction[:, :1], 2 * np.pi), 1, kind="stable")
        fixed[crossed] = np.take_along_axis(bad, order[..., None], 1)
    x, y = fixed[..., 0], fixed[..., 1]
    twice = (x[:, 2] - x[:, 0]) * (y[:, 3] - y[:, 1]) - (x[:, 3] - x[:, 1]) * (y[:, 2] - y[:, 0])
    fixed[twice < 0] = fixed[twice < 0][:, [0, 3, 2, 1]]
    return fixed, crossed


def quad_areas(quads: Points) -> Points:
    """Areas [N] of quads [N, 4, 2] whose sides do not cross."""
    diagonals = quads[:, 2:] - quads[:, :2]  # [N, 2, 2]: the first to the third corner, the second to the fourth
    areas: Points = np.abs(diagonals[:, 0, 0] * diagonals[:, 1, 1] - diagonals[:, 0, 1] * diagonals[:, 1, 0]) / 2
    return areas


def _sides_cross(quads: Points, a: int, b: int, c: int, d: int) -> NDArray[np.bool_]:
    """Whether the side from corner a to b and that from c to d cross inside both."""

    def turn(i: int, j: int, k: int) -> Points:
        u, v = quads[:, j] - quads[:, i], quads[:, k] - quads[:, i]
        side: Points = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
        return side

    crossing: NDArray[np.bool_] = (turn(a, b, c) * turn(a, b, d) < 0) & (turn(c, d, a) * turn(c, d, b) < 0)
    return crossing
