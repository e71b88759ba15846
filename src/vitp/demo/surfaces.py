"""Ground covers by name, and the paint each gets under a style."""

from __future__ import annotations

from typing import Literal

from vitp.demo.style import Material, Paint, Rgb, Style, mix, plain, scaled

Surface = Literal[
    "grass",
    "lawn",
    "soil",
    "sand",
    "canopy",
    "water",
    "shallow",
    "shelf",
    "foam",
    "surf",
    "pool",
    "asphalt",
    "sidewalk",
    "concrete",
    "track",
    "gravel",
    "deck",
    "mark",
    "mark_yellow",
    "rubber",
    "crop",
    "tramline",
]

WHITE: Rgb = (226, 226, 222)
SNOW: Rgb = (222, 226, 232)


def _snowed(paint: Paint, snow: float) -> Paint:
    """Snow lies in patches: the second colour takes most of it."""
    if snow == 0.0:
        return paint
    return paint._replace(rgb=mix(paint.rgb, SNOW, 0.45 * snow), rgb2=mix(paint.rgb2, SNOW, 0.95 * snow))


def _crop(style: Style, look: float, direction: float) -> Paint:
    turn = (look * 7.31 + style.crop_shift) % 1.0
    rgb, amplitude = style.crops[int(turn * len(style.crops))]
    rgb = scaled(rgb, 0.9 + 0.2 * ((look * 91.7) % 1.0))
    return Paint(
        rgb,
        mix(rgb, style.land.soil, 0.35),
        Material.CROP,
        stripes=amplitude,
        period_m=2.6 + 3.4 * ((look * 37.9) % 1.0),
        direction=direction,
        decibel=6.0 * ((look * 53.3 + style.crop_shift) % 1.0) - 3.0,
    )


def _water(style: Style, rgb: Rgb, rgb2: Rgb) -> Paint:
    return Paint(rgb, rgb2, Material.WATER, stripes=0.035, period_m=7.0, direction=style.land.swell)


def surface_paint(style: Style, surface: Surface, look: float, direction: float) -> Paint:
    """The paint of a ground cover; `look` in [0, 1) varies it from patch to patch, `direction` (radians) turns its stripes."""
    land = style.land
    drift = 0.93 + 0.14 * look
    if surface == "crop":
        return _snowed(_crop(style, look, direction), 0.6 * style.snow)
    if surface in ("grass", "lawn"):
        rgb = scaled(style.grass, drift)
        return _snowed(
            Paint(rgb, mix(rgb, style.grass2, 0.25 if surface == "lawn" else 1.0), Material.GRASS), style.snow
        )
    if surface == "canopy":
        a, b = style.trees
        rgb = scaled(mix(a, b, 0.5 * look), drift)
        return _snowed(Paint(rgb, mix(rgb, b, 0.8), Material.CANOPY), 0.3 * style.snow)
    if surface in ("soil", "gravel", "track", "tramline"):
        rgb = (
            land.track if surface == "track" else mix(land.soil, (164, 160, 154), 0.55 if surface == "gravel" else 0.0)
        )
        rgb = scaled(rgb, drift)
        return _snowed(Paint(rgb, mix(rgb, style.grass2, 0.3), Material.SOIL), 0.8 * style.snow)
    if surface == "sand":
        rgb = scaled(land.sand, drift)
        return Paint(rgb, mix(rgb, land.soil, 0.25), Material.SAND)
    if surface == "water":
        return _water(style, land.water, mix(land.water, land.shallow, 0.3))
    if surface == "shallow":
        return _water(style, mix(land.water, land.shallow, 0.65), land.shallow)
    if surface == "shelf":  # between shallow and deep
        return _water(style, mix(land.water, land.shallow, 0.3), mix(land.water, land.shallow, 0.65))
    if surface == "pool":
        return _water(style, (84, 156, 176), (98, 172, 188))
    if surface in ("foam", "surf"):
        return plain(mix((206, 214, 214), land.shallow, 0.2 if surface == "surf" else 0.62), Material.FOAM)
    return _paving(style, surface, drift)


def _paving(style: Style, surface: Surface, drift: float) -> Paint:
    land = style.land
    if surface == "mark":
        return plain(mix(WHITE, land.asphalt, 0.18), Material.MARK)
    if surface == "mark_yellow":
        return plain(mix((206, 172, 70), land.asphalt, 0.18), Material.MARK)
    if surface == "rubber":
        return plain(scaled(land.asphalt, 0.72), Material.PAVED)
    if surface == "deck":
        return plain(mix((150, 130, 106), land.concrete, 0.5 * drift), Material.PAVED, decibel=5.0)
    rgb = {"asphalt": land.asphalt, "sidewalk": mix(land.asphalt, land.concrete, 0.65), "concrete": land.concrete}[
        surface
    ]
    rgb = scaled(rgb, 0.5 + 0.5 * drift)
    return Paint(rgb, mix(rgb, land.soil, 0.12), Material.PAVED)
