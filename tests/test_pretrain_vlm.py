"""`vitp pretrain` from a whole InternVL checkpoint: a run that is saved, killed, resumed and opened without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.internvldata import PublishedInternVL, write_checkpoint
from tests.minidata import write_data, write_recipe
from vitp.commands.index import index
from vitp.commands.pretrain import load_run, pretrain
from vitp.train.checkpoint import list_checkpoints, load_tensors
from vitp.vlm.tokenizer import build_tokenizer
from vitp.vlm.weights import load_vlm


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "InternVL-tiny", PublishedInternVL(tied=True), "internvl", torch.bfloat16)
    build_tokenizer(["It is red.", "Which colour is it?"] * 3, 320).save_pretrained(folder)
    return folder


def test_a_run_starts_from_the_checkpoint_and_no_longer_needs_it(tmp_path: Path, checkpoint: Path) -> None:
    write_data(tmp_path / "data", 12)
    said: list[str] = []
    for out in ("whole", "cut"):
        recipe = write_recipe(
            tmp_path, tmp_path / "data", tmp_path / out, model={"vlm": str(checkpoint), "tower": {"drop_path": 0.1}},
            warm_start={"steps": 0}, lr_tower=0.0, checkpoint_every=2, keep_last=9,
        )  # fmt: skip
        pretrain(recipe, say=said.append)
        recipe.rename(tmp_path / f"{out}.yaml")
    assert f"tower, projector and language model are those of {checkpoint}" in said
    assert index(tmp_path / "cut.yaml").failed == {}
    start = load_vlm(str(checkpoint))
    model, tokenizer, config = load_run(tmp_path / "whole")
    assert (config.model.tower.image_size, config.model.tower.depth, config.model.pixel_shuffle) == (32, 2, 2)
    assert len(tokenizer) <= 320
    for name, tensor in start.tower.state_dict().items():  # frozen: still the checkpoint's
        assert torch.equal(tensor, model.tower.state_dict()[name]), name
    moved = model.language_model.model.embed_tokens.weight - start.language_model.model.embed_tokens.weight
    assert 0 < moved.abs().max() < 0.1
    shutil.rmtree(checkpoint)
    for last in list_checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(last)
    pretrain(tmp_path / "cut" / "recipe.yaml", resume=True)
    whole, cut = (load_tensors(list_checkpoints(tmp_path / run)[-1] / "model.safetensors") for run in ("whole", "cut"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name
