"""Waterside themes: river, coast, port."""

from __future__ import annotations

import math
from collections.abc import Callable

from vitp.demo import blocks
from vitp.demo.classes import BACKGROUND, ROAD, WATER
from vitp.demo.site import BASE, COVER, MARKS, SHORE, Point, Site
from vitp.demo.streets import grove, road, scatter_trees, tree, vehicle
from vitp.demo.themes_open import bank_use, boats, quayside, ship

Curve = Callable[[float], float]


def river(site: Site) -> None:
    """A winding river, its banks, a bridge, a few boats."""
    dice = site.dice
    reach = site.reach
    width = dice.between(0.28, 0.6) * min(site.half, 110.0)
    sway = dice.between(0.15, 0.45) * min(site.half, 110.0)
    k = 2.0 * math.pi / (dice.between(2.2, 4.0) * min(site.half, 110.0))
    phase, phase2 = dice.between(0.0, 6.28), dice.between(0.0, 6.28)
    middle = dice.between(-0.25, 0.25) * site.half

    def line(u: float) -> float:
        return middle + sway * math.sin(k * u + phase) + 0.2 * sway * math.sin(2.7 * k * u + phase2)

    def breadth(u: float) -> float:
        return width * (1.0 + 0.16 * math.sin(1.7 * k * u + phase2))

    site.water.append(lambda u, v: 0.9 * (breadth(u) / 2.0 - abs(v - line(u))))
    bridge = dice.between(-0.5, 0.5) * site.half if dice.chance(0.7) else None
    if bridge is not None:
        site.corridors.append(((bridge, -reach), (bridge, reach), 6.5))
    bank_use(site, (-reach, middle + sway + width / 2.0 + 12.0, reach, reach))
    bank_use(site, (-reach, -reach, reach, middle - sway - width / 2.0 - 12.0))
    points = [-reach + 2.0 * reach * i / 40.0 for i in range(41)]

    def ribbon(extra: float) -> list[Point]:
        upper = [(u, line(u) + breadth(u) / 2.0 + extra) for u in points]
        return upper + [(u, line(u) - breadth(u) / 2.0 - extra) for u in reversed(points)]

    site.patch(COVER, "grass", BACKGROUND, ribbon(9.0))
    site.patch(COVER, dice.pick(("sand", "soil", "grass")), BACKGROUND, ribbon(dice.between(1.0, 4.0)))
    site.patch(SHORE, "shallow", WATER, ribbon(0.0))
    site.patch(SHORE, "shelf", WATER, ribbon(-0.05 * width))
    site.patch(SHORE, "water", WATER, ribbon(-0.13 * width))
    for u in points:
        for side in (-1.0, 1.0):
            if dice.chance(0.4):
                at = line(u) + side * (breadth(u) / 2.0 + dice.between(4.0, 9.0))
                if site.off_road(u, at, 4.0):
                    tree(site, u, at, dice.between(1.8, 4.0))
    if bridge is not None:
        road(site, ((bridge, -reach), (bridge, reach)), dice.between(7.0, 10.0), walk=1.4, traffic=0.3)
    _traffic_afloat(site, line, breadth, width)


def _traffic_afloat(site: Site, line: Curve, breadth: Curve, width: float) -> None:
    dice = site.dice
    u = -site.half * dice.between(0.6, 1.0)
    while u < site.half:
        length = min(dice.between(7.0, 34.0), 0.75 * width)
        side = dice.pick((-1.0, 1.0))
        v = line(u) + side * 0.16 * breadth(u)
        slope = math.atan((line(u + 1.0) - line(u - 1.0)) / 2.0)
        afloat = all(
            site.wet(u + s * length, line(u + s * length) + v - line(u)) > 0.2 * length + 1.5 for s in (-0.5, 0.0, 0.5)
        )
        if length > 6.0 and afloat and site.off_road(u, v, 1.6 * length) and dice.chance(0.75):
            ship(site, u, v, length, slope + (0.0 if side > 0 else math.pi), moving=dice.chance(0.75))
        u += length * 2.2 + dice.between(8.0, 50.0)


