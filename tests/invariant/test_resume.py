"""Killed at any moment and resumed, a run ends in bit-identical weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.minidata import write_data, write_recipe

from vitp.commands.pretrain import pretrain
from vitp.errors import CheckpointError, OutputError
from vitp.train.checkpoint import list_checkpoints


def command(recipe: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "vitp", "pretrain", str(recipe), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for_step(log: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        if log.is_file() and f'"step": {step}' in log.read_text(encoding="utf-8"):
            return
        time.sleep(0.005)  # polling, not guessing: the kill comes when the log shows the step
    pytest.fail(f"the run ended or stalled before step {step} (exit code {process.poll()})")


def test_sigkill_and_resume_gives_bit_identical_weights(tmp_path: Path) -> None:
    """A real process is killed with SIGKILL twice, the second time after a resume; worker processes included."""
    root = tmp_path / "data"
    write_data(root)
    changes = {"steps": 16, "checkpoint_every": 3, "workers": 1}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = write_recipe(tmp_path / "a", root, tmp_path / "a" / "out", **changes)
    killed = write_recipe(tmp_path / "b", root, tmp_path / "b" / "out", **changes)
    undisturbed = subprocess.run(command(whole), capture_output=True, text=True, env=environment(), check=False)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for step, more in ((5, ()), (11, ("--resume",))):
        process = subprocess.Popen(
            command(killed, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
        )
        wait_for_step(tmp_path / "b" / "out" / "log.jsonl", step, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        done = list_checkpoints(tmp_path / "b" / "out")
        assert done, "no checkpoint survived the kill"
        assert json.loads((done[-1] / "state.json").read_text())["step"] < 18
    finished = subprocess.run(
        command(killed, "--resume"), capture_output=True, text=True, env=environment(), check=False
    )
    assert finished.returncode == 0, finished.stderr
    one, two = (list_checkpoints(tmp_path / x / "out")[-1] for x in "ab")
    assert one.name == two.name == "step_00000018"  # 16 steps and 2 of warm start
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), key
    logs = [[json.loads(line) for line in (tmp_path / x / "out" / "log.jsonl").read_text().splitlines()] for x in "ab"]
    assert [(x["step"], x["loss"]) for x in logs[0]] == [(x["step"], x["loss"]) for x in logs[1]]


class Stop(Exception):
    """Ends a run from outside, as a power cut would."""


class StopAt:
    """Progress receiver that ends the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
        if step == self.step:
            raise Stop

    def say(self, text: str) -> None:
        pass


def test_resume_is_bit_identical_in_bf16_too(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root)
    recipe = write_recipe(tmp_path, root, tmp_path / "a", precision="bf16", steps=8, checkpoint_every=3, log_every=2)
    pretrain(recipe)
    with pytest.raises(Stop):
        pretrain(recipe, [f"out={tmp_path / 'b'}"], progress=StopAt(8))
    pretrain(recipe, [f"out={tmp_path / 'b'}"], resume=True)
    one, two = (load_file(list_checkpoints(tmp_path / x)[-1] / "model.safetensors") for x in "ab")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_existing_output_is_refused_unless_said(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 8)
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=1, warm_start={"steps": 0})
    pretrain(recipe)
    before = sorted(p.name for p in (tmp_path / "out").iterdir())
    with pytest.raises(OutputError, match="--resume .*--overwrite"):
        pretrain(recipe)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == before
    pretrain(recipe, overwrite=True)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("mine")
    with pytest.raises(OutputError, match="not written by vitp"):
        pretrain(recipe, [f"out={foreign}"], overwrite=True)
    assert (foreign / "chapter.txt").read_text() == "mine"


def test_resume_with_another_recipe_or_architecture_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 8)
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=2)
    pretrain(recipe)
    with pytest.raises(CheckpointError, match=r"lr_tower was 0\.001, is now 0\.002"):
        pretrain(recipe, ["lr_tower=0.002"], resume=True)
    with pytest.raises(CheckpointError, match="another architecture"):
        pretrain(recipe, ["model.tower.width=48"], resume=True)
    saved = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "width: 24" in saved


def test_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 8)
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=2)
    first = pretrain(recipe)
    again = pretrain(recipe, resume=True)
    assert again.train.step == first.train.step
    assert again.train.loss == first.train.loss
