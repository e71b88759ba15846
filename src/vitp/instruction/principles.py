"""The four principles of a pretraining mixture, as far as they can be counted (paper, section 3.3).

1. Scale and diversity. 2. Modality coverage: every modality of the downstream tasks. 3. Task capability alignment: what
the downstream tasks need is practised. 4. Preservation of generality: some general images. Table 7 measures what
diversity, a modality, grounding and general data are worth: 1.6 to 2.3 points of 54.6 mAP each.

What the mixture holds is always reported; warnings need `data.downstream` or `data.downstream_modalities`, since only
the downstream tasks tell what is missing. Shares are of the samples drawn in an epoch, weights included.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from vitp.instruction.findings import Finding
from vitp.instruction.mixture import Mixture
from vitp.instruction.source import SourceConfig
from vitp.instruction.statistics import SourceStats

Downstream = Literal["segmentation", "detection", "oriented_detection", "change", "classification"]
Modality = Literal["optical", "SAR", "multispectral", "CT", "MRI", "X-ray", "ultrasound", "pathology"]

MOST_REPEATS = (
    20  # paper, Table 11: the highest sample rate of a source (GMAI-MMBench); one epoch of 1 M samples is run
)
FEW_IMAGES = 10_000  # ours; the paper draws about a million samples
FEW_TASKS = 1.5  # ours; effective number of tasks, 1 being a single one
LEAST_SHARE = 0.01  # ours; a task that fewer answers look like counts as not practised
PAPER_GENERAL = "2.6 to 4.2 %"  # Tables 10 and 11: Mini-InternVL's size times its rate, over that of all sources

# Words that declare a modality in `SourceConfig.modality`, which is free text.
_MODALITIES: Mapping[str, str] = {
    "optical": r"optical(?! coherence)|rgb|aerial|drone|photo\w*|natural|visible",
    "SAR": r"sar|radar|sentinel-?1",
    "multispectral": r"multi-?spectral|hyper-?spectral|sentinel-?2|landsat",
    "CT": r"ct|computed tomography",
    "MRI": r"mri?|magnetic resonance",
    "X-ray": r"x-?rays?|cxr|radiographs?|mammogra\w+",
    "ultrasound": r"ultrasound|sonogra\w+|echo\w*",
    "pathology": r"\w*pathology|histolog\w+|wsi|microscop\w+",
}

# Downstream task -> what its pretraining needs, any of the named tasks each, and where the paper says so.
_NEEDS: Mapping[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "detection": ((("grounding",), "3.3 and Table 7"), (("vqa",), "3.3")),
    "oriented_detection": ((("grounding",), "3.3 and Table 7"), (("vqa",), "3.3")),
    "segmentation": ((("vqa", "grounding"), "C.1.3: questions on regions and masks"),),
    "change": ((("caption", "vqa"), "Table 10: change captions"),),
    "classification": ((("classification",), "Tables 9 and 10"),),
}


def modalities_of(text: str | None) -> list[str]:
    """Known modalities a free text declares, "CT, MRI" -> CT and MRI; the text itself where it names none of them."""
    if text is None or not text.strip():
        return []
    known = [name for name, words in _MODALITIES.items() if re.search(rf"\b(?:{words})\b", text, re.IGNORECASE)]
    return known or [text.strip()]


@dataclass(frozen=True, slots=True)
class Principles:
    """What a mixture holds, principle by principle. Shares are of the samples of an epoch."""

    epoch: int  # samples drawn in one epoch
    seen: int  # samples of the whole run
    images: int  # distinct files
    sources: dict[str, float]  # shares
    effective_sources: float  # exp of the entropy of these shares
    repeats: dict[str, float]  # how often the run shows each sample of a source
    tasks: dict[str, float]  # shares of answers; what is declared counts, else how questions and answers look
    effective_tasks: float
    task_bits: float  # entropy of the shares of tasks
    practised: tuple[str, ...]  # tasks that are declared, or that enough answers look like
    several_images: int  # samples with two images or more
    modalities: dict[str, float]  # share of samples from sources that declare it; a source may declare several
    undeclared: float  # share of samples from sources that declare none
    general: float  # share of samples from sources of domain "general"
    downstream: tuple[str, ...]
    downstream_modalities: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Everything as plain JSON data."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """(principle, what the mixture holds) for people."""
        most, repeats = max(self.repeats.items(), key=lambda item: round(item[1], 1))
        scale = f"{self.epoch:,} samples an epoch over {self.images:,} images; the run shows {self.seen:,} samples"
        scale += f", each of '{most}' {repeats:.1f} times" + (", the most" if len(self.repeats) > 1 else "")
        diverse = f"{len(self.sources)} sources (as diverse as {self.effective_sources:.1f} equal ones); "
        diverse += f"tasks of {self.task_bits:.2f} bits (as {self.effective_tasks:.1f} equal ones)"
        shown = _percent(self.modalities)
        if self.undeclared:
            shown += f"{', ' if shown else ''}not declared {self.undeclared:.1%}"
        return [
            ("1. scale", scale),
            ("1. diversity", diverse),
            ("2. modalities", shown),
            ("3. tasks", f"{_percent(self.tasks)}; practised: {', '.join(self.practised) or 'none'}"),
            ("4. generality", f"{self.general:.1%} general data (the paper's mixtures: {PAPER_GENERAL})"),
        ]

    def lines(self) -> list[str]:
        """The rows, and what they are judged for."""
        wanted = ", ".join([*self.downstream, *self.downstream_modalities])
        head = f"for {wanted}" if wanted else "declare data.downstream to have them judged"
        return [f"recipe principles (paper 3.3; {head}):", *(f"  {name}: {text}" for name, text in self.rows())]


def _percent(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))


def _effective(shares: Mapping[str, float]) -> tuple[float, float]:
    """Entropy in bits, and the number of equal parts with the same entropy."""
    bits = -sum(share * math.log2(share) for share in shares.values() if share > 0)
    return max(0.0, bits), 2 ** max(0.0, bits)


def assess(
    sources: Sequence[SourceConfig],
    stats: Sequence[SourceStats],
    *,
    images: int,
    seen: int,
    downstream: Sequence[str] = (),
    downstream_modalities: Sequence[str] = (),
) -> Principles:
    """Count what the principles ask for.

    Args:
        sources: the recipe's sources.
        stats: what each of them holds.
        images: distinct image files of all of them.
        seen: samples of the whole run, steps times batch size.
        downstream: tasks the backbone is for.
        downstream_modalities: and their modalities.
    """
    drawn = Mixture([s.samples for s in stats], [c.weight for c in sources], 0).taken
    epoch = sum(drawn)
    share = {config.name: number / epoch for config, number in zip(sources, drawn, strict=True)}
    tasks: dict[str, float] = defaultdict(float)
    modalities: dict[str, float] = defaultdict(float)
    practised: set[str] = set()
    for config, held in zip(sources, stats, strict=True):
        for name in modalities_of(config.modality):
            modalities[name] += share[config.name]
        of_source, there = _tasks(config, held)
        practised |= there
        for task, part in of_source.items():
            tasks[task] += part * share[config.name]
    whole = sum(tasks.values())
    task_shares = {task: part / whole for task, part in tasks.items()} if whole else {}
    bits, effective_tasks = _effective(task_shares)
    return Principles(
        epoch=epoch, seen=seen, images=images, sources=share, effective_sources=_effective(share)[1],
        repeats={c.name: seen * share[c.name] / s.samples for c, s in zip(sources, stats, strict=True)},
        tasks=task_shares, effective_tasks=effective_tasks, task_bits=bits, practised=tuple(sorted(practised)),
        several_images=sum(s.several_images for s in stats), modalities=dict(modalities),
        undeclared=sum(share[c.name] for c in sources if not modalities_of(c.modality)),
        general=sum(share[c.name] for c in sources if c.domain == "general"),
        downstream=tuple(downstream), downstream_modalities=tuple(downstream_modalities),
    )  # fmt: skip


def _tasks(config: SourceConfig, stats: SourceStats) -> tuple[dict[str, float], set[str]]:
    """Shares of a source's answers by task, dialogue apart, and the tasks it practises, dialogue included."""
    looks = {task: number for task, number in stats.tasks.items() if task != "dialogue"}
    if config.tasks:
        declared = [task for task in config.tasks if task != "dialogue"]
        looks = {task: looks.get(task, 0) for task in declared}
        if not any(looks.values()):  # they do not look it
            looks = dict.fromkeys(declared, 1)
        practised: set[str] = set(config.tasks)
    else:
        practised = {task for task, n in looks.items() if n >= LEAST_SHARE * stats.answers}
        if stats.tasks.get("dialogue", 0) >= max(1, LEAST_SHARE * stats.samples):
            practised.add("dialogue")
    whole = sum(looks.values())
    return ({task: n / whole for task, n in looks.items()} if whole else {}), practised


