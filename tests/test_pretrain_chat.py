"""Template options of a recipe, through a run: what is trained on is what the saved run answers with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.internvldata import PublishedInternVL, write_checkpoint
from tests.minidata import write_data, write_recipe
from vitp.commands.pretrain import load_run, pretrain, recipe_tokenizer, size_rules
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import CheckpointError
from vitp.instruction.chat import ChatFormat
from vitp.instruction.sample import Turn
from vitp.recipes import load_recipe
from vitp.vlm.tokenizer import build_tokenizer

SYSTEM = "Answer with one sentence."


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_data(folder / "data")
    return write_recipe(folder, folder / "data", folder / "out", steps=2, warm_start={"steps": 0})


def test_a_runs_tokenizer_keeps_the_recipes_system_sentence(recipe: Path) -> None:
    said: list[str] = []
    out = pretrain(recipe, [f"data.chat.system={json.dumps(SYSTEM)}"], say=said.append).out
    shown = next(line for line in said if line.startswith("a conversation is shown as"))
    assert f"<|im_start|>system\\n{SYSTEM}<|im_end|>" in shown
    _, tokenizer, _ = load_run(out)
    prompt = ChatFormat(tokenizer).encode_prompt((Turn("user", "Which colour?"),), [])
    text = tokenizer.decode(prompt.ids.tolist())
    assert (
        text
        == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(CheckpointError, match=r"data\.chat\.system changed"):
        pretrain(recipe, [], resume=True)


def test_a_model_built_here_has_no_released_sentence(recipe: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the language model built here.*data\.chat\.released_system: false"):
        pretrain(recipe, ["data.chat.released_system=true", "out=null"])


@pytest.mark.parametrize("change", ["system: Be brief.", "tokenise: parts"])
def test_an_index_measured_with_other_options_does_not_count(recipe: Path, change: str) -> None:
    def settings(*overrides: str) -> Any:
        config = load_recipe(PretrainConfig, recipe, overrides)
        sources = config.data.open_sources()
        return size_rules(config, recipe_tokenizer(config, sources)).settings(sources[0].config)

    assert settings() == settings("data.chat.template=own")
    assert settings() != settings(f"data.chat={{{change}}}")


def test_the_released_setting_from_a_whole_checkpoint(recipe: Path, tmp_path: Path) -> None:
    """ChatML and the sentence of the checkpoint's conversation.py, as the published recipes ask for."""
    folder = write_checkpoint(tmp_path / "InternVL-tiny", PublishedInternVL(tied=True), "internvl")
    build_tokenizer(["It is red.", "Which colour is it?"] * 3, 320).save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text()) | {"template": "internvl2_5"}
    (folder / "config.json").write_text(json.dumps(stated))
    (folder / "conversation.py").write_text(
        "register(Conversation(name='internvl2_5', system_message='我是助手。'))", "utf-8"
    )
    overrides = ["data.chat={template: chatml, released_system: true}", f"out={tmp_path / 'out'}"]
    model = f"model={{vlm: {folder}, tower: {{drop_path: 0.1}}}}"
    out = pretrain(recipe, [*overrides, model]).out
    shutil.rmtree(folder)
    text, _ = ChatFormat(load_run(out)[1]).render((Turn("user", "a"), Turn("assistant", "b")))
    assert text.startswith("<|im_start|>system\n我是助手。<|im_end|>\n<|im_start|>user\na<|im_end|>\n")
