"""Texture and light: from the map of shapes to an optical image.

Shape legend: H = W = image side in pixels, N = number of shapes on the canvas, S = samples a pixel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vitp.demo import canvas as board
from vitp.demo.canvas import Canvas, Raster
from vitp.demo.keys import generator
from vitp.demo.site import Point
from vitp.demo.style import MATERIALS, Material, Style

Floats = NDArray[np.float32]

_TILE = 512  # side of the crown tile, pixels
_CROWN = 11.0  # mean crown spacing in the tile, pixels
_TILE_KEY = 20250923  # any constant: the tile is one fixed texture, moved and scaled for every scene


class Crowns(NamedTuple):
    """A carpet of tree crowns, each channel [H, W]."""

    height: Floats  # 0 in the gaps, 1 at the top
    x: Floats  # outward direction of the crown surface
    y: Floats
    tint: Floats  # -1..1, one value a tree


class Ground(NamedTuple):
    """Noise of the land, the same on every date: unit-variance octaves [H, W], and tree crowns where there is forest."""

    coarse: Floats  # 90 to 13 m
    mid: Floats  # about 6 m
    fine: Floats  # about 1.5 pixels
    crowns: Crowns | None


def _octave(rng: np.random.Generator, size: int, cell_px: float, shift: Point) -> Floats:
    """Smooth unit-variance noise [size, size] with features of about `cell_px`, moved by `shift` pixels."""
    span = size / cell_px
    grid = rng.standard_normal((int(span) + 7, int(span) + 7), dtype=np.float32)
    x, y = 2.5 - shift[0] / cell_px, 2.5 - shift[1] / cell_px
    image = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + span, y + span))
    noise: Floats = np.asarray(image) * np.float32(1.35)  # interpolation takes about a quarter of the deviation
    return noise


@lru_cache(maxsize=1)
def _crown_tile() -> Image.Image:
    """A periodic carpet of tree crowns: channels height, x and y of the outward direction, tint (all uint8)."""
    rng = generator(_TILE_KEY, 0, 0)
    cells = round(_TILE / _CROWN)
    pitch = _TILE / cells
    jitter = rng.random((cells, cells, 2), dtype=np.float32)
    radius = (0.62 + 0.42 * rng.random((cells, cells), dtype=np.float32)) * pitch
    tint = rng.random((cells, cells), dtype=np.float32)
    axis = np.arange(_TILE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    ix, iy = (x / pitch).astype(np.int32), (y / pitch).astype(np.int32)
    best = np.zeros((_TILE, _TILE), dtype=np.float32)
    found = np.zeros((4, _TILE, _TILE), dtype=np.float32)
    found[3] = 0.3
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            jx, jy = (ix + dx) % cells, (iy + dy) % cells
            r = radius[jy, jx]
            ox = (x - (ix + dx + jitter[jy, jx, 0]) * pitch) / r
            oy = (y - (iy + dy + jitter[jy, jx, 1]) * pitch) / r
            dome = np.sqrt(np.clip(1.0 - ox * ox - oy * oy, 0.0, 1.0)) * (0.7 + 0.3 * r / pitch)
            higher = dome > best
            best = np.where(higher, dome, best)
            for channel, value in enumerate((dome, ox, oy, tint[jy, jx])):
                found[channel] = np.where(higher, value, found[channel])
    scaled = np.stack([found[0], 0.5 + 0.5 * found[1], 0.5 + 0.5 * found[2], found[3]], axis=-1)
    return Image.fromarray(np.clip(scaled * 255.0, 0.0, 255.0).astype(np.uint8), mode="CMYK")


def _crowns(rng: np.random.Generator, size: int, crown_px: float, shift: Point) -> Crowns:
    """Crown channels [size, size] each, crowns about `crown_px` across, placed at random."""
    start = rng.random(2) * _TILE
    tile = _crown_tile()
    span = size * _CROWN / crown_px
    per_px = span / size
    if span <= _TILE / 2.0:
        # A window of the tile; the half-tile limit leaves room for any start.
        x = float(start[0]) * 0.49 + 4.0 - shift[0] * per_px
        y = float(start[1]) * 0.49 + 4.0 - shift[1] * per_px
        piece = np.asarray(tile.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + span, y + span)))
    else:
        side = max(1, round(_TILE / per_px))
        whole = np.asarray(tile.resize((side, side), Image.Resampling.BILINEAR))
        columns = (np.arange(size) + int(start[0]) - round(shift[0])) % side
        rows = (np.arange(size) + int(start[1]) - round(shift[1])) % side
        piece = whole[rows[:, None], columns[None, :]]
    channels = piece.astype(np.float32) * np.float32(1.0 / 255.0)
    height, nx, ny, tint = (channels[..., i] for i in range(4))
    nx, ny = nx * 2.0 - 1.0, ny * 2.0 - 1.0
    return Crowns(height, nx, ny, tint * 2.0 - 1.0)


def draw_ground(rng: np.random.Generator, size: int, gsd_m: float, crown_m: float | None, shift: Point) -> Ground:
    """The noise of one piece of land; `crown_m` None leaves the crowns out, `shift` moves a misregistered date."""
    quarter = -(-size // 4)  # the slow octaves need few points
    scale = quarter / size
    part = (shift[0] * scale, shift[1] * scale)
    slow = _octave(rng, quarter, 90.0 / gsd_m * scale, part) * np.float32(0.7)
    slow += _octave(rng, quarter, 32.0 / gsd_m * scale, part) * np.float32(0.6)
    slow += _octave(rng, quarter, max(13.0 / gsd_m * scale, 1.0), part) * np.float32(0.4)
    coarse: Floats = np.asarray(Image.fromarray(slow).resize((size, size), Image.Resampling.BICUBIC))
    mid = _octave(rng, size, max(4.5 / gsd_m, 2.5), shift)
    fine = _octave(rng, size, 1.5, shift)
    # Crowns come last: leaving them out changes nothing else.
    crowns = None if crown_m is None else _crowns(rng, size, max(crown_m / gsd_m, 3.2), shift)
    return Ground(coarse, mid, fine, crowns)


def _stripes(table: Floats, numbers: NDArray[np.int32], ground: Ground) -> Floats | None:
    """Relative brightness of crop rows, ripples and corrugated sheet [H, W]."""
    amplitude = table[:, board.STRIPES]
    if not amplitude.any():
        return None
    axis = np.arange(numbers.shape[0], dtype=np.float32)
    phase = table[:, board.KX].take(numbers) * axis[None, :]
    phase += table[:, board.KY].take(numbers) * axis[:, None]
    phase += ground.coarse * np.float32(0.6)
    np.sin(phase, out=phase)
    phase *= amplitude.take(numbers)
    return phase


def _crown_light(style: Style, crowns: Crowns) -> Floats:
    """Relative brightness of a closed canopy [H, W]: lit and dark sides of each crown, dark gaps."""
    sx, sy = style.to_sun
    light = crowns.x * np.float32(0.46 * sx) + crowns.y * np.float32(0.46 * sy)
    light += crowns.height * np.float32(0.72)
    light += crowns.tint * np.float32(0.13)
    light -= np.float32(0.47)
    return light


def render_optical(
    canvas: Canvas, raster: Raster, style: Style, ground: Ground, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The optical image uint8 [H, W, 3] of a canvas and its raster."""
    size, samples = canvas.size, canvas.samples
    table, every, numbers = raster
    packed = np.zeros((len(table), 4), dtype=np.uint8)
    packed[:, :3] = np.clip(table[:, : board.R2], 0.0, 255.0)
    pixels = packed.view(np.uint32)[:, 0].take(every)
    smooth = Image.frombuffer("RGBX", every.shape, pixels, "raw", "RGBX", 0, 1).reduce(samples).convert("RGB")
    image = np.asarray(smooth, dtype=np.float32)

    spread = MATERIALS[table[:, board.MATERIAL].astype(np.int64)]
    blend = ground.coarse * np.float32(0.42) + ground.mid * np.float32(0.2) + np.float32(0.42)
    np.clip(blend, 0.0, 1.0, out=blend)
    second = table[:, board.R2 : board.MATERIAL] - table[:, : board.R2]
    image = image + second.take(numbers, axis=0) * blend[..., None]

    light = spread[:, 0].take(numbers) * ground.coarse
    light += spread[:, 1].take(numbers) * ground.mid
    light += spread[:, 2].take(numbers) * ground.fine
    stripes = _stripes(table, numbers, ground)
    if stripes is not None:
        light += stripes
    crowned = table[:, board.MATERIAL] == Material.CANOPY
    if ground.crowns is not None:
        light += crowned.astype(np.float32).take(numbers) * _crown_light(style, ground.crowns)
    light += np.float32(1.0)
    shade = canvas.shade_map((-style.to_sun[0] * style.shadow_per_m, -style.to_sun[1] * style.shadow_per_m))
    # Skylight is blue: shadows keep more of it.
    image *= light[..., None]
    image *= np.float32(1.0) - shade[..., None] * (
        np.float32(style.shade) * np.array((1.04, 1.0, 0.9), dtype=np.float32)
    )
    return _sensor(image, style, rng, size)


