"""Open-land and waterside themes: farmland, forest, lake, river, coast, port."""

from __future__ import annotations

import itertools
import math

from vitp.demo import blocks
from vitp.demo.classes import BACKGROUND, FIELD, FOREST, ROAD, WATER
from vitp.demo.site import BASE, COVER, MARKS, ROADWAY, SHORE, WOODS, Point, Site
from vitp.demo.streets import Box, along, grove, hedge, road, scatter_trees, tree, vehicle
from vitp.demo.surfaces import Surface


def farmland(site: Site) -> None:
    """Parcels of crops, country roads, a farmstead."""
    dice = site.dice
    reach = site.reach
    main = dice.between(-0.4, 0.4) * site.half
    road(site, ((-reach, main), (reach, main)), 6.0, walk=0.0, traffic=0.18)
    split = dice.between(-0.3, 0.3) * site.half
    up = dice.pick((-1.0, 1.0))
    end = main + up * reach * 2.0
    surface: Surface = dice.pick(("track", "asphalt"))
    site.band(ROADWAY, surface, ROAD, ((split, main), (split, end)), 4.0)
    margin = 5.0
    low, high = -2.0 * reach, 2.0 * reach
    for u0, u1 in ((-reach, split - margin), (split + margin, reach)):
        box = (u0, main + margin, u1, high) if up > 0 else (u0, low, u1, main - margin)
        parcels(site, _clip(box, reach))
    parcels(site, _clip((-reach, low, reach, main - margin) if up > 0 else (-reach, main + margin, reach, high), reach))
    if dice.chance(0.75):
        _farmstead(site, split + 6.0, main + up * 6.0, up)


def _clip(box: Box, reach: float) -> Box:
    return (max(box[0], -reach), max(box[1], -reach), min(box[2], reach), min(box[3], reach))


def parcels(site: Site, box: Box) -> None:
    """Recursive division into fields, meadows and woods; each crop has its own colour and row direction."""
    dice = site.dice
    u0, v0, u1, v1 = box
    wide, deep = u1 - u0, v1 - v0
    if wide < 6.0 or deep < 6.0 or not site.seen((u0 + u1) / 2.0, (v0 + v1) / 2.0, 0.6 * math.hypot(wide, deep)):
        return
    limit = dice.between(0.35, 0.8) * min(site.half, 130.0) + 18.0
    if max(wide, deep) > limit * 1.3:
        share = dice.between(0.35, 0.65)
        gap = dice.pick((0.6, 1.2, 3.5))
        if wide > deep:
            cut = u0 + wide * share
            parcels(site, (u0, v0, cut - gap, v1))
            parcels(site, (cut + gap, v0, u1, v1))
            edge = ((cut, v0), (cut, v1))
        else:
            cut = v0 + deep * share
            parcels(site, (u0, v0, u1, cut - gap))
            parcels(site, (u0, cut + gap, u1, v1))
            edge = ((u0, cut), (u1, cut))
        if gap > 3.0:
            if dice.chance(0.5):
                hedge(site, edge, dice.between(3.0, 6.0))
            else:
                site.band(BASE, "track", ROAD, edge, 3.2)
        return
    _parcel(site, box)


def _parcel(site: Site, box: Box) -> None:
    dice = site.dice
    u0, v0, u1, v1 = box
    wide, deep = u1 - u0, v1 - v0
    lean = dice.between(-0.08, 0.08) * wide if deep > wide * 0.5 else 0.0
    outline = (
        (u0 + max(lean, 0.0), v0),
        (u1 + min(lean, 0.0), v0),
        (u1 - max(lean, 0.0), v1),
        (u0 - min(lean, 0.0), v1),
    )
    use = dice.weighted((("crop", 0.74), ("meadow", 0.13), ("wood", 0.07), ("pivot", 0.06)))
    direction = (0.0 if wide > deep else math.pi / 2.0) + dice.between(-0.12, 0.12)
    if dice.chance(0.2):
        direction += dice.between(-0.8, 0.8)
    if use == "wood":
        ring = site.ring((u0 + u1) / 2.0, (v0 + v1) / 2.0, min(wide, deep) * 0.44, 0.2)
        site.patch(WOODS, "canopy", FOREST, ring, raised_m=8.0)
        scatter_trees(site, box, 10.0)
        return
    if use == "meadow":
        site.patch(COVER, "grass", BACKGROUND, outline)
        scatter_trees(site, box, 10.0)
        return
    group = site.group() if dice.chance(0.15) else 0
    if use == "pivot" and min(wide, deep) > 40.0:
        site.patch(COVER, "soil", BACKGROUND, outline)
        circle = site.ring((u0 + u1) / 2.0, (v0 + v1) / 2.0, min(wide, deep) * 0.48, 0.0, points=40)
        site.patch(COVER, "crop", FIELD, circle, direction)
        return
    site.patch(COVER, "crop", FIELD, outline, direction, group=group)
    if dice.chance(0.4) and not group and site.gsd_m < 1.6:
        _tramlines(site, box)


