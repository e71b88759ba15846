"""How buildings, tanks, courts and smaller fixed things are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitp.demo.blocks import COURTS
from vitp.demo.canvas import Canvas, Glint, Pose
from vitp.demo.classes import BACKGROUND, BUILDING, COURT, FOREST, TANK
from vitp.demo.site import Point, Thing
from vitp.demo.style import Material, Paint, Rgb, Style, mix, plain, scaled
from vitp.demo.surfaces import SNOW, WHITE, surface_paint

Rect = tuple[float, float, float, float]  # local x0, y0, x1, y1


def corners(rect: Rect) -> list[Point]:
    """The four corners of a local rectangle."""
    x0, y0, x1, y1 = rect
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _lit(style: Style, facing: Point, steep: float = 0.42) -> float:
    """Brightness of a sloping face whose outward direction is `facing`, 1 for a flat one."""
    return 1.0 + steep * (facing[0] * style.to_sun[0] + facing[1] * style.to_sun[1])


def draw_building(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> list[Point]:
    """Draw a building; returns its local outline."""
    half_l, half_w = thing.length / 2.0, thing.width / 2.0
    roofs = style.land.roofs
    rgb = scaled(roofs[int(thing.look[0] * len(roofs))], 0.88 + 0.24 * thing.look[1])
    rgb = mix(rgb, SNOW, 0.55 * style.snow * (0.4 + 0.6 * thing.look[2]))
    whole: Rect = (-half_l, -half_w, half_l, half_w)
    outline = corners(whole)
    parts = [whole]
    variant = thing.variant
    if variant == "ell":
        notch_x = -half_l + thing.length * (0.38 + 0.2 * thing.look[3])
        main: Rect = (-half_l, -half_w, half_l, 0.05 * half_w)
        wing: Rect = (-half_l, -half_w, notch_x, half_w)
        parts = [main, wing]
        outline = [
            (-half_l, -half_w),
            (half_l, -half_w),
            (half_l, main[3]),
            (notch_x, main[3]),
            (notch_x, half_w),
            (-half_l, half_w),
        ]
    for part in parts:
        canvas.cast(pose.put(corners(part)), thing.height, metal=1.0)
    if variant == "ell":
        if thing.height > 11.0:
            for part in parts:
                _flat_roof(canvas, style, thing, pose, part, rgb)
        else:
            _gables(canvas, style, pose, rgb, parts[0])
            _cross_gable(canvas, style, pose, rgb, parts[0], parts[1])
    elif variant == "gable":
        _gables(canvas, style, pose, rgb, whole)
    elif variant == "hip":
        _hip(canvas, style, pose, rgb, whole)
    elif variant in ("metal", "saw"):
        _sheet_roof(canvas, style, thing, pose, rgb)
    else:
        _flat_roof(canvas, style, thing, pose, whole, rgb)
    return outline


def _face(
    canvas: Canvas, style: Style, pose: Pose, points: Sequence[Point], rgb: Rgb, facing: Point, stripes: float
) -> None:
    """A roof face; its tile rows run along the eaves."""
    gx, gy = pose.facing(*facing)
    light = _lit(style, (gx, gy))
    along = math.atan2(gx, -gy)
    colour = scaled(rgb, light)
    canvas.fill(
        pose.put(points),
        Paint(colour, scaled(colour, 0.9), Material.ROOF, stripes=stripes, period_m=0.9, direction=along),
        BUILDING,
    )


def _gables(canvas: Canvas, style: Style, pose: Pose, rgb: Rgb, rect: Rect) -> None:
    x0, y0, x1, y1 = rect
    ridge = (y0 + y1) / 2.0
    _face(canvas, style, pose, [(x0, y0), (x1, y0), (x1, ridge), (x0, ridge)], rgb, (0.0, -1.0), 0.05)
    _face(canvas, style, pose, [(x0, ridge), (x1, ridge), (x1, y1), (x0, y1)], rgb, (0.0, 1.0), 0.05)
    line = plain(scaled(rgb, 1.14), Material.ROOF)
    canvas.fill(pose.put(corners((x0, ridge - 0.16, x1, ridge + 0.16))), line, BUILDING)


def _cross_gable(canvas: Canvas, style: Style, pose: Pose, rgb: Rgb, main: Rect, wing: Rect) -> None:
    """A wing that meets the main roof along two valleys (equal slopes)."""
    x0, _, x1, y1 = wing
    middle = (x0 + x1) / 2.0
    eave = main[3]
    top = max(eave - (x1 - x0) / 2.0, (main[1] + main[3]) / 2.0)
    _face(canvas, style, pose, [(middle, top), (middle, y1), (x0, y1), (x0, eave)], rgb, (-1.0, 0.0), 0.05)
    _face(canvas, style, pose, [(middle, top), (middle, y1), (x1, y1), (x1, eave)], rgb, (1.0, 0.0), 0.05)
    line = plain(scaled(rgb, 1.14), Material.ROOF)
    canvas.fill(pose.put(corners((middle - 0.16, top, middle + 0.16, y1))), line, BUILDING)


def _hip(canvas: Canvas, style: Style, pose: Pose, rgb: Rgb, rect: Rect) -> None:
    x0, y0, x1, y1 = rect
    half = (y1 - y0) / 2.0
    ridge = (y0 + y1) / 2.0
    left, right = x0 + min(half, (x1 - x0) * 0.45), x1 - min(half, (x1 - x0) * 0.45)
    _face(canvas, style, pose, [(x0, y0), (x1, y0), (right, ridge), (left, ridge)], rgb, (0.0, -1.0), 0.05)
    _face(canvas, style, pose, [(x0, y1), (x1, y1), (right, ridge), (left, ridge)], rgb, (0.0, 1.0), 0.05)
    _face(canvas, style, pose, [(x0, y0), (left, ridge), (x0, y1)], rgb, (-1.0, 0.0), 0.05)
    _face(canvas, style, pose, [(x1, y0), (right, ridge), (x1, y1)], rgb, (1.0, 0.0), 0.05)


def _flat_roof(canvas: Canvas, style: Style, thing: Thing, pose: Pose, rect: Rect, rgb: Rgb) -> None:
    """Parapet, roof surface, and the boxes that stand on it with their own small shadows."""
    x0, y0, x1, y1 = rect
    canvas.fill(pose.put(corners(rect)), plain(scaled(rgb, 1.16), Material.ROOF), BUILDING)
    rim = max(0.45, 0.7 * canvas.gsd_m)
    inner = corners((x0 + rim, y0 + rim, x1 - rim, y1 - rim))
    canvas.fill(pose.put(inner), Paint(scaled(rgb, 0.94), scaled(rgb, 0.82), Material.ROOF), BUILDING)
    wide, deep = x1 - x0 - 3.0, y1 - y0 - 3.0
    if wide < 4.0 or deep < 3.0:
        return
    count = min(int(1.5 + wide * deep / 140.0), 7)
    # The sun in the building's own frame; boxes stand about 1.4 m high.
    drop = -1.4 * style.shadow_per_m
    sx = drop * (style.to_sun[0] * pose.cos + style.to_sun[1] * pose.sin)
    sy = drop * (style.to_sun[1] * pose.cos - style.to_sun[0] * pose.sin)
    for i in range(count):
        a, b = (thing.look[3] * (13.7 + i * 7.9)) % 1.0, (thing.look[4] * (11.3 + i * 5.7)) % 1.0
        cx, cy = x0 + 1.5 + wide * a, y0 + 1.5 + deep * b
        size = 0.9 + 1.6 * ((a * 7.0 + b * 3.0) % 1.0)
        high = size * (0.6 + 0.8 * ((a * 3.0 + b * 5.0) % 1.0))
        left, right = max(x0, cx - size), min(x1, cx + size)
        low, top = max(y0, cy - high), min(y1, cy + high)
        # What the shadow overshoots falls off the roof.
        across = [min(max(x + sx, x0 + 0.2), x1 - 0.2) for x in (left, right)]
        down = [min(max(y + sy, y0 + 0.2), y1 - 0.2) for y in (low, top)]
        if across[1] > across[0] and down[1] > down[0]:
            shadow = pose.put(corners((across[0], down[0], across[1], down[1])))
            canvas.fill(shadow, plain(scaled(rgb, 0.5), Material.ROOF), BUILDING)
        lit = plain(mix(scaled(rgb, 1.1), WHITE, 0.35 * b), Material.METAL, 4.0)
        canvas.fill(pose.put(corners((left, low, right, top))), lit, BUILDING)


def _sheet_roof(canvas: Canvas, style: Style, thing: Thing, pose: Pose, rgb: Rgb) -> None:
    """Corrugated sheet with panels; saw-tooth roofs alternate light and dark strips, others carry skylights."""
    half_l, half_w = thing.length / 2.0, thing.width / 2.0
    if thing.variant == "saw":
        teeth = max(2, int(thing.length / 7.0))
        for i in range(teeth):
            x0, x1 = -half_l + thing.length * i / teeth, -half_l + thing.length * (i + 1) / teeth
            cut = x0 + (x1 - x0) * 0.72
            _face(canvas, style, pose, corners((x0, -half_w, cut, half_w)), rgb, (-0.6, 0.0), 0.0)
            glass = mix(scaled(rgb, 0.62), (70, 92, 112), 0.5)
            _face(canvas, style, pose, corners((cut, -half_w, x1, half_w)), glass, (0.9, 0.0), 0.0)
        return
    for side in (-1.0, 1.0):
        light = _lit(style, pose.facing(0.0, side), 0.16)
        colour = scaled(rgb, light)
        across = pose.angle + math.pi / 2.0
        paint = Paint(colour, scaled(colour, 0.9), Material.METAL, stripes=0.045, period_m=2.4, direction=across)
        canvas.fill(
            pose.put(corners((-half_l, min(0.0, side * half_w), half_l, max(0.0, side * half_w)))), paint, BUILDING
        )
    lights = int(thing.length / 9.0)
    if thing.look[2] < 0.6:
        pane = plain(mix(rgb, (206, 216, 220), 0.5), Material.METAL)
        for i in range(lights):
            x = -half_l + (i + 0.5) * thing.length / lights
            for y in (-0.55 * half_w, 0.55 * half_w):
                canvas.fill(pose.put(corners((x - 0.6, y - 0.22 * half_w, x + 0.6, y + 0.22 * half_w))), pane, BUILDING)


def circle(radius: float, points: int) -> list[Point]:
    """A local circle as a polygon."""
    return [
        (radius * math.cos(2.0 * math.pi * i / points), radius * math.sin(2.0 * math.pi * i / points))
        for i in range(points)
    ]


def draw_tank(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> list[Point]:
    """Draw a storage tank: cone or dome roofs are shaded round, floating roofs lie inside a rim."""
    radius = thing.length / 2.0
    tones: tuple[Rgb, ...] = ((214, 212, 204), (190, 190, 186), (168, 160, 146), (150, 98, 74), (120, 134, 126))
    group_tone = tones[
        int(thing.look[0] * 0.999 * len(tones)) if thing.look[1] > 0.75 else int(style.land.lushness * 2.99)
    ]
    rgb = mix(group_tone, SNOW, 0.3 * style.snow)
    outline = circle(radius, 24)
    ground = pose.put(outline)
    canvas.cast(ground, thing.height, metal=1.2)
    canvas.fill(ground, plain(scaled(rgb, 1.06), Material.METAL), TANK)
    rim = max(0.35, 0.45 * canvas.gsd_m)
    if thing.variant == "floating":
        canvas.fill(pose.put(circle(radius - rim, 24)), plain(scaled(rgb, 0.5), Material.METAL), TANK)
        lift = min(0.3 * radius, 2.2)
        x, y = thing.x - style.to_sun[0] * lift, thing.y - style.to_sun[1] * lift
        inner = Pose(x + style.to_sun[0] * lift * 0.2, y + style.to_sun[1] * lift * 0.2, thing.angle)
        canvas.fill(inner.put(circle(radius - rim - 0.8 * lift, 24)), plain(scaled(rgb, 0.86), Material.METAL), TANK)
        return outline
    steep = 0.16 if thing.variant == "cone" else 0.3
    wedges = 12
    edge = circle(radius - rim, wedges)
    for i in range(wedges):
        a, b = edge[i], edge[(i + 1) % wedges]
        middle = math.hypot(a[0] + b[0], a[1] + b[1]) or 1.0
        light = _lit(style, pose.facing((a[0] + b[0]) / middle, (a[1] + b[1]) / middle), steep)
        canvas.fill(pose.put([(0.0, 0.0), a, b]), plain(scaled(rgb, light * 0.97), Material.METAL), TANK)
    if thing.variant == "dome":
        canvas.fill(pose.put(circle(radius * 0.45, 12)), plain(scaled(rgb, 1.05), Material.METAL), TANK)
    else:
        canvas.fill(pose.put(circle(max(0.5, radius * 0.08), 8)), plain(scaled(rgb, 0.7), Material.METAL), TANK)
        walk = corners((0.0, -0.3, radius - rim, 0.3))
        canvas.fill(pose.put(walk), plain(scaled(rgb, 0.78), Material.METAL), TANK)
    return outline


_COURT_TONES: dict[str, tuple[tuple[Rgb, Rgb], ...]] = {
    "tennis": (
        ((62, 104, 140), (78, 116, 84)),
        ((166, 92, 64), (158, 86, 60)),
        ((70, 112, 80), (150, 84, 66)),
        ((66, 92, 130), (60, 86, 120)),
    ),
    "basketball": (((150, 86, 66), (88, 116, 96)), ((112, 112, 112), (104, 104, 104)), ((70, 100, 132), (150, 96, 70))),
    "volleyball": (((206, 186, 144), (200, 180, 140)), ((176, 120, 72), (84, 120, 108))),
}


def draw_court(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> list[Point]:
    """Draw a sports court or pitch with its lines."""
    half_l, half_w = thing.length / 2.0, thing.width / 2.0
    outline = corners((-half_l, -half_w, half_l, half_w))
    white = plain(WHITE, Material.MARK)
    wide = max(0.12, 0.42 * canvas.gsd_m) / 2.0

    def line(x0: float, y0: float, x1: float, y1: float) -> None:
        rect = (min(x0, x1) - wide, min(y0, y1) - wide, max(x0, x1) + wide, max(y0, y1) + wide)
        canvas.fill(pose.put(corners(rect)), white, COURT)

    def box(x0: float, y0: float, x1: float, y1: float) -> None:
        for ends in ((x0, y0, x1, y0), (x0, y1, x1, y1), (x0, y0, x0, y1), (x1, y0, x1, y1)):
            line(*ends)

    def ring(x: float, y: float, radius: float, turf: Paint) -> None:
        canvas.fill(pose.put([(x + a, y + b) for a, b in circle(radius + wide, 20)]), white, COURT)
        canvas.fill(pose.put([(x + a, y + b) for a, b in circle(radius - wide, 20)]), turf, COURT)

    if thing.variant in ("pitch", "football"):
        rgb = mix(scaled((88, 122, 66), 0.9 + 0.2 * thing.look[0]), style.grass, 0.6)
        rgb = mix(rgb, SNOW, 0.4 * style.snow)
        turf = Paint(rgb, rgb, Material.TURF, stripes=0.07, period_m=9.0, direction=pose.angle + math.pi / 2.0)
        canvas.fill(pose.put(outline), turf, COURT)
        x, y = half_l - 2.0, half_w - 2.0
        ring(0.0, 0.0, min(9.15, 0.28 * half_w * 2.0), turf)
        box(-x, -y, x, y)
        line(0.0, -y, 0.0, y)
        deep, high = min(16.5, 0.3 * half_l), min(20.0, 0.6 * half_w)
        box(-x, -high, -x + deep, high)
        box(x - deep, -high, x, high)
        return outline
    tones = _COURT_TONES[thing.variant]
    inner, outer = tones[int(thing.look[0] * len(tones))]
    inner, outer = scaled(inner, 0.85 + 0.25 * thing.look[1]), scaled(outer, 0.85 + 0.25 * thing.look[1])
    canvas.fill(pose.put(outline), plain(outer, Material.TURF), COURT)
    share = {"tennis": (0.70, 0.65), "basketball": (0.93, 0.88), "volleyball": (0.82, 0.70)}[thing.variant]
    x, y = half_l * share[0], half_w * share[1]
    play = plain(inner, Material.TURF)
    canvas.fill(pose.put(corners((-x, -y, x, y))), play, COURT)
    if thing.variant == "tennis":
        single = y * 0.75
        for side in (-single, single):
            line(-x, side, x, side)
        for end in (-0.54 * x, 0.54 * x):
            line(end, -single, end, single)
        line(-0.54 * x, 0.0, 0.54 * x, 0.0)
    elif thing.variant == "basketball":
        ring(0.0, 0.0, 1.8, play)
        for end in (-1.0, 1.0):
            ring(end * x * 0.62, 0.0, 1.8, play)
            box(min(end * x, end * x * 0.62), -2.4, max(end * x, end * x * 0.62), 2.4)
    box(-x, -y, x, y)
    line(0.0, -y, 0.0, y)
    return outline


def draw_tree(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> None:
    """Draw one crown: dark side, body, lit side."""
    radius = thing.length / 2.0
    paint = surface_paint(style, "canopy", thing.look[0], 0.0)._replace(material=Material.CROP, decibel=4.5)
    bumpy = [r * (0.86 + 0.28 * thing.look[i % 6]) for i, r in enumerate([radius] * 9)]
    ground = [
        (thing.x + r * math.cos(0.698 * i + pose.angle), thing.y + r * math.sin(0.698 * i + pose.angle))
        for i, r in enumerate(bumpy)
    ]
    canvas.cast(ground, thing.height, copies=3)
    canvas.fill(ground, paint._replace(rgb=scaled(paint.rgb, 0.74), rgb2=scaled(paint.rgb2, 0.8)), FOREST)
    sx, sy = style.to_sun
    for reach, size, light in ((0.16, 0.74, 1.0), (0.34, 0.4, 1.22)):
        x, y = thing.x + sx * radius * reach, thing.y + sy * radius * reach
        canvas.disc(
            x, y, radius * size, paint._replace(rgb=scaled(paint.rgb, light), rgb2=scaled(paint.rgb2, light)), FOREST
        )


_BOXES: tuple[Rgb, ...] = ((150, 66, 54), (62, 92, 132), (96, 120, 86), (178, 122, 66), (150, 148, 142), (108, 74, 66))


def draw_extra(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> None:
    """Draw what has no class of its own: containers, cranes, pipes."""
    half_l, half_w = thing.length / 2.0, thing.width / 2.0
    rect = corners((-half_l, -half_w, half_l, half_w))
    if thing.kind == "container":
        rgb = scaled(_BOXES[int(thing.look[0] * len(_BOXES))], 0.85 + 0.3 * thing.look[1])
        canvas.cast(pose.put(rect), thing.height, metal=0.7)
        across = pose.angle + math.pi / 2.0
        canvas.fill(pose.put(rect), Paint(rgb, rgb, Material.METAL, 0.06, 1.2, across), BACKGROUND)
    elif thing.kind == "pipe":
        canvas.cast(pose.put(rect), thing.height)
        canvas.fill(pose.put(rect), plain((170, 168, 162), Material.METAL, 4.0), BACKGROUND)
    else:
        rgb = _BOXES[int(thing.look[0] * 4.0)]
        for y in (-half_w, half_w):
            bar = corners((-half_l * 0.7, y - 0.6, half_l, y + 0.6))
            canvas.cast(pose.put(bar), thing.height, copies=1)
            canvas.fill(pose.put(bar), plain(rgb, Material.METAL, 5.0), BACKGROUND)
        for x in (-half_l * 0.7, 0.1 * half_l):
            bar = corners((x - 0.7, -half_w, x + 0.7, half_w))
            canvas.fill(pose.put(bar), plain(scaled(rgb, 0.85), Material.METAL, 5.0), BACKGROUND)
        for x in (-half_l * 0.7, 0.0, half_l):
            gx, gy = pose.put([(x, 0.0)])[0]
            canvas.glints.append(Glint(gx, gy, 8.0))


assert {name for name, _, _ in COURTS} == {*_COURT_TONES, "pitch", "football"}
