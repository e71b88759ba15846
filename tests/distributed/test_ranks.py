"""The plan says what, the layout says where: the same training run on any number of ranks, under any strategy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.mixture import write_mixture
from tests.distributed.ranks import pretrained
from vitp.commands.pretrain import pretrain
from vitp.train.checkpoint import checkpoint_weights, list_checkpoints
from vitp.train.trackers import read_log


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run on one process that all others must equal."""
    out = recipe.parent / "alone"
    pretrain(recipe, [f"out={out}"])
    return out


def weights(out: Path) -> dict[str, Tensor]:
    return checkpoint_weights(list_checkpoints(out)[-1])


def assert_same_weights(out: Path, expected: Path) -> None:
    """After the last step, within 1e-5."""
    one, other = weights(expected), weights(out)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def assert_same_run(out: Path, expected: Path) -> None:
    """Weights after the last step and every step's loss within 1e-5; the same samples skipped."""
    assert_same_weights(out, expected)
    lines, others = read_log(expected), read_log(out)
    assert [line["step"] for line in others] == [line["step"] for line in lines] == list(range(1, 11))
    for key in ("loss", "grad_norm", "dropped_share"):
        for a, b in zip(lines, others, strict=True):
            assert a.get(key, 0.0) == pytest.approx(b.get(key, 0.0), rel=1e-5, abs=1e-5), (key, a["step"])
    skipped = [sorted((out / "skipped.jsonl").read_text().splitlines()) for out in (expected, out)]
    assert skipped[0] == skipped[1]
    assert len(skipped[0]) >= 2


@pytest.mark.parametrize(
    ("size", "strategy"), [(2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp"), (2, "zero1"), (4, "zero1")]
)
def test_the_same_run_on_any_ranks(recipe: Path, alone: Path, size: int, strategy: str) -> None:
    out = recipe.parent / f"{strategy}{size}"
    pretrained(recipe.parent, size, recipe, [f"out={out}", f"strategy={strategy}"])
    assert_same_run(out, alone)


@pytest.mark.parametrize("path", ["alone>fsdp2>ddp4", "zero4>fsdp2>alone", "ddp2>zero4>zero2"])
def test_continued_on_other_ranks_is_the_same_run(recipe: Path, alone: Path, path: str) -> None:
    """Continued twice from an earlier checkpoint, each time on other ranks under another strategy."""
    out = recipe.parent / path.replace(">", "-")
    for part, first in zip(path.split(">"), (0, 4, 8), strict=True):
        for checkpoint in list_checkpoints(out):
            if int(checkpoint.name.removeprefix("step_")) > first:
                shutil.rmtree(checkpoint)
        name, size = ("auto", 1) if part == "alone" else (part[:-1], int(part[-1]))
        overrides = [f"out={out}", f"strategy={'zero1' if name == 'zero' else name}", "keep_last=9"]
        pretrained(recipe.parent, size, recipe, overrides, resume=first > 0)
        assert [int(c.name.removeprefix("step_")) for c in list_checkpoints(out)] == [4, 8, 10]
    assert_same_run(out, alone)


def test_frozen_parts_stay_frozen_on_ranks(recipe: Path) -> None:
    """A language model that does not train; packs of text alone then have no gradient at all."""
    frozen = ["lr_language_model=0", "warm_start.steps=0", "steps=10"]
    expected = recipe.parent / "frozen"
    pretrain(recipe, [f"out={expected}", *frozen])
    for strategy in ("ddp", "zero1", "fsdp"):
        out = recipe.parent / f"frozen-{strategy}"
        pretrained(recipe.parent, 2, recipe, [f"out={out}", f"strategy={strategy}", *frozen])
        assert_same_run(out, expected)