def _tramlines(site: Site, box: Box) -> None:
    """Wheel tracks in a crop, a sprayer's width apart."""
    u0, v0, u1, v1 = box
    lengthwise = u1 - u0 > v1 - v0
    position = (v0 if lengthwise else u0) + 7.0
    wide = max(0.35, 0.3 * site.gsd_m)
    while position < (v1 if lengthwise else u1) - 4.0:
        for offset in (0.0, 1.8):
            p = position + offset
            line = ((u0 + 2.0, p), (u1 - 2.0, p)) if lengthwise else ((p, v0 + 2.0), (p, v1 - 2.0))
            site.band(COVER, "tramline", FIELD, line, wide)
        position += 20.0


def _farmstead(site: Site, u: float, v: float, up: float) -> None:
    dice = site.dice
    wide, deep = dice.between(34.0, 52.0), dice.between(28.0, 40.0)
    v0, v1 = (v, v + deep) if up > 0 else (v - deep, v)
    site.rect(COVER, "lawn", BACKGROUND, (u - 2.0, v0, u + wide, v1))
    yard = v + up * deep * 0.45
    site.paved(BASE, dice.pick(("gravel", "concrete")), (u - 4.0, yard - 5.0, u + wide * 0.75, yard + 5.0))
    house = (dice.between(11.0, 15.0), dice.between(8.0, 10.0), 7.0)
    site.thing("building", "gable", u + 9.0, yard - up * 10.5, house, group=site.group())
    barn = (dice.between(20.0, 32.0), dice.between(10.0, 13.0), 8.0)
    site.thing("building", dice.pick(("metal", "gable")), u + wide * 0.5, yard + up * 12.0, barn, group=site.group())
    if dice.chance(0.6):
        site.thing("tank", "cone", u + wide * 0.8, yard, (5.5, 5.5, 9.0), group=site.group())
    vehicle(site, u + 8.0, yard, dice.between(-3.0, 3.0), 0.7, parked=True)
    for _ in range(5):
        tree(site, u + dice.between(0.0, wide), v1 + up * 2.0 if up > 0 else v0 - 2.0, dice.between(2.0, 4.0))


def forest(site: Site) -> None:
    """Closed canopy with clearings, tracks, clear-cuts, a cabin, sometimes a pond."""
    dice = site.dice
    reach = site.reach
    square = ((-reach, -reach), (reach, -reach), (reach, reach), (-reach, reach))
    site.patch(COVER, "canopy", FOREST, square)
    for _ in range(dice.whole(1, 3)):
        stand = site.ring(dice.between(-reach, reach), dice.between(-reach, reach), reach * dice.between(0.3, 0.6), 0.4)
        site.patch(COVER, "canopy", FOREST, stand)
    path: list[Point] = []
    sway, phase = dice.between(4.0, 14.0), dice.between(0.0, 6.28)
    offset = dice.between(-0.5, 0.5) * site.half
    for i in range(17):
        u = -reach + 2.0 * reach * i / 16.0
        path.append((u, offset + sway * math.sin(u / 38.0 + phase)))
    paved = dice.chance(0.35)
    site.band(COVER, "grass", BACKGROUND, path, 10.0 if paved else 6.0)
    site.band(ROADWAY, "asphalt" if paved else "track", ROAD, path, 6.0 if paved else 3.4)
    for u, v, direction in along(path, 60.0, dice.between(0.0, 60.0)):
        vehicle(site, u, v, direction, 0.3)
    for _ in range(dice.whole(1, 2 + int(site.half / 120.0))):
        _clearing(site, path)
    if dice.chance(0.3):
        u, v = dice.between(-0.6, 0.6) * site.half, offset + dice.pick((-1.0, 1.0)) * site.half * 0.6
        lake(site, u, v, site.half * dice.between(0.14, 0.26))


