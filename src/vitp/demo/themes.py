"""The themes of the procedural scenes: name, range of ground sampling distance, smallest extent, layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vitp.demo.keys import Dice
from vitp.demo.site import Graph, Kind, Site
from vitp.demo.themes_built import airport, highway, industrial, parking, residential, sports, storage, urban
from vitp.demo.themes_open import farmland, forest, lakeside
from vitp.demo.themes_water import coast, port, river

_ATTEMPTS = 5


class Theme(NamedTuple):
    """A kind of place. GSD in metres a pixel, drawn log-uniformly; small images zoom out to show `least_extent_m`.

    A plan counts as showing its theme when at least `least` objects of kind `key` lie in the image and, for waterside themes,
    water covers a share of it between 8 and 85 percent.
    """

    build: Callable[[Site], None]
    finest_gsd_m: float
    coarsest_gsd_m: float
    least_extent_m: float
    bend: float  # how much its plan may be bent
    key: Kind | None = None
    least: int = 0
    waterside: bool = False


_THEMES: dict[str, Theme] = {
    "airport": Theme(airport, 0.32, 1.1, 40.0, 0.0, "aircraft", 1),
    "coast": Theme(coast, 0.5, 1.4, 60.0, 0.5, waterside=True),
    "farmland": Theme(farmland, 0.9, 2.2, 110.0, 1.0),
    "forest": Theme(forest, 0.6, 1.6, 70.0, 0.0),
    "highway": Theme(highway, 0.4, 0.9, 50.0, 1.0),
    "industrial": Theme(industrial, 0.5, 1.0, 60.0, 0.4, "building", 1),
    "lake": Theme(lakeside, 0.6, 1.4, 70.0, 0.0, waterside=True),
    "parking": Theme(parking, 0.28, 0.55, 34.0, 0.0, "vehicle", 14),
    "port": Theme(port, 0.35, 1.2, 45.0, 0.0, "ship", 2, waterside=True),
    "residential": Theme(residential, 0.35, 0.75, 44.0, 1.0, "building", 2),
    "river": Theme(river, 0.6, 1.6, 70.0, 0.6, waterside=True),
    "sports": Theme(sports, 0.38, 0.8, 45.0, 0.0, "court", 1),
    "storage": Theme(storage, 0.45, 0.95, 55.0, 0.0, "tank", 2),
    "urban": Theme(urban, 0.4, 0.85, 50.0, 0.5, "building", 1),
}

THEMES: tuple[str, ...] = tuple(_THEMES)


def draw_gsd(theme: str, size: int, dice: Dice) -> float:
    """A ground sampling distance in metres that suits the theme and the image size."""
    spec = _THEMES[theme]
    gsd: float = spec.finest_gsd_m * (spec.coarsest_gsd_m / spec.finest_gsd_m) ** dice.unit()
    return max(gsd, spec.least_extent_m / size)


def lay_out(theme: str, extent_m: float, gsd_m: float, dice: Dice) -> Graph:
    """The scene graph of a theme on a square of `extent_m` metres; plans whose view misses the theme are drawn again."""
    spec = _THEMES[theme]
    for _ in range(_ATTEMPTS):
        site = Site(dice, extent_m, gsd_m, spec.bend)
        spec.build(site)
        if _evident(site, spec):
            break
    return site.graph()


def _evident(site: Site, spec: Theme) -> bool:
    inner = 0.85 * site.half
    seen = sum(t.kind == spec.key and abs(t.x) < inner and abs(t.y) < inner for t in site.things)
    if seen < spec.least:
        return False
    if not spec.waterside:
        return True
    grid = [site.half * (i / 3.5 - 1.0) for i in range(8)]
    wet = sum(site.wet(*site.plan(x, y)) > 0.0 for x in grid for y in grid)
    return 0.08 * 64 < wet < 0.85 * 64
