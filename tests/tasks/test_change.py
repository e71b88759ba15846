"""Change detection end to end, and segmentation with UPerNet, auxiliary head and every loss."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.commands.finetune import FinetuneConfig, finetune
from vitp.datasets.pairs import PairFolder, PairFolderConfig
from vitp.datasets.transforms import AugmentConfig
from vitp.errors import CheckpointError, ConfigError, DataError
from vitp.heads.head import AuxiliaryConfig, FCNConfig, LinearConfig, UPerNetConfig
from vitp.heads.losses import LossTerms
from vitp.recipes import load_recipe
from vitp.tasks.change import ChangeData, ChangeTask
from vitp.tasks.segment import (
    InferenceConfig,
    SegmenterParts,
    build_segmenter,
    load_change,
    load_segmenter,
    predict_logits,
    score_masks,
)
from vitp.train.keyed_drop import KeyedDropPath
from vitp.train.task import StepBatch

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2)
GROUP = UPerNetConfig(width=32, norm="group")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise at both dates; in the second one a bright block stands on ground that was dark."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("A", "B", "label"):
        (root / name).mkdir()
    for i in range(10):
        rng = np.random.default_rng(i)
        y, x = rng.integers(0, 24, 2)
        changed = np.zeros((40, 48), dtype=np.uint8)
        changed[y : y + 16, x : x + 18] = 255
        still = np.zeros((40, 48), dtype=np.uint8)  # a bright block that stands there on both dates
        still[-y - 8 :, -x - 8 :] = 130
        for date, ground in (("A", still), ("B", np.maximum(still, changed // 255 * 150))):
            pixels = rng.integers(0, 60, (40, 48, 3)) + ground[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{date}/{i}.png")
        Image.fromarray(changed).save(root / f"label/{i}.png")
    return root


def _fields(root: Path) -> dict[str, object]:
    return {
        "root": root,
        "images": "A/*.png",
        "after": "B/{name}",
        "masks": "label/{name}",
        "labels": {0: 0, 255: 1},
        "test_fraction": 0.3,
    }


def _recipe(root: Path, out: Path, **changes: object) -> FinetuneConfig:
    fields: dict[str, object] = {
        "task": "change",
        "name": "blocks",
        "out": out,
        "steps": 40,
        "warmup": 4.0,
        "warmup_from": 1e-6,
        "seed": 1,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "backbone_config": TINY.model_dump(),
        "data": _fields(root),
        "augment": {"crop": 32, "scale": [0.8, 1.25]},
        "batch_size": 4,
        "backbone_lr": 2e-3,
        "head_lr": 4e-3,
        "layer_decay": 1.0,
        "fusion": "difference",
        "head": GROUP.model_dump(),
        "inference": {"window": 32},
    }
    return FinetuneConfig.model_validate({**fields, **changes})


def _task(
    root: Path,
    micro: int,
    parts: SegmenterParts,
    loss: LossTerms = LossTerms(),
    batch: int = 4,
    vit: BackboneConfig = TINY,
) -> ChangeTask:
    data = PairFolder(PairFolderConfig.model_validate(_fields(root)))
    steps = ChangeData(data, batch_size=batch, micro_batch=micro, augmentation=AugmentConfig(crop=32), seed=0)
    model = build_segmenter(random_backbone(vit, 0), data.classes, 0, parts)
    task = ChangeTask(model, steps, backbone_lr=1e-3, head_lr=1e-2, layer_decay=0.8, loss=loss)
    task.model.train()
    return task


def _gradient(task: ChangeTask, batch: StepBatch) -> tuple[float, torch.Tensor]:
    total = 0.0
    task.model.zero_grad()
    for micro in batch.micros:
        part = task.loss(micro)[0] / batch.weight
        part.backward()
        total += float(part.detach())
    return total, torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])


# ------------------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("fusion", ["concat", "difference"])
def test_one_by_one_is_the_same_step_as_all_at_once(folder: Path, fusion: str) -> None:
    """Every loss, the auxiliary head and dropout: the sum divided by the step's pixels does not know about micro-batches."""
    auxiliary = AuxiliaryConfig(width=16, norm="group", dropout=0.5)
    head = UPerNetConfig(width=16, norm="group", dropout=0.5)
    parts = SegmenterParts.model_validate({"head": head, "auxiliary": auxiliary, "fusion": fusion})
    loss = LossTerms(cross_entropy=1, dice=0.5, lovasz=0.7, focal=0.3, class_weights=[1.0, 3.0])
    found = []
    for micro in (4, 1, 3):
        task = _task(folder, micro, parts, loss)
        found.append(_gradient(task, task.step_batch(2)))
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(other[1], found[0][1], rtol=1e-3, atol=1e-6)
    other_step = _gradient(task, task.step_batch(3))
    assert not torch.allclose(other_step[1], found[0][1], atol=1e-4)


