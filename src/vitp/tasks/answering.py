"""Asking the model while it trains: loss and answers on held-out samples, source by source.

Nothing here changes training: no random number is drawn, every module's mode is put back, and the samples asked are the
same at every evaluation.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from vitp.config import Config
from vitp.errors import DataError
from vitp.files import write_text
from vitp.instruction.index import IndexConfig, open_source
from vitp.instruction.pack import LaidOut, StepBuilder, join, plan_packs
from vitp.instruction.source import AugmentConfig, Source, SourceConfig
from vitp.metrics.text import has_bleu
from vitp.report.answers import Pixels, picture_of, save_picture
from vitp.report.pretraining import write_run_report
from vitp.tasks.decline import DeclineWatch
from vitp.tasks.questions import (
    ANSWERS,
    FOLDER,
    PREFIX,
    Answered,
    Asked,
    choose_questions,
    judge,
    one_of_each,
    scores,
)
from vitp.train.evaluating import evaluating
from vitp.train.task import Observation
from vitp.train.trackers import read_evaluations
from vitp.vlm.generate import Prompt, generate
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.token_drop import TokenDropConfig

_CHUNK = 32  # samples laid out at once


class EvaluationConfig(Config):
    """What the model is asked while it trains. Without `hold_out`, `split` or `sources` nothing is."""

    every: int = Field(
        default=500, ge=1
    )  # ours: steps between evaluations, as between checkpoints; the last is always one
    at_start: bool = True  # before the first step, too: what the model knew without this training
    hold_out: int = Field(default=0, ge=0)  # records taken out of each source of the mixture that sets no own hold_out
    split: str | None = None  # asks the mixture's sources, too, on this split of theirs (native data sets, tables)
    sources: tuple[SourceConfig, ...] = ()  # asks these; they are not trained on
    samples: int = Field(
        default=128, ge=1
    )  # ours: of each source; half the width of a 95 % interval is then 9 points at most
    max_new_tokens: int = Field(default=64, ge=1)  # ours: longer answers are cut and judged as they are
    batch_size: int = Field(default=16, ge=1)  # ours: answers written at once
    vrl: TokenDropConfig = TokenDropConfig(
        preset="none"
    )  # the model is used with all tokens; `paper`: asked as it is trained
    shown: int = Field(default=8, ge=0)  # answers with their pictures in the report and in TensorBoard
    worse_by: float = Field(
        default=0.05, ge=0
    )  # ours: a source is warned of when its loss is above its best by this share
    worse_for: int = Field(default=2, ge=1)  # ours: for so many evaluations in a row

    def numbers(self, mixture: Sequence[SourceConfig]) -> list[int]:
        """How many records are held out of each source of the mixture."""
        return [self.hold_out if source.hold_out is None else source.hold_out for source in mixture]

    def open_sources(self, mixture: Sequence[SourceConfig], index: IndexConfig) -> list[Source]:
        """The sources to ask about that are no part of the mixture.

        Raises:
            DataError: one cannot be opened at all.
        """
        others = () if self.split is None else (s.model_copy(update={"split": self.split}) for s in mixture)
        return [open_source(source, index) for source in (*self.sources, *others)]

    def check_names(self, mixture: Sequence[SourceConfig]) -> None:
        """Raise ValueError where two sets of questions would bear the same name."""
        asked = [source.name for source in self.sources]
        asked += [source.name for source in mixture] if self.split is not None else []
        asked += [source.name for source, number in zip(mixture, self.numbers(mixture), strict=True) if number]
        for name in asked:
            if asked.count(name) > 1:
                fix = "give the sources different names, or choose one of hold_out and split"
                raise ValueError(f"evaluation: {name!r} would be asked about from two places; {fix}")


@dataclass(frozen=True)
class SourceResult:
    """One source's evaluation."""

    name: str
    loss: float  # weighted mean over the supervised tokens, as in training
    answered: tuple[Answered, ...]
    unusable: int


def evaluate_source(
    model: VisionLanguageModel, builder: StepBuilder, source: Source, asked: Sequence[Asked], config: EvaluationConfig
) -> SourceResult:
    """Loss and greedy answers on the samples asked about; the model must be in eval mode, see `evaluating`.

    Args:
        model: on its device.
        builder: lays the samples out; see `without_chance`.
        source: that the questions come from.
        asked: the questions.
        config: lengths and sizes.
    """
    loss, weight, unusable = 0.0, 0.0, 0
    answered: list[Answered] = []
    for start in range(0, len(asked), _CHUNK):
        laid: list[LaidOut] = []
        prompts: list[tuple[Asked, Prompt]] = []
        for question in asked[start : start + _CHUNK]:
            try:
                sample = builder.sample(source, question.index, 0, question.index, text_only=False)
            except DataError:
                unusable += 1
                continue
            laid.append(sample)
            prompt = prompt_of(sample, question.turn)
            if prompt is None:  # the question lies beyond max_length
                unusable += 1
            else:
                prompts.append((question, prompt))
        part, parts = _loss(model, builder, laid)
        loss, weight = loss + part, weight + parts
        given = generate(
            model,
            builder.chat,
            [prompt for _, prompt in prompts],
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
        )
        answered += [judge(question, text) for (question, _), text in zip(prompts, given, strict=True)]
    return SourceResult(source.config.name, loss / weight if weight else 0.0, tuple(answered), unusable)


