"""From the scene graph to the drawing board: which things are there on a date, in which order they cover each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vitp.demo.canvas import Canvas, Pose
from vitp.demo.classes import CLASSES, STRUCTURES
from vitp.demo.keys import Dice
from vitp.demo.movers import draw_aircraft, draw_ship, draw_vehicle
from vitp.demo.site import Graph, Kind, Point, Thing
from vitp.demo.structures import draw_building, draw_court, draw_extra, draw_tank, draw_tree
from vitp.demo.style import Style
from vitp.demo.surfaces import surface_paint

# Later kinds cover earlier ones.
_ORDER: tuple[Kind, ...] = (
    "court",
    "tree",
    "pipe",
    "ship",
    "tank",
    "building",
    "container",
    "vehicle",
    "aircraft",
    "crane",
)
_RANK = {kind: rank for rank, kind in enumerate(_ORDER)}
_DRAWERS: dict[Kind, Callable[[Canvas, Style, Thing, Pose], list[Point]]] = {
    "building": draw_building,
    "ship": draw_ship,
    "aircraft": draw_aircraft,
    "vehicle": draw_vehicle,
    "tank": draw_tank,
    "court": draw_court,
}
_LEAST_PX = 1.5  # what is narrower than this cannot be made out: it is neither drawn nor annotated


class Drawn(NamedTuple):
    """An object on the canvas: its category, outline in ground metres, direction and structure group."""

    category: str
    outline: list[Point]
    angle: float
    group: int


def present(graph: Graph, dice: Dice) -> tuple[bool, ...]:
    """Which things are there on a date; the dice are thrown for all, so that no thing depends on another."""
    return tuple(dice.unit() < thing.presence for thing in graph.things)


def draw_graph(
    graph: Graph, style: Style, canvas: Canvas, there: Sequence[bool], absent: frozenset[int]
) -> list[Drawn]:
    """Draw everything there is on a date; structures of the groups in `absent` are left out."""
    for level in graph.patches:
        for patch in level:
            if patch.group in absent:
                continue
            canvas.fill(patch.outline, surface_paint(style, patch.surface, patch.look, patch.direction), patch.label)
            if patch.raised_m > 0.0:
                canvas.cast(patch.outline, patch.raised_m, copies=1)
            elif patch.raised_m < 0.0:
                canvas.hollows.append((patch.outline, -patch.raised_m))
    found: list[Drawn] = []
    shown = [
        thing for thing, is_there in zip(graph.things, there, strict=True) if is_there and thing.group not in absent
    ]
    for thing in sorted(shown, key=lambda t: _RANK[t.kind]):
        if min(thing.width, thing.length) < _LEAST_PX * canvas.gsd_m:
            continue
        pose = Pose(thing.x, thing.y, thing.angle)
        drawer = _DRAWERS.get(thing.kind)
        if drawer is not None:
            found.append(Drawn(thing.kind, pose.put(drawer(canvas, style, thing, pose)), thing.angle, thing.group))
        elif thing.kind == "tree":
            draw_tree(canvas, style, thing, pose)
        else:
            draw_extra(canvas, style, thing, pose)
    return found


def footprints(graph: Graph, drawn: Sequence[Drawn], groups: frozenset[int]) -> list[list[Point]]:
    """Ground outlines in metres of the structures in `groups`: what a change mask shows."""
    outlines = [p.outline for level in graph.patches for p in level if p.group in groups and p.label in STRUCTURES]
    outlines += [d.outline for d in drawn if d.group in groups and CLASSES.index(d.category) in STRUCTURES]
    return outlines
