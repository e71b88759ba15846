"""Segmentation scores against scikit-learn and torchmetrics, and the cases where an average goes quietly wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score, precision_score, recall_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

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


def test_precision_recall_and_matrix_equal_scikit_learn() -> None:
    guess, target = _random(4)
    metric = _metric(guess, target)
    kept = target != IGNORE
    y, p = target[kept], guess[kept]
    scores = metric.scores()
    np.testing.assert_allclose(
        scores.precision, precision_score(y, p, average=None, labels=range(5)), rtol=0, atol=1e-15
    )
    np.testing.assert_allclose(scores.recall, recall_score(y, p, average=None, labels=range(5)), rtol=0, atol=1e-15)
    assert metric.matrix.tolist() == confusion_matrix(y, p, labels=range(5)).tolist()
    assert list(scores.labelled) == [int((y == c).sum()) for c in range(5)]


@given(
    st.integers(2, 6),
    st.sets(st.integers(0, 5)),
    st.sets(st.integers(0, 5)),
    st.floats(0, 0.9),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_equals_torchmetrics_whatever_is_absent_or_ignored(
    classes: int, unlabelled: set[int], unpredicted: set[int], ignored: float, seed: int
) -> None:
    """Classes without label, without prediction or with neither, pixels left out, images fed one by one."""
    rng = np.random.default_rng(seed)
    labelled = [c for c in range(classes) if c not in unlabelled] or [0]
    known = [c for c in range(classes) if c not in unpredicted] or [classes - 1]  # one alone: an empty prediction
    target = rng.choice(labelled, (3, 7, 9))
    guess = np.where(rng.random(target.shape) < 0.5, rng.choice(known, target.shape), target)
    guess = np.where(np.isin(guess, known), guess, known[0])
    target[rng.random(target.shape) < ignored] = IGNORE
    target[0, 0, 0] = labelled[0]  # torchmetrics has no score of nothing
    metric = _metric(guess, target, [str(c) for c in range(classes)])
    scores = metric.scores()
    pair = torch.from_numpy(guess), torch.from_numpy(target)
    matrix = multiclass_confusion_matrix(*pair, classes, ignore_index=IGNORE)
    assert torch.equal(metric.matrix, matrix)
    present = (matrix.sum(0) + matrix.sum(1)) > 0
    assert [name not in scores.absent for name in scores.classes] == present.tolist()
    for own, other in (
        (scores.iou, multiclass_jaccard_index(*pair, classes, average=None, ignore_index=IGNORE)),
        (scores.dice, multiclass_f1_score(*pair, classes, average=None, ignore_index=IGNORE)),
    ):
        expected = torch.where(present, other.double(), torch.nan)
        torch.testing.assert_close(torch.tensor(own, dtype=torch.float64), expected, rtol=0, atol=1e-6, equal_nan=True)
    assert scores.accuracy == pytest.approx(
        float(multiclass_accuracy(*pair, classes, average="micro", ignore_index=IGNORE)), abs=1e-6
    )
    assert scores.mdice == pytest.approx(
        float(multiclass_f1_score(*pair, classes, average="macro", ignore_index=IGNORE)), abs=1e-6
    )
    assert scores.miou == pytest.approx(
        float(multiclass_jaccard_index(*pair, classes, average="macro", ignore_index=IGNORE)), abs=1e-6
    )


def test_predicting_nothing_but_background_costs_the_other_classes_all_they_have() -> None:
    target = torch.tensor([[0, 0, 0, 1, 1, 2]])
    metric = SegmentationMetric(["background", "road", "roof"])
    metric.update(torch.zeros_like(target), target)
    scores = metric.scores()
    assert scores.miou_foreground == scores.mdice_foreground == 0
    assert scores.miou == pytest.approx(0.5 / 3)
    assert math.isnan(scores.precision[1])
    assert scores.recall == (1, 0, 0)
    assert scores.changed == 0


def test_nothing_labelled_is_no_score() -> None:
    metric = SegmentationMetric(["background", "changed"])
    metric.update(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), IGNORE))
    scores = metric.scores()
    assert math.isnan(scores.miou)
    assert scores.changed is None
    assert scores.absent == ("background", "changed")
    assert scores.as_dict()["miou"] is None


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
