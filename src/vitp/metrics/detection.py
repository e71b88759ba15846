"""All scores of a detector under one roof: what training, `vitp evaluate` and the command line ask for.

Upright boxes get COCO's scores (`vitp.metrics.coco`) and VOC's mAP, rotated ones VOC's mAP and the area under the curve
at ten IoUs (`vitp.metrics.oriented`). Both kinds keep, in `matching`, what error breakdowns, precision-recall pictures and
score thresholds are read from (`vitp.metrics.detection_errors`, `vitp.metrics.detection_report`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitp.boxes.objects import Detections, Objects
from vitp.metrics.coco import CocoMetric, CocoNumbers, CocoScores
from vitp.metrics.matching import Matches, Matching
from vitp.metrics.oriented import OrientedNumbers, OrientedScores, oriented_scores

Form = Literal["upright", "rotated"]


@dataclass(frozen=True)
class ClassScores:
    """One row of the table: a class, or the mean over the classes that have objects. NaN: no such object.

    Upright: COCO's scores, `ar` of 100 detections an image. Rotated: areas under the curve (`OrientedNumbers`).
    """

    name: str
    objects: int  # to be found
    difficult: int  # left out of all scores
    detections: int
    ap: float  # IoU 0.50 : 0.95
    ap50: float
    ap75: float
    ap_small: float  # below 32 x 32 pixels
    ap_medium: float
    ap_large: float  # from 96 x 96 pixels
    ar: float
    map_voc07: float  # IoU 0.5, 11 points
    map_area: float  # IoU 0.5, area under the curve; of rotated boxes the same as ap50
    mask_ap: float = math.nan  # of masks, COCO; NaN where masks are not scored
    mask_ap50: float = math.nan
    mask_ap75: float = math.nan

    def as_dict(self) -> dict[str, float | int | None]:
        """JSON-ready, by the names of `SCORES`; a score that does not exist is None."""
        counts = {"objects": self.objects, "difficult": self.difficult, "detections": self.detections}
        scores = {title: getattr(self, field) for title, field in SCORES.items()}
        return counts | {title: None if math.isnan(value) else value for title, value in scores.items()}


SCORES = {  # the names in metrics.json, of the fields of `ClassScores`
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
    "AR": "ar",
    "mAP_voc07": "map_voc07",
    "mAP_area": "map_area",
    "mask_AP": "mask_ap",
    "mask_AP50": "mask_ap50",
    "mask_AP75": "mask_ap75",
}


@dataclass(frozen=True)
class DetectionScores:
    """The scores of a data set: `mean` over the classes that have objects, and `classes` one by one."""

    form: Form
    mean: ClassScores
    classes: tuple[ClassScores, ...]
    images: int
    dropped: int  # detections left out as a number of theirs is not finite
    coco: CocoScores | None  # upright: all of COCO's numbers
    oriented: OrientedScores  # both forms: VOC's numbers and those at ten IoUs

    @property
    def main(self) -> tuple[str, float]:
        """The number the benchmarks of this form lead with: COCO's AP, or VOC07's mAP of rotated boxes."""
        return ("AP", self.mean.ap) if self.form == "upright" else ("mAP_voc07", self.mean.map_voc07)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready: the means by the names of `SCORES`, counts, and the same by class under `classes`."""
        found: dict[str, object] = {"form": self.form, "images": self.images, "dropped": self.dropped}
        found |= self.mean.as_dict()
        found["classes"] = {row.name: row.as_dict() for row in self.classes}
        return found


class DetectionMetric:
    """Streamed: one `update` an image, then `scores`. Made by `detection_scores`."""

    def __init__(self, classes: Sequence[str], form: Form, masks: bool) -> None:
        """See `detection_scores`."""
        assert not (masks and form == "rotated"), "masks are scored with upright boxes"
        self.classes, self.form = tuple(classes), form
        self.matching = Matching(classes, rotated=form == "rotated")
        self.coco = CocoMetric(classes, masks=masks) if form == "upright" else None

    def update(self, key: str, detections: Detections, objects: Objects, size: tuple[int, int]) -> None:
        """Count one image.

        Args:
            key: the image's name, unique in the data set.
            detections: of the image, CPU; [D, 4] for upright scores, with masks where masks are scored.
            objects: the labelled ones; with quads for rotated scores, with outlines where masks are scored.
            size: of the image, (H, W).

        Raises:
            DataError: the image came before, a label lies outside the classes, an object's box is not finite.
        """
        self.matching.update(key, detections, objects)
        if self.coco is not None:
            self.coco.update(key, detections, objects, size)

    def merge(self, other: DetectionMetric) -> None:
        """Add what another metric of the same kind has counted of other images (DataError: of the same)."""
        assert self.form == other.form
        self.matching.merge(other.matching)
        if self.coco is not None and other.coco is not None:
            self.coco.merge(other.coco)

    def matches(self) -> Matches:
        """Which object each detection fits: for error breakdowns, curves and thresholds."""
        return self.matching.matches()

    def scores(self) -> DetectionScores:
        """The scores of everything counted so far; NaN before the first object."""
        oriented = oriented_scores(self.classes, self.matching.matches(), self.matching.dropped)
        coco = None if self.coco is None else self.coco.scores()
        rows = tuple(_row(oriented, coco, label) for label in range(len(self.classes)))
        return DetectionScores(
            self.form, _row(oriented, coco, None), rows, oriented.images, oriented.dropped, coco, oriented
        )


def detection_scores(data_classes: Sequence[str], form: Form = "upright", masks: bool = False) -> DetectionMetric:
    """The metric for a detector.

    Args:
        data_classes: names by class id.
        form: of the boxes; `rotated` needs objects with quads.
        masks: also score masks, of objects with outlines; upright only.
    """
    return DetectionMetric(data_classes, form, masks)


def _row(oriented: OrientedScores, coco: CocoScores | None, label: int | None) -> ClassScores:
    """Of a class, or of their mean (None)."""
    own = oriented.mean if label is None else oriented.per_class[label]
    objects, difficult, detections = (
        sum(column) if label is None else column[label]
        for column in (oriented.objects, oriented.difficult, oriented.detections)
    )
    boxes: CocoNumbers | OrientedNumbers = own
    masks = None
    if coco is not None:
        boxes = coco.boxes.mean if label is None else coco.boxes.per_class[label]
        if coco.masks is not None:
            masks = coco.masks.mean if label is None else coco.masks.per_class[label]
    return ClassScores(
        name="mean" if label is None else oriented.classes[label],
        objects=objects,
        difficult=difficult,
        detections=detections,
        ap=boxes.ap,
        ap50=boxes.ap50,
        ap75=boxes.ap75,
        ap_small=boxes.ap_small,
        ap_medium=boxes.ap_medium,
        ap_large=boxes.ap_large,
        ar=boxes.ar100 if isinstance(boxes, CocoNumbers) else boxes.ar,
        map_voc07=own.voc07,
        map_area=own.ap50,
        mask_ap=math.nan if masks is None else masks.ap,
        mask_ap50=math.nan if masks is None else masks.ap50,
        mask_ap75=math.nan if masks is None else masks.ap75,
    )
