"""What `vitp check` says: grouped counts first, then what the sources hold, then the findings one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from vitp.instruction.findings import Finding, Severity
from vitp.instruction.leakage import Overlap
from vitp.instruction.principles import Principles
from vitp.instruction.statistics import SourceStats


@dataclass(frozen=True)
class CheckReport:
    """All findings, in the order of sources and samples, then duplicates; and what the sources hold.

    At most `vitp.instruction.check.MAX_FINDINGS` findings are kept for each source and code; `counts` and `bad` are
    complete.
    """

    findings: tuple[Finding, ...]
    counts: dict[tuple[Severity, str], int]  # of each code
    sources: tuple[SourceStats, ...]
    bad: frozenset[tuple[int, int]]  # (source, sample) of every unusable sample
    distinct_images: int  # files of all sources together
    near_duplicates: tuple[Overlap, ...] | None = None  # None: not looked for
    principles: Principles | None = None  # None: not assessed
    notes: tuple[str, ...] = ()  # what could not be checked, and why

    @property
    def errors(self) -> list[Finding]:
        """The findings that make samples unusable."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def count(self, severity: Severity) -> int:
        """How many findings of a severity there are, kept or not."""
        return sum(number for (kind, _), number in self.counts.items() if kind == severity)

    def grouped(self) -> list[tuple[Severity, str, int]]:
        """Severity, code and number of findings; errors and frequent codes first."""
        ordered = sorted(self.counts.items(), key=lambda item: (item[0][0], -item[1]))
        return [(severity, code, number) for (severity, code), number in ordered]

    def examples(self, code: str, most: int) -> list[Finding]:
        """The first findings of a code."""
        return [finding for finding in self.findings if finding.code == code][:most]

    def length_shares(self) -> tuple[int, int, int]:
        """Samples measured, truncated and dropped at the recipe's limit, all sources together."""
        known = [stats.tokens for stats in self.sources if stats.tokens is not None]
        return sum(t.measured for t in known), sum(t.truncated for t in known), sum(t.dropped for t in known)

    def with_findings(self, findings: Iterable[Finding]) -> CheckReport:
        """A report with further findings behind its own."""
        counts = dict(self.counts)
        added = tuple(findings)
        for finding in added:
            counts[finding.severity, finding.code] = counts.get((finding.severity, finding.code), 0) + 1
        return replace(self, findings=self.findings + added, counts=counts)

    def to_json(self) -> dict[str, object]:
        """Everything as plain JSON data, except that the unusable samples are a number."""
        return {
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "unusable_samples": len(self.bad),
            "counts": [{"severity": kind, "code": code, "count": n} for kind, code, n in self.grouped()],
            "distinct_images": self.distinct_images,
            "sources": [asdict(stats) for stats in self.sources],
            "principles": self.principles.to_json() if self.principles else None,
            "near_duplicates": None if self.near_duplicates is None else [asdict(n) for n in self.near_duplicates],
            "notes": list(self.notes),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def lines(self, max_per_code: int = 5) -> list[str]:
        """The report for people: totals and counts, sources, principles, then examples of each code."""
        samples = sum(stats.samples for stats in self.sources)
        errors, warnings = self.count("error"), self.count("warning")
        lines = [f"{samples:,} samples, {len(self.bad):,} unusable; {errors:,} errors, {warnings:,} warnings"]
        lines += [f"  {number:,} {severity} {code}" for severity, code, number in self.grouped()]
        for stats in self.sources:
            lines += describe(stats)
        lines += self.principles.lines() if self.principles else []
        lines += self.notes
        for severity, code, number in self.grouped():
            examples = self.examples(code, max_per_code)
            lines.append(f"{severity} {code}: {number:,}; expected: {examples[0].expected}")
            for finding in examples:
                place = finding.where if finding.sample is None else f"{finding.where} (sample {finding.sample})"
                lines.append(f"  {place}: {finding.found}; {finding.fix}")
            if number > len(examples):
                lines.append(f"  ... and {number - len(examples):,} more")
        return lines


def describe(stats: SourceStats) -> list[str]:
    """A source in a few lines."""
    text = f"{stats.name}: {stats.samples:,} samples ({stats.usable:,} usable), {stats.turns:,} turns"
    if stats.images:
        text += f", {stats.distinct_images:,} images used {stats.images:,} times"
    if stats.smallest_image and stats.largest_image:
        text += " ({}x{} to {}x{} px)".format(*stats.smallest_image, *stats.largest_image)
    lines = [text]
    if stats.answers:
        chars = stats.answer_chars
        text = f"  {stats.answers:,} answers of {stats.mean_answer_chars:.0f} characters on average ("
        text += f"median {chars['median']:,}, 95 % up to {chars['p95']:,}, longest {stats.max_answer_chars:,}); "
        lines.append(text + listed(stats.kinds))
        tasks = f"tasks by their look: {listed(stats.tasks)}; " if stats.tasks else ""
        scripts = ", ".join(f"{script} {share:.1%}" for script, share in stats.scripts.items())
        lines.append(f"  {tasks}letters: {scripts or 'none'}")
    tokens = stats.tokens
    if tokens is not None and tokens.measured:
        text = f"  {tokens.truncated / tokens.measured:.2%} of {tokens.measured:,} samples are truncated and "
        text += f"{tokens.dropped / tokens.measured:.2%} dropped at {tokens.max_length:,} tokens"
        if tokens.quantiles:
            text += f" (median {tokens.quantiles['median']:,}, longest {tokens.quantiles['max']:,} of those counted)"
        lines.append(text)
    return lines


def listed(counts: dict[str, int]) -> str:
    """Counts in words, the most frequent first."""
    return ", ".join(f"{key} {n:,}" for key, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