def _grain(rng: np.random.Generator, shape: tuple[int, int, int], deviation: float) -> Floats:
    """Noise of triangular density: the sum of two random bytes a value, many times faster to draw than normal numbers."""
    raw = np.frombuffer(rng.bytes(2 * shape[0] * shape[1] * shape[2]), dtype=np.uint8).reshape(2, *shape)
    total: Floats = np.add(raw[0], raw[1], dtype=np.float32)
    total -= np.float32(255.0)
    total *= np.float32(deviation / math.sqrt((256.0**2 - 1.0) / 6.0))
    return total


def _sensor(image: Floats, style: Style, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Haze, colour balance, contrast, blur and noise."""
    tone = style.tone
    grey = np.full((3, 3), (1.0 - tone.saturation) / 3.0) + np.eye(3) * tone.saturation
    matrix = (grey * np.array(tone.balance) * tone.exposure * (1.0 - tone.haze)).astype(np.float32)
    image = image @ matrix
    image += (np.array((186.0, 198.0, 214.0)) * tone.haze).astype(np.float32)
    np.clip(image, 0.0, 255.0, out=image)
    curve = (255.0 * (np.arange(256) / 255.0) ** tone.gamma).round().astype(np.uint8)
    seen = Image.fromarray(curve[image.astype(np.uint8)])
    if tone.blur_px > 0.12:
        side = 0.5 * (1.0 - math.exp(-tone.blur_px))
        kernel = np.outer((side, 1.0, side), (side, 1.0, side)).ravel()
        seen = seen.filter(ImageFilter.Kernel((3, 3), kernel.tolist(), float(kernel.sum())))
    noise = _grain(rng, (size, size, 3), tone.noise)
    noise += np.asarray(seen)
    np.rint(noise, out=noise)
    np.clip(noise, 0.0, 255.0, out=noise)
    return noise.astype(np.uint8)
