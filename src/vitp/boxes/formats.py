"""What a box is here, and exact conversions from and to every other notation. The convention is stated in this file only.

A *rotated box* is five numbers (cx, cy, w, h, angle) in pixels and radians, x to the right, y down. The side `w` points
along (cos angle, sin angle), so a positive angle turns clockwise as seen. In the form *le90* (Xie et al., Oriented R-CNN,
2021, and the benchmarks built on it) w is the longer side and the angle lies in [-pi/2, pi/2); `regularise` brings any box
there. A *box* is (x1, y1, x2, y2). A *quad* is four corners (4, 2), clockwise as seen in all that is returned here.

Every function takes any leading shape, keeps the floating type, works on the device of its input, and computes on.
Numbers that are not finite stay so: nothing is hidden, and `vitp.boxes.iou` gives such boxes an overlap of zero.

What has no single answer is settled so: the longer side of a square is whichever the source wrote first; boxes without
area keep their place, length and direction; crossed and concave outlines are replaced by their convex hull.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vitp.boxes.min_rectangle import min_rectangle, min_rectangles_of_quads
from vitp.errors import DataError

_SIGNS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))  # corners in the box's own frame, clockwise


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles brought to [-pi/2, pi/2) by whole half turns, which leave a rectangle as it is."""
    wrapped = torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2
    inside = (angle >= -math.pi / 2) & (angle < math.pi / 2)
    wrapped = torch.where(wrapped >= math.pi / 2, wrapped - math.pi, wrapped)  # remainder can round up to pi
    return torch.where(inside, angle, wrapped)  # no rounding where nothing is to do


def regularise(boxes: Tensor) -> Tensor:
    """Rotated boxes [..., 5] in the form le90: w >= h, angle in [-pi/2, pi/2). The rectangle stays the same."""
    cx, cy, w, h, angle = boxes.unbind(-1)
    swap = h > w
    long, short = torch.where(swap, h, w), torch.where(swap, w, h)
    return torch.stack((cx, cy, long, short, wrap_angle(torch.where(swap, angle + math.pi / 2, angle))), -1)


# --------------------------------------------------------------------------------------------------------------- quads


def to_quads(boxes: Tensor) -> Tensor:
    """Corners [..., 4, 2] of rotated boxes [..., 5], clockwise as seen, from the one that is top-left at angle zero."""
    signs = boxes.new_tensor(_SIGNS)
    cos, sin = boxes[..., 4:].cos(), boxes[..., 4:].sin()  # [..., 1]
    along, across = signs[:, 0] * boxes[..., 2:3], signs[:, 1] * boxes[..., 3:4]  # [..., 4]
    x = boxes[..., 0:1] + along * cos - across * sin
    y = boxes[..., 1:2] + along * sin + across * cos
    return torch.stack((x, y), -1)


def from_quads(quads: Tensor) -> Tensor:
    """The rectangles [..., 5] of least area around quads [..., 4, 2] (or [..., 8]), le90.

    Exact for rectangles. The corners may come in any order: crossed and concave outlines count as their convex hull,
    coinciding ones as a line (h = 0) or a point (w = h = 0).
    """
    points = quads.reshape(*quads.shape[:-1], 4, 2) if quads.shape[-1] == 8 else quads
    assert points.shape[-2:] == (4, 2), f"quads have shape [..., 4, 2] or [..., 8], got {tuple(quads.shape)}"
    return regularise(min_rectangles_of_quads(points.double())).to(quads.dtype)


def from_rectangles(quads: Tensor) -> Tensor:
    """Rectangles given as corners [..., 4, 2] in order, to [..., 5] le90: the sides are those of the first corner.

    Cheap and differentiable; for outlines that are no rectangle, use `from_quads`.
    """
    first, second = quads[..., 1, :] - quads[..., 0, :], quads[..., 2, :] - quads[..., 1, :]
    sides = first.norm(dim=-1), second.norm(dim=-1)
    longer = torch.where((sides[0] >= sides[1])[..., None], first, second)
    angle = torch.atan2(longer[..., 1], longer[..., 0])
    centre = quads.mean(-2)
    box = (centre[..., 0], centre[..., 1], torch.maximum(*sides), torch.minimum(*sides), wrap_angle(angle))
    return torch.stack(box, -1)


