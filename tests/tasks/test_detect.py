"""Detection end to end: the step's gradient, whole images, and runs that learn, repeat, and refuse what cannot be."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitp.backbone.vit import BackboneConfig, random_backbone, save_backbone
from vitp.boxes.objects import Objects, no_objects
from vitp.commands.finetune import finetune, load_finetune
from vitp.commands.finetune_detect import DetectConfig, DetectResult, build_detect_task
from vitp.datasets.detection import DetectionData, open_detection
from vitp.datasets.object_transforms import ObjectAugmentConfig, fit, padded
from vitp.datasets.objects_config import CocoConfig
from vitp.errors import CheckpointError, ConfigError, DataError
from vitp.heads.truth import truth_of
from vitp.tasks.detect import (
    Detector,
    DetectorParts,
    Shown,
    build_detector,
    finder_of,
    load_detector,
    save_detector,
    score_objects,
)
from vitp.tasks.detect_task import DetectData, DetectTask
from vitp.train.loop import train

TINY = {"architecture": "vit_tiny_patch16_224", "image_size": 64, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
SMALL_RPN = {"channels": 32, "anchors": {"scales": [4.0]}, "train_proposals": 60, "test_proposals": 60, "per_level": 60,
             "test_per_level": 60}  # fmt: skip
SMALL_ROI = {"width": 64, "sampler": {"count": 32}}
DETECTORS: dict[str, dict[str, object]] = {
    "faster_rcnn": {"kind": "faster_rcnn", "rpn": SMALL_RPN, "roi": SMALL_ROI},
    "cascade_rcnn": {"kind": "cascade_rcnn", "rpn": SMALL_RPN, "roi": SMALL_ROI},
    "mask_rcnn": {
        "kind": "mask_rcnn",
        "rpn": SMALL_RPN,
        "roi": SMALL_ROI,
        "mask": {"channels": 16, "convolutions": 1},
    },
    "oriented_rcnn": {"kind": "oriented_rcnn", "rpn": SMALL_RPN, "roi": SMALL_ROI},
}
COLOURS = ((230, 60, 60), (60, 90, 230))
SIZES = ((64, 64), (48, 64), (64, 40), (56, 56))  # of the pictures in turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a blue rectangle in each picture; the last one shows none; labels as COCO writes them."""
    root = tmp_path_factory.mktemp("rectangles")
    (root / "images").mkdir()
    images: list[dict[str, object]] = []
    notes: list[dict[str, object]] = []
    for i in range(9):
        rng = np.random.default_rng(i)
        h, w = SIZES[i % 4]
        pixels = rng.integers(0, 60, (h, w, 3)).astype(np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        for k, colour in enumerate(COLOURS if i < 8 else ()):
            width, height = (int(n) for n in rng.integers(12, 17, 2))
            x = int(rng.integers(0, w // 2 - width + 1)) + k * w // 2
            y = int(rng.integers(0, h - height + 1))
            pixels[y : y + height, x : x + width] = colour
            ring = [x, y, x + width, y, x + width, y + height, x, y + height]
            notes.append(
                {
                    "id": 2 * i + k + 1,
                    "image_id": i,
                    "category_id": 5 + k,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [ring],
                }
            )
        Image.fromarray(pixels).save(root / f"images/{i}.png")
    categories = [{"id": 5, "name": "red"}, {"id": 6, "name": "blue"}]
    text = json.dumps({"images": images, "annotations": notes, "categories": categories})
    (root / "labels.json").write_text(text)
    (root / "train.txt").write_text("\n".join(f"{i}.png" for i in (*range(6), 8)))
    (root / "test.txt").write_text("\n".join(f"{i}.png" for i in (6, 7)))
    return root


def _data(root: Path, **changes: object) -> dict[str, object]:
    return {
        "kind": "coco",
        "root": str(root),
        "images": "images/*.png",
        "labels": "labels.json",
        "train_list": "train.txt",
        "test_list": "test.txt",
        "skip_empty": False,
        "outlines": True,
        **changes,
    }


def _recipe(root: Path, out: Path, kind: str = "faster_rcnn", **changes: object) -> dict[str, object]:
    return {
        "name": "rectangles",
        "task": "detect",
        "out": str(out),
        "steps": 3,
        "seed": 1,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "backbone_config": TINY,
        "neck": {"kind": "simple_fpn", "channels": 32},
        "detector": DETECTORS[kind],
        "data": _data(root),
        "augment": {"size": 64, "keep_ratio": True},
        "batch_size": 3,
        "backbone_lr": 3e-3,
        "head_lr": 3e-3,
        "layer_decay": 1.0,
        "warmup": 0.1,
        **changes,
    }


def _model(kind: str, classes: int = 2) -> Detector:
    parts = DetectorParts.model_validate({"neck": {"kind": "simple_fpn", "channels": 32}, "detector": DETECTORS[kind]})
    backbone = random_backbone(BackboneConfig.model_validate(TINY), 0)
    return build_detector(backbone, [str(i) for i in range(classes)], 0, parts)


def _task(root: Path, micro: int, kind: str = "faster_rcnn") -> DetectTask:
    data = open_detection(CocoConfig.model_validate(_data(root, rotated=kind == "oriented_rcnn")))
    augment = ObjectAugmentConfig(size=64, keep_ratio=True)
    model = _model(kind)
    steps = DetectData(
        data, batch_size=7, micro_batch=micro, augmentation=augment, seed=0, fill=model.backbone.plain.config.mean
    )
    return DetectTask(model, steps, backbone_lr=1e-3, head_lr=1e-3)


# ------------------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("kind", list(DETECTORS))
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(folder: Path, kind: str) -> None:
    """Pictures of four sizes, one without objects among them."""
    found = []
    for micro in (7, 2):
        task = _task(folder, micro, kind)
        batch = task.step_batch(1)
        total, logs = 0.0, 0.0
        for part in batch.micros:
            loss, shares = task.loss(part)
            (loss / batch.weight).backward()
            total += float(loss.detach()) / batch.weight
            logs += sum(shares.values())
        assert logs == pytest.approx(total, rel=1e-4)
        gradient = torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])
        found.append((total, gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


def test_a_step_holds_its_pictures_at_one_size_and_says_what_they_show(folder: Path) -> None:
    task = _task(folder, 3)
    batch = task.step_batch(0)
    assert [len(m.images) for m in batch.micros] == [3, 3, 1]
    assert {m.images.shape[1:] for m in batch.micros} == {(3, 64, 64)}
    sizes = {size for m in batch.micros for size in m.sizes}
    assert (48, 64) in sizes
    assert (64, 40) in sizes
    assert min(len(o) for m in batch.micros for o in m.objects) == 0
    mean = torch.tensor([round(255 * c) for c in task.detector.backbone.plain.config.mean], dtype=torch.uint8)
    for micro in batch.micros:
        for image, (h, w) in zip(micro.images, micro.sizes, strict=True):
            assert (image[:, h:] == mean[:, None, None]).all()
            assert (image[:, :, w:] == mean[:, None, None]).all()
    assert set(batch.samples) == {str(folder / f"images/{i}.png") for i in (*range(6), 8)}
    assert task.where(0, 2) == batch.samples[2]
    again = pickle.loads(pickle.dumps(task.data)).step_batch(0)
    assert torch.equal(again.micros[1].images, batch.micros[1].images)


def test_losses_of_one_image_are_their_share_of_a_batch() -> None:
    model = _model("mask_rcnn").train()
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (2, 3, 64, 64), generator=g, dtype=torch.uint8)
    flags = torch.zeros(1, dtype=torch.bool)
    ring = np.array([[8, 8], [40, 8], [40, 30], [8, 30]], dtype=np.float32)
    shown = Objects(torch.tensor([[8.0, 8, 40, 30]]), torch.tensor([1]), flags, flags, outlines=((ring,),))
    targets, sizes, keys = [shown, no_objects(outlines=True)], [(64, 64), (50, 60)], [(0, 0, 0), (0, 0, 1)]
    both = model.training_losses(images, targets, sizes, keys)
    single = [
        model.training_losses(images[i : i + 1], targets[i : i + 1], sizes[i : i + 1], keys[i : i + 1]) for i in (0, 1)
    ]
    assert set(both) == {"rpn_class", "rpn_box", "class", "box", "mask"}
    for name, value in both.items():
        torch.testing.assert_close(value, single[0][name] + single[1][name], rtol=1e-4, atol=1e-5)
    assert float(single[1]["box"].detach()) == 0


@pytest.mark.parametrize("kind", ["cascade_rcnn", "mask_rcnn", "oriented_rcnn"])
def test_five_thousand_objects_and_one_pixel(kind: str) -> None:
    model = _model(kind)
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(5000, 2, generator=g) * 120
    boxes = torch.cat((corner, corner + 2 + torch.rand(5000, 2, generator=g) * 6), 1)
    quads = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2)
    flags = torch.zeros(5000, dtype=torch.bool)
    many = Objects(
        boxes,
        torch.arange(5000) % 2,
        flags,
        flags,
        quads=quads,
        outlines=tuple((quad.numpy(),) for quad in quads),
    )
    empty = no_objects(quads=True, outlines=True)
    images, sizes = padded([torch.zeros(3, 128, 128, dtype=torch.uint8), torch.zeros(3, 1, 1).byte()], (0.5, 0.5, 0.5))
    losses = model.training_losses(images, [many, empty], sizes, [(0, 0, 0), (0, 0, 1)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert len(model.eval().detect(images, sizes)) == 2


def test_rotated_truth_comes_from_the_quads() -> None:
    quad = torch.tensor([[[10.0, 20], [20, 10], [34, 24], [24, 34]]])
    flag = torch.zeros(1, dtype=torch.bool)
    objects = Objects(torch.tensor([[10.0, 10, 34, 34]]), torch.tensor([0]), flag, flag, quads=quad)
    box = truth_of(objects, rotated=True).boxes[0]
    assert box[:4].tolist() == pytest.approx([22, 22, 14 * 2**0.5, 10 * 2**0.5], rel=1e-4)
    assert float(box[4]) == pytest.approx(np.pi / 4, rel=1e-4)
    assert truth_of(objects, rotated=False).boxes.tolist() == [[10, 10, 34, 34]]


# ----------------------------------------------------------------------------------------------------------- whole images


def test_boxes_are_those_of_the_image_given() -> None:
    model, augment = _model("faster_rcnn").eval(), ObjectAugmentConfig(size=64)
    image = torch.randint(0, 255, (3, 40, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = finder_of(model, Shown(augment=augment)).find_in(image)
    resized, _ = fit(image, augment)
    (expected,) = model.detect(resized[None])
    assert len(found)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes * torch.tensor([0.64, 1.6, 0.64, 1.6]), expected.boxes, rtol=1e-4, atol=1e-3)


def test_a_saved_detector_finds_the_same(tmp_path: Path) -> None:
    image = torch.randint(0, 255, (3, 50, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown = Shown(augment=ObjectAugmentConfig(size=64, keep_ratio=True))
    for kind in DETECTORS:
        model, file = _model(kind).eval(), tmp_path / f"{kind}.safetensors"
        save_detector(file, model, shown)
        again, settings = load_detector(file)
        assert settings == shown
        assert again.classes == ("0", "1")
        assert (again.form, again.masks) == (model.form, model.masks)
        first, second = (finder_of(m, shown).find_in(image) for m in (model, again))
        assert torch.equal(first.boxes, second.boxes)
        assert torch.equal(first.scores, second.scores)
        assert (first.masks is None) is (kind != "mask_rcnn")


# ------------------------------------------------------------------------------------------------------------ whole runs


def test_a_detector_learns_two_rectangles_by_heart(folder: Path, tmp_path: Path) -> None:
    """Trained and scored on the same two pictures, boxes and masks."""
    recipe = _recipe(
        folder,
        tmp_path / "run",
        "mask_rcnn",
        steps=45,
        batch_size=2,
    )
    config = DetectConfig.model_validate(recipe)
    data = open_detection(config.data)
    data.parts = replace(data.parts, train=[0, 4], test=[0, 4])
    result = _run(config, data, tmp_path)
    assert result["AP50"] > 0.9
    assert result["mask_AP50"] > 0.9


def _run(config: DetectConfig, data: DetectionData, out: Path) -> dict[str, float]:
    backbone = random_backbone(BackboneConfig.model_validate(TINY), 0)
    task = build_detect_task(config, data, backbone)
    train(task, config, out)
    scores = score_objects(task.detector, data, data.test, Shown(augment=config.augment)).scores()
    return {name: value for name, value in scores.as_dict().items() if isinstance(value, float)}


@pytest.mark.parametrize("kind", ["cascade_rcnn", "oriented_rcnn"])
def test_finetune_runs_from_a_recipe_to_scores(folder: Path, tmp_path: Path, kind: str) -> None:
    rotated = kind == "oriented_rcnn"
    recipe = _recipe(
        folder,
        tmp_path / "run",
        kind,
        boxes="rotated" if rotated else "upright",
        data=_data(folder, rotated=rotated),
        micro_batch=2,
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    said: list[str] = []
    result = finetune(file, ["steps=2"], say=said.append)
    assert isinstance(result, DetectResult)
    numbers = json.loads((tmp_path / "run/metrics.json").read_text())
    assert numbers["objects"] == 4
    assert set(numbers["classes"]) == {"red", "blue"}
    assert any("RANDOM" in line for line in said)
    assert any(line.startswith("neck:") for line in said)
    model, _ = load_detector(tmp_path / "run")
    assert model.classes == ("red", "blue")
    assert model.form == ("rotated" if rotated else "upright")


def test_a_resumed_run_ends_as_if_it_had_not_stopped(folder: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Killer:
        def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
            if step == 3:
                raise Stop

        def say(self, text: str) -> None:
            pass

    changes: dict[str, object] = {"steps": 4, "checkpoint_every": 2}
    whole = finetune(DetectConfig.model_validate(_recipe(folder, tmp_path / "whole", **changes)))
    config = DetectConfig.model_validate(_recipe(folder, tmp_path / "cut", **changes))
    with pytest.raises(Stop):
        finetune(config, progress=Killer())
    resumed = finetune(config, resume=True)
    assert resumed.train.loss == whole.train.loss
    first, second = (load_detector(tmp_path / run)[0].state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda r: r["data"].update(outlines=False) or r.update(detector=DETECTORS["mask_rcnn"]),
            ConfigError,
            "outlines",
        ),
        (lambda r: r.update(detector=DETECTORS["oriented_rcnn"], boxes="rotated"), ConfigError, "quads"),
        (lambda r: r.update(boxes="rotated"), ConfigError, "oriented_rcnn"),
        (lambda r: r.update(detector=DETECTORS["oriented_rcnn"]), ConfigError, "boxes: rotated"),
        (lambda r: r.update(detector={"kind": "fast_rcnn"}), ConfigError, "faster_rcnn"),
        (lambda r: r["data"].update(classes=["red"]), DataError, "blue"),
        (lambda r: r["augment"].update(rectangular=["rde"]), ConfigError, "red"),
        (lambda r: r.update(head={"kind": "fcn"}), ConfigError, "head"),
    ],
)
def test_mistakes_are_one_sentence_before_training(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, object]], None], error: type[Exception], words: str
) -> None:
    recipe = _recipe(folder, tmp_path / "run")
    change(recipe)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    with pytest.raises(error, match=words) as caught:
        finetune(file)
    assert not (tmp_path / "run").exists(), "nothing is written before the recipe is known to be right"
    assert len(str(caught.value).splitlines()) <= 2


def test_the_task_decides_which_recipe_it_is(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(_recipe(folder, tmp_path / "run")))
    assert isinstance(load_finetune(file), DetectConfig)
    with pytest.raises(ConfigError, match="task"):
        load_finetune(file, ["task=detekt"])


def test_files_that_hold_no_detector(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_detector(tmp_path)
    backbone = random_backbone(BackboneConfig.model_validate(TINY), 0)
    save_backbone(tmp_path / "model.safetensors", backbone, backbone.config)
    with pytest.raises(CheckpointError, match="task: detect"):
        load_detector(tmp_path)
