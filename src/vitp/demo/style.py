"""How a scene looks on one date: season, light, sensor, and the colour of every surface under them.

Colours overlap on purpose: a roof may share its colour with soil, asphalt or water, a crop with grass, a court with a roof.
What a thing is follows from shape, texture and surroundings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitp.demo.keys import Dice

Rgb = tuple[float, float, float]
Season = Literal["spring", "summer", "autumn", "winter", "dry"]
SEASONS: tuple[Season, ...] = ("spring", "summer", "autumn", "winter", "dry")


class Material(IntEnum):
    """What a surface is made of: row of `MATERIALS`."""

    GRASS = 0
    SOIL = 1
    SAND = 2
    CANOPY = 3
    WATER = 4
    FOAM = 5
    PAVED = 6
    MARK = 7
    CROP = 8
    ROOF = 9
    METAL = 10
    BODY = 11
    GLASS = 12
    TURF = 13


# Relative brightness amplitude of the noise octaves (coarse, mid, fine), crown shading, radar backscatter in dB (typical
# X/C-band ordering: calm water and asphalt dark, vegetation middle, metal bright) and spread of the radar texture.
MATERIALS: NDArray[np.float32] = np.array(
    [
        # coarse  mid   fine  crown   dB   spread
        (0.07, 0.08, 0.07, 0.0, -12.0, 0.20),  # GRASS
        (0.09, 0.08, 0.06, 0.0, -14.0, 0.18),  # SOIL
        (0.04, 0.04, 0.03, 0.0, -18.0, 0.10),  # SAND
        (0.08, 0.06, 0.05, 1.0, -9.0, 0.35),  # CANOPY
        (0.04, 0.025, 0.012, 0.0, -23.0, 0.0),  # WATER
        (0.0, 0.07, 0.09, 0.0, -17.0, 0.2),  # FOAM
        (0.035, 0.03, 0.028, 0.0, -20.0, 0.06),  # PAVED
        (0.0, 0.07, 0.05, 0.0, -19.5, 0.06),  # MARK
        (0.035, 0.05, 0.045, 0.0, -11.5, 0.12),  # CROP
        (0.02, 0.035, 0.03, 0.0, -12.0, 0.3),  # ROOF
        (0.01, 0.03, 0.02, 0.0, -10.0, 0.3),  # METAL
        (0.0, 0.02, 0.02, 0.0, -7.5, 0.55),  # BODY
        (0.0, 0.01, 0.02, 0.0, -9.0, 0.4),  # GLASS
        (0.015, 0.02, 0.025, 0.0, -16.0, 0.06),  # TURF
    ],
    dtype=np.float32,
)
MATERIALS.setflags(write=False)


class Paint(NamedTuple):
    """The look of one drawn shape: two colours mixed by the terrain noise, a material, and optional stripes."""

    rgb: Rgb
    rgb2: Rgb
    material: Material
    stripes: float = 0.0  # relative amplitude of the stripe texture
    period_m: float = 4.0  # distance between stripes
    direction: float = 0.0  # along the stripes, radians
    decibel: float = 0.0  # added to the material's radar backscatter


def plain(rgb: Rgb, material: Material, decibel: float = 0.0) -> Paint:
    """One colour, no stripes."""
    return Paint(rgb, rgb, material, decibel=decibel)


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """`a` with a share of `b`."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def scaled(rgb: Rgb, factor: float) -> Rgb:
    """Brighter or darker."""
    return (rgb[0] * factor, rgb[1] * factor, rgb[2] * factor)


@dataclass(frozen=True, slots=True)
class Land:
    """What stays when the season changes."""

    soil: Rgb
    sand: Rgb
    asphalt: Rgb
    concrete: Rgb
    track: Rgb
    water: Rgb
    shallow: Rgb
    lushness: float  # 0: bare soil shows through the grass; 1: closed turf
    roofs: tuple[Rgb, ...]
    crown_m: float  # diameter of a tree crown, metres
    swell: float  # direction of the ripples, radians


@dataclass(frozen=True, slots=True)
class Tone:
    """What the atmosphere and the sensor make of it."""

    exposure: float
    balance: Rgb
    saturation: float
    haze: float
    gamma: float
    blur_px: float
    noise: float  # standard deviation in grey levels


@dataclass(frozen=True, slots=True)
class Style:
    """One date over one piece of land."""

    land: Land
    season: Season
    to_sun: tuple[float, float]  # unit vector in the image plane (x right, y down) towards the sun
    shadow_per_m: float  # shadow length for each metre of height
    shade: float  # share of light that shadows take away
    tone: Tone
    grass: Rgb
    grass2: Rgb
    trees: tuple[Rgb, Rgb]
    crops: tuple[tuple[Rgb, float], ...]  # colour, stripe amplitude
    crop_shift: float
    snow: float


