"""Average precision of rotated or upright boxes by their best overlap: VOC's two definitions, at one and at ten IoUs.

For DOTA, DIOR-R, RSAR and HRSC2016 with rotated boxes (exact IoU of `vitp.boxes.iou`), for VOC and DIOR with upright
ones. How detections and objects are matched is stated in `vitp.metrics.matching`. Sources: the 11 points of PASCAL VOC
2007 (Everingham et al. 2010, section 4.2), the area of VOC 2010 and later; coordinates are continuous, without the extra
pixel that VOC's own scripts add to widths and heights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from vitp.boxes.objects import SIZES, Detections, Objects
from vitp.metrics.matching import HIT, IGNORED, Flags, Floats, Integers, Matches, Matching

THRESHOLDS = tuple(k / 20 for k in range(10, 20))  # 0.50, 0.55, ... 0.95, as COCO's


@dataclass(frozen=True)
class OrientedNumbers:
    """Scores of a class, or their means; 0 ... 1, NaN where there is no object to be found.

    `ap`, `ap50`, `ap75` and the sizes are areas under the curve; `voc07` the mean precision at 11 recalls.
    """

    ap: float  # mean over the IoU thresholds 0.50, 0.55, ... 0.95
    ap50: float
    ap75: float
    ap_small: float  # area below 32 x 32 pixels, ten thresholds
    ap_medium: float  # below 96 x 96
    ap_large: float
    ar: float  # share of the objects found by all detections, mean over the ten thresholds
    voc07: float  # at IoU 0.5: what the papers call mAP on DOTA, DIOR-R and RSAR
    voc07_all: float  # mean over the ten thresholds


@dataclass(frozen=True)
class OrientedScores:
    """Scores by class, and their mean over the classes that have objects."""

    classes: tuple[str, ...]
    mean: OrientedNumbers
    per_class: tuple[OrientedNumbers, ...]
    objects: tuple[int, ...]  # to be found, by class
    difficult: tuple[int, ...]
    detections: tuple[int, ...]
    images: int
    dropped: int  # detections left out as a number of theirs is not finite

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; a score that does not exist is None."""
        return {
            **numbers_of(self.mean),
            "classes": {name: numbers_of(row) for name, row in zip(self.classes, self.per_class, strict=True)},
            "images": self.images,
            "dropped": self.dropped,
        }


class OrientedMetric:
    """Rotated mAP, streamed: one `update` an image, about 60 bytes a detection kept."""

    def __init__(self, classes: Sequence[str], *, rotated: bool = True) -> None:
        """A metric over `classes`; not `rotated`: of upright boxes, by plain IoU."""
        self.classes = tuple(classes)
        self.matching = Matching(classes, rotated=rotated)

    def update(self, key: str, detections: Detections, objects: Objects, size: tuple[int, int]) -> None:
        """Count one image; see `Matching.update`. `size` (H, W) is asked for by the other metric alone."""
        self.matching.update(key, detections, objects)

    def merge(self, other: OrientedMetric) -> None:
        """Add what another metric of the same classes has counted; see `Matching.merge`."""
        self.matching.merge(other.matching)

    def scores(self) -> OrientedScores:
        """The scores of everything counted so far."""
        return oriented_scores(self.classes, self.matching.matches(), self.matching.dropped)


def oriented_scores(classes: Sequence[str], matches: Matches, dropped: int = 0) -> OrientedScores:
    """The scores of `matches`."""
    count = len(classes)
    voc07, area, recall = (
        np.array(part) for part in zip(*(_all(matches, count, at) for at in THRESHOLDS), strict=True)
    )
    by_size = [np.mean([_all(matches, count, at, low, high)[1] for at in THRESHOLDS], 0) for _, low, high in SIZES]
    at75 = THRESHOLDS.index(0.75)
    table = (area.mean(0), area[0], area[at75], *by_size, recall.mean(0), voc07[0], voc07.mean(0))
    rows = tuple(OrientedNumbers(*map(float, row)) for row in zip(*table, strict=True))
    return OrientedScores(
        classes=tuple(classes),
        mean=OrientedNumbers(*(mean(column.tolist()) for column in table)),
        per_class=rows,
        objects=counts(matches.object_labels[~matches.difficult], count),
        difficult=counts(matches.object_labels[matches.difficult], count),
        detections=counts(matches.labels, count),
        images=matches.images,
        dropped=dropped,
    )


def average_precision(hits: Flags, objects: int) -> tuple[float, float]:
    """(11-point, area) average precision of detections by falling score; NaN without objects.

    The 11-point form compares recalls as whole numbers (10 hits >= k objects), so that no rounding moves a point.
    """
    if not objects:
        return math.nan, math.nan
    if not len(hits):
        return 0.0, 0.0
    found = np.cumsum(hits, dtype=np.int64)
    precision = envelope(found)
    at = np.searchsorted(found * 10, np.arange(11) * objects)  # the first place with recall >= k / 10
    points = np.append(precision, 0.0)[at]
    return float(points.mean()), float(precision[hits].sum() / objects)


def envelope(found: Integers) -> Floats:
    """At each place the highest precision there or at any higher recall, from the running count of hits."""
    precision = found / np.arange(1, len(found) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def curve(matches: Matches, label: int, threshold: float) -> tuple[Flags, Floats, int]:
    """Of one class, ignored detections aside: hits [D'] by falling score, their scores [D'], objects to be found."""
    outcome = matches.outcomes(threshold)
    own = (matches.labels == label) & (outcome != IGNORED)
    objects = int((matches.counted() & (matches.object_labels == label)).sum())
    return outcome[own] == HIT, matches.scores[own], objects


def mean(values: Sequence[float]) -> float:
    """Over the values that exist; NaN where none does."""
    real = [value for value in values if not math.isnan(value)]
    return sum(real) / len(real) if real else math.nan


def numbers_of(row: OrientedNumbers) -> dict[str, float | None]:
    """The fields of a row of scores, JSON-ready: NaN becomes None."""
    return {name: None if math.isnan(value) else value for name, value in asdict(row).items()}


def by_class(
    labels: Integers, outcome: NDArray[np.int8], objects: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    """(11-point, area, recall) of each class, from labels and outcomes [D] by falling score and the objects to be found."""
    valid = np.flatnonzero(outcome != IGNORED)
    order = np.argsort(labels[valid], kind="stable")
    bounds = np.searchsorted(labels[valid][order], np.arange(len(objects) + 1))
    voc07, area, recall = [], [], []
    for label, count in enumerate(objects):
        hits = outcome[valid[order[bounds[label] : bounds[label + 1]]]] == HIT
        points, surface = average_precision(hits, count)
        voc07.append(points)
        area.append(surface)
        recall.append(float(hits.sum()) / count if count else math.nan)
    return voc07, area, recall


def counts(labels: Integers, classes: int) -> tuple[int, ...]:
    """How often each class occurs in labels [N]."""
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _all(
    matches: Matches, classes: int, threshold: float, low: float = 0.0, high: float = math.inf
) -> tuple[list[float], list[float], list[float]]:
    objects = counts(matches.object_labels[matches.counted(low, high)], classes)
    return by_class(matches.labels, matches.outcomes(threshold, low, high), objects)
