"""The second stage: torchvision's losses, targets and choice of detections; RoIAlign's levels; hostile input."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from vitp.boxes.coders import RotatedDeltaCoder
from vitp.boxes.formats import from_xyxy
from vitp.heads.detector_config import FasterRCNNConfig, FasterRoI, MaskRCNNConfig
from vitp.heads.pool import PoolConfig, pool
from vitp.heads.proposals import RoISampler
from vitp.heads.roi import KeepConfig, RoIConfig, RoIHead, Scored, kept
from vitp.heads.truth import Truth

STRIDES = (4, 8, 16, 32)
CHANNELS, CLASSES = 4, 3
SIZES = [(128, 192), (112, 160)]
KEYS = [(7, 0, 0), (7, 0, 1)]


def _maps(images: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(images, CHANNELS, 128 // s, 192 // s, generator=g) for s in STRIDES]


def _truth(boxes: list[list[float]], labels: list[int]) -> Truth:
    return Truth(torch.tensor(boxes).view(-1, 4), torch.tensor(labels, dtype=torch.int64), torch.zeros(0, 4))


TRUTH = [
    _truth([[10, 20, 45, 60], [100, 10, 170, 50], [70, 70, 90, 118]], [0, 2, 1]),
    _truth([[5, 5, 25, 22], [60, 30, 130, 100]], [1, 1]),
]


def _proposals(count: int = 150) -> list[Tensor]:
    """Some near the objects, some anywhere."""
    g = torch.Generator().manual_seed(5)
    found = []
    for truth, (h, w) in zip(TRUTH, SIZES, strict=True):
        near = truth.boxes.repeat(count // 10, 1)
        near = near + torch.randn(near.shape, generator=g) * 4
        corner = torch.rand(count, 2, generator=g) * torch.tensor([w - 12.0, h - 12.0])
        far = torch.cat((corner, corner + 4 + torch.rand(count, 2, generator=g) * 60), 1)
        boxes = torch.cat((near, far)).clamp_min(0)
        found.append(boxes.minimum(torch.tensor([w, h, w, h]).float()))
    return found


def _head(config: RoIConfig, classes: int = CLASSES) -> RoIHead:
    torch.manual_seed(0)
    return RoIHead(config, CHANNELS, classes, STRIDES)


def _small(**changes: object) -> FasterRoI:
    return FasterRoI.model_validate({"width": 16, "beta": 1 / 9, "sampler": {"count": 64}, **changes})


def _torchvision(config: RoIConfig) -> RoIHeads:
    weights = tuple(1 / s for s in config.coder.stds)
    keep = config.keep
    return RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, weights, keep.score, keep.nms, keep.limit)


def test_targets_and_losses_are_those_of_torchvision() -> None:
    head = _head(_small())
    sampled = head.sample(_proposals(), TRUTH, KEYS)
    assert len(sampled.boxes) == 128
    assert int(sampled.positive.sum()) == 32  # a quarter of each image's 64
    g = torch.Generator().manual_seed(1)
    logits, offsets = torch.randn(128, CLASSES + 1, generator=g), torch.randn(128, CLASSES, 4, generator=g)
    losses = head.losses(Scored(logits, offsets), sampled)

    theirs = _torchvision(head.config)
    boxes = list(sampled.boxes.split(64))
    taker, labels = theirs.assign_targets_to_proposals(
        boxes, [t.boxes for t in TRUTH], [t.labels + 1 for t in TRUTH]
    )  # theirs: background is class 0
    assert torch.equal((torch.cat(labels) - 1) % (CLASSES + 1), sampled.labels)
    matched = [t.boxes[i] for t, i in zip(TRUTH, taker, strict=True)]
    targets = theirs.box_coder.encode(matched, boxes)
    background_first = torch.cat((logits[:, -1:], logits[:, :-1]), 1)
    regression = torch.cat((torch.zeros(128, 1, 4), offsets), 1).flatten(1)
    expected = fastrcnn_loss(background_first, regression, labels, targets)
    torch.testing.assert_close(losses["class"] / 2, expected[0])
    torch.testing.assert_close(losses["box"] / 2, expected[1])


def test_class_agnostic_losses_by_a_slow_loop() -> None:
    head = _head(RoIConfig(width=16, sampler=RoISampler(count=48)))
    sampled = head.sample(_proposals(), TRUTH, KEYS)
    g = torch.Generator().manual_seed(1)
    scored = Scored(torch.randn(96, CLASSES + 1, generator=g), torch.randn(96, 1, 4, generator=g))
    losses = head.losses(scored, sampled)
    classes = boxes = 0.0
    for i in range(96):
        (near, best) = torchvision.ops.box_iou(sampled.boxes[i : i + 1], TRUTH[sampled.image[i]].boxes)[0].max(0)
        label = int(TRUTH[sampled.image[i]].labels[best]) if near >= 0.5 else CLASSES
        classes -= float(scored.logits[i].log_softmax(0)[label]) / 48
        if label == CLASSES:
            continue
        x1, y1, x2, y2 = sampled.boxes[i].tolist()
        a1, b1, a2, b2 = TRUTH[sampled.image[i]].boxes[best].tolist()
        w, h = x2 - x1, y2 - y1
        wanted = torch.tensor(
            [
                ((a1 + a2) / 2 - (x1 + x2) / 2) / w / 0.1,
                ((b1 + b2) / 2 - (y1 + y2) / 2) / h / 0.1,
                torch.tensor((a2 - a1) / w).log().item() / 0.2,
                torch.tensor((b2 - b1) / h).log().item() / 0.2,
            ]
        )
        d = (scored.offsets[i, 0] - wanted).abs()
        boxes += float(torch.where(d < 1, d * d / 2, d - 0.5).sum()) / 48
    assert float(losses["class"]) == pytest.approx(classes, rel=1e-5)
    assert float(losses["box"]) == pytest.approx(boxes, rel=1e-4)


def test_detections_are_those_of_torchvision() -> None:
    config = _small(keep={"score": 0.2, "nms": 0.4, "limit": 20})
    head, proposals = _head(config), _proposals()
    count = sum(len(p) for p in proposals)
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(count, CLASSES + 1, generator=g)
    offsets = torch.randn(count, CLASSES, 4, generator=g)
    found = head.read(logits, offsets, proposals, SIZES)
    first = torch.cat((logits[:, -1:], logits[:, :-1]), 1)
    regression = torch.cat((torch.zeros(count, 1, 4), offsets), 1).flatten(1)
    boxes, scores, labels = _torchvision(config).postprocess_detections(first, regression, proposals, SIZES)
    for mine, b, s, k in zip(found, boxes, scores, labels, strict=True):
        assert len(mine) == 20
        torch.testing.assert_close(mine.scores, s)
        torch.testing.assert_close(mine.boxes, b, rtol=1e-4, atol=1e-3)
        assert torch.equal(mine.labels, k - 1)


@pytest.mark.parametrize("sampling", [0, 2])
def test_pooling_is_torchvisions_on_the_level_of_the_boxs_size(sampling: int) -> None:
    maps = _maps()
    boxes = torch.tensor([[3.0, 5, 40, 90], [10, 10, 150, 120], [0, 0, 190, 127], [60, 20, 72, 31]])
    image = torch.tensor([0, 1, 0, 1])
    cells = pool(maps, boxes, image, STRIDES, PoolConfig(sampling=sampling))
    for i, level in enumerate((0, 1, 1, 0)):  # sides near 56, 124, 155 and 12: below 112 the finest
        roi = torch.cat((image[i : i + 1].float(), boxes[i]))[None]
        expected = torchvision.ops.roi_align(maps[level], roi, 7, 1 / STRIDES[level], sampling or -1, aligned=True)
        torch.testing.assert_close(cells[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_a_batch_is_the_sum_of_its_images() -> None:
    head, maps, proposals = _head(_small()), _maps(), _proposals()
    both, _ = head.learn(maps, proposals, TRUTH, SIZES, KEYS)
    parts = [
        head.learn(
            [m[i : i + 1] for m in maps], proposals[i : i + 1], TRUTH[i : i + 1], SIZES[i : i + 1], KEYS[i : i + 1]
        )
        for i in (0, 1)
    ]
    for name, value in both.items():
        torch.testing.assert_close(value, parts[0][0][name] + parts[1][0][name])


def test_images_without_objects_or_proposals() -> None:
    head, maps = _head(_small()), _maps()
    nothing = _truth([], [])
    losses, sampled = head.learn(maps, [_proposals()[0], torch.zeros(0, 4)], [nothing, nothing], SIZES, KEYS)
    assert (sampled.labels == CLASSES).all()
    assert float(losses["box"].detach()) == 0
    sum(losses.values()).backward()
    assert torch.isfinite(head.first.weight.grad).all()
    losses, _ = head.learn(maps, [torch.zeros(0, 4)] * 2, [nothing, nothing], SIZES, KEYS)
    assert float(sum(losses.values()).detach()) == 0
    found = head.eval().detect(maps, [torch.zeros(0, 4), _proposals()[1]], SIZES)
    assert len(found[0]) == 0


def test_scores_that_are_no_numbers_give_no_detections() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [float("nan"), 0, 4, 4], [5, 5, 5, 9]])
    found = kept(boxes, torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 0, 1]), KeepConfig())
    assert found.boxes.tolist() == [[0, 0, 4, 4]]


def test_rotated_proposals_go_through_the_same_head() -> None:
    config = RoIConfig(coder=RotatedDeltaCoder(), width=16, sampler=RoISampler(count=64))
    upright = RoIConfig(width=16, sampler=RoISampler(count=64))
    truth = [Truth(from_xyxy(t.boxes), t.labels, t.ignored) for t in TRUTH]
    proposals = _proposals()
    turned = _head(config).sample([from_xyxy(p) for p in proposals], truth, KEYS)
    plain = _head(upright).sample(proposals, TRUTH, KEYS)
    assert torch.equal(turned.labels, plain.labels)
    torch.testing.assert_close(turned.boxes, from_xyxy(plain.boxes))
    head, maps = _head(config), _maps()
    losses, _ = head.learn(maps, [from_xyxy(p) for p in proposals], truth, SIZES, KEYS)
    assert torch.isfinite(sum(losses.values()))
    assert all(d.rotated for d in head.detect(maps, [from_xyxy(p) for p in proposals], SIZES))


def test_released_settings() -> None:
    faster, mask = FasterRCNNConfig(kind="faster_rcnn"), MaskRCNNConfig(kind="mask_rcnn")
    assert not faster.roi.assigner.low_quality
    assert mask.roi.assigner.low_quality
    changed = MaskRCNNConfig.model_validate({"kind": "mask_rcnn", "roi": {"assigner": {"positive": 0.6}}})
    assert changed.roi.assigner.low_quality, "a recipe that changes one value keeps the others"
    assert changed.roi.assigner.negative == 0.5
    assert mask.rpn.border < 0
    assert mask.rpn.beta == 0
