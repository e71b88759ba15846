"""Rotated and upright mAP against a slow second version with shapely, written for being obviously right."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from vitp.boxes.formats import from_xyxy, to_quads, to_xyxy
from vitp.boxes.objects import SIZES, Detections, Objects, no_objects
from vitp.errors import DataError
from vitp.metrics.detection import detection_scores
from vitp.metrics.oriented import OrientedMetric, average_precision

CLASSES = ("plane", "ship", "dam", "never labelled", "neither")
SIZE = (200, 200)
Image = tuple[Detections, Objects]


def _objects(boxes: torch.Tensor, rng: np.random.Generator, crowds: float) -> Objects:
    """Of rotated boxes [N, 5]."""
    count = len(boxes)
    return Objects(
        to_xyxy(boxes).float(),
        torch.from_numpy(rng.integers(0, 3, count)),
        difficult=torch.from_numpy(rng.random(count) < 0.2),
        crowd=torch.from_numpy(rng.random(count) < crowds),
        quads=to_quads(boxes).float(),
    )


def _image(
    rng: np.random.Generator, objects: int, detections: int, *, turned: bool = True, crowds: float = 0.1
) -> Image:
    centre, sides = (
        rng.random((objects, 2)) * 160,
        rng.choice((9, 20, 45, 90), (objects, 1)) * (0.5 + rng.random((objects, 2))),
    )
    angle = (rng.random((objects, 1)) - 0.5) * np.pi * turned
    boxes = torch.from_numpy(np.concatenate((centre, sides, angle), 1)).float()
    labelled = _objects(boxes, rng, crowds)
    if not objects or not detections:
        return Detections(torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64)), labelled
    near = rng.integers(0, objects, detections)
    noise = rng.normal(0, 1, (detections, 5)) * (1.5, 1.5, 2, 2, 0.06 * turned)
    found = boxes[near] + torch.from_numpy(noise).float()
    found[:, 2:4] = found[:, 2:4].clamp_min(1)
    random = torch.from_numpy(rng.integers(0, 4, detections))
    labels = torch.where(torch.from_numpy(rng.random(detections) < 0.8), labelled.labels[near], random)
    scores = torch.from_numpy(rng.integers(1, 15, detections) / 15).float()  # ties everywhere
    return Detections(found, scores, labels), labelled


def _data(seed: int, *, turned: bool = True) -> dict[str, Image]:
    rng = np.random.default_rng(seed)
    counts = ((5, 9), (0, 0), (3, 0), (9, 40), (1, 25), (8, 12))
    data = {f"im{k}": _image(rng, *count, turned=turned) for k, count in enumerate(counts)}
    data["im6"] = _image(rng, 3, 6)[0], no_objects(quads=True)
    return data


# ------------------------------------------------------------------------------------------------- the second version


@dataclass
class _Seen:
    """A detection, or a labelled object."""

    shape: Polygon
    label: int
    score: float = 0.0
    difficult: bool = False
    crowd: bool = False
    taken: bool = False


def _read(image: Image, *, upright: bool) -> tuple[list[_Seen], list[_Seen]]:
    found, objects = image
    if upright:
        corners = [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in found.boxes.tolist()]
        marked = [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in objects.boxes.tolist()]
    else:
        corners, marked = to_quads(found.boxes.double()).tolist(), objects.quads.tolist()
    detections = [
        _Seen(Polygon(c), k, s) for c, k, s in zip(corners, found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    flags = zip(marked, objects.labels.tolist(), objects.difficult.tolist(), objects.crowd.tolist(), strict=True)
    return detections, [_Seen(Polygon(c), k, 0.0, hard, crowd) for c, k, hard, crowd in flags]


def _iou(a: Polygon, b: Polygon) -> float:
    return a.intersection(b).area / a.union(b).area


def _slow(
    data: dict[str, Image],
    label: int,
    threshold: float,
    *,
    upright: bool = False,
    low: float = 0,
    high: float = math.inf,
) -> tuple[float, float, float]:
    """(11-point, area, recall) of a class, by the rule of the released evaluation, one detection after the other."""
    judged: list[tuple[float, bool]] = []  # (score, found an object)
    total = 0
    for _, image in sorted(data.items()):
        detections, objects = _read(image, upright=upright)
        crowds = [o for o in objects if o.label == label and o.crowd]
        objects = [o for o in objects if o.label == label and not o.crowd]
        for one in objects:
            one.difficult |= not low <= one.shape.area < high
        total += sum(not one.difficult for one in objects)
        for one in sorted((d for d in detections if d.label == label), key=lambda d: -d.score):
            best = max(objects, key=lambda o: _iou(one.shape, o.shape), default=None)
            if best is not None and _iou(one.shape, best.shape) >= threshold:
                if not best.difficult:
                    judged.append((one.score, not best.taken))
                    best.taken = True
            elif any(one.shape.intersection(c.shape).area / one.shape.area >= threshold for c in crowds):
                pass
            elif low <= one.shape.area < high:
                judged.append((one.score, False))
    judged.sort(key=lambda pair: -pair[0])
    if total == 0:
        return math.nan, math.nan, math.nan
    points = []  # (recall, precision) after each detection
    hits = 0
    for count, (_, hit) in enumerate(judged, 1):
        hits += hit
        points.append((Fraction(hits, total), Fraction(hits, count)))
    at_recalls = [max((p for r, p in points if r >= Fraction(k, 10)), default=Fraction(0)) for k in range(11)]
    area, before = Fraction(0), Fraction(0)
    for recall in sorted({r for r, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return float(sum(at_recalls) / 11), float(area), hits / total


def _mean(values: list[float]) -> float:
    real = [value for value in values if not math.isnan(value)]
    return sum(real) / len(real) if real else math.nan


# -------------------------------------------------------------------------------------------------------------- tests


def _metric(data: dict[str, Image], *, rotated: bool = True) -> OrientedMetric:
    metric = OrientedMetric(CLASSES, rotated=rotated)
    for key, (found, objects) in data.items():
        metric.update(key, found, objects, SIZE)
    return metric


def _upright(data: dict[str, Image]) -> dict[str, Image]:
    return {
        key: (replace(found, boxes=to_xyxy(found.boxes) if found.rotated else found.boxes), objects)
        for key, (found, objects) in data.items()
    }


def _same(ours: float, theirs: float) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("upright", [False, True])
def test_equals_the_slow_reference(seed: int, upright: bool) -> None:
    data = _upright(_data(seed)) if upright else _data(seed)
    scores = _metric(data, rotated=not upright).scores()
    at = [k / 20 for k in range(10, 20)]
    table = {k: [_slow(data, k, t, upright=upright) for t in at] for k in range(len(CLASSES))}
    for label, row in enumerate(scores.per_class):
        voc07, area, recall = zip(*table[label], strict=True)
        _same(row.voc07, voc07[0])
        _same(row.voc07_all, np.mean(voc07))
        _same(row.ap50, area[0])
        _same(row.ap75, area[5])
        _same(row.ap, np.mean(area))
        _same(row.ar, np.mean(recall))
    _same(scores.mean.voc07, _mean([table[k][0][0] for k in table]))
    _same(scores.mean.ap, _mean([np.mean([row[1] for row in table[k]]) for k in table]))
    assert 0.05 < scores.mean.ap < scores.mean.ap50 < 0.95  # a degenerate set proves nothing


def test_sizes_equal_the_slow_reference() -> None:
    data = _data(2)
    scores = _metric(data).scores()
    for name, low, high in SIZES:
        for label in range(3):
            expected = np.mean([_slow(data, label, k / 20, low=low, high=high)[1] for k in range(10, 20)])
            _same(getattr(scores.per_class[label], f"ap_{name}"), expected)
    assert len({scores.mean.ap_small, scores.mean.ap_medium, scores.mean.ap_large}) == 3


def test_upright_boxes_as_rotated_ones_at_angle_zero_score_the_same() -> None:
    data = _upright(_data(3, turned=False))
    turned = {key: (replace(found, boxes=from_xyxy(found.boxes)), objects) for key, (found, objects) in data.items()}
    plain, rotated = (_metric(images, rotated=flag).scores() for images, flag in ((data, False), (turned, True)))
    for a, b in zip((plain.mean, *plain.per_class), (rotated.mean, *rotated.per_class), strict=True):
        np.testing.assert_allclose(list(vars(a).values()), list(vars(b).values()), rtol=0, atol=1e-12)
    # and upright detections are turned into rotated ones where the objects are rotated
    assert repr(_metric(data, rotated=True).scores()) == repr(rotated)


def test_a_detection_tries_its_best_object_alone() -> None:
    """The second detection overlaps both objects enough, and the first one more: it repeats, and the other is missed."""
    boxes = torch.tensor([[50.0, 50, 40, 20, 0], [54, 50, 40, 20, 0]])
    flags = torch.zeros(2, dtype=torch.bool)
    labels = torch.zeros(2, dtype=torch.int64)
    objects = Objects(to_xyxy(boxes), labels, flags, flags, quads=to_quads(boxes))
    found = Detections(torch.tensor([[50.0, 50, 40, 20, 0], [51, 50, 40, 20, 0]]), torch.tensor([0.9, 0.8]), labels)
    metric = _metric({"a": (found, objects)})
    assert metric.scores().per_class[0].ap50 == pytest.approx(0.5)
    assert metric.scores().per_class[0].voc07 == pytest.approx(6 / 11)


def test_detections_of_a_difficult_object_count_neither_way_however_many() -> None:
    boxes = torch.tensor([[50.0, 50, 40, 20, 0.3], [120, 50, 40, 20, 0.3]])
    hard = torch.tensor([True, False])
    labels = torch.zeros(2, dtype=torch.int64)
    objects = Objects(to_xyxy(boxes), labels, hard, torch.zeros(2, dtype=torch.bool), quads=to_quads(boxes))
    found = Detections(boxes[[0, 0, 0, 1]], torch.tensor([0.9, 0.8, 0.7, 0.1]), labels[[0, 0, 0, 0]])
    scores = _metric({"a": (found, objects)}).scores()
    assert scores.per_class[0].ap == pytest.approx(1)
    assert (scores.objects[0], scores.difficult[0], scores.detections[0]) == (1, 1, 4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.booleans(), max_size=25), st.integers(0, 12))
def test_average_precision_is_exact(hits: list[bool], missed: int) -> None:
    objects = sum(hits) + missed
    ours = average_precision(np.array(hits, dtype=bool), objects)
    if objects == 0:
        assert all(map(math.isnan, ours))
        return
    found = [sum(hits[: k + 1]) for k in range(len(hits))]
    best = [
        max((Fraction(n, k + 1) for k, n in enumerate(found) if Fraction(n, objects) >= at), default=Fraction(0))
        for at in (Fraction(k, 10) for k in range(11))
    ]
    assert ours[0] == pytest.approx(float(sum(best) / 11), abs=1e-14)
    steps = [max(Fraction(n, k + 1) for k, n in enumerate(found) if n >= level) for level in range(1, sum(hits) + 1)]
    assert ours[1] == pytest.approx(float(sum(steps) / objects), abs=1e-14)
    assert 0 <= ours[1] <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_of_images_and_their_split_over_processes(seed: int, random: object) -> None:
    rng = np.random.default_rng(seed)
    data = {f"im{k}": _image(rng, int(rng.integers(0, 5)), int(rng.integers(0, 9))) for k in range(4)}
    keys = list(data)
    random.shuffle(keys)  # type: ignore[attr-defined]
    whole = _metric(data).scores()
    parts = [_metric({k: data[k] for k in keys[half::2]}) for half in (0, 1)]
    parts[0].merge(parts[1])
    assert repr(parts[0].scores()) == repr(whole)
    with pytest.raises(DataError, match="was scored before"):
        parts[0].merge(parts[1])
    for row in whole.per_class:
        for value in vars(row).values():
            assert math.isnan(value) or 0 <= value <= 1
        assert math.isnan(row.ap) or row.ap <= row.ap50 + 1e-12


def test_hostile_input() -> None:
    rng = np.random.default_rng(8)
    found, objects = _image(rng, 4, 6)
    metric = OrientedMetric(CLASSES)
    with pytest.raises(DataError, match=r"^s: a labelled object has a box that is not finite; remove the object"):
        metric.update("s", found, replace(objects, quads=objects.quads * math.nan), SIZE)
    with pytest.raises(DataError, match=r"^s: a detection has the class 7, known are 0 \.\.\. 4; give the metric"):
        metric.update("s", replace(found, labels=found.labels * 0 + 7), objects, SIZE)
    broken = replace(found, scores=found.scores.clone(), boxes=found.boxes.clone())
    broken.scores[0], broken.boxes[1, 4] = math.nan, math.inf
    metric.update("s", broken, objects, SIZE)
    rest = _metric({"s": (found.take(torch.arange(2, 6)), objects)}).scores()
    assert metric.scores().dropped == 2
    assert repr(metric.scores().per_class) == repr(rest.per_class)
    with pytest.raises(DataError, match=r"^s: was scored before, and an image counts once"):
        metric.update("s", found, objects, SIZE)


def test_boxes_without_area_find_nothing_and_do_no_harm() -> None:
    _, objects = _image(np.random.default_rng(9), 4, 0, crowds=0.5)
    flat = torch.tensor([[50.0, 50, 30, 0, 0.2], [60, 60, 0, 0, 0]])
    found = Detections(flat, torch.tensor([0.9, 0.8]), objects.labels[:2])
    metric = _metric({"s": (found, objects)})
    assert metric.scores().mean.ap == 0
    assert np.isfinite(metric.matching.matches().crowd).all()


def test_the_facade_gives_the_same_numbers_under_the_names_of_metrics_json() -> None:
    data = _data(4)
    rotated, upright = detection_scores(CLASSES, "rotated"), detection_scores(CLASSES, "upright")
    for key, (found, objects) in data.items():
        rotated.update(key, found, objects, SIZE)
    for key, (found, objects) in _upright(data).items():
        upright.update(key, found, objects, SIZE)
    scores, reference = rotated.scores(), _metric(data).scores()
    assert scores.main == ("mAP_voc07", reference.mean.voc07)
    written = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert written["AP"] == reference.mean.ap
    assert written["mAP_area"] == written["AP50"] == reference.mean.ap50
    assert written["classes"]["ship"]["mAP_voc07"] == reference.per_class[1].voc07
    assert written["classes"]["neither"]["AP"] is None
    assert written["mask_AP"] is None
    plain = upright.scores()
    assert plain.coco is not None
    assert plain.main == ("AP", plain.coco.boxes.mean.ap)
    assert plain.mean.map_voc07 == _metric(_upright(data), rotated=False).scores().mean.voc07
    assert plain.mean.objects == sum(int((~o.difficult & ~o.crowd).sum()) for _, o in data.values())