def from_polygon(points: Sequence[float], where: str = "") -> Tensor:
    """The rectangle [5] of least area around a polygon x1, y1, x2, y2, ... (COCO's notation), le90, float64.

    One or two points, and points in a line, give a box without area. The order of the points does not matter.

    Raises:
        DataError: no points, an odd count of numbers, or a number that is not finite (at `where`).
    """
    if not points or len(points) % 2:
        raise DataError(
            f"has a polygon of {len(points)} numbers; write x1, y1, x2, y2, ... of three points or more", where
        )
    if not all(map(math.isfinite, points)):
        raise DataError("has a polygon with a coordinate that is not finite; remove the polygon or mend it", where)
    flat = torch.tensor([float(value) for value in points], dtype=torch.float64)
    return regularise(min_rectangle(flat.view(-1, 2)))


# --------------------------------------------------------------------------------------------- boxes along the axes


def from_xywh(boxes: Tensor) -> Tensor:
    """COCO's (left, top, width, height) [..., 4] to (x1, y1, x2, y2)."""
    return torch.cat((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), -1)


def to_xywh(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) [..., 4] to COCO's (left, top, width, height)."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), -1)


def from_xyxy(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) [..., 4] to rotated boxes [..., 5]; upright ones get the angle -pi/2, as le90 asks."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    return regularise(torch.cat((centre, size, torch.zeros_like(size[..., :1])), -1))


def to_xyxy(boxes: Tensor) -> Tensor:
    """The circumscribed (x1, y1, x2, y2) [..., 4] of rotated boxes [..., 5]."""
    cx, cy, w, h, angle = boxes.unbind(-1)
    cos, sin = angle.cos().abs(), angle.sin().abs()
    half_x, half_y = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return torch.stack((cx - half_x, cy - half_y, cx + half_x, cy + half_y), -1)


# ----------------------------------------------------------------------------------------------- others' rotated boxes


def from_torchvision(boxes: Tensor) -> Tensor:
    """Torchvision's ``cxcywhr`` [..., 5] (degrees, anticlockwise as seen) to le90."""
    return regularise(torch.cat((boxes[..., :4], -torch.deg2rad(boxes[..., 4:])), -1))


def to_torchvision(boxes: Tensor) -> Tensor:
    """Rotated boxes [..., 5] to torchvision's ``cxcywhr`` (degrees, anticlockwise as seen)."""
    return torch.cat((boxes[..., :4], -torch.rad2deg(boxes[..., 4:])), -1)


def from_opencv(boxes: Tensor) -> Tensor:
    """OpenCV's rotated rectangle (cx, cy, w, h, degrees clockwise as seen) [..., 5] to le90."""
    return regularise(torch.cat((boxes[..., :4], torch.deg2rad(boxes[..., 4:])), -1))


def to_opencv(boxes: Tensor) -> Tensor:
    """Rotated boxes [..., 5] to OpenCV's (cx, cy, w, h, degrees), the angle in (0, 90] as `cv2.minAreaRect` gives it."""
    cx, cy, w, h, angle = regularise(boxes).unbind(-1)
    turn = angle <= 0  # a quarter turn on, the sides change names
    degrees = torch.rad2deg(torch.where(turn, angle + math.pi / 2, angle))
    upright = degrees <= 0  # angle -pi/2, or rounding next to it
    w, h = torch.where(turn & ~upright, h, w), torch.where(turn & ~upright, w, h)
    return torch.stack((cx, cy, w, h, torch.where(upright, degrees + 90, degrees)), -1)


# ------------------------------------------------------------------------------------------------------------ DOTA text


def to_dota(boxes: Tensor, decimals: int | None = 2) -> list[str]:
    """The eight numbers ``x1 y1 x2 y2 x3 y3 x4 y4`` of each rotated box [N, 5], as DOTA's text files have them.

    Args:
        boxes: rotated boxes.
        decimals: figures after the point (2: what DOTA's tools write); None: as many as give the same number back.
    """
    quads = to_quads(boxes.double()).flatten(1).tolist()
    return [" ".join(repr(v) if decimals is None else f"{v:.{decimals}f}" for v in quad) for quad in quads]


def from_dota(text: str, where: str = "") -> Tensor:
    """A rotated box [5], le90, float64, from a line that begins with DOTA's eight numbers.

    Raises:
        DataError: fewer than eight numbers, or one that is not finite (at `where`).
    """
    fix = "write x1 y1 x2 y2 x3 y3 x4 y4 class difficult"
    try:
        numbers = [float(part) for part in text.split()[:8]]
    except ValueError as error:
        raise DataError(f"'{text[:60]}' does not begin with eight numbers; {fix}", where) from error
    if len(numbers) < 8 or not all(map(math.isfinite, numbers)):
        raise DataError(f"'{text[:60]}' does not begin with eight finite numbers; {fix}", where)
    return from_quads(torch.tensor(numbers, dtype=torch.float64))
