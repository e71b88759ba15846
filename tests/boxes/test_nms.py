import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.boxes.draw import plain, rotated

from vitp.boxes import nms as suppression
from vitp.boxes.iou import plain_iou, rotated_iou
from vitp.boxes.nms import nms, rotated_nms


def greedy(iou, scores, threshold, labels=None):
    """The definition, box by box."""
    kept = []
    for k in sorted(range(len(scores)), key=lambda k: -scores[k]):
        same = [j for j in kept if labels is None or labels[j] == labels[k]]
        if all(iou[j, k] <= threshold for j in same):
            kept.append(k)
    return kept


def crowd(count, copies, seed):
    """Boxes in clusters, as detectors give them."""
    boxes = rotated(count, seed, side=400.0, dtype=torch.float64).repeat(copies, 1)
    g = torch.Generator().manual_seed(seed)
    boxes[:, :2] += torch.randn(len(boxes), 2, generator=g) * 4
    boxes[:, 4] += torch.randn(len(boxes), generator=g) * 0.1
    scores = (torch.rand(len(boxes), generator=g) * 50).round() / 50  # many ties
    return boxes, scores, torch.randint(-1, 3, (len(boxes),), generator=g)


@pytest.mark.parametrize("block", [7, 64, 2048])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.0])
def test_rotated_nms_keeps_what_the_greedy_rule_keeps(monkeypatch, block, threshold):
    monkeypatch.setattr(suppression, "_BLOCK", block)
    boxes, scores, labels = crowd(60, 5, seed=block)
    iou = rotated_iou(boxes, boxes)
    assert rotated_nms(boxes, scores, threshold).tolist() == greedy(iou, scores.tolist(), threshold)
    expected = greedy(iou, scores.tolist(), threshold, labels.tolist())
    assert rotated_nms(boxes, scores, threshold, labels).tolist() == expected
    assert rotated_nms(boxes, scores, threshold, labels, limit=9).tolist() == expected[:9]


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 10**6), st.floats(0, 0.99))
def test_suppressing_again_changes_nothing(count, seed, threshold):
    boxes, scores, labels = crowd(count, 3, seed)
    kept = rotated_nms(boxes, scores, threshold, labels)
    assert kept.tolist() == sorted(kept.tolist(), key=lambda k: (-scores[k], k))
    again = rotated_nms(boxes[kept], scores[kept], threshold, labels[kept])
    assert again.tolist() == list(range(len(kept)))


def test_duplicates_leave_the_first():
    boxes = rotated(30, 1)
    order = rotated_nms(boxes.repeat(4, 1), torch.ones(120), 0.99)
    assert set(order.tolist()) <= set(range(30))
    assert len(rotated_nms(boxes[:1].expand(5000, 5), torch.rand(5000), 0.5)) == 1


def test_odd_input():
    boxes = torch.tensor(
        [[5.0, 5.0, 4.0, 4.0, 0.0], [math.nan, 5.0, 4.0, 4.0, 0.0], [5.0, 5.0, 4.0, 4.0, 0.1], [0, 0, 0, 0, 0]]
    )
    scores = torch.tensor([math.nan, 0.5, 0.4, 0.3])
    assert rotated_nms(boxes, scores, 0.5).tolist() == [1, 2, 3]  # the NaN score comes last and is suppressed
    assert rotated_nms(boxes[:0], scores[:0], 0.5).tolist() == []
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5, torch.zeros(0, dtype=torch.long)).tolist() == []


def test_plain_nms_by_class_with_negative_coordinates():
    boxes = plain(300, 2, side=200.0) - 150
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(300, generator=g)
    labels = torch.from_numpy(np.random.default_rng(0).choice([1, 5, 90], 300))
    iou = plain_iou(boxes.double(), boxes.double())
    assert nms(boxes, scores, 0.3).tolist() == greedy(iou, scores.tolist(), 0.3)
    assert nms(boxes, scores, 0.3, labels).tolist() == greedy(iou, scores.tolist(), 0.3, labels.tolist())
    assert nms(boxes, scores, 0.3, labels, limit=5).tolist() == nms(boxes, scores, 0.3, labels).tolist()[:5]
    positive = boxes + 150
    theirs = torchvision.ops.batched_nms(positive, scores, labels, 0.3)
    assert nms(positive, scores, 0.3, labels).tolist() == theirs.tolist()
