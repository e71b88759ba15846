"""What a detector's mistakes are: of what kind, how many, and what each kind costs.

In the spirit of TIDE (Bolya et al. 2020, sections 2 and 3), with definitions of our own where the paper leaves room. A
detection that finds no object (`vitp.metrics.matching`, IoU at least `found`) is of the first kind that fits:

- *duplicate*: it overlaps an object of its class by at least `found`, which a better detection has found;
- *classification*: it overlaps an object of another class by at least `found`;
- *localisation*: it overlaps an object of its class by at least `near`;
- *both*: it overlaps an object of another class by at least `near`;
- *background*: none of these.

An object that no detection finds is *mistaken* where a classification or localisation error points at it, else
*missed*. So, at any score threshold: detections = found + ignored + the five kinds, and objects = found + mistaken +
missed. The *gain* of a kind is the rise of AP at `found` (area under the curve, mean over classes) when that kind alone is
mended, over all detections whatever their score: a classification error gets the right class and a localisation error the
right place, and of those and the hits on one object the best score stays, the others go; other errors go; missed objects
are no longer asked for. Gains do not add up to what is missing: kinds hide one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitp.metrics.matching import HIT, IGNORED, Integers, Matches
from vitp.metrics.oriented import by_class, counts, mean

KINDS = ("duplicate", "classification", "localisation", "both", "background")  # of detections, in order of precedence
MISSED = "missed"

_HIT, _IGNORED = -1, -2  # beside the index into KINDS


@dataclass(frozen=True)
class ClassErrors:
    """The counts of one class, or of all: detections by the class they were given, objects by their own."""

    name: str
    detections: int
    found: int  # detections that find an object, and as many objects
    ignored: int  # detections of difficult objects and crowds
    kinds: tuple[int, ...]  # in the order of KINDS
    objects: int
    mistaken: int
    missed: int


@dataclass(frozen=True)
class Confusion:
    """How often objects of one class were taken for another's, by classification errors."""

    labelled: str
    detected: str
    count: int


@dataclass(frozen=True)
class ErrorBreakdown:
    """The mistakes of a data set; the thresholds they were told by are part of it."""

    found_iou: float
    near_iou: float
    least_score: float  # counts are of detections with at least this score
    total: ClassErrors
    classes: tuple[ClassErrors, ...]
    confusions: tuple[Confusion, ...]  # the most frequent first
    ap: float  # at `found_iou`, all detections
    gains: tuple[tuple[str, float], ...]  # of KINDS and "missed"; NaN without objects

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; a number that does not exist is None."""
        gains = {kind: None if math.isnan(value) else value for kind, value in self.gains}
        return {
            "found_iou": self.found_iou,
            "near_iou": self.near_iou,
            "least_score": self.least_score,
            "AP": None if math.isnan(self.ap) else self.ap,
            "gains": gains,
            "total": _as_dict(self.total),
            "classes": {row.name: _as_dict(row) for row in self.classes},
            "confusions": [[pair.labelled, pair.detected, pair.count] for pair in self.confusions],
        }


def error_breakdown(
    classes: Sequence[str],
    matches: Matches,
    *,
    found_iou: float = 0.5,  # TIDE's t_f
    near_iou: float = 0.1,  # TIDE's t_b
    least_score: float = 0.0,
) -> ErrorBreakdown:
    """The mistakes in `matches`, of rotated or upright boxes.

    Args:
        classes: names by class id.
        matches: what a detection metric gathered (`DetectionMetric.matches()`).
        found_iou: overlap from which an object counts as found.
        near_iou: overlap from which a detection means an object, though badly placed.
        least_score: counts are of detections with at least this score (`best_threshold` gives one); gains of all.
    """
    assert 0 < near_iou < found_iou <= 1, f"overlaps {near_iou} and {found_iou}: 0 < near < found <= 1"
    kinds = _kinds(matches, found_iou, near_iou)
    shown = matches.scores >= least_score
    pointed, hit = _pointed(matches, kinds, shown)
    rows = _class_rows(classes, matches, np.where(shown, kinds, len(KINDS)), pointed, hit)
    base, gains = _gains(len(classes), matches, kinds, found_iou)
    return ErrorBreakdown(
        found_iou, near_iou, least_score, _total(rows), rows, _confusions(classes, matches, kinds, shown), base, gains
    )


def _kinds(matches: Matches, found: float, near: float) -> NDArray[np.int8]:
    """Of each detection [D]: the index into KINDS, or _HIT, or _IGNORED."""
    outcome = matches.outcomes(found)
    tests = (matches.iou >= found, matches.other_iou >= found, matches.iou >= near, matches.other_iou >= near)
    kinds = np.select(tests, range(len(tests)), default=len(tests)).astype(np.int8)
    kinds[outcome == HIT] = _HIT
    kinds[outcome == IGNORED] = _IGNORED
    return kinds


def _meant(matches: Matches, kinds: NDArray[np.int8]) -> Integers:
    """The object [D] each detection finds or, by a classification or localisation error, points at; else -1."""
    classification, localisation = KINDS.index("classification"), KINDS.index("localisation")
    meant = np.where((kinds == _HIT) | (kinds == localisation), matches.row, -1)
    return np.where(kinds == classification, matches.other_row, meant)


def _pointed(
    matches: Matches, kinds: NDArray[np.int8], shown: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which objects [G] a shown detection finds or points at, and which it finds."""
    meant = _meant(matches, kinds)
    pointed, hit = np.zeros((2, len(matches.object_labels)), dtype=np.bool_)
    pointed[meant[shown & (meant >= 0)]] = True
    hit[meant[shown & (kinds == _HIT)]] = True
    return pointed, hit


