"""Built-up themes: residential, urban, industrial, storage, parking, sports, highway, airport."""

from __future__ import annotations

import math

from vitp.demo import blocks
from vitp.demo.classes import BACKGROUND, ROAD
from vitp.demo.site import BASE, COVER, MARKS, ROADWAY, Site
from vitp.demo.streets import Box, Fill, along, bays, grove, road, scatter_trees, street_grid, vehicle


def _mixture(primary: Fill, others: tuple[tuple[Fill, float], ...]) -> Fill:
    """The theme's own use for blocks near the middle, a weighted choice elsewhere."""

    def fill(site: Site, box: Box) -> None:
        core = 0.3 * site.half
        central = box[0] < core and box[2] > -core and box[1] < core and box[3] > -core
        chosen = primary if central else site.dice.weighted(((primary, 2.0), *others))
        chosen(site, box)

    return fill


def residential(site: Site) -> None:
    """Detached houses on lots along quiet streets."""
    dice = site.dice
    pitch = (dice.between(75.0, 130.0), dice.between(52.0, 72.0))
    fill = _mixture(blocks.houses, ((blocks.park, 0.25), (blocks.bare, 0.12), (blocks.courts, 0.1)))
    street_grid(site, pitch, dice.between(5.8, 7.2), fill, traffic=0.1, parked=0.12)


def urban(site: Site) -> None:
    """Multi-storey blocks, busy streets."""
    dice = site.dice
    pitch = (dice.between(70.0, 120.0), dice.between(58.0, 92.0))
    fill = _mixture(blocks.flats, ((blocks.lot, 0.15), (blocks.park, 0.3), (blocks.courts, 0.1)))
    street_grid(site, pitch, dice.between(9.0, 13.0), fill, traffic=0.35, parked=0.4)


def industrial(site: Site) -> None:
    """Halls, yards, trucks."""
    dice = site.dice
    pitch = (dice.between(100.0, 170.0), dice.between(56.0, 86.0))
    fill = _mixture(blocks.halls, ((blocks.lot, 0.15), (blocks.bare, 0.3), (blocks.tanks, 0.15)))
    street_grid(site, pitch, dice.between(7.5, 9.5), fill, traffic=0.22, parked=0.05)


def storage(site: Site) -> None:
    """Tank farms."""
    dice = site.dice
    pitch = (dice.between(80.0, 140.0), dice.between(55.0, 90.0))
    fill = _mixture(blocks.tanks, ((blocks.halls, 0.25), (blocks.bare, 0.2)))
    street_grid(site, pitch, dice.between(6.0, 8.0), fill, traffic=0.1, parked=0.0)


def sports(site: Site) -> None:
    """Courts and pitches."""
    dice = site.dice
    pitch = (dice.between(80.0, 140.0), dice.between(55.0, 95.0))
    fill = _mixture(blocks.courts, ((blocks.park, 0.4), (blocks.lot, 0.15), (blocks.houses, 0.2)))
    street_grid(site, pitch, dice.between(6.0, 8.0), fill, traffic=0.12, parked=0.05)


def _store(site: Site, box: Box) -> None:
    """A big parking lot with a shop along one side."""
    dice = site.dice
    u0, v0, u1, v1 = box
    side = dice.between(16.0, 24.0)
    if v1 - v0 > side + 24.0:
        size = ((u1 - u0) * dice.between(0.6, 0.95), side - 3.0, dice.between(5.0, 9.0))
        site.paved(BASE, "concrete", (u0, v0, u1, v0 + side))
        site.thing("building", dice.pick(("flat", "metal")), (u0 + u1) / 2.0, v0 + side / 2.0, size, group=site.group())
        bays(site, (u0, v0 + side, u1, v1), dice.between(0.4, 0.9))
    else:
        bays(site, box, dice.between(0.4, 0.9))


def parking(site: Site) -> None:
    """A large parking lot beside a shop or office."""
    dice = site.dice
    pitch = (dice.between(70.0, 110.0), dice.between(58.0, 84.0))
    fill = _mixture(_store, ((blocks.flats, 0.2), (blocks.park, 0.15)))
    street_grid(site, pitch, dice.between(6.5, 8.5), fill, traffic=0.25, parked=0.0)


