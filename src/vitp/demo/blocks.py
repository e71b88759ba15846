"""What fills a block between streets: houses, flats, halls, tanks, courts, parks."""

from __future__ import annotations

import math

from vitp.demo.classes import BACKGROUND, FOREST, ROAD, WATER
from vitp.demo.site import BASE, COVER, MARKS, SHORE, WOODS, Site
from vitp.demo.streets import Box, bays, grove, hedge, road, scatter_trees, tree, vehicle
from vitp.demo.surfaces import Surface

# Courts: name, length and width in metres of the whole surface.
COURTS: tuple[tuple[str, float, float], ...] = (
    ("tennis", 34.0, 17.0),
    ("basketball", 30.0, 17.0),
    ("volleyball", 22.0, 13.0),
    ("pitch", 52.0, 32.0),
    ("football", 100.0, 64.0),
)


def houses(site: Site, box: Box) -> None:
    """Rows of lots with a house, a driveway, a garden with trees, sometimes a pool."""
    dice = site.dice
    u0, v0, u1, v1 = box
    rows = 2 if v1 - v0 > 34.0 else 1
    depth = (v1 - v0) / rows
    for row in range(rows):
        front = v0 if row == 0 else v1
        inward = 1.0 if row == 0 else -1.0
        u = u0
        while u + 13.0 < u1:
            width = min(dice.between(14.0, 22.0), u1 - u)
            if u1 - (u + width) < 13.0:
                width = u1 - u
            if site.seen(u + width / 2.0, front + inward * depth / 2.0, depth):
                _lot(site, u, front, width, depth, inward)
            u += width


def _lot(site: Site, u: float, front: float, width: float, depth: float, inward: float) -> None:
    dice = site.dice
    back = front + inward * depth
    site.rect(COVER, "lawn", BACKGROUND, (u, min(front, back), u + width, max(front, back)))
    if not site.dry(u + width / 2.0, front + inward * depth / 2.0, depth * 0.55) or dice.chance(0.06):
        scatter_trees(site, (u, min(front, back), u + width, max(front, back)), 60.0)
        return
    length = min(dice.between(9.0, 15.0), width - 4.0)
    across = min(dice.between(7.0, 10.5), depth * 0.5)
    setback = dice.between(3.5, 6.5)
    centre = front + inward * (setback + across / 2.0)
    middle = u + width / 2.0 + dice.between(-0.5, 0.5) * (width - length - 3.2)
    group = site.group()
    variant = dice.weighted((("gable", 0.45), ("hip", 0.3), ("ell", 0.17), ("flat", 0.08)))
    tilt = dice.between(-0.04, 0.04) + (math.pi if inward < 0 else 0.0)
    site.thing("building", variant, middle, centre, (length, across, dice.between(4.5, 8.0)), tilt, group=group)
    side = 1.0 if middle < u + width / 2.0 else -1.0
    drive = middle + side * (length / 2.0 - 1.4)
    site.band(BASE, "sidewalk", ROAD, ((drive, front - inward * 2.0), (drive, front + inward * setback)), 2.8, group)
    if setback > 5.2:
        vehicle(site, drive, front + inward * setback * 0.5, inward * math.pi / 2.0, 0.55, parked=True)
    garden_from = front + inward * (setback + across + 2.5)
    lo, hi = min(garden_from, back), max(garden_from, back)
    if hi - lo > 5.0:
        if dice.chance(0.13):
            pu, pv = u + width * dice.between(0.3, 0.7), (lo + hi) / 2.0
            site.rect(BASE, "sidewalk", ROAD, (pu - 4.6, pv - 2.8, pu + 4.6, pv + 2.8), group)
            site.rect(MARKS, "pool", WATER, (pu - 3.4, pv - 1.7, pu + 3.4, pv + 1.7), group)
        else:
            scatter_trees(site, (u, lo, u + width, hi), 95.0, margin=2.0)
        if dice.chance(0.2):
            shed = (dice.between(2.8, 4.2), dice.between(2.4, 3.2), 2.6)
            site.thing("building", "gable", u + 3.0, back - inward * 2.8, shed, 0.0, group=site.group())
    if dice.chance(0.35):
        hedge(site, ((u, front + inward * 1.5), (u, back)), dice.between(1.0, 1.8))


