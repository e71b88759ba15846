"""The scene graph and the ground plan it is laid out on.

Layouts think in a straight plan (u, v) in metres; `Site` bends and turns it onto the ground (x right, y down, metres, origin
in the image centre), so that streets curve and neighbours keep their distances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from vitp.demo.classes import ROAD
from vitp.demo.keys import Dice
from vitp.demo.surfaces import Surface

Point = tuple[float, float]
Kind = Literal["building", "ship", "aircraft", "vehicle", "tank", "court", "tree", "container", "crane", "pipe"]

# Drawing order of the flat patches.
COVER, WOODS, SHORE, BASE, ROADWAY, MARKS = range(6)
_STEP_M = 9.0  # a curved edge becomes chords of about this length


class Patch(NamedTuple):
    """A flat area: its outline on the ground in metres and the class it carries in the mask."""

    surface: Surface
    label: int
    outline: list[Point]
    look: float
    direction: float  # of its stripes, radians
    raised_m: float  # canopies throw shadows
    group: int


class Thing(NamedTuple):
    """An object: centre and size in metres, angle in radians (clockwise with y down), `look` numbers for its appearance."""

    kind: Kind
    variant: str
    x: float
    y: float
    angle: float
    length: float
    width: float
    height: float
    look: tuple[float, ...]
    presence: float  # probability to be there on a given date
    group: int


class Graph(NamedTuple):
    """Everything there is in a scene, before it is drawn."""

    patches: tuple[tuple[Patch, ...], ...]  # by drawing order
    things: tuple[Thing, ...]
    groups: int  # structures that may come and go: ids 1..groups


class Site:
    """A plan being filled."""

    def __init__(self, dice: Dice, extent_m: float, gsd_m: float, bend: float = 1.0) -> None:
        self.dice = dice
        self.half = extent_m / 2.0
        self.gsd_m = gsd_m
        self.reach = extent_m * 0.75 + 6.0  # the plan square that covers the image at any turn
        self.patches: list[list[Patch]] = [[] for _ in range(6)]
        self.things: list[Thing] = []
        self.groups = 0
        self.water: list[Callable[[float, float], float]] = []  # metres inside the water, negative on land
        self.corridors: list[tuple[Point, Point, float]] = []  # roads that trees and ships keep off: ends, half width
        self.turn = dice.between(-math.pi, math.pi)
        self._cos, self._sin = math.cos(self.turn), math.sin(self.turn)
        wave = dice.between(140.0, 320.0)
        # A slope below 0.2 keeps lots from overlapping; half of the sites are straight, as towns are.
        bent = bend * dice.between(0.06, 0.2) if dice.chance(0.5) else 0.0
        self._k = 2.0 * math.pi / wave
        self._amp = bent / self._k
        self._phase = dice.between(0.0, 2.0 * math.pi)

    def at(self, u: float, v: float) -> Point:
        """Plan to ground."""
        v += self._amp * math.sin(self._k * u + self._phase)
        return (u * self._cos - v * self._sin, u * self._sin + v * self._cos)

    def plan(self, x: float, y: float) -> Point:
        """Ground to plan, the inverse of `at`."""
        u, v = x * self._cos + y * self._sin, y * self._cos - x * self._sin
        return (u, v - self._amp * math.sin(self._k * u + self._phase))

    def heading(self, u: float) -> float:
        """Direction on the ground of the plan's u axis."""
        return self.turn + math.atan(self._amp * self._k * math.cos(self._k * u + self._phase))

    def seen(self, u: float, v: float, radius: float) -> bool:
        """Whether something of this radius at (u, v) can touch the image."""
        x, y = self.at(u, v)
        edge = self.half + radius
        return -edge < x < edge and -edge < y < edge

    def passes(self, plan: Sequence[Point], width: float) -> bool:
        """Whether a plan polyline of this width can cross the image (a circle round it, to be quick)."""
        limit = 1.4143 * self.half + width + self._amp
        for (ua, va), (ub, vb) in itertools.pairwise(plan):
            du, dv = ub - ua, vb - va
            share = min(1.0, max(0.0, -(ua * du + va * dv) / (du * du + dv * dv or 1.0)))
            if math.hypot(ua + share * du, va + share * dv) < limit:
                return True
        return False

    def wet(self, u: float, v: float) -> float:
        """Metres inside the nearest water; negative on land."""
        return max((body(u, v) for body in self.water), default=-1e9)

    def dry(self, u: float, v: float, radius: float) -> bool:
        """Whether a disc on the plan is clear of water."""
        return all(body(u, v) < -radius for body in self.water)

    def open(self, u: float, v: float, radius: float) -> bool:
        """Whether a disc on the plan is clear of water and of the registered roads."""
        return self.dry(u, v, radius) and self.off_road(u, v, radius)

    def off_road(self, u: float, v: float, radius: float) -> bool:
        """Whether a disc on the plan is clear of the registered roads."""
        for (ua, va), (ub, vb), half in self.corridors:
            du, dv = ub - ua, vb - va
            share = min(1.0, max(0.0, ((u - ua) * du + (v - va) * dv) / (du * du + dv * dv)))
            if math.hypot(u - ua - share * du, v - va - share * dv) < half + radius:
                return False
        return True

    def group(self) -> int:
        """A new structure that may come or go between two dates."""
        self.groups += 1
        return self.groups

    def trace(self, plan: Sequence[Point], closed: bool) -> list[Point]:
        """A plan polyline on the ground, with chords short enough for the bend."""
        if self._amp == 0.0:
            return [self.at(u, v) for u, v in plan]
        ground: list[Point] = []
        count = len(plan) if closed else len(plan) - 1
        for i in range(count):
            (u0, v0), (u1, v1) = plan[i], plan[(i + 1) % len(plan)]
            pieces = max(1, int(abs(u1 - u0) / _STEP_M))
            for j in range(pieces):
                ground.append(self.at(u0 + (u1 - u0) * j / pieces, v0 + (v1 - v0) * j / pieces))
        if not closed:
            ground.append(self.at(*plan[-1]))
        return ground

    def patch(
        self,
        level: int,
        surface: Surface,
        label: int,
        plan: Sequence[Point],
        direction: float = 0.0,
        raised_m: float = 0.0,
        group: int = 0,
    ) -> None:
        """Lay an area down; `direction` is relative to the plan."""
        look = self.dice.unit()
        outline = self.trace(plan, closed=True)
        edge = self.half + raised_m * 2.0
        xs = [x for x, _ in outline]
        ys = [y for _, y in outline]
        if max(xs) < -edge or min(xs) > edge or max(ys) < -edge or min(ys) > edge:
            return
        self.patches[level].append(Patch(surface, label, outline, look, self.turn + direction, raised_m, group))

    def rect(
        self, level: int, surface: Surface, label: int, box: tuple[float, float, float, float], group: int = 0
    ) -> None:
        """An axis-aligned plan rectangle (u0, v0, u1, v1)."""
        u0, v0, u1, v1 = box
        self.patch(level, surface, label, ((u0, v0), (u1, v0), (u1, v1), (u0, v1)), group=group)

    def band(
        self, level: int, surface: Surface, label: int, plan: Sequence[Point], width: float, group: int = 0
    ) -> None:
        """A strip of constant width along a plan polyline."""
        look = self.dice.unit()
        line = self.trace(plan, closed=False)
        outline = strip(line, width)
        edge = self.half
        if all(x < -edge for x, _ in outline) or all(x > edge for x, _ in outline):
            return
        if all(y < -edge for _, y in outline) or all(y > edge for _, y in outline):
            return
        self.patches[level].append(Patch(surface, label, outline, look, 0.0, 0.0, group))

    def thing(
        self,
        kind: Kind,
        variant: str,
        u: float,
        v: float,
        size: tuple[float, float, float],
        turn: float = 0.0,
        presence: float = 1.0,
        group: int = 0,
    ) -> bool:
        """Place an object of (length, width, height) metres, its length along plan direction `turn`; False if out of sight."""
        length, width, height = size
        # Long shadows reach in from outside; 1.7 m a metre of height is the longest the sun makes.
        if not self.seen(u, v, 0.5 * math.hypot(length, width) + 1.7 * height):
            return False
        x, y = self.at(u, v)
        angle = self.heading(u) + turn
        self.things.append(
            Thing(kind, variant, x, y, angle, length, width, height, self.dice.units(6), presence, group)
        )
        return True

    def ring(self, u: float, v: float, radius: float, wobble: float, points: int = 28) -> list[Point]:
        """A closed wavy outline around a plan point."""
        dice = self.dice
        waves = [(k, wobble * dice.between(0.3, 1.0) / k, dice.between(0.0, 6.28)) for k in (2, 3, 5, 7)]
        outline = []
        for i in range(points):
            a = 2.0 * math.pi * i / points
            r = radius * (1.0 + sum(amp * math.sin(k * a + phase) for k, amp, phase in waves))
            outline.append((u + r * math.cos(a), v + r * math.sin(a)))
        return outline

    def paved(self, level: int, surface: Surface, box: tuple[float, float, float, float], group: int = 0) -> None:
        """A paved rectangle, class road."""
        self.rect(level, surface, ROAD, box, group)

    def graph(self) -> Graph:
        """The finished plan."""
        return Graph(tuple(tuple(level) for level in self.patches), tuple(self.things), self.groups)


def strip(line: Sequence[Point], width: float) -> list[Point]:
    """The outline of a band of `width` round an open polyline, corners mitred."""
    half = width / 2.0
    left: list[Point] = []
    right: list[Point] = []
    last = len(line) - 1
    for i, (x, y) in enumerate(line):
        x0, y0 = line[max(0, i - 1)]
        x1, y1 = line[min(last, i + 1)]
        dx, dy = x1 - x0, y1 - y0
        norm = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / norm * half, dx / norm * half
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    return left + right[::-1]