def shortcomings(held: Principles, where: str) -> list[Finding]:
    """Warnings about what the mixture lacks for its downstream tasks; none where they are not declared.

    Args:
        held: the mixture.
        where: ``recipe.yaml:line`` of the declaration.
    """
    if not (held.downstream or held.downstream_modalities):
        return []
    lacks = [*_narrow(held), *_missing_modalities(held), *_unpractised(held)]
    if not held.general:
        wanted = f"some general images (principle 4; {PAPER_GENERAL} in the paper's mixtures)"
        fix = "add a source with domain: general"
        lacks.append(("generality", "no source is declared as general data", wanted, fix))
    return [
        Finding("warning", f"principle-{code}", where, found, wanted, fix, "") for code, found, wanted, fix in lacks
    ]


_Lack = tuple[str, str, str, str]  # code, found, expected, fix


def _narrow(held: Principles) -> Iterator[_Lack]:
    if held.images < FEW_IMAGES:
        expected = f"a large data set (principle 1), here at least {FEW_IMAGES:,} images"
        fix = "add sources, or start from trained weights"
        yield "scale", f"the mixture has {held.images:,} distinct images", expected, fix
    for name, times in held.repeats.items():
        if times > MOST_REPEATS:
            found = f"the run shows each sample of '{name}' {times:.0f} times"
            expected = f"at most {MOST_REPEATS} times, as the paper's most repeated source (Table 11)"
            yield "scale", found, expected, "lower its weight or the steps, or add other sources"
    if len(held.sources) == 1:
        yield "diversity", "the mixture has one source", "diverse sources (principle 1)", "add data of other origin"
    if held.effective_tasks < FEW_TASKS:
        found = f"the tasks are as diverse as {held.effective_tasks:.2f} equal ones ({_percent(held.tasks) or 'none'})"
        yield "diversity", found, "several tasks (principle 1)", "add sources with other questions"


def _missing_modalities(held: Principles) -> Iterator[_Lack]:
    for modality in held.downstream_modalities:
        if not held.modalities.get(modality):
            found = f"no source declares the modality {modality}"
            fix = "add such data, or declare it under 'modality' where a source holds it"
            yield "modality", found, "every modality of the downstream tasks (principle 2)", fix


def _unpractised(held: Principles) -> Iterator[_Lack]:
    for task in held.downstream:
        for needed, place in _NEEDS[task]:
            if not set(needed) & set(held.practised):
                tasks = " or ".join(needed)
                found = f"no source practises {tasks}, and the backbone is for {task}"
                expected = f"{tasks} for {task} (principle 3; {place})"
                fix = "add such a source, or declare it under 'tasks' where a source holds it"
                yield "task", found, expected, fix
    if "change" in held.downstream and not held.several_images:
        found = "no sample shows two images, and the backbone is for change"
        expected = "questions on two dates of a place (principle 3; Table 10: change captions)"
        yield "task", found, expected, "add image pairs, such as `vitp synthesize` makes of change masks"
