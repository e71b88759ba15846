"""The loop's promises: exact schedules, frozen means frozen, non-finite stops, full disks lose nothing."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitp.errors import CheckpointError, OutputError, TrainingError
from vitp.train import checkpoint as checkpoint_module
from vitp.train.average import load_weights
from vitp.train.checkpoint import list_checkpoints, load_model, load_tensors, save_checkpoint
from vitp.train.loop import train
from vitp.train.loop_config import LoopConfig
from vitp.train.optim import (
    CosineSchedule,
    LinearSchedule,
    ParameterGroup,
    PolySchedule,
    ScheduleConfig,
    StepSchedule,
    build_optimizer,
    lr_factor,
)
from vitp.train.task import StepBatch


class Micro:
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: torch.device) -> Micro:
        return self

    def pin_memory(self) -> Micro:
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {"x": self.x, "y": self.y}


class Regression:
    """Least squares on fixed data; `poison` makes one step's target infinite, `cut` splits each step."""

    def __init__(self, poison: int | None = None, cut: int = 1, lr: tuple[float, float] = (0.05, 0.05)) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.poison, self.cut, self.lr = poison, cut, lr

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(f"part{i}", list(self.model[2 * i].named_parameters()), self.lr[i]) for i in range(2)]

    def step_batch(self, step: int) -> StepBatch:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(12, 4, generator=g)
        y = x.sum(1, keepdim=True).sin()
        if step == self.poison:
            y[3] = math.inf
        parts = [Micro(a, b) for a, b in zip(x.chunk(self.cut), y.chunk(self.cut), strict=True)]
        return StepBatch(parts, 12.0, {"samples": 12.0}, [f"data.jsonl:{step}"])

    def where(self, step: int, slot: int) -> str:
        return f"data.jsonl:{step}.{slot}"

    def loss(self, micro: Any) -> tuple[Tensor, dict[str, float]]:
        return (self.model(micro.x) - micro.y).square().sum(), {}


def config(**changes: Any) -> LoopConfig:
    values = {"steps": 20, "warmup": 0.2, "workers": 0, "log_every": 1, "checkpoint_every": 5, "device": "cpu"}
    return LoopConfig(**{**values, "precision": "fp32", **changes})


def test_loss_falls_and_is_the_same_however_a_step_is_cut(tmp_path: Path) -> None:
    weights = []
    for cut in (1, 3, 12):
        task = Regression(cut=cut)
        result = train(task, config(steps=150, weight_decay=0.0), tmp_path / str(cut))
        weights.append(torch.cat([p.detach().flatten() for p in task.model.parameters()]))
        first = json.loads((tmp_path / str(cut) / "log.jsonl").read_text().splitlines()[0])["loss"]
        assert result.loss < 0.3 * first
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-5)


