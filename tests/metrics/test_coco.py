"""COCO's scores against pycocotools, number by number, and the cases it leaves open."""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitp.boxes.objects import Detections, Objects, no_objects
from vitp.boxes.paste import Pasted, paste_mask
from vitp.errors import DataError
from vitp.metrics.coco import CocoMetric, CocoNumbers
from vitp.metrics.detection import detection_scores

CLASSES = ("plane", "ship", "dam", "never labelled", "neither")
SIZE = (150, 190)  # not square: rows and columns cannot be mixed up unseen
NAMES = tuple(CocoNumbers.__dataclass_fields__)
Image = tuple[Detections, Objects]


def _nothing(masks: bool) -> Detections:
    return Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 7, 7) if masks else None
    )


def _outline(box: list[float], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A ring of five to eight corners in the box, sometimes with a second ring beside it."""
    x1, y1, x2, y2 = box
    corners = int(rng.integers(5, 9))
    turns = (np.arange(corners) + rng.random(corners) / 2) / corners * 2 * np.pi
    ring = np.stack(((x1 + x2 + np.cos(turns) * (x2 - x1)) / 2, (y1 + y2 + np.sin(turns) * (y2 - y1)) / 2), 1)
    rings = [ring.astype(np.float32)]
    if rng.random() < 0.3:
        rings.append(np.array([(x1, y1), (x1 + 3, y1), (x1 + 3, y1 + 4)], dtype=np.float32))
    return tuple(rings)


def _image(rng: np.random.Generator, objects: int, detections: int, *, masks: bool = True) -> Image:
    corner, sides = rng.random((objects, 2)) * (130, 90), rng.choice((9, 24, 50, 105), (objects, 1))
    boxes = torch.from_numpy(np.concatenate((corner, corner + sides * (0.6 + rng.random((objects, 2)))), 1)).float()
    labelled = Objects(
        boxes,
        torch.from_numpy(rng.integers(0, 3, objects)),
        difficult=torch.from_numpy(rng.random(objects) < 0.2),
        crowd=torch.from_numpy(rng.random(objects) < 0.15),
        outlines=tuple(_outline(box, rng) for box in boxes.tolist()),
    )
    if not objects or not detections:
        return _nothing(masks), labelled
    near = rng.integers(0, objects, detections)
    found = boxes[near] + torch.from_numpy(rng.normal(0, 4, (detections, 4))).float()
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 2)
    random = torch.from_numpy(rng.integers(0, 4, detections))
    labels = torch.where(torch.from_numpy(rng.random(detections) < 0.8), labelled.labels[near], random)
    scores = torch.from_numpy(rng.integers(1, 12, detections) / 12).float()  # of twelve values: ties everywhere
    cell = (np.arange(7) - 3) / 3.5
    disc = 0.95 - 0.45 * (cell[:, None] ** 2 + cell**2)  # 0.5 on the ellipse that fills the box
    cells = torch.from_numpy(disc + rng.normal(0, 0.08, (detections, 7, 7))).float().clamp(0, 1)
    return Detections(found, scores, labels, cells), labelled


def _data(seed: int) -> dict[str, Image]:
    rng = np.random.default_rng(seed)
    counts = ((4, 9), (0, 0), (3, 0), (6, 30), (1, 260), (8, 12), (5, 7))
    data = {f"im{k}": _image(rng, *count) for k, count in enumerate(counts)}
    lost = _image(rng, 3, 6)[0]
    data["im7"] = lost, no_objects(outlines=True)  # detections where nothing is
    return data


def _pasted(mask: torch.Tensor, box: torch.Tensor) -> np.ndarray:
    """Pixel by pixel: bilinear between the cells' centres, zero outside, at least a half."""
    cells, whole = mask.double().numpy(), np.zeros(SIZE, dtype=np.uint8)
    x1, y1, x2, y2 = box.double().tolist()
    many = len(cells)
    padded = np.pad(cells, 1)
    for row in range(max(int(y1), 0), min(math.ceil(y2), SIZE[0])):
        for column in range(max(int(x1), 0), min(math.ceil(x2), SIZE[1])):
            u, v = (column + 0.5 - x1) / (x2 - x1) * many + 0.5, (row + 0.5 - y1) / (y2 - y1) * many + 0.5
            i, j = math.floor(v), math.floor(u)
            if not (0 <= i <= many and 0 <= j <= many):
                continue
            a, b = v - i, u - j
            value = (1 - a) * ((1 - b) * padded[i, j] + b * padded[i, j + 1])
            value += a * ((1 - b) * padded[i + 1, j] + b * padded[i + 1, j + 1])
            whole[row, column] = value >= 0.5
    return whole


def _reference(data: dict[str, Image], kind: str) -> tuple[list[float], list[list[float]]]:
    """Pycocotools on the same data, all classes in one evaluation: the twelve means, and precisions by class."""
    truth, guess = [], []
    for number, (_, (found, objects)) in enumerate(sorted(data.items()), 1):
        for i, (x1, y1, x2, y2) in enumerate(objects.boxes.double().tolist()):
            rings = [ring.astype(float).ravel().tolist() for ring in objects.outlines[i]]
            area = 0.0
            for ring in objects.outlines[i]:
                x, y = ring.astype(float).T
                area += abs(sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(len(x)))) / 2
            note = {"id": len(truth) + 1, "image_id": number, "category_id": int(objects.labels[i]), "area": area}
            note |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(objects.crowd[i])}
            note["segmentation"] = reference_mask.merge(reference_mask.frPyObjects(rings, *SIZE))
            note["difficult"] = int(objects.difficult[i])
            truth.append(note)
        for i, (x1, y1, x2, y2) in enumerate(found.boxes.double().tolist()):
            note = {"image_id": number, "category_id": int(found.labels[i]), "score": float(found.scores[i])}
            if kind == "bbox":
                note["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                note["segmentation"] = reference_mask.encode(np.asfortranarray(_pasted(found.masks[i], found.boxes[i])))
            guess.append(note)

    class WithIgnored(COCOeval):
        def _prepare(self) -> None:  # pycocotools overwrites `ignore` by `iscrowd`
            super()._prepare()
            for notes in self._gts.values():
                for note in notes:
                    note["ignore"] = note["iscrowd"] or note["difficult"]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": k, "height": SIZE[0], "width": SIZE[1]} for k in range(1, len(data) + 1)],
            "annotations": truth,
            "categories": [{"id": k} for k in range(len(CLASSES))],
            "info": {},
        }
        coco.createIndex()
        evaluation = WithIgnored(coco, coco.loadRes(guess), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]
    by_class = [
        [float(precision[k, :, c, a, -1].mean()) for k, a in ((slice(None), 0), (0, 0), (5, 0), (slice(None), 1))]
        for c in range(len(CLASSES))
    ]
    return evaluation.stats.tolist(), by_class


