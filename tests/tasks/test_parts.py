"""The parts of a step that ranks are given: together they are the step of one process, sample by sample."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from tests.distributed.downstream import write_pictures

from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.datasets.detection import open_detection
from vitp.datasets.masks import MaskFolder, MaskFolderConfig
from vitp.datasets.object_transforms import ObjectAugmentConfig, padded, padded_to
from vitp.datasets.objects_config import CocoConfig
from vitp.datasets.transforms import AugmentConfig
from vitp.errors import ConfigError
from vitp.heads.head import UPerNetConfig
from vitp.metrics.segmentation import IGNORE
from vitp.tasks.dense import check_parts
from vitp.tasks.detect_task import DetectData
from vitp.tasks.segment import SegmenterParts, build_segmenter
from vitp.tasks.segment_task import SegmentData, SegmentTask
from vitp.train.distributed import Ranks
from vitp.train.task import StepBatch

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2)
STEPS = range(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_pictures(root)
    return root


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_are_runs_of_about_equal_length(size: int) -> None:
    for count in (0, 1, 6, 7, 20):
        parts = [Ranks(rank, size).part(count) for rank in range(size)]
        assert [i for part in parts for i in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert parts == Ranks(0, size).parts(count)


def _masks(root: Path, batch: int, ranks: Ranks = Ranks(), average: str = "labelled") -> SegmentData:
    fields = {"root": root, "images": "images/*.png", "masks": "masks/{stem}.png", "ignore": 9, "test_list": "test.txt",
              "classes": ["ground", "red", "blue"]}  # fmt: skip
    return SegmentData(
        MaskFolder(MaskFolderConfig.model_validate(fields)), batch_size=batch, micro_batch=2,
        augmentation=AugmentConfig(crop=32, photometric=0.5), seed=3, ranks=ranks, average=average,  # type: ignore[arg-type]
    )  # fmt: skip


def _boxes(root: Path, ranks: Ranks = Ranks()) -> DetectData:
    fields = {"kind": "coco", "root": str(root), "images": "images/*.png", "labels": "labels.json", "outlines": True,
              "test_list": "test.txt"}  # fmt: skip
    return DetectData(
        open_detection(CocoConfig.model_validate(fields)), batch_size=5, micro_batch=2,
        augmentation=ObjectAugmentConfig(size=(48, 96), keep_ratio=True, flip=0.5), seed=3, fill=TINY.mean, ranks=ranks,
    )  # fmt: skip


def _shared(parts: list[StepBatch]) -> list[StepBatch]:
    """What `Ranks.shared` makes of the parts, without processes."""
    weight = sum(part.weight for part in parts) or 1.0
    extent = None
    if parts[0].extent is not None:
        extent = (max(p.extent[0] for p in parts), max(p.extent[1] for p in parts))  # type: ignore[index]
    return [
        StepBatch([m.of_step(weight, extent) for m in part.micros], weight, part.counts, part.samples) for part in parts
    ]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("average", ["labelled", "all"])
def test_parts_of_a_segmentation_step_are_the_step(folder: Path, size: int, average: str) -> None:
    whole = _masks(folder, 5, average=average)
    data = [pickle.loads(pickle.dumps(_masks(folder, 5, Ranks(rank, size), average))) for rank in range(size)]
    for step in STEPS:
        expected = whole.step_batch(step)
        parts = [each.step_batch(step) for each in data]
        assert sum(part.counts["samples"] for part in parts) == 5
        shared = _shared(parts)
        assert [name for part in shared for name in part.samples] == expected.samples
        micros = [m for part in shared for m in part.micros]
        assert [slot for m in micros for slot in m.slots] == [0, 1, 2, 3, 4]
        assert torch.equal(torch.cat([m.images for m in micros]), torch.cat([m.images for m in expected.micros]))
        assert torch.equal(torch.cat([m.masks for m in micros]), torch.cat([m.masks for m in expected.micros]))
        assert (
            {(m.pixels, m.samples) for m in micros} == {(expected.weight, 5)} == {(part.weight, 5) for part in shared}
        )


def test_a_part_without_a_label_weighs_nothing(folder: Path) -> None:
    """A step of two images, one of which is ignored as a whole, and one of which both are."""
    seen = set()
    for step in range(40):
        parts = [_masks(folder, 2, Ranks(rank, 2)).step_batch(step) for rank in (0, 1)]
        for part in parts:
            labelled = int((part.micros[0].masks != IGNORE).sum())
            assert part.weight == labelled
            seen.add(labelled == 0)
    assert seen == {True, False}
    for part in parts:
        part.micros[0].masks.fill_(IGNORE)
    assert _shared([StepBatch(part.micros, 0.0) for part in parts])[0].micros[0].pixels == 1.0


@pytest.mark.parametrize("size", [2, 3, 5])
def test_parts_of_a_detection_step_are_the_step(folder: Path, size: int) -> None:
    """Every rank pads to what the largest image of all ranks needs."""
    whole, padding = _boxes(folder), 0
    device = torch.device("cpu")
    for step in STEPS:
        expected = whole.step_batch(step)
        parts = [_boxes(folder, Ranks(rank, size)).step_batch(step) for rank in range(size)]
        padding += len({part.extent for part in parts}) - 1
        micros = [m.to(device) for part in _shared(parts) for m in part.micros]
        assert [slot for m in micros for slot in m.slots] == [0, 1, 2, 3, 4]
        assert torch.equal(torch.cat([m.images for m in micros]), torch.cat([m.images for m in expected.micros]))
        assert [s for m in micros for s in m.sizes] == [s for m in expected.micros for s in m.sizes]
        boxes = [[o.boxes.tolist() for m in found for o in m.objects] for found in (micros, expected.micros)]
        assert boxes[0] == boxes[1]
        assert sum(part.weight for part in parts) == expected.weight == 5
        assert sum(part.counts["objects"] for part in parts) == expected.counts["objects"]
    assert padding, "no step had ranks of unlike sizes"
    assert all(m.to(device).images is m.images for m in expected.micros), "one process pads once"


def test_padding_again_is_padding_at_once() -> None:
    images = [torch.full((3, h, w), 7, dtype=torch.uint8) for h, w in ((40, 30), (100, 20), (20, 70))]
    together, _ = padded(images, (0.1, 0.5, 0.9))
    again = [padded_to(padded([image], (0.1, 0.5, 0.9))[0], (128, 96), (0.1, 0.5, 0.9)) for image in images]
    assert torch.equal(torch.cat(again), together)


@pytest.mark.parametrize(
    ("norm", "batch", "micro", "size", "said"),
    [
        ("group", 2, 2, 3, "a step of 2 images leaves some of the 3 ranks without one"),
        ("batch", 5, 2, 1, "cannot learn from one image alone"),
        ("batch", 5, 2, 2, "a batch of 5 on 2 ranks in micro-batches of 2 makes 1 on some and 2 on others"),
        ("batch", 5, 3, 2, None),  # parts of 2 and 3 in one pass each
        ("batch", 2, 2, 2, None),  # one image a rank: statistics are those of both
        ("group", 5, 2, 2, None),
        ("group", 1, 1, 1, None),
    ],
)
def test_which_parts_can_be_learned_from(
    folder: Path, norm: str, batch: int, micro: int, size: int, said: str | None
) -> None:
    head = UPerNetConfig.model_validate({"width": 16, "norm": norm})
    model = build_segmenter(random_backbone(TINY, 0), ["a", "b", "c"], 0, SegmenterParts(head=head))
    if said is None:
        check_parts(model, batch, micro, Ranks(size - 1, size))
        return
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_parts(model, batch, micro, Ranks(size - 1, size))
    data = _masks(folder, batch, Ranks(size - 1, size))
    data.micro_batch = micro
    with pytest.raises(ConfigError, match=re.escape(said)):
        SegmentTask(model, data, backbone_lr=1e-3, head_lr=1e-3)