def test_adamw_follows_torch_exactly(tmp_path: Path) -> None:
    """The same steps by hand: clip, schedule and decay in their places."""
    task = Regression()
    train(task, config(steps=10, clip_norm=0.5, weight_decay=0.1, decay_vectors=True), tmp_path)
    ours = [p.detach().clone() for p in task.model.parameters()]
    other = Regression()
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=0.05, weight_decay=0.1)
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * lr_factor(step, 10, 0.2)
        micro = other.step_batch(step).micros[0]
        (other.loss(micro)[0] / 12).backward()
        torch.nn.utils.clip_grad_norm_(other.model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(ours, other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_schedule_warms_up_and_returns_to_zero_in_each_phase() -> None:
    values = [lr_factor(s, 100, 0.1) for s in range(100)]
    assert values[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert values[10] == 1.0
    assert values[55] == pytest.approx(0.5)
    assert 0 < values[99] < 1e-3
    assert lr_factor(0, 100, 5) == pytest.approx(0.2)
    phases = [lr_factor(s, 120, 0.1, (0, 20)) for s in range(120)]
    assert phases[20:] == pytest.approx(values)
    assert phases[:20] == pytest.approx([lr_factor(s, 20, 0.1) for s in range(20)])


def test_zero_learning_rate_freezes(tmp_path: Path) -> None:
    task = Regression(lr=(0.0, 0.05))
    before = task.model[0].weight.detach().clone()
    train(task, config(), tmp_path)
    assert torch.equal(task.model[0].weight, before)
    with pytest.raises(TrainingError, match="every learning rate is 0"):
        train(Regression(lr=(0.0, 0.0)), config(), tmp_path / "none")


def test_vectors_are_decayed_only_when_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    groups = [ParameterGroup("all", list(model.named_parameters()), 0.1)]
    for decay_vectors, expected in ((False, {1: {0.0}, 2: {0.5}}), (True, {1: {0.5}, 2: {0.5}})):
        optimizer = build_optimizer(groups, weight_decay=0.5, betas=(0.9, 0.999), eps=1e-8, decay_vectors=decay_vectors)
        found: dict[int, set[float]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found.setdefault(parameter.ndim, set()).add(group["weight_decay"])
        assert found == expected


def test_non_finite_loss_stops_with_step_samples_and_batch(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the loss is not finite at step 8 \(1 samples, the first at data.jsonl:7\)"
    ):
        train(Regression(poison=7), config(), tmp_path)
    folder = tmp_path / "failed" / "step_00000008"
    assert torch.isinf(load_file(folder / "batch_0.safetensors")["y"]).sum() == 1
    assert json.loads((folder / "samples.json").read_text())["samples"] == ["data.jsonl:7"]
    assert list_checkpoints(tmp_path)[-1].name == "step_00000005"  # what was learned before stays


def test_full_disk_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Regression()
    optimizer = build_optimizer(
        task.parameter_groups(), weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, decay_vectors=False
    )
    save_checkpoint(tmp_path, 5, task.model, optimizer, {}, keep_last=2)
    real = checkpoint_module.save_file

    def full(tensors: dict[str, Tensor], path: Path, **_: Any) -> None:
        real(tensors, path)
        if "optimizer" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(OutputError, match="no space left to write .*step_00000010"):
        save_checkpoint(tmp_path, 10, task.model, optimizer, {}, keep_last=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    train(Regression(), config(steps=20, checkpoint_every=4, keep_last=2), tmp_path)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000016", "step_00000020"]


def test_truncated_and_foreign_weights_are_named(tmp_path: Path) -> None:
    train(Regression(), config(steps=5), tmp_path)
    file = list_checkpoints(tmp_path)[-1] / "model.safetensors"
    tensors = load_tensors(file)
    with pytest.raises(CheckpointError, match=r"'0\.weight' is \[8, 4\] in the file and \[9, 4\] in the model"):
        load_model(nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1)), tensors, file)
    with pytest.raises(CheckpointError, match="left over"):
        load_model(nn.Sequential(nn.Linear(4, 8)), tensors, file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_tensors(file)
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_tensors(tmp_path / "nothing.safetensors")


def test_too_many_unusable_samples_stop_the_run(tmp_path: Path) -> None:
    class Broken(Regression):
        def step_batch(self, step: int) -> StepBatch:
            whole = super().step_batch(step)
            skipped = [{"where": f"a.jsonl:{i}", "reason": "unreadable"} for i in range(6)]
            return StepBatch(whole.micros, whole.weight, whole.counts, whole.samples, skipped)

    with pytest.raises(TrainingError, match=r"24 of 48 samples were unusable so far, see .*skipped\.jsonl"):
        train(Broken(), config(), tmp_path)
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "where": "a.jsonl:0", "reason": "unreadable"}


# ---------------------------------------------------------------------------------------------- schedules and averages


def test_schedules_against_their_formulas() -> None:
    def curve(schedule: ScheduleConfig, warmup: float = 10, start: float | None = None) -> list[float]:
        return [lr_factor(s, 110, warmup, (0,), schedule, start) for s in range(110)]

    after = [s / 100 for s in range(100)]
    assert curve(LinearSchedule(end=0.1))[10:] == pytest.approx([0.1 + 0.9 * (1 - d) for d in after])
    assert curve(PolySchedule(power=0.9))[10:] == pytest.approx([(1 - d) ** 0.9 for d in after])
    assert curve(CosineSchedule(end=0.2))[60] == pytest.approx(0.6)
    steps = curve(StepSchedule(milestones=(0.5, 100), factor=0.1))
    assert [steps[s] for s in (10, 54, 55, 99, 100, 109)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert curve(StepSchedule(milestones=(0.5, 100), factor=0.1))[:10] == pytest.approx(
        [(s + 1) / 10 for s in range(10)]
    )


def test_released_warm_up_bends_the_curve_from_its_first_step() -> None:
    """mmcv: 1e-6 of the curve's own rate at step 0, all of it at step 1500."""
    total, warm, start = 80_000, 1500, 1e-6
    for step in (0, 1, 750, 1499, 1500, 40_000, 79_999):
        cosine = 0.5 * (1 + math.cos(math.pi * step / total))
        share = 1.0 if step >= warm else 1 - (1 - step / warm) * (1 - start)
        found = lr_factor(step, total, warm, (0,), CosineSchedule(under_warmup=True), start)
        assert found == pytest.approx(cosine * share, rel=1e-9)
    assert lr_factor(0, total, warm, (0,), CosineSchedule(), start) == start
    assert lr_factor(1500, total, warm, (0,), CosineSchedule(), start) == 1.0


def test_a_schedules_mistakes_are_named() -> None:
    bad: list[dict[str, Any]] = [
        {"kind": "step", "milestones": [8, 4]},
        {"kind": "cosine", "power": 0.9},
        {"kind": "polly"},
        {"kind": "step", "milestones": []},
    ]
    for schedule in bad:
        with pytest.raises(ValidationError):
            config(schedule=schedule)


def test_position_embeddings_are_exempt_only_when_asked() -> None:
    model = nn.Module()
    for name in ("pos_embed", "cls_token", "level_embed", "weight"):
        model.register_parameter(name, nn.Parameter(torch.zeros(1, 3, 4)))
    model.register_parameter("bias", nn.Parameter(torch.zeros(4)))
    groups = [ParameterGroup("all", [(f"vit.{n}", p) for n, p in model.named_parameters()], 0.1)]
    names = {id(p): n for n, p in model.named_parameters()}
    for decay_positions, expected in (
        (True, {"pos_embed", "cls_token", "level_embed", "weight"}),
        (False, {"weight"}),
    ):
        optimizer = build_optimizer(
            groups, weight_decay=0.5, betas=(0.9, 0.999), eps=1e-8, decay_vectors=False, decay_positions=decay_positions
        )
        decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
        assert decayed == expected


def test_the_average_follows_its_formula_and_takes_the_models_place(tmp_path: Path) -> None:
    task = Regression(lr=(0.05, 0.0))
    train(Regression(lr=(0.05, 0.0)), config(steps=8, checkpoint_every=1, keep_last=8), tmp_path / "plain")
    expected = {name: p.detach().clone() for name, p in Regression().model.named_parameters()}
    for step in range(1, 9):
        weights = load_tensors(tmp_path / f"plain/checkpoints/step_{step:08d}/model.safetensors")
        decay = min(0.8, step / (9 + step))
        expected = {name: decay * expected[name] + (1 - decay) * w for name, w in weights.items()}
    train(task, config(steps=8, ema=0.8), tmp_path / "averaged")
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6)
    newest = list_checkpoints(tmp_path / "averaged")[-1]
    saved = load_tensors(newest / "average.safetensors")
    assert saved.keys() == {"0.weight", "0.bias"}  # the frozen part has none
    raw = load_tensors(tmp_path / "plain/checkpoints/step_00000008/model.safetensors")
    kept = load_tensors(newest / "model.safetensors")
    assert all(torch.equal(kept[name], raw[name]) for name in raw)  # training itself does not see the average
    opened = Regression()
    load_weights(newest, opened.model)
    assert all(torch.equal(p, q) for p, q in zip(opened.model.parameters(), task.model.parameters(), strict=True))
