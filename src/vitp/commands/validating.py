"""Scoring the validation images while a model is fine-tuned, and keeping the best weights.

Nothing here changes training: no random number is drawn, every module's mode and statistics are put back, and the test
images are never looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

import torch
from pydantic import Field
from torch import nn

from vitp.backbone.vit import read_metadata
from vitp.config import Config
from vitp.datasets.splits import Divided
from vitp.errors import CheckpointError, ConfigError
from vitp.metrics.detection import DetectionMetric
from vitp.metrics.segmentation import SegmentationMetric
from vitp.progress import lines, with_rate
from vitp.report.html import Curve, LineChart, Section
from vitp.tasks.dense import save_described
from vitp.train.average import WeightAverage
from vitp.train.checkpoint import list_checkpoints, load_model, load_tensors
from vitp.train.distributed import Ranks
from vitp.train.evaluating import evaluating
from vitp.train.task import Observation
from vitp.train.trackers import read_evaluations

PREFIX = "validation/"  # of the numbers in log.jsonl and TensorBoard
FOLDER = "validation"  # in the run's folder: the best weights so far

MaskMetric = Literal["miou", "mdice", "miou_foreground", "mdice_foreground", "accuracy"]
ChangeMetric = Literal["f1_changed"]
ObjectMetric = Literal["AP", "AP50", "AP75", "AR", "mAP_voc07", "mAP_area", "mask_AP", "mask_AP50", "mask_AP75"]
Metric = MaskMetric | ChangeMetric | ObjectMetric
_METRICS: dict[str, tuple[str, ...]] = {
    "segment": get_args(MaskMetric),
    "change": (*get_args(ChangeMetric), *get_args(MaskMetric)),
    "detect": get_args(ObjectMetric),
}
_SECONDS = PREFIX + "seconds"

M = TypeVar("M", SegmentationMetric, DetectionMetric)


class ValidationConfig(Config):
    """What is scored while a model is fine-tuned, and which weights are kept."""

    every: int = Field(default=500, ge=1)  # ours: steps from one to the next, as between checkpoints; the last always
    images: int | None = Field(default=None, ge=1)  # so many, evenly spread over the validation images; None: all
    keep: Literal["last", "best"] = "last"  # the weights that are saved and tested; released: the last
    # None: miou (volumes: mdice_foreground), f1_changed of changes, AP of upright and mAP_voc07 of rotated boxes
    metric: Metric | None = None
    views: bool = False  # with inference.scales and inference.flips, too; False: each image once, a part of the time

    def check(self, task: str) -> None:
        """Raise ValueError where the metric is none of the task's."""
        if self.metric is not None and self.metric not in _METRICS[task]:
            raise ValueError(
                f"validation.metric: {self.metric} is no score of task: {task}; it has {', '.join(_METRICS[task])}"
            )


