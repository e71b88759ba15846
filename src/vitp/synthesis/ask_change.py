"""Questions about what changed between two images: how much, and where on a coarse grid.

A part in which so little changed that one could say either is not asked about.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitp.demo.keys import Dice
from vitp.instruction.wording import ninth, part_of, percent
from vitp.synthesis import phrases as say
from vitp.synthesis.ask_masks import GRIDS
from vitp.synthesis.config import Task
from vitp.synthesis.words import Asked, Draw

_CHANGED, _SAME = 0.02, 0.005  # ours: share of a part from which it is changed; up to which it is the same


class ChangeFacts:
    """Where a pair of images changed, [H, W]."""

    def __init__(self, changed: NDArray[np.bool_], subject: str | None, draw: Draw) -> None:
        self.changed, self.draw = changed, draw
        self.what = "changes" if subject is None else f"{subject} changes"
        self.share = float(changed.mean())

    def cell(self, parts: int, row: int, column: int) -> float:
        """Changed share of one of parts x parts pieces."""
        return float(part_of(self.changed, parts, row, column).mean())

    def states(self, parts: int) -> list[list[bool | None]]:
        """Of every part whether it changed; None where so little changed that one could say either."""

        def state(share: float) -> bool | None:
            return True if share >= _CHANGED else False if share <= _SAME else None

        return [[state(self.cell(parts, row, column)) for column in range(parts)] for row in range(parts)]


Asker = Callable[[ChangeFacts, Dice, int], Asked | None]


def _change(facts: ChangeFacts, dice: Dice, attempt: int) -> Asked | None:
    if facts.share == 0.0:
        answer = dice.pick(
            (f"There are no {facts.what}.", f"No {facts.what} can be seen.", f"The two images show no {facts.what}.")
        )
    elif facts.share < _CHANGED:
        return None
    else:
        shown = percent(facts.share)
        answer = f"The {facts.what} cover {'less than 5' if shown == 0 else f'about {shown}'}% of the area"
        cells = sorted(((facts.cell(3, r, c), ninth(r, c)) for r in range(3) for c in range(3)), reverse=True)
        if cells[0][0] >= 1.3 * cells[1][0]:
            answer += f", most of all in the {cells[0][1]}"
        answer += "."
    return Asked(dice.pick(say.CHANGE).format(what=facts.what), answer, "change", "change")


def _change_area(facts: ChangeFacts, dice: Dice, attempt: int) -> Asked | None:
    if 0.0 < facts.share < 0.04:
        return None
    answer = "0%" if facts.share == 0.0 else f"about {percent(facts.share)}%"
    return Asked(dice.pick(say.CHANGE_AREA).format(what=facts.what), answer, "change_area", "change_area")


def _change_presence(facts: ChangeFacts, dice: Dice, attempt: int) -> Asked | None:
    """Of one part; asked only where yes and no are both possible."""
    states = {ninth(r, c): state for r, row in enumerate(facts.states(3)) for c, state in enumerate(row)}
    left = {part: state for part, state in states.items() if f"change {part}" not in facts.draw.asked}
    if not {True, False} <= set(left.values()):
        return None
    wanted = dice.chance(0.5)
    part = dice.pick([part for part, state in left.items() if state is wanted])
    question = dice.pick(say.CHANGE_PRESENCE).format(what=facts.what, part=part)
    return Asked(question, "yes" if wanted else "no", "change_presence", f"change {part}")


def _change_part(facts: ChangeFacts, dice: Dice, attempt: int) -> Asked | None:
    states = {ninth(r, c): state for r, row in enumerate(facts.states(3)) for c, state in enumerate(row)}
    if None in states.values():
        return None
    answer = ", ".join(part for part, state in states.items() if state) or "none"
    return Asked(dice.pick(say.CHANGE_PART).format(what=facts.what), answer, "change_part", "change_part")


def _change_layout(facts: ChangeFacts, dice: Dice, attempt: int) -> Asked | None:
    for parts in GRIDS:
        states = facts.states(parts)
        flat = {state for row in states for state in row}
        if None not in flat and (len(flat) > 1 or parts > 2):  # two by two of one kind says next to nothing
            answer = "; ".join(", ".join("changed" if state else "same" for state in row) for row in states)
            question = dice.pick(say.CHANGE_LAYOUT).format(what=facts.what, n=parts)
            return Asked(question, answer, "change_layout", "layout")
    return None


ASKERS: dict[Task, tuple[Asker, float]] = {
    "change": (_change, 1.2), "change_area": (_change_area, 1.0), "change_presence": (_change_presence, 1.4),
    "change_part": (_change_part, 1.2), "change_layout": (_change_layout, 1.5),
}  # fmt: skip
