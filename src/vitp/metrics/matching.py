"""Which labelled object each detection fits best: gathered image by image, kept as a few numbers a detection.

Average precision at any threshold, precision-recall curves, the kinds of errors and the best score threshold are all
read from these numbers. The rule is that of the released evaluation of oriented boxes: a detection tries one object
alone, the one of its class that it overlaps most, difficult ones included. If that overlap reaches the threshold, the
detection with the highest score finds the object, the others repeat it; detections of a difficult object count neither
way. Where the best overlap is too low and the detection lies in a crowd (by its own area), it counts neither way too.

Shape legend: D detections, G labelled objects, of one image or of the whole set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitp.boxes.formats import from_quads, from_xyxy
from vitp.boxes.iou import plain_iou, rotated_iou
from vitp.boxes.objects import Detections, Objects
from vitp.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

HIT, FALSE, IGNORED = 1, 0, -1  # what a detection counts as


class Best(NamedTuple):
    """The object each detection overlaps most: its overlap [D] and its row [D]; 0 and -1 where there is none."""

    iou: Floats
    row: Integers


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections [D] of a data set by falling score, and its labelled objects [G], crowds aside.

    Equal scores are ordered by the name of the image, then as the model gave them: the order of updates is no matter.
    """

    labels: Integers  # [D]
    scores: Floats  # [D]
    areas: Floats  # [D] pixels
    iou: Floats  # [D] with the object of the same class that is overlapped most
    row: Integers  # [D] that object's row; -1: overlaps none
    other_iou: Floats  # [D] the same among the objects of other classes, difficult ones aside
    other_row: Integers  # [D]
    crowd: Floats  # [D] the largest share of the detection that lies in a crowd of its class
    object_labels: Integers  # [G]
    object_areas: Floats  # [G] pixels
    difficult: Flags  # [G]
    images: int = 0

    def outcomes(self, threshold: float, low: float = 0.0, high: float = float("inf")) -> NDArray[np.int8]:
        """HIT, FALSE or IGNORED [D] at an IoU threshold.

        With a range of areas, low <= area < high in pixels, objects outside it count as difficult, and detections
        outside it that fit nothing count neither way.
        """
        fits = (self.row >= 0) & (self.iou >= threshold)
        result = np.full(len(self.labels), FALSE, dtype=np.int8)
        rows = np.flatnonzero(fits)
        _, first = np.unique(self.row[rows], return_index=True)  # rows fall by score: the first one is the best
        result[rows[first]] = HIT
        out = self.difficult | ~((self.object_areas >= low) & (self.object_areas < high))
        result[rows[out[self.row[rows]]]] = IGNORED
        elsewhere = ~((self.areas >= low) & (self.areas < high)) | (self.crowd >= threshold)
        result[~fits & elsewhere] = IGNORED
        return result

    def counted(self, low: float = 0.0, high: float = float("inf")) -> Flags:
        """Which objects [G] are to be found: not difficult, and of an area within low <= area < high."""
        return ~self.difficult & (self.object_areas >= low) & (self.object_areas < high)


