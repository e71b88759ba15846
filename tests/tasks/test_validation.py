"""Validation while fine-tuning: it changes nothing, it is right, and the best weights survive a kill."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vitp.backbone.vit import BackboneConfig
from vitp.commands.evaluate import evaluate
from vitp.commands.finetune import DetectConfig, FinetuneConfig, finetune
from vitp.commands.validating import Validated, Validation, ValidationConfig
from vitp.errors import CheckpointError, ConfigError
from vitp.heads.head import UPerNetConfig
from vitp.metrics.segmentation import SegmentationMetric
from vitp.tasks.dense import save_described
from vitp.tasks.segment import load_dense
from vitp.train.checkpoint import list_checkpoints, load_tensors
from vitp.train.loop import train
from vitp.train.loop_config import LoopConfig
from vitp.train.optim import ParameterGroup
from vitp.train.task import StepBatch
from vitp.train.trackers import read_evaluations, read_log

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2)
DEEP = TINY.model_copy(update={"depth": 4}).model_dump()
ADAPTER = {"kind": "adapter", "drop_path": 0.5, "stem_width": 8, "heads": 2}
LISTS = {"train": range(6), "val": (6, 7, 8), "test": (9, 10)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright rectangles on a dark noisy ground, as masks and as boxes; divided by lists."""
    root = tmp_path_factory.mktemp("squares")
    for name in ("images", "masks"):
        (root / name).mkdir()
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for i in range(11):
        rng = np.random.default_rng(i)
        x, y = (int(n) for n in rng.integers(0, 28, 2))
        ids = np.zeros((40, 48), dtype=np.uint8)
        ids[y : y + 14, x : x + 16] = 1
        height = min(40, y + 14) - y
        pixels = (rng.integers(0, 90, (40, 48, 3)) + ids[..., None] * 150).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        Image.fromarray(ids).save(root / f"masks/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 48})
        notes.append({"id": i + 1, "image_id": i, "category_id": 1, "bbox": [x, y, 16, height], "area": 16 * height,
                      "iscrowd": 0})  # fmt: skip
    labels = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "box"}]}
    (root / "labels.json").write_text(json.dumps(labels))
    for part, members in LISTS.items():
        (root / f"{part}.txt").write_text("\n".join(f"{i}.png" for i in members))
    return root


def _common(out: Path, **changes: Any) -> dict[str, Any]:
    fields = {
        "name": "squares",
        "out": str(out),
        "steps": 8,
        "warmup": 0.1,
        "seed": 1,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "log_every": 1,
        "checkpoint_every": 4,
        "batch_size": 3,
        "backbone_config": TINY.model_dump(),
        "layer_decay": 1.0,
    }
    return {**fields, **changes}


def _lists(**changes: Any) -> dict[str, Any]:
    return {f"{part}_list": f"{part}.txt" for part in LISTS} | changes


def _masks(root: Path, out: Path, data: dict[str, Any] | None = None, **changes: Any) -> FinetuneConfig:
    """Every kind of state that a look at the model could disturb: batch norm, dropout, an auxiliary head."""
    data = {"root": str(root), "images": "images/*.png", "masks": "masks/{stem}.png", "classes": ["ground", "box"],
            **(_lists() if data is None else data)}  # fmt: skip
    head = UPerNetConfig(width=16, dropout=0.3).model_dump()
    fields = {
        "data": data,
        "augment": {"crop": 32},
        "head": head,
        "auxiliary": {"width": 16},
        "backbone_lr": 2e-3,
        "head_lr": 2e-2,
        "inference": {"window": 32},
    }
    return FinetuneConfig.model_validate(_common(out, **{**fields, **changes}))


