"""What is wrong with instruction data, before any GPU minute: every record, every image, every box."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from vitp.errors import DataError, MissingExtraError
from vitp.instruction.check_images import ImageInspector, Inspected
from vitp.instruction.check_report import CheckReport
from vitp.instruction.check_text import text_notes
from vitp.instruction.findings import EXPECTED, Finding, Severity, note, note_error
from vitp.instruction.near_duplicates import find_near_duplicates
from vitp.instruction.sample import Sample
from vitp.instruction.source import Source
from vitp.instruction.statistics import Counts, source_stats
from vitp.parallel import mapped

if TYPE_CHECKING:
    from vitp.instruction.lengths import Length, LengthRule

MAX_FINDINGS = 10_000  # kept for each source and code; counts go on
_CHUNK = 1000  # samples a worker checks at a time
_COUNTED = 2000  # samples of a source whose tokens are counted for the statistics, whole or not
_Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckOptions:
    """What is checked beyond records, image headers and texts."""

    decode: bool = False  # every image in full
    near_duplicates: bool = False  # images that show the same; decodes every image
    lengths: LengthRule | None = None  # the recipe's limit; None: tokens are not counted


def check_sources(
    sources: Sequence[Source],
    options: CheckOptions | None = None,
    *,
    workers: int = 1,
    progress: _Progress | None = None,
) -> CheckReport:
    """Parse every record, read the header of every image, and check texts, boxes, duplicates, sizes and lengths.

    Args:
        sources: the sources of a mixture.
        options: what else is checked.
        workers: processes; the report does not depend on it.
        progress: called with (samples done, samples in all), then for near-duplicates with (images done, images in all).

    Raises:
        DataError: a worker process died. What is wrong with the data is in the report, never raised.
    """
    options = options or CheckOptions()
    jobs = [(number, start, min(start + _CHUNK, len(source)))
            for number, source in enumerate(sources) for start in range(0, len(source), _CHUNK)]  # fmt: skip
    total = sum(map(len, sources))
    merged = _Merged(sources, options)
    for (number, _, _), part in zip(jobs, mapped(partial(_checking, sources, options), jobs, workers), strict=True):
        merged.add(number, part)
        if progress is not None:
            progress(merged.done, total)
    return merged.report(workers, progress)


@dataclass
class _Part:
    """What was found in one chunk of a source."""

    findings: list[Finding] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    hashes: list[tuple[int, int]] = field(default_factory=list)  # (hash, sample) of the usable ones
    image_hashes: set[int] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)
    images: dict[str, tuple[int, str]] = field(default_factory=dict)  # path -> first sample and the name in it
    together: set[tuple[str, str]] = field(default_factory=set)  # paths shown in one sample, in sorted order


class _Checker:
    """Checks chunks, remembering the images it has seen."""

    def __init__(self, sources: Sequence[Source], options: CheckOptions) -> None:
        self._sources = sources
        self._options = options
        self._inspector = ImageInspector(options.decode)

    def part(self, job: tuple[int, int, int]) -> _Part:
        """Check the samples [start, stop) of a source."""
        number, start, stop = job
        source, part = self._sources[number], _Part()
        for index in range(start, stop):
            part.counts.numbers["samples"] += 1
            where, notes = self._sample(source, index, part)
            name = source.config.name
            part.findings += [replace(note, where=where, source=name, sample=index) for note in notes]
            if any(note.severity == "error" for note in notes):
                part.bad.append(index)
        return part

    def _sample(self, source: Source, index: int, part: _Part) -> tuple[str, list[Finding]]:
        """Where a sample is and what is wrong with it; counts it in `part`."""
        try:
            sample = source.sample(index)
            images = {name: self._inspector.look(source, name) for name in dict.fromkeys(sample.images)}
            notes = [*text_notes(sample, source.config.augment), *(n for seen in images.values() for n in seen.notes)]
            length = self._measure(sample, source, index, images) if not _unusable(notes) else None
            notes += _length_notes(length, self._options.lengths)
        except DataError as error:
            return error.where or source.where(index), [note_error(error)]
        except MissingExtraError:  # nothing is wrong with the data, and every further image would say the same
            raise
        except Exception as error:  # a defect of ours must not hide the rest of the report
            fix = "please report this, with the record"
            return source.where(index), [note("error", "unexpected", f"raises {type(error).__name__}: {error}", fix)]
        part.counts.take(sample, [seen.size for seen in images.values() if seen.size is not None], length)
        self._remember(images, index, part)
        if not _unusable(notes):
            root = str(source.root) if sample.images else ""
            said = (text for turn in sample.turns for text in (turn.role, turn.text))
            part.hashes.append((_hash("\0".join((root, *sample.images, *said))), index))
        return sample.where, notes

    def _measure(self, sample: Sample, source: Source, index: int, images: dict[str, Inspected]) -> Length | None:
        """The sample's length in tokens, where there is a limit; all its images can be read."""
        if self._options.lengths is None:
            return None
        sizes = [size for name in sample.images if (size := images[name].size) is not None]
        sampled = index % max(1, len(source) // _COUNTED) == 0
        return self._options.lengths.measure(sample, sizes, source.config.max_tiles, sampled)

    def _remember(self, images: dict[str, Inspected], index: int, part: _Part) -> None:
        """Note which files are used, and for near-duplicates where, and which are shown side by side."""
        paths = {str(seen.path): name for name, seen in images.items() if seen.path is not None}
        part.image_hashes.update(map(_hash, paths))
        if self._options.near_duplicates:
            readable = list(dict.fromkeys(str(seen.path) for seen in images.values() if seen.size is not None))
            for path in readable:
                part.images.setdefault(path, (index, paths[path]))
            part.together.update(combinations(sorted(readable), 2))


def _unusable(notes: Iterable[Finding]) -> bool:
    return any(note.severity == "error" for note in notes)


def _length_notes(length: Length | None, rule: LengthRule | None) -> Iterator[Finding]:
    if length is None or rule is None or length.fate == "whole":
        return
    expected = f"at most {rule.rules.max_length:,} tokens (data.max_length)"
    if length.fate == "dropped":
        fix = "raise data.max_length, lower max_tiles, or split the record"
        yield note("error", "length-dropped", length.reason.partition(":")[0], fix, expected=expected)
    else:
        found = f"has {length.tokens:,} tokens, {length.visual:,} of them visual; its last answers are cut off"
        fix = "raise data.max_length, or split the record"
        yield note("warning", "length-truncated", found, fix, expected=expected)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _checking(sources: Sequence[Source], options: CheckOptions) -> Callable[[tuple[int, int, int]], _Part]:
    return _Checker(sources, options).part


class _Merged:
    """The sum of all parts."""

    def __init__(self, sources: Sequence[Source], options: CheckOptions) -> None:
        self._sources, self._options = sources, options
        self._totals = [_Part() for _ in sources]
        self._kept: Counter[tuple[str, str]] = Counter()
        self._findings: list[Finding] = []
        self._counts: Counter[tuple[Severity, str]] = Counter()
        self._bad: set[tuple[int, int]] = set()
        self._hashes: list[np.ndarray[tuple[int, int], np.dtype[np.uint64]]] = []  # [n, 3]: hash, source, sample
        self._images: dict[str, tuple[int, int, str]] = {}  # path -> source, sample and name of its first use
        self._together: set[tuple[str, str]] = set()
        self.done = 0

    def add(self, number: int, part: _Part) -> None:
        """Add a chunk of source `number`; chunks come in order."""
        total = self._totals[number]
        self.done += part.counts.numbers["samples"]
        total.counts.add(part.counts)
        total.image_hashes |= part.image_hashes
        total.bad += part.bad
        self._bad |= {(number, index) for index in part.bad}
        for finding in part.findings:
            self._keep(finding)
        rows = [(value, number, index) for value, index in part.hashes]
        self._hashes.append(np.array(rows, np.uint64).reshape(-1, 3))
        for path, (index, name) in part.images.items():
            self._images.setdefault(path, (number, index, name))
        self._together |= part.together

    def _keep(self, finding: Finding) -> None:
        self._counts[finding.severity, finding.code] += 1
        self._kept[finding.source, finding.code] += 1
        if self._kept[finding.source, finding.code] <= MAX_FINDINGS:
            self._findings.append(finding)

    def _warn(self, code: str, number: int, index: int, found: str, fix: str, image: str | None = None) -> None:
        source = self._sources[number]
        name, where = source.config.name, source.where(index)
        self._keep(Finding("warning", code, where, found, EXPECTED[code], fix, name, index, image))

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
            earlier = self._sources[int(table[original, 1])].where(int(table[original, 2]))
            fix = "remove it, or raise the source's weight if it is meant to count twice"
            self._warn("duplicate", int(table[row, 1]), int(table[row, 2]), f"is the same sample as {earlier}", fix)

    def report(self, workers: int, progress: _Progress | None) -> CheckReport:
        """The finished report."""
        self._find_duplicates()
        near = None
        if self._options.near_duplicates:
            images = [self._sources[number].image_file(name) for number, _, name in self._images.values()]
            near = find_near_duplicates(images, self._together, workers=workers, progress=progress)
            for pair in near:
                number, index, name = self._images[pair.image]
                found = f"image {name} shows the same as {pair.found_in} ({pair.how()})"
                fix = "keep one of the two, or leave both where the difference matters"
                self._warn("near-duplicate-image", number, index, found, fix, pair.image)
        limit = self._options.lengths.rules.max_length if self._options.lengths else None
        stats = tuple(
            source_stats(source.config.name, total.counts, bad=len(total.bad),
                         distinct_images=len(total.image_hashes), max_length=limit)
            for source, total in zip(self._sources, self._totals, strict=True)
        )  # fmt: skip
        distinct = len(set().union(*(total.image_hashes for total in self._totals)))
        findings, counts = tuple(self._findings), dict(self._counts)
        return CheckReport(findings, counts, stats, frozenset(self._bad), distinct, near)
