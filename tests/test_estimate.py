"""`vitp estimate`, what training says before its first step, and utilisation in the log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import vitp
from tests.minidata import write_data, write_recipe
from tests.tinyvlm import paper_model
from vitp.cli import app, main
from vitp.commands import preflight
from vitp.commands.estimate import estimate, recipe_sizes
from vitp.commands.index import index
from vitp.commands.pretrain import pretrain
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import ConfigError
from vitp.progress import TrainingProgress
from vitp.recipes import load_recipe
from vitp.train.task import StepBatch
from vitp.train.trackers import Tracker, read_log


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_data(tmp_path / "data", 12)
    return write_recipe(tmp_path, tmp_path / "data", tmp_path / "out")


def test_the_paper_recipe_without_data_or_checkpoint() -> None:
    found = vitp.estimate("remote_sensing")
    assert found.mixture == "assumed"
    assert "none of the recipe's data is here" in found.mixture_told
    assert found.parameters == pytest.approx(938.2e6, rel=1e-4)  # what the checkpoint's page says
    assert found.sample.tiles == pytest.approx(3.91)
    assert found.sample.tflop == pytest.approx(9.32, rel=0.01)
    assert found.speedup == pytest.approx(1.22, abs=0.01)
    by_name = {part.name: part for part in found.parts}
    assert by_name["tower"].tflop / found.sample.tflop == pytest.approx(0.89, abs=0.01)
    assert sum(part.tflop for part in found.parts) == pytest.approx(found.sample.tflop)
    assert [gpu.gpu for gpu in found.gpus] == ["a40", "a100", "h100", "h200"]
    a40 = found.gpus[0]
    assert a40.hours == pytest.approx(8000 * 128 * found.sample.tflop / (149.7 * 0.4) / 3600)
    assert a40.largest_pack is not None
    assert found.paper is not None
    assert found.paper.utilisation == pytest.approx(8000 * 128 * found.sample.tflop / (23 * 3600 * 8 * 149.7))


def test_gpus_share_the_hours_and_efficiency_divides_them() -> None:
    one = estimate("medical", gpu="h100", efficiency=0.5).gpus[0]
    eight = estimate("medical", gpu="h100", gpus=8, efficiency=0.25).gpus[0]
    assert eight.hours == pytest.approx(one.hours / 4)
    assert eight.samples_per_s == pytest.approx(4 * one.samples_per_s)


def test_small_gpus_compute_again_what_they_cannot_keep() -> None:
    small, large = (estimate("remote_sensing", gpu=gpu).gpus[0] for gpu in ("l4", "h100"))
    assert large.checkpointing == "none"
    assert small.checkpointing == "full"
    plain = estimate("remote_sensing", ["checkpointing=none"], gpu="l4").gpus[0]
    assert small.hours > 1.25 * plain.hours
    assert small.largest_pack is not None
    assert small.largest_pack["tiles"] > 4 * (plain.largest_pack or {"tiles": 0})["tiles"]


def test_a_given_sample_and_model_cost_what_was_counted() -> None:
    found = estimate(
        "remote_sensing", ["vrl.preset=none"], tiles=4, text_tokens=200, supervised_tokens=70, model=paper_model()
    )
    assert found.sample.tflop == pytest.approx(11.589, rel=2e-3)
    assert found.speedup == 1.0
    assert found.parameters == pytest.approx(802.3e6, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu": "h300"}, "known are a40, a100"),
        ({"gpus": 0}, "gpus must be at least 1"),
        ({"efficiency": 40.0}, r"share of the dense peak in \(0, 1\], got 40"),
        ({"text_tokens": 9.0}, "add --tiles"),
        ({"tiles": -1.0}, "must not be negative"),
        ({"tiles": 1.0, "text_tokens": 5.0, "supervised_tokens": 9.0}, "no more supervised than text"),
        ({"tiles": 0.0, "text_tokens": 0.0}, "costs nothing"),
    ],
)
def test_arguments_without_sense_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        estimate("remote_sensing", **options)  # type: ignore[arg-type]


def test_sizes_come_from_records_and_from_the_index_once_there_is_one(recipe: Path, tmp_path: Path) -> None:
    overrides = [f"data.index.folder={tmp_path / 'index'}", "vrl.preset=none"]
    config = load_recipe(PretrainConfig, recipe, overrides)
    sampled = recipe_sizes(config, 16)
    assert (sampled.origin, sampled.told) == ("sample", "from 13 records of the source")
    report = index(recipe, overrides)
    indexed = recipe_sizes(config, 16)
    assert (indexed.origin, indexed.told) == ("index", "from the index of the source")
    work, source = indexed.sample(config.vrl), report.sources[0]
    assert work == sampled.sample(config.vrl)
    assert work.tokens * source.samples == pytest.approx(source.text_tokens + source.visual_tokens)
    assert work.supervised * source.samples == pytest.approx(source.supervised_tokens)
    assert work.kept * source.samples == pytest.approx(source.visual_tokens)


def test_the_command_prints_a_table_or_one_json_object(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = CliRunner().invoke(app, ["estimate", "remote_sensing", "--gpus", "8"])
    assert shown.exit_code == 0
    for text in (
        "tower",
        "TFLOP without VRL",
        "optimiser states",
        "8 x H200",
        "largest pack that fits",
        "23 h on 8 A40",
    ):
        assert text in shown.stdout
    shown = CliRunner().invoke(app, ["estimate", str(recipe), "--gpu", "a40", "--json"])
    assert shown.exit_code == 0
    found = json.loads(shown.stdout)
    assert found["mixture"] == "sample"
    assert found["gpus"][0]["gpu"] == "a40"
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"])
    monkeypatch.setattr(sys, "argv", ["vitp", "estimate", str(recipe), "--gpu", "x"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


def test_training_says_what_a_step_costs(recipe: Path, tmp_path: Path) -> None:
    said: list[str] = []
    pretrain(recipe, ["steps=2"], say=said.append)
    line = next(text for text in said if text.startswith("an average sample"))
    assert "TFLOP" in line
    assert "this machine" in line
    lines = read_log(tmp_path / "out")
    assert all(entry["tflops_per_s"] > 0 and "mfu" not in entry for entry in lines)


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 1.4 MB, as far as the estimate can tell; nothing is ever computed on it."""
    monkeypatch.setattr(preflight, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(preflight, "usable_memory", lambda _: 1_400_000)
    monkeypatch.setattr(preflight, "uses_bf16", lambda *_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a small GPU")


@pytest.mark.usefixtures("small_gpu")
def test_packs_too_large_for_the_gpu_are_refused_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_tiles_per_pack 64 .* a small GPU has .* set max_tiles_per_pack=\d"):
        pretrain(recipe, ["max_tiles_per_pack=64", "batch_size=64"])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_gpu")
def test_bounds_left_out_are_lowered_and_said(recipe: Path, tmp_path: Path) -> None:
    said: list[str] = []
    pretrain(recipe, ["steps=1", "batch_size=64"], say=said.append)
    line = next(text for text in said if text.startswith("packs are bounded by what a small GPU holds"))
    assert int(line.split("holds: ")[1].split()[0]) < 64
    saved = load_recipe(PretrainConfig, tmp_path / "out" / "recipe.yaml")
    assert saved.max_tiles_per_pack == 64  # the recipe stays what it was


def test_utilisation_is_work_over_time_and_peak(tmp_path: Path) -> None:
    batch = StepBatch(micros=[], weight=1.0, counts={"samples": 4.0, "tflop": 30.0})
    for name, peak in (("known", 100e12), ("unknown", None)):
        tracker = Tracker(tmp_path / name, 0, 2, 2, {}, peak)
        for step in (1, 2):
            tracker.step(step, {"loss": 1.0, "lr_factor": 1.0}, batch, wait=0.25, busy=0.75)
        tracker.close()
    lines = read_log(tmp_path / "known")
    assert [(entry["tflops_per_s"], entry["mfu"]) for entry in lines] == [(30.0, 0.3), (30.0, 0.3)]
    assert "mfu" not in read_log(tmp_path / "unknown")[0]
    shown: list[str] = []
    TrainingProgress(lambda _, __, text: shown.append(text), shown.append).update(2, 2, lines[-1])
    assert "TFLOP/s 30" in shown[0]
    assert "MFU 30%" in shown[0]