def _boxes(root: Path, out: Path, **changes: Any) -> DetectConfig:
    rpn = {"channels": 32, "anchors": {"scales": [4.0]}, "train_proposals": 60, "test_proposals": 60, "per_level": 60,
           "test_per_level": 60}  # fmt: skip
    data = {"kind": "coco", "root": str(root), "images": "images/*.png", "labels": "labels.json", **_lists()}
    fields = {
        "task": "detect",
        "neck": {"kind": "simple_fpn", "channels": 32},
        "detector": {"kind": "faster_rcnn", "rpn": rpn, "roi": {"width": 64, "sampler": {"count": 32}}},
        "data": data,
        "augment": {"size": 48, "keep_ratio": True},
        "steps": 6,
        "checkpoint_every": 3,
        "backbone_lr": 3e-3,
        "head_lr": 3e-3,
    }
    return DetectConfig.model_validate(_common(out, **{**fields, **changes}))


def _state(run: Path) -> dict[str, Tensor]:
    """Weights and optimiser of the newest checkpoint, and what is saved in the end."""
    newest = list_checkpoints(run)[-1]
    files = [*sorted(newest.glob("*.safetensors")), run / "model.safetensors"]
    return {f"{file.parent.name}/{file.name}:{k}": v for file in files for k, v in load_tensors(file).items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _without_folder(run: Path) -> dict[str, Tensor]:
    return {key.partition("/")[2]: value for key, value in _state(run).items()}


class Stop(Exception):
    pass


class Killer:
    """Ends a run as a kill would, after a step and before its validation and its checkpoint."""

    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
        if step == self.at:
            raise Stop

    def say(self, text: str) -> None:
        pass


# ------------------------------------------------------------------------------------------------- it changes nothing


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9},
        {"features": ADAPTER, "backbone_config": DEEP},
        {"batch_size": 4, "micro_batch": 2, "auxiliary": None, "head": {"kind": "linear"}},
        {"precision": "bf16"},  # in which attention is chosen by the length of the sequence
    ],
    ids=["plain", "averaged", "adapter", "linear", "bf16"],
)
def test_a_run_with_validation_is_the_run_without_bit_for_bit(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = {**changes, "steps": 4, "checkpoint_every": 2}
    plain = finetune(_masks(folder, tmp_path / "plain", **changes))
    seen = finetune(_masks(folder, tmp_path / "seen", validation={"every": 1}, **changes))
    assert _same(_without_folder(plain.out), _without_folder(seen.out))
    losses = [[(line["step"], line["loss"]) for line in read_log(run.out)] for run in (plain, seen)]
    assert losses[0] == losses[1]
    assert seen.scores.as_dict() == plain.scores.as_dict()
    assert [line["step"] for line in read_evaluations(seen.out)] == [1, 2, 3, 4]
    assert read_evaluations(plain.out) == []
    assert "validation" not in json.loads((plain.out / "metrics.json").read_text())


def test_a_detector_is_not_disturbed_and_its_threshold_needs_no_second_look(folder: Path, tmp_path: Path) -> None:
    lines: dict[str, list[str]] = {"plain": [], "seen": []}
    plain = finetune(_boxes(folder, tmp_path / "plain"), say=lines["plain"].append)
    seen = finetune(_boxes(folder, tmp_path / "seen", validation={"every": 2}), say=lines["seen"].append)
    assert _same(_without_folder(plain.out), _without_folder(seen.out))
    assert seen.threshold == plain.threshold is not None
    assert seen.validated is not None
    assert seen.validated.counted is None, "every find in every image would travel to all ranks"
    assert seen.scores.as_dict() == plain.scores.as_dict()
    assert any(line.startswith("threshold: 3/3") for line in lines["plain"])
    assert not any(line.startswith("threshold: 3/3") for line in lines["seen"])
    assert [line["step"] for line in read_evaluations(seen.out)] == [2, 4, 6]


# --------------------------------------------------------------------------------------------------------- it is right


@pytest.mark.parametrize("ema", [None, 0.8])
def test_the_scores_are_those_that_evaluate_gives(folder: Path, tmp_path: Path, ema: float | None) -> None:
    inference = {"window": 32, "flips": "horizontal"}
    validation = {"every": 3, "views": True}
    run = finetune(_masks(folder, tmp_path / "run", ema=ema, inference=inference, validation=validation))
    found = evaluate(run.out, split="val").numbers
    last = read_evaluations(run.out)[-1]
    assert last["step"] == 8
    for name in ("miou", "mdice", "miou_foreground", "mdice_foreground", "accuracy"):
        assert last[f"validation/{name}"] == pytest.approx(found[name], rel=1e-5)
    assert run.validated is not None
    assert run.validated.keep == "last"
    assert [step for step, _ in run.validated.curve] == [3, 6, 8]
    page = (run.out / "report.html").read_text()
    assert ">Validation<" in page
    assert page.count('r="5"') >= 2, "the best is marked on the curve and in the legend"


def test_changes_are_scored_by_their_own_number(folder: Path, tmp_path: Path) -> None:
    data = {"kind": "pairs", "after": "images/{name}", "labels": {0: 0, 1: 1}, **_lists()}
    head = {"kind": "fcn", "width": 32}
    changes = {"head": head, "auxiliary": None, "steps": 30, "head_lr": 1e-2, "validation": {"every": 30}}
    run = finetune(_masks(folder, tmp_path / "run", data, task="change", fusion="concat", **changes))
    assert run.validated is not None
    assert run.validated.metric == "f1_changed"
    found = evaluate(run.out, split="val").numbers["f1_changed"]
    assert run.validated.score == pytest.approx(found, rel=1e-5)
    assert 0 < found < 1


def test_fewer_images_are_spread_over_the_validation_part_and_no_test_image_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitp.commands import scoring_masks

    seen: list[list[int]] = []
    real = scoring_masks.read_ahead

    def watched(read: Callable[[int], Any], indices: Sequence[int]) -> Any:
        seen.append(list(indices))
        return real(read, indices)

    monkeypatch.setattr(scoring_masks, "read_ahead", watched)
    finetune(_masks(folder, tmp_path / "run", steps=2, validation={"every": 1, "images": 2}))
    names = [[int(sorted(f"{i}.png" for i in range(11))[k][:-4]) for k in some] for some in seen]
    assert [sorted(some) for some in names[:2]] == [[6, 7], [6, 7]]
    assert sorted(names[2]) == [9, 10]  # the test part, once, in the end


# ------------------------------------------------------------------------------------------------------ the best is kept


def test_the_best_weights_are_saved_tested_and_found_again_after_a_kill(folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"validation": {"every": 1, "keep": "best"}, "head_lr": 8e-2, "steps": 8}
    whole = finetune(_masks(folder, tmp_path / "whole", **changes))
    assert whole.validated is not None
    curve = dict(whole.validated.curve)
    best = max(curve.values())
    assert whole.validated.step == min(step for step, score in curve.items() if score == best)
    assert whole.validated.step != 8, "the run must lose something in its last steps for this test to tell"
    assert evaluate(whole.out, split="val").numbers["miou"] == pytest.approx(best, rel=1e-5)
    said = json.loads((whole.out / "metrics.json").read_text())["validation"]
    assert (said["step"], said["keep"], said["metric"]) == (whole.validated.step, "best", "miou")
    for at in (6, 8):
        config = _masks(folder, tmp_path / f"cut{at}", **changes)
        with pytest.raises(Stop):
            finetune(config, progress=Killer(at))
        cut = finetune(config, resume=True)
        assert _same(_without_folder(cut.out), _without_folder(whole.out))
        assert cut.validated is not None
        assert cut.validated.as_dict() == whole.validated.as_dict()
        assert cut.validated.curve == whole.validated.curve
    again = finetune(config, resume=True)  # nothing is left to train
    assert again.scores.as_dict() == whole.scores.as_dict()
    model, _ = load_dense(whole.out)
    assert not any(module.training for module in model.modules())
    with pytest.raises(CheckpointError, match=r"inference\.window"):  # other scores would choose other weights
        finetune(
            config.model_copy(update={"inference": config.inference.model_copy(update={"window": 40})}), resume=True
        )


class _Line:
    """Weights that wander; how good they are is a number that jumps about with them."""

    metric = "miou"

    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(3, 1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(0.3)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("all", list(self.model.named_parameters()), 0.1)]

    def step_batch(self, step: int) -> StepBatch:
        return StepBatch([_Numbers(torch.randn(4, 3, generator=torch.Generator().manual_seed(step)))], 4.0)

    def where(self, step: int, slot: int) -> str:
        return ""

    def loss(self, micro: Any) -> tuple[Tensor, dict[str, float]]:
        return (self.model(micro.x) - 1).square().sum(), {}

    def count(self, images: Sequence[int], progress: Callable[[int, int], None]) -> SegmentationMetric:
        assert not self.model.training
        metric = SegmentationMetric(["a", "b"])
        total = sum(float(p.sum()) for p in self.model.parameters())
        metric.matrix[0, 0] = int(1000 * math.modf(abs(total) * 41)[0])
        return metric

    def numbers(self, counted: SegmentationMetric) -> dict[str, float]:
        return {"miou": int(counted.matrix[0, 0]) / 1000}


class _Numbers:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: torch.device) -> _Numbers:
        return self

    def pin_memory(self) -> _Numbers:
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {"x": self.x}