def _loss(model: VisionLanguageModel, builder: StepBuilder, laid: Sequence[LaidOut]) -> tuple[float, float]:
    """Weighted sum of the losses, and the sum of the weights."""
    total, device = 0.0, model.mean.device
    for samples in plan_packs(laid, builder.plan) if laid else ():
        pack = join(samples, builder.tokens_per_tile, builder.tile_size, builder.depth_modules)
        total += float(model(pack.to(device)))
    return total, float(sum(sample.weights.sum(dtype=np.float64) for sample in laid))


def prompt_of(laid: LaidOut, turn: int) -> Prompt | None:
    """A laid-out conversation up to its `turn`-th answer; None where that was cut off."""
    breaks = np.flatnonzero(np.diff(laid.predict) != 1) + 1  # the tokens of an answer follow each other
    firsts = laid.predict[np.concatenate([[0], breaks])]
    if turn >= len(firsts):
        return None
    begin = int(firsts[turn]) + 1
    seen = laid.slots < begin
    return Prompt(laid.tiles, laid.ids[:begin], laid.positions[:begin], laid.slots[seen], laid.kept[seen])


def without_chance(builder: StepBuilder, sources: Sequence[Source], vrl: TokenDropConfig) -> StepBuilder:
    """A builder that lays the sources out as they are: no augmentation, and `vrl` in place of training's drop."""
    plain = []
    for source in sources:
        plain.append(copy.copy(source))
        plain[-1].config = source.config.model_copy(update={"augment": AugmentConfig()})
    found = copy.copy(builder)
    found.sources, found.vrl = plain, vrl
    return found


