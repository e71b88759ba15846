"""bf16 weights with fp32 copies: nothing is lost between steps, in checkpoints, or on resume."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.minidata import write_data, write_recipe
from torch import nn

from vitp.commands.pretrain import load_run, pretrain
from vitp.errors import TrainingError
from vitp.train.checkpoint import list_checkpoints
from vitp.train.optim import ParameterGroup, build_optimizer, masters_of, to_bf16_weights
from vitp.train.trackers import read_log


def optimizer_of(model: nn.Module, *, master: bool) -> torch.optim.AdamW:
    groups = [ParameterGroup("all", list(model.named_parameters()), 1e-5)]
    masters = to_bf16_weights(model) if master else None
    optimizer = build_optimizer(
        groups, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8, decay_vectors=True, masters=masters
    )
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    return optimizer


def test_copies_move_as_fp32_weights_do_and_small_updates_are_not_lost() -> None:
    """Against torch's own AdamW on fp32 weights with the same gradients, to 1e-7; bf16 alone would stand still."""
    torch.manual_seed(0)
    exact = nn.Linear(8, 4)
    rounded = copy.deepcopy(exact)
    start = rounded.weight.detach().clone()
    optimizers = [optimizer_of(exact, master=False), optimizer_of(rounded, master=True)]
    assert rounded.weight.dtype == torch.bfloat16
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for model, optimizer in zip((exact, rounded), optimizers, strict=True):
            generator.manual_seed(step)
            for parameter in model.parameters():
                gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
                parameter.grad = gradient.float()
            optimizer.step()
    masters = masters_of(optimizers[1])
    for parameter, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        torch.testing.assert_close(masters[other], parameter.detach(), rtol=0, atol=1e-7)
        assert torch.equal(other, masters[other].bfloat16())
    moved = (masters[rounded.weight] - start).abs()
    assert 0 < float(moved.max()) < 1e-3


def test_gradients_of_many_micro_batches_are_added_in_fp32() -> None:
    model = nn.Linear(4, 1, bias=False)
    optimizer_of(model, master=True)
    for _ in range(300):
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.flatten().tolist() == [300.0] * 4  # bf16 cannot count beyond 256


def runs(tmp_path: Path, **changes: object) -> Path:
    root = tmp_path / "data"
    write_data(root)
    settings = {"steps": 6, "checkpoint_every": 2, "log_every": 1, "precision": "bf16", "weights": "bf16_master"}
    return write_recipe(tmp_path, root, tmp_path / "out", **{**settings, **changes})


def test_a_resumed_run_equals_an_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    recipe = runs(tmp_path)
    pretrain(recipe, [f"out={tmp_path / 'a'}"])
    pretrain(recipe, [f"out={tmp_path / 'b'}"])
    checkpoints = list_checkpoints(tmp_path / "b")
    for name in checkpoints[-1].iterdir():
        name.unlink()
    checkpoints[-1].rmdir()
    pretrain(recipe, [f"out={tmp_path / 'b'}"], resume=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, two = (load_file(list_checkpoints(tmp_path / x)[-1] / name) for x in "ab")
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
        assert {t.dtype for t in one.values()} == {torch.float32}
    weights = load_file(list_checkpoints(tmp_path / "a")[-1] / "model.safetensors")
    assert any(not torch.equal(t, t.bfloat16().float()) for t in weights.values())  # more than bf16 can hold
    model, _, _ = load_run(tmp_path / "a")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_losses_are_near_those_of_autocast_and_frozen_weights_stay_exact(tmp_path: Path) -> None:
    recipe = runs(tmp_path, lr_tower=0)
    losses = {}
    for weights in ("bf16_master", "fp32"):
        out = tmp_path / weights
        pretrain(recipe, [f"out={out}", f"weights={weights}"])
        losses[weights] = [line["loss"] for line in read_log(out)]
    assert losses["bf16_master"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16_master"] != losses["fp32"]
    towers = [load_file(list_checkpoints(tmp_path / w)[-1] / "model.safetensors") for w in losses]
    for name, tensor in towers[0].items():
        if name.startswith("tower."):
            assert torch.equal(tensor, towers[1][name]), name


def test_copies_are_for_bf16(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="goes with bf16"):
        pretrain(runs(tmp_path, precision="fp32"))