def _clearing(site: Site, path: list[Point]) -> None:
    dice = site.dice
    u, v = path[dice.whole(4, 12)]
    radius = dice.between(0.12, 0.26) * min(site.half, 160.0) + 4.0
    v += dice.pick((-1.0, 1.0)) * (radius * 0.75)
    if dice.chance(0.35):
        box = (u - radius, v - radius * 0.8, u + radius, v + radius * 0.8)
        outline = ((box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3]))
        site.patch(COVER, dice.pick(("soil", "crop")), BACKGROUND, outline, dice.between(0.0, 3.1), -8.0)
        scatter_trees(site, box, 25.0)
        return
    site.patch(COVER, "grass", BACKGROUND, site.ring(u, v, radius, 0.3), 0.0, -8.0)
    if radius > 9.0 and dice.chance(0.6):
        size = (dice.between(8.0, 12.0), dice.between(6.0, 8.0), 5.0)
        site.thing("building", "gable", u, v, size, dice.between(-3.0, 3.0), group=site.group())
    elif dice.chance(0.7):
        tree(site, u, v, dice.between(2.0, 3.0))


def lake(site: Site, u: float, v: float, radius: float) -> None:
    """A lake with a reed or sand margin; from then on `site.wet` knows it."""
    dice = site.dice
    outline = site.ring(u, v, radius, 0.35, points=48)
    radii = [math.hypot(a - u, b - v) for a, b in outline]

    def depth(a: float, b: float) -> float:
        turn = (math.atan2(b - v, a - u) % (2.0 * math.pi)) / (2.0 * math.pi) * len(radii)
        i = int(turn) % len(radii)
        edge = radii[i] + (radii[(i + 1) % len(radii)] - radii[i]) * (turn - int(turn))
        return 0.8 * (edge - math.hypot(a - u, b - v))

    site.water.append(depth)
    rim = dice.between(1.02, 1.12)
    scaled = [(u + (a - u) * rim, v + (b - v) * rim) for a, b in outline]
    site.patch(COVER, dice.pick(("sand", "grass", "soil")), BACKGROUND, scaled, 0.0, -6.0)
    site.patch(SHORE, "shallow", WATER, outline)
    inner = max(0.6, 1.0 - 7.0 / radius)
    shelf = 0.6 + 0.4 * inner
    site.patch(SHORE, "shelf", WATER, [(u + (a - u) * shelf, v + (b - v) * shelf) for a, b in outline])
    site.patch(SHORE, "water", WATER, [(u + (a - u) * inner, v + (b - v) * inner) for a, b in outline])


def boats(site: Site, count: int, longest: float) -> None:
    """Boats and ships afloat, clear of each other and of the shore."""
    dice = site.dice
    taken: list[tuple[float, float, float]] = []
    for _ in range(count * 8):
        if len(taken) >= count:
            return
        length = dice.between(0.35, 1.0) * longest
        u, v = dice.between(-1.0, 1.0) * site.half, dice.between(-1.0, 1.0) * site.half
        if (
            site.wet(u, v) > 0.62 * length + 2.0
            and site.off_road(u, v, length)
            and all(math.hypot(u - a, v - b) > 0.7 * (length + s) + 3.0 for a, b, s in taken)
        ):
            taken.append((u, v, length))
            ship(site, u, v, length, dice.between(-math.pi, math.pi), moving=dice.chance(0.45))


def ship(site: Site, u: float, v: float, length: float, turn: float, moving: bool) -> None:
    """A vessel of a kind that fits its length; moving ones draw a wake."""
    dice = site.dice
    if length < 18.0:
        variant, ratio = dice.pick(("boat", "boat", "fishing")), dice.between(0.27, 0.36)
    elif length < 45.0:
        variant, ratio = dice.pick(("fishing", "barge", "tug")), dice.between(0.2, 0.26)
    else:
        variant, ratio = dice.pick(("cargo", "tanker", "container")), dice.between(0.135, 0.17)
    site.thing(
        "ship",
        variant + ("+" if moving else ""),
        u,
        v,
        (length, length * ratio, 2.0 + 0.07 * length),
        turn,
        0.6 if moving else 0.92,
    )