def flats(site: Site, box: Box) -> None:
    """Multi-storey blocks: slabs with parking between, towers, or a courtyard perimeter."""
    dice = site.dice
    u0, v0, u1, v1 = box
    wide, deep = u1 - u0, v1 - v0
    plan = dice.weighted((("slabs", 0.4), ("court", 0.35), ("towers", 0.25)))
    site.rect(COVER, "lawn", BACKGROUND, box)
    if plan == "court" and min(wide, deep) > 34.0:
        site.paved(BASE, "sidewalk", box)
        thick = dice.between(11.0, 14.0)
        height = dice.between(10.0, 17.0)
        for v in (v0 + thick / 2.0 + 1.0, v1 - thick / 2.0 - 1.0):
            shape = dice.pick(("flat", "flat", "gable"))
            site.thing("building", shape, (u0 + u1) / 2.0, v, (wide - 3.0, thick, height), group=site.group())
        for u in (u0 + thick / 2.0 + 1.5, u1 - thick / 2.0 - 1.5):
            if dice.chance(0.7):
                size = (deep - 2.0 * thick - 6.0, thick, height)
                site.thing("building", "flat", u, (v0 + v1) / 2.0, size, math.pi / 2.0, group=site.group())
        inner = (u0 + thick + 4.0, v0 + thick + 3.0, u1 - thick - 4.0, v1 - thick - 3.0)
        site.rect(MARKS, "lawn", BACKGROUND, inner)
        scatter_trees(site, inner, 90.0)
        return
    pitch_u, pitch_v = (dice.between(36.0, 60.0), 30.0) if plan == "slabs" else (dice.between(30.0, 38.0),) * 2
    columns, rows = max(1, int(wide / pitch_u)), max(1, int(deep / pitch_v))
    for i in range(columns):
        for j in range(rows):
            cu, cv = u0 + wide * (i + 0.5) / columns, v0 + deep * (j + 0.5) / rows
            length = min(wide / columns - 5.0, 58.0) if plan == "slabs" else dice.between(18.0, 24.0)
            size = (length, dice.between(11.0, 14.0) if plan == "slabs" else length * 0.9, dice.between(10.0, 24.0))
            shape = "flat" if plan == "towers" else dice.pick(("flat", "ell", "flat", "hip"))
            if shape == "ell":
                size = (size[0], size[1] * 1.6, size[2])
            lift = min(0.0, -(deep / rows - size[1]) / 2.0 + 2.0)
            if site.dry(cu, cv, length * 0.6):
                site.thing("building", shape, cu, cv + lift, size, group=site.group())
            free = deep / rows - size[1] - 4.0
            if plan == "slabs" and free > 8.0 and dice.chance(0.7):
                low = cv + lift + size[1] / 2.0 + 2.0
                bays(site, (cu - length / 2.0, low, cu + length / 2.0, low + min(free - 2.0, 11.6)), 0.6)
            else:
                scatter_trees(site, (cu - length / 2.0, cv + 6.0, cu + length / 2.0, cv + deep / rows / 2.0), 120.0)


def halls(site: Site, box: Box) -> None:
    """Industrial halls on a paved yard with trucks, containers and the odd tank."""
    dice = site.dice
    u0, v0, u1, v1 = box
    site.paved(BASE, dice.pick(("asphalt", "concrete", "concrete")), box)
    wide, deep = u1 - u0, v1 - v0
    columns = max(1, round(wide / dice.between(38.0, 62.0)))
    for i in range(columns):
        left, right = u0 + wide * i / columns + 3.0, u0 + wide * (i + 1) / columns - 3.0
        yard = dice.between(11.0, 16.0)
        if dice.chance(0.16) and deep > 24.0:
            tanks(site, (left, v0 + 2.0, right, v1 - 2.0))
            continue
        depth = min(deep - yard - 3.0, dice.between(20.0, 40.0))
        middle = v0 + 2.0 + depth / 2.0
        variant = dice.pick(("metal", "metal", "saw", "flat", "gable"))
        size = (right - left, depth, dice.between(7.0, 12.0))
        if depth > 8.0 and site.dry((left + right) / 2.0, middle, max(depth, right - left) * 0.5):
            site.thing("building", variant, (left + right) / 2.0, middle, size, group=site.group())
            _loading_yard(site, left, right, v0 + 2.0 + depth, v1)


def _loading_yard(site: Site, left: float, right: float, wall: float, edge: float) -> None:
    dice = site.dice
    u = left + 4.0
    use = dice.pick(("trucks", "cars", "containers", "trucks"))
    if use == "cars" and edge - wall > 9.0:
        bays(site, (left, edge - 6.6, right, edge - 0.4), 0.6)
        return
    while u < right - 3.0:
        if use == "trucks" and edge - wall > 15.0:
            length = dice.between(9.0, 13.5)
            site.thing("vehicle", "truck", u, wall + 1.2 + length / 2.0, (length, 2.55, 3.6), math.pi / 2.0, 0.45)
            u += 4.2
        elif use == "containers":
            site.thing("container", "", u, edge - 4.4, (6.1, 2.44, 2.6 * dice.whole(1, 3)), math.pi / 2.0, 0.7)
            u += dice.pick((2.7, 2.7, 8.0))
        else:
            u += 6.0


