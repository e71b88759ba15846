"""Questions about objects with boxes. What could be disputed is left unasked:

* a class with a difficult, crowded, truncated or cut-off object is neither counted nor located as a whole;
* yes or no is asked only where this image allows both answers, and a coin decides which;
* nearly equal sizes and nearly equal places are no ground for "the largest" or "the leftmost".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from vitp.demo.keys import Dice
from vitp.instruction import wording
from vitp.instruction.grammar import Box, normalise, print_boxes
from vitp.instruction.quads import Quad, normalise_quad, print_quads
from vitp.instruction.wording import listed, ninth, third, with_article
from vitp.synthesis import phrases as say
from vitp.synthesis.config import Task
from vitp.synthesis.labels import LabelledImage, LabelledObject
from vitp.synthesis.words import Asked, Draw, Words, sentence

MOST_COUNTED = 12  # as in the demo: more than a dozen is not counted at a glance
MOST_BOXES = 6  # as in the demo
_LEAST_SIDE = 2  # units of 0-1000; a smaller box is too thin to be written
_MARGIN = 0.04  # share of the image by which places must differ, as in the demo
_LARGER = 1.3  # ours: ratio of areas from which "the largest" is seen at a glance
_SHARED = 0.25  # share of a region from which another object in it makes the region ambiguous, as in the demo
_QUARTERS = (("upper left", 0, 0), ("upper right", 1, 0), ("lower left", 0, 1), ("lower right", 1, 1))


class ObjectFacts:
    """What is known about the objects of an image."""

    def __init__(self, image: LabelledImage, classes: tuple[str, ...], words: Words, draw: Draw) -> None:
        self.image, self.words, self.draw = image, words, draw
        self.width, self.height = image.size
        self.of: dict[str, list[LabelledObject]] = {}
        for thing in image.objects:
            self.of.setdefault(thing.label, []).append(thing)
        self.counts = Counter({name: len(things) for name, things in self.of.items()})
        self.sure = sorted(name for name, things in self.of.items() if not any(thing.doubtful for thing in things))
        self.absent = [name for name in classes if name not in self.of]
        self.single = [name for name in self.sure if self.counts[name] == 1]

    def box(self, thing: LabelledObject) -> Box:
        """In 0-1000."""
        return normalise(thing.box, self.width, self.height)

    def centre(self, thing: LabelledObject) -> tuple[float, float]:
        """As shares of the width and height."""
        x1, y1, x2, y2 = thing.box
        return (x1 + x2) / 2 / self.width, (y1 + y2) / 2 / self.height

    def boxes(self, name: str) -> list[Box]:
        """Boxes of a class from top to bottom, 0-1000; empty when one is too thin."""
        boxes = [self.box(thing) for thing in self.of[name]]
        fine = all(x2 - x1 >= _LEAST_SIDE and y2 - y1 >= _LEAST_SIDE for x1, y1, x2, y2 in boxes)
        return sorted(boxes, key=lambda b: (b[1], b[0], b)) if fine else []

    def in_quarter(self, name: str, column: int, row: int) -> bool | None:
        """Whether a class has an object in a quarter; None where one only reaches into it, or is doubtful."""
        left, top = column * self.width / 2, row * self.height / 2
        right, bottom = left + self.width / 2, top + self.height / 2
        reaches = False
        for thing in self.of.get(name, ()):
            x1, y1, x2, y2 = thing.box
            if x1 < right and x2 > left and y1 < bottom and y2 > top:
                if left <= x1 and x2 <= right and top <= y1 and y2 <= bottom and not thing.doubtful:
                    return True
                reaches = True
        return None if reaches else False


Asker = Callable[[ObjectFacts, Dice, int], Asked | None]


def _caption(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    present = sorted(facts.of, key=lambda name: (-facts.counts[name], name))
    if not present:
        return None
    words = facts.words

    def named(name: str) -> str:
        count = facts.counts[name]
        if name in facts.sure and count <= MOST_COUNTED:
            return words.numbered(count, name)
        return f"several {words.many(name)}" if count > 2 else words.many(name) if count > 1 else with_article(name)

    kinds = [named(name) for name in present]
    if dice.chance(0.4) or len(kinds) == 1:
        more = " among other things" if len(kinds) > 4 else ""
        text = f"{with_article(words.view)} with {listed(kinds[:4])}{more}"
        question = dice.pick(say.CAPTION_SHORT).format(view=words.view)
    else:
        text = f"the {words.view} shows {listed(kinds[:8])}{' among other things' if len(kinds) > 8 else ''}"
        placed = [(name, where) for name in facts.single if (where := _place(facts, facts.of[name][0])) is not None]
        text += "".join(f". The {name} is in the {where}" for name, where in placed[:3])
        question = dice.pick(say.CAPTION).format(view=words.view)
    return Asked(question, sentence(text), "caption", "caption")


def _place(facts: ObjectFacts, thing: LabelledObject) -> str | None:
    """Which of 3 x 3 parts an object's centre lies in; None close to a border."""
    x, y = facts.centre(thing)
    column, row = third(x, _MARGIN), third(y, _MARGIN)
    return None if column is None or row is None else ninth(row, column)


