"""Segmentation end to end: the step's gradient, whole-image prediction, and a run that learns, repeats and resumes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from vitp.backbone.vit import BackboneConfig, random_backbone, save_backbone
from vitp.commands.finetune import FinetuneConfig, finetune
from vitp.config import load
from vitp.datasets.masks import MaskFolder, MaskFolderConfig
from vitp.datasets.transforms import AugmentConfig
from vitp.errors import CheckpointError, ConfigError, DataError, OutputError
from vitp.heads.head import FCNConfig
from vitp.heads.layers import enlarge
from vitp.heads.losses import LossTerms, soft_dice_loss
from vitp.metrics.segmentation import IGNORE
from vitp.tasks.segment import (
    InferenceConfig,
    Segmenter,
    build_segmenter,
    load_segmenter,
    predict_logits,
    predict_masks,
)
from vitp.tasks.segment_task import SegmentData, SegmentTask

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2)
RECIPES = Path(__file__).parents[2] / "recipes/finetune"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright rectangles on a dark noisy ground; one corner of every mask is marked as unknown."""
    root = tmp_path_factory.mktemp("squares")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(10):
        rng = np.random.default_rng(i)
        y, x = rng.integers(0, 28, 2)
        ids = np.zeros((40, 48), dtype=np.uint8)
        ids[y : y + 14, x : x + 16] = 1
        pixels = (rng.integers(0, 90, (40, 48, 3)) + ids[..., None] * 150).astype(np.uint8)
        ids[:3, :3] = 9
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        Image.fromarray(ids).save(root / f"masks/{i}.png")
    return root


def _fields(root: Path) -> dict[str, object]:
    return {
        "root": root,
        "images": "images/*.png",
        "masks": "masks/{stem}.png",
        "classes": ["ground", "box"],
        "ignore": 9,
        "test_fraction": 0.3,
    }


def _data(root: Path) -> MaskFolder:
    return MaskFolder(MaskFolderConfig.model_validate(_fields(root)))


def _recipe(root: Path, out: Path, **changes: object) -> FinetuneConfig:
    fields = {
        "name": "squares",
        "out": out,
        "steps": 40,
        "warmup": 0.1,
        "seed": 1,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "backbone_config": TINY.model_dump(),
        "data": _fields(root),
        "augment": {"crop": 32, "scale": [0.8, 1.25], "photometric": 0.2},
        "batch_size": 4,
        "backbone_lr": 2e-3,
        "head_lr": 4e-3,
        "layer_decay": 1.0,
        "inference": {"window": 32},
    }
    return FinetuneConfig.model_validate({**fields, **changes})


def _task(root: Path, micro: int, dice: float = 0.0, decay: float = 1.0) -> SegmentTask:
    data = _data(root)
    steps = SegmentData(data, batch_size=6, micro_batch=micro, augmentation=AugmentConfig(crop=32), seed=0)
    model = build_segmenter(random_backbone(TINY, 0), data.classes, 0)
    return SegmentTask(model, steps, backbone_lr=1e-3, head_lr=1e-2, layer_decay=decay, loss=LossTerms(dice=dice))


def _gradient(task: SegmentTask) -> tuple[float, torch.Tensor]:
    batch = task.step_batch(2)
    total = 0.0
    for micro in batch.micros:
        part = task.loss(micro)[0] / batch.weight
        part.backward()
        total += float(part.detach())
    return total, torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])


