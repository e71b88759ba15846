"""English around a class name, and chance that belongs to one image alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from vitp.demo.keys import Dice
from vitp.synthesize.config import Task

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
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


def with_article(noun: str) -> str:
    """``a ship``, ``an airplane``, ``a unit``."""
    lower = noun.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(("uni", "use", "eu", "one"))
    return f"an {noun}" if vowel else f"a {noun}"


def listed(parts: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def ninth(row: int, column: int) -> str:
    """Name of one of 3 x 3 parts."""
    return "centre" if row == column == 1 else f"{ROWS[row]} {COLUMNS[column]}"


def third(position: float, margin: float) -> int | None:
    """0, 1 or 2; None close to a border between thirds."""
    if min(abs(position - 1 / 3), abs(position - 2 / 3)) < margin:
        return None
    return min(2, int(position * 3))


def percent(share: float) -> int:
    """To the nearest five percent."""
    return round(share * 20) * 5


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
