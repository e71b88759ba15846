"""How ships, aircraft and vehicles are drawn."""

from __future__ import annotations

import math

from vitp.demo.canvas import Canvas, Glint, Pose
from vitp.demo.classes import AIRCRAFT, SHIP, VEHICLE, WATER
from vitp.demo.site import Point, Thing
from vitp.demo.structures import corners
from vitp.demo.style import Material, Paint, Rgb, Style, mix, plain, scaled
from vitp.demo.surfaces import WHITE, surface_paint

_HULLS: tuple[Rgb, ...] = ((136, 62, 52), (58, 66, 84), (72, 72, 72), (92, 104, 96), (168, 164, 156), (44, 70, 104))
_CARGO: tuple[Rgb, ...] = (
    (150, 70, 56),
    (64, 92, 130),
    (100, 120, 88),
    (172, 124, 72),
    (152, 150, 146),
    (196, 190, 176),
)
_CARS: tuple[Rgb, ...] = (
    (222, 222, 220),
    (196, 196, 194),
    (150, 152, 154),
    (98, 100, 104),
    (52, 54, 58),
    (38, 40, 44),
    (140, 54, 48),
    (58, 76, 112),
    (112, 98, 82),
    (86, 102, 88),
    (176, 166, 144),
)


def _mirrored(half: list[Point]) -> list[Point]:
    """A closed outline from its half with y >= 0, listed nose to tail."""
    return half + [(x, -y) for x, y in reversed(half) if y > 0.0]


