"""What instruction data consists of: counts that add up over chunks, and the figures made of them."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from vitp.instruction.sample import IMAGE_MARK, Sample

if TYPE_CHECKING:
    from vitp.instruction.lengths import Length

Size = tuple[int, int]  # width, height

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}
_SHORT = 5  # words of a short answer at most; ours
_WORD_CHARS = 6  # letters that count as a word where words are not set apart by blanks

# First code points of stretches of the Unicode blocks, and the script of their letters.
_SCRIPTS = (
    (0x0000, "Latin"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "other"), (0x0590, "Hebrew"),
    (0x0600, "Arabic"), (0x0700, "other"), (0x0750, "Arabic"), (0x0780, "other"), (0x0870, "Arabic"),
    (0x0900, "Devanagari"), (0x0980, "other"), (0x0E00, "Thai"), (0x0E80, "other"), (0x1100, "Hangul"),
    (0x1200, "other"), (0x1C80, "Cyrillic"), (0x1C90, "other"), (0x1D00, "Latin"), (0x1F00, "Greek"), (0x2000, "Latin"),
    (0x2C00, "other"), (0x2C60, "Latin"), (0x2C80, "other"), (0x2DE0, "Cyrillic"), (0x2E00, "Han"), (0x3040, "Kana"),
    (0x3100, "Han"), (0x3130, "Hangul"), (0x3190, "Han"), (0x31F0, "Kana"), (0x3200, "Han"), (0xA000, "other"),
    (0xA640, "Cyrillic"), (0xA6A0, "other"), (0xA720, "Latin"), (0xA800, "other"), (0xAB30, "Latin"),
    (0xAB70, "other"), (0xAC00, "Hangul"), (0xD800, "other"), (0xF900, "Han"), (0xFB00, "Latin"), (0xFB13, "other"),
    (0xFB1D, "Hebrew"), (0xFB50, "Arabic"), (0xFE00, "other"), (0xFE70, "Arabic"), (0xFF00, "Latin"), (0xFF66, "Kana"),
    (0xFFA0, "Hangul"), (0xFFE0, "other"), (0x20000, "Han"), (0x40000, "other"),
)  # fmt: skip
_STARTS = [start for start, _ in _SCRIPTS]

_TAG = re.compile(r"</?(?:ref|box|quad)>|" + re.escape(IMAGE_MARK))
_READ = re.compile(
    r"\bocr\b|\btranscri|\bread (?:out )?(?:all |the )*(?:text|word|letter|sign|label|line)|文字|识别"
    r"|\b(?:text|words?|letters?|characters?) (?:is |are |that is )?(?:written|printed|shown|visible|in the)\b"
    r"|\bwhat (?:is|does|do)\b[^?]*\b(?:written|says?|read)\b",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"\bclass(?:es|ify|ified|ification)?\b|\bcategor|\btheme\b|\b(?:type|kind|sort) of\b|\bmodality\b"
    r"|\b(?:what|which) (?:type|kind|scene|organ|modality|disease|land[- ]?(?:use|cover))\b|类别|哪一类",
    re.IGNORECASE,
)
_DESCRIBE = re.compile(
    r"\bdescri|\bcaption|\bsummar|\bdepict|\bnarrat|\btell me about|\bwhat (?:can be seen|do you see|is (?:seen|shown))"
    r"|\bwhat (?:does|do|is|are)\b[^?]*\b(?:image|picture|photo|figure|scan|scene)s?\b[^?]*\b(?:show|about|contain)"
    r"|描述|介绍|说明",
    re.IGNORECASE,
)


def kind_of(question: str, answer: str) -> str:
    """The look of an answer: grounding, yes-no, number, short answer (at most 5 words), description."""
    if any(mark in question + answer for mark in ("<box>", "<quad>")):
        return "grounding"
    plain = answer.strip().rstrip(".").lower()
    if plain in ("yes", "no"):
        return "yes-no"
    if plain.isdecimal():
        return "number"
    return "short answer" if _words(plain) <= _SHORT else "description"


def task_of(question: str, answer: str) -> str:
    """The task a question and its answer train, by their look, in the words of the paper's Tables 9 to 11.

    Grounding: either holds a box. OCR: the question asks what is written. Classification: it asks for a class, a type
    or a theme, and the answer is short. Caption: it asks for a description, or asks nothing, and the answer is longer.
    Everything else is VQA.
    """
    if any(tag in text for tag in ("<box>", "<quad>") for text in (question, answer)):
        return "grounding"
    asks = _asks_for(question)
    if asks["ocr"]:
        return "ocr"
    kind = kind_of(question, answer)
    if kind == "short answer" and asks["classification"]:
        return "classification"
    return "caption" if kind == "description" and asks["caption"] else "vqa"


@lru_cache(maxsize=65536)  # most data ask a few questions again and again
def _asks_for(question: str) -> dict[str, bool]:
    asks_nothing = not question.replace(IMAGE_MARK, "").strip()
    return {
        "ocr": bool(_READ.search(question)),
        "classification": bool(_NAME.search(question)),
        "caption": asks_nothing or bool(_DESCRIBE.search(question)),
    }


def _words(text: str) -> int:
    """Words between blanks, or where there are hardly any blanks, as in Chinese, letters over six."""
    between = len(text.split())
    return between if text.isascii() else max(between, len(text) // _WORD_CHARS)


def script_of(letter: str) -> str:
    """The script of a letter by its Unicode block: Latin, Han, Kana, Hangul, Cyrillic, Greek, Arabic, ..., other."""
    return _SCRIPTS[bisect_right(_STARTS, ord(letter)) - 1][1]


@dataclass
class Counts:
    """Counts of a stretch of samples; `add` sums two."""

    numbers: Counter[str] = field(default_factory=Counter)
    answer_chars: Counter[int] = field(default_factory=Counter)  # length -> answers
    sample_tokens: Counter[int] = field(default_factory=Counter)  # length -> samples, of those that were counted
    kinds: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    smallest: Size | None = None
    largest: Size | None = None

    def take(self, sample: Sample, sizes: Sequence[Size], length: Length | None) -> None:
        """Count a sample, the (width, height) of its images and, where known, its length in tokens."""
        answers = [turn.text for turn in sample.turns if turn.role == "assistant"]
        questions = [turn.text for turn in sample.turns if turn.role == "user"]
        self.numbers.update(images=len(sample.images), turns=len(sample.turns), answers=len(answers))
        self.numbers.update(answer_chars=sum(map(len, answers)), several_images=len(sample.images) > 1)
        self.answer_chars.update(map(len, answers))
        self.kinds.update(map(kind_of, questions, answers))
        if sample.images:  # a text alone trains no task of a vision backbone
            self.tasks.update(map(task_of, questions, answers))
            self.tasks.update(["dialogue"] if len(questions) > 1 else [])
        text = "".join(turn.text for turn in sample.turns)
        self.characters.update(_TAG.sub("", text) if "<" in text else text)
        self._take_sizes(sizes)
        if length is not None:
            self.numbers.update(measured=1, truncated=length.fate == "truncated", dropped=length.fate == "dropped")
            if length.tokens is not None and length.sampled:
                self.sample_tokens[length.tokens] += 1

    def _take_sizes(self, sizes: Sequence[Size]) -> None:
        self.smallest = min(filter(None, (self.smallest, *sizes)), key=math.prod, default=None)
        self.largest = max(filter(None, (self.largest, *sizes)), key=math.prod, default=None)

    def add(self, other: Counts) -> None:
        """Add the counts of another stretch."""
        for name in ("numbers", "answer_chars", "sample_tokens", "kinds", "tasks", "characters"):
            getattr(self, name).update(getattr(other, name))
        self._take_sizes([size for size in (other.smallest, other.largest) if size is not None])


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Samples by their length in tokens, visual tokens before dropping included.

    Every sample was measured where an image's size was known; the quantiles are those of evenly taken ones.
    """

    measured: int
    truncated: int  # the end of their answers is cut off
    dropped: int  # nothing of them can be trained on
    max_length: int
    quantiles: dict[str, int]


