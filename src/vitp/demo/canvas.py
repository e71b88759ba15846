"""The drawing board: shapes in metres become a map of shape numbers, from which image, mask and radar view are looked up.

One geometry pass serves every modality: `Canvas.fill` writes the number of a shape into an integer image drawn at
`samples` times the final resolution; colours, labels, materials are columns of a table indexed by that number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitp.demo.site import Point
from vitp.demo.style import Material, Paint

_LOW_M = 3.6  # things up to this height may stand in the shadow of taller ones
_SHADOW_SAMPLES = 2

# Columns of the shape table.
R, G, B, R2, G2, B2, MATERIAL, LABEL, KX, KY, STRIPES, DECIBEL = range(12)


class Caster(NamedTuple):
    """A body that throws shadows and stands up in the radar: footprint in metres, height, and how it stands."""

    outline: Sequence[Point]
    height: float
    copies: int  # 0: a prism, its shadow swept; else the shadow is drawn as so many shifted outlines (crowns, wings)
    metal: float  # strength of the corner it makes with the ground in the radar view, 0 = none


class Glint(NamedTuple):
    """A point-like strong radar reflector."""

    x: float
    y: float
    strength: float


class Raster(NamedTuple):
    """A finished drawing: N shapes, H = W = image side, S samples a pixel."""

    table: NDArray[np.float32]  # [N, 12], columns as named in this module
    every: NDArray[np.int32]  # shape numbers [H*S, W*S]
    centre: NDArray[np.int32]  # shape numbers at the pixel centres [H, W]

    def holds(self, material: Material) -> bool:
        """Whether any shape is of this material."""
        return bool((self.table[:, MATERIAL] == material).any())

    def mask(self) -> NDArray[np.uint8]:
        """Class ids [H, W]."""
        return self.table[:, LABEL].astype(np.uint8).take(self.centre)


class Pose:
    """Local metres (x along the object, y across) to ground metres."""

    __slots__ = ("angle", "cos", "sin", "x", "y")

    def __init__(self, x: float, y: float, angle: float) -> None:
        self.x, self.y, self.angle = x, y, angle
        self.cos, self.sin = math.cos(angle), math.sin(angle)

    def put(self, points: Sequence[Point]) -> list[Point]:
        """Local points on the ground."""
        x, y, c, s = self.x, self.y, self.cos, self.sin
        return [(x + a * c - b * s, y + a * s + b * c) for a, b in points]

    def facing(self, a: float, b: float) -> Point:
        """A local direction on the ground."""
        return (a * self.cos - b * self.sin, a * self.sin + b * self.cos)


class Canvas:
    """One image being drawn: `size` pixels square, `gsd_m` metres a pixel, shifted by (dx, dy) pixels."""

    def __init__(self, size: int, gsd_m: float, samples: int, base: Paint, shift: Point = (0.0, 0.0)) -> None:
        self.size = size
        self.gsd_m = gsd_m
        self.samples = samples
        self.shift = shift
        self.scale = samples / gsd_m
        self._x0 = (size / 2.0 + shift[0]) * samples
        self._y0 = (size / 2.0 + shift[1]) * samples
        self._image = Image.new("I", (size * samples, size * samples), 0)
        self._draw = ImageDraw.Draw(self._image)
        self._rows: list[tuple[float, ...]] = []
        self._row(base, 0)
        self.casters: list[Caster] = []
        self.glints: list[Glint] = []
        self.hollows: list[tuple[Sequence[Point], float]] = []  # clearings: the surrounding canopy shades their edge

    def _row(self, paint: Paint, label: int) -> int:
        wave = 2.0 * math.pi * self.gsd_m / max(paint.period_m, 3.2 * self.gsd_m)
        kx, ky = -math.sin(paint.direction) * wave, math.cos(paint.direction) * wave
        self._rows.append((*paint.rgb, *paint.rgb2, paint.material, label, kx, ky, paint.stripes, paint.decibel))
        return len(self._rows) - 1

    def fill(self, outline: Sequence[Point], paint: Paint, label: int) -> None:
        """Cover an area (ground metres)."""
        number = self._row(paint, label)
        scale, x0, y0 = self.scale, self._x0, self._y0
        self._draw.polygon([(x * scale + x0, y * scale + y0) for x, y in outline], fill=number)

    def disc(self, x: float, y: float, radius: float, paint: Paint, label: int) -> None:
        """Cover a disc (ground metres)."""
        number = self._row(paint, label)
        cx, cy, r = x * self.scale + self._x0, y * self.scale + self._y0, max(radius * self.scale, 0.6)
        self._draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=number)

    def cast(self, outline: Sequence[Point], height: float, metal: float = 0.0, copies: int = 0) -> None:
        """Let a body of this footprint and height throw a shadow."""
        self.casters.append(Caster(outline, height, copies, metal))

    def raster(self) -> Raster:
        """What has been drawn so far, as arrays."""
        side, half = self.size * self.samples, self.samples // 2
        every = np.frombuffer(self._image.tobytes(), dtype=np.int32).reshape(side, side)
        centre = np.ascontiguousarray(every[half :: self.samples, half :: self.samples])
        return Raster(np.array(self._rows, dtype=np.float32), every, centre)

    def shade_map(self, per_metre: Point) -> NDArray[np.float32]:
        """Share of shadow in each pixel [H, W] when every metre of height throws it by `per_metre` (ground metres)."""
        samples = _SHADOW_SAMPLES
        image = Image.new("L", (self.size * samples, self.size * samples), 0)
        draw = ImageDraw.Draw(image)
        scale = samples / self.gsd_m
        x0, y0 = (self.size / 2.0 + self.shift[0]) * samples, (self.size / 2.0 + self.shift[1]) * samples

        def paint(points: Sequence[Point], value: int) -> None:
            draw.polygon([(x * scale + x0, y * scale + y0) for x, y in points], fill=value)

        sx, sy = per_metre
        for outline, height in self.hollows:
            paint(outline, 255)
            paint([(x + sx * height, y + sy * height) for x, y in outline], 0)
        low = [c for c in self.casters if c.height <= _LOW_M]
        tall = [c for c in self.casters if c.height > _LOW_M]
        for group in (low, tall):
            for body in group:
                dx, dy = sx * body.height, sy * body.height
                if body.copies == 0:
                    paint(sweep(body.outline, dx, dy), 255)
                for i in range(1, body.copies + 1):
                    ax, ay = dx * i / body.copies, dy * i / body.copies
                    paint([(x + ax, y + ay) for x, y in body.outline], 255)
            for body in group:
                paint(body.outline, 0)
        reduced = image.reduce(samples) if samples > 1 else image
        shade: NDArray[np.float32] = np.asarray(reduced, dtype=np.float32) * np.float32(1.0 / 255.0)
        return shade


def sweep(outline: Sequence[Point], dx: float, dy: float) -> list[Point]:
    """The area a convex polygon covers when moved by (dx, dy): its convex hull with its moved copy."""
    count = len(outline)
    area = 0.0
    for i in range(count):
        (xa, ya), (xb, yb) = outline[i - 1], outline[i]
        area += xa * yb - xb * ya
    sign = 1.0 if area >= 0.0 else -1.0
    ahead = []
    for i in range(count):
        (xa, ya), (xb, yb) = outline[i], outline[(i + 1) % count]
        ahead.append(sign * ((yb - ya) * dx - (xb - xa) * dy) > 0.0)
    hull: list[Point] = []
    for i in range(count):
        x, y = outline[i]
        before, after = ahead[i - 1], ahead[i]
        moved = (x + dx, y + dy)
        if before and after:
            hull.append(moved)
        elif before:
            hull.extend((moved, (x, y)))
        elif after:
            hull.extend(((x, y), moved))
        else:
            hull.append((x, y))
    return hull