def _count(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    by_number: dict[int, list[str]] = {}
    for name in facts.sure:
        if facts.counts[name] <= MOST_COUNTED:
            by_number.setdefault(facts.counts[name], []).append(name)
    if facts.absent and dice.chance(0.1):
        name, number = facts.draw.first(facts.absent, "count", attempt), 0
    elif by_number:  # the number first: most classes occur once, and "1" would be the answer to nearly everything
        number = dice.pick(sorted(by_number))
        name = dice.pick(by_number[number])
    else:
        return None
    question = dice.pick(say.COUNT).format(many=facts.words.many(name), view=facts.words.view)
    return Asked(question, str(number), "count", f"count {name}")


def _presence(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    """A class in the image, or in a quarter of it; asked only where yes and no are both possible."""
    words, wanted = facts.words, dice.chance(0.5)
    there = sorted(name for name, things in facts.of.items() if not all(thing.doubtful for thing in things))
    asked = facts.draw.asked
    fresh = [[name for name in names if f"presence {name}" not in asked] for names in (facts.absent, there)]
    if all(fresh) and dice.chance(0.5):
        name = facts.draw.first(fresh[wanted], "presence", wanted, attempt)
        question = dice.pick(say.PRESENCE).format(a=with_article(name), many=words.many(name), view=words.view)
        return Asked(question, "yes" if wanted else "no", "presence", f"presence {name}")
    options: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for name in sorted(facts.of):
        quarters = [quarter for quarter in _QUARTERS if f"presence {name} {quarter[0]}" not in asked]
        states = [(part, facts.in_quarter(name, column, row)) for part, column, row in quarters]
        if {True, False} <= {state for _, state in states}:
            for part, state in states:
                if state is not None:
                    options[state].append((name, part))
    if not options[True]:
        return None
    name = dice.pick(sorted({name for name, _ in options[wanted]}))  # the same classes on both sides
    part = dice.pick([part for other, part in options[wanted] if other == name])
    form = dice.pick(say.PRESENCE_PART)
    question = form.format(a=with_article(name), many=words.many(name), part=part, view=words.view)
    return Asked(question, "yes" if wanted else "no", "presence", f"presence {name} {part}")


def _compare(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    words = facts.words
    pairs = [(a, b) for a in facts.sure for b in facts.sure if facts.counts[a] > facts.counts[b]]
    if not pairs or dice.chance(0.3):
        return _compare_halves(facts, dice)
    more, fewer = dice.pick(pairs)
    subject = f"compare {more} {fewer}"
    if dice.chance(0.5):
        a, b = dice.shuffled([more, fewer])
        question = dice.pick(say.COMPARE_WHICH).format(a=words.many(a), b=words.many(b), view=words.view)
        return Asked(question, words.many(more), "compare", subject)
    wanted = dice.chance(0.5)
    a, b = (more, fewer) if wanted else (fewer, more)
    question = dice.pick(say.COMPARE_MORE).format(a=words.many(a), b=words.many(b), view=words.view)
    return Asked(question, "yes" if wanted else "no", "compare", subject)


def _compare_halves(facts: ObjectFacts, dice: Dice) -> Asked | None:
    """Which half holds more of a class; no object of it may stand on the line between them."""
    axis = dice.whole(0, 1)
    middle = facts.image.size[axis] / 2
    names = ("left", "right") if axis == 0 else ("upper", "lower")
    options = []
    for name in facts.sure:
        low = sum(thing.box[axis + 2] <= middle for thing in facts.of[name])
        high = sum(thing.box[axis] >= middle for thing in facts.of[name])
        if low + high == facts.counts[name] >= 2 and low != high:
            options.append((name, names[0] if low > high else names[1]))
    if not options:
        return None
    name, answer = dice.pick(options)
    a, b = dice.shuffled(names)
    form = dice.pick(say.COMPARE_HALVES)
    question = form.format(many=facts.words.many(name), a=a, b=b, view=facts.words.view)
    return Asked(question, answer, "compare", f"halves {name} {axis}")


def _position(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    placed = [(name, where) for name in facts.single if (where := _place(facts, facts.of[name][0])) is not None]
    if not placed:
        return None
    name, where = dice.pick(placed)
    question = dice.pick(say.POSITION).format(one=name, view=facts.words.view)
    return Asked(question, where, "position", f"position {name}")


def _relation(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    if len(facts.single) < 2:
        return None
    a, b = dice.shuffled(facts.single)[:2]
    axis = dice.whole(0, 1)
    first = wording.relation(facts.of[a][0].box, facts.of[b][0].box, axis)
    if first is None:
        return None
    low = dice.chance(0.5)
    question = dice.pick(wording.RELATION).format(a=a, b=b, side=wording.side(axis, low))
    return Asked(question, "yes" if first == low else "no", "relation", f"relation {sorted((a, b))} {axis}")


def _grounding(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    words = facts.words
    if facts.absent and dice.chance(0.1):
        name = facts.draw.first(facts.absent, "grounding", attempt)
        question = dice.pick(say.GROUND_NONE).format(one=name, many=words.many(name))
        return Asked(question, f"There is no {name} in the {words.view}.", "grounding", f"boxes {name}")
    options = [name for name in facts.sure if facts.counts[name] <= MOST_BOXES and facts.boxes(name)]
    if not options:
        return None
    name = dice.pick(options)
    boxes = facts.boxes(name)
    forms = wording.GROUND_ONE if len(boxes) == 1 else wording.GROUND_ALL
    question = dice.pick(forms).format(one=name, many=words.many(name))
    return Asked(question, print_boxes(name, boxes), "grounding", f"boxes {name}")


def _oriented(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    options: list[tuple[str, list[Quad]]] = []
    for name in facts.sure:
        corners = [t.quad for t in facts.of[name] if t.quad is not None]
        quads = [q for c in corners if (q := normalise_quad(c, facts.width, facts.height)) is not None]
        if len(quads) == facts.counts[name] <= MOST_BOXES and facts.boxes(name):
            options.append((name, sorted(quads, key=lambda q: (q[1], q[0], q))))
    if not options:
        return None
    name, quads = dice.pick(options)
    forms = say.ORIENTED_ONE if len(quads) == 1 else say.ORIENTED_ALL
    question = dice.pick(forms).format(one=name, many=facts.words.many(name))
    return Asked(question, print_quads(name, quads), "oriented", f"quads {name}")


def superlatives(facts: ObjectFacts, name: str) -> dict[str, LabelledObject]:
    """``largest``, ``leftmost`` ... of a class of two or more, each only where it is beyond dispute."""
    things = facts.of[name]
    found: dict[str, LabelledObject] = {}

    def size(thing: LabelledObject) -> float:
        x1, y1, x2, y2 = thing.box
        return (x2 - x1) * (y2 - y1)

    by_box = sorted(things, key=size)
    by_outline = sorted(things, key=lambda thing: thing.area)
    for which, end, following in (("largest", -1, -2), ("smallest", 0, 1)):
        first, second = (by_box[end], by_box[following]) if end else (by_box[following], by_box[end])
        outer, inner = (by_outline[end], by_outline[following]) if end else (by_outline[following], by_outline[end])
        same = by_box[end] is by_outline[end]
        if same and size(first) >= _LARGER * size(second) and outer.area >= _LARGER * inner.area:
            found[which] = by_box[end]
    for which, edge, sign in (("leftmost", 0, 1), ("topmost", 1, 1), ("rightmost", 2, -1), ("bottommost", 3, -1)):
        gap = _MARGIN * facts.image.size[edge % 2]
        order = sorted(things, key=lambda thing: sign * thing.box[edge])
        best = order[0]
        middles = {id(t): sign * facts.centre(t)[edge % 2] * facts.image.size[edge % 2] for t in things}
        clear = all(
            sign * (t.box[edge] - best.box[edge]) >= gap and middles[id(t)] - middles[id(best)] >= gap
            for t in order[1:]
        )
        if clear:
            found[which] = best
    return found


def _refer(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    options = [
        (name, which, thing)
        for name in facts.sure
        if 2 <= facts.counts[name] <= MOST_COUNTED and facts.boxes(name)
        for which, thing in superlatives(facts, name).items()
    ]
    if not options:
        return None
    name, which, thing = dice.pick(options)
    answer = print_boxes(f"the {which} {name}", [facts.box(thing)])
    question = dice.pick(say.REFER).format(which=which, one=name)
    return Asked(question, answer, "refer", f"refer {which} {name}")


def _region(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    options = [name for name in facts.of if any(not thing.doubtful for thing in facts.of[name])]
    if not options:
        return None
    name = dice.pick(sorted(options))  # the class first: answers are balanced over the classes that are there
    thing = dice.pick([thing for thing in facts.of[name] if not thing.doubtful])
    x1, y1, x2, y2 = thing.box
    for other in facts.image.objects:
        a1, b1, a2, b2 = other.box
        shared = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
        if other.label != name and shared > _SHARED * (x2 - x1) * (y2 - y1):
            return None
    box = facts.box(thing)
    if box[2] - box[0] < _LEAST_SIDE or box[3] - box[1] < _LEAST_SIDE:
        return None
    question = dice.pick(say.REGION).format(box=print_boxes(None, [box]))
    return Asked(question, name, "region", f"region {box}")


def _part(facts: ObjectFacts, dice: Dice, attempt: int) -> Asked | None:
    part, column, row = dice.pick(_QUARTERS)
    states = {name: facts.in_quarter(name, column, row) for name in sorted(facts.of)}
    if not states or None in states.values():
        return None
    names = [name for name, there in states.items() if there]
    if not names and not dice.chance(0.25):  # "nothing" would be the answer to most questions of bare images
        return None
    answer = ", ".join(facts.words.many(name) for name in names) if names else "none"
    question = dice.pick(say.PART_OBJECTS).format(part=part, view=facts.words.view)
    return Asked(question, answer, "part", f"part {part}")


ASKERS: dict[Task, tuple[Asker, float]] = {  # with the demo's weights
    "caption": (_caption, 1.2), "count": (_count, 1.2), "presence": (_presence, 1.4), "compare": (_compare, 0.9),
    "position": (_position, 0.9), "relation": (_relation, 0.6), "grounding": (_grounding, 1.3),
    "oriented": (_oriented, 1.0), "refer": (_refer, 1.2), "region": (_region, 1.0), "part": (_part, 1.2),
}  # fmt: skip
