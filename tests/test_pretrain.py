"""The main job on miniature data: learning, skipping, freezing, exporting, answering; and what it says about bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tests.minidata import write_data, write_recipe
from vitp import load_backbone
from vitp.errors import ConfigError, DataError, TrainingError, VitpError
from vitp.export import export, fixed_input
from vitp.instruction.tiling import TilingConfig
from vitp.pretrain import load_run, pretrain
from vitp.train.checkpoint import list_checkpoints, load_tensors
from vitp.train.trackers import read_log
from vitp.vlm.generate import Question, answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns to name the colour of a picture."""
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "data", 48)
    recipe = write_recipe(
        folder,
        folder / "data",
        folder / "out",
        steps=260,
        batch_size=8,
        checkpoint_every=1000,
        lr_tower=3e-3,
        lr_projector=3e-3,
        lr_language_model=3e-3,
        log_every=10,
        warm_start={"steps": 30, "batch_size": 8},
    )
    pretrain(recipe)
    return folder / "out"


def test_the_model_learns_to_look(run: Path) -> None:
    """Answers follow the picture, not the question: each colour is named for pictures it never saw."""
    model, tokenizer, _ = load_run(run)
    rng = np.random.default_rng(9)
    colours = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}
    images = {
        name: torch.from_numpy(np.clip(rng.normal(0, 25, (32, 32, 3)) + rgb, 0, 255).astype(np.uint8)).permute(2, 0, 1)
        for name, rgb in colours.items()
    }
    questions = [Question(image, "Which colour is it?") for image in images.values()]
    given = answer(model, tokenizer, questions, tiling=TilingConfig(max_tiles=1), max_new_tokens=16)
    assert given == [f"It is {name}." for name in colours]
    one_by_one = [
        answer(model, tokenizer, [q], tiling=TilingConfig(max_tiles=1), max_new_tokens=16)[0] for q in questions
    ]
    assert one_by_one == given
    assert answer(model, tokenizer, [Question(None, "Name a colour.")], tiling=TilingConfig()) == ["blue"]


def test_the_log_tells_what_a_user_watches(run: Path) -> None:
    log = read_log(run)
    last = log[-1]
    for key in ("loss", "grad_norm", "lr_tower", "lr_projector", "lr_language_model", "samples_per_s", "tokens_per_s"):
        assert key in last, key
    assert last["dropped_share"] == 0.75  # 16 visual tokens a tile: exact
    assert 0 <= last["wait_share"] <= 1
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert list((run / "tensorboard").iterdir())
    provenance = json.loads((run / "provenance.json").read_text())
    assert {"vitp", "torch", "timm", "transformers", "git_commit"} <= provenance.keys()


def test_export_opens_in_timm_and_as_a_backbone(run: Path, tmp_path: Path) -> None:
    result = export(run, path=tmp_path / "backbone.safetensors")
    assert result.max_abs_difference < 1e-5
    model = eval(result.command, {"timm": timm}).eval()  # the printed expression is what a user pastes
    tower = load_run(run)[0].tower.eval()
    x = fixed_input(32)
    torch.testing.assert_close(model.forward_features(x), tower.forward_features(x), rtol=0, atol=1e-6)
    backbone = load_backbone(result.weights)
    maps = backbone(torch.randint(0, 256, (2, 3, 40, 72), dtype=torch.uint8))
    assert [tuple(m.shape) for m in maps] == [(2, 24, 10, 18), (2, 24, 5, 9), (2, 24, 3, 5), (2, 24, 2, 3)]
    card = result.card.read_text()
    assert "arXiv 2509.17562" in card
    assert "not stated: ask the data owner" in card
    with pytest.raises(VitpError, match=r"formats here: timm"):
        export(run, to="timn")
    with pytest.raises(VitpError, match="ends in .safetensors"):
        export(run, path=tmp_path / "backbone.pt")


def test_bad_samples_are_replaced_counted_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root)
    whole = (root / "images" / "003.png").read_bytes()
    (root / "images" / "003.png").write_bytes(whole[: len(whole) // 2])  # the header is fine: found only by decoding
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=12, max_skipped_share=0.5)
    first = pretrain(recipe)
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert first.train.skipped == len(lines) > 0
    assert all(line["sample"] == 3 and line["where"].endswith("train.jsonl:4") for line in lines)
    assert "003.png" in lines[0]["reason"]
    pretrain(recipe, overwrite=True)
    again = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert again == lines  # replaced deterministically


def test_a_missing_image_stops_before_training_or_is_skipped_when_said(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root)
    (root / "images" / "005.png").unlink()
    recipe = write_recipe(tmp_path, root, tmp_path / "out")
    with pytest.raises(DataError, match=r"train\.jsonl:6: .*005\.png") as caught:
        pretrain(recipe)
    assert "data.bad_samples=skip" in str(caught.value)
    assert not (tmp_path / "out").exists()  # nothing half-written
    result = pretrain(recipe, ["data.bad_samples=skip", "steps=8", "max_skipped_share=0.5"])
    assert result.train.step == 10


def test_a_source_without_a_usable_sample_is_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 4)
    for image in (root / "images").iterdir():
        image.write_bytes(image.read_bytes()[:-20])
    (root / "train.jsonl").write_text("\n".join((root / "train.jsonl").read_text().splitlines()[:4]))
    recipe = write_recipe(tmp_path, root, tmp_path / "out", warm_start={"steps": 0})
    with pytest.raises(TrainingError, match="source 'mini': 10 samples in a row are unusable"):
        pretrain(recipe)


def test_frozen_language_model_stays_and_is_said(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 8)
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=4, lr_language_model=0, warm_start={"steps": 0})
    said: list[str] = []
    pretrain(recipe, ["checkpoint_every=2"], say=said.append)
    assert any("language model" in line and "frozen" in line for line in said)
    first, last = (load_tensors(p / "model.safetensors") for p in list_checkpoints(tmp_path / "out"))
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"tower", "projector"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vrl.drop_ratio=1.2", "vrl.drop_ratio"),
        ("modle.tower.depth=3", "did you mean 'model'"),
        ("model.tower.patch_size=5", "patch_size"),
        ("data.sources.0.weight=-1", "data.sources.0.weight"),
        ("loss_weighting=tokens", "did you mean 'token'"),
    ],
)
def test_recipe_mistakes_name_the_key_and_the_fix(tmp_path: Path, override: str, message: str) -> None:
    root = tmp_path / "data"
    write_data(root, 4)
    with pytest.raises(ConfigError, match=message):
        pretrain(write_recipe(tmp_path, root, tmp_path / "out"), [override])
    assert not (tmp_path / "out").exists()


def test_command_line_says_one_sentence_and_exits_with_2(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 4)
    lines = (root / "train.jsonl").read_text().splitlines()
    (root / "train.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    recipe = write_recipe(tmp_path, root, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "vitp", "pretrain", str(recipe)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "train.jsonl:2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_long_samples_are_cut_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 8)
    long = {"image": "images/000.png", "conversations": [
        {"from": "human", "value": "Tell me everything."}, {"from": "gpt", "value": "very " * 400}]}  # fmt: skip
    (root / "train.jsonl").write_text(json.dumps(long) + "\n")
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=3, warm_start={"steps": 0})
    result = pretrain(recipe, ["data.max_length=64"])
    assert result.train.counts["truncated"] == 12
    with pytest.raises(TrainingError, match="visual tokens and their text exceed max_length 17|no answer is left"):
        pretrain(recipe, ["data.max_length=17", f"out={tmp_path / 'b'}"])