def coast(site: Site) -> None:
    """Sea, surf, a beach, and what lies behind it."""
    dice = site.dice
    reach = site.reach
    base = dice.between(-0.3, 0.2) * site.half
    swing = dice.between(0.08, 0.25) * min(site.half, 120.0)
    k = 2.0 * math.pi / (dice.between(1.8, 3.6) * min(site.half, 120.0))
    phase, phase2 = dice.between(0.0, 6.28), dice.between(0.0, 6.28)

    def line(u: float) -> float:
        return base + swing * math.sin(k * u + phase) + 0.25 * swing * math.sin(3.1 * k * u + phase2)

    site.water.append(lambda u, v: 0.85 * (v - line(u)))
    points = [-reach + 2.0 * reach * i / 44.0 for i in range(45)]

    def sea(shift: float) -> list[Point]:
        return [(reach, 2.0 * reach), (-reach, 2.0 * reach), *((u, line(u) + shift) for u in points)]

    beach = dice.between(9.0, 26.0)
    rocky = dice.chance(0.3)
    _behind_beach(site, base - swing * 1.25 - beach)
    site.patch(COVER, "grass", BACKGROUND, sea(-beach - 5.0))
    site.patch(COVER, "gravel" if rocky else "sand", BACKGROUND, sea(-beach))
    site.patch(SHORE, "shallow", WATER, sea(0.0))
    slope = dice.between(14.0, 30.0)
    site.patch(SHORE, "shelf", WATER, sea(0.45 * slope))
    site.patch(SHORE, "water", WATER, sea(slope))
    _surf(site, points, line, phase)
    for u in points:
        if dice.chance(0.5):
            tree(site, u + dice.between(-4.0, 4.0), line(u) - beach - dice.between(2.0, 9.0), dice.between(1.2, 3.0))
    if dice.chance(0.4):
        u = dice.between(-0.5, 0.5) * site.half
        far = line(u) + dice.between(25.0, 60.0)
        site.band(BASE, "deck", ROAD, ((u, line(u) - beach * 0.8), (u, far)), dice.between(3.0, 6.0))
        _keep_off(site, u, far)
    boats(site, dice.whole(1, 4), min(34.0, 0.3 * site.half))


def _surf(site: Site, points: list[float], line: Curve, phase: float) -> None:
    """The wet edge of the beach and a few breaking waves, each a bright crest with a soft trail."""
    dice = site.dice
    edge = [(u, line(u) + 0.5) for u in points]
    site.band(SHORE, "foam", WATER, edge, dice.between(1.2, 2.4))
    shift = dice.between(4.0, 8.0)
    for i in range(dice.whole(0, 3)):
        start, length = dice.whole(0, 20), dice.whole(12, 30)
        crest: list[Point] = [
            (u, line(u) + shift + (1.0 + i) * math.sin(u * 0.11 + i * 2.0 + phase))
            for u in points[start : start + length]
        ]
        site.patch(SHORE, "foam", WATER, _tapered(crest, dice.between(1.2, 2.2)))
        site.patch(SHORE, "surf", WATER, _tapered(crest, dice.between(0.35, 0.7)))
        shift += dice.between(5.0, 11.0)


def _tapered(crest: list[Point], width: float) -> list[Point]:
    """A band along a crest that thins out towards both ends."""
    last = max(1, len(crest) - 1)
    swell = [width * max(0.0, math.sin(math.pi * i / last)) ** 0.6 for i in range(len(crest))]
    upper = [(u, v + w) for (u, v), w in zip(crest, swell, strict=True)]
    return upper + [(u, v - w) for (u, v), w in zip(reversed(crest), reversed(swell), strict=True)]


def _keep_off(site: Site, u: float, far: float) -> None:
    """Ships keep ten metres from a pier that reaches out to `far`."""
    open_sea = list(site.water)
    site.water[:] = [lambda a, b: min(max(body(a, b) for body in open_sea), max(abs(a - u) - 10.0, b - far - 10.0))]


def _behind_beach(site: Site, v: float) -> None:
    dice = site.dice
    reach = site.reach
    use = dice.pick(("town", "dunes", "woods", "fields"))
    low = -reach
    if use == "town":
        road(site, ((-reach, v - 6.0), (reach, v - 6.0)), 7.0, traffic=0.25)
        for u in range(int(-reach), int(reach), 80):
            blocks.houses(site, (u + 4.0, max(low, v - 40.0), u + 76.0, v - 12.0))
            street = ((u, v - 6.0), (u, low))
            road(site, street, 5.5, traffic=0.1, breaks=[((u, v - 6.0), 4.0)])
            if v - 46.0 > low:
                blocks.houses(site, (u + 4.0, low, u + 76.0, v - 44.0))
    elif use == "fields":
        road(site, ((-reach, v - 5.0), (reach, v - 5.0)), 6.0, walk=0.0, traffic=0.2)
        bank_use(site, (-reach, low, reach, v - 11.0))
    elif use == "woods":
        for _ in range(int(5 + site.half / 8.0)):
            grove(site, dice.between(-reach, reach), dice.between(low, v - 8.0), dice.between(8.0, 18.0))
        site.band(BASE, "track", ROAD, ((-reach, v), (reach, v)), 3.2)
    else:
        for _ in range(int(4 + site.half / 10.0)):
            mound = site.ring(dice.between(-reach, reach), dice.between(low, v), dice.between(5.0, 14.0), 0.4)
            site.patch(COVER, dice.pick(("sand", "grass", "soil")), BACKGROUND, mound)
        scatter_trees(site, (-reach, low, reach, v), 30.0)


