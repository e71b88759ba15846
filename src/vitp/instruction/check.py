"""What is wrong with instruction data, before any GPU minute: every record, every image, every box."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from vitp.errors import DataError, MissingExtraError
from vitp.images.decode import MAX_PIXELS, ImageError
from vitp.images.read import image_size, read_image
from vitp.instruction.grammar import GrammarError, parse_boxes
from vitp.instruction.records import RecordError
from vitp.instruction.sample import Sample
from vitp.instruction.source import Source
from vitp.parallel import mapped

Severity = Literal["error", "warning"]
Size = tuple[int, int]  # width, height

MAX_FINDINGS = 10_000  # kept for each source and code; counts go on
MIN_SIDE = 8  # pixels; ours: smaller than a patch of any ViT
MAX_RATIO = 50  # longer side to shorter; ours: nothing is left of it after resizing to a tile
_CHUNK = 1000  # samples a worker checks at a time
_CACHED_IMAGES = 200_000
_DIRECTIONS = re.compile(r"\b(left|right|top|bottom|upper|lower|north|south|east|west)(ern|most)?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: where (``file:line``), what, and the fix. An error makes its sample unusable."""

    severity: Severity
    code: str
    where: str
    message: str
    fix: str
    source: str


@dataclass(frozen=True, slots=True)
class SourceStats:
    """What a source holds. Images are counted by use and by file; answers in characters."""

    name: str
    samples: int
    usable: int
    images: int
    distinct_images: int
    turns: int
    answers: int
    mean_answer_chars: float
    max_answer_chars: int
    smallest_image: Size | None  # by area
    largest_image: Size | None
    tasks: dict[str, int]  # answers of each kind, see `task_of`


@dataclass(frozen=True)
class CheckReport:
    """All findings, in the order of sources and samples, then duplicates; and what the sources hold.

    At most `MAX_FINDINGS` findings are kept for each source and code; `counts` and `bad` are complete.
    """

    findings: tuple[Finding, ...]
    counts: dict[tuple[Severity, str], int]  # of each code
    sources: tuple[SourceStats, ...]
    bad: frozenset[tuple[int, int]]  # (source, sample) of every unusable sample

    @property
    def errors(self) -> list[Finding]:
        """The findings that make samples unusable."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def count(self, severity: Severity) -> int:
        """How many findings of a severity there are, kept or not."""
        return sum(number for (kind, _), number in self.counts.items() if kind == severity)

    def to_json(self) -> dict[str, object]:
        """Everything as plain JSON data, except that the unusable samples are a number."""
        return {
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "unusable_samples": len(self.bad),
            "counts": [{"severity": kind, "code": code, "count": n} for (kind, code), n in self.counts.items()],
            "sources": [asdict(stats) for stats in self.sources],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def lines(self, max_per_code: int = 5) -> list[str]:
        """The report for people: totals, sources, then findings by code, errors and frequent codes first."""
        samples = sum(stats.samples for stats in self.sources)
        errors, warnings = self.count("error"), self.count("warning")
        lines = [f"{samples:,} samples, {len(self.bad):,} unusable; {errors:,} errors, {warnings:,} warnings"]
        lines += [_describe(stats) for stats in self.sources]
        for key, number in sorted(self.counts.items(), key=lambda item: (item[0][0], -item[1])):
            lines.append(f"{' '.join(key)}: {number:,}")
            examples = [finding for finding in self.findings if (finding.severity, finding.code) == key][:max_per_code]
            lines += [f"  {finding.where}: {finding.message}; {finding.fix}" for finding in examples]
            if number > len(examples):
                lines.append(f"  ... and {number - len(examples):,} more")
        return lines


def _describe(stats: SourceStats) -> str:
    text = f"{stats.name}: {stats.samples:,} samples ({stats.usable:,} usable), {stats.turns:,} turns"
    if stats.images:
        text += f", {stats.distinct_images:,} images used {stats.images:,} times"
    if stats.smallest_image and stats.largest_image:
        text += " ({}x{} to {}x{} px)".format(*stats.smallest_image, *stats.largest_image)
    text += f", answers of {stats.mean_answer_chars:.0f} characters on average (longest {stats.max_answer_chars:,})"
    tasks = ", ".join(f"{task} {n:,}" for task, n in sorted(stats.tasks.items(), key=lambda item: (-item[1], item[0])))
    return f"{text}; {tasks}" if tasks else text


def check_sources(
    sources: Sequence[Source],
    decode: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Parse every record, read the header of every image, and check boxes, duplicates and sizes.

    Args:
        sources: the sources of a mixture.
        decode: decode every image in full as well, which finds truncated and damaged ones.
        workers: processes; the report does not depend on it.
        progress: called with (samples done, samples in all).

    Raises:
        DataError: a worker process died. What is wrong with the data is in the report, never raised.
    """
    jobs = [(number, start, min(start + _CHUNK, len(source)))
            for number, source in enumerate(sources) for start in range(0, len(source), _CHUNK)]  # fmt: skip
    total = sum(map(len, sources))
    merged = _Merged(sources)
    for (number, _, _), part in zip(jobs, mapped(partial(_checking, sources, decode), jobs, workers), strict=True):
        merged.add(number, part)
        if progress is not None:
            progress(merged.done, total)
    return merged.report()


