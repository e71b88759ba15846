"""Oriented R-CNN from pixels to scores: a picture of three rectangles, learned by heart through the training loop."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.boxes.assign import RandomSampler
from vitp.boxes.formats import to_quads
from vitp.boxes.objects import Objects
from vitp.datasets.object_transforms import ObjectAugmentConfig
from vitp.heads.necks import FPNConfig
from vitp.heads.oriented import OrientedRCNNConfig, OrientedRoI, OrientedRPN
from vitp.heads.proposals import RoISampler
from vitp.tasks.detect import DetectorParts, Shown, build_detector, load_detector, save_detector, score_objects
from vitp.tasks.detect_task import DetectData, DetectTask
from vitp.train.loop import train
from vitp.train.loop_config import LoopConfig

SIDE = 96
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}
BOXES = [[28.0, 30, 40, 14, 0.5], [66, 26, 36, 20, -0.9], [50, 70, 52, 18, 0.1]]


class Rectangles:
    """One picture of three leaning rectangles, each colour a class; it is training and test image in one."""

    def __init__(self):
        self.quads = to_quads(torch.tensor(BOXES))
        picture = Image.new("RGB", (SIDE, SIDE), (60, 60, 60))
        for quad, colour in zip(self.quads, COLOURS.values(), strict=True):
            ImageDraw.Draw(picture).polygon([tuple(point) for point in quad.tolist()], fill=colour)
        self.image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        self.classes = tuple(COLOURS)
        self.items, self.train = [SimpleNamespace(image=Path("rectangles.png"))], [0]

    def read(self, index):
        no = torch.zeros(len(self.quads), dtype=torch.bool)
        around = torch.cat((self.quads.amin(1), self.quads.amax(1)), 1)
        return self.image, Objects(around, torch.arange(len(self.quads)), no, no, self.quads)


def task_of(data, augmentation, micro_batch=1, batch_size=1):
    settings = BackboneConfig(
        architecture="vit_tiny_patch16_224", image_size=SIDE, patch_size=8, width=48, depth=2, heads=2
    )
    rpn = OrientedRPN(
        channels=32,
        per_level=100,
        test_per_level=100,
        train_proposals=100,
        test_proposals=100,
        sampler=RandomSampler(count=64),
    )
    detector = OrientedRCNNConfig(
        kind="oriented_rcnn", rpn=rpn, roi=OrientedRoI(width=64, sampler=RoISampler(count=64))
    )
    parts = DetectorParts(neck=FPNConfig(kind="fpn", channels=32), detector=detector)
    model = build_detector(random_backbone(settings, seed=0), tuple(COLOURS), 0, parts)
    steps = DetectData(
        data, batch_size=batch_size, micro_batch=micro_batch, augmentation=augmentation, seed=0, fill=settings.mean
    )
    return DetectTask(model, steps, backbone_lr=1e-3, head_lr=2e-3)


def test_a_picture_is_learned_by_heart(tmp_path):
    data, augmentation = Rectangles(), ObjectAugmentConfig(size=SIDE, flip=0.0)
    task = task_of(data, augmentation)
    before = score_objects(task.detector, data, [0], Shown(augment=augmentation)).scores().as_dict()
    assert before["AP50"] < 0.5  # untrained: of a hundred proposals one may fit by chance
    loop = LoopConfig(steps=60, warmup=5, clip_norm=10.0, precision="fp32", device="cpu", workers=0)
    train(task, loop, tmp_path / "run")
    after = score_objects(task.detector, data, [0], Shown(augment=augmentation)).scores().as_dict()
    assert after["AP50"] > 0.9
    assert after["AP75"] > 0.6
    save_detector(tmp_path / "model.safetensors", task.detector, Shown(augment=augmentation))
    again, _ = load_detector(tmp_path)
    assert again.form == "rotated"
    assert score_objects(again, data, [0], Shown(augment=augmentation)).scores().as_dict() == after


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_step_does_not_depend_on_its_micro_batches(micro_batch):
    data, augmentation = Rectangles(), ObjectAugmentConfig(size=SIDE, flip=0.25, flip_vertical=0.25, rotate=180.0)

    def gradient(size):
        task = task_of(data, augmentation, micro_batch=size, batch_size=3)
        batch = task.step_batch(4)
        assert len(batch.micros) == -(-3 // size)
        total = sum(task.loss(micro)[0] for micro in batch.micros)
        total.backward()
        return float(total.detach()), torch.cat(
            [p.grad.flatten() for p in task.model.parameters() if p.grad is not None]
        )

    (whole, whole_gradient), (parts, parts_gradient) = gradient(3), gradient(micro_batch)
    assert parts == pytest.approx(whole, rel=1e-4)
    assert float((parts_gradient - whole_gradient).norm() / whole_gradient.norm()) < 1e-3