class Evaluator:
    """Asks the model after every so many steps; handed to `vitp.train.loop.train` as `after_step`."""

    def __init__(
        self,
        model: VisionLanguageModel,
        builder: StepBuilder,
        sources: Sequence[Source],
        config: EvaluationConfig,
        *,
        out: Path,
        name: str,
        steps: int,
        bf16: bool,
        say: Callable[[str], None],
        rank: int = 0,
        everywhere: bool = False,
    ) -> None:
        """Choose the questions; the model is not asked yet.

        Args:
            model: that is trained.
            builder: training's; samples are laid out in the same way, without its draws.
            sources: to ask about.
            config: how often and how much.
            out: the run's folder.
            name: of the recipe, for the report.
            steps: of the whole run; an evaluation follows the last.
            bf16: compute in bf16, as training does.
            say: receives a line for each evaluation, and warnings.
            rank: of this process; others than 0 write and say nothing.
            everywhere: the other ranks compute, too, as they have to where each holds a part of the weights only.

        Raises:
            DataError: a source has nothing to ask.
        """
        self.model, self.config, self.out, self.steps, self.bf16, self.say = model, config, out, steps, bf16, say
        self.name, self.rank, self.everywhere = name, rank, everywhere
        self.builder = without_chance(builder, sources, config.vrl)
        self.sources = self.builder.sources
        self.asked = [choose_questions(source, config.samples) for source in self.sources]
        for source, asked in zip(self.sources, self.asked, strict=True):
            if not asked:
                raise DataError(
                    f"source '{source.config.name}' has no sample to ask about; see `vitp check`", str(source.root)
                )
        self._watch: DeclineWatch | None = None
        self._noted = self._report_is_due = False

    def __call__(self, step: int) -> Observation | None:
        """Evaluate if `step` finished steps are the time for it; None otherwise, and on ranks that write nothing."""
        if self._report_is_due:  # the last evaluation's line is in the log by now
            write_run_report(self.out, self.name)
            self._report_is_due = False
        due = self.config.at_start if step == 0 else step % self.config.every == 0 or step == self.steps
        if not due:
            return None
        if self.rank and not self.everywhere:
            return None
        begun = time.perf_counter()
        try:
            results = self._ask()
        except torch.OutOfMemoryError:
            self.say(
                f"step {step}: the evaluation was left out, the device has no memory for it; lower evaluation.batch_size"
            )
            return None
        self._note(results)
        results = [result for result in results if result.answered]
        if self.rank or not results:
            return None
        return self._observe(step, results, time.perf_counter() - begun)

    def _ask(self) -> list[SourceResult]:
        device = self.model.mean.device
        with evaluating(self.model), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            return [
                evaluate_source(self.model, self.builder, source, asked, self.config)
                for source, asked in zip(self.sources, self.asked, strict=True)
            ]

    def _observe(self, step: int, results: Sequence[SourceResult], seconds: float) -> Observation:
        losses = {result.name: result.loss for result in results}
        numbers = {"loss": sum(losses.values()) / len(losses)}
        numbers |= scores([item for result in results for item in result.answered])
        for result in results:
            numbers |= {f"{result.name}/{key}": v for key, v in scores(result.answered).items()}
            numbers[f"{result.name}/loss"] = result.loss
        numbers["seconds"] = seconds
        warnings = self._watched(step).take(step, losses)
        self.say(f"step {step}: {in_words(numbers, [result.name for result in results])}")
        for warning in warnings:
            self.say(f"warning: {warning}")
        pictures, texts = self._write(step, results)
        self._report_is_due = True
        named = {PREFIX + key: value for key, value in numbers.items()}
        return Observation(named, pictures, texts, tuple(warnings))

    def _watched(self, step: int) -> DeclineWatch:
        """The watch, which after a resume has taken in what came before."""
        if self._watch is None:
            self._watch = DeclineWatch(self.config.worse_by, self.config.worse_for)
            names = [source.config.name for source in self.sources]
            for line in read_evaluations(self.out):
                if line["step"] < step:
                    known = {name: line.get(f"{PREFIX}{name}/loss") for name in names}
                    self._watch.take(
                        int(line["step"]), {name: loss for name, loss in known.items() if loss is not None}
                    )
        return self._watch

    def _note(self, results: Sequence[SourceResult]) -> None:
        """Say once what is missing from the scores."""
        if self._noted or self.rank:
            return
        self._noted = True
        captions = any(item.asked.measure == "caption" for result in results for item in result.answered)
        if captions and not has_bleu():
            self.say("BLEU is left out: pip install 'vitp[text]'")
        for result in results:
            if result.unusable:
                self.say(
                    f"evaluation: {result.unusable} samples of '{result.name}' are unusable or too long and are not asked"
                )

    def _write(self, step: int, results: Sequence[SourceResult]) -> tuple[dict[str, Pixels], dict[str, str]]:
        """All answers as JSON lines, and those shown as pictures; returns the latter for TensorBoard."""
        folder = self.out / FOLDER / f"step_{step:08d}"
        answered = [item for result in results for item in result.answered]
        shown = {id(item): number for number, item in enumerate(one_of_each(answered, self.config.shown))}
        by_name = {source.config.name: source for source in self.sources}
        pictures: dict[str, Pixels] = {}
        texts: dict[str, str] = {}
        lines = []
        for item in answered:
            record = item.to_json()
            if id(item) in shown:
                name = f"{shown[id(item)]:02d}"
                pixels = picture_of(by_name[item.asked.source], item)
                if pixels is not None:
                    save_picture(folder / f"{name}.png", pixels)
                    pictures[f"{PREFIX}answers/{name}"] = pixels
                texts[f"{PREFIX}answers/{name}"] = _as_markdown(item)
                record["shown"] = name
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        write_text(folder / ANSWERS, "".join(lines))
        return pictures, texts


def _as_markdown(item: Answered) -> str:
    asked = item.asked
    rows = [("source", asked.source), ("question", asked.question), ("reference", " / ".join(asked.references))]
    return "\n\n".join(f"**{name}**: `{text}`" for name, text in [*rows, ("answer", item.answer)])


_SHOWN = (
    ("vqa_exact", "answers right", "{:.0%}"),
    ("grounding_accuracy", "boxes at IoU 0.5", "{:.0%}"),
    ("caption_cider", "CIDEr-D", "{:.2f}"),
    ("caption_bleu", "BLEU", "{:.1f}"),
)


def in_words(numbers: Mapping[str, float], sources: Sequence[str]) -> str:
    """The line that is said of an evaluation."""
    by_source = ", ".join(f"{name} {numbers[f'{name}/loss']:.3f}" for name in sources)
    parts = [f"held-out loss {numbers['loss']:.3f}" + (f" ({by_source})" if len(sources) > 1 else "")]
    parts += [f"{title} {form.format(numbers[key])}" for key, title, form in _SHOWN if key in numbers]
    return "; ".join([*parts, f"{numbers['questions']:.0f} questions in {numbers['seconds']:.1f} s"])