def highway(site: Site) -> None:
    """A dual carriageway with an overpass and ramps."""
    dice = site.dice
    reach = site.reach
    lanes = dice.pick((2, 2, 3))
    width = lanes * 3.7 + 3.0
    median = dice.between(2.5, 7.0)
    crossing = dice.chance(0.75)
    cross = dice.between(-0.5, 0.5) * site.half
    if crossing:
        site.corridors.append(((cross, -reach), (cross, reach), 7.0))
    drift = dice.between(-0.15, 0.15) * site.half
    left, right = -reach, reach
    site.rect(COVER, "grass", BACKGROUND, (left, drift - 24.0, right, drift + 24.0))
    for side in (-1.0, 1.0):
        v = drift + side * (median + width) / 2.0
        line = ((left, v), (right, v))
        site.band(ROADWAY, "asphalt", ROAD, line, width)
        _lanes(site, v, width, lanes, side)
    if crossing:
        _ramp(site, cross, drift, width + median / 2.0)
    for side in (-1.0, 1.0):
        near = drift + side * (width + median / 2.0 + 9.0)
        far = drift + side * reach
        box = (left, min(near, far), right, max(near, far))
        _verge(site, box)
    if crossing:
        wide = dice.between(8.0, 10.0)
        road(site, ((cross, -reach), (cross, reach)), wide, walk=1.0, traffic=0.3)
        for rail in (cross - wide / 2.0, cross + wide / 2.0):
            site.band(MARKS, "sidewalk", ROAD, ((rail, drift - 30.0), (rail, drift + 30.0)), 0.7)


def _lanes(site: Site, v: float, width: float, lanes: int, side: float) -> None:
    dice = site.dice
    wide = max(0.18, 0.4 * site.gsd_m)
    for edge in (-1.0, 1.0):
        y = v + edge * (width / 2.0 - 1.2)
        stops = [-site.reach, *(x for (u, _), _b, gap in site.corridors for x in (u - gap, u + gap)), site.reach]
        for start, end in zip(stops[::2], stops[1::2], strict=True):
            site.band(MARKS, "mark", ROAD, ((start, y), (end, y)), wide)
    for lane in range(1, lanes):
        y = v - lanes * 1.85 + lane * 3.7
        for u, _, _ in along(((-site.reach, y), (site.reach, y)), 12.0, dice.between(0.0, 8.0)):
            if site.seen(u, y, 4.0) and site.off_road(u + 2.2, y, 1.0):
                site.band(MARKS, "mark", ROAD, ((u, y), (u + 4.5, y)), wide)
    for lane in range(lanes):
        y = v - lanes * 1.85 + (lane + 0.5) * 3.7
        u = -site.reach
        while u < site.reach:
            u += dice.between(15.0, 34.0)
            if site.off_road(u, y, 5.0):
                vehicle(site, u, y + dice.between(-0.2, 0.2), 0.0 if side > 0 else math.pi, 0.6)


def _ramp(site: Site, cross: float, drift: float, half_width: float) -> None:
    """Slip roads: quarter arcs that leave the carriageway along u and reach the overpass along v."""
    dice = site.dice
    radius = dice.between(24.0, 40.0)
    for su, sv in ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)):
        if dice.chance(0.6):
            edge = drift + sv * (half_width - 2.0)
            arc = []
            for i in range(9):
                a = math.pi / 2.0 * i / 8.0
                arc.append((cross + su * radius * (1.0 - math.sin(a)), edge + sv * radius * (1.0 - math.cos(a))))
            arc.insert(0, (cross + su * (radius + 14.0), edge))
            site.band(ROADWAY, "asphalt", ROAD, arc, 5.0)


