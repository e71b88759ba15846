"""Segmentation scores against scikit-learn, and the cases where an average goes quietly wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from vitp.metrics.segmentation import IGNORE, SegmentationMetric

CLASSES = ["background", "road", "roof", "tree", "water"]


def _random(seed: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (3, 17, 23))
    guess = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, classes, target.shape))
    target[rng.random(target.shape) < 0.1] = IGNORE
    return guess, target


def _metric(guess: np.ndarray, target: np.ndarray, classes: list[str] | None = None) -> SegmentationMetric:
    metric = SegmentationMetric(classes or CLASSES)
    for g, t in zip(guess, target, strict=True):
        metric.update(torch.from_numpy(g), torch.from_numpy(t))
    return metric


def test_equals_scikit_learn_image_by_image() -> None:
    guess, target = _random(0)
    scores = _metric(guess, target).scores()
    kept = target != IGNORE
    y, p = target[kept], guess[kept]
    np.testing.assert_allclose(scores.iou, jaccard_score(y, p, average=None, labels=range(5)), rtol=0, atol=1e-15)
    np.testing.assert_allclose(scores.f1, f1_score(y, p, average=None, labels=range(5)), rtol=0, atol=1e-15)
    assert scores.dice == scores.f1
    assert scores.miou == pytest.approx(jaccard_score(y, p, average="macro"), abs=1e-15)
    assert scores.mdice == pytest.approx(f1_score(y, p, average="macro"), abs=1e-15)
    assert scores.miou_foreground == pytest.approx(jaccard_score(y, p, average="macro", labels=range(1, 5)), abs=1e-15)
    assert scores.accuracy == pytest.approx(accuracy_score(y, p), abs=1e-15)
    assert scores.pixels == int(kept.sum())


def test_a_class_in_neither_is_left_out_and_named_but_one_only_predicted_counts_as_zero() -> None:
    target = torch.tensor([[0, 0, 1, 1]])
    metric = SegmentationMetric(["background", "road", "roof", "tree"])
    metric.update(torch.tensor([[0, 0, 1, 2]]), target)
    scores = metric.scores()
    assert scores.absent == ("tree",)
    assert math.isnan(scores.iou[3])
    assert scores.iou[2] == 0.0
    assert scores.miou == pytest.approx((1 + 0.5 + 0) / 3)
    assert json.loads(json.dumps(scores.as_dict(), allow_nan=False))["classes"]["tree"]["iou"] is None


def test_ignored_pixels_change_nothing_whatever_is_predicted_there() -> None:
    guess, target = _random(1)
    other = guess.copy()
    other[target == IGNORE] = 250  # not even a class
    assert torch.equal(_metric(guess, target).matrix, _metric(other, target).matrix)


def test_counting_in_parts_and_merging_equals_counting_at_once() -> None:
    guess, target = _random(2)
    whole = SegmentationMetric(CLASSES)
    whole.update(torch.from_numpy(guess), torch.from_numpy(target))
    first, second = _metric(guess[:1], target[:1]), _metric(guess[1:], target[1:])
    first.merge(second)
    assert torch.equal(first.matrix, whole.matrix)


def test_uint8_masks_do_not_wrap_around() -> None:
    names = [str(i) for i in range(40)]  # 39 * 40 + 39 does not fit into 8 bits
    guess, target = _random(3, classes=40)
    wide = _metric(guess, target, names)
    narrow = _metric(guess.astype(np.uint8), target.astype(np.uint8), names)
    assert torch.equal(wide.matrix, narrow.matrix)


def test_no_background_class_means_every_class_is_foreground() -> None:
    metric = SegmentationMetric(["a", "b"], background=None)
    metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    scores = metric.scores()
    assert scores.miou_foreground == scores.miou


@pytest.mark.parametrize("bad", [7, -1])
def test_ids_outside_the_classes_are_refused(bad: int) -> None:
    metric = SegmentationMetric(CLASSES)
    with pytest.raises(ValueError, match="class id"):
        metric.update(torch.tensor([0, 1]), torch.tensor([0, bad]))
    with pytest.raises(ValueError, match="class id"):
        metric.update(torch.tensor([0, bad]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="shape"):
        metric.update(torch.zeros(4, 4), torch.zeros(4, 5))
