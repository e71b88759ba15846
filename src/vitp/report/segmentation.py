"""The scores of a segmenter as text and as one HTML file: classes, confusions, and pictures of what went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vitp.inference.colours import Colour
from vitp.metrics.segmentation import IGNORE, SegmentationMetric, SegmentationScores
from vitp.report.charts import number
from vitp.report.html import Facts, ImageGrid, Matrix, Picture, Section, Table, colour_mask, overlay, write_report

_COLUMNS = ("IoU", "Dice (F1)", "precision", "recall", "share")
_SIDE = 320  # longer side of a picture in the report, pixels
_WRONG: Colour = (214, 39, 40)
POLICY = (
    "Pixels of all images are pooled. A class in neither labels nor predictions is left out of the means; one that is "
    "predicted but labelled nowhere counts as 0. Share: of the labelled pixels."
)


@dataclass(frozen=True, eq=False)
class Shown:
    """One scored image, small: dates uint8 [h, w, 3], label and prediction uint8 [h, w], and what was wrong of the whole."""

    name: str
    dates: tuple[npt.NDArray[np.uint8], ...]
    label: npt.NDArray[np.uint8]
    predicted: npt.NDArray[np.uint8]
    wrong: float  # share of its labelled pixels; NaN where nothing is labelled


def shrink(name: str, dates: Sequence[Tensor], label: Tensor, predicted: Tensor) -> Shown:
    """An image as the report shows it: dates uint8 [3, H, W], label and prediction uint8 [H, W], at most 320 pixels a side."""
    kept = label != IGNORE
    count = int(kept.sum())
    wrong = int((kept & (label != predicted)).sum()) / count if count else math.nan
    height, width = label.shape
    if max(height, width) > _SIDE:
        size = [max(1, round(side * _SIDE / max(height, width))) for side in (height, width)]
        dates = [functional.resize(date, size, antialias=True) for date in dates]
        label, predicted = (
            functional.resize(ids[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]
            for ids in (label, predicted)
        )
    pictures = tuple(np.ascontiguousarray(date.permute(1, 2, 0).numpy()) for date in dates)
    return Shown(name, pictures, label.numpy(), predicted.numpy(), wrong)


def class_rows(scores: SegmentationScores) -> list[list[str]]:
    """A row for each class and the means, in percent; a dash where a score does not exist."""
    total = max(1, scores.pixels)
    shares = [count / total for count in scores.labelled]
    columns = (scores.classes, scores.iou, scores.dice, scores.precision, scores.recall, shares)
    rows = [[name, *map(_percent, values)] for name, *values in zip(*columns, strict=True)]
    rows.append(["mean", _percent(scores.miou), _percent(scores.mdice), "", "", ""])
    foreground = ["mean without background", _percent(scores.miou_foreground), _percent(scores.mdice_foreground)]
    if scores.miou_foreground != scores.miou or scores.mdice_foreground != scores.mdice:
        rows.append([*foreground, "", "", ""])
    return rows


def lines(scores: SegmentationScores) -> list[str]:
    """The table of classes for a terminal."""
    table = [["", *_COLUMNS], *class_rows(scores)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def write_segmentation_report(
    path: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    metric: SegmentationMetric,
    shown: Sequence[Shown],
    colours: Sequence[Colour],
    more: Sequence[Section] = (),
) -> Path:
    """Write the report and return its path.

    Args:
        path: the HTML file.
        title: of the page.
        facts: headline numbers (name, value).
        metric: filled.
        shown: images with their predictions.
        colours: of the classes.
        more: sections before the tables.

    Raises:
        OutputError: it cannot be written.
    """
    scores = metric.scores()
    counts: list[list[int]] = metric.matrix.tolist()
    sections: list[Section] = [
        Facts(list(facts)),
        *more,
        Table("Classes", ["class", *_COLUMNS], class_rows(scores), caption=f"Percent. {POLICY}"),
        Matrix("What is taken for what", scores.classes, counts, caption="Percent of the pixels of each label (row)."),
    ]
    if shown:
        sections.append(_pictures(shown, scores.classes, colours))
    return write_report(path, title, f"{scores.pixels:,} labelled pixels, {len(scores.classes)} classes", sections)


def _pictures(shown: Sequence[Shown], classes: Sequence[str], colours: Sequence[Colour]) -> ImageGrid:
    dates = len(shown[0].dates)
    rows = []
    for one in shown:
        last = one.dates[-1]
        errors = ((one.label != one.predicted) & (one.label != IGNORE)).astype(np.int64) - 1  # -1: nothing to mark
        said = "nothing labelled" if math.isnan(one.wrong) else f"{number(100 * one.wrong, 2)} % wrong"
        rows.append(
            [
                *(
                    Picture(date, f"{one.name}, date {n}", one.name if n == 1 else "")
                    for n, date in enumerate(one.dates, 1)
                ),
                Picture(colour_mask(one.label, colours), f"label of {one.name}", _present(one.label, classes)),
                Picture(
                    colour_mask(one.predicted, colours), f"prediction for {one.name}", _present(one.predicted, classes)
                ),
                Picture(overlay(last, errors, [_WRONG], 0.75), f"wrong pixels of {one.name}", said),
            ]
        )
    titles = [*(["image"] if dates == 1 else ["before", "after"]), "label", "prediction", "errors"]
    return ImageGrid(
        "Pictures",
        rows,
        titles,
        caption="Evenly spread over the images, then those with the largest share of wrong pixels. Grey in a label: ignored.",
    )


def _present(ids: npt.NDArray[np.uint8], classes: Sequence[str]) -> str:
    """The classes of a mask, largest first."""
    values, counts = np.unique(ids[ids < len(classes)], return_counts=True)
    names = [classes[int(value)] for value in values[np.argsort(-counts, kind="stable")]]
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"
