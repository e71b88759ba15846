"""`vitp ask`: the trained model answers; what cannot be asked is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vitp
from tests.minidata import write_data, write_recipe
from vitp.cli import app
from vitp.commands.pretrain import load_run, pretrain
from vitp.errors import CheckpointError, DataError
from vitp.images.decode import read_rgb
from vitp.vlm.generate import Question, answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    write_data(folder / "data")
    rates = {"lr_tower": 3e-3, "lr_projector": 3e-3, "lr_language_model": 3e-3, "checkpoint_every": 1000}
    return pretrain(write_recipe(folder, folder / "data", folder / "out", steps=60, batch_size=8, **rates)).out


def test_the_answers_are_the_models(run: Path) -> None:
    picture = run.parent / "data" / "images" / "002.png"
    questions = ["Which colour is it?", "Is it red?"]
    given = vitp.ask(run, picture, questions, max_new_tokens=12)
    model, tokenizer, config = load_run(run)
    asked = [Question(read_rgb(picture), text) for text in questions]
    assert given == answer(model, tokenizer, asked, tiling=config.data.tiling, max_new_tokens=12)
    assert given[0].startswith("It is ")
    assert vitp.ask(run, picture, f"<image>\n{questions[0]}", max_new_tokens=12) == given[:1]
    done = CliRunner().invoke(app, ["ask", str(run), str(picture), *questions, "--max-new-tokens", "12", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == {"answers": given}


def test_what_cannot_be_asked_is_said(run: Path, tmp_path: Path) -> None:
    picture = run.parent / "data" / "images" / "002.png"
    with pytest.raises(DataError, match=r"nope\.png: does not exist"):
        vitp.ask(run, run / "nope.png", "What is it?")
    for wrong in (tmp_path, tmp_path / "nowhere", run / "recipe.yaml"):
        with pytest.raises(CheckpointError, match="holds no language model that could be asked.*vitp pretrain"):
            vitp.ask(wrong, picture, "What is it?")
    with pytest.raises(DataError, match="is not an image"):
        vitp.ask(run, run / "recipe.yaml", "What is it?")