@dataclass(frozen=True, slots=True)
class SourceStats:
    """What a source holds. Images are counted by use and by file; answers in characters."""

    name: str
    samples: int
    usable: int
    images: int
    distinct_images: int
    several_images: int  # samples with two images or more
    turns: int
    answers: int
    mean_answer_chars: float
    max_answer_chars: int
    answer_chars: dict[str, int]  # quantiles
    answer_bins: dict[str, int]  # answers by length, bounds doubling
    smallest_image: Size | None  # by area
    largest_image: Size | None
    kinds: dict[str, int]  # answers by their look, see `kind_of`
    tasks: dict[str, int]  # answers of each task, see `task_of`; "dialogue": samples with several questions
    scripts: dict[str, float]  # share of the letters of questions and answers
    tokens: TokenStats | None  # None: not measured


def source_stats(name: str, counts: Counts, *, bad: int, distinct_images: int, max_length: int | None) -> SourceStats:
    """The figures of a source whose samples were counted; `bad` of them are unusable."""
    numbers = counts.numbers
    tokens = None
    if max_length is not None:
        quantiles = _quantiles(counts.sample_tokens)
        measured = (numbers["measured"], numbers["truncated"], numbers["dropped"])
        tokens = TokenStats(*measured, max_length=max_length, quantiles=quantiles)
    return SourceStats(
        name=name, samples=numbers["samples"], usable=numbers["samples"] - bad,
        images=numbers["images"], distinct_images=distinct_images, several_images=numbers["several_images"],
        turns=numbers["turns"], answers=numbers["answers"],
        mean_answer_chars=numbers["answer_chars"] / max(1, numbers["answers"]),
        max_answer_chars=max(counts.answer_chars, default=0), answer_chars=_quantiles(counts.answer_chars),
        answer_bins=_bins(counts.answer_chars), smallest_image=counts.smallest, largest_image=counts.largest,
        kinds=dict(counts.kinds), tasks=dict(counts.tasks), scripts=_shares(counts.characters), tokens=tokens,
    )  # fmt: skip


def _quantiles(lengths: Counter[int]) -> dict[str, int]:
    """Exact quantiles (the lower value where one falls between two); nothing where nothing was counted."""
    values = sorted(lengths)
    ends: list[int] = []
    for value in values:
        ends.append(lengths[value] + (ends[-1] if ends else 0))
    if not ends:
        return {}
    return {name: values[bisect_right(ends, q * (ends[-1] - 1))] for name, q in QUANTILES.items()}


def _bins(lengths: Counter[int]) -> dict[str, int]:
    """How many answers have 1, 2-3, 4-7, 8-15, ... characters; no bin between the first and the last is left out."""
    powers: Counter[int] = Counter()
    for length, number in lengths.items():
        powers[max(1, length).bit_length() - 1] += number
    if not powers:
        return {}
    spans = range(min(powers), max(powers) + 1)
    return {f"{1 << p:,}–{(2 << p) - 1:,}" if p else "1": powers[p] for p in spans}


def _shares(characters: Mapping[str, int]) -> dict[str, float]:
    scripts: Counter[str] = Counter()
    for character, number in characters.items():
        if character.isalpha():
            scripts[script_of(character)] += number
    return {script: number / scripts.total() for script, number in scripts.most_common()}
