"""`vitp synthesize`: a labelled data set becomes instruction data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vitp.errors import DataError
from vitp.recipes import load_recipe
from vitp.synthesize.ask import Interviewer
from vitp.synthesize.config import SynthesizeConfig
from vitp.synthesize.detect import read
from vitp.synthesize.write import check_target, make_record, write_records

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
        return lines


def synthesize(
    config: SynthesizeConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SynthesizeResult:
    """Write questions and answers about a labelled data set as instruction data (LLaVA layout, JSON Lines).

    The questions about an image depend on its labels, its name, the seed and the list of classes, and on no other
    image: the same call writes the same bytes, and a record stays as it is when other images come or go.

    Args:
        config: a SynthesizeConfig, or a YAML file with its keys.
        overrides: dotted overrides, ``a.b.0.c=value``.
        progress: called with (done, total) images.

    Raises:
        VitpError: the recipe is wrong, labels are damaged (with file:line), no image is there, no question can be
            asked, or the output exists.
    """
    config = load_recipe(SynthesizeConfig, config, overrides)
    check_target(config.out, config.overwrite)
    labelled = read(config)
    interviewer = Interviewer(config, labelled)
    tasks: Counter[str] = Counter()
    answers: Counter[str] = Counter()

    def records() -> Iterator[dict[str, object]]:
        for done, image in enumerate(labelled.images, 1):
            asked = interviewer.ask(image)
            if progress is not None:
                progress(done, len(labelled.images))
            if not asked:
                labelled.skip("about which nothing beyond dispute can be asked", image.name)
                continue
            tasks.update(found.task for found in asked)
            answers.update(found.answer for found in asked)
            yield make_record(image, asked, labelled.format, config.seed)
        if not tasks:
            text = f"no question beyond dispute can be asked of any of the {len(labelled.images)} images"
            raise DataError(f"{text}; allow more tasks", str(config.root))

    count = write_records(config.out, records())
    return SynthesizeResult(
        out=str(config.out), format=labelled.format, images=len(labelled.images), records=count, turns=tasks.total(),
        tasks=dict(tasks), yes=answers["yes"], no=answers["no"], skipped=dict(labelled.skipped),
        examples=labelled.examples, noted={what: n for what, n in labelled.noted.items() if n},
    )  # fmt: skip