class _Dying:
    """Ends a run between the validation of a step, which it is told of, and the step's checkpoint."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, text: str) -> None:
        if text.startswith(f"step {self.at}:"):
            raise Stop


def _wander(
    out: Path, *, resume: bool = False, kill: int = 0, late: bool = False, **changes: Any
) -> tuple[_Line, Validated[Any]]:
    task = _Line()
    values = {"steps": 9, "warmup": 0.1, "workers": 0, "checkpoint_every": 3, "device": "cpu", "precision": "fp32"}
    config = LoopConfig(**{**values, **changes})
    out.mkdir(exist_ok=True)
    wanted = ValidationConfig(every=1, keep="best")
    say = _Dying(kill) if late else lambda _: None
    validation = Validation(task.model, task, [0], wanted, out=out, steps=config.steps, say=say)
    killer = Killer(kill) if kill and not late else None
    train(task, config, out, resume=resume, progress=killer, after_step=validation, averaged=validation.averaged)
    return task, validation.settle()


@pytest.mark.parametrize("ema", [None, 0.5])
def test_killed_anywhere_and_resumed_the_best_is_that_of_an_unbroken_run(tmp_path: Path, ema: float | None) -> None:
    whole, expected = _wander(tmp_path / "whole", ema=ema)
    assert 1 < expected.step < 9
    scores = dict(expected.curve)
    assert scores[expected.step] == max(scores.values())
    records = [s for s, y in scores.items() if y > max([scores[k] for k in scores if k < s], default=-1)]
    assert len(records) > 2, "several bests must follow each other for this test to tell"
    for kill, late in [*((step, False) for step in range(1, 10)), *((step, True) for step in {*records, 3, 6, 9})]:
        out = tmp_path / f"at{kill}{'late' * late}"
        with pytest.raises(Stop):
            _wander(out, kill=kill, late=late, ema=ema)
        files = sorted(int(file.stem[-8:]) for file in (out / "validation").glob("best_*"))
        saved = max((int(folder.name[-8:]) for folder in list_checkpoints(out)), default=0)
        if before := [s for s in records if s <= saved]:
            assert before[-1] in files, "the best at the newest checkpoint must be there for who resumes from it"
        again, found = _wander(out, resume=True, ema=ema)
        assert (found.step, found.curve) == (expected.step, expected.curve)
        assert _same(dict(again.model.named_parameters()), dict(whole.model.named_parameters()))
        assert not list((out / "validation").glob(".*")), "nothing half-written stays"


def test_a_best_from_beyond_the_checkpoint_does_not_count(tmp_path: Path) -> None:
    """As another machine may have left it, whose numbers differ a little."""
    _, expected = _wander(tmp_path / "whole")
    with pytest.raises(Stop):
        _wander(tmp_path / "cut", kill=5)
    (tmp_path / "cut/validation/.best_00000004.safetensors.123.tmp").touch()  # by a kill in the middle of a write
    about = {"validation": {"step": 4, "score": 2.0, "metric": "miou"}}
    save_described(tmp_path / "cut/validation/best_00000004.safetensors", _Line().model, about)
    _, found = _wander(tmp_path / "cut", resume=True)
    assert (found.step, found.curve) == (expected.step, expected.curve)
    assert not list((tmp_path / "cut/validation").glob(".*"))


@pytest.mark.parametrize("left", [1, 2])
def test_every_checkpoint_that_is_kept_has_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """A newer one may be damaged and moved away, and on a GPU the steps after it need not be as good again."""
    _, whole = _wander(tmp_path, checkpoint_every=1, keep_last=9)
    *_, oldest = list_checkpoints(tmp_path)[:left]
    for newer in list_checkpoints(tmp_path)[left:]:
        shutil.rmtree(newer)
    before = {step: score for step, score in whole.curve if step <= int(oldest.name[-8:])}
    assert whole.step not in before, "a later best must have followed for this test to tell"
    monkeypatch.setattr(_Line, "numbers", lambda *_: {"miou": 0.0})
    _, found = _wander(tmp_path, resume=True, checkpoint_every=1, keep_last=9)
    assert (found.step, found.score) == max(before.items(), key=lambda point: point[1])


def test_best_weights_that_are_gone_are_missed_before_more_is_trained(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        _wander(tmp_path, kill=5)
    shutil.rmtree(tmp_path / "validation")
    with pytest.raises(CheckpointError, match="best weights are gone"):
        _wander(tmp_path, resume=True)
    assert [line["step"] for line in read_evaluations(tmp_path)] == [1, 2, 3]


def test_best_weights_that_are_gone_or_damaged_are_one_sentence(tmp_path: Path) -> None:
    _wander(tmp_path)
    (newest,) = sorted((tmp_path / "validation").iterdir())[-1:]
    newest.write_bytes(newest.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="safetensors"):
        _wander(tmp_path, resume=True)
    for file in (tmp_path / "validation").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="best weights are gone"):
        _wander(tmp_path, resume=True)


def test_a_lack_of_memory_costs_the_validation_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, images: Any, progress: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(_Line, "count", full)
    task, found = _wander(tmp_path)
    assert (found.keep, found.step, found.curve) == ("last", 9, ())
    assert task.model.training


# -------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train_list": "train.txt", "test_list": "test.txt"}, r"has no validation images; .*data\.val_images"),
        ({"test_fraction": 0.3}, r"data\.val_fraction"),
        (_lists(val_list="test.txt"), "2 of the 2 validation images are test images"),
    ],
)
def test_without_validation_images_of_its_own_nothing_begins(
    folder: Path, tmp_path: Path, data: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        finetune(_masks(folder, tmp_path / "run", data, validation={}))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("validation.every=0", r"validation\.every: must be at least 1, got 0"),
        ("validation.images=0", "at least 1"),
        ("validation.keep=first", "'last' or 'best'"),
        ("validation.metric=iou", "did you mean 'miou'"),
        ("validation.metric=AP50", "AP50 is no score of task: segment; it has miou"),
        ("validation.evry=3", "did you mean 'every'"),
    ],
)
def test_mistakes_in_the_recipe_are_named(folder: Path, tmp_path: Path, override: str, words: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_masks(folder, tmp_path / "run").model_dump_json())
    with pytest.raises(ConfigError, match=words):
        finetune(recipe, [override])
    assert not (tmp_path / "run").exists()


def test_masks_are_no_metric_of_a_detector_of_boxes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mask_AP is of masks; take detector.kind: mask_rcnn"):
        finetune(_boxes(folder, tmp_path / "run", validation={"metric": "mask_AP"}))
    with pytest.raises(ValueError, match="miou is no score of task: detect"):
        _boxes(folder, tmp_path / "run", validation={"metric": "miou"})
    assert not (tmp_path / "run").exists()
