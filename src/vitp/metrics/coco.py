"""COCO's average precision of boxes and masks, by faster-coco-eval (Apache-2.0), whose numbers are pycocotools'.

101 recall points, IoU 0.50, 0.55, ... 0.95, at most 100 detections of a class in an image, small below 32 x 32 pixels,
large above 96 x 96 (cocodataset.org, "Detection Evaluation"). Kept of an image are its boxes, scores and run-length
encoded masks, of each class the 100 best; the scores are computed class by class.

What COCO does not say is settled so. *Difficult* objects are ignored: each takes one detection out of the count, found
or not (COCO's own `ignore`). A labelled object's area, by which it is small or large, is that of its outline where it has
one, as in COCO's files, else of its box. An object without outline is ignored by the mask scores, its box its outline.
Images are ordered by name, so that equal scores rank the same in whatever order images come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from torch import Tensor

from vitp.boxes.formats import to_xywh
from vitp.boxes.objects import Detections, Objects
from vitp.boxes.paste import paste_mask
from vitp.metrics.matching import check_apart, usable

Kind = Literal["bbox", "segm"]
Rle = dict[str, Any]  # {"size": [H, W], "counts": bytes}

MOST = 100  # detections of a class in an image that count (COCO)
_BEYOND = 1e12  # an area outside all of COCO's ranges, which end at 1e10: makes the evaluation ignore an object


@dataclass(frozen=True)
class CocoNumbers:
    """COCO's twelve numbers of a class, or their means; 0 ... 1, NaN where there is no such object."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float  # average recall of 1, 10 and 100 detections an image
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float

    def as_dict(self) -> dict[str, float | None]:
        """JSON-ready; a score that does not exist is None."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class CocoTable:
    """Of boxes or of masks: by class, and the mean over the classes that have objects."""

    mean: CocoNumbers
    per_class: tuple[CocoNumbers, ...]


@dataclass(frozen=True)
class CocoScores:
    """What `CocoMetric` found."""

    classes: tuple[str, ...]
    boxes: CocoTable
    masks: CocoTable | None
    images: int
    dropped: int  # detections left out as a number of theirs is not finite

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; a score that does not exist is None."""
        found: dict[str, object] = {"images": self.images, "dropped": self.dropped}
        for name, table in (("boxes", self.boxes), ("masks", self.masks)):
            if table is not None:
                rows = zip(self.classes, table.per_class, strict=True)
                found[name] = table.mean.as_dict() | {"classes": {key: row.as_dict() for key, row in rows}}
        return found


@dataclass(frozen=True, eq=False)
class _Found:
    """The detections of one class in one image, by falling score."""

    boxes: NDArray[np.float64]  # [D, 4] left, top, width, height
    scores: NDArray[np.float64]  # [D]
    masks: tuple[Rle, ...]


@dataclass(frozen=True, eq=False)
class _Labelled:
    """The labelled objects of one class in one image."""

    boxes: NDArray[np.float64]  # [G, 4] left, top, width, height
    areas: NDArray[np.float64]  # [G]
    crowd: NDArray[np.bool_]  # [G]
    difficult: NDArray[np.bool_]  # [G]
    masks: tuple[Rle, ...]
    outlined: NDArray[np.bool_]  # [G]


