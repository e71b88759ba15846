"""Oriented R-CNN against a slow version of itself, and what must not change its targets, losses and detections."""

import math
import time

import pytest
import torch
from pydantic import TypeAdapter
from tests.boxes.draw import rotated
from tests.heads import oriented_slow as slow

from vitp.boxes.assign import RandomSampler
from vitp.boxes.formats import regularise, to_quads
from vitp.boxes.iou import rotated_iou_pairs
from vitp.boxes.objects import Objects
from vitp.heads.anchors import AnchorConfig
from vitp.heads.detector_config import DetectorConfig
from vitp.heads.oriented import OrientedKeep, OrientedRCNNConfig, OrientedRoI, OrientedRPN
from vitp.heads.proposals import RoISampler
from vitp.heads.roi import RoIHead
from vitp.heads.rpn import RPN
from vitp.heads.truth import Truth, truth_of

STRIDES = (4, 8, 16, 32, 64)
SIZE = (128, 128)
CHANNELS, CLASSES = 6, 3


def maps_of(images, seed=0, size=SIZE, channels=CHANNELS):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(images, channels, -(-size[0] // s), -(-size[1] // s), generator=g) for s in STRIDES]


def truth_in(count, seed=0, side=128.0, least=12.0, most=60.0):
    boxes = regularise(rotated(count, seed, side=side, least=least, most=most))
    return Truth(boxes, torch.arange(count) % CLASSES, torch.zeros(0, 4))


def rpn_of(seed=0, **changes):
    """The first stage with weights large enough that every anchor says something of its own."""
    torch.manual_seed(seed)
    rpn = RPN(OrientedRPN(**({"channels": 8} | changes)), CHANNELS, STRIDES)
    for layer in (rpn.conv, rpn.objectness, rpn.offsets):
        torch.nn.init.normal_(layer.weight, std=0.15)
    return rpn


def head_of(seed=0, **changes):
    torch.manual_seed(seed)
    head = RoIHead(OrientedRoI(**({"width": 16} | changes)), CHANNELS, CLASSES, STRIDES[:4])
    for layer in (head.classify, head.regress):
        torch.nn.init.normal_(layer.weight, std=0.6)
    return head


def said(head, maps, boxes, image):
    """Logits [R, K + 1] and offsets [R, 5] of boxes that all lie on one image."""
    scored = head(maps, boxes, torch.full((len(boxes),), image))
    return scored.logits, scored.offsets[:, 0]


def learned(head, maps, proposals, truths, keys):
    losses, _ = head.learn(maps, proposals, truths, [SIZE] * len(truths), keys)
    return {f"roi_{name}": value for name, value in losses.items()}


def aims(head, proposals, truth):
    """Boxes [S, 5], labels [S] and, of the positive ones, offsets [P, 5] of one image's sample."""
    found = head.sample([proposals], [truth], [(0, 0, 0)])
    return found.boxes, found.labels, head.config.coder.encode(found.boxes[found.positive], found.target)


def near(boxes, copies, seed, spread=4.0):
    """Proposals around boxes: each moved, stretched and turned a little, `copies` times."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.tensor([spread, spread, spread / 2, spread / 2, 0.2])
    boxes = boxes.repeat(copies, 1) + torch.randn(len(boxes) * copies, 5, generator=g) * scale
    boxes[:, 2:4] = boxes[:, 2:4].abs() + 2
    return regularise(boxes)


# ----------------------------------------------------------------------------------------------------- the first stage


def slow_rpn_assignment(rpn, anchors, truth, size):
    """What each anchor inside the image is, by its number."""
    inside = [n for n, (x1, y1, x2, y2) in enumerate(anchors) if x1 >= 0 and y1 >= 0 and x2 < size[1] and y2 < size[0]]
    boxes = [slow.around(box) for box in truth]
    return inside, slow.assign(boxes, [anchors[n] for n in inside], 0.7, 0.3, 0.3, True)


@pytest.mark.parametrize("size", [(128, 128), (100, 120)])
def test_rpn_targets_and_loss_equal_the_slow_version(size):
    rpn, maps = rpn_of(sampler=RandomSampler(count=48)), maps_of(2)
    truths = [truth_in(5, 1, side=100.0), truth_in(7, 2, side=100.0)]
    truths[0].boxes[0] = torch.tensor([40.0, 60.0, 46.0, 22.0, -math.pi / 2])  # upright
    keys = [(3, 5, 0), (3, 5, 1)]
    losses = rpn.losses(maps, truths, [size, size], keys)
    anchors = torch.cat(rpn.anchors(maps)).tolist()
    logits, offsets = (torch.cat(parts, 1) for parts in rpn(maps))
    entropy = box = 0.0
    for image, (truth, key) in enumerate(zip(truths, keys, strict=True)):
        inside, assigned = slow_rpn_assignment(rpn, anchors, truth.boxes.tolist(), size)
        chosen = rpn.config.sampler.sample(torch.tensor(assigned), *key, 0)
        positive, negative = chosen.positive.tolist(), chosen.negative.tolist()
        assert len(positive) >= 5
        assert len(positive) + len(negative) == 48
        for n in positive + negative:
            hit = n in positive
            entropy += slow.binary_cross_entropy(logits[image, inside[n]].item(), hit) / 48
            if hit:
                target = slow.midpoint_encode(anchors[inside[n]], truth.boxes[assigned[n]].tolist())
                box += slow.smooth_l1(offsets[image, inside[n]].tolist(), target, 1 / 9) / 48
    assert losses["rpn_class"].item() == pytest.approx(entropy, rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(box, rel=1e-4)


def test_proposals_equal_the_slow_version():
    rpn = rpn_of(test_per_level=40, test_proposals=70).eval()
    maps = maps_of(1, 3)
    (found,) = rpn.propose(maps, [SIZE])
    logits, offsets = rpn(maps)
    scored = []
    for level, (scores, shifts, anchors) in enumerate(zip(logits, offsets, rpn.anchors(maps), strict=True)):
        best = sorted(range(len(anchors)), key=lambda n: -scores[0, n].item())[:40]
        boxes = [slow.midpoint_decode(anchors[n].tolist(), shifts[0, n].tolist()) for n in best]
        points = [scores[0, n].item() for n in best]
        kept = slow.suppress([slow.around(box) for box in boxes], points, 0.8)
        scored += [(points[n], level, boxes[n]) for n in kept]
        assert level > 1 or len(kept) < 40  # something was suppressed
    expected = torch.tensor([box for _, _, box in sorted(scored, key=lambda x: -x[0])[:70]])
    assert found.shape == expected.shape
    apart = torch.cdist(to_quads(found), to_quads(expected)).amin(-1).amax()  # squares have two names
    assert float(apart) < 2e-3


# ---------------------------------------------------------------------------------------------------- the second stage


def test_roi_targets_and_loss_equal_the_slow_version():
    head, maps = head_of(sampler=RoISampler(count=64, positive_share=0.25)), maps_of(2)
    truths = [truth_in(5, 1), truth_in(8, 2)]
    proposals = [torch.cat((near(t.boxes, 9, 4), rotated(60, 5, side=128.0))) for t in truths]
    keys = [(3, 5, 0), (3, 5, 1)]
    losses = learned(head, maps, proposals, truths, keys)
    entropy = box = 0.0
    for image, (truth, some, key) in enumerate(zip(truths, proposals, keys, strict=True)):
        boxes = torch.cat((some, truth.boxes))
        assigned = slow.assign(truth.boxes.tolist(), boxes.tolist(), 0.5, 0.5, 0.5, False)
        positive, negative = (c.tolist() for c in head.config.sampler.sample(torch.tensor(assigned), *key, 1))
        assert len(positive) == 16
        assert len(negative) == 48
        logits, offsets = said(head, maps, boxes, image)
        for n in positive + negative:
            label = int(truth.labels[assigned[n]]) if n in positive else CLASSES
            entropy -= math.log(slow.softmax(logits[n].tolist())[label]) / 64
        for n in positive:
            target = slow.delta_encode(boxes[n].tolist(), truth.boxes[assigned[n]].tolist())
            box += slow.smooth_l1(offsets[n].tolist(), target, 1.0) / 64
    assert float(losses["roi_class"]) == pytest.approx(entropy, rel=1e-5)
    assert float(losses["roi_box"]) == pytest.approx(box, rel=1e-4)


def test_detections_equal_the_slow_version():
    head, maps = head_of(keep=OrientedKeep(score=0.2, limit=25)).eval(), maps_of(2)
    proposals = [rotated(70, 8, side=128.0), rotated(30, 9, side=128.0)]
    sizes = [SIZE, (90, 110)]
    found = head.detect(maps, proposals, sizes)
    for image, (boxes, size) in enumerate(zip(proposals, sizes, strict=True)):
        logits, offsets = said(head, maps, boxes, image)
        decoded, scores, labels = [], [], []
        for n in range(len(boxes)):
            chances = slow.softmax(logits[n].tolist())[:CLASSES]
            box = slow.delta_decode(boxes[n].tolist(), offsets[n].tolist(), size)
            for label in range(CLASSES):
                if chances[label] > 0.2:
                    decoded.append(box)
                    scores.append(chances[label])
                    labels.append(label)
        kept = slow.suppress(decoded, scores, 0.1, labels)[:25]
        assert len(kept) < len(decoded)
        assert found[image].labels.tolist() == [labels[n] for n in kept]
        assert torch.allclose(found[image].scores, torch.tensor([scores[n] for n in kept]), atol=1e-5)
        expected = torch.tensor([decoded[n] for n in kept])
        assert float(torch.cdist(to_quads(found[image].boxes), to_quads(expected)).amin(-1).amax()) < 1e-3


# ---------------------------------------------------------------------------------------------------------- invariants


def quarter(boxes, side):
    """Rotated boxes in a picture of `side` pixels that is turned clockwise by 90 degrees."""
    cx, cy, w, h, angle = boxes.unbind(1)
    return regularise(torch.stack((side - cy, cx, w, h, angle + math.pi / 2), 1))


def test_a_turned_picture_has_turned_rpn_targets():
    """Anchors in the middle of their cells map onto one another; of the offsets, x goes to y and y to -x."""
    rpn = rpn_of(anchors=AnchorConfig(offset=0.5), sampler=RandomSampler(count=10**6, positive_share=1.0))
    maps, truth = maps_of(1), truth_in(9, 4)
    turned = Truth(quarter(truth.boxes, 128.0), truth.labels, truth.ignored)
    anchors = torch.cat(rpn.anchors(maps))
    targets = {}
    for name, aim in (("before", truth), ("after", turned)):
        positive, _, taker = rpn.sample(anchors, aim, (129, 129), (0, 0, 0))  # anchors that touch the border count
        offsets = rpn.config.coder.encode(anchors[positive], aim.boxes[taker])
        targets[name] = {
            (tuple(a), g): o
            for a, g, o in zip(anchors[positive].tolist(), taker.tolist(), offsets.tolist(), strict=True)
        }
    assert len(targets["before"]) > 20
    assert len(targets["before"]) == len(targets["after"])
    for (anchor, g), (dx, dy, dw, dh, da, db) in targets["before"].items():
        x1, y1, x2, y2 = anchor
        after = {k: v for k, v in targets["after"].items() if k[1] == g}
        key = min(after, key=lambda k: math.dist(k[0], (128 - y2, x1, 128 - y1, x2)))
        assert math.dist(key[0], (128 - y2, x1, 128 - y1, x2)) < 1e-3
        assert after[key] == pytest.approx((-dy, dx, dh, dw, db, da), abs=2e-4)


def test_a_turned_picture_has_turned_roi_targets_and_the_same_scores():
    head = head_of(sampler=RoISampler(count=10**6, positive_share=1.0))
    maps, truth = maps_of(1, size=(128, 128)), truth_in(6, 4)
    proposals = torch.cat((near(truth.boxes, 5, 1), regularise(rotated(50, 5, side=128.0))))
    turned = Truth(quarter(truth.boxes, 128.0), truth.labels, truth.ignored)
    boxes, labels, offsets = aims(head, proposals, truth)
    turned_boxes, turned_labels, turned_offsets = aims(head, quarter(proposals, 128.0), turned)
    assert labels.tolist() == turned_labels.tolist()
    assert 10 < len(offsets) < len(labels)
    there = head.config.coder.decode(turned_boxes[: len(offsets)], turned_offsets)
    back = head.config.coder.decode(boxes[: len(offsets)], offsets)
    assert float(torch.cdist(to_quads(there), to_quads(quarter(back, 128.0))).amin(-1).amax()) < 1e-3
    # Boxes that lean to the left keep their way along w when turned, and so see the same features in the same order.
    same = boxes[boxes[:, 4] < 0]
    whole = said(head, maps, same, 0)
    again = said(head, [torch.rot90(m, -1, (2, 3)) for m in maps], quarter(same, 128.0), 0)
    for a, b in zip(whole, again, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_micro_batches_add_up():
    rpn, head = rpn_of(), head_of()
    maps, truths = [m.requires_grad_() for m in maps_of(3)], [truth_in(n, n) for n in (4, 0, 7)]
    sizes, keys = [SIZE, (100, 128), SIZE], [(1, 2, slot) for slot in range(3)]

    def losses(chosen):
        part = [m[chosen] for m in maps]
        chosen_truths, bounds, places = ([x[i] for i in chosen] for x in (truths, sizes, keys))
        proposals = rpn.eval().propose([m.detach() for m in part], bounds)
        rpn.train()
        return rpn.losses(part, chosen_truths, bounds, places) | learned(head, part, proposals, chosen_truths, places)

    whole = losses([0, 1, 2])
    parts = [losses([0]), losses([1, 2])]
    for name, value in whole.items():
        assert float(value) == pytest.approx(sum(float(part[name]) for part in parts), rel=1e-4)
    whole_grad = torch.autograd.grad(sum(whole.values()), maps)
    part_grad = torch.autograd.grad(sum(value for part in parts for value in part.values()), maps)
    for a, b in zip(whole_grad, part_grad, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_images_without_objects_teach_background_alone():
    rpn, head, maps = rpn_of(), head_of(), maps_of(2)
    truths, keys = [truth_in(0), truth_in(0)], [(0, 0, 0), (0, 0, 1)]
    found = rpn.losses(maps, truths, [SIZE, SIZE], keys)
    found |= learned(head, maps, [rotated(30, 1, side=128.0), rotated(0)], truths, keys)  # the second has no proposals
    assert float(found["rpn_box"]) == float(found["roi_box"]) == 0.0
    assert float(found["rpn_class"]) > 0
    assert float(found["roi_class"]) > 0
    sum(found.values()).backward()
    for module in (rpn, head):
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
    assert [len(d) for d in head.eval().detect(maps, [rotated(0), rotated(0)], [SIZE, SIZE])] == [0, 0]


@pytest.mark.parametrize("size", [(1.0, 2.0), (20.0, 24.0)])
def test_five_thousand_objects_in_one_image(size):
    """The matrix of 5,000 objects and 260,000 anchors would take 5 GB; seconds here, on one thread."""
    side = 1024
    rpn, head = rpn_of(), head_of()
    maps, truth = maps_of(1, size=(side, side)), truth_in(5000, 3, side=float(side), least=size[0], most=size[1])
    proposals = torch.cat((near(truth.boxes[:1000], 1, 2), rotated(1000, 4, side=float(side))))
    anchors = torch.cat(rpn.anchors(maps))
    start = time.process_time()
    positive, negative, taker = rpn.sample(anchors, truth, (side, side), (0, 0, 0))
    _, labels, offsets = aims(head, proposals, truth)
    assert time.process_time() - start < 20
    assert len(positive) + len(negative) == 256
    assert len(labels) == 512
    if size[0] > 10:
        assert len(positive) == 128
        assert len(offsets) == 128
    assert bool(rpn.config.coder.encode(anchors[positive], truth.boxes[taker]).isfinite().all())
    assert bool(offsets.isfinite().all())


def test_quads_of_a_pixel_or_less_never_break_a_step():
    quads = torch.tensor(
        [
            [[10, 10], [11, 10], [11, 11], [10, 11]],
            [[30, 30], [30.5, 30], [30.5, 90], [30, 90]],
            [[50, 50], [50, 50], [50, 50], [50, 50]],
            [[60, 60], [90, 90], [90, 90], [60, 60]],
            [[0, 0], [128, 0], [128, 1], [0, 1]],
        ],
        dtype=torch.float32,
    )
    around = torch.cat((quads.amin(1), quads.amax(1)), 1)
    no = torch.zeros(len(quads), dtype=torch.bool)
    truth = truth_of(Objects(around, torch.zeros(len(quads), dtype=torch.long), no, no, quads), rotated=True)
    assert len(truth) == 3  # neither the point nor the line
    rpn, head, maps = rpn_of(), head_of(), maps_of(1)
    losses = rpn.losses(maps, [truth], [SIZE], [(0, 0, 0)])
    losses |= learned(head, maps, [rotated(40, 1, side=128.0)], [truth], [(0, 0, 0)])
    assert all(math.isfinite(float(value)) for value in losses.values())
    _, _, offsets = aims(head, rotated(40, 1, side=128.0), truth)
    assert len(offsets) == 3  # each at least by itself, which is a proposal
    assert float(offsets.abs().max()) < 1e-3


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_reach_the_boxes(kind):
    """In a picture of thousands of pixels, bfloat16 would round a centre to 8 or 16 of them."""
    rpn, head = rpn_of().eval(), head_of().eval()
    for layer in (rpn.offsets, head.regress):
        torch.nn.init.zeros_(layer.weight)
    far, coarse = 4000.0, (64, 128, 256)
    boxes = regularise(rotated(20, 1, side=100.0)) + torch.tensor([far + 1.3, far + 0.7, 0, 0, 0])
    maps = [torch.randn(1, CHANNELS, 4096 // s, 4096 // s, generator=torch.Generator().manual_seed(s)) for s in coarse]
    rpn.strides = head.strides = coarse
    truth = Truth(boxes, torch.zeros(20, dtype=torch.long), torch.zeros(0, 4))
    with torch.autocast("cpu", kind):
        (found,) = head.detect(maps, [boxes], [(4200, 4200)])
        _, _, offsets = aims(head, near(boxes, 3, 2), truth)
    assert found.boxes.dtype == found.scores.dtype == offsets.dtype == torch.float32
    assert len(found) > 5
    for box in found.boxes:
        assert float(rotated_iou_pairs(box.expand(20, 5), boxes).max()) > 0.9999
    with torch.autocast("cpu", kind):
        (proposals,) = rpn.propose(maps, [(4096, 4096)])
    anchors = torch.cat(rpn.anchors(maps))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert float(torch.cdist(proposals[:, :2], centres).amin(1).max()) < 1e-2  # offsets are zero: centres stay


def test_the_released_settings_are_the_defaults():
    config = TypeAdapter(DetectorConfig).validate_python({"kind": "oriented_rcnn"})
    assert isinstance(config, OrientedRCNNConfig)
    rpn, roi = config.rpn, config.roi
    assert rpn.anchors.scales == (8.0,)
    assert rpn.anchors.ratios == (0.5, 1.0, 2.0)
    assert (rpn.channels, rpn.border, rpn.nms, rpn.beta) == (256, 0.0, 0.8, 1 / 9)
    assert (rpn.per_level, rpn.train_proposals, rpn.test_proposals) == (2000, 2000, 2000)
    assert rpn.test_per_level == 2000
    assert (rpn.assigner.positive, rpn.assigner.negative, rpn.assigner.min_positive) == (0.7, 0.3, 0.3)
    assert rpn.assigner.low_quality
    assert (rpn.sampler.count, rpn.sampler.positive_share) == (256, 0.5)
    assert (roi.pool.size, roi.pool.sampling, roi.pool.finest, roi.width) == (7, 2, 56.0, 1024)
    assert (roi.assigner.positive, roi.assigner.negative, roi.assigner.low_quality) == (0.5, 0.5, False)
    assert (roi.sampler.count, roi.sampler.positive_share, roi.class_agnostic, roi.beta) == (512, 0.25, True, 1.0)
    assert (roi.keep.score, roi.keep.nms, roi.keep.limit) == (0.05, 0.1, 2000)
    assert TypeAdapter(DetectorConfig).validate_python(config.model_dump()) == config
    head = config.build(16, 3, STRIDES)
    assert head.rotated
    assert head.roi.strides == (4, 8, 16, 32)
    assert head.roi.regress.out_features == 5
    assert head.rpn.offsets.out_channels == 18
