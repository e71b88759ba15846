"""From a published checkpoint through a run and out again: what did not train is bit for bit what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tests.internvldata import PublishedInternVL, write_checkpoint
from tests.minidata import write_data, write_recipe

from vitp.commands.export import export
from vitp.commands.pretrain import pretrain
from vitp.train.checkpoint import load_tensors
from vitp.vlm.tokenizer import build_tokenizer
from vitp.vlm.weights import load_vlm


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_run_exports_what_it_started_from(tmp_path: Path, tied: bool) -> None:
    start = write_checkpoint(tmp_path / "InternVL-tiny", PublishedInternVL(tied=tied), "internvl", torch.bfloat16)
    build_tokenizer(["It is red.", "Which colour is it?"] * 3, 320).save_pretrained(start)
    (start / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    write_data(tmp_path / "data", 4)
    recipe = write_recipe(
        tmp_path, tmp_path / "data", tmp_path / "run", model={"vlm": str(start)}, warm_start={"steps": 0}, steps=1,
        lr_tower=0.0, lr_projector=0.0, lr_language_model=1e-30,
    )  # fmt: skip
    pretrain(recipe)
    whole = export(tmp_path / "run", to="hf", dtype="bf16")
    assert "- whole model: `InternVL-tiny` (licence stated there: mit)" in whole.card.read_text(encoding="utf-8")
    native, found = transformers.InternVLForConditionalGeneration.from_pretrained(
        whole.weights, output_loading_info=True
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert native.dtype == torch.bfloat16
    before, after = load_vlm(str(start)).state_dict(), load_vlm(str(whole.weights)).state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    tower = export(tmp_path / "run", to="vitp", dtype="bf16")
    original = load_tensors(start / "model.safetensors")
    for name, tensor in load_tensors(tower.weights).items():
        assert torch.equal(tensor, original[name]), name
