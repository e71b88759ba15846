"""Two small runs to export: an InternVL in the small, and one of other families in every part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.minidata import write_data, write_recipe

from vitp.commands.pretrain import pretrain
from vitp.vlm.tokenizer import build_tokenizer

TOWER = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "drop_path": 0.1}
SMALL = {"width": 32, "depth": 1, "heads": 4, "kv_heads": 2, "mlp_width": 48, "vocabulary": 320}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InternViT and a Qwen2 with tied embeddings, pixel shuffle of 2, several tiles an image."""
    folder = tmp_path_factory.mktemp("intern")
    write_data(folder / "data", 8)
    model = {
        "tower": {"architecture": "vit_intern300m_patch14_448", **TOWER, "mean": [0.5, 0.4, 0.3]},
        "pixel_shuffle": 2,
        "language_model": SMALL,
    }
    recipe = write_recipe(folder, folder / "data", folder / "out", steps=2, lr_tower=0.05, model=model)
    pretrain(recipe, ["data.sources.0.licence=CC0", "data.sources.0.modality=colour | noise"])
    return folder / "out"


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another family in every part: a ViT with a final norm and no layer scale, and a Llama with a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("other")
    write_data(folder / "data", 8)
    tokenizer = build_tokenizer(["Which colour is it?"] * 3, 320)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)).save_pretrained(
        folder / "llama"
    )
    tokenizer.save_pretrained(folder / "llama")
    (folder / "llama" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n", encoding="utf-8")
    model = {
        "tower": {"architecture": "vit_tiny_patch16_224", **TOWER},
        "pixel_shuffle": 1,
        "language_model": {"path": str(folder / "llama")},
    }
    recipe = write_recipe(
        folder, folder / "data", folder / "out", steps=1, warm_start={"steps": 0}, lr_language_model=0, model=model
    )
    pretrain(recipe)
    return folder / "out"
