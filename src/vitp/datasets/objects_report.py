"""What a look at every label of a detection data set found, before a step is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vitp.boxes.objects import SIZES
from vitp.datasets.splits import Split

_EXAMPLES = 3  # of a finding, told with file:line
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Finding:
    """Something unusual in the labels: how often, and the first few with file:line."""

    what: str  # completes "N ..."
    count: int
    examples: tuple[str, ...]
    dropped: bool  # whether the objects are gone

    def __str__(self) -> str:
        shown = "; ".join(self.examples)
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} {self.what} ({shown}{more})" if shown else f"{self.count} {self.what}"


@dataclass
class Findings:
    """Findings while they are counted."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def add(self, what: str, where: Callable[[], str], *, dropped: bool = False) -> None:
        """Count one; `where` is asked for the first few only, since it may read a whole file."""
        self.counts[what] += 1
        if dropped:
            self.lost.add(what)
        shown = self.examples.setdefault(what, [])
        if len(shown) < _EXAMPLES:
            shown.append(where())

    def all(self) -> tuple[Finding, ...]:
        """What was found, what was dropped first."""
        found = [
            Finding(what, count, tuple(self.examples[what]), what in self.lost) for what, count in self.counts.items()
        ]
        return tuple(sorted(found, key=lambda finding: not finding.dropped))

    def merged(self, other: Findings) -> Findings:
        """Both together."""
        both = Findings(self.counts + other.counts, {}, self.lost | other.lost)
        for what in both.counts:
            both.examples[what] = [*self.examples.get(what, []), *other.examples.get(what, [])][:_EXAMPLES]
        return both


@dataclass(frozen=True)
class ObjectReport:
    """Objects per class and part, and everything that is worth saying aloud."""

    objects: dict[Split, dict[str, int]]  # by class, those that are ignored not among them
    images: dict[Split, int]
    empty: dict[Split, int]  # images without objects
    ignored: dict[Split, int]  # difficult objects and crowds
    sizes: dict[str, int]  # training objects small, medium and large as COCO has it, in pixels of the images as stored
    most: int  # objects in one image
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()  # further sentences

    @property
    def dropped(self) -> int:
        """Objects that could not be used."""
        return sum(finding.count for finding in self.findings if finding.dropped)

    def missing(self, split: Split) -> list[str]:
        """Classes without an object in that part."""
        return [name for name, count in self.objects[split].items() if not count]

    def lines(self) -> list[str]:
        """Sentences to say before training."""
        found = []
        for split in SPLITS:
            if self.images[split]:
                count = sum(self.objects[split].values())
                extra = [f"{self.empty[split]} without objects"] if self.empty[split] else []
                extra += [f"{self.ignored[split]} objects ignored (difficult or crowds)"] if self.ignored[split] else []
                found.append(
                    f"{split}: {self.images[split]} images, {count} objects" + "".join(f", {e}" for e in extra)
                )
        if self.images["train"]:
            shares = ", ".join(f"{count} {name}" for name, count in self.sizes.items())
            found.append(
                f"training objects: {shares} (sides below 32, below 96, above); at most {self.most} in one image"
            )
        for split in SPLITS:
            if self.images[split] and (absent := self.missing(split)):
                found.append(f"no {split} object of {', '.join(absent)}")
        found += [f"{'dropped' if finding.dropped else 'noted'}: {finding}" for finding in self.findings]
        return [*found, *self.notes]


def size_name(area: float) -> str:
    """Small, medium or large, by an object's area in square pixels."""
    return next(name for name, _, high in SIZES if area < high)


def first_of(names: Iterable[object], count: int = _EXAMPLES) -> str:
    """The first few of many names."""
    found = [str(name) for name in names]
    return ", ".join(found[:count]) + (", ..." if len(found) > count else "")
