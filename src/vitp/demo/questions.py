"""Instructions computed from the scene graph: every answer follows from what was drawn, none is guessed.

A question is left unasked where its answer could be disputed: a category with an object that is mostly cut off by the
image border is not counted, shares close to the border between two answers are not asked for, ties are named as ties.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitp.demo import phrases as say
from vitp.demo.classes import CATEGORIES, CLASSES
from vitp.demo.instances import Instance
from vitp.demo.keys import Dice, Stream
from vitp.demo.render import Scene
from vitp.instruction import wording
from vitp.instruction.grammar import SCALE, Box, print_boxes
from vitp.instruction.wording import NUMBERS, fraction, half_with, listed, ninth, part_of, percent, third, with_article

Task = Literal[
    "caption", "theme", "count", "presence", "compare", "area", "position", "relation", "grounding", "region",
    "layout", "part",
]  # fmt: skip
Turn = tuple[str, str, Task]

_MOST_COUNTED = 12  # more than a dozen is not counted at a glance
_MOST_BOXES = 6
_WHOLE = 0.5  # an object must be at least half visible for its category to be counted
_PRESENT = 0.02  # share of the image from which a cover is surely noticed
_GRID = 4  # parts a side of a coarse map
_OBJECT_SHARE = 0.125  # of a part of the coarse map, from which an object is named rather than the ground around it
_MARGIN = 0.04  # share of the image from a border between thirds within which neither is said
_LISTED = (0.1, 0.03)  # shares of a ninth of the image from which ground cover and objects are named in a list


class _Facts:
    """What is known about a scene."""

    def __init__(self, scene: Scene, dice: Dice) -> None:
        self.scene = scene
        self.dice = dice
        self.size = scene.mask.shape[0]
        pixels = np.bincount(scene.mask.ravel(), minlength=len(CLASSES))
        self.shares = dict(zip(CLASSES, (pixels / scene.mask.size).tolist(), strict=True))
        self.counts = Counter(i.category for i in scene.instances)
        unsure = scene.cut_off | {i.category for i in scene.instances if i.visible_fraction < _WHOLE}
        self.sure = [c for c in CATEGORIES if c not in unsure]  # their number is beyond dispute

    def only(self, category: str) -> Instance:
        return next(i for i in self.scene.instances if i.category == category)

    def boxes(self, category: str) -> list[Box]:
        """Boxes of a category in reading order, 0-1000; empty when one is too thin to be written."""
        boxes = [self.box(i) for i in self.scene.instances if i.category == category]
        fine = all(x2 - x1 >= 2 and y2 - y1 >= 2 for x1, y1, x2, y2 in boxes)
        return sorted(boxes, key=lambda b: (b[1], b[0])) if fine else []

    def box(self, instance: Instance) -> Box:
        x1, y1, x2, y2 = (min(SCALE, max(0, round(v * SCALE / self.size))) for v in instance.bbox)
        return (x1, y1, x2, y2)


Asker = Callable[[_Facts], Turn | None]


def _many(category: str) -> str:
    return say.NOUNS[category][1]


def _numbered(facts: _Facts, category: str) -> str:
    """The number of objects in words, or only the plural where the number is unsure or large."""
    count = facts.counts[category]
    one, many = say.NOUNS[category]
    if category in facts.sure and count <= _MOST_COUNTED:
        return f"{NUMBERS[count]} {one if count == 1 else many}"
    return many if count > 1 else with_article(one)


def _caption(facts: _Facts) -> Turn | None:
    dice = facts.dice
    place = say.PLACES[facts.scene.theme][1]
    view = dice.pick(
        ("A radar image", "A radar view") if facts.scene.modality == "sar" else ("An aerial view", "An overhead image")
    )
    level = dice.whole(0, 2)
    present = [c for c in CATEGORIES if facts.counts[c]]
    if level == 0:
        return dice.pick(say.CAPTION_SHORT), f"{view} of {place}.", "caption"
    objects = [_numbered(facts, c) for c in sorted(present, key=lambda c: -facts.counts[c])[:4]]
    shown = f" with {listed(objects, 'and')}" if objects else ""
    if level == 1:
        return dice.pick(say.CAPTION_MEDIUM), f"{view} of {place}{shown}.", "caption"
    sentences = [f"{view} of {place}{shown}."]
    covers = sorted((c for c in say.COVERS if facts.shares[c] >= 0.05), key=lambda c: -facts.shares[c])[:3]
    if covers:
        shares = [f"{say.COVERS[c]} about {percent(facts.shares[c])}%" for c in covers]
        sentences.append(f"By area: {listed(shares, 'and')}.")
    for cover in ("water", "forest", "field"):
        side = _side_of(facts, cover)
        if side is not None:
            name = say.COVERS[cover]
            sentences.append(f"The {name} {'lie' if name.endswith('s') else 'lies'} {_towards(side)}.")
    return dice.pick(say.CAPTION_LONG), " ".join(sentences), "caption"


def _towards(side: str) -> str:
    return f"on the {side}" if side in ("left", "right") else f"at the {side}"


def _theme(facts: _Facts) -> Turn | None:
    dice = facts.dice
    label, named = say.PLACES[facts.scene.theme]
    if dice.chance(0.55):
        return dice.pick(say.THEME_OPEN), label, "theme"
    others = dice.shuffled([p for t, p in say.PLACES.items() if t != facts.scene.theme])[: dice.whole(1, 3)]
    chosen = dice.shuffled([(label, named), *others])
    form = dice.pick(say.THEME_CHOICE)
    options = listed([named if form.startswith("Is this") else label for label, named in chosen], "or")
    return form.format(options=options), label, "theme"


def _count(facts: _Facts) -> Turn | None:
    options = [c for c in facts.sure if 1 <= facts.counts[c] <= _MOST_COUNTED]
    missing = [
        c
        for c in facts.sure
        if facts.counts[c] == 0 and facts.shares[c] == 0.0 and c in say.EXPECTED[facts.scene.theme]
    ]
    if missing and (not options or facts.dice.chance(0.1)):
        options = missing
    if not options:
        return None
    category = facts.dice.pick(options)
    return facts.dice.pick(say.COUNT).format(many=_many(category)), str(facts.counts[category]), "count"


def _presence(facts: _Facts) -> Turn | None:
    dice = facts.dice
    covers = [c for c in say.COVERS if c not in CATEGORIES]
    there = [c for c in CATEGORIES if facts.counts[c]] + [c for c in covers if facts.shares[c] >= _PRESENT]
    absent = [c for c in CATEGORIES if facts.shares[c] == 0.0 and not facts.counts[c] and c not in facts.scene.cut_off]
    absent += [c for c in covers if facts.shares[c] == 0.0]
    wanted = dice.chance(0.5)
    options = there if wanted else absent
    if not options:
        return None
    expected = [c for c in options if c in say.EXPECTED[facts.scene.theme]]
    name = dice.pick(expected if expected and dice.chance(0.7) else options)
    if name in CATEGORIES:
        question = dice.pick(say.PRESENCE_THING).format(a=with_article(say.NOUNS[name][0]), many=_many(name))
    else:
        question = dice.pick(say.PRESENCE_COVER).format(name=say.COVERS[name])
    return question, "yes" if wanted else "no", "presence"


def _compare(facts: _Facts) -> Turn | None:
    dice = facts.dice
    present = [c for c in facts.sure if facts.counts[c]]
    if len(present) >= 2 and dice.chance(0.6):
        a, b = dice.shuffled(present)[:2]
        more, fewer = facts.counts[a], facts.counts[b]
        if dice.chance(0.5):
            answer = "equally many" if more == fewer else _many(a if more > fewer else b)
            return dice.pick(say.COMPARE_WHICH).format(a=_many(a), b=_many(b)), answer, "compare"
        answer = "no, equally many" if more == fewer else "yes" if more > fewer else "no"
        return dice.pick(say.COMPARE_MORE).format(a=_many(a), b=_many(b)), answer, "compare"
    covers = [c for c in say.COVERS if facts.shares[c] >= _PRESENT]
    if len(covers) < 2:
        return None
    a, b = dice.shuffled(covers)[:2]
    if abs(facts.shares[a] - facts.shares[b]) < 0.06:
        return None
    larger = a if facts.shares[a] > facts.shares[b] else b
    return dice.pick(say.COMPARE_COVER).format(a=say.COVERS[a], b=say.COVERS[b]), say.COVERS[larger], "compare"


def _area(facts: _Facts) -> Turn | None:
    dice = facts.dice
    options = [c for c in say.COVERS if facts.shares[c] >= 0.04]
    if not options:
        return None
    cover = dice.pick(options)
    share, name = facts.shares[cover], say.COVERS[cover]
    if dice.chance(0.5):
        return dice.pick(say.AREA_PERCENT).format(name=name), f"about {percent(share)}%", "area"
    answer = fraction(share)
    if answer is None:
        return None
    return dice.pick(say.AREA_WORDS).format(name=name), answer, "area"


def _side_of(facts: _Facts, cover: str) -> str | None:
    """The half of the image that a cover lies in."""
    return half_with(facts.scene.mask == CLASSES.index(cover)) if 0.06 <= facts.shares[cover] <= 0.5 else None


def _position(facts: _Facts) -> Turn | None:
    dice = facts.dice
    single = [c for c in facts.sure if facts.counts[c] == 1]
    if single and dice.chance(0.7):
        category = dice.pick(single)
        x1, y1, x2, y2 = facts.only(category).bbox
        column = third((x1 + x2) / 2.0 / facts.size, _MARGIN)
        row = third((y1 + y2) / 2.0 / facts.size, _MARGIN)
        if column is None or row is None:
            return None
        words = [("top", "", "bottom")[row], ("left", "", "right")[column]]
        answer = " ".join(w for w in words if w) or "centre"
        return dice.pick(say.PLACE_THING).format(one=say.NOUNS[category][0]), answer, "position"
    sides = [(c, side) for c in ("water", "forest", "field") if (side := _side_of(facts, c)) is not None]
    if not sides:
        return None
    cover, side = dice.pick(sides)
    question = dice.pick(say.PLACE_COVER).format(name=say.COVERS[cover])
    return question.replace("is the trees", "are the trees").replace("does the trees", "do the trees"), side, "position"


def _relation(facts: _Facts) -> Turn | None:
    dice = facts.dice
    single = [c for c in facts.sure if facts.counts[c] == 1]
    if len(single) < 2:
        return None
    a, b = dice.shuffled(single)[:2]
    axis = dice.whole(0, 1)
    first = wording.relation(facts.only(a).bbox, facts.only(b).bbox, axis)
    if first is None:
        return None
    low = dice.chance(0.5)
    names = {"a": say.NOUNS[a][0], "b": say.NOUNS[b][0]}
    question = dice.pick(wording.RELATION).format(**names, side=wording.side(axis, low))
    return question, "yes" if first == low else "no", "relation"


def _grounding(facts: _Facts) -> Turn | None:
    options = [c for c in facts.sure if 1 <= facts.counts[c] <= _MOST_BOXES]
    if not options:
        return None
    category = facts.dice.pick(options)
    boxes = facts.boxes(category)
    if not boxes:
        return None
    one, many = say.NOUNS[category]
    forms = wording.GROUND_ONE if len(boxes) == 1 else wording.GROUND_ALL
    return facts.dice.pick(forms).format(one=one, many=many), print_boxes(one, boxes), "grounding"


def _region(facts: _Facts) -> Turn | None:
    if not facts.scene.instances:
        return None
    category = facts.dice.pick([c for c in CATEGORIES if facts.counts[c]])
    instance = facts.dice.pick([i for i in facts.scene.instances if i.category == category])
    if instance.visible_fraction < _WHOLE or not facts.boxes(category):
        return None
    # Another kind of object that fills a good part of the region would make the answer ambiguous.
    x1, y1, x2, y2 = instance.bbox
    for other in facts.scene.instances:
        a1, b1, a2, b2 = other.bbox
        shared = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
        if other.category != category and shared > 0.25 * (x2 - x1) * (y2 - y1):
            return None
    box = print_boxes(None, [facts.box(instance)])
    return facts.dice.pick(say.REGION).format(box=box), say.NOUNS[category][0], "region"


def _part_shares(facts: _Facts, side: int, row: int, column: int) -> NDArray[np.float64]:
    """Share of every class in one of side x side parts, [classes]."""
    part = part_of(facts.scene.mask, side, row, column)
    return np.bincount(part.ravel(), minlength=len(CLASSES)) / part.size


def _layout(facts: _Facts) -> Turn | None:
    """A coarse map: of every part the object that fills an eighth of it, or else the ground it mostly shows."""
    objects = CLASSES.index(CATEGORIES[0])
    rows = []
    for row in range(_GRID):
        words = []
        for column in range(_GRID):
            shares = _part_shares(facts, _GRID, row, column)
            thing = objects + int(shares[objects:].argmax())
            shown = thing if shares[thing] >= _OBJECT_SHARE else int(shares[:objects].argmax())
            words.append(say.PARTS[CLASSES[shown]])
        rows.append(", ".join(words))
    return facts.dice.pick(say.LAYOUT), "; ".join(rows), "layout"


def _part(facts: _Facts) -> Turn | None:
    """What a ninth of the image holds, largest first; unasked where a share is close to being named or not."""
    row, column = facts.dice.whole(0, 2), facts.dice.whole(0, 2)
    shares = _part_shares(facts, 3, row, column)
    objects = CLASSES.index(CATEGORIES[0])
    least = [_LISTED[i >= objects] for i in range(len(CLASSES))]
    named = sorted((i for i in range(len(CLASSES)) if shares[i] >= least[i]), key=lambda i: -shares[i])
    if any(0.6 * least[i] < shares[i] < least[i] for i in range(len(CLASSES))):
        return None
    question = facts.dice.pick(say.PART).format(part=ninth(row, column))
    return question, ", ".join(say.PARTS[CLASSES[i]] for i in named), "part"


_ASKERS: tuple[tuple[Asker, float], ...] = (
    (_caption, 1.2),
    (_theme, 1.0),
    (_count, 1.2),
    (_presence, 1.4),
    (_compare, 0.9),
    (_area, 1.0),
    (_position, 0.9),
    (_relation, 0.6),
    (_grounding, 1.3),
    (_region, 1.0),
    (_layout, 0.8),
    (_part, 1.2),
)
_BY_TASK: dict[Task, Asker] = {
    "caption": _caption, "theme": _theme, "count": _count, "presence": _presence, "compare": _compare, "area": _area,
    "position": _position, "relation": _relation, "grounding": _grounding, "region": _region, "layout": _layout,
    "part": _part,
}  # fmt: skip


def instructions(
    scene: Scene, seed: int, index: int, count: int | None = None, always: Sequence[Task] = ()
) -> list[Turn]:
    """Questions about a scene with short, true answers.

    Args:
        scene: what is asked about.
        seed: with `index` the only source of chance in choice and wording.
        index: the scene's index.
        count: number of questions, no two alike; a very bare scene may yield fewer. None: one of every kind that applies.
        always: kinds asked of every scene they apply to, before others are drawn; at most `count` of them.

    Returns:
        (question, answer, task) each, in random order.
    """
    facts = _Facts(scene, Dice(seed, index, Stream.QUESTIONS))
    dice = facts.dice
    if count is None:
        asked = [_try(asker, facts, 4) for asker, _ in _ASKERS]
        return dice.shuffled([turn for turn in asked if turn is not None])
    wanted = [_try(_BY_TASK[task], facts, 4) for task in always][:count]
    turns = [turn for turn in wanted if turn is not None]
    seen = {question for question, _, _ in turns}
    fresh = [pair for pair in _ASKERS if pair[0] not in {_BY_TASK[task] for task in always}] or list(_ASKERS)
    for _ in range(count * 12):
        if len(turns) >= count:
            break
        asker = dice.weighted(fresh)
        turn = asker(facts)
        if turn is not None and turn[0] not in seen:
            turns.append(turn)
            seen.add(turn[0])
        fresh = [pair for pair in fresh if pair[0] is not asker] or list(_ASKERS)
    return dice.shuffled(turns) if always else turns


def _try(asker: Asker, facts: _Facts, attempts: int) -> Turn | None:
    """The first question an asker finds in a few attempts."""
    return next((turn for _ in range(attempts) if (turn := asker(facts)) is not None), None)