def _metric(data: dict[str, Image], masks: bool = True) -> CocoMetric:
    metric = CocoMetric(CLASSES, masks=masks)
    for key, (found, objects) in data.items():
        metric.update(key, found, objects, SIZE)
    return metric


def _close(ours: list[float], theirs: list[float]) -> None:
    expected = [math.nan if value == -1 else value for value in theirs]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_pycocotools(seed: int, kind: str) -> None:
    data = _data(seed)
    assert any(len(found) > 200 for found, _ in data.values())
    scores = _metric(data).scores()
    table = scores.boxes if kind == "bbox" else scores.masks
    assert table is not None
    means, by_class = _reference(data, kind)
    assert 0.05 < means[0] < 0.95  # a degenerate set proves nothing
    _close([getattr(table.mean, name) for name in NAMES], means)
    for row, expected in zip(table.per_class, by_class, strict=True):
        _close([row.ap, row.ap50, row.ap75, row.ap_small], expected)


def test_difficult_objects_matter_and_only_as_ignored() -> None:
    data = _data(3)
    plain = {
        key: (found, replace(objects, difficult=torch.zeros_like(objects.difficult)))
        for key, (found, objects) in data.items()
    }
    _close([_metric(plain).scores().boxes.mean.ap], _reference(plain, "bbox")[0][:1])
    assert _metric(plain).scores().boxes.mean.ap != _metric(data).scores().boxes.mean.ap


def test_the_order_of_images_and_their_split_over_processes_change_nothing() -> None:
    data = _data(4)
    whole = _metric(data).scores()
    backwards = _metric(dict(reversed(data.items()))).scores()
    keys = list(data)
    first, second = _metric({k: data[k] for k in keys[1::2]}), _metric({k: data[k] for k in keys[::2]})
    first.merge(second)
    assert repr(whole) == repr(backwards) == repr(first.scores())
    with pytest.raises(DataError, match=r"^im0: was scored before"):
        first.merge(second)


def test_a_perfect_detector_scores_one_and_a_class_without_objects_has_no_score() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 40], [50, 20, 120, 140]])
    labels = torch.tensor([0, 1])
    flags = torch.zeros(2, dtype=torch.bool)
    rings = tuple((np.array([(a, b), (c, b), (c, d), (a, d)], dtype=np.float32),) for a, b, c, d in boxes.tolist())
    metric = CocoMetric(CLASSES, masks=True)
    found = Detections(boxes, torch.tensor([0.9, 0.1]), labels, torch.ones(2, 28, 28))
    metric.update("a", found, Objects(boxes, labels, flags, flags, outlines=rings), SIZE)
    scores = metric.scores()
    assert scores.boxes.mean.ap == pytest.approx(1)
    assert scores.masks is not None
    assert scores.masks.mean.ap == pytest.approx(1)
    assert math.isnan(scores.boxes.per_class[2].ap)
    written = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert written["boxes"]["classes"]["dam"]["ap"] is None


