"""Roads with markings and traffic, the street grid, and what stands along and between streets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from vitp.demo.classes import FOREST, ROAD
from vitp.demo.site import BASE, MARKS, ROADWAY, WOODS, Point, Site

Box = tuple[float, float, float, float]  # plan rectangle u0, v0, u1, v1
Fill = Callable[[Site, Box], None]

_CAR_MIX = (("car", 0.72), ("van", 0.14), ("truck", 0.1), ("bus", 0.04))
_FINEST_MARK_GSD = 1.0  # coarser than this, road markings melt into the asphalt


def along(plan: Sequence[Point], step: float, start: float) -> Iterator[tuple[float, float, float]]:
    """Points every `step` metres along a polyline: (u, v, direction)."""
    left = start
    for (u0, v0), (u1, v1) in itertools.pairwise(plan):
        length = math.hypot(u1 - u0, v1 - v0)
        if length == 0.0:
            continue
        direction = math.atan2(v1 - v0, u1 - u0)
        while left < length:
            share = left / length
            yield u0 + (u1 - u0) * share, v0 + (v1 - v0) * share, direction
            left += step
        left -= length


def vehicle(site: Site, u: float, v: float, turn: float, presence: float, parked: bool = False) -> None:
    """A car, van, truck or bus; parked ones are cars and vans."""
    dice = site.dice
    variant = dice.weighted(_CAR_MIX[:2] if parked else _CAR_MIX)
    if variant == "car":
        size = (dice.between(4.1, 4.9), dice.between(1.75, 1.95), 1.5)
    elif variant == "van":
        size = (dice.between(5.0, 5.8), dice.between(1.95, 2.1), 2.2)
    elif variant == "truck":
        size = (dice.between(8.0, 13.5), 2.55, 3.6)
    else:
        size = (dice.between(11.0, 12.5), 2.55, 3.2)
    site.thing("vehicle", variant, u, v, size, turn, presence)


def tree(site: Site, u: float, v: float, radius: float) -> None:
    """One crown."""
    site.thing("tree", "", u, v, (2.0 * radius, 2.0 * radius, radius * site.dice.between(1.5, 2.4)))


def scatter_trees(site: Site, box: Box, per_hectare: float, margin: float = 2.5) -> None:
    """Single trees and small groups in a plan rectangle."""
    dice = site.dice
    u0, v0, u1, v1 = (box[0] + margin, box[1] + margin, box[2] - margin, box[3] - margin)
    if u1 <= u0 or v1 <= v0:
        return
    expected = (u1 - u0) * (v1 - v0) / 1e4 * per_hectare
    for _ in range(int(expected + dice.unit())):
        u, v = dice.between(u0, u1), dice.between(v0, v1)
        radius = dice.between(1.6, 4.2)
        if site.open(u, v, radius):
            tree(site, u, v, radius)
            if dice.chance(0.35):
                tree(site, u + dice.between(-4.0, 4.0), v + dice.between(-4.0, 4.0), radius * 0.75)


def grove(site: Site, u: float, v: float, radius: float) -> None:
    """A closed wood with a wavy edge."""
    if site.seen(u, v, radius * 1.5):
        site.patch(WOODS, "canopy", FOREST, site.ring(u, v, radius, 0.28), raised_m=8.0)


def hedge(site: Site, plan: Sequence[Point], width: float) -> None:
    """A strip of crowns."""
    site.band(WOODS, "canopy", FOREST, plan, width)


def road(
    site: Site,
    plan: Sequence[Point],
    width: float,
    *,
    walk: float = 1.8,
    marked: bool = True,
    traffic: float = 0.25,
    breaks: Sequence[tuple[Point, float]] = (),
    group: int = 0,
) -> None:
    """An asphalt road with pavements, a broken centre line and cars in their lanes (driving on the right).

    `breaks` are junctions, (centre, radius): no markings and no cars there.
    """
    if not site.passes(plan, width + 2.0 * walk + 8.0):
        return
    if walk > 0.0:
        site.band(BASE, "sidewalk", ROAD, plan, width + 2.0 * walk, group)
    site.band(ROADWAY, "asphalt", ROAD, plan, width, group)
    if marked and site.gsd_m <= _FINEST_MARK_GSD:
        _dashes(site, plan, breaks, group)
    if traffic <= 0.0 or group:
        return
    dice = site.dice
    for side in (-1.0, 1.0):
        for u, v, direction in along(plan, dice.between(13.0, 17.0), dice.between(0.0, 13.0)):
            u += dice.between(-2.0, 2.0) * math.cos(direction)
            v += dice.between(-2.0, 2.0) * math.sin(direction)
            lane = side * width * (0.25 if width < 9.0 else 0.2)
            if _clear(u, v, breaks, 8.0):
                turn = direction + (0.0 if side > 0 else math.pi)
                vehicle(site, u - lane * math.sin(direction), v + lane * math.cos(direction), turn, traffic)


def _clear(u: float, v: float, breaks: Sequence[tuple[Point, float]], extra: float) -> bool:
    return all(math.hypot(u - bu, v - bv) > radius + extra for (bu, bv), radius in breaks)


def _dashes(site: Site, plan: Sequence[Point], breaks: Sequence[tuple[Point, float]], group: int) -> None:
    wide = max(0.16, 0.4 * site.gsd_m)
    for u, v, direction in along(plan, 8.0, 3.0):
        if site.seen(u, v, 2.0) and _clear(u, v, breaks, 1.5):
            du, dv = 1.6 * math.cos(direction), 1.6 * math.sin(direction)
            site.band(MARKS, "mark", ROAD, ((u - du, v - dv), (u + du, v + dv)), wide, group)


def zebra(site: Site, u: float, v: float, width: float) -> None:
    """A pedestrian crossing over a road that runs along u at (u, v)."""
    if site.gsd_m > 0.6 or not site.seen(u, v, width):
        return
    count = int(width / 1.1)
    for i in range(count):
        y = v + (i + 0.5) * width / count - width / 2.0
        site.band(MARKS, "mark", ROAD, ((u - 1.6, y), (u + 1.6, y)), 0.5)


def cuts(site: Site, pitch: float, spread: float) -> list[float]:
    """Positions of parallel lines across the plan, `pitch` metres apart on average, one of them near the middle."""
    dice = site.dice
    first = dice.between(-0.5, 0.5) * pitch
    lines = [first]
    while lines[-1] < site.reach:
        lines.append(lines[-1] + pitch * dice.between(1.0 - spread, 1.0 + spread))
    while lines[0] > -site.reach:
        lines.insert(0, lines[0] - pitch * dice.between(1.0 - spread, 1.0 + spread))
    return lines


def street_grid(
    site: Site, pitch: tuple[float, float], width: float, fill: Fill, traffic: float, parked: float
) -> None:
    """Streets along u with side streets between them, and the blocks they enclose.

    Side streets of neighbouring rows are shifted against each other or meet in crossings; every side street ends on two
    main streets, so the network is connected.
    """
    dice = site.dice
    rows = cuts(site, pitch[1], 0.18)
    minor = width * 0.8
    shared = cuts(site, pitch[0], 0.2)
    columns = [shared if dice.chance(0.5) else cuts(site, pitch[0], 0.2) for _ in rows[1:]]
    walk = dice.between(1.2, 2.4)
    for i, v in enumerate(rows):
        joined = [*(columns[i - 1] if i else []), *(columns[i] if i < len(columns) else [])]
        breaks = [((u, v), minor / 2.0 + 1.0) for u in joined]
        line = ((-site.reach, v), (site.reach, v))
        road(site, line, width, walk=walk, traffic=traffic, breaks=breaks)
        if dice.chance(0.6):
            for u in joined:
                if dice.chance(0.4):
                    zebra(site, u + minor / 2.0 + 4.0, v, width)
        if site.passes(line, width):
            _kerb_parking(site, v, width, parked, breaks)
    for (v0, v1), us in zip(itertools.pairwise(rows), columns, strict=True):
        for u in us:
            ends = [((u, v0), width / 2.0), ((u, v1), width / 2.0)]
            road(
                site, ((u, v0), (u, v1)), minor, walk=walk, marked=dice.chance(0.5), traffic=traffic * 0.5, breaks=ends
            )
        for u0, u1 in itertools.pairwise(us):
            edge_u, edge_v = minor / 2.0 + walk, width / 2.0 + walk
            box = (u0 + edge_u, v0 + edge_v, u1 - edge_u, v1 - edge_v)
            if site.seen((u0 + u1) / 2.0, (v0 + v1) / 2.0, 0.75 * math.hypot(u1 - u0, v1 - v0)):
                fill(site, box)


def _kerb_parking(site: Site, v: float, width: float, parked: float, breaks: Sequence[tuple[Point, float]]) -> None:
    if parked <= 0.0:
        return
    for side in (-1.0, 1.0):
        u = -site.reach
        while u < site.reach:
            if _clear(u, v, breaks, 6.0):
                vehicle(site, u, v + side * (width / 2.0 - 0.3), 0.0 if side > 0 else math.pi, parked, parked=True)
            u += site.dice.between(6.2, 8.0)


def bays(site: Site, box: Box, occupancy: float, group: int = 0) -> None:
    """A parking lot: asphalt, rows of marked bays along u, parked cars, and tree islands at row ends."""
    dice = site.dice
    u0, v0, u1, v1 = box
    site.paved(BASE, "asphalt", box, group)
    bay, depth, aisle = 2.6, 5.0, 6.4
    v = v0 + 0.8
    facing = True
    islands = dice.chance(0.6)
    while v + depth < v1:
        start = u0 + (4.5 if islands else 1.0)
        count = int((u1 - start - (4.5 if islands else 1.0)) / bay)
        if count < 2:
            return
        _bay_row(site, start, v, bay, depth, count, facing, occupancy, group)
        if islands:
            for u in (u0 + 2.2, u1 - 2.2):
                site.rect(MARKS, "lawn", 0, (u - 1.7, v, u + 1.7, v + depth), group)
                if dice.chance(0.75):
                    tree(site, u, v + depth / 2.0, dice.between(1.4, 2.3))
        v += depth + (aisle if facing else 0.0)
        facing = not facing


def _bay_row(
    site: Site, start: float, v: float, bay: float, depth: float, count: int, facing: bool, occupancy: float, group: int
) -> None:
    dice = site.dice
    if not site.seen(start + bay * count / 2.0, v, bay * count / 2.0 + depth):
        return
    wide = max(0.14, 0.3 * site.gsd_m)
    for i in range(count + 1):
        u = start + i * bay
        if site.gsd_m <= 0.6 and site.seen(u, v, depth):
            site.band(MARKS, "mark", ROAD, ((u, v + 0.1), (u, v + depth - 0.1)), wide, group)
        if i < count:
            middle = v + depth / 2.0 + dice.between(-0.3, 0.3)
            turn = math.pi / 2.0 * (1.0 if facing != dice.chance(0.2) else -1.0) + dice.between(-0.04, 0.04)
            vehicle(site, u + bay / 2.0, middle, turn, occupancy if not group else 0.0, parked=True)