class CocoMetric:
    """COCO's scores of boxes, and of masks where asked; one `update` an image."""

    def __init__(self, classes: Sequence[str], *, masks: bool = False) -> None:
        """A metric over `classes`; `masks`: also of the detections' masks against the objects' outlines."""
        self.classes, self.masks = tuple(classes), masks
        self.dropped = 0
        self._sizes: dict[str, tuple[int, int]] = {}
        self._found: list[dict[str, _Found]] = [{} for _ in classes]  # by class, then by image
        self._labelled: list[dict[str, _Labelled]] = [{} for _ in classes]

    def update(self, key: str, detections: Detections, objects: Objects, size: tuple[int, int]) -> None:
        """Count one image.

        Args:
            key: the image's name, unique in the data set.
            detections: upright ones; with masks where masks are scored.
            objects: the labelled ones; with outlines where masks are scored.
            size: of the image, (H, W).

        Raises:
            DataError: the image came before, a label lies outside the classes, an object's box is not finite.
        """
        assert not detections.rotated, "COCO's scores are of boxes [N, 4]"
        check_apart(self._sizes, (key,))
        detections, dropped = usable(key, detections, objects, len(self.classes))
        self._sizes[key] = size
        self.dropped += dropped
        for label in sorted(set(detections.labels.tolist())):
            self._found[label][key] = self._encode(detections.take(detections.labels == label), size)
        for label in sorted(set(objects.labels.tolist())):
            self._labelled[label][key] = self._labels(objects.take(objects.labels == label), size)

    def merge(self, other: CocoMetric) -> None:
        """Add what another metric of the same classes has counted of other images.

        Raises:
            DataError: both hold the same image.
        """
        assert (self.classes, self.masks) == (other.classes, other.masks)
        check_apart(self._sizes, other._sizes)
        self._sizes |= other._sizes
        self.dropped += other.dropped
        for label in range(len(self.classes)):
            self._found[label] |= other._found[label]
            self._labelled[label] |= other._labelled[label]

    def scores(self) -> CocoScores:
        """The scores of everything counted so far."""
        images = {key: number for number, key in enumerate(sorted(self._sizes), 1)}
        boxes = self._table("bbox", images)
        masks = self._table("segm", images) if self.masks else None
        return CocoScores(self.classes, boxes, masks, len(images), self.dropped)

    def _encode(self, found: Detections, size: tuple[int, int]) -> _Found:
        best = np.argsort(-found.scores.double().numpy(), kind="stable")[:MOST]
        masks: list[Rle] = []
        if self.masks:
            assert found.masks is not None, "mask scores are of detections with masks"
            masks = [_encode(found.masks[i], found.boxes[i], size) for i in best.tolist()]
        boxes = to_xywh(found.boxes.double()).numpy()[best]
        return _Found(boxes, found.scores.double().numpy()[best], tuple(masks))

    def _labels(self, objects: Objects, size: tuple[int, int]) -> _Labelled:
        boxes = to_xywh(objects.boxes.double()).numpy()
        areas, masks, outlined = boxes[:, 2] * boxes[:, 3], [], np.zeros(len(boxes), dtype=np.bool_)
        assert objects.outlines is not None or not self.masks, "mask scores are of objects with outlines"
        for i, outline in enumerate(objects.outlines or ()):
            rings = [ring.astype(np.float64) for ring in outline if len(ring) >= 3]
            outlined[i] = bool(rings)
            if rings:
                areas[i] = sum(map(_area, rings))
            if self.masks:
                masks.append(_rasterise(rings or [_corners(boxes[i])], size))
        crowd, difficult = objects.crowd.numpy(), objects.difficult.numpy()
        return _Labelled(boxes, areas, crowd, difficult, tuple(masks), outlined)

    def _table(self, kind: Kind, images: dict[str, int]) -> CocoTable:
        rows = [self._evaluate(kind, label, images) for label in range(len(self.classes))]
        columns = np.array(rows).reshape(len(rows), 12)
        real = ~np.isnan(columns)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no class has such an object
            mean = np.where(real, columns, 0).sum(0) / real.sum(0)
        return CocoTable(CocoNumbers(*mean.tolist()), tuple(CocoNumbers(*row) for row in columns.tolist()))

    def _evaluate(self, kind: Kind, label: int, images: dict[str, int]) -> list[float]:
        """The twelve numbers of a class."""
        found, labelled = self._found[label], self._labelled[label]
        if not labelled:
            return [math.nan] * 12
        keys = sorted(found.keys() | labelled.keys())
        shown = [{"id": images[k], "height": self._sizes[k][0], "width": self._sizes[k][1]} for k in keys]
        truth = [note | {"image_id": images[k]} for k in keys if k in labelled for note in _truths(labelled[k], kind)]
        guess = [note | {"image_id": images[k]} for k in keys if k in found for note in _guesses(found[k], kind)]
        sets = []
        for notes in (truth, guess):
            numbered = [note | {"id": number, "category_id": 1} for number, note in enumerate(notes, 1)]
            sets.append(COCO({"images": shown, "annotations": numbered, "categories": [{"id": 1}]}))
        evaluation = COCOeval_faster(*sets, iouType=kind, rle_iou_max_workers=1)
        evaluation.evaluate()
        evaluation.accumulate()
        # precision [IoU, recall point, class, area, most detections], recall [IoU, class, area, most detections]
        precision, recall = evaluation.eval["precision"][:, :, 0], evaluation.eval["recall"][:, 0]
        chosen = [precision[:, :, 0, -1], precision[0, :, 0, -1], precision[5, :, 0, -1]]
        chosen += [precision[:, :, area, -1] for area in (1, 2, 3)]
        chosen += [recall[:, 0, most] for most in (0, 1, 2)] + [recall[:, area, -1] for area in (1, 2, 3)]
        return [_mean(values) for values in chosen]


def _truths(labelled: _Labelled, kind: Kind) -> list[dict[str, Any]]:
    notes = []
    for i, box in enumerate(labelled.boxes.tolist()):
        ignored = labelled.difficult[i] or (kind == "segm" and not labelled.outlined[i])
        note = {
            "bbox": box,
            "area": _BEYOND if ignored else float(labelled.areas[i]),
            "iscrowd": int(labelled.crowd[i]),
        }
        notes.append(note | ({"segmentation": labelled.masks[i]} if kind == "segm" else {}))
    return notes


def _guesses(found: _Found, kind: Kind) -> list[dict[str, Any]]:
    notes = []
    for i, (box, score) in enumerate(zip(found.boxes.tolist(), found.scores.tolist(), strict=True)):
        note = {"bbox": box, "score": score, "iscrowd": 0}
        if kind == "segm":
            note |= {"segmentation": found.masks[i], "area": float(rle.area(found.masks[i]))}
        else:
            note["area"] = box[2] * box[3]
        notes.append(note)
    return notes


def _encode(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Rle:
    encoded: Rle = rle.frPyObjects({"size": list(size), "counts": paste_mask(mask, box, size).runs(size)}, *size)
    return encoded


def _rasterise(rings: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> Rle:
    parts = rle.frPyObjects([ring.ravel().tolist() for ring in rings], *size)
    merged: Rle = rle.merge(parts)
    return merged


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _corners(box: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, w, h = box
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])


def _mean(values: NDArray[np.float64]) -> float:
    """NaN where the evaluation wrote -1: no object."""
    real = values[values > -1]
    return float(real.mean()) if real.size else math.nan
