"""The radar view of a scene: backscatter by material, corners, layover, shadow, point reflectors, speckle.

Side-looking geometry: the sensor looks along `range_direction` (ground plane) at an incidence angle. A body of height h has
its radar shadow of length h * tan(incidence) on the far side and its layover of length h / tan(incidence) on the near side.
Fully developed speckle of L looks multiplies the intensity by a Gamma(L, 1/L) variable, whose coefficient of variation is
1 / sqrt(L) (Goodman, 1976; Ulaby, Moore and Fung, 1986).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitp.demo import canvas as board
from vitp.demo.canvas import Canvas, Caster, Raster
from vitp.demo.keys import Dice
from vitp.demo.site import Point
from vitp.demo.style import MATERIALS, Material
from vitp.demo.terrain import Floats, Ground

_FLOOR = 10.0 ** (-28.0 / 10.0)  # noise floor of the receiver, linear
_SAMPLES = 2
_DARKEST_DB, _BRIGHTEST_DB = -26.0, 4.0  # range shown in the 8-bit image


@dataclass(frozen=True, slots=True)
class Look:
    """One acquisition: range direction in the image plane, tangent of the incidence angle, wind on the water in dB."""

    range_direction: Point
    tan_incidence: float
    water_db: float


def draw_look(dice: Dice) -> Look:
    """A random acquisition geometry, incidence 32 to 50 degrees."""
    turn = dice.between(0.0, 2.0 * math.pi)
    incidence = math.radians(dice.between(32.0, 50.0))
    return Look((math.cos(turn), math.sin(turn)), math.tan(incidence), dice.between(-2.0, 4.0))


def backscatter(canvas: Canvas, raster: Raster, ground: Ground, look: Look) -> Floats:
    """Mean radar intensity, linear, [H, W], before speckle."""
    table, every, numbers = raster
    material = table[:, board.MATERIAL].astype(np.int64)
    decibel = MATERIALS[material, 4] + table[:, board.DECIBEL]
    decibel += np.where(material == Material.WATER, np.float32(look.water_db), np.float32(0.0))
    linear = (10.0 ** (decibel / 10.0)).astype(np.float32)
    mean = np.array(Image.fromarray(linear.take(every)).reduce(canvas.samples))
    texture = MATERIALS[material, 5].take(numbers)
    dx, dy = look.range_direction
    exponent = texture * (ground.mid * np.float32(0.6) + ground.fine)
    if ground.crowns is not None:
        crowned = (material == Material.CANOPY).astype(np.float32).take(numbers)
        # The near side of a crown faces the sensor.
        exponent -= (ground.crowns.x * np.float32(0.8 * dx) + ground.crowns.y * np.float32(0.8 * dy)) * crowned
    mean *= np.exp(exponent)

    reach = look.tan_incidence
    mean *= np.float32(1.0) - np.float32(0.96) * canvas.shade_map((dx * reach, dy * reach))
    # Windows, ledges and ducts make walls glitter.
    mean += _corners(canvas, look) * np.exp(ground.fine * np.float32(0.7) - np.float32(0.35))
    _add_glints(mean, canvas)
    mean = _resolve(mean)
    mean += np.float32(_FLOOR)
    return mean


def _corners(canvas: Canvas, look: Look) -> Floats:
    """Layover of walls that face the sensor and the bright line where they meet the ground [H, W]."""
    image = Image.new("F", (canvas.size * _SAMPLES, canvas.size * _SAMPLES), 0.0)
    draw = ImageDraw.Draw(image)
    scale = _SAMPLES / canvas.gsd_m
    x0, y0 = (canvas.size / 2.0 + canvas.shift[0]) * _SAMPLES, (canvas.size / 2.0 + canvas.shift[1]) * _SAMPLES
    lines: list[tuple[tuple[float, float, float, float], float]] = []
    for body in canvas.casters:
        if body.metal <= 0.0:
            continue
        for ends, lifted, facing in _near_walls(body, look):
            (xa, ya), (xb, yb) = ((x * scale + x0, y * scale + y0) for x, y in ends)
            (xc, yc), (xd, yd) = ((x * scale + x0, y * scale + y0) for x, y in lifted)
            draw.polygon((xa, ya, xb, yb, xc, yc, xd, yd), fill=0.11 * body.metal * (0.4 + facing))
            # A dihedral answers strongly only when it faces the sensor squarely.
            lines.append(((xa, ya, xb, yb), body.metal * (0.5 + 7.0 * facing**6)))
    for xy, strength in lines:
        draw.line(xy, fill=strength, width=_SAMPLES)
    return np.asarray(image.reduce(_SAMPLES), dtype=np.float32)


def _near_walls(body: Caster, look: Look) -> list[tuple[tuple[Point, Point], tuple[Point, Point], float]]:
    """Walls facing the sensor: base line, the same line laid over towards the sensor (reversed), cosine to the sensor."""
    dx, dy = look.range_direction
    back = body.height / look.tan_incidence
    outline = body.outline
    turning = 0.0
    for i in range(len(outline)):
        (xa, ya), (xb, yb) = outline[i - 1], outline[i]
        turning += xa * yb - xb * ya
    sign = 1.0 if turning >= 0.0 else -1.0
    walls = []
    for i in range(len(outline)):
        a, b = outline[i], outline[(i + 1) % len(outline)]
        ex, ey = b[0] - a[0], b[1] - a[1]
        length = math.hypot(ex, ey)
        if length == 0.0:
            continue
        facing = -sign * (ey * dx - ex * dy) / length
        if facing > 0.05:
            lifted = ((b[0] - dx * back, b[1] - dy * back), (a[0] - dx * back, a[1] - dy * back))
            walls.append(((a, b), lifted, facing))
    return walls


def _add_glints(mean: Floats, canvas: Canvas) -> None:
    """Point reflectors with the side lobes of the sensor's impulse response, added in place."""
    size = canvas.size
    offsets = np.arange(-4, 5)
    for glint in canvas.glints:
        x = glint.x / canvas.gsd_m + size / 2.0 + canvas.shift[0] - 0.5
        y = glint.y / canvas.gsd_m + size / 2.0 + canvas.shift[1] - 0.5
        ix, iy = round(x), round(y)
        if not (4 <= ix < size - 4 and 4 <= iy < size - 4):
            continue
        response_x = np.sinc(0.85 * (offsets + ix - x)) ** 2
        response_y = np.sinc(0.85 * (offsets + iy - y)) ** 2
        spot = (glint.strength * np.outer(response_y, response_x)).astype(np.float32)
        mean[iy - 4 : iy + 5, ix - 4 : ix + 5] += spot