def draw_ship(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> list[Point]:
    """Draw a vessel by its kind; a kind ending in ``+`` is under way and draws a wake. Returns the hull's local outline."""
    kind, moving = thing.variant.rstrip("+"), thing.variant.endswith("+")
    length, width = thing.length, thing.width
    hl, hw = length / 2.0, width / 2.0
    if kind == "barge":
        half = [(hl, 0.45 * hw), (0.94 * hl, hw), (-0.97 * hl, hw), (-hl, 0.8 * hw)]
    elif kind == "boat":
        half = [(hl, 0.0), (0.66 * hl, 0.52 * hw), (0.2 * hl, 0.94 * hw), (-0.4 * hl, hw), (-hl, 0.86 * hw)]
    else:
        half = [
            (hl, 0.0),
            (0.9 * hl, 0.42 * hw),
            (0.68 * hl, 0.88 * hw),
            (0.5 * hl, hw),
            (-0.84 * hl, hw),
            (-hl, 0.7 * hw),
        ]
    outline = _mirrored(half)
    if moving:
        _wake(canvas, style, pose, length, width)
    white_hull = kind == "boat" or (kind in ("fishing", "tug") and thing.look[3] < 0.5)
    hull = WHITE if white_hull else _HULLS[int(thing.look[0] * len(_HULLS))]
    hull = scaled(hull, 0.85 + 0.2 * thing.look[1])
    canvas.cast(pose.put(outline), thing.height * 0.5, metal=2.0)
    canvas.fill(pose.put(outline), plain(hull, Material.BODY, 4.0), SHIP)
    deck = mix(scaled(hull, 0.8), ((150, 92, 70), (104, 112, 104), (150, 144, 132))[int(thing.look[2] * 3.0)], 0.75)
    rim = max(0.35 if length < 25.0 else 0.9, 0.5 * canvas.gsd_m)
    inner = [(x * (hl - 1.6 * rim) / hl, math.copysign(max(abs(y) - rim, 0.0), y)) for x, y in outline]
    if min(hw - rim, hl - rim) > 0.3:
        canvas.fill(pose.put(inner), plain(deck, Material.BODY), SHIP)
    _superstructure(canvas, style, thing, pose, kind)
    for share in (-0.8, -0.3, 0.25, 0.75):
        gx, gy = pose.put([(share * hl, hw * (thing.look[4] - 0.5))])[0]
        canvas.glints.append(Glint(gx, gy, (3.0 if length < 18.0 else 9.0) * (0.3 + thing.look[5])))
    return outline


def _block(
    canvas: Canvas, style: Style, pose: Pose, rect: tuple[float, float, float, float], rgb: Rgb, drop: float
) -> None:
    """A raised block on a deck and the shadow it throws there."""
    ground = pose.put(corners(rect))
    dx, dy = -style.to_sun[0] * drop, -style.to_sun[1] * drop
    canvas.fill([(x + dx, y + dy) for x, y in ground], plain(scaled(rgb, 0.38), Material.BODY, -6.0), SHIP)
    canvas.fill(ground, plain(rgb, Material.BODY, 3.0), SHIP)


def _superstructure(canvas: Canvas, style: Style, thing: Thing, pose: Pose, kind: str) -> None:
    hl, hw = thing.length / 2.0, thing.width / 2.0
    look = thing.look
    light = scaled((226, 224, 218), 0.9 + 0.1 * look[1])
    if kind == "boat":
        glass = (64, 76, 88)
        canvas.fill(pose.put(corners((-0.3 * hl, -0.6 * hw, 0.22 * hl, 0.6 * hw))), plain(glass, Material.GLASS), SHIP)
        canvas.fill(pose.put(corners((-0.26 * hl, -0.5 * hw, 0.05 * hl, 0.5 * hw))), plain(light, Material.BODY), SHIP)
        cockpit = mix((150, 112, 76), (92, 92, 92), look[4])
        canvas.fill(
            pose.put(corners((-0.88 * hl, -0.6 * hw, -0.4 * hl, 0.6 * hw))), plain(cockpit, Material.BODY), SHIP
        )
        return
    if kind in ("fishing", "tug"):
        at = 0.25 if kind == "fishing" else 0.1
        _block(canvas, style, pose, ((at - 0.2) * hl, -0.6 * hw, (at + 0.2) * hl, 0.6 * hw), light, 0.9)
        pole = corners((-0.8 * hl, -0.06 * hw, at * hl, 0.06 * hw))
        canvas.fill(pose.put(pole), plain((84, 74, 64), Material.BODY), SHIP)
        return
    _block(canvas, style, pose, (-0.9 * hl, -0.78 * hw, -0.72 * hl, 0.78 * hw), light, 2.2)
    _block(canvas, style, pose, (-0.86 * hl, -0.2 * hw, -0.8 * hl, 0.2 * hw), (120, 60, 50), 0.6)
    if kind == "tanker":
        canvas.fill(
            pose.put(corners((-0.66 * hl, -0.08 * hw, 0.74 * hl, 0.08 * hw))),
            plain((176, 170, 158), Material.BODY),
            SHIP,
        )
        for i in range(5):
            x = (-0.5 + 0.24 * i) * hl
            canvas.fill(
                pose.put(corners((x - 0.4, -0.75 * hw, x + 0.4, 0.75 * hw))), plain((150, 120, 96), Material.BODY), SHIP
            )
        return
    bays = max(3, int(thing.length * 0.62 / (7.0 if kind == "container" else 16.0)))
    for i in range(bays):
        x0 = -0.66 * hl + 1.34 * hl * i / bays
        x1 = x0 + 1.34 * hl / bays * 0.86
        if kind != "container":
            rgb = mix((128, 118, 104), (110, 74, 60), look[5])
            _block(canvas, style, pose, (x0, -0.62 * hw, x1, 0.62 * hw), scaled(rgb, 0.9 + 0.15 * (i % 2)), 0.5)
            continue
        rows = max(2, int(thing.width / 2.6))
        for j in range(rows):
            y0 = -0.84 * hw + 1.68 * hw * j / rows
            tone = _CARGO[int((look[4] * 31.0 + i * 2.63 + j * 1.87) * 7.0) % len(_CARGO)]
            canvas.fill(pose.put(corners((x0, y0, x1, y0 + 1.6 * hw / rows))), plain(tone, Material.BODY, 2.0), SHIP)


def _wake(canvas: Canvas, style: Style, pose: Pose, length: float, width: float) -> None:
    """Churned water astern and the two bow waves."""
    foam = surface_paint(style, "surf", 0.5, 0.0)
    soft = foam._replace(rgb=mix(foam.rgb, style.land.water, 0.62), rgb2=mix(foam.rgb, style.land.water, 0.8))
    hl, hw = length / 2.0, width / 2.0
    for reach, spread, paint in (
        (1.7, 1.25, soft),
        (
            0.7,
            0.8,
            foam._replace(rgb=mix(foam.rgb, style.land.water, 0.35), rgb2=mix(foam.rgb, style.land.water, 0.55)),
        ),
    ):
        trail = [(-0.9 * hl, 0.8 * hw), (-hl - reach * length * 0.5, spread * hw), (-hl - reach * length, 0.4 * hw)]
        canvas.fill(pose.put([*trail, *((x, -y) for x, y in reversed(trail))]), paint, WATER)
    for side in (-1.0, 1.0):
        arm = [
            (0.75 * hl, 0.6 * side * hw),
            (-1.7 * hl, side * (2.6 * hw + 0.1 * length)),
            (-1.9 * hl, side * (2.2 * hw + 0.1 * length)),
        ]
        canvas.fill(pose.put(arm), soft, WATER)


# Outlines of one half, nose to tail, as shares of (length, half span).
_JET: list[Point] = [
    (0.5, 0.0),
    (0.485, 0.028),
    (0.45, 0.062),
    (0.40, 0.085),
    (0.17, 0.09),
    (-0.075, 0.98),
    (-0.125, 1.0),
    (-0.06, 0.36),
    (-0.05, 0.088),
    (-0.30, 0.075),
    (-0.365, 0.06),
    (-0.465, 0.37),
    (-0.505, 0.375),
    (-0.455, 0.05),
    (-0.5, 0.02),
]
_PROP: list[Point] = [
    (0.5, 0.0),
    (0.47, 0.06),
    (0.36, 0.09),
    (0.22, 0.095),
    (0.225, 0.96),
    (0.19, 1.0),
    (0.05, 0.97),
    (0.035, 0.09),
    (-0.34, 0.045),
    (-0.36, 0.31),
    (-0.47, 0.32),
    (-0.485, 0.02),
]


def draw_aircraft(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> list[Point]:
    """Draw an aeroplane; returns its local outline (fuselage, wings and tailplane in one)."""
    length, half_span = thing.length, thing.width / 2.0
    straight = thing.variant == "prop"
    shape = _PROP if straight else _JET
    outline = [(x * length, y * half_span) for x, y in _mirrored(shape)]
    body = scaled((226, 226, 224), 0.86 + 0.16 * thing.look[0])
    if thing.look[1] < 0.22:
        body = mix(body, (140, 146, 150), 0.6)
    livery = _CARGO[int(thing.look[2] * len(_CARGO))]
    canvas.cast(pose.put(outline), max(1.2, thing.height * 0.55), copies=1)
    engine = plain(scaled(body, 0.62), Material.BODY)
    if not straight:
        spots = {"jet": (0.33,), "jet4": (0.3, 0.58)}.get(thing.variant, ())
        for share in spots:
            for side in (-1.0, 1.0):
                x, y = (0.15 - 0.27 * share) * length, side * share * half_span
                r = 0.022 * length
                canvas.fill(pose.put(corners((x, y - r, x + 0.095 * length, y + r))), engine, AIRCRAFT)
        if thing.variant == "regional":
            for side in (-1.0, 1.0):
                y = side * 0.17 * half_span
                canvas.fill(
                    pose.put(corners((-0.36 * length, y - 0.03 * length, -0.22 * length, y + 0.03 * length))),
                    engine,
                    AIRCRAFT,
                )
    wing = plain(scaled(body, 0.87), Material.BODY)
    canvas.fill(pose.put(outline), wing, AIRCRAFT)
    thick = (0.085 if not straight else 0.09) * half_span
    hull = [(0.495, 0.0), (0.47, 0.5), (0.42, 0.9), (0.2, 1.0), (-0.25, 0.95), (-0.42, 0.5), (-0.495, 0.12)]
    fuselage = [(x * length, y * thick) for x, y in _mirrored(hull)]
    canvas.fill(pose.put(fuselage), plain(scaled(body, 1.06), Material.BODY, 2.0), AIRCRAFT)
    sunny = 1.0 if pose.facing(0.0, 1.0)[0] * style.to_sun[0] + pose.facing(0.0, 1.0)[1] * style.to_sun[1] > 0 else -1.0
    dull = [
        (0.4 * length, -sunny * thick * 0.45),
        (-0.3 * length, -sunny * thick * 0.4),
        (-0.3 * length, -sunny * thick),
        (0.4 * length, -sunny * thick),
    ]
    canvas.fill(pose.put(dull), plain(scaled(body, 0.8), Material.BODY), AIRCRAFT)
    fin = max(0.012 * length, 0.35 * canvas.gsd_m)
    canvas.fill(pose.put(corners((-0.49 * length, -fin, -0.36 * length, fin))), plain(livery, Material.BODY), AIRCRAFT)
    window = (
        corners((0.44 * length, -0.45 * thick, 0.462 * length, 0.45 * thick))
        if not straight
        else corners((0.17 * length, -0.7 * thick, 0.24 * length, 0.7 * thick))
    )
    canvas.fill(pose.put(window), plain((58, 66, 76), Material.GLASS), AIRCRAFT)
    for x, y, strength in ((0.0, 0.35, 8.0), (0.0, -0.35, 8.0), (-0.42, 0.0, 10.0), (0.2, 0.0, 6.0), (0.42, 0.0, 4.0)):
        gx, gy = pose.put([(x * length, y * half_span)])[0]
        canvas.glints.append(Glint(gx, gy, strength * (0.4 + thing.look[3])))
    return outline


def draw_vehicle(canvas: Canvas, style: Style, thing: Thing, pose: Pose) -> list[Point]:
    """Draw a car, van, truck or bus; returns its local outline."""
    hl, hw = thing.length / 2.0, thing.width / 2.0
    rgb = scaled(_CARS[int(thing.look[0] * len(_CARS))], 0.9 + 0.18 * thing.look[1])
    body = [
        (hl, -0.62 * hw),
        (hl, 0.62 * hw),
        (0.88 * hl, hw),
        (-0.92 * hl, hw),
        (-hl, 0.72 * hw),
        (-hl, -0.72 * hw),
        (-0.92 * hl, -hw),
        (0.88 * hl, -hw),
    ]
    outline = body if thing.variant in ("car", "van") else corners((-hl, -hw, hl, hw))
    canvas.cast(pose.put(corners((-hl, -hw, hl, hw))), thing.height, metal=0.8)
    glass = plain((46, 52, 60), Material.GLASS)
    if thing.variant == "truck":
        cab = plain(rgb, Material.BODY)
        load = (214, 212, 206) if thing.look[2] < 0.6 else _CARGO[int(thing.look[3] * len(_CARGO))]
        canvas.fill(pose.put(outline), plain((62, 62, 64), Material.BODY), VEHICLE)
        canvas.fill(pose.put(corners((hl - 2.2, -hw, hl - 0.25, hw))), cab, VEHICLE)
        canvas.fill(pose.put(corners((hl - 0.5, -0.85 * hw, hl - 0.12, 0.85 * hw))), glass, VEHICLE)
        canvas.fill(pose.put(corners((-hl, -hw, hl - 2.7, hw))), Paint(load, scaled(load, 0.9), Material.BODY), VEHICLE)
    elif thing.variant == "bus":
        tone = mix(rgb, _CARGO[int(thing.look[3] * len(_CARGO))], 0.5)
        canvas.fill(pose.put(outline), plain(tone, Material.BODY), VEHICLE)
        for x in (-0.5 * hl, 0.1 * hl):
            canvas.fill(
                pose.put(corners((x, -0.4 * hw, x + 1.6, 0.4 * hw))), plain(scaled(tone, 0.72), Material.BODY), VEHICLE
            )
        canvas.fill(pose.put(corners((hl - 0.6, -0.85 * hw, hl - 0.1, 0.85 * hw))), glass, VEHICLE)
    else:
        canvas.fill(pose.put(outline), plain(rgb, Material.BODY), VEHICLE)
        if canvas.gsd_m <= 0.8:
            rear = -0.86 * hl if thing.variant == "van" else -0.62 * hl
            cabin = [(0.42 * hl, -0.8 * hw), (0.42 * hl, 0.8 * hw), (rear, 0.8 * hw), (rear, -0.8 * hw)]
            canvas.fill(pose.put(cabin), glass, VEHICLE)
            roof = corners((rear + 0.18 * hl, -0.72 * hw, 0.12 * hl, 0.72 * hw))
            canvas.fill(pose.put(roof), plain(scaled(rgb, 1.08), Material.BODY), VEHICLE)
    gx, gy = pose.x, pose.y
    canvas.glints.append(Glint(gx, gy, (1.2 if thing.length < 6.0 else 4.0) * (0.3 + thing.look[4])))
    return outline
