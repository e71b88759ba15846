"""Scoring a segmenter or a change detector: predict every image of a part, count, report."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitp.commands.finetune import FinetuneConfig
from vitp.commands.scoring import Asked, asked_indices, asked_recipe, read_ahead, viewed
from vitp.datasets.dense import DenseData, open_dataset
from vitp.errors import ConfigError
from vitp.files import write_json
from vitp.inference.colours import class_colours
from vitp.metrics.segmentation import SegmentationMetric
from vitp.report.segmentation import Shown, lines, shrink, write_segmentation_report
from vitp.tasks.segment import load_dense, predict_masks
from vitp.train.loop_config import choose_device, uses_bf16


def evaluate_dense(asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Score a model of masks; returns its numbers and the table of classes.

    Raises:
        ConfigError: the recipe is of another task, or its classes are not the model's.
        DataError: the part is empty, or a file cannot be used.
        CheckpointError: the model cannot be opened.
        OutputError: the results cannot be written.
    """
    config = asked_recipe(asked)
    if not isinstance(config, FinetuneConfig):
        raise ConfigError(f"{asked.recipe}: has task: {config.task}, and {asked.model} maps pixels (segment, change)")
    model, _ = load_dense(asked.model)
    data = open_dataset(config.data)
    pairs = data.config.kind == "pairs"
    if pairs != (model.dates > 1):
        found = ("pairs", "single images") if pairs else ("single images", "pairs")
        raise ConfigError(f"{asked.recipe}: its data are {found[0]}, and {asked.model} takes {found[1]}")
    indices = asked_indices(asked, data, config.data.root, model.classes)
    device = choose_device(config.device)
    inference = viewed(config.inference, asked.tta)
    asked.say(
        f"evaluate: {len(indices)} {asked.split} images of {config.data.root}, "
        + (f"{inference.views} views of each, " if inference.views > 1 else "")
        + (f"windows of {inference.window}" if inference.window else "each at once")
    )
    metric = SegmentationMetric(data.classes, background=config.data.background)
    gallery = _Gallery(len(indices), asked.pictures)
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(config.precision, device)):
        for done, (index, (*dates, label)) in enumerate(read_ahead(data.read, indices), 1):
            (predicted,) = predict_masks(model.to(device), [torch.cat(dates)], inference)
            metric.update(predicted, label)
            gallery.add(_name(data, index), dates, label, predicted)
            asked.progress(done, len(indices))
    scores = metric.scores()
    if scores.absent:
        asked.say(f"scores: {', '.join(scores.absent)} occur in neither labels nor predictions; left out of the means")
    numbers: dict[str, Any] = {
        "model": str(asked.model),
        "data": str(config.data.root),
        "split": asked.split,
        "images": len(indices),
        "inference": inference.model_dump(mode="json"),
        **scores.as_dict(),
        **({"f1_changed": scores.changed} if model.dates > 1 and scores.changed is not None else {}),
        "confusion": metric.matrix.tolist(),
    }
    facts = [
        ("images", f"{len(indices):,}"),
        ("mean IoU", _percent(scores.miou)),
        ("mean Dice", _percent(scores.mdice)),
    ]
    facts += [("F1 of changes", _percent(scores.f1[-1]))] if model.dates > 1 else []
    facts += [("pixel accuracy", _percent(scores.accuracy))]
    write_json(asked.metrics, numbers)
    colours = class_colours(data.classes, config.data.background, None)
    title = f"{config.name}, {asked.split} images"
    write_segmentation_report(asked.report, title, facts, metric, gallery.shown(), colours)
    return numbers, [*lines(scores), *([f"F1 of changes {_percent(scores.f1[-1])}"] if model.dates > 1 else [])]


def _name(data: DenseData, index: int) -> str:
    item = data.items[index]
    name = item.image.relative_to(data.config.root).as_posix()
    number = getattr(item, "slice", None)  # of a volume
    return name if number is None else f"{name} slice {number}"


class _Gallery:
    """A few of many images, small: half of them evenly spread, half with the most wrong pixels."""

    def __init__(self, total: int, wanted: int) -> None:
        self._spread = max(0, math.ceil(wanted / 2))
        self._worst = max(0, wanted - self._spread)
        self._every = max(1, math.ceil(total / self._spread)) if self._spread else total + 1
        self._seen = 0
        self._even: list[Shown] = []
        self._heap: list[tuple[float, int, Shown]] = []  # the least wrong on top

    def add(self, name: str, dates: Sequence[Tensor], label: Tensor, predicted: Tensor) -> None:
        """Look at the next image."""
        number = self._seen
        self._seen += 1
        one = shrink(name, dates, label, predicted)
        if self._spread and number % self._every == 0 and len(self._even) < self._spread:
            self._even.append(one)
        elif self._worst and not math.isnan(one.wrong):
            heapq.heappush(self._heap, (one.wrong, -number, one))
            if len(self._heap) > self._worst:
                heapq.heappop(self._heap)

    def shown(self) -> list[Shown]:
        """Those spread out in their order, then the worst, worst first."""
        return [*self._even, *(one for _, _, one in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1])))]


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"