def _resolve(mean: Floats) -> Floats:
    """The sensor's resolution: a (1, 4, 1) / 6 smoothing along both axes."""
    for axis in (0, 1):
        padded = np.concatenate([mean.take([0], axis), mean, mean.take([-1], axis)], axis)
        side = padded[2:] + padded[:-2] if axis == 0 else padded[:, 2:] + padded[:, :-2]
        mean = mean * np.float32(4.0 / 6.0) + side * np.float32(1.0 / 6.0)
    return mean


def speckle(size: int, looks: int, rng: np.random.Generator) -> Floats:
    """Unit-mean multiplicative speckle [size, size]: Gamma with shape L and scale 1/L."""
    drawn: Floats = rng.standard_gamma(looks, (size, size), dtype=np.float32)
    return drawn / np.float32(looks)


def quantise(intensity: Floats) -> NDArray[np.uint8]:
    """Linear intensity [H, W] to a uint8 image [H, W, 3] of equal channels on a decibel scale."""
    decibel = np.float32(10.0) * np.log10(np.maximum(intensity, np.float32(1e-6)))
    grey = (decibel - np.float32(_DARKEST_DB)) * np.float32(255.0 / (_BRIGHTEST_DB - _DARKEST_DB))
    grey = np.clip(np.rint(grey), 0.0, 255.0).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