def validation_images(config: ValidationConfig | None, data: Divided, root: Path) -> list[int]:
    """The images to score; none where the recipe asks for no validation.

    Raises:
        ConfigError: there are none, or they are test images.
    """
    if config is None:
        return []
    if not data.val:
        raise ConfigError(
            f"validation: {root} has no validation images; name some in data.val_images or data.val_list, or have a share of "
            "the others drawn (data.val_fraction: 0.1)"
        )
    if shared := set(data.val) & set(data.test):
        raise ConfigError(
            f"validation: {len(shared)} of the {len(data.val)} validation images are test images, which nothing may be chosen "
            "by; name others in data.val_images or data.val_list, or leave validation out"
        )
    count = min(config.images or len(data.val), len(data.val))
    return [data.val[i * len(data.val) // count] for i in range(count)]


class Scorer(Protocol[M]):
    """How a kind of model is scored, see `vitp.commands.validating_tasks`."""

    metric: str  # the score that is shown, and decides

    def count(self, images: Sequence[int], progress: Callable[[int, int], None]) -> M:
        """Look at images; the model is in eval mode."""

    def numbers(self, counted: M) -> dict[str, float]:
        """Scores by name; NaN where there is none."""


@dataclass(frozen=True, eq=False)
class Validated(Generic[M]):
    """How the score went over the steps, and which weights the model holds in the end."""

    metric: str
    images: int
    keep: Literal["last", "best"]
    step: int  # after which the weights were as they are kept
    curve: tuple[tuple[int, float], ...]  # (step, score)
    # of these weights (on rank 0: in all images); None where an earlier process did that, and in the result of a detector's run
    counted: M | None

    @property
    def score(self) -> float | None:
        """Of these weights."""
        return dict(self.curve).get(self.step)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("metric", "images", "keep", "step", "score")
        return {name: getattr(self, name) for name in names}

    def sections(self) -> list[Section]:
        """The curve, with a mark at the best."""
        curves = [Curve("validation images", [step for step, _ in self.curve], [100 * y for _, y in self.curve])]
        if self.curve:
            highest = max(self.curve, key=lambda point: (point[1], -point[0]))
            step, score = highest if self.keep == "last" else (self.step, self.score or 0.0)
            curves.append(Curve(f"best: {100 * score:.2f} % at step {step:,}", [step], [100 * score], mark=True))
        kept = f"the best, of step {self.step:,}" if self.keep == "best" else f"the last, of step {self.step:,}"
        about = f"Of {self.images:,} validation images, which nothing is learned from. The saved weights are {kept}."
        return [LineChart("Validation", "step", f"{self.metric}, %", curves, caption=about)]


class Validation(Generic[M]):
    """Scores the model after every so many steps; handed to `vitp.train.loop.train` as `after_step`."""

    def __init__(
        self,
        model: nn.Module,
        scorer: Scorer[M],
        images: Sequence[int],
        config: ValidationConfig,
        *,
        out: Path,
        steps: int,
        say: Callable[[str], None],
        ranks: Ranks = Ranks(),
    ) -> None:
        """Nothing is looked at yet.

        Args:
            model: that is trained.
            scorer: of the model.
            images: indices of the validation images, see `validation_images`.
            config: how often, and what is kept.
            out: the run's folder.
            steps: of the whole run; the weights after the last are always scored.
            say: receives a line for each validation, and how far a long one is.
            ranks: the processes of the run, which share the images; rank 0 judges and writes.
        """
        self.model, self.images, self.config = model, images, config
        self.scorer: Scorer[M] = scorer
        self.steps, self.say, self.out, self.ranks = steps, say, out, ranks
        self._best = _Best(out)
        self._begun = False
        self._average: WeightAverage | None = None
        self._counted: dict[int, M] = {}  # step -> what was found, of the weights that may be kept

    def averaged(self, average: WeightAverage) -> None:
        """Score these averages in the place of the weights, as they are what the run ends with."""
        self._average = average

    def __call__(self, step: int) -> Observation | None:
        """Score if `step` finished steps are the time for it; None otherwise."""
        if not self._begun:
            written = self.config.keep == "best"
            self.ranks.lead(lambda: self._best.begin(step, PREFIX + self.scorer.metric, written=written))
            self._begun = True
        if step == 0 or (step % self.config.every and step != self.steps):
            return None
        begun = time.perf_counter()
        try:
            with evaluating(self.model), self._weights():
                counted = self._count(step)
                numbers, better = self.ranks.lead(lambda: self._judged(step, counted))
        except torch.OutOfMemoryError:
            if not self.ranks.alone:
                raise  # the others wait for this one
            self.say(
                f"step {step}: the validation was left out, the device has no memory for it; lower inference.window "
                "or the number of views"
            )
            return None
        if self.config.keep == "last" or better:
            self._counted = {step: counted}
        score, seconds = numbers.get(self.scorer.metric), time.perf_counter() - begun
        self._tell(step, score, better, seconds)
        named = {PREFIX + self.scorer.metric: score} if score is not None else {}
        named |= {PREFIX + key: value for key, value in numbers.items()}
        return Observation({**named, _SECONDS: seconds})

    def settle(self) -> Validated[M]:
        """After the training: put the weights that are kept into the model.

        Raises:
            CheckpointError: the best weights are gone, or damaged.
        """
        curve = self.ranks.lead(self._curve)
        keep, step = self.config.keep, self.steps
        if keep == "best" and curve:
            step = self.ranks.together(lambda: self._best.load(self.model))
            self.say(f"validation: the weights of step {step} are kept, the best of {len(curve)}")
        elif keep == "best":
            keep = "last"
            self.say(f"validation: no {self.scorer.metric} could be computed, so the last weights are kept")
        return Validated(self.scorer.metric, len(self.images), keep, step, curve, self._counted.get(step))

    def _weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.in_place(self.model)

    def _count(self, step: int) -> M:
        show = with_rate(lines(self.say, f"validation at step {step}", "images"), "images")

        def told(done: int, total: int) -> None:
            if done < total:  # the end is told with the score
                show(done, total)

        return self.scorer.count(self.images, told)

    def _curve(self) -> tuple[tuple[int, float], ...]:
        key = PREFIX + self.scorer.metric
        found = [line for line in read_evaluations(self.out) if key in line]
        return tuple((int(line["step"]), float(line[key])) for line in found)

    def _judged(self, step: int, counted: M) -> tuple[dict[str, float], bool]:
        """The scores, and whether they are of the best weights so far, which are then taken note of."""
        numbers = {key: value for key, value in self.scorer.numbers(counted).items() if not math.isnan(value)}
        score, best = numbers.get(self.scorer.metric), self._best.score
        self._best.tidy()
        better = score is not None and (best is None or score > best)
        if better and score is not None:
            self._best.put(self.model, step, score, self.scorer.metric, write=self.config.keep == "best")
        return numbers, better

    def _tell(self, step: int, score: float | None, better: bool, seconds: float) -> None:
        if score is None:
            said = f"no {self.scorer.metric}, as nothing is labelled or found"
        else:
            said = f"{self.scorer.metric} {100 * score:.2f} %"
        if better:
            said += ", the best so far"
        elif self._best.score is not None:
            said += f" (best {100 * self._best.score:.2f} % at step {self._best.step})"
        self.say(f"step {step}: {said}; {len(self.images)} validation images in {seconds:.1f} s")


class _Best:
    """The best weights so far, in files of the run's folder, with their step and score.

    What was the best at a checkpoint stays as long as the checkpoint: who resumes from it, perhaps since a newer one is damaged,
    finds it.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self.step: int | None = None
        self.score: float | None = None

    def begin(self, step: int, key: str, *, written: bool) -> None:
        """At the first finished step: drop what was the best then or later, as a resumed run comes there anew.

        Args:
            step: that has just been finished.
            key: of the score in log.jsonl, where it is looked up if no weights are kept.
            written: whether they are kept.

        Raises:
            CheckpointError: the best weights are gone, or damaged.
        """
        for stale in (self._out / FOLDER).glob(".best_*"):
            stale.unlink()  # half written when the run was killed
        for file in self._files():
            if _step_of(file) >= step:
                file.unlink()
        known = [(float(line[key]), -int(line["step"])) for line in read_evaluations(self._out) if key in line]
        if known:
            self.score, before = max(known)
            self.step = -before
        files = self._files()
        if known and written and not files:
            raise self._gone()  # now, and not when the training is done
        for file in files[-1:]:
            self.step, self.score = _step_of(file), _score_of(file)

    def put(self, model: nn.Module, step: int, score: float, metric: str, *, write: bool) -> None:
        """Take note of a new best; with `write` its weights become a file.

        Raises:
            OutputError: no space left or not writable.
        """
        if write:
            about = {"validation": {"step": step, "score": score, "metric": metric}}
            save_described(self._out / FOLDER / f"best_{step:08d}.safetensors", model, about)
        self.step, self.score = step, score

    def tidy(self) -> None:
        """Remove what no resumed run can ask for."""
        files = self._files()
        kept = set(files[-1:])
        for checkpoint in map(_step_of, list_checkpoints(self._out)):
            kept.update([file for file in files if _step_of(file) <= checkpoint][-1:])
        for file in files:
            if file not in kept:
                file.unlink()

    def load(self, model: nn.Module) -> int:
        """Put the best weights into `model`; returns their step.

        Raises:
            CheckpointError: gone, or damaged.
        """
        files = self._files()
        if not files:
            raise self._gone()
        load_model(model, load_tensors(files[-1]), files[-1])
        return _step_of(files[-1])

    def _gone(self) -> CheckpointError:
        return CheckpointError(
            f"{self._out / FOLDER}: the best weights are gone; start anew with --overwrite, or put them back"
        )

    def _files(self) -> list[Path]:
        return sorted((self._out / FOLDER).glob("best_*.safetensors"))


def _score_of(file: Path) -> float:
    try:
        return float(read_metadata(file)["validation"]["score"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: says nothing of its score; start anew with --overwrite") from error


def _step_of(path: Path) -> int:
    """Of ``best_00000400.safetensors`` and ``step_00000400``."""
    return int(path.stem.rpartition("_")[2])
