"""Questions about what covers an image: shares, coarse maps, parts and regions.

A share close to the border between two answers is not asked for; a map is drawn on the finest of a few grids on which
every part has a clear answer, whatever the pixels without a class might hold; shares are of the pixels that have a
class, and are not asked for where more than a twentieth has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitp.demo.keys import Dice
from vitp.instruction.grammar import Box, normalise, print_boxes
from vitp.instruction.wording import edges, fraction, half_with, listed, ninth, part_of, percent, with_article
from vitp.synthesis import phrases as say
from vitp.synthesis.config import Task
from vitp.synthesis.rasters import NO_CLASS
from vitp.synthesis.words import Asked, Draw, Words, sentence

PRESENT = 0.02  # share of the image from which a class is surely noticed, as in the demo
_LISTED, _UNSURE = 0.1, 0.06  # share of a part from which a class is named; from the second on it might be
_UNKNOWN = 0.05  # ours: share of pixels without class up to which shares are still meaningful
_LEAD = 0.02  # ours: share of a part by which the first class must be ahead of the second
_PURE = 0.9  # ours: share of a region that one class must fill
_DULL = 0.1  # ours: chance of asking what has a dull answer
GRIDS = (4, 3, 2)
_REST = "other"  # what a map calls the classes that have no name of their own


class MaskFacts:
    """What is known about a mask: class index of every pixel, [H, W]."""

    def __init__(
        self, mask: NDArray[np.int16], classes: tuple[str, ...], unnamed: set[str], words: Words, draw: Draw
    ) -> None:
        self.mask, self.classes, self.words, self.draw = mask, classes, words, draw
        self.named = [i for i, name in enumerate(classes) if name.lower() not in unnamed]
        self.shares, self.unknown = self.part(mask)
        self.complete = self.unknown <= _UNKNOWN

    def part(self, pixels: NDArray[np.int16]) -> tuple[NDArray[np.float64], float]:
        """Share of each class among the pixels that have one, [classes]; share of the pixels that have none."""
        counts = np.bincount(pixels.ravel().astype(np.int64) - NO_CLASS, minlength=len(self.classes) + 1)
        known = int(counts[1:].sum())
        return counts[1:] / max(known, 1), float(counts[0] / max(pixels.size, 1))

    def cell(self, parts: int, row: int, column: int) -> NDArray[np.int16]:
        """One of parts x parts pieces."""
        return part_of(self.mask, parts, row, column)

    def name(self, index: int) -> str:
        """A class as maps and lists call it."""
        return self.classes[index] if index in self.named else _REST


Asker = Callable[[MaskFacts, Dice, int], Asked | None]


def _caption(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    shown = sorted((i for i in facts.named if facts.shares[i] >= 0.05), key=lambda i: -facts.shares[i])[:4]
    view = facts.words.view
    if facts.unknown == 0.0 and facts.named and not facts.shares[facts.named].any():
        text = f"{with_article(view)} without {listed([facts.classes[i] for i in facts.named][:6], 'or')}"
        return Asked(dice.pick(say.CAPTION).format(view=view), sentence(text), "caption", "caption")
    if not shown or not facts.complete:
        return None
    shares = [f"{facts.classes[i]} about {percent(float(facts.shares[i]))}%" for i in shown]
    text = f"{with_article(view)} with {listed([facts.classes[i] for i in shown])}. By area: {listed(shares)}"
    sides = [(i, side) for i in shown if (side := _side(facts, i)) is not None]
    text += "".join(f". Nearly all of the {facts.classes[i]} is in the {side} half" for i, side in sides[:2])
    return Asked(dice.pick(say.CAPTION).format(view=view), sentence(text), "caption", "caption")


def _presence(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    """A class in the image, or in one of 3 x 3 parts; asked only where yes and no are both possible."""
    wanted, view = dice.chance(0.5), facts.words.view
    asked = facts.draw.asked
    fresh = [i for i in facts.named if f"presence {facts.classes[i]}" not in asked]
    absent = [facts.classes[i] for i in fresh if facts.shares[i] == 0.0]
    there = [facts.classes[i] for i in fresh if facts.shares[i] >= PRESENT]
    if there and absent and facts.unknown == 0.0 and dice.chance(0.4):
        name = facts.draw.first(there if wanted else absent, "presence", wanted, attempt)
        question = dice.pick(say.COVER_PRESENCE).format(name=name, view=view)
        return Asked(question, "yes" if wanted else "no", "presence", f"presence {name}")
    options: list[tuple[int, str, bool]] = []
    for row in range(3):
        for column in range(3):
            shares, unknown = facts.part(facts.cell(3, row, column))
            if unknown <= _UNKNOWN:
                part = ninth(row, column)
                options += [
                    (i, part, bool(shares[i] > 0))
                    for i in facts.named
                    if (shares[i] >= _LISTED or (shares[i] == 0.0 and unknown == 0.0))
                    and f"presence {facts.classes[i]} {part}" not in asked
                ]
    both = {i for i, _, there_too in options if there_too} & {i for i, _, there_too in options if not there_too}
    fitting = [(i, part) for i, part, there_too in options if i in both and there_too == wanted]
    if not fitting:
        return None
    index = dice.pick(sorted({i for i, _ in fitting}))
    part = dice.pick([part for i, part in fitting if i == index])
    name = facts.classes[index]
    question = dice.pick(say.COVER_PRESENCE_PART).format(name=name, part=part, view=view)
    return Asked(question, "yes" if wanted else "no", "presence", f"presence {name} {part}")


def _compare(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    covers = [i for i in facts.named if facts.shares[i] >= PRESENT]
    pairs = [(a, b) for a in covers for b in covers if facts.shares[a] - facts.shares[b] >= 0.06]
    if not pairs or not facts.complete:
        return None
    more, less = (facts.classes[i] for i in dice.pick(pairs))
    subject = f"compare {more} {less}"
    if dice.chance(0.5):
        a, b = dice.shuffled([more, less])
        return Asked(dice.pick(say.COVER_COMPARE).format(a=a, b=b, view=facts.words.view), more, "compare", subject)
    wanted = dice.chance(0.5)
    a, b = (more, less) if wanted else (less, more)
    question = dice.pick(say.COVER_COMPARE_MORE).format(a=a, b=b, view=facts.words.view)
    return Asked(question, "yes" if wanted else "no", "compare", subject)


def _area(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    options = [i for i in facts.named if facts.shares[i] >= 0.04]
    if not options or not facts.complete:
        return None
    index = dice.pick(options)
    share, name = float(facts.shares[index]), facts.classes[index]
    if dice.chance(0.5):
        question = dice.pick(say.AREA_PERCENT).format(name=name, view=facts.words.view)
        return Asked(question, f"about {percent(share)}%", "area", f"area {name}")
    answer = fraction(share)
    if answer is None:
        return None
    return Asked(dice.pick(say.AREA_WORDS).format(name=name, view=facts.words.view), answer, "area", f"area {name}")


def _side(facts: MaskFacts, index: int) -> str | None:
    """The half of the image that a class lies in."""
    return half_with(facts.mask == index) if 0.03 <= facts.shares[index] <= 0.5 else None


def _position(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    sides = [(i, side) for i in facts.named if (side := _side(facts, i)) is not None]
    if not sides or not facts.complete:
        return None
    index, side = dice.pick(sides)
    name = facts.classes[index]
    return Asked(dice.pick(say.SIDE).format(name=name, view=facts.words.view), side, "position", f"side {name}")


def _layout(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    for parts in GRIDS:
        rows = [[_most(facts, parts, row, column) for column in range(parts)] for row in range(parts)]
        flat = {name for row in rows for name in row}
        if None in flat:
            continue
        if len(flat) == 1 and facts.draw.rank("dull layout") >= _DULL:
            return None  # a map of one word teaches little, so most of them are left out
        answer = "; ".join(", ".join(str(name) for name in row) for row in rows)
        question = dice.pick(say.LAYOUT).format(n=parts, view=facts.words.view)
        return Asked(question, answer, "layout", "layout")
    return None


def _most(facts: MaskFacts, parts: int, row: int, column: int) -> str | None:
    """What fills most of a part; None where two nearly share the lead, or where the pixels without a class might hold
    enough to change it. Unnamed classes count as one.
    """
    shares, unknown = facts.part(facts.cell(parts, row, column))
    by_name: dict[str, float] = {}
    for i, share in enumerate(shares.tolist()):
        by_name[facts.name(i)] = by_name.get(facts.name(i), 0.0) + share
    ordered = sorted(by_name.items(), key=lambda item: -item[1])
    lead = (ordered[0][1] - (ordered[1][1] if len(ordered) > 1 else 0.0)) * (1 - unknown)
    return ordered[0][0] if lead >= max(_LEAD, unknown) else None


def _part(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    row, column = dice.whole(0, 2), dice.whole(0, 2)
    part = ninth(row, column)
    shares, unknown = facts.part(facts.cell(3, row, column))
    by_name: dict[str, float] = {}
    for i, share in enumerate(shares.tolist()):
        by_name[facts.name(i)] = by_name.get(facts.name(i), 0.0) + share
    if unknown > _UNKNOWN or any(_UNSURE < share < _LISTED for share in by_name.values()):
        return None
    named = sorted((item for item in by_name.items() if item[1] >= _LISTED), key=lambda item: -item[1])
    if not named or any(a[1] - b[1] < _LEAD for a, b in itertools.pairwise(named)):
        return None
    if named[0][0] == _REST and len(named) == 1 and facts.draw.rank("dull part", part) >= _DULL:
        return None
    question = dice.pick(say.PART).format(part=part, view=facts.words.view)
    return Asked(question, ", ".join(name for name, _ in named), "part", f"part {part}")


def _region(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    """A rectangle of an 8 x 8 grid, one to two parts a side, that one class fills; the class is drawn first."""
    options: dict[int, list[tuple[int, int, int, int]]] = {}
    down, across = edges(facts.mask.shape[0], 8), edges(facts.mask.shape[1], 8)
    tall, wide = dice.whole(1, 2), dice.whole(1, 2)
    for row in range(9 - tall):
        for column in range(9 - wide):
            place = (across[column], down[row], across[column + wide], down[row + tall])
            pixels = facts.mask[place[1] : place[3], place[0] : place[2]]
            if pixels.size:
                shares, unknown = facts.part(pixels)
                most = int(shares.argmax())
                if unknown <= _UNKNOWN and shares[most] >= _PURE and most in facts.named:
                    options.setdefault(most, []).append(place)
    if not options:
        return None
    index = dice.pick(sorted(options))
    box = _units(facts, dice.pick(options[index]))
    question = dice.pick(say.COVER_REGION).format(box=print_boxes(None, [box]))
    return Asked(question, facts.classes[index], "region", f"region {box}")


def _extent(facts: MaskFacts, dice: Dice, attempt: int) -> Asked | None:
    """The box around all pixels of a class; not asked of what is nearly everywhere, nor where pixels lack a class."""
    options = []
    for i in facts.named:
        if facts.shares[i] >= 0.01 and facts.unknown == 0.0:
            here = facts.mask == i
            rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            if (box[2] - box[0]) * (box[3] - box[1]) <= 0.8 * here.size:
                options.append((i, box))
    if not options:
        return None
    index, box = dice.pick(options)
    name = facts.classes[index]
    answer = print_boxes(name, [_units(facts, box)])
    return Asked(dice.pick(say.EXTENT).format(name=name), answer, "extent", f"extent {name}")


def _units(facts: MaskFacts, box: tuple[int, int, int, int]) -> Box:
    return normalise(box, facts.mask.shape[1], facts.mask.shape[0])


ASKERS: dict[Task, tuple[Asker, float]] = {  # questions about places help dense features most, so they come first
    "caption": (_caption, 0.8), "presence": (_presence, 1.2), "compare": (_compare, 0.7), "area": (_area, 1.2),
    "position": (_position, 0.9), "layout": (_layout, 2.0), "part": (_part, 2.0), "region": (_region, 1.5),
    "extent": (_extent, 1.0),
}  # fmt: skip
