"""English around a class name, and chance that belongs to one image alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from vitp.demo.keys import Dice
from vitp.instruction.wording import NUMBERS
from vitp.synthesis.config import Task

_SAME = frozenset({"aircraft", "sheep", "fish", "deer", "scissors", "skis", "offspring", "series", "species"})
_ODD = {"person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "knife": "knives",
        "leaf": "leaves", "shelf": "shelves", "foot": "feet", "tooth": "teeth", "nucleus": "nuclei"}  # fmt: skip
_TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer; two with the same `subject` ask the same thing in other words."""

    question: str
    answer: str
    task: Task
    subject: str


class Words:
    """Nouns as they stand in sentences."""

    def __init__(self, plurals: Mapping[str, str], view: str) -> None:
        self._plurals = plurals
        self.view = view

    def many(self, noun: str) -> str:
        """The plural."""
        if noun in self._plurals:
            return self._plurals[noun]
        start, _, last = noun.rpartition(" ")
        return f"{start} {_plural(last)}".strip()

    def numbered(self, count: int, noun: str) -> str:
        """``three ships``, ``one ship``; up to a dozen in words."""
        number = NUMBERS[count] if count < len(NUMBERS) else str(count)
        return f"{number} {noun if count == 1 else self.many(noun)}"


def _plural(noun: str) -> str:
    lower = noun.lower()
    if lower in _SAME or lower in _ODD:
        return _ODD.get(lower, noun)
    if lower.endswith("y") and lower[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if lower.endswith(("s", "x", "z", "ch", "sh")) else f"{noun}s"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


class Draw:
    """Chance that depends on (seed, image, task, attempt) and on nothing else.

    `asked` holds the subjects of the questions that the image already has. Whoever asks for yes or no takes them out
    of both sides before the coin is thrown: a side that runs out first must not tilt the answers.
    """

    def __init__(self, seed: int, name: str) -> None:
        self.seed, self.name = seed, name
        self.asked: set[str] = set()

    def _number(self, *parts: object) -> int:
        text = "\0".join(map(str, (self.seed, self.name, *parts)))
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

    def dice(self, task: Task, attempt: int) -> Dice:
        """Scalar draws for one attempt at one task."""
        return Dice(self.seed, self._number("dice", attempt), _TASKS.index(task))

    def rank(self, *parts: object) -> float:
        """A uniform number in [0, 1) for a name: it stays the same whatever other names there are."""
        return self._number("rank", *parts) / 2.0**64

    def first(self, options: Iterable[str], *parts: object) -> str:
        """One of the options, all equally likely; another option more or less changes the choice only if chosen."""
        return min(options, key=lambda option: (self.rank(*parts, option), option))

    def ordered(self, options: Iterable[str], *parts: object) -> list[str]:
        """The options in random order, independent of each other as in `first`."""
        return sorted(options, key=lambda option: (self.rank(*parts, option), option))