class Matching:
    """Gathers `Matches`, image by image; about 60 bytes a detection are kept."""

    def __init__(self, classes: Sequence[str], *, rotated: bool) -> None:
        """For detections of `classes`; `rotated`: by the overlap of rotated boxes, of objects that have quads."""
        self.classes, self.rotated = tuple(classes), rotated
        self.dropped = 0  # detections left out as a number of theirs is not finite
        self._images: dict[str, Matches] = {}

    def update(self, key: str, detections: Detections, objects: Objects) -> None:
        """Match one image.

        Args:
            key: the image's name, unique in the data set.
            detections: [D, 4] boxes, or [D, 5] rotated ones; upright ones are turned into rotated ones where needed.
            objects: the labelled ones; with quads where boxes are rotated.

        Raises:
            DataError: the image came before, a label lies outside the classes, an object's box is not finite.
        """
        check_apart(self._images, (key,))
        detections, dropped = usable(key, detections, objects, len(self.classes))
        self.dropped += dropped
        self._images[key] = self._match(detections, objects)

    def merge(self, other: Matching) -> None:
        """Add what another one of the same classes has gathered from other images.

        Raises:
            DataError: both hold the same image.
        """
        assert (self.classes, self.rotated) == (other.classes, other.rotated)
        check_apart(self._images, other._images)
        self._images |= other._images
        self.dropped += other.dropped

    def matches(self) -> Matches:
        """Everything gathered so far."""
        parts = [self._images[key] for key in sorted(self._images)]
        before = np.cumsum([0, *(len(part.object_labels) for part in parts)])
        joined = {
            field.name: np.concatenate([getattr(_NOTHING, field.name), *(getattr(part, field.name) for part in parts)])
            for field in fields(Matches)
            if field.name != "images"
        }
        shift = np.repeat(before[:-1], [len(part.labels) for part in parts]).astype(np.int64)
        for name in ("row", "other_row"):
            joined[name] = np.where(joined[name] >= 0, joined[name] + shift, -1)
        order = np.argsort(-joined["scores"], kind="stable")
        for name in _OF_DETECTIONS:
            joined[name] = joined[name][order]
        return Matches(**joined, images=len(parts))

    def _match(self, found: Detections, objects: Objects) -> Matches:
        a, b = self._boxes(found), self._labelled(objects)
        iou: Floats = (rotated_iou(a, b) if self.rotated else plain_iou(a, b)).numpy()
        area_a, area_b = _areas(a), _areas(b)
        labels, of_objects = found.labels.numpy(), objects.labels.numpy()
        crowd, difficult = objects.crowd.numpy(), objects.difficult.numpy()
        same = labels[:, None] == of_objects[None]
        with np.errstate(divide="ignore", invalid="ignore"):  # what both share, from their IoU and areas
            share = iou * (area_a[:, None] + area_b[None]) / (1 + iou) / area_a[:, None]
        share = np.where(same & crowd & (iou > 0), share, 0.0)
        single = ~crowd
        own = _best(np.where(same, iou, 0.0)[:, single])
        other = _best(np.where(~same & ~difficult, iou, 0.0)[:, single])
        return Matches(
            labels=labels.astype(np.int64),
            scores=found.scores.double().numpy(),
            areas=area_a,
            iou=own.iou,
            row=own.row,
            other_iou=other.iou,
            other_row=other.row,
            crowd=share.max(1, initial=0.0),
            object_labels=of_objects[single].astype(np.int64),
            object_areas=area_b[single],
            difficult=difficult[single],
        )

    def _boxes(self, found: Detections) -> Tensor:
        boxes = found.boxes.double()
        if self.rotated:
            return boxes if found.rotated else from_xyxy(boxes)
        assert not found.rotated, "upright scores are of boxes [N, 4]"
        return boxes

    def _labelled(self, objects: Objects) -> Tensor:
        if not self.rotated:
            return objects.boxes.double()
        assert objects.quads is not None, "rotated scores are of objects with quads"
        return from_quads(objects.quads.double())


def usable(key: str, detections: Detections, objects: Objects, classes: int) -> tuple[Detections, int]:
    """The detections with finite numbers, and how many there are without; checks what a metric is given.

    Raises:
        DataError: a label lies outside the classes, or an object's box is not finite.
    """
    for what, labels in (("detection", detections.labels), ("labelled object", objects.labels)):
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            known = f"0 ... {classes - 1}" if classes else "none"
            raise DataError(
                f"a {what} has the class {int(wrong[0])}, known are {known}; give the metric the classes of the data",
                key,
            )
    if not bool(objects.boxes.isfinite().all()) or not (objects.quads is None or bool(objects.quads.isfinite().all())):
        raise DataError("a labelled object has a box that is not finite; remove the object or mend it", key)
    finite = detections.scores.isfinite() & detections.boxes.isfinite().all(-1)
    dropped = len(detections) - int(finite.sum())
    return (detections.take(finite) if dropped else detections), dropped


def check_apart(known: Mapping[str, object], new: Iterable[str]) -> None:
    """That no image comes a second time.

    Raises:
        DataError: one does.
    """
    for key in new:
        if key in known:
            raise DataError("was scored before, and an image counts once; give each image a name of its own", key)


def _best(overlaps: Floats) -> Best:
    """Of overlaps [D, G]; of equal ones the first object."""
    if not overlaps.size:
        return Best(np.zeros(len(overlaps)), np.full(len(overlaps), -1, dtype=np.int64))
    row = overlaps.argmax(1)
    iou = overlaps[np.arange(len(row)), row]
    return Best(iou, np.where(iou > 0, row, -1).astype(np.int64))


def _areas(boxes: Tensor) -> Floats:
    sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
    return sides.clamp_min(0).prod(1).numpy()


def _nothing() -> Matches:
    integers, floats = np.zeros(0, dtype=np.int64), np.zeros(0)
    found = (integers, floats, floats, floats, integers, floats, integers, floats)
    return Matches(*found, integers, floats, np.zeros(0, dtype=np.bool_))


_NOTHING = _nothing()
_OF_DETECTIONS = ("labels", "scores", "areas", "iou", "row", "other_iou", "other_row", "crowd")