def tanks(site: Site, box: Box) -> None:
    """A tank farm: a bund, equal tanks in rows, pipes between them."""
    dice = site.dice
    u0, v0, u1, v1 = box
    wide, deep = u1 - u0, v1 - v0
    if min(wide, deep) < 12.0:
        return
    ground: Surface = dice.pick(("gravel", "soil", "concrete", "grass"))
    site.rect(BASE, "sidewalk", BACKGROUND, box)
    site.rect(BASE, ground, BACKGROUND, (u0 + 0.9, v0 + 0.9, u1 - 0.9, v1 - 0.9))
    radius = min(
        dice.pick((5.0, 8.0, 11.0, 15.0)) * dice.between(0.9, 1.15), 0.3 * site.half, (min(wide, deep) - 5.0) / 2.0
    )
    pitch = 2.0 * radius + dice.between(3.0, 7.0)
    columns, rows = max(1, int((wide - 3.0) / pitch)), max(1, int((deep - 3.0) / pitch))
    variant = dice.pick(("cone", "cone", "floating", "dome"))
    height = dice.between(0.6, 1.1) * radius + 4.0
    for j in range(rows):
        v = v0 + deep * (j + 0.5) / rows
        pipe = v - deep / rows / 2.0 + 1.6
        site.thing("pipe", "", (u0 + u1) / 2.0, pipe, (wide - 3.0, 0.7, 1.0))
        for i in range(columns):
            u = u0 + wide * (i + 0.5) / columns
            size = radius * dice.pick((1.0, 1.0, 1.0, 0.72))
            if dice.chance(0.93) and site.dry(u, v, size + 2.0):
                site.thing("tank", variant, u, v, (2.0 * size, 2.0 * size, height), group=site.group())


def courts(site: Site, box: Box) -> None:
    """Sports grounds: one kind of court in rows, or a mixture, with trees round them."""
    dice = site.dice
    u0, v0, u1, v1 = box
    site.rect(COVER, "lawn", BACKGROUND, box)
    v = v0 + 2.0
    repeat = dice.chance(0.4)
    while v < v1 - 10.0:
        fitting = [c for c in COURTS if c[1] <= u1 - u0 - 3.0 and c[2] <= v1 - v - 1.5]
        if not fitting:
            break
        tallest = dice.pick(fitting)
        u, row = u0 + 2.0, tallest[2]
        while True:
            options = [c for c in fitting if c[1] <= u1 - u - 1.5 and c[2] <= row + 0.1]
            if not options:
                break
            name, length, width = tallest if repeat and tallest in options else dice.pick(options)
            spare = (row - width) / 2.0
            site.thing(
                "court", name, u + length / 2.0, v + spare + width / 2.0, (length, width, 0.0), group=site.group()
            )
            u += length + dice.between(1.6, 4.0)
        if u1 - u > 7.0:
            scatter_trees(site, (u, v, u1, v + row), 110.0)
        v += row + dice.between(2.0, 6.0)
    if v1 - v > 6.0:
        scatter_trees(site, (u0, v, u1, v1), 90.0)


def park(site: Site, box: Box) -> None:
    """Lawn, trees, a path, sometimes a pond."""
    dice = site.dice
    u0, v0, u1, v1 = box
    site.rect(COVER, "grass", BACKGROUND, box)
    cu, cv = (u0 + u1) / 2.0, (v0 + v1) / 2.0
    small = min(u1 - u0, v1 - v0)
    bow = dice.between(-0.2, 0.2) * small
    path = ((u0, cv + bow), (u0 * 0.6 + u1 * 0.4, cv - bow), (u0 * 0.3 + u1 * 0.7, cv + bow), (u1, cv))
    road(site, path, 2.4, walk=0.0, marked=False, traffic=0.0)
    if small > 30.0 and dice.chance(0.35):
        pond = site.ring(cu, cv + 0.25 * small, small * 0.16, 0.3)
        site.patch(SHORE, "shallow", WATER, pond)
    if small > 26.0 and dice.chance(0.5):
        grove(site, dice.between(u0, u1) * 0.4 + cu * 0.6, cv - 0.22 * small, small * 0.2)
    scatter_trees(site, box, 70.0)


def bare(site: Site, box: Box) -> None:
    """A building plot: soil, grass and a few bushes."""
    dice = site.dice
    u0, v0, u1, v1 = box
    site.rect(COVER, dice.pick(("soil", "gravel", "grass")), BACKGROUND, box)
    if dice.chance(0.5):
        cu, cv = dice.between(u0, u1), dice.between(v0, v1)
        site.patch(COVER, "soil", BACKGROUND, site.ring(cu, cv, min(u1 - u0, v1 - v0) * 0.3, 0.3))
    scatter_trees(site, box, 14.0)


def lot(site: Site, box: Box) -> None:
    """A parking lot for a whole block."""
    bays(site, (box[0] + 0.6, box[1] + 0.6, box[2] - 0.6, box[3] - 0.6), site.dice.between(0.35, 0.85))


def wood(site: Site, box: Box) -> None:
    """A block of closed forest."""
    u0, v0, u1, v1 = box
    outline = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
    site.patch(WOODS, "canopy", FOREST, outline, raised_m=8.0)
    tree(site, u0, v0, 3.0)