def port(site: Site) -> None:
    """A quay with ships alongside, cranes, piers; or a marina."""
    dice = site.dice
    edge = dice.between(-0.25, 0.15) * site.half
    site.water.append(lambda u, v: v - edge)
    reach = site.reach
    sea = ((-reach, edge), (reach, edge), (reach, 2.0 * reach), (-reach, 2.0 * reach))
    site.patch(SHORE, "water", WATER, sea)
    depth = dice.between(12.0, 22.0)
    site.paved(BASE, "concrete", (-reach, edge - depth, reach, edge))
    site.band(MARKS, "sidewalk", ROAD, ((-reach, edge - 0.6), (reach, edge - 0.6)), 1.2)
    back = edge - depth - 4.0
    road(site, ((-reach, back - 4.0), (reach, back - 4.0)), 8.0, walk=0.6, traffic=0.25)
    pitch = dice.between(60.0, 100.0)
    u = -math.ceil(reach / pitch) * pitch + dice.between(0.0, pitch)
    while u < reach:
        v = back - 8.6
        while v > -reach:
            deep = dice.between(46.0, 70.0)
            quayside(site, (u + 4.0, v - deep, u + pitch - 4.0, v))
            road(site, ((u - 4.0, v - deep - 4.0), (u + pitch - 4.0, v - deep - 4.0)), 7.0, walk=0.0, traffic=0.2)
            v -= deep + 8.0
        road(site, ((u, back - 4.0), (u, -reach)), 6.5, walk=0.0, marked=False, traffic=0.15)
        u += pitch
    if site.gsd_m < 0.5:
        _marina(site, edge)
    else:
        _berths(site, edge)
    spots = dice.shuffled([15.0 * i - site.half for i in range(int(site.half / 7.5) + 1)])[: dice.whole(3, 8)]
    for spot in spots:
        vehicle(site, spot, edge - dice.between(5.0, depth - 4.0), dice.pick((0.0, math.pi)), 0.6)


def _berths(site: Site, edge: float) -> None:
    dice = site.dice
    reach = site.reach
    largest = min(190.0, 1.1 * site.half)
    pier = dice.between(-0.5, 0.5) * site.half if dice.chance(0.55) else None
    u = -reach
    while u < reach:
        length = dice.between(0.4, 1.0) * largest
        width = length * 0.17
        middle = u + length / 2.0
        blocked = pier is not None and abs(middle - pier) < length / 2.0 + 2.2 * width + 8.0
        if not blocked and dice.chance(0.85):
            ship(site, middle, edge + 0.5 * width + 2.0, length, dice.pick((0.0, math.pi)), moving=False)
            if length > 45.0:
                for _ in range(dice.whole(1, 2)):
                    spot = middle + dice.between(-0.25, 0.25) * length
                    site.thing("crane", "", spot, edge - 1.0, (dice.between(24.0, 34.0), 9.0, 25.0), math.pi / 2.0)
        u += length + dice.between(4.0, 16.0)
    if pier is not None:
        _pier(site, pier, edge, largest)
    open_water = site.water[0]
    site.water[:] = [lambda a, b: open_water(a, b) - 0.34 * largest - 4.0]
    boats(site, dice.whole(1, 3), min(40.0, 0.35 * site.half))
    site.water[:] = [open_water]


def _pier(site: Site, u: float, edge: float, largest: float) -> None:
    dice = site.dice
    half = dice.between(4.0, 8.0)
    far = edge + dice.between(0.8, 1.3) * largest
    site.paved(BASE, "concrete", (u - half, edge - 1.0, u + half, far))
    site.corridors.append(((u, edge), (u, far), half + 0.2 * largest))
    for side in (-1.0, 1.0):
        v = edge + 5.0
        while v < far:
            length = dice.between(0.3, 0.7) * largest
            if v + length > far + 4.0:
                break
            width = 0.17 * length if length >= 45.0 else 0.26 * length if length >= 18.0 else 0.36 * length
            if dice.chance(0.75):
                at = u + side * (half + 1.5 + width / 2.0)
                ship(site, at, v + length / 2.0, length, math.pi / 2.0, moving=False)
            v += length + dice.between(3.0, 9.0)


def _marina(site: Site, edge: float) -> None:
    dice = site.dice
    longest = dice.between(8.0, 13.0)
    pitch = 2.0 * longest + dice.between(9.0, 15.0)
    far = edge + dice.between(0.5, 0.9) * site.half + 10.0
    beam = 0.36 * longest + 1.1
    for i in range(int(-site.reach / pitch) - 1, int(site.reach / pitch) + 2):
        u = i * pitch + 0.25 * pitch
        site.band(BASE, "deck", ROAD, ((u, edge - 1.0), (u, far)), 2.2)
        for side in (-1.0, 1.0):
            v = edge + 4.0
            while v < far - 1.0:
                length = dice.between(0.6, 1.0) * longest
                if dice.chance(0.8):
                    turn = 0.0 if side > 0 else math.pi
                    at = u + side * (1.8 + length / 2.0)
                    ship(site, at, v, length, turn + (math.pi if dice.chance(0.2) else 0.0), moving=False)
                v += beam
    site.band(BASE, "deck", ROAD, ((-site.reach, edge + 0.8), (site.reach, edge + 0.8)), 1.6)