def _verge(site: Site, box: Box) -> None:
    dice = site.dice
    use = dice.pick(("wood", "crop", "houses", "halls", "crop"))
    if use == "crop":
        site.patch(COVER, "crop", 3, ((box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])))
    elif use == "wood":
        for u, v, _ in along(((box[0], box[1]), (box[2], box[1])), 16.0, 0.0):
            grove(site, u, v + (14.0 if box[1] > 0 else box[3] - box[1] - 14.0), dice.between(8.0, 14.0))
    else:
        fill = blocks.houses if use == "houses" else blocks.halls
        depth = min(36.0, box[3] - box[1])
        low = box[1] + 4.0 if box[1] > 0 else box[3] - depth
        for u in range(int(box[0]), int(box[2]), 60):
            if site.off_road(u + 30.0, low, 30.0):  # nothing is built under the overpass
                fill(site, (u + 5.0, low, u + 55.0, low + depth - 4.0))
    scatter_trees(site, box, 12.0)


def airport(site: Site) -> None:
    """Stands at a terminal, a runway with its taxiway, or parked light aircraft."""
    dice = site.dice
    if site.gsd_m < 0.5:
        _light_aircraft(site)
        return
    if dice.chance(0.6):
        _stands(site)
    else:
        _runway(site, 0.0, dice.between(-0.2, 0.2) * site.half)


def _joints(site: Site, box: Box, pitch: float) -> None:
    """The joints between concrete slabs."""
    wide = max(0.2, 0.35 * site.gsd_m)
    u = box[0]
    while u < box[2]:
        site.band(MARKS, "sidewalk", ROAD, ((u, box[1]), (u, box[3])), wide)
        u += pitch
    v = box[1]
    while v < box[3]:
        site.band(MARKS, "sidewalk", ROAD, ((box[0], v), (box[2], v)), wide)
        v += pitch


def _stands(site: Site) -> None:
    dice = site.dice
    reach = site.reach
    variant, length, span_ratio = dice.weighted(
        (
            (("jet", dice.between(32.0, 42.0), 0.92), 0.6),
            (("jet4", dice.between(48.0, 62.0), 0.94), 0.15),
            (("regional", dice.between(19.0, 27.0), 0.9), 0.25),
        )
    )
    span = length * span_ratio
    face = -length * dice.between(0.4, 0.9)  # where the terminal ends
    depth = dice.between(22.0, 36.0)
    apron = (-reach, face - depth - 8.0, reach, face + length + 34.0)
    site.paved(BASE, "concrete", apron)
    _joints(site, (-reach, face, reach, apron[3]), dice.between(9.0, 15.0))
    u = -reach
    while u < reach:
        wide = dice.between(60.0, 130.0)
        height = dice.between(9.0, 16.0)
        shape = dice.pick(("flat", "metal", "flat"))
        site.thing(
            "building", shape, u + wide / 2.0, face - depth / 2.0, (wide - 3.0, depth, height), group=site.group()
        )
        u += wide
    lane = face + length + 22.0
    site.band(MARKS, "mark_yellow", ROAD, ((-reach, lane), (reach, lane)), max(0.4, 0.55 * site.gsd_m))
    pitch = span + dice.between(5.0, 9.0)
    first = -math.ceil(reach / pitch) * pitch + dice.between(0.0, pitch)
    for i in range(int(2.0 * reach / pitch) + 2):
        u = first + i * pitch
        nose = face + dice.between(5.0, 8.0)
        line = ((u, nose), (u, lane))
        site.band(MARKS, "mark_yellow", ROAD, line, max(0.3, 0.4 * site.gsd_m))
        there = 1.0 if abs(u) < pitch / 2.0 else 0.8
        site.thing("aircraft", variant, u, nose + length / 2.0, (length, span, length * 0.13), -math.pi / 2.0, there)
        side = u - 0.16 * span
        site.band(MARKS, "mark", ROAD, ((u - span / 2.0 - 2.0, face + 2.0), (u - span / 2.0 - 2.0, nose + length)), 0.5)
        for _ in range(dice.whole(1, 3)):
            vehicle(site, side - dice.between(1.0, 6.0), nose + dice.between(4.0, length), dice.between(-3.1, 3.1), 0.0)
        site.thing("vehicle", "van", u - span / 2.0 + 1.5, nose + dice.between(2.0, 6.0), (5.4, 2.1, 2.2), 1.57, 0.7)
    if dice.chance(0.6):
        u = dice.between(-0.5, 0.5) * site.half
        site.thing("aircraft", variant, u, lane, (length, span, length * 0.13), dice.pick((0.0, math.pi)), 0.5)
    _runway(site, 0.0, lane + length * 0.5 + 70.0)


