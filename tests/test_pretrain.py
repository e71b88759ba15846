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
from vitp.commands.export import export, fixed_input
from vitp.commands.pretrain import load_run, pretrain
from vitp.errors import ConfigError, DataError, TrainingError, VitpError
from vitp.instruction.tiling import TilingConfig
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
        steps=340,
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
    colours = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "white": (235, 235, 235)}
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


def test_frozen_language_model_with_text_only_packs_still_trains(tmp_path: Path) -> None:
    """A pack without images reaches no trained part then; it must not stop the run."""
    root = tmp_path / "data"
    write_data(root, 4)
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=3, lr_language_model=0, warm_start={"steps": 0})
    assert pretrain(recipe, ["max_samples_per_pack=1"]).train.step == 3
    with pytest.raises(ConfigError, match="warm_start trains the language model on text, but lr_language_model is 0"):
        pretrain(recipe, ["warm_start.steps=2", f"out={tmp_path / 'b'}"])


def test_a_mistake_met_in_a_worker_is_one_sentence(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 4)
    for image in (root / "images").iterdir():
        image.write_bytes(image.read_bytes()[:-20])
    (root / "train.jsonl").write_text("\n".join((root / "train.jsonl").read_text().splitlines()[:4]))
    recipe = write_recipe(tmp_path, root, tmp_path / "out", warm_start={"steps": 0}, workers=1)
    with pytest.raises(TrainingError) as caught:
        pretrain(recipe)
    assert str(caught.value).startswith("source 'mini': 10 samples in a row are unusable")
    assert "Traceback" not in str(caught.value)


def test_malformed_boxes_are_replaced_as_the_check_says(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 12)
    lines = (root / "train.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    record["conversations"][1]["value"] = "<ref>it</ref><box>[[900, 1, 2]]</box>"
    (root / "train.jsonl").write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]))
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=12, max_skipped_share=0.5)
    pretrain(recipe, ["data.bad_samples=skip"])
    listed = [json.loads(x) for x in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert listed
    assert {line["where"].rsplit(":", 1)[1] for line in listed} == {"2"}


def test_a_language_model_from_a_folder_trains_and_the_run_needs_the_folder_no_more(tmp_path: Path) -> None:
    """A Llama written in transformers' own layout; also with weights given for the tower."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    from vitp.vlm.tokenizer import build_tokenizer

    root = tmp_path / "data"
    write_data(root, 8)
    tokenizer = build_tokenizer(["It is red. Which colour is it?"] * 5, 320)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(3)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    llama.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    recipe = write_recipe(tmp_path, root, tmp_path / "out", steps=2, warm_start={"steps": 0})
    first = [f"model.language_model.path={tmp_path / 'llama'}", "lr_language_model=0"]
    pretrain(recipe, first)
    model, _, _ = load_run(tmp_path / "out")
    for name, tensor in llama.state_dict().items():
        assert torch.equal(model.language_model.state_dict()[name], tensor), name
    exported = export(tmp_path / "out", path=tmp_path / "tower.safetensors")
    shutil.rmtree(tmp_path / "llama")
    load_run(tmp_path / "out")
    second = [f"model.tower.weights={exported.weights}", f"out={tmp_path / 'second'}"]
    pretrain(recipe, [*second, "lr_tower=0"])
    exported.weights.unlink()
    again, _, _ = load_run(tmp_path / "second")
    for one, other in zip(model.tower.parameters(), again.tower.parameters(), strict=True):
        assert torch.equal(one, other)


def test_pickled_language_models_are_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from vitp.errors import CheckpointError
    from vitp.vlm.tiny import load_language_model

    LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4).save_pretrained(
        tmp_path
    )
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no causal language model can be loaded"):
        load_language_model(str(tmp_path), 100)


def test_overwrite_deletes_only_what_vitp_made(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_data(root, 4)
    mine = tmp_path / "mine"
    mine.mkdir()
    recipe = write_recipe(mine, root, mine, steps=1)
    for way in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(VitpError, match="not written by vitp"):
            pretrain(recipe, **way)
    assert recipe.is_file()
    out = tmp_path / "out"
    pretrain(recipe, [f"out={out}"])
    with pytest.raises(VitpError, match="nope.safetensors"):
        pretrain(recipe, [f"out={out}", f"model.tower.weights={tmp_path / 'nope.safetensors'}"], overwrite=True)
    assert list_checkpoints(out), "a refused recipe must not cost the old run"