@dataclass
class _Part:
    """What was found in one chunk of a source."""

    findings: list[Finding] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    hashes: list[tuple[int, int]] = field(default_factory=list)  # (hash, sample) of the usable ones
    image_hashes: set[int] = field(default_factory=set)
    numbers: Counter[str] = field(default_factory=Counter)  # samples, images, turns, answers, answer_chars
    max_answer_chars: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    smallest: Size | None = None
    largest: Size | None = None


class _Checker:
    """Checks chunks, remembering the images it has seen."""

    def __init__(self, sources: Sequence[Source], decode: bool) -> None:
        self._sources = sources
        self._decode = decode
        self._images: dict[tuple[int, str], tuple[Size | None, list[Finding]]] = {}

    def part(self, job: tuple[int, int, int]) -> _Part:
        """Check the samples [start, stop) of a source."""
        number, start, stop = job
        source, part = self._sources[number], _Part()
        for index in range(start, stop):
            part.numbers["samples"] += 1
            where, notes = self._sample(source, index, part)
            part.findings += [replace(note, where=where, source=source.config.name) for note in notes]
            if any(note.severity == "error" for note in notes):
                part.bad.append(index)
        return part

    def _sample(self, source: Source, index: int, part: _Part) -> tuple[str, list[Finding]]:
        """Where a sample is and what is wrong with it; counts it in `part`."""
        try:
            sample = source.sample(index)
            notes = [*_text_notes(sample, source), *self._image_notes(sample, source, part)]
        except DataError as error:
            return error.where or source.where(index), [_note(error)]
        except MissingExtraError:  # nothing is wrong with the data, and every further image would say the same
            raise
        except Exception as error:  # a defect of ours must not hide the rest of the report
            fix = "please report this, with the record"
            found = f"raises {type(error).__name__}: {error}"
            return source.where(index), [_finding("error", "unexpected", found, fix)]
        _count(sample, part)
        if not any(note.severity == "error" for note in notes):
            root = str(source.root) if sample.images else ""
            said = (text for turn in sample.turns for text in (turn.role, turn.text))
            part.hashes.append((_hash("\0".join((root, *sample.images, *said))), index))
        return sample.where, notes

    def _image_notes(self, sample: Sample, source: Source, part: _Part) -> Iterator[Finding]:
        for name in dict.fromkeys(sample.images):
            try:
                path = source.image_path(name)
            except DataError as error:
                yield _note(error, f"image {name} ")
                continue
            key = (id(source), str(path))  # two sources may read one file with different scalings
            if key not in self._images:
                if len(self._images) >= _CACHED_IMAGES:
                    self._images.clear()
                self._images[key] = _inspect(source, name, self._decode)
            size, notes = self._images[key]
            part.image_hashes.add(_hash(str(path)))
            if size is not None:
                part.smallest = min(filter(None, (part.smallest, size)), key=math.prod)
                part.largest = max(filter(None, (part.largest, size)), key=math.prod)
            yield from notes


def _inspect(source: Source, name: str, decode: bool) -> tuple[Size | None, list[Finding]]:
    """Size of an image file and what is wrong with it."""
    path = source.image_path(name)
    try:
        width, height = image_size(path, source.config.images)
        if width * height > MAX_PIXELS:
            found = f"image {name} has {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed"
            return (width, height), [_finding("error", "image-too-large", found, "cut it into smaller images")]
        if decode:
            read_image(path, source.config.images)
    except DataError as error:
        return None, [_note(error, f"image {name} ")]
    if min(width, height) < MIN_SIDE:
        found = f"image {name} is only {width} x {height} pixels"
        return (width, height), [_finding("warning", "image-tiny", found, "remove it if nothing can be seen")]
    if max(width, height) > MAX_RATIO * min(width, height):
        found = f"image {name} is a strip of {width} x {height} pixels"
        return (width, height), [_finding("warning", "image-strip", found, "cut it, or remove the record")]
    return (width, height), []


def _text_notes(sample: Sample, source: Source) -> Iterator[Finding]:
    """Wrong box notation; texts that flips and turns would make untrue."""
    moved = source.config.augment.flip or source.config.augment.rot90
    fix = "switch augment.flip and augment.rot90 off for this source"
    for number, turn in enumerate(sample.turns, 1):
        try:
            parse_boxes(turn.text)
        except GrammarError as error:
            found = f"turn {number}: {error.found} at character {error.position + 1}"
            yield _finding("error", error.code, found, error.fix)
        word = _DIRECTIONS.search(turn.text) if moved else None
        if word and turn.role != "system":
            yield _finding("warning", "direction-words", f"turn {number} says '{word[0]}' and images are flipped", fix)
        if moved and "<quad>" in turn.text:
            yield _finding("warning", "quad-not-moved", f"turn {number} holds <quad>, which does not follow flips", fix)


