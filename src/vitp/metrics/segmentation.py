"""Segmentation scores from one confusion matrix, filled image by image in constant memory.

The policy, for IoU, Dice and the rest alike:

* All scores are of the whole data set, pixels of all images pooled, as in the semantic-segmentation benchmarks; the mean
  over images of a per-image Dice, which some medical papers report, is another number.
* A mean is over classes. A class in neither labels nor predictions is left out of it; one that is predicted but labelled
  nowhere counts as 0, and so does one that is labelled and never predicted.
* Every mean is given with all classes and without the background class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = 255  # label of pixels that count neither in the loss nor in a score


@dataclass(frozen=True)
class SegmentationScores:
    """Scores in 0 ... 1; NaN stands for a class found in neither predictions nor labels (listed in `absent`)."""

    classes: tuple[str, ...]
    iou: tuple[float, ...]  # |P and T| / |P or T|, per class
    dice: tuple[float, ...]  # 2 |P and T| / (|P| + |T|), per class; of pixels this is the F1 score
    precision: tuple[float, ...]  # |P and T| / |P|, per class; NaN where it was never predicted
    recall: tuple[float, ...]  # |P and T| / |T|, per class; NaN where it was never labelled
    labelled: tuple[int, ...]  # pixels per class in the labels
    accuracy: float  # share of the labelled pixels with the right class
    miou: float  # mean over the classes present
    mdice: float
    miou_foreground: float  # the same without the background class
    mdice_foreground: float
    absent: tuple[str, ...]  # left out of the means
    pixels: int  # labelled pixels that were scored

    @property
    def f1(self) -> tuple[float, ...]:
        """F1 per class; equal to Dice, under the name remote sensing uses."""
        return self.dice

    @property
    def changed(self) -> float | None:
        """F1 of the last class, "changed", of change detection (what its papers report); None: no such pixel was seen."""
        return _number(self.f1[-1])

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; a score that does not exist is None."""
        columns = (self.classes, self.iou, self.dice, self.precision, self.recall, self.labelled)
        per_class = {
            name: {
                "iou": _number(iou),
                "dice": _number(dice),
                "f1": _number(dice),
                "precision": _number(precision),
                "recall": _number(recall),
                "pixels": pixels,
            }
            for name, iou, dice, precision, recall, pixels in zip(*columns, strict=True)
        }
        means = ("accuracy", "miou", "mdice", "miou_foreground", "mdice_foreground")
        return {
            **{name: _number(getattr(self, name)) for name in means},
            "classes": per_class,
            "absent": list(self.absent),
            "pixels": self.pixels,
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


class SegmentationMetric:
    """Counts (label, prediction) pairs of pixels; matrices of several processes add up (`merge`)."""

    def __init__(self, classes: Sequence[str], *, ignore: int = IGNORE, background: int | None = 0) -> None:
        """A metric over `classes`.

        Args:
            classes: names by class id.
            ignore: label of pixels to leave out.
            background: class id left out of the `_foreground` means; None when there is no background class.
        """
        assert background is None or 0 <= background < len(classes), background
        self.classes, self.ignore, self.background = tuple(classes), ignore, background
        self.matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)  # [label, prediction]

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count one or more images.

        Args:
            predicted: class ids, any integer type, any shape.
            target: class ids or `ignore`, the same shape.

        Raises:
            ValueError: shapes differ, or an id lies outside the classes.
        """
        if predicted.shape != target.shape:
            raise ValueError(f"prediction {list(predicted.shape)} and label {list(target.shape)} differ in shape")
        kept = target != self.ignore
        label, guess = target[kept].long(), predicted[kept].long()
        count = len(self.classes)
        for name, ids in (("label", label), ("prediction", guess)):
            if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= count):
                raise ValueError(f"a {name} holds class id {int(ids.max())}; known are 0 ... {count - 1}")
        pairs = torch.bincount(label * count + guess, minlength=count * count)
        self.matrix += pairs.view(count, count).to(self.matrix.device)

    def merge(self, other: SegmentationMetric) -> None:
        """Add what another metric of the same classes has counted."""
        assert self.classes == other.classes
        self.matrix += other.matrix.to(self.matrix.device)

    def scores(self) -> SegmentationScores:
        """The scores of everything counted so far; NaN means before the first labelled pixel."""
        matrix = self.matrix.double()
        hit, labelled, guessed = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        iou = hit / (labelled + guessed - hit)  # 0 / 0 is NaN: absent from both
        dice = 2 * hit / (labelled + guessed)
        total = matrix.sum()
        foreground = torch.ones(len(self.classes), dtype=torch.bool)
        if self.background is not None:
            foreground[self.background] = False
        return SegmentationScores(
            classes=self.classes,
            iou=tuple(iou.tolist()),
            dice=tuple(dice.tolist()),
            precision=tuple((hit / guessed).tolist()),
            recall=tuple((hit / labelled).tolist()),
            labelled=tuple(self.matrix.sum(1).tolist()),
            accuracy=float(hit.sum() / total),
            miou=float(iou.nanmean()),
            mdice=float(dice.nanmean()),
            miou_foreground=float(iou[foreground].nanmean()),
            mdice_foreground=float(dice[foreground].nanmean()),
            absent=tuple(n for n, v in zip(self.classes, iou.tolist(), strict=True) if math.isnan(v)),
            pixels=int(total),
        )
