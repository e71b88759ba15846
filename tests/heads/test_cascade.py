"""The cascade: what each stage is given and asks for, and how the stages are put together for a test image."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from vitp.heads.cascade import CascadeConfig, CascadeHead, StageConfig
from vitp.heads.detector_config import CascadeRCNNConfig
from vitp.heads.proposals import RoISampler
from vitp.heads.roi import KeepConfig, RoIHead
from vitp.heads.truth import Truth

STRIDES = (4, 8, 16, 32)
CHANNELS, CLASSES = 4, 2
SIZES = [(96, 128), (80, 96)]
KEYS = [(7, 3, 0), (7, 3, 1)]
CONFIG = CascadeConfig(width=16, sampler=RoISampler(count=40), keep=KeepConfig(score=0.01, limit=50))


def _maps() -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(2, CHANNELS, 96 // s, 128 // s, generator=g) for s in STRIDES]


def _truth() -> list[Truth]:
    boxes = [torch.tensor([[10.0, 20, 45, 60], [70, 10, 120, 50]]), torch.tensor([[5.0, 5, 55, 62]])]
    return [Truth(b, torch.arange(len(b)) % CLASSES, torch.zeros(0, 4)) for b in boxes]


def _proposals() -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    found = []
    for truth, (h, w) in zip(_truth(), SIZES, strict=True):
        near = truth.boxes.repeat(10, 1)
        boxes = torch.cat((near + torch.randn(near.shape, generator=g) * 4, torch.rand(60, 4, generator=g) * 40))
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 3)
        found.append(boxes.clamp_min(0).minimum(torch.tensor([w, h, w, h]).float()))
    return found


def _head(config: CascadeConfig = CONFIG) -> CascadeHead:
    torch.manual_seed(0)
    head = CascadeHead(config, CHANNELS, CLASSES, STRIDES)
    for stage in head.heads:
        torch.nn.init.normal_(stage.regress.weight, std=0.2)  # initially no box would move
        torch.nn.init.normal_(stage.classify.weight, std=0.2)
    return head


def _moved(stage: RoIHead, boxes: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """The textbook's decoding, box by box."""
    out = []
    for (x1, y1, x2, y2), offset in zip(boxes.tolist(), offsets.tolist(), strict=True):
        dx, dy, dw, dh = (o * s for o, s in zip(offset, stage.config.coder.stds, strict=True))
        w, h = x2 - x1, y2 - y1
        cx, cy = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
        w, h = w * torch.tensor(dw).exp().item(), h * torch.tensor(dh).exp().item()
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        out.append([min(max(v, 0), size[1 - k % 2]) for k, v in enumerate(box)])
    return torch.tensor(out).view(-1, 4)


def test_stages_by_a_slow_loop() -> None:
    """Losses of every stage, each computed for one image at a time on the boxes the stage before has left."""
    head, maps, truth = _head(), _maps(), _truth()
    losses, first = head.learn(maps, _proposals(), truth, SIZES, KEYS)
    expected = dict.fromkeys(losses, 0.0)
    for i in range(2):
        own, boxes = [m[i : i + 1] for m in maps], _proposals()[i]
        for number, (stage, iou, weight) in enumerate(zip(head.heads, (0.5, 0.6, 0.7), (1, 0.5, 0.25), strict=True), 1):
            sampled = stage.sample([boxes], truth[i : i + 1], KEYS[i : i + 1], number)
            best = torchvision.ops.box_iou(sampled.boxes, truth[i].boxes).amax(1)
            assert torch.equal(best >= iou, sampled.labels < CLASSES)
            scored = stage(own, sampled.boxes, sampled.image)
            for name, value in stage.losses(scored, sampled).items():
                expected[f"{name}_{number}"] += float(value.detach()) * weight
            moved = _moved(stage, sampled.boxes, scored.offsets[:, 0], SIZES[i])
            alive = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
            is_truth = (sampled.boxes[:, None] == truth[i].boxes[None]).all(2).any(1)
            boxes = moved[alive & ~is_truth]
    for name, value in losses.items():
        torch.testing.assert_close(float(value.detach()), expected[name], rtol=1e-4, atol=1e-5)
    assert len(first.boxes) == 80
    assert min(expected.values()) > 0


def test_each_stage_trains_its_own_head() -> None:
    head = _head()
    losses, _ = head.learn(_maps(), _proposals(), _truth(), SIZES, KEYS)
    (losses["class_2"] + losses["box_2"]).backward()
    for number, stage in enumerate(head.heads):
        assert (stage.first.weight.grad is not None) is (number == 1)  # proposals carry no gradient


def test_detections_score_by_the_mean_logits_on_the_boxes_of_the_last_stage() -> None:
    head, maps, proposals = _head().eval(), _maps(), _proposals()
    found = head.detect(maps, proposals, SIZES)
    for i, size in enumerate(SIZES):
        own, boxes, logits = [m[i : i + 1] for m in maps], proposals[i], []
        image = torch.zeros(len(boxes), dtype=torch.int64)
        for stage in head.heads:
            scored = stage(own, boxes, image)
            logits.append(scored.logits)
            boxes = _moved(stage, boxes, scored.offsets[:, 0], size)
        scores = ((logits[0] + logits[1] + logits[2]) / 3).softmax(1)[:, :-1]
        assert len(found[i]) > 5
        for box, score, label in zip(found[i].boxes, found[i].scores, found[i].labels, strict=True):
            row = (boxes - box).abs().sum(1).argmin()
            torch.testing.assert_close(boxes[row], box, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(scores[row, label], score, rtol=1e-4, atol=1e-5)


def test_released_settings() -> None:
    config = CascadeRCNNConfig()
    assert [s.iou for s in config.roi.stages] == [0.5, 0.6, 0.7]
    assert [s.weight for s in config.roi.stages] == [1, 0.5, 0.25]
    assert config.rpn.train_proposals == 2000
    assert config.rpn.test_proposals == 1000
    assert all(config.roi.stage(i).class_agnostic for i in range(3))


def test_images_without_objects() -> None:
    nothing = [Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2
    losses, _ = _head().learn(_maps(), _proposals(), nothing, SIZES, KEYS)
    sum(losses.values()).backward()
    assert all(float(losses[f"box_{n}"].detach()) == 0 for n in (1, 2, 3))
    assert all(float(losses[f"class_{n}"].detach()) > 0 for n in (1, 2, 3))


def test_a_cascade_of_one_stage_is_that_stage() -> None:
    stage = StageConfig(iou=0.5, stds=(0.1, 0.1, 0.2, 0.2))
    head = _head(CONFIG.model_copy(update={"stages": (stage,)}))
    losses, _ = head.learn(_maps(), _proposals(), _truth(), SIZES, KEYS)
    alone, _ = head.heads[0].learn(_maps(), _proposals(), _truth(), SIZES, KEYS)
    assert float(losses["class_1"].detach()) == float(alone["class"].detach())
