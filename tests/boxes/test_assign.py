import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.boxes.draw import plain, rotated
from torchvision.models.detection._utils import Matcher

from vitp.boxes.assign import IGNORED, NEGATIVE, MaxIoUAssigner, RandomSampler
from vitp.boxes.formats import from_xyxy
from vitp.boxes.iou import overlapping, plain_iou, plain_overlapping, rotated_iou
from vitp.config import load
from vitp.errors import ConfigError
from vitp.train.draws import Purpose, generator


def slow(iou, assigner):
    """The rules as they are told, one box at a time."""
    truths, boxes = iou.shape
    out = []
    for n in range(boxes):
        best = max(range(truths), key=lambda g: float(iou[g, n]), default=None)
        if best is None or iou[best, n] < assigner.negative:
            out.append(NEGATIVE)
        else:
            out.append(IGNORED)
        if best is not None and iou[best, n] >= assigner.positive:
            out[-1] = best
    if assigner.low_quality and boxes:
        for g in range(truths):
            most = float(iou[g].max())
            for n in range(boxes):
                if float(iou[g, n]) == most and most >= assigner.min_positive and most > 0:
                    out[n] = g
    return out


assigners = st.sampled_from(
    [
        MaxIoUAssigner(),
        MaxIoUAssigner(positive=0.5, negative=0.5, min_positive=0.5, low_quality=False),
        MaxIoUAssigner(positive=0.5, negative=0.5, min_positive=0.0),
        MaxIoUAssigner(positive=0.7, negative=0.0, min_positive=0.3),
    ]
)


@settings(max_examples=150)
@given(assigners, st.integers(0, 6), st.integers(0, 30), st.integers(0, 10**6))
def test_assigner_equals_the_rules(assigner, truths, boxes, seed):
    rng = np.random.default_rng(seed)
    iou = torch.from_numpy(rng.choice([0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.9], size=(truths, boxes)))  # many ties
    assert assigner.assign(iou).tolist() == slow(iou, assigner)


def test_assigner_equals_torchvisions_matcher():
    """Without ties the definitions agree (its low quality has no least overlap and never changes the true box)."""
    iou = torch.rand(12, 400, generator=torch.Generator().manual_seed(0))
    ours = MaxIoUAssigner(positive=0.97, negative=0.9, low_quality=False).assign(iou)
    assert ours.tolist() == Matcher(0.97, 0.9)(iou).tolist()  # -1 below, -2 between, there too


@settings(max_examples=60, deadline=None)
@given(assigners, st.integers(0, 12), st.integers(0, 60), st.integers(0, 10**6))
def test_pairs_alone_give_the_same(assigner, truths, boxes, seed):
    rng = np.random.default_rng(seed)
    corners = torch.from_numpy(rng.integers(0, 12, (truths + boxes, 2)) * 4).double()  # whole numbers: many ties
    plain_boxes = torch.cat((corners, corners + torch.from_numpy(rng.choice([4, 8, 16, 40], (len(corners), 2)))), 1)
    truth, anchors = plain_boxes[:truths], plain_boxes[truths:]
    expected = slow(plain_iou(truth, anchors), assigner)
    pairs = plain_overlapping(truth, anchors, assigner.lowest)
    assert assigner.assign_pairs(pairs, truths, anchors).tolist() == expected
    turned = from_xyxy(truth), from_xyxy(anchors)
    assert assigner.assign_pairs(overlapping(*turned), truths, anchors).tolist() == slow(rotated_iou(*turned), assigner)


def test_no_truth_and_no_boxes():
    assigner = MaxIoUAssigner()
    none, five = torch.zeros(0, 4), plain(5)
    assert assigner.assign_pairs(plain_overlapping(none, five), 0, five).tolist() == [NEGATIVE] * 5
    assert assigner.assign_pairs(overlapping(rotated(3), torch.zeros(0, 5)), 3, torch.zeros(0, 5)).tolist() == []


def test_thresholds_in_the_wrong_order_are_named():
    with pytest.raises(ConfigError, match=r"negative \(0.6\) must be at most positive \(0.5\)"):
        load(MaxIoUAssigner, None, ["positive=0.5", "negative=0.6"])


@given(st.integers(0, 40), st.integers(0, 300), st.integers(0, 20), st.integers(0, 10**6))
def test_sampler_takes_the_smallest_keys(positives, negatives, ignored, seed):
    sampler = RandomSampler(count=64, positive_share=0.25)
    assigned = np.array([3] * positives + [NEGATIVE] * negatives + [IGNORED] * ignored)
    np.random.default_rng(seed).shuffle(assigned)
    keys = generator(seed, Purpose.BOX_SAMPLE, 5, 2).random(len(assigned))
    by_key = sorted(range(len(assigned)), key=lambda n: keys[n])
    positive = [n for n in by_key if assigned[n] >= 0][:16]
    negative = [n for n in by_key if assigned[n] == NEGATIVE][: 64 - len(positive)]
    chosen = sampler.sample(torch.from_numpy(assigned), seed, 5, 2)
    assert chosen.positive.tolist() == sorted(positive)
    assert chosen.negative.tolist() == sorted(negative)


def test_sampler_is_a_function_of_seed_and_position():
    assigned = torch.tensor([0] * 100 + [NEGATIVE] * 1000)
    sampler = RandomSampler()
    first = sampler.sample(assigned, 1, 7, 0)
    assert [len(part) for part in first] == [100, 156]
    torch.manual_seed(5)
    np.random.seed(5)
    assert sampler.sample(assigned, 1, 7, 0).negative.tolist() == first.negative.tolist()
    for other in ((2, 7, 0), (1, 8, 0), (1, 7, 1)):
        assert sampler.sample(assigned, *other).negative.tolist() != first.negative.tolist()


def test_sampler_is_fair():
    """Each of 200 negatives is taken about as often: 10 of 200, 2000 times (four standard deviations)."""
    sampler = RandomSampler(count=10, positive_share=0.5)
    assigned = torch.full((200,), NEGATIVE)
    taken = torch.zeros(200)
    for step in range(2000):
        taken[sampler.sample(assigned, 0, step).negative] += 1
    assert float((taken - 100).abs().max()) < 4.2 * (2000 * 0.05 * 0.95) ** 0.5
