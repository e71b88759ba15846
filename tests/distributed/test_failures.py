"""What goes wrong on one rank ends the run on all, with one sentence that says where and why."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.mixture import write_mixture
from tests.distributed.ranks import Started, free_port, pretrained, run_pretrain
from vitp.commands.pretrain import pretrain
from vitp.train.checkpoint import list_checkpoints

LONG = ["steps=100000", "checkpoint_every=3", "keep_last=2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("failures"))


def wait_until(reached: Callable[[], bool], alive: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not reached():
        assert alive(), "the run ended too early"
        assert time.monotonic() < limit
        time.sleep(0.005)  # polling, not guessing


def newest_step(out: Path) -> int:
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(("size", "victim", "strategy"), [(2, 1, "ddp"), (2, 0, "zero1"), (4, 2, "fsdp")])
def test_a_killed_rank_is_named_and_ends_all(recipe: Path, size: int, victim: int, strategy: str) -> None:
    """SIGKILL, data workers included; the checkpoints before it can be used."""
    out = recipe.parent / f"killed-{victim}"
    started = Started(
        recipe.parent, size, run_pretrain, recipe, [*LONG, f"out={out}", f"strategy={strategy}", "workers=1"]
    )
    dead = started.processes[victim]
    wait_until(lambda: newest_step(out) >= 7, lambda: all(p.is_alive() for p in started.processes))
    assert dead.pid is not None
    os.kill(dead.pid, signal.SIGKILL)
    codes = started.join(30)
    assert codes[victim] == -signal.SIGKILL
    assert all(code not in (0, None, -signal.SIGKILL) for rank, code in enumerate(codes) if rank != victim), codes
    (sentence,) = errors(started.said())
    assert re.fullmatch(rf"error: rank {victim} \(process {dead.pid} on \S+\) died, .* --resume .*", sentence)
    assert "in _pretrain" not in started.said(), (
        "the operation that failed for want of the dead rank needs no traceback"
    )
    for checkpoint in list_checkpoints(out):
        assert json.loads((checkpoint / "state.json").read_text())["step"] % 3 == 0


def test_a_mistake_on_one_rank_is_told_once(recipe: Path) -> None:
    """Ranks started with unlike recipes, without the data, and with another version."""
    out = recipe.parent / "unlike"
    for overrides, expected in (
        (
            [["lr_tower=0.001"], ["lr_tower=0.002"]],
            r"rank 1 on \S+ has lr_tower 0\.002 where rank 0 on \S+ has 0\.001; start all",
        ),
        ([[], ["checkpoint_every=7"]], r"rank 1 on \S+ has checkpoint_every 7 where rank 0 on \S+ has \d+; start all"),
        ([[], ["data.sources.0.root=/nowhere"]], r"rank 1: .*nowhere.*"),
        ([[], ["no_such_key=1"]], r"rank 1: .*no_such_key.*"),
    ):
        given = [[*each, f"out={out}"] for each in overrides]
        started = Started(recipe.parent, 2, run_pretrain, recipe, given, per_rank=True)
        assert started.join() == [2, 2]
        (sentence,) = errors(started.said())
        assert re.match("error: " + expected, sentence), sentence
        assert not out.exists()


def run_with_torch(recipe: Path, overrides: list[str], version: str) -> None:
    from vitp.train import distributed

    real = distributed.provenance
    distributed.provenance = lambda: {**real(), "torch": version}
    run_pretrain(recipe, overrides)


def run_with_gpus(recipe: Path, overrides: list[str], gpus: int) -> None:
    import torch

    torch.cuda.is_available = lambda: gpus > 0
    torch.cuda.device_count = lambda: gpus
    run_pretrain(recipe, overrides)


@pytest.mark.parametrize(
    ("work", "values", "expected"),
    [
        (run_with_torch, ["2.15.0", "2.11.0"], r"rank 1 on \S+ has torch '2\.11\.0' where rank 0 on \S+ has '2\.15\.0'; install"),
        (run_with_gpus, [2, 0], r"rank 1 on \S+ has no GPU of its own: torch sees 0 there and 2 ranks were started; start"),
        (run_with_gpus, [1, 1], r"rank 1 on \S+ has no GPU of its own: torch sees 1 there and 2 ranks"),
    ],
)  # fmt: skip
def test_unlike_machines_are_refused_at_the_start(
    recipe: Path, work: Callable[..., None], values: list[Any], expected: str
) -> None:
    overrides = [f"out={recipe.parent / 'machines'}", "device=auto"]
    started = Started(recipe.parent, 2, work, recipe, overrides, values, per_rank=True)
    assert started.join() == [2, 2], started.said()
    (sentence,) = errors(started.said())
    assert re.match("error: " + expected, sentence), sentence


def poisoned(recipe: Path, overrides: list[str], step: int) -> None:
    """A rank that meets an unreadable disk at a step."""
    from vitp.errors import DataError
    from vitp.instruction.pack import StepBuilder

    real = StepBuilder.step_batch

    def step_batch(self: StepBuilder, at: int) -> Any:
        if at == step:
            raise DataError("the disk cannot be read", "train.jsonl:7")
        return real(self, at)

    StepBuilder.step_batch = step_batch  # type: ignore[method-assign]
    run_pretrain(recipe, overrides)


def test_a_rank_that_cannot_go_on_says_why_and_ends_all(recipe: Path) -> None:
    out = recipe.parent / "poisoned"
    started = Started(recipe.parent, 2, poisoned, recipe, [f"out={out}"], [-1, 5], per_rank=True)
    codes = started.join(60)
    assert 0 not in codes
    assert None not in codes
    assert errors(started.said()) == ["error: rank 1: train.jsonl:7: the disk cannot be read"]


def slow_disk(recipe: Path, overrides: list[str]) -> None:
    """The last checkpoint never gets to the disk; the process is killed meanwhile."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    real = HuggingFaceStorageWriter.write_data

    def write_data(self: Any, plan: Any, planner: Any) -> Any:
        if "step_00000008" in str(self.path) and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, plan, planner)

    HuggingFaceStorageWriter.write_data = write_data
    run_pretrain(recipe, overrides)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_earlier_one(recipe: Path) -> None:
    out = recipe.parent / "writing"
    started = Started(recipe.parent, 2, slow_disk, recipe, [f"out={out}", "keep_last=1"])
    assert started.join(60)[1] == -signal.SIGKILL
    assert len(errors(started.said())) == 1
    assert [path.name for path in list_checkpoints(out)] == ["step_00000004"]
    assert (out / "checkpoints" / ".tmp-step_00000008").is_dir()
    pretrained(recipe.parent, 2, recipe, [f"out={out}"], resume=True)
    assert list_checkpoints(out)[-1].name == "step_00000010"
    assert not list((out / "checkpoints").glob(".tmp-*"))


def test_two_torchrun_nodes_restart_after_a_kill_and_resume(recipe: Path) -> None:
    """Two agents that meet on localhost; a rank is killed, both restart their ranks, which go on from the checkpoint."""
    out, port = recipe.parent / "nodes", free_port()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1",
        "-m", "vitp", "pretrain", str(recipe), f"out={out}", "steps=38", "--resume", "strategy=fsdp",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    wait_until(lambda: newest_step(out) >= 6, lambda: all(agent.poll() is None for agent in agents))
    children = Path(f"/proc/{agents[1].pid}/task/{agents[1].pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    said = [agent.communicate(timeout=120)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert re.search(rf"error: rank \d \(process {children[0]} on \S+\) died", "".join(said))
    assert list_checkpoints(out)[-1].name == "step_00000040"
    alone = recipe.parent / "nodes-alone"
    pretrain(recipe, [f"out={alone}", "steps=38"])
    from tests.distributed.test_ranks import weights

    one, other = weights(alone), weights(out)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4