def _class_rows(
    classes: Sequence[str],
    matches: Matches,
    kinds: NDArray[np.int8],
    pointed: NDArray[np.bool_],
    hit: NDArray[np.bool_],
) -> tuple[ClassErrors, ...]:
    counted = matches.counted()
    rows = []
    for label, name in enumerate(classes):
        own, objects = kinds[matches.labels == label], counted & (matches.object_labels == label)
        of_kind = tuple(int((own == kind).sum()) for kind in range(len(KINDS)))
        found, ignored = int((own == _HIT).sum()), int((own == _IGNORED).sum())
        rows.append(
            ClassErrors(
                name=name,
                detections=found + ignored + sum(of_kind),
                found=found,
                ignored=ignored,
                kinds=of_kind,
                objects=int(objects.sum()),
                mistaken=int((objects & pointed & ~hit).sum()),
                missed=int((objects & ~pointed).sum()),
            )
        )
    return tuple(rows)


def _total(rows: Sequence[ClassErrors]) -> ClassErrors:
    names = ("detections", "found", "ignored", "objects", "mistaken", "missed")
    sums = {name: sum(getattr(row, name) for row in rows) for name in names}
    of_kind = tuple(sum(row.kinds[kind] for row in rows) for kind in range(len(KINDS)))
    return ClassErrors(name="all", kinds=of_kind, **sums)


def _confusions(
    classes: Sequence[str], matches: Matches, kinds: NDArray[np.int8], shown: NDArray[np.bool_]
) -> tuple[Confusion, ...]:
    rows = np.flatnonzero(shown & (kinds == KINDS.index("classification")))
    pairs = np.stack((matches.object_labels[matches.other_row[rows]], matches.labels[rows]), 1)
    kind, count = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-count, kind="stable").tolist()
    return tuple(Confusion(classes[kind[k, 0]], classes[kind[k, 1]], int(count[k])) for k in order)


def _gains(
    classes: int, matches: Matches, kinds: NDArray[np.int8], found: float
) -> tuple[float, tuple[tuple[str, float], ...]]:
    """(AP as it is, what each kind mended would add)."""
    counted = matches.counted()
    objects = counts(matches.object_labels[counted], classes)
    outcome = matches.outcomes(found)
    base = mean(by_class(matches.labels, outcome, objects)[1])
    gains = []
    for number, kind in enumerate(KINDS):
        labels, mended = _mended(matches, kinds, number, outcome)
        gains.append((kind, mean(by_class(labels, mended, objects)[1]) - base))
    pointed, _ = _pointed(matches, kinds, np.ones(len(kinds), dtype=np.bool_))
    asked = counts(matches.object_labels[counted & pointed], classes)
    # A class all of whose objects are missed has nothing left to ask for: then it is as good as found.
    areas = by_class(matches.labels, outcome, asked)[1]
    left = [1.0 if before and not now else area for before, now, area in zip(objects, asked, areas, strict=True)]
    return base, (*gains, (MISSED, mean(left) - base))


def _mended(
    matches: Matches, kinds: NDArray[np.int8], number: int, outcome: NDArray[np.int8]
) -> tuple[Integers, NDArray[np.int8]]:
    """Labels and outcomes [D] with the errors of one kind put right, or gone where there is nothing to put right."""
    wrong = kinds == number
    mended = np.where(wrong, IGNORED, outcome).astype(np.int8)
    if KINDS[number] not in ("classification", "localisation"):
        return matches.labels, mended
    meant = np.where(wrong | (outcome == HIT), _meant(matches, kinds), -1)
    meant = np.where(matches.difficult[meant], -1, meant) if len(matches.difficult) else meant
    rows = np.flatnonzero(meant >= 0)
    _, first = np.unique(meant[rows], return_index=True)  # rows fall by score: the best one on each object
    mended[rows] = IGNORED
    mended[rows[first]] = HIT
    labels = matches.labels.copy()
    labels[rows] = matches.object_labels[meant[rows]]
    return labels, mended


def _as_dict(row: ClassErrors) -> dict[str, int]:
    fields = ("detections", "found", "ignored", "objects", "mistaken", "missed")
    return {name: getattr(row, name) for name in fields} | dict(zip(KINDS, row.kinds, strict=True))
