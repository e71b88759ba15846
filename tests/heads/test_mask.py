"""Masks: torchvision's loss and choice of class; outlines rasterised as shapely sees them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_inference, maskrcnn_loss

from vitp.boxes.objects import Detections
from vitp.heads.detector_config import MaskRCNNConfig
from vitp.heads.mask import MaskConfig, MaskHead
from vitp.heads.outlines import filled
from vitp.heads.proposals import Sampled
from vitp.heads.truth import Truth

STRIDES = (4, 8, 16, 32)
CHANNELS, CLASSES = 4, 3


def _maps(images: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(images, CHANNELS, 128 // s, 128 // s, generator=g) for s in STRIDES]


def _head() -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(MaskConfig(convolutions=2, channels=8), CHANNELS, CLASSES, STRIDES)


def _ring(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float32)


def _sampled(boxes: Tensor, image: Tensor, labels: Tensor, taker: Tensor) -> Sampled:
    positive = labels < CLASSES
    none = torch.zeros(len(boxes))
    return Sampled(boxes, image, labels, none, none.bool(), taker, boxes[positive], positive)


def test_loss_is_that_of_torchvision() -> None:
    """Two objects, one that fills its box and one that lies beside it: there the two rules for borders agree."""
    head, maps = _head(), _maps()
    boxes = torch.tensor([[8.0, 8, 64, 64], [20, 30, 90, 110], [0, 0, 50, 50], [10, 40, 66, 96]])
    image, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 0, CLASSES, 1])
    all_of_it, nothing = (_ring(-10, -10, 200, 200),), (_ring(120, 0, 128, 8),)
    truth = [
        Truth(torch.zeros(2, 4), torch.tensor([2, 0]), torch.zeros(0, 4), (all_of_it, nothing)),
        Truth(torch.zeros(1, 4), torch.tensor([1]), torch.zeros(0, 4), (all_of_it,)),
    ]
    loss = head.losses(maps, _sampled(boxes, image, labels, torch.tensor([0, 1, 0])), truth)
    rows = [0, 1, 3]
    every = _every_class(head, maps, boxes[rows], image[rows])
    bitmaps = [torch.stack((torch.ones(128, 128), torch.zeros(128, 128))), torch.ones(1, 128, 128)]
    expected = [
        maskrcnn_loss(every[:2], [boxes[:2]], bitmaps[:1], [torch.tensor([2, 0])], [torch.tensor([0, 1])]),
        maskrcnn_loss(every[2:], [boxes[3:]], bitmaps[1:], [torch.tensor([1])], [torch.tensor([0])]),
    ]
    torch.testing.assert_close(loss, expected[0] + expected[1])


def test_objects_without_an_outline_teach_no_mask() -> None:
    head, maps = _head(), _maps()
    boxes = torch.tensor([[8.0, 8, 64, 64], [20, 30, 90, 110], [0, 0, 50, 50]])
    image, labels = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])
    ring = (_ring(20, 20, 50, 40),)
    truth = [
        Truth(torch.zeros(2, 4), torch.tensor([2, 0]), torch.zeros(0, 4), (ring, ())),
        Truth(torch.zeros(1, 4), torch.tensor([1]), torch.zeros(0, 4), ((),)),
    ]
    loss = head.losses(maps, _sampled(boxes, image, labels, torch.tensor([0, 1, 0])), truth)
    alone = head.losses(maps, _sampled(boxes[:1], image[:1], labels[:1], torch.tensor([0])), truth)
    torch.testing.assert_close(loss, alone)


def _every_class(head: MaskHead, maps: list[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
    """Logits [P, K, M, M]."""
    found = [head(maps, boxes, image, torch.full((len(boxes),), k)) for k in range(CLASSES)]
    return torch.stack(found, 1)


def test_masks_are_those_of_the_found_class() -> None:
    head, maps = _head(), _maps()
    boxes = torch.tensor([[8.0, 8, 64, 64], [20, 30, 90, 110], [5, 5, 70, 40]])
    labels = torch.tensor([2, 0, 1])
    found = [
        Detections(boxes[:2], torch.ones(2), labels[:2]),
        Detections(boxes[2:], torch.ones(1), labels[2:]),
        Detections(boxes[:0], torch.ones(0), labels[:0]),
    ]
    every = _every_class(head, maps, boxes, torch.tensor([0, 0, 1]))
    expected = maskrcnn_inference(every, [labels])[0][:, 0]
    masks = head.add([*maps], found)
    torch.testing.assert_close(torch.cat([d.masks for d in masks]), expected)
    assert [len(d.masks) for d in masks] == [2, 1, 0]
    assert masks[0].masks.shape[1:] == (28, 28)


def test_filled_outlines_are_shapelys() -> None:
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(0)
    outlines, boxes = [], []
    for i in range(12):
        turns = np.sort(rng.random(9)) * 2 * math.pi
        radius = rng.uniform(5, 30, 9)  # concave, star-shaped
        ring = np.stack((40 + radius * np.cos(turns), 50 + radius * np.sin(turns)), 1).astype(np.float32)
        outlines.append((ring, ring + np.float32([25, 3])) if i % 3 == 0 else (ring[:: 1 if i % 2 else -1],))
        boxes.append([*rng.uniform(0, 40, 2), *rng.uniform(55, 110, 2)])
    found = filled(outlines, torch.tensor(boxes).float(), 28)
    for mask, rings, (x1, y1, x2, y2) in zip(found, outlines, boxes, strict=True):
        shape = shapely.union_all([shapely.Polygon(ring) for ring in rings])
        x, y = (low + (np.arange(28) + 0.5) * (high - low) / 28 for low, high in ((x1, x2), (y1, y2)))
        expected = shapely.contains_xy(shape, *np.meshgrid(x, y))
        assert 0 < expected.mean() < 1
        assert (mask.numpy() != expected).sum() <= 1  # rounding of a centre on an edge


def test_outlines_that_show_nothing_in_the_box() -> None:
    boxes = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 20], [0, 0, 8, 8]])
    masks = filled([(), (_ring(30, 30, 40, 40),), (_ring(0, 0, 4, 8),)], boxes, 4)
    assert masks.sum((1, 2)).tolist() == [0, 0, 8]
    assert masks[2, :, :2].all()
    assert filled([], torch.zeros(0, 4), 28).shape == (0, 28, 28)


def test_images_without_positive_boxes_cost_nothing_but_keep_the_graph() -> None:
    head = _head()
    sampled = _sampled(
        torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.tensor([CLASSES]), torch.zeros(0).long()
    )
    loss = head.losses(_maps(1), sampled, [Truth(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0, 4), ())])
    loss.backward()
    assert float(loss.detach()) == 0
    assert head.predict.weight.grad is not None


def test_mask_rcnn_learns_and_finds_masks() -> None:
    torch.manual_seed(0)
    head = MaskRCNNConfig.model_validate({"kind": "mask_rcnn", "roi": {"width": 16}}).build(CHANNELS, 2, (*STRIDES, 64))
    maps = [*_maps(1), torch.randn(1, CHANNELS, 2, 2)]
    rings = ((_ring(10, 10, 60, 60),), (_ring(70, 20, 100, 110),))
    truth = Truth(
        torch.tensor([[10.0, 10, 60, 60], [70, 20, 100, 110]]), torch.tensor([0, 1]), torch.zeros(0, 4), rings
    )
    losses = head.losses(maps, [truth], [(128, 128)], [(0, 0, 0)])
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box", "mask"}
    assert float(losses["mask"].detach()) == pytest.approx(math.log(2), rel=0.3)
    (found,) = head.eval().detect(maps, [(128, 128)])
    assert found.masks is not None
    assert len(found.masks) == len(found)