def _count(sample: Sample, part: _Part) -> None:
    answers = [turn.text for turn in sample.turns if turn.role == "assistant"]
    questions = [turn.text for turn in sample.turns if turn.role == "user"]
    counts = {"images": len(sample.images), "turns": len(sample.turns), "answers": len(answers)}
    part.numbers.update(counts, answer_chars=sum(map(len, answers)))
    part.max_answer_chars = max(part.max_answer_chars, *map(len, answers))
    part.tasks.update(map(task_of, questions, answers))


def task_of(question: str, answer: str) -> str:
    """The kind of an answer, by its look: grounding, yes-no, number, short answer (at most 5 words), description."""
    if "<box>" in answer or "<box>" in question:
        return "grounding"
    plain = answer.strip().rstrip(".").lower()
    if plain in ("yes", "no"):
        return "yes-no"
    if plain.isdecimal():
        return "number"
    return "short answer" if len(plain.split()) <= 5 else "description"


def _finding(severity: Severity, code: str, message: str, fix: str) -> Finding:
    """A finding that does not know its sample yet."""
    return Finding(severity, code, "", message, fix, "")


def _note(error: DataError, subject: str = "") -> Finding:
    if isinstance(error, ImageError | RecordError):
        return _finding("error", error.code, subject + error.found, error.fix)
    return _finding("error", "unusable", subject + error.reason, "see the message")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _checking(sources: Sequence[Source], decode: bool) -> Callable[[tuple[int, int, int]], _Part]:
    return _Checker(sources, decode).part


class _Merged:
    """The sum of all parts."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._totals = [_Part() for _ in sources]
        self._kept: Counter[tuple[str, str]] = Counter()
        self._findings: list[Finding] = []
        self._counts: Counter[tuple[Severity, str]] = Counter()
        self._bad: set[tuple[int, int]] = set()
        self._hashes: list[np.ndarray[tuple[int, int], np.dtype[np.uint64]]] = []  # [n, 3]: hash, source, sample
        self.done = 0

    def add(self, number: int, part: _Part) -> None:
        """Add a chunk of source `number`; chunks come in order."""
        total = self._totals[number]
        self.done += part.numbers["samples"]
        total.numbers += part.numbers
        total.max_answer_chars = max(total.max_answer_chars, part.max_answer_chars)
        total.tasks += part.tasks
        total.image_hashes |= part.image_hashes
        total.bad += part.bad
        total.smallest = min(filter(None, (total.smallest, part.smallest)), key=math.prod, default=None)
        total.largest = max(filter(None, (total.largest, part.largest)), key=math.prod, default=None)
        self._bad |= {(number, index) for index in part.bad}
        for finding in part.findings:
            self._keep(finding)
        rows = [(value, number, index) for value, index in part.hashes]
        self._hashes.append(np.array(rows, np.uint64).reshape(-1, 3))

    def _keep(self, finding: Finding) -> None:
        self._counts[finding.severity, finding.code] += 1
        self._kept[finding.source, finding.code] += 1
        if self._kept[finding.source, finding.code] <= MAX_FINDINGS:
            self._findings.append(finding)

    def _find_duplicates(self) -> None:
        """A warning for every sample that says the same about the same images as an earlier one."""
        if not any(map(len, self._hashes)):
            return
        table = np.concatenate(self._hashes)
        order = np.argsort(table[:, 0], kind="stable")
        value = table[order, 0]
        new = np.concatenate([[True], value[1:] != value[:-1]])
        first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        for row, original in sorted(zip(order[~new].tolist(), first[~new].tolist(), strict=True)):
            source, earlier = self._sources[int(table[row, 1])], self._sources[int(table[original, 1])]
            message = f"is the same sample as {earlier.where(int(table[original, 2]))}"
            fix = "remove it, or raise the source's weight if it is meant to count twice"
            where = source.where(int(table[row, 2]))
            self._keep(Finding("warning", "duplicate", where, message, fix, source.config.name))

    def report(self) -> CheckReport:
        """The finished report."""
        self._find_duplicates()
        names = [source.config.name for source in self._sources]
        stats = tuple(map(_stats, names, self._totals))
        return CheckReport(tuple(self._findings), dict(self._counts), stats, frozenset(self._bad))


def _stats(name: str, total: _Part) -> SourceStats:
    numbers = total.numbers
    return SourceStats(
        name=name, samples=numbers["samples"], usable=numbers["samples"] - len(total.bad),
        images=numbers["images"], distinct_images=len(total.image_hashes),
        smallest_image=total.smallest, largest_image=total.largest, turns=numbers["turns"], answers=numbers["answers"],
        mean_answer_chars=numbers["answer_chars"] / max(1, numbers["answers"]),
        max_answer_chars=total.max_answer_chars, tasks=dict(total.tasks),
    )  # fmt: skip