def lakeside(site: Site) -> None:
    """A lake among woods and meadows, cabins and jetties on its shore."""
    dice = site.dice
    u, v = dice.between(-0.3, 0.3) * site.half, dice.between(-0.3, 0.3) * site.half
    radius = site.half * dice.between(0.42, 0.68)
    for _ in range(dice.whole(3, 7)):
        a = dice.between(0.0, 6.28)
        far = radius * dice.between(1.5, 2.2)
        grove(site, u + far * math.cos(a), v + far * math.sin(a), radius * dice.between(0.3, 0.6))
    lake(site, u, v, radius)
    side = dice.pick((-1.0, 1.0))
    lane = v + side * (radius * 1.35 + 6.0)
    surface: Surface = dice.pick(("asphalt", "track"))
    bow = [(site.reach * (i / 8.0 - 1.0), lane + side * radius * 0.3 * abs(i / 8.0 - 1.0) ** 2) for i in range(17)]
    site.band(ROADWAY, surface, ROAD, bow, 5.0)
    site.corridors += [(a, b, 3.0) for a, b in itertools.pairwise(bow)]
    for a, b, direction in along(bow, 45.0, dice.between(0.0, 45.0)):
        vehicle(site, a, b, direction, 0.3)
    start = dice.between(0.0, 6.28)
    for i in range(dice.whole(1, 4)):
        _cabin(site, (u, v), radius, start + i * math.pi / 2.0 + dice.between(-0.4, 0.4))
    scatter_trees(site, (-site.reach, -site.reach, site.reach, site.reach), 22.0)
    boats(site, dice.whole(1, 4), min(14.0, radius * 0.5))


def _cabin(site: Site, centre: Point, radius: float, a: float) -> None:
    """A cabin on the shore of a lake, in direction `a` from its centre, and its jetty."""
    dice = site.dice
    u, v = centre
    r = radius
    while site.wet(u + r * math.cos(a), v + r * math.sin(a)) > -9.0:
        r += 1.5
    if r > radius * 1.4 or not site.off_road(u + r * math.cos(a), v + r * math.sin(a), 8.0):
        return
    cu, cv = u + r * math.cos(a), v + r * math.sin(a)
    site.thing("building", "gable", cu, cv, (dice.between(8.0, 11.0), 7.0, 5.0), a, group=site.group())
    inner = r - 24.0 if r > 40.0 else r * 0.55
    jetty = (
        (u + (r - 6.0) * math.cos(a), v + (r - 6.0) * math.sin(a)),
        (u + inner * math.cos(a), v + inner * math.sin(a)),
    )
    site.band(BASE, "deck", ROAD, jetty, 2.0)
    site.corridors.append((*jetty, 1.5))


def bank_use(site: Site, box: Box) -> None:
    """What lies along a river: fields, houses, woods or meadow."""
    dice = site.dice
    use = dice.weighted((("fields", 0.45), ("houses", 0.25), ("woods", 0.3)))
    if use == "fields":
        parcels(site, box)
    elif use == "houses":
        for u in range(int(box[0]), int(box[2]), 70):
            blocks.houses(site, (u + 4.0, box[1] + 6.0, u + 66.0, min(box[1] + 66.0, box[3])))
    else:
        for _ in range(int(4 + site.half / 14.0)):
            grove(site, dice.between(box[0], box[2]), dice.between(box[1], box[3]), dice.between(7.0, 22.0))
        scatter_trees(site, box, 14.0)


def quayside(site: Site, box: Box) -> None:
    """The land behind a quay: sheds, containers or tanks."""
    site.dice.weighted(((blocks.halls, 0.55), (container_yard, 0.3), (blocks.tanks, 0.15)))(site, box)


def container_yard(site: Site, box: Box) -> None:
    """Stacked containers in rows."""
    dice = site.dice
    site.paved(BASE, "asphalt", box)
    v = box[1] + 3.0
    while v < box[3] - 3.0:
        u = box[0] + 5.0
        while u < box[2] - 5.0:
            if dice.chance(0.8):
                site.thing("container", "", u, v, (6.1, 2.44, 2.6 * dice.whole(1, 4)), 0.0, 0.85)
            u += 6.5
        v += dice.pick((2.7, 2.7, 2.7, 9.0))
    hedge_line = ((box[0], box[1] + 0.5), (box[2], box[1] + 0.5))
    site.band(MARKS, "mark", ROAD, hedge_line, 0.4)