def test_dropout_belongs_to_the_sample(folder: Path) -> None:
    parts = SegmenterParts(head=UPerNetConfig(width=16, norm="group", dropout=0.5), fusion="concat")
    task = _task(folder, 4, parts)
    batch = task.step_batch(0)
    (micro,) = batch.micros
    first, again = (float(task.loss(micro)[0].detach()) for _ in range(2))
    assert first == again
    task.model.eval()
    assert float(task.loss(micro)[0].detach()) != first


def test_batch_norm_refuses_a_lone_image_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a batch of 5 in micro-batches of 4 has such a one; .*norm: group"):
        _task(folder, 4, SegmenterParts(head=UPerNetConfig(width=16), fusion="concat"), batch=5)
    with pytest.raises(ConfigError, match="batch norm"):
        finetune(_recipe(folder, tmp_path / "run", micro_batch=1, head={"kind": "linear"}))
    assert not (tmp_path / "run").exists()
    said: list[str] = []
    finetune(_recipe(folder, tmp_path / "two", micro_batch=2, head={"kind": "linear"}, steps=1), say=said.append)
    assert any("batch norm sees 2 images at a time, not the batch of 4" in line for line in said)


def test_class_weights_must_fit_the_classes(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 weights for 2 classes \(unchanged, changed\)"):
        _task(folder, 4, SegmenterParts(fusion="concat"), LossTerms(class_weights=[1.0, 1.0, 1.0]))


@pytest.mark.parametrize("head", [FCNConfig(width=32), UPerNetConfig(width=16), LinearConfig()])
def test_the_order_of_the_dates(folder: Path, head: FCNConfig) -> None:
    before, after, _ = PairFolder(PairFolderConfig.model_validate(_fields(folder))).read(0)
    images = torch.stack([torch.cat([before, after]), torch.cat([after, before])])
    for fusion, symmetric in (("difference", True), ("concat", False)):
        parts = SegmenterParts.model_validate({"head": head, "fusion": fusion})
        model = build_segmenter(random_backbone(TINY, 0), ("unchanged", "changed"), 0, parts).eval()
        with torch.no_grad():
            logits = model(images)
        assert logits.shape == (2, 2, 40, 48)
        assert torch.allclose(logits[0], logits[1], atol=1e-5) == symmetric
        whole, tiled = (predict_logits(model, images[0], InferenceConfig(window=w)) for w in (None, 64))
        torch.testing.assert_close(whole, logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tiled, whole)


def test_dates_move_together_and_are_coloured_apart(folder: Path) -> None:
    data = PairFolder(PairFolderConfig.model_validate(_fields(folder)))
    before, _, mask = data.read(0)

    class Still:
        def read(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return before, before, mask

    for photometric, equal in ((0.0, True), (1.0, False)):
        config = AugmentConfig(crop=32, scale=(0.4, 2.0), rot90=True, photometric=photometric)
        steps = ChangeData(data, batch_size=8, micro_batch=8, augmentation=config, seed=0)
        steps.data = Still()  # type: ignore[assignment]
        crops = [steps.crop(0, 0, slot)[0] for slot in range(8)]
        assert all(torch.equal(c[:3], c[3:]) for c in crops) == equal
    swapped = AugmentConfig(crop=32, scale=(1.0, 1.0), flip=False, photometric=0.0, swap_dates=1.0)
    kept = swapped.model_copy(update={"swap_dates": 0.0})
    a, b = (
        ChangeData(data, batch_size=1, micro_batch=1, augmentation=c, seed=0).crop(3, 0, 0)[0] for c in (swapped, kept)
    )
    assert torch.equal(a, torch.cat([b[3:], b[:3]]))


# ------------------------------------------------------------------------------------------------------------- the run


def test_a_run_finds_the_change_and_is_loaded_again(folder: Path, tmp_path: Path) -> None:
    start = finetune(_recipe(folder, tmp_path / "start", steps=1, head_lr=1e-9, backbone_lr=1e-9))
    result = finetune(_recipe(folder, tmp_path / "a", loss="cross_entropy+lovasz"))
    assert result.changed is not None
    assert result.changed > max(0.7, (start.changed or 0.0) + 0.2)
    assert json.loads((tmp_path / "a/metrics.json").read_text())["f1_changed"] == result.changed == result.scores.f1[1]
    model, inference = load_change(tmp_path / "a")
    assert (model.fusion, model.parts.head, inference.window) == ("difference", GROUP, 32)
    data = PairFolder(PairFolderConfig.model_validate(_fields(folder)))
    hit = wrong = 0
    for i in data.test:
        before, after, mask = data.read(i)
        found = predict_logits(model, torch.cat([before, after]), inference).argmax(0)
        hit += int(((found == 1) & (mask == 1)).sum())
        wrong += int(((found == 1) ^ (mask == 1)).sum())
    assert 2 * hit / (2 * hit + wrong) == pytest.approx(result.changed, abs=1e-9)
    with pytest.raises(CheckpointError, match="holds a change detector"):
        load_segmenter(tmp_path / "a")


def test_a_resumed_run_with_averaged_weights_ends_where_an_unbroken_one_does(folder: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {
        "steps": 6,
        "checkpoint_every": 3,
        "ema": 0.9,
        "head": UPerNetConfig(width=16).model_dump(),
        "auxiliary": {"width": 16},
        "schedule": {"kind": "poly", "power": 0.9},
        "fusion": "concat",
    }
    whole = finetune(_recipe(folder, tmp_path / "whole", **changes))
    finetune(_recipe(folder, tmp_path / "cut", **changes))
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000006")
    for name in ("model.safetensors", "metrics.json"):
        (tmp_path / "cut" / name).unlink()
    cut = finetune(_recipe(folder, tmp_path / "cut", **changes), resume=True)
    assert cut.scores.as_dict() == whole.scores.as_dict()
    a, b = (load_change(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    plain = finetune(_recipe(folder, tmp_path / "plain", **{**changes, "ema": None}))
    c = load_change(plain.out)[0].state_dict()
    assert any(not torch.equal(a[name], c[name]) for name in a)  # what is saved is the average
    done = finetune(_recipe(folder, tmp_path / "cut", **changes), resume=True)  # nothing left to do
    assert done.scores.as_dict() == whole.scores.as_dict()
    (tmp_path / "cut/checkpoints/step_00000006/average.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"average\.safetensors"):
        finetune(_recipe(folder, tmp_path / "cut", **changes), resume=True)


def test_recipes_name_their_task(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: x\ntask: change\nbackbone: w.safetensors\n"
        f"data: {{root: {folder}, images: A/*.png, masks: 'label/{{name}}', after: 'B/{{name}}'}}\n"
    )
    config = load_recipe(FinetuneConfig, file, ["head.kind=upernet", "fusion=difference"])
    assert (config.head, config.fusion, config.data.kind) == (UPerNetConfig(), "difference", "pairs")
    with pytest.raises(ConfigError, match=r"task: must be 'segment' or 'change', got 'chnage'; did you mean 'change'"):
        load_recipe(FinetuneConfig, file, ["task=chnage"])
    with pytest.raises(ConfigError, match=r"recipe\.yaml:4: data\.after: unknown key"):
        load_recipe(FinetuneConfig, file, ["task=segment"])
    with pytest.raises(ConfigError, match=r"task: segment does not go with data\.kind: pairs"):
        load_recipe(FinetuneConfig, file, ["task=segment", "data.kind=pairs"])
    with pytest.raises(ConfigError, match="'kind' must be one of 'fcn', 'upernet', 'linear', got 'upernett'"):
        load_recipe(FinetuneConfig, file, ["head.width=64", "head.kind=upernett"])


def test_a_mistake_in_the_pairs_is_told_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pairs")
    data = {**_fields(folder), "root": tmp_path / "pairs"}
    Image.new("RGB", (20, 20)).save(tmp_path / "pairs/B/3.png")
    with pytest.raises(DataError, match="second date has 20 x 20 pixels"):
        finetune(_recipe(folder, tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()


def test_adapter_drops_and_learns_by_sample_and_by_depth(folder: Path) -> None:
    features = {"kind": "adapter", "drop_path": 0.5, "stem_width": 8, "heads": 2}
    parts = SegmenterParts.model_validate({"features": features, "head": GROUP, "fusion": "concat"})
    found = []
    for micro in (4, 1):
        task = _task(folder, micro, parts, vit=TINY.model_copy(update={"depth": 4}))
        found.append(_gradient(task, task.step_batch(1)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-5)
    (micro,) = _task(folder, 4, SegmenterParts(fusion="concat")).step_batch(1).micros
    decided = {}
    for drop_path in (0.5, 0.0):  # the branches are dropped in training, each date of a sample for itself
        features["drop_path"] = drop_path
        parts = SegmenterParts.model_validate({"features": features, "head": GROUP, "fusion": "concat"})
        task = _task(folder, 4, parts, vit=TINY.model_copy(update={"depth": 4}))
        task.loss(micro)
        paths = [m for m in task.model.modules() if isinstance(m, KeyedDropPath)]
        decided[drop_path] = [m.decided for m in paths], float(task.loss(micro)[0].detach())
    assert decided[0.0][0] == [None] * 6  # four extractors, two more
    scales = torch.stack([scale[:, 0] for scale in decided[0.5][0] if scale is not None])
    assert scales.shape == (6, 8)
    assert scales.unique().tolist() == [0.0, 2.0]
    assert not torch.equal(scales[:, :4], scales[:, 4:])
    assert decided[0.5][1] != decided[0.0][1]
    rates = {g.name: g.lr for g in task.parameter_groups()}
    assert rates["head"] == rates["features_05"] == 1e-2
    assert rates["backbone_01"] == pytest.approx(1e-3 * 0.8**4)
    members = [id(p) for g in task.parameter_groups() for _, p in g.parameters]
    assert sorted(members) == sorted(id(p) for p in task.model.parameters())


@pytest.mark.parametrize("features", [{"kind": "pyramid", "channels": 16}, {"kind": "plain", "train": "lora"}])
def test_other_features_run_save_and_load(folder: Path, tmp_path: Path, features: dict[str, object]) -> None:
    if features.get("train") == "lora":
        pytest.importorskip("peft", reason="needs the extra lora")
    result = finetune(_recipe(folder, tmp_path / "run", steps=2, features=features))
    model, _ = load_change(result.out)
    data = PairFolder(PairFolderConfig.model_validate(_fields(folder)))
    metric = score_masks(model, data, data.test, InferenceConfig(window=32))
    assert metric.scores().f1[1] == pytest.approx(result.changed, abs=0.02)
    assert not any("lora" in name for name in model.state_dict())


def test_every_example_of_the_documentation_is_a_valid_recipe(folder: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/finetune.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 6
    masks = {"root": "d", "images": "*.png", "masks": "{stem}.png"}
    for block in blocks:
        fields = {"name": "x", "backbone": "w.safetensors", "data": masks, **yaml.safe_load(block)}
        FinetuneConfig.model_validate(fields)