_SOILS: tuple[Rgb, ...] = ((136, 110, 84), (152, 104, 74), (126, 118, 106), (96, 78, 62), (172, 146, 108))
_SANDS: tuple[Rgb, ...] = ((206, 190, 152), (190, 170, 132), (218, 208, 184))
_ASPHALTS: tuple[Rgb, ...] = ((70, 70, 74), (92, 92, 94), (116, 114, 112), (136, 132, 124), (104, 98, 92))
_CONCRETES: tuple[Rgb, ...] = ((166, 162, 152), (148, 146, 142), (184, 178, 164), (132, 132, 132))
_WATERS: tuple[tuple[Rgb, Rgb], ...] = (
    ((34, 54, 82), (62, 92, 108)),
    ((50, 74, 70), (88, 108, 92)),
    ((96, 98, 82), (130, 128, 106)),
    ((70, 82, 90), (104, 114, 116)),
    ((30, 40, 46), (66, 74, 70)),
    ((38, 92, 112), (104, 156, 152)),
)
_ROOF_SETS: tuple[tuple[Rgb, ...], ...] = (
    ((152, 84, 62), (134, 92, 74), (166, 106, 80), (112, 84, 70), (96, 74, 66)),  # tiles: close to soil
    ((68, 68, 72), (88, 88, 92), (116, 114, 112), (58, 60, 70), (136, 130, 122)),  # slate: close to asphalt
    ((206, 202, 194), (184, 176, 160), (152, 148, 142), (216, 214, 210), (120, 122, 126)),  # flat roofs: concrete
    ((152, 84, 62), (70, 70, 76), (190, 182, 166), (96, 110, 92), (128, 116, 102)),
    ((82, 104, 138), (206, 202, 196), (96, 128, 104), (150, 146, 138), (56, 66, 78)),  # painted sheet metal
    ((46, 52, 62), (38, 44, 52), (74, 78, 80), (110, 104, 98), (160, 92, 66)),  # dark: close to deep water
)
_GRASS: dict[Season, tuple[Rgb, Rgb]] = {
    "spring": ((104, 138, 68), (128, 142, 84)),
    "summer": ((92, 118, 64), (122, 124, 78)),
    "autumn": ((124, 120, 72), (110, 100, 68)),
    "winter": ((124, 118, 98), (104, 100, 82)),
    "dry": ((160, 142, 102), (140, 130, 90)),
}
_TREES: dict[Season, tuple[tuple[Rgb, Rgb], ...]] = {
    "spring": (((74, 112, 54), (96, 130, 62)), ((58, 92, 50), (108, 126, 78))),
    "summer": (((50, 82, 44), (72, 98, 52)), ((44, 70, 46), (60, 84, 48))),
    "autumn": (((132, 96, 48), (84, 86, 46)), ((150, 116, 58), (118, 72, 46)), ((70, 82, 48), (122, 104, 54))),
    "winter": (((96, 86, 74), (112, 102, 88)), ((54, 68, 52), (88, 84, 70))),
    "dry": (((84, 92, 58), (104, 104, 68)), ((70, 84, 54), (92, 92, 58))),
}
_CROPS: dict[Season, tuple[tuple[Rgb, float], ...]] = {
    "spring": (((200, 188, 78), 0.05), ((96, 140, 64), 0.07), ((124, 150, 82), 0.10), ((116, 132, 76), 0.05)),
    "summer": (((80, 108, 56), 0.10), ((194, 170, 108), 0.06), ((116, 142, 74), 0.06), ((98, 120, 66), 0.04)),
    "autumn": (((176, 154, 110), 0.08), ((112, 130, 72), 0.07), ((146, 124, 80), 0.10), ((122, 116, 74), 0.04)),
    "winter": (((104, 112, 76), 0.07), ((128, 116, 94), 0.08), ((150, 142, 122), 0.06)),
    "dry": (((190, 168, 118), 0.07), ((88, 120, 62), 0.08), ((164, 146, 102), 0.05), ((146, 136, 92), 0.08)),
}


def draw_land(dice: Dice) -> Land:
    """The lasting colours of a scene."""
    water, shallow = dice.pick(_WATERS)
    soil = dice.pick(_SOILS)
    return Land(
        soil=soil,
        sand=dice.pick(_SANDS),
        asphalt=scaled(dice.pick(_ASPHALTS), dice.between(0.88, 1.12)),
        concrete=scaled(dice.pick(_CONCRETES), dice.between(0.9, 1.08)),
        track=mix(soil, (190, 178, 152), dice.between(0.3, 0.8)),
        water=scaled(water, dice.between(0.85, 1.15)),
        shallow=shallow,
        lushness=dice.between(0.1, 1.0),
        roofs=dice.pick(_ROOF_SETS),
        crown_m=dice.between(4.5, 8.5),
        swell=dice.between(0.0, math.pi),
    )


def draw_style(land: Land, dice: Dice, season: Season | None) -> Style:
    """Season, sun, haze and sensor of one date."""
    drawn = dice.pick(SEASONS)
    now = drawn if season is None else season
    azimuth = dice.between(0.0, 2.0 * math.pi)
    elevation = math.radians(dice.between(35.0, 64.0))
    grass, grass2 = _GRASS[now]
    bare = mix(grass2, land.soil, 0.75 * (1.0 - land.lushness))
    snow = dice.between(0.35, 0.95) if dice.chance(0.45) else 0.0
    tone = Tone(
        exposure=dice.between(0.86, 1.22),
        balance=(dice.between(0.94, 1.06), dice.between(0.97, 1.03), dice.between(0.93, 1.07)),
        saturation=dice.between(0.6, 1.2),
        haze=dice.between(0.0, 0.22) * dice.unit(),
        gamma=dice.between(0.85, 1.15),
        blur_px=dice.between(0.0, 0.55),
        noise=dice.between(1.0, 4.0),
    )
    return Style(
        land=land,
        season=now,
        to_sun=(math.cos(azimuth), math.sin(azimuth)),
        shadow_per_m=1.0 / math.tan(elevation),
        shade=dice.between(0.5, 0.68),
        tone=tone,
        grass=scaled(mix(grass, bare, dice.between(0.0, 0.5)), dice.between(0.92, 1.08)),
        grass2=bare,
        trees=dice.pick(_TREES[now]),
        crops=(*_CROPS[now], (land.soil, 0.11), (scaled(land.soil, 0.8), 0.08)),
        crop_shift=dice.unit(),
        snow=snow if now == "winter" else 0.0,
    )