# ------------------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("dice", [0.0, 0.5])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(folder: Path, dice: float) -> None:
    whole, one = _gradient(_task(folder, 6, dice)), _gradient(_task(folder, 1, dice))
    uneven = _gradient(_task(folder, 4, dice))
    assert whole[0] == pytest.approx(one[0], rel=1e-5)
    for other in (one, uneven):
        torch.testing.assert_close(whole[1], other[1], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_labelled_pixels(folder: Path) -> None:
    task = _task(folder, 2)
    micros = task.step_batch(0).micros
    images, masks = torch.cat([m.images for m in micros]), torch.cat([m.masks for m in micros])
    assert (masks == IGNORE).any()
    expected = functional.cross_entropy(task.model(images), masks.long(), ignore_index=IGNORE)
    got = sum(float(task.loss(m)[0].detach()) for m in micros) / task.step_batch(0).weight
    assert got == pytest.approx(expected.item(), rel=1e-5)


def test_dice_loss_against_numpy_and_at_its_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, generator=generator)
    masks = torch.randint(0, 3, (2, 5, 6), generator=generator).to(torch.uint8)
    masks[0, 0] = IGNORE
    expected = 0.0
    for image in range(2):
        scores = np.exp(logits[image].numpy())
        scores = scores / scores.sum(0)
        kept = masks[image].numpy() != IGNORE
        dice = []
        for c in range(3):
            p, t = scores[c][kept], (masks[image].numpy()[kept] == c).astype(float)
            dice.append((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
        expected += 1 - np.mean(dice)
    assert float(soft_dice_loss(logits, masks)) == pytest.approx(expected, rel=1e-5)
    right = functional.one_hot(masks.long().where(masks != IGNORE, 0), 3).movedim(-1, 1) * 100.0
    assert float(soft_dice_loss(right, masks)) == pytest.approx(0.0, abs=1e-5)
    assert float(soft_dice_loss(-right, masks)) > 1.0


def test_every_epoch_shows_every_training_image_once_and_steps_are_pure(folder: Path) -> None:
    task = _task(folder, 6)
    train = task.data.data.train
    assert len(train) == 7
    shown = [i for step in range(7) for i in task.data.chosen(step)]  # 42 places: six epochs
    epochs = [shown[k : k + 7] for k in range(0, 42, 7)]
    assert all(sorted(epoch) == sorted(train) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    elsewhere = pickle.loads(pickle.dumps(task.data))  # as a worker process gets it
    first, again = task.step_batch(5), elsewhere.step_batch(5)
    assert first.samples == again.samples
    assert all(torch.equal(a.images, b.images) for a, b in zip(first.micros, again.micros, strict=True))


def test_learning_rates_fall_with_depth_and_every_parameter_has_one_group(folder: Path) -> None:
    task = _task(folder, 6, decay=0.5)
    groups = task.parameter_groups()
    assert {g.name: g.lr for g in groups} == {
        "backbone_00": 1e-3 / 8,
        "backbone_01": 1e-3 / 4,
        "backbone_02": 1e-3 / 2,
        "backbone_03": 1e-3,
        "head": 1e-2,
    }
    members = [id(p) for g in groups for _, p in g.parameters]
    assert sorted(members) == sorted(id(p) for p in task.model.parameters())
    names = {g.name: {name.split(".")[1] for name, _ in g.parameters} for g in groups}
    assert names["backbone_00"] == {"cls_token", "pos_embed", "patch_embed"}
    assert names["backbone_03"] == {"norm"}


# ------------------------------------------------------------------------------------------------------- head and masks


def test_the_head_gives_one_logit_a_pixel_where_the_pixel_is() -> None:
    head = FCNConfig().build([32] * 4, 3, seed=0)
    for height, width in ((64, 64), (50, 90), (33, 31)):
        maps = [torch.randn(1, 32, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
        assert head(maps, (height, width)).shape == (1, 3, height, width)
    centres = (torch.arange(4) + 0.5).mul(32).expand(1, 1, 4, 4)  # a stride-32 map that holds its pixel positions
    fine = enlarge(centres, 8, (25, 25))  # 100 pixels at stride 4, of the 128 that the coarse cells cover
    torch.testing.assert_close(fine[0, 0, 0, 4:], (torch.arange(4, 25) + 0.5) * 4)


class _PixelModel(nn.Module):
    """Logits that depend on the pixel alone, so that windows must not show."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.classes = ("a", "b")
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images.shape[-2:]))
        x = images.float() * self.scale
        return torch.stack([x[:, 0], x[:, 1]], 1)


@pytest.mark.parametrize(("height", "width"), [(40, 100), (20, 20), (32, 33), (90, 31)])
def test_windows_cover_every_pixel_and_leave_no_seam(height: int, width: int) -> None:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = _PixelModel()
    logits = predict_logits(model, image, InferenceConfig(window=32))  # type: ignore[arg-type]
    torch.testing.assert_close(logits, image[:2].float())
    assert all(h <= 32 and w <= 32 for h, w in model.seen)
    torch.testing.assert_close(logits, predict_logits(model, image))  # type: ignore[arg-type]


def test_a_zoomed_prediction_has_the_images_own_size_and_place() -> None:
    y, x = torch.meshgrid(torch.arange(50), torch.arange(70), indexing="ij")
    image = torch.stack([y, x, x]).mul(3).to(torch.uint8)
    for scale in (0.5, 2.0):
        inference = InferenceConfig(scale=scale, window=32)
        logits = predict_logits(_PixelModel(), image, inference)  # type: ignore[arg-type]
        torch.testing.assert_close(logits[:, 4:-4, 4:-4], image[:2, 4:-4, 4:-4].float(), rtol=0, atol=1.01)


# ------------------------------------------------------------------------------------------------------------- the run


def test_a_run_learns_saves_what_it_scored_and_repeats_exactly(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = finetune(_recipe(folder, tmp_path / "a"), say=said.append)
    assert any("RANDOM weights" in line for line in said)
    assert result.scores.miou > 0.85
    assert json.loads((tmp_path / "a/metrics.json").read_text())["miou"] == result.scores.miou
    again = finetune(_recipe(folder, tmp_path / "b"))
    assert (again.scores, again.train.loss) == (result.scores, result.train.loss)
    model, inference = load_segmenter(tmp_path / "a")
    data = _data(folder)
    right = total = 0
    for i in data.test:
        image, mask = data.read(i)
        (found,) = predict_masks(model, [image], inference)
        right += int((found == mask)[mask != IGNORE].sum())
        total += int((mask != IGNORE).sum())
    assert right / total == pytest.approx(result.scores.accuracy, abs=1e-9)
    with pytest.raises(OutputError, match="not empty"):
        finetune(_recipe(folder, tmp_path / "a"))


def test_a_resumed_run_ends_where_an_unbroken_one_does(folder: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"steps": 6, "checkpoint_every": 3, "loss": "cross_entropy+dice"}
    whole = finetune(_recipe(folder, tmp_path / "whole", **changes))
    finetune(_recipe(folder, tmp_path / "cut", **changes))
    for name in ("checkpoints/step_00000006", "model.safetensors", "metrics.json"):
        path = tmp_path / "cut" / name  # as if the run had been killed after step 3
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            file.unlink()
        if path.is_dir():
            path.rmdir()
    cut = finetune(_recipe(folder, tmp_path / "cut", **changes), resume=True)
    assert cut.scores == whole.scores
    a, b = (load_segmenter(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    changed = {**_fields(folder), "test_fraction": 0.4}
    with pytest.raises(CheckpointError, match=r"data\.test_fraction"):
        finetune(_recipe(folder, tmp_path / "cut", **changes, data=changed), resume=True)


def test_a_frozen_backbone_from_a_file_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    backbone = random_backbone(TINY, 7)
    save_backbone(tmp_path / "vit.safetensors", backbone, TINY)
    changes: dict[str, object] = {"backbone": tmp_path / "vit.safetensors", "backbone_config": None, "steps": 3}
    said: list[str] = []
    finetune(_recipe(folder, tmp_path / "run", freeze_backbone=True, **changes), say=said.append)
    assert any(line.startswith("backbone: ") and "frozen" in line for line in said)
    model: Segmenter = load_segmenter(tmp_path / "run")[0]
    before = backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    fresh = FCNConfig().build([32] * 4, 2, seed=1).state_dict()
    assert not torch.equal(model.head.state_dict()["classify.weight"], fresh["classify.weight"])


def test_mistakes_are_found_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    unmapped = {key: value for key, value in _fields(folder).items() if key != "ignore"}
    with pytest.raises(DataError, match="pixel value 9 is no class"):
        finetune(_recipe(folder, out, data=unmapped))
    with pytest.raises(CheckpointError, match="no such file"):
        finetune(_recipe(folder, out, backbone=tmp_path / "gone.safetensors", backbone_config=None))
    assert not out.exists()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ndata: {root: ., images: '*.png', masks: '{stem}.png'}\n")
    with pytest.raises(ConfigError, match="backbone is missing"):
        load(FinetuneConfig, recipe)
    save_backbone(tmp_path / "vit.safetensors", random_backbone(TINY, 0), TINY)
    with pytest.raises(CheckpointError, match="holds no segmenter"):
        load_segmenter(tmp_path / "vit.safetensors")


@pytest.mark.parametrize("name", ["oam_buildings", "busi"])
def test_shipped_recipes_are_valid(name: str) -> None:
    config = load(FinetuneConfig, RECIPES / f"{name}.yaml", ["backbone=backbone.safetensors"])
    assert config.name == name


REAL = Path(__file__).parents[2] / "../shared/data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real sample data (../shared/data) is not here")
@pytest.mark.parametrize("name", ["oam_buildings", "busi"])
def test_shipped_recipes_run_on_the_real_data(name: str, tmp_path: Path) -> None:
    overrides = [f"data.root={REAL / name}", f"out={tmp_path / 'run'}", "steps=2", "batch_size=2", "augment.crop=64"]
    overrides += [
        "inference.window=256",
        "workers=0",
        "warmup=1",
        f"backbone_config={TINY.model_dump_json(exclude_none=True)}",
    ]
    result = finetune(RECIPES / f"{name}.yaml", overrides)
    assert 0 < result.scores.miou < 1
    assert result.scores.pixels > 7 * 200 * 200 or name == "busi"