def _runway(site: Site, _: float, v: float) -> None:
    dice = site.dice
    reach = site.reach
    width = dice.pick((30.0, 45.0, 45.0))
    line = ((-reach, v), (reach, v))
    site.band(BASE, "concrete", ROAD, line, width + 8.0)
    site.band(ROADWAY, "asphalt", ROAD, line, width)
    for shift in (-4.0, 4.0):
        site.band(ROADWAY, "rubber", ROAD, ((-reach, v + shift), (reach, v + shift)), dice.between(2.0, 4.0))
    wide = max(0.9, 0.6 * site.gsd_m)
    for edge in (-1.0, 1.0):
        y = v + edge * (width / 2.0 - 1.5)
        site.band(MARKS, "mark", ROAD, ((-reach, y), (reach, y)), wide)
    start = dice.between(-0.7, 0.3) * site.half
    for u, y, _d in along(((start + 42.0, v), (reach, v)), 50.0, 0.0):
        site.band(MARKS, "mark", ROAD, ((u, y), (u + 30.0, y)), wide)
    stripes = int(width / 4.0)
    for i in range(stripes):
        y = v + (i + 0.5 - stripes / 2.0) * (width - 6.0) / stripes
        site.band(MARKS, "mark", ROAD, ((start, y), (start + 30.0, y)), 1.8)
    taxi = v + dice.pick((-1.0, 1.0)) * (width / 2.0 + dice.between(24.0, 38.0))
    if abs(v) < site.half:
        site.band(BASE, "asphalt", ROAD, ((-reach, taxi), (reach, taxi)), 20.0)
        site.band(MARKS, "mark_yellow", ROAD, ((-reach, taxi), (reach, taxi)), wide * 0.7)
        exit_u = start + dice.between(10.0, 60.0)
        link = ((exit_u, v), (exit_u + 12.0, (v + taxi) / 2.0), (exit_u + 24.0, taxi))
        site.band(BASE, "asphalt", ROAD, link, 20.0)
        site.band(MARKS, "mark_yellow", ROAD, link, wide * 0.7)
        length = dice.between(26.0, 44.0)
        size = (length, length * 0.92, length * 0.13)
        site.thing("aircraft", "jet", dice.between(-0.6, 0.6) * site.half, taxi, size, dice.pick((0.0, math.pi)), 0.85)
        site.thing("aircraft", "jet", start + dice.between(0.0, 60.0), v, size, 0.0, 0.6)


def _light_aircraft(site: Site) -> None:
    dice = site.dice
    reach = site.reach
    rows = dice.whole(2, 3)
    pitch_v = 17.0
    low = -rows * pitch_v / 2.0
    site.paved(BASE, dice.pick(("asphalt", "concrete")), (-reach, low - 6.0, reach, -low + 6.0))
    _joints(site, (-reach, low - 6.0, reach, -low + 6.0), 7.5)
    for j in range(rows):
        v = low + (j + 0.5) * pitch_v
        u = -reach
        while u < reach:
            length = dice.between(7.2, 9.6)
            variant = dice.pick(("prop", "prop", "prop", "regional"))
            span = length * (1.3 if variant == "prop" else 0.95)
            turn = (-math.pi / 2.0 if j % 2 else math.pi / 2.0) + dice.between(-0.08, 0.08)
            if dice.chance(0.9):
                site.thing("aircraft", variant, u, v, (length, span, 2.4), turn, 0.78)
            u += 14.0
        site.band(MARKS, "mark_yellow", ROAD, ((-reach, v - pitch_v / 2.0), (reach, v - pitch_v / 2.0)), 0.25)
    u = -reach
    while u < reach:
        wide = dice.between(14.0, 22.0)
        size = (wide - 3.0, 14.0, 6.0)
        site.thing("building", "metal", u + wide / 2.0, low - 16.0, size, group=site.group())
        u += wide
    site.band(ROADWAY, "asphalt", ROAD, ((-reach, -low + 24.0), (reach, -low + 24.0)), 12.0)
    site.band(MARKS, "mark_yellow", ROAD, ((-reach, -low + 24.0), (reach, -low + 24.0)), 0.3)
