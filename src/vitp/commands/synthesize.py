"""`vitp synthesize`: a labelled data set becomes instruction data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vitp.errors import DataError
from vitp.recipes import load_recipe
from vitp.synthesis.ask import Interviewer
from vitp.synthesis.config import SynthesizeConfig
from vitp.synthesis.detect import read
from vitp.synthesis.labels import LabelledImage, LabelledSet
from vitp.synthesis.paraphrase import ParaphraseConfig, Rewriter, find_model, load_rewriter
from vitp.synthesis.reword import Interview, Reworded, Spoken, class_forms, reword
from vitp.synthesis.words import Words
from vitp.synthesis.write import check_target, make_record, write_records

__all__ = ["SynthesizeConfig", "SynthesizeResult", "synthesize"]


@dataclass(frozen=True)
class SynthesizeResult:
    """What was written, and what was not."""

    out: str
    format: str
    images: int  # labelled images that could be used
    records: int
    turns: int  # questions in all
    tasks: dict[str, int]  # questions of each task
    yes: int
    no: int
    skipped: dict[str, int]  # reason -> images left out
    examples: dict[str, str]  # reason -> the first of them
    noted: dict[str, int]  # objects clipped or not written as a quad
    reworded: Reworded | None = None  # what a language model did; None where none was asked

    def to_json(self) -> dict[str, object]:
        """For ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        tasks = ", ".join(f"{task} {n:,}" for task, n in sorted(self.tasks.items(), key=lambda item: -item[1]))
        lines = [
            f"{self.format}: {self.records:,} records with {self.turns:,} questions in {self.out}",
            f"questions: {tasks}; answered yes {self.yes:,}, no {self.no:,}",
        ]
        lines += [f"left out: {n:,} images {why}, the first {self.examples[why]}" for why, n in self.skipped.items()]
        lines += [f"noted: {n:,} {what}" for what, n in self.noted.items()]
        return lines + (self.reworded.lines() if self.reworded is not None else [])


def synthesize(
    config: SynthesizeConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    rewriter: Rewriter | None = None,
    progress: Callable[[int, int], None] | None = None,
    rewording: Callable[[int, int], None] | None = None,
) -> SynthesizeResult:
    """Write questions and answers about a labelled data set as instruction data (LLaVA layout, JSON Lines).

    The questions about an image depend on its labels, its name, the seed and the list of classes, and on no other
    image: the same call writes the same bytes, and a record stays as it is when other images come or go.

    Args:
        config: a SynthesizeConfig, or a YAML file with its keys.
        overrides: dotted overrides, ``a.b.0.c=value``.
        rewriter: rewords in place of the language model `config.paraphrase.model`, which is then not loaded.
        progress: called with (done, total) images.
        rewording: called with (done, total) different texts that a language model was given.

    Raises:
        VitpError: the recipe is wrong, labels are damaged (with file:line), no image is there, no question can be
            asked, the language model cannot be loaded, or the output exists.
    """
    config = load_recipe(SynthesizeConfig, config, overrides)
    check_target(config.out, config.overwrite)
    if config.paraphrase is not None and rewriter is None:
        find_model(config.paraphrase.model)  # a mistyped path is told before hours of reading
    labelled = read(config)
    interviewer = Interviewer(config, labelled)
    tasks: Counter[str] = Counter()
    answers: Counter[str] = Counter()

    def interviews() -> Iterator[Interview]:
        for image, asked in _interviews(interviewer, labelled, progress):
            tasks.update(found.task for found in asked)
            answers.update(found.answer for found in asked)
            yield image, asked
        if not tasks:
            text = f"no question beyond dispute can be asked of any of the {len(labelled.images)} images"
            raise DataError(f"{text}; allow more tasks", str(config.root))

    told: Reworded | None = None
    spoken: Iterable[tuple[LabelledImage, Spoken]]
    if config.paraphrase is None:
        spoken = ((image, Spoken(asked, {})) for image, asked in interviews())
    else:
        rewriter = rewriter if rewriter is not None else load_rewriter(config.paraphrase, config.seed)
        spoken, told = _reworded(config, config.paraphrase, labelled, list(interviews()), rewriter, rewording)
    model = told.model if told is not None else ""
    records = (make_record(image, one.asked, labelled.format, config.seed, one.was, model) for image, one in spoken)
    count = write_records(config.out, records)
    return SynthesizeResult(
        out=str(config.out), format=labelled.format, images=len(labelled.images), records=count, turns=tasks.total(),
        tasks=dict(tasks), yes=answers["yes"], no=answers["no"], skipped=dict(labelled.skipped),
        examples=labelled.examples, noted={what: n for what, n in labelled.noted.items() if n}, reworded=told,
    )  # fmt: skip


def _interviews(
    interviewer: Interviewer, labelled: LabelledSet, progress: Callable[[int, int], None] | None
) -> Iterator[Interview]:
    """Every image that has a question, with its questions; the others are counted as left out."""
    for done, image in enumerate(labelled.images, 1):
        asked = interviewer.ask(image)
        if progress is not None:
            progress(done, len(labelled.images))
        if asked:
            yield image, asked
        else:
            labelled.skip("about which nothing beyond dispute can be asked", image.name)


def _reworded(
    config: SynthesizeConfig,
    paraphrase: ParaphraseConfig,
    labelled: LabelledSet,
    interviews: list[Interview],
    rewriter: Rewriter,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[tuple[LabelledImage, Spoken]], Reworded]:
    """The questions of all images, a share of them in other words; unlike the rest, this needs all images at once."""
    names = class_forms(labelled.classes, Words(config.plurals, config.view), config.subject)
    spoken, told = reword(interviews, paraphrase, config.seed, names, rewriter, progress)
    return [(image, one) for (image, _), one in zip(interviews, spoken, strict=True)], told