def test_an_object_without_outline_is_ignored_by_the_mask_scores_alone() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 40], [50, 20, 120, 140]])
    labels, flags = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    ring = np.array([(10, 10), (30, 10), (30, 40), (10, 40)], dtype=np.float32)
    found = Detections(boxes[:1], torch.tensor([0.9]), labels[:1], torch.ones(1, 28, 28))
    metric = CocoMetric(CLASSES, masks=True)
    metric.update("a", found, Objects(boxes, labels, flags, flags, outlines=((ring,), ())), SIZE)
    scores = metric.scores()
    assert scores.masks is not None
    assert scores.masks.mean.ap == pytest.approx(1)
    assert scores.boxes.mean.ar100 == pytest.approx(0.5)


@pytest.mark.parametrize(
    "box",
    [(20.3, 30.7, 61.2, 99.9), (-15.0, -8.5, 30.2, 20.0), (150.0, 120.0, 260.0, 170.0), (40.2, 40.2, 40.9, 40.8)],
)
def test_masks_are_pasted_as_by_the_definition(box: tuple[float, ...]) -> None:
    mask = torch.rand(14, 14, generator=torch.Generator().manual_seed(0))
    pixels, top, left = paste_mask(mask, torch.tensor(box), SIZE)
    whole = np.zeros(SIZE, dtype=np.uint8)
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels.numpy()
    np.testing.assert_array_equal(whole, _pasted(mask, torch.tensor(box)))


@pytest.mark.parametrize(
    ("shape", "top", "left"),
    [((4, 5), 3, 2), ((9, 5), 0, 2), ((4, 7), 5, 0), ((9, 7), 0, 0), ((1, 1), 8, 6), ((1, 1), 0, 0), ((0, 0), 0, 0)],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_runs_are_those_of_the_painted_image(shape: tuple[int, int], top: int, left: int, share: float) -> None:
    size = (9, 7)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    whole = np.zeros(size, dtype=np.uint8, order="F")
    whole[top : top + shape[0], left : left + shape[1]] = pixels.numpy()
    runs = {"size": list(size), "counts": Pasted(pixels, top, left).runs(size)}
    assert reference_mask.frPyObjects(runs, *size) == reference_mask.encode(whole)


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 20),
        (20, 10, 10, 20),
        (math.nan, 0, 5, 5),
        (-30, -30, -1, -1),
        (500, 5, 600, 9),
        (0, 0, math.inf, 9),
    ],
)
def test_a_box_without_area_or_outside_the_image_has_no_mask(box: tuple[float, ...]) -> None:
    assert not paste_mask(torch.ones(7, 7), torch.tensor(box), SIZE).pixels.any()


def _hostile(kind: str) -> tuple[Detections, Objects]:
    found, objects = _image(np.random.default_rng(5), 4, 6)
    if kind == "label of a detection":
        return replace(found, labels=torch.tensor([0, 1, 2, 5, 0, 0])), objects
    if kind == "negative label":
        return found, replace(objects, labels=torch.tensor([0, -1, 0, 0]))
    return found, replace(objects, boxes=objects.boxes.clone().fill_(math.nan))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("label of a detection", r"^x\.tif: a detection has the class 5, known are 0 \.\.\. 4; give the metric"),
        ("negative label", r"^x\.tif: a labelled object has the class -1"),
        ("box", r"^x\.tif: a labelled object has a box that is not finite; remove"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(kind: str, sentence: str) -> None:
    for metric in (CocoMetric(CLASSES), detection_scores(CLASSES)):
        with pytest.raises(DataError, match=sentence):
            metric.update("x.tif", *_hostile(kind), SIZE)
        metric.update("x.tif", *_image(np.random.default_rng(5), 4, 6), SIZE)  # nothing was counted before
        with pytest.raises(DataError, match=r"^x\.tif: was scored before, and an image counts once; give each"):
            metric.update("x.tif", *_image(np.random.default_rng(5), 4, 6), SIZE)


def test_detections_that_are_not_finite_are_left_out_and_counted() -> None:
    found, objects = _image(np.random.default_rng(6), 4, 9)
    broken = Detections(found.boxes.clone(), found.scores.clone(), found.labels, found.masks)
    broken.scores[1], broken.scores[2], broken.boxes[5, 0] = math.nan, math.inf, math.nan
    metric = _metric({"a": (broken, objects)}).scores()
    rest = _metric({"a": (found.take(torch.tensor([0, 3, 4, 6, 7, 8])), objects)}).scores()
    assert metric.dropped == 3
    assert repr((metric.boxes, metric.masks)) == repr((rest.boxes, rest.masks))  # NaN equals NaN


@pytest.mark.parametrize("masks", [False, True])
def test_a_set_without_any_object_and_an_empty_set_have_no_score(masks: bool) -> None:
    empty, nothing = CocoMetric(CLASSES, masks=masks), CocoMetric(CLASSES, masks=masks)
    nothing.update("a", _image(np.random.default_rng(7), 4, 9)[0], no_objects(outlines=True), SIZE)
    nothing.update("b", _nothing(masks), no_objects(outlines=True), SIZE)
    for metric in (empty, nothing):
        scores = metric.scores()
        assert all(math.isnan(getattr(scores.boxes.mean, name)) for name in NAMES)
        assert (scores.masks is None) == (not masks)
        json.dumps(scores.as_dict(), allow_nan=False)
