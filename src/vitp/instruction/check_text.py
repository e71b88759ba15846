"""What is wrong with the texts of a sample that could be parsed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vitp.instruction.encoding import damage
from vitp.instruction.findings import MAX_ANSWER_CHARS, Finding, note
from vitp.instruction.grammar import GrammarError, parse_boxes
from vitp.instruction.quads import parse_quads
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.source import AugmentConfig

_DIRECTIONS = re.compile(r"\b(left|right|top|bottom|upper|lower|north|south|east|west)(ern|most)?\b", re.IGNORECASE)
_WORD = re.compile(r"\S+")
# A loop of a generating model: a phrase of several different words, said again and again up to the end. Ours; maps in
# words and lists of boxes repeat themselves too, but not like this.
_LOOP_CHARS = 1000
_LOOP_TIMES = 10
_LOOP_WORDS = 40
_LOOP_DIFFERENT = 3
_FIXES = {
    "text-replacement": "restore the text from its source: the character is lost",
    "text-mojibake": "read the source as UTF-8, or mend the text: encode it as Windows-1252, decode that as UTF-8",
    "text-control": "remove the character",
}


def text_notes(sample: Sample, augment: AugmentConfig) -> Iterator[Finding]:
    """Findings about boxes, endless answers, damaged characters, and words that flips and turns make untrue."""
    for number, turn in enumerate(sample.turns, 1):
        for read in (parse_boxes, parse_quads):
            try:
                read(turn.text)
            except GrammarError as error:  # quads are read in training only where they must move
                found = f"turn {number}: {error.found} at character {error.position + 1}"
                harmless = read is parse_quads and not augment.moves
                yield note("warning" if harmless else "error", error.code, found, error.fix)
        if turn.role == "assistant":
            yield from _answer_notes(turn.text, number)
        for code, found in damage(turn.text):
            yield note("warning", code, f"turn {number} holds {found}", _FIXES[code])
        if augment.flip or augment.rot90:
            yield from _moved_notes(turn, number)


def _answer_notes(answer: str, number: int) -> Iterator[Finding]:
    if len(answer) > MAX_ANSWER_CHARS:
        fix = "shorten the answer, or cut it into several"
        yield note("warning", "answer-endless", f"the answer in turn {number} has {len(answer):,} characters", fix)
    loop = _loop(answer) if len(answer) >= _LOOP_CHARS else None
    if loop is not None:
        phrase, times = loop
        shown = phrase if len(phrase) <= 60 else phrase[:57] + "..."
        found = f"the answer in turn {number} ends with '{shown}' {times:,} times in a row"
        yield note("warning", "answer-repeats", found, "cut the repetition off, or remove the record")


def _loop(text: str) -> tuple[str, int] | None:
    """The phrase a text ends with again and again, and how often."""
    words = _WORD.findall(text)
    for period in range(_LOOP_DIFFERENT, min(_LOOP_WORDS, len(words) // _LOOP_TIMES) + 1):
        same = next((i for i in range(len(words) - period) if words[-1 - i] != words[-1 - i - period]), None)
        times = ((len(words) - period if same is None else same) + period) // period
        phrase = words[-period:]
        long_enough = times >= _LOOP_TIMES and times * len(" ".join([*phrase, ""])) >= _LOOP_CHARS
        if long_enough and len({word.strip(".,;:!?()").lower() for word in phrase}) >= _LOOP_DIFFERENT:
            return " ".join(phrase), times
    return None


def _moved_notes(turn: Turn, number: int) -> Iterator[Finding]:
    fix = "switch augment.flip and augment.rot90 off for this source"
    word = _DIRECTIONS.search(turn.text)
    if word and turn.role != "system":
        yield note("warning", "direction-words", f"turn {number} says '{word[0]}' and images are flipped", fix)
