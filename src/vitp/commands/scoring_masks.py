"""Predicting images, counting, and showing: what `vitp finetune` and `vitp evaluate` do with a model of masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vitp.datasets.dense import DenseData
from vitp.inference.colours import class_colours
from vitp.inference.engine import read_ahead
from vitp.metrics.segmentation import SegmentationMetric, SegmentationScores
from vitp.report.gallery import Gallery
from vitp.report.html import Section
from vitp.report.segmentation import Shown, lines, shrink, write_segmentation_report
from vitp.tasks.segment import InferenceConfig, Segmenter, predict_masks
from vitp.train.distributed import Ranks


@dataclass(frozen=True, eq=False)
class ScoredMasks:
    """What was counted of some images, and a few of them to show."""

    metric: SegmentationMetric
    scores: SegmentationScores
    shown: tuple[Shown, ...]
    images: int
    change: bool  # whether the model takes two dates

    def lines(self) -> list[str]:
        """For people."""
        return table_lines(self.scores, change=self.change)

    def write(self, path: Path, title: str, background: int | None, more: Sequence[Section] = ()) -> None:
        """The HTML report; `more` stands before its tables.

        Raises:
            OutputError: it cannot be written.
        """
        scores = self.scores
        facts = [
            ("images", f"{self.images:,}"),
            ("mean IoU", _percent(scores.miou)),
            ("mean Dice", _percent(scores.mdice)),
        ]
        facts += [("F1 of changes", _percent(scores.f1[-1]))] if self.change else []
        facts += [("pixel accuracy", _percent(scores.accuracy))]
        colours = class_colours(scores.classes, background, None)
        write_segmentation_report(path, title, facts, self.metric, self.shown, colours, more)


def table_lines(scores: SegmentationScores, *, change: bool) -> list[str]:
    """The table of classes for a terminal, and of change detection its own number."""
    return [*lines(scores), *([f"F1 of changes {_percent(scores.f1[-1])}"] if change else [])]


@dataclass(frozen=True, eq=False)
class Predicted:
    """An image of a data set: its dates uint8 [3, H, W], its label and what is predicted, class ids uint8 [H, W]."""

    index: int
    dates: tuple[Tensor, ...]
    label: Tensor
    predicted: Tensor


def predictions(
    model: Segmenter, data: DenseData, indices: Sequence[int], inference: InferenceConfig
) -> Iterator[Predicted]:
    """Predict images, each read while the one before is predicted; the model is put into eval mode.

    Raises:
        DataError: a file cannot be used.
    """
    for index, (*dates, label) in read_ahead(data.read, indices):
        (predicted,) = predict_masks(model, [torch.cat(dates)], inference)
        yield Predicted(index, tuple(dates), label, predicted)


def score_and_show(
    model: Segmenter,
    data: DenseData,
    indices: Sequence[int],
    inference: InferenceConfig,
    *,
    pictures: int,
    progress: Callable[[int, int], None],
    ranks: Ranks = Ranks(),
) -> ScoredMasks:
    """Predict images, count, and keep a few.

    Args:
        model: on its device; the same on all ranks.
        data: whose labels fit the model.
        indices: the images.
        inference: how they are predicted.
        pictures: how many to keep.
        progress: told images done and how many there are.
        ranks: who share the work; all call this. What rank 0 gets is of all images, what another gets of its own.

    Raises:
        DataError: a file cannot be used.
    """
    part = ranks.part(len(indices))
    metric = SegmentationMetric(data.classes, background=data.config.background)
    gallery = Gallery[Shown](len(indices), pictures, part.start)

    def look() -> None:
        for done, seen in enumerate(predictions(model, data, [indices[i] for i in part], inference), 1):
            metric.update(seen.predicted, seen.label)
            one = shrink(_name(data, seen.index), seen.dates, seen.label, seen.predicted)
            gallery.add(one.wrong, partial(_same, one))
            progress(done * len(indices) // len(part), len(indices))

    ranks.together(look)
    for counted, kept in ranks.collect((metric, gallery))[1:]:
        metric.merge(counted)
        gallery.merge(kept)
    shown = (*gallery.even, *gallery.worst)
    return ScoredMasks(metric, metric.scores(), shown, len(indices), change=model.dates > 1)


def _name(data: DenseData, index: int) -> str:
    item = data.items[index]
    name = item.image.relative_to(data.config.root).as_posix()
    number = getattr(item, "slice", None)  # of a volume
    return name if number is None else f"{name} slice {number}"


def _same(one: Shown) -> Shown:
    return one


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"
