"""Scenes and pairs as functions of (seed, index, config)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field, field_validator

from vitp.config import Config
from vitp.demo.canvas import Canvas, Raster
from vitp.demo.instances import Instance, annotate, touches
from vitp.demo.keys import Dice, Stream, generator
from vitp.demo.paint import Drawn, draw_graph, footprints, present
from vitp.demo.sar import backscatter, draw_look, quantise, speckle
from vitp.demo.site import Graph, Point
from vitp.demo.style import Land, Material, Season, Style, draw_land, draw_style
from vitp.demo.surfaces import surface_paint
from vitp.demo.terrain import Floats, Ground, draw_ground, render_optical
from vitp.demo.themes import THEMES, draw_gsd, lay_out

Modality = Literal["optical", "sar"]


class SceneConfig(Config):
    """What kind of scenes to draw."""

    size: int = Field(128, ge=32, le=2048)  # image side in pixels; 128 keeps the demonstration within minutes on a CPU
    modality: Modality = "optical"  # both modalities show the same scene under the same seed and index
    theme: str | None = None  # None: every theme equally often
    season: Season | None = None  # None: drawn for each date
    gsd_m: float | None = Field(None, ge=0.1, le=10.0)  # metres a pixel; None: drawn from the theme's range
    looks: int = Field(4, ge=1, le=64)  # radar looks; 4 is common for multi-looked products
    change_probability: float = Field(0.3, ge=0.0, le=1.0)  # of a structure between the dates of a pair; our choice
    misregistration_px: float = Field(0.0, ge=0.0, le=8.0)  # largest shift of the second date along x and y

    @field_validator("theme")
    @classmethod
    def _known_theme(cls, value: str | None) -> str | None:
        if value is not None and value not in THEMES:
            raise ValueError(f"there is no theme {value!r}; choose one of {', '.join(THEMES)}")
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One image with everything known about it.

    `image` is uint8 [H, W, 3]; `mask` uint8 [H, W] holds indices into `CLASSES`; `gsd_m` is metres a pixel. `cut_off` names
    the categories of which an object reaches into the image with less than 30 % of its area: such an object is in the
    mask but not among the instances, so questions about its category's number stay unasked.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: tuple[Instance, ...]
    theme: str
    modality: Modality
    gsd_m: float
    season: Season
    cut_off: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class ScenePair:
    """The same place on two dates; `change` uint8 [H, W] is 1 where a structure was built or removed.

    Structures are buildings, tanks, courts, roads and other paving. Season, light, crops, trees, cars, ships and aircraft differ
    too, and are not change.
    """

    before: Scene
    after: Scene
    change: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Place:
    """What all dates of a scene share."""

    seed: int
    index: int
    config: SceneConfig
    theme: str
    gsd_m: float
    land: Land
    graph: Graph


def scene_theme(seed: int, index: int) -> str:
    """The theme of a scene when the config leaves it open: each block of len(THEMES) indices holds every theme once."""
    block, place = divmod(index, len(THEMES))
    return Dice(seed, block, Stream.THEME).shuffled(THEMES)[place]


def draw_scene(seed: int, index: int, config: SceneConfig) -> Scene:
    """Draw one scene; the same arguments give the same bytes on any worker, in any order."""
    return _draw_date(_place(seed, index, config), 0, frozenset())[0]


def draw_pair(seed: int, index: int, config: SceneConfig) -> ScenePair:
    """Draw one place on two dates, with `config.change_probability` of its structures built or removed in between.

    One pair in seven shows no change; in the others at least one structure in sight changes, if there is one.
    The change mask lies in the frame of the first date; with `misregistration_px` the second image is shifted against it.
    """
    place = _place(seed, index, config)
    dice = Dice(seed, index, Stream.CHANGE)
    built, removed = _changes(place, dice)
    most = config.misregistration_px
    shift = (dice.between(-most, most), dice.between(-most, most))
    before, old = _draw_date(place, 0, built)
    after, new = _draw_date(place, 1, removed, shift)
    outlines = footprints(place.graph, old, removed) + footprints(place.graph, new, built)
    return ScenePair(before, after, _change_mask(place, outlines))


def _change_mask(place: _Place, outlines: list[list[Point]]) -> NDArray[np.uint8]:
    """1 inside the outlines (ground metres), on the same sampling grid as the class masks [H, W]."""
    size, samples = place.config.size, _samples(place.config.size)
    image = Image.new("L", (size * samples, size * samples), 0)
    draw = ImageDraw.Draw(image)
    half, scale = size * samples / 2.0, samples / place.gsd_m
    for outline in outlines:
        draw.polygon([(x * scale + half, y * scale + half) for x, y in outline], fill=1)
    return np.ascontiguousarray(np.asarray(image)[samples // 2 :: samples, samples // 2 :: samples])


def _changes(place: _Place, dice: Dice) -> tuple[frozenset[int], frozenset[int]]:
    """Groups of structures built, and groups removed, between the two dates."""
    unchanged, growth = dice.chance(1.0 / 7.0), dice.between(0.2, 0.8)
    thrown = [(dice.unit(), dice.chance(growth)) for _ in range(place.graph.groups)]
    probability = place.config.change_probability
    if unchanged or probability == 0.0:
        return frozenset(), frozenset()
    reach = 0.5 * place.config.size * place.gsd_m
    visible = {t.group for t in place.graph.things if t.group and abs(t.x) < reach and abs(t.y) < reach}
    # The likeliest structure in sight changes in any case: a pair is there to show a change.
    surest = min(visible, key=lambda group: thrown[group - 1][0], default=0)
    chosen = {i + 1: is_new for i, (mark, is_new) in enumerate(thrown) if mark < probability or i + 1 == surest}
    return (
        frozenset(group for group, is_new in chosen.items() if is_new),
        frozenset(group for group, is_new in chosen.items() if not is_new),
    )


def radar_intensity(seed: int, index: int, config: SceneConfig) -> Floats:
    """Linear radar intensity [H, W] with speckle, before quantisation; what `draw_scene` shows with modality "sar"."""
    place = _place(seed, index, config)
    canvas = _date_canvas(place, 0, frozenset(), (0.0, 0.0))[0]
    return _intensity(place, canvas, canvas.raster(), 0, (0.0, 0.0))


def _place(seed: int, index: int, config: SceneConfig) -> _Place:
    theme = config.theme if config.theme is not None else scene_theme(seed, index)
    dice = Dice(seed, index, Stream.LAYOUT)
    drawn_gsd = draw_gsd(theme, config.size, dice)
    gsd_m = drawn_gsd if config.gsd_m is None else config.gsd_m
    land = draw_land(dice)
    return _Place(seed, index, config, theme, gsd_m, land, lay_out(theme, config.size * gsd_m, gsd_m, dice))


def _samples(size: int) -> int:
    """Drawing resolution over image resolution: edges of small objects count most in small images."""
    return 4 if size <= 192 else 3 if size <= 640 else 2


def _date_canvas(place: _Place, date: int, absent: frozenset[int], shift: Point) -> tuple[Canvas, Style, list[Drawn]]:
    dice = Dice(place.seed, place.index, Stream.DATE + date)
    style = draw_style(place.land, dice, place.config.season)
    base = surface_paint(style, "grass", 0.5, 0.0)
    canvas = Canvas(place.config.size, place.gsd_m, _samples(place.config.size), base, shift)
    drawn = draw_graph(place.graph, style, canvas, present(place.graph, dice), absent)
    return canvas, style, drawn


def _ground(place: _Place, raster: Raster, shift: Point) -> Ground:
    rng = generator(place.seed, place.index, Stream.GROUND)
    crown_m = place.land.crown_m if raster.holds(Material.CANOPY) else None
    return draw_ground(rng, place.config.size, place.gsd_m, crown_m, shift)


def _intensity(place: _Place, canvas: Canvas, raster: Raster, date: int, shift: Point) -> Floats:
    look = draw_look(Dice(place.seed, place.index, Stream.RADAR + date))
    rng = generator(place.seed, place.index, Stream.SPECKLE + date)
    mean = backscatter(canvas, raster, _ground(place, raster, shift), look)
    return mean * speckle(place.config.size, place.config.looks, rng)


def _draw_date(
    place: _Place, date: int, absent: frozenset[int], shift: Point = (0.0, 0.0)
) -> tuple[Scene, list[Drawn]]:
    """One date of a place: without the structures in `absent`, moved by `shift` pixels."""
    config = place.config
    canvas, style, drawn = _date_canvas(place, date, absent, shift)
    raster = canvas.raster()
    if config.modality == "sar":
        image = quantise(_intensity(place, canvas, raster, date, shift))
    else:
        rng = generator(place.seed, place.index, Stream.SENSOR + date)
        image = render_optical(canvas, raster, style, _ground(place, raster, shift), rng)
    instances: list[Instance] = []
    cut_off: set[str] = set()
    x0, y0, scale = config.size / 2.0 + shift[0], config.size / 2.0 + shift[1], 1.0 / place.gsd_m
    for item in drawn:
        outline = [(x * scale + x0, y * scale + y0) for x, y in item.outline]
        instance = annotate(item.category, outline, item.angle, config.size)
        if instance is not None:
            instances.append(instance)
        elif touches(outline, config.size):
            cut_off.add(item.category)
    scene = Scene(
        image=image,
        mask=raster.mask(),
        instances=tuple(instances),
        theme=place.theme,
        modality=config.modality,
        gsd_m=place.gsd_m,
        season=style.season,
        cut_off=frozenset(cut_off),
    )
    return scene, drawn
