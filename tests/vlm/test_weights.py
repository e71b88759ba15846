"""What is said about checkpoints that cannot be used: one sentence with the file, what was found, and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.internvldata import PublishedInternVL, write_checkpoint, write_shards
from transformers import CLIPConfig, GPT2Config, GPT2LMHeadModel, LlavaConfig

from vitp.commands.pretrain import build_model
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.config import load
from vitp.errors import CheckpointError, ConfigError, VitpError
from vitp.vlm.build import ModelConfig, assemble, tokenizer_of
from vitp.vlm.tokenizer import build_tokenizer
from vitp.vlm.weights import load_vlm, vlm_fields

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "vlm", PublishedInternVL(), "internvl")


def refused(load_it: Callable[[], object], kind: type[VitpError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        load_it()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reconfigure(folder: Path, change: Change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("other", [CLIPConfig(), LlavaConfig()])
def test_another_kind_of_checkpoint(folder: Path, other: Any) -> None:
    other.architectures = [{"clip": "CLIPModel", "llava": "LlavaForConditionalGeneration"}[other.model_type]]
    other.save_pretrained(folder)
    message = refused(lambda: load_vlm(str(folder)))
    assert f"describes {other.architectures[0]}, not an InternVL" in message
    assert "model.tower and model.language_model instead of model.vlm" in message


CONFIGS: list[tuple[Change, str]] = [
    (lambda c: c.pop("llm_config"), "has no llm_config; it is not the config.json of a whole InternVL"),
    (lambda c: c.pop("vision_config"), "has no vision_config"),
    (lambda c: c.update(ps_version="v1"), "ps_version is 'v1', which is not supported: v1 transposes the visual tokens"),
    (lambda c: c.update(select_layer=-4), "select_layer is -4"),
    (lambda c: c.update(force_image_size=64), "force_image_size 64 differs from the tower's own 32"),
    (lambda c: c.update(downsample_ratio=0.4), "downsample_ratio 0.4 is not 1 over a whole number"),
    (lambda c: c["vision_config"].update(qk_normalization=True, norm_type="rms_norm"), "InternVL below 26 B"),
    (lambda c: c["vision_config"].pop("hidden_size"), "vision_config has no hidden_size"),
    (lambda c: c["llm_config"].update(architectures=["InternLM2ForCausalLM"]), "InternLM2, whose code is not part of"),
    (lambda c: c["llm_config"].update(model_type="qwen9"), "transformers builds no language model 'qwen9'"),
    (lambda c: c["llm_config"].update(vocab_size=300), r"'language_model.lm_head.weight' is [320, 32] in the file and [300, 32]"),
    (lambda c: c["llm_config"].update(intermediate_size=64), " in the file and [32, 64] in the model"),
    (lambda c: c["llm_config"].update(num_hidden_layers=3), "nothing in the file is for 'language_model.model.layers.2."),
    (lambda c: c["vision_config"].update(num_hidden_layers=1), "in the file has no place in the model (0 missing, 14 left over)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CONFIGS, ids=[said[:24] for _, said in CONFIGS])
def test_a_configuration_that_cannot_be_used(folder: Path, change: Change, said: str) -> None:
    reconfigure(folder, change)
    message = refused(lambda: load_vlm(str(folder)))
    assert said in message
    assert str(folder) in message


def test_tensors_left_over_and_missing_are_named(folder: Path) -> None:
    retensor(folder, lambda t: t.update({"vision_model.embeddings.mask": torch.zeros(2)}))
    assert "'vision_model.embeddings.mask' in the file has no place" in refused(lambda: load_vlm(str(folder)))
    retensor(folder, lambda t: [t.pop(n) for n in ("vision_model.embeddings.mask", "mlp1.3.bias")])
    assert "nothing in the file is for 'projector.fc2.bias'" in refused(lambda: load_vlm(str(folder)))


def test_a_third_of_a_split_matrix_missing_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, PublishedInternVL(), "internvl_hf")
    retensor(folder, lambda t: t.pop("model.vision_tower.encoder.layer.1.attention.k_proj.weight"))
    assert "nothing in the file is for 'tower.blocks.1.attn.qkv.weight'" in refused(lambda: load_vlm(str(folder)))


def test_an_output_embedding_is_never_made_up(folder: Path) -> None:
    retensor(folder, lambda t: t.pop("language_model.lm_head.weight"))
    assert "has no output embedding ('language_model.lm_head.weight')" in refused(lambda: load_vlm(str(folder)))
    reconfigure(folder, lambda c: c["llm_config"].update(tie_word_embeddings=True))
    assert load_vlm(str(folder)).language_model.config.tie_word_embeddings


def test_tied_in_the_config_but_two_matrices_in_the_file(folder: Path) -> None:
    """As transformers does: equal ones are tied, different ones are kept apart."""
    reconfigure(folder, lambda c: c["llm_config"].update(tie_word_embeddings=True))
    model = load_vlm(str(folder)).language_model
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    embedding = "language_model.model.embed_tokens.weight"
    retensor(folder, lambda t: t.update({"language_model.lm_head.weight": t[embedding].clone()}))
    model = load_vlm(str(folder)).language_model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_damaged_and_missing_files(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (whole[: len(whole) // 2], whole[:5], b"", b"<html>not found</html>"):
        weights.write_bytes(kept)
        assert "model.safetensors: not a complete safetensors file" in refused(lambda: load_vlm(str(folder)))
    weights.write_bytes(whole)
    write_shards(folder, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = refused(lambda: load_vlm(str(folder)))
    assert (
        "model-00002-of-00003.safetensors: this shard is missing (1 of 3 that model.safetensors.index.json names"
        in message
    )
    (folder / "model.safetensors.index.json").write_text("{")
    assert "is no index of shards" in refused(lambda: load_vlm(str(folder)))
    (folder / "model.safetensors.index.json").unlink()
    assert "holds 2 safetensors files and no model.safetensors.index.json" in refused(lambda: load_vlm(str(folder)))
    (folder / "config.json").unlink()
    assert "config.json: no such file" in refused(lambda: load_vlm(str(folder)))
    assert "not a hub id" in refused(lambda: load_vlm(str(tmp_path / "nowhere")))


def test_a_shard_without_what_the_index_promises(folder: Path) -> None:
    write_shards(folder, 2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["mlp1.9.weight"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 'mlp1.9.weight'" in refused(lambda: load_vlm(str(folder)))


def test_a_pickle_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for given in (folder, folder / "pytorch_model.bin"):
        message = refused(lambda given=given: load_vlm(str(given)))
        assert "pytorch_model.bin: a pickle can run any code while it is read, so it is never loaded" in message


def test_weights_and_config_of_two_checkpoints(folder: Path, tmp_path: Path) -> None:
    native = write_checkpoint(tmp_path / "native", PublishedInternVL(), "internvl_hf")
    (folder / "model.safetensors").write_bytes((native / "model.safetensors").read_bytes())
    assert "are not named as its config.json says" in refused(lambda: load_vlm(str(folder)))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert vlm_fields("OpenGVLab/InternVL2_5-1B")["tower"]["image_size"] == 448  # known without a network
    for ask in (lambda: load_vlm("OpenGVLab/InternVL2_5-1B"), lambda: vlm_fields("someone/InternVL-mine")):
        message = refused(ask)
        assert "no such folder here, and the hub could not give it" in message
        assert "download it where there is a network" in message


def recipe(folder: Path, *overrides: str) -> PretrainConfig:
    return load(PretrainConfig, None, ["name=x", "steps=1", "data.sources.0.name=a", "data.sources.0.root=r",
                                       f"model.vlm={folder}", *overrides])  # fmt: skip


def test_a_recipe_takes_the_sizes_from_the_checkpoint(folder: Path) -> None:
    config = recipe(folder, "model.tower.drop_path=0.2").model
    tower = config.tower
    assert (tower.image_size, tower.patch_size, tower.width, tower.depth, tower.heads) == (32, 4, 24, 2, 3)
    assert (tower.drop_path, config.pixel_shuffle, tower.mlp_ratio) == (0.2, 2, pytest.approx(80 / 24))
    with pytest.raises(ConfigError, match=r"vlm .* brings its own; remove language_model.path"):
        recipe(folder, "model.language_model.path=x/y")
    with pytest.raises(ConfigError, match=r"config.json: no such file"):
        recipe(folder.parent)


@pytest.mark.parametrize(
    ("key", "said"), [("tower.heads=4", "heads is 4, but"), ("pixel_shuffle=1", "pixel_shuffle is 1, but")]
)
def test_a_recipe_that_contradicts_the_checkpoint(folder: Path, key: str, said: str) -> None:
    config = recipe(folder, f"model.{key}")
    tokenizer = build_tokenizer(["a"], 320)
    assert said in refused(lambda: build_model(config, tokenizer), ConfigError)


def test_the_same_model_through_a_recipe_and_what_is_said(folder: Path) -> None:
    said: list[str] = []
    tokenizer = build_tokenizer(["a"], 320)
    tokenizer.save_pretrained(folder)
    model = assemble(recipe(folder).model, tokenizer_of(str(folder), said.append), 0, say=said.append)
    assert said == [f"tower, projector and language model are those of {folder}"]
    expected = load_vlm(str(folder)).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_more_tokens_than_embedding_rows(folder: Path) -> None:
    tokenizer = build_tokenizer(["a"], 320)
    tokenizer.add_tokens([f"<{i}>" for i in range(80)])
    message = refused(lambda: assemble(recipe(folder).model, tokenizer, 0))
    assert "and its embedding only 320 rows" in message


def write_language_model(folder: Path, rows: int, special: bool) -> Path:
    from transformers import PreTrainedTokenizerFast

    tokenizer = build_tokenizer(["a"], 320)
    if not special:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        core["added_tokens"] = [t for t in core["added_tokens"] if t["content"].startswith("<|")]
        names = {"<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"}
        kept = [t for t in core["model"]["vocab"] if t not in names]
        core["model"]["vocab"] = {token: i for i, token in enumerate(kept)}
        for added in core["added_tokens"]:
            added["id"] = core["model"]["vocab"][added["content"]]
        from tokenizers import Tokenizer

        template = tokenizer.chat_template
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token="<|im_end|>"
        )
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = PublishedInternVL("llama", tied=True).language_model
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def composed(language_model: Path) -> ModelConfig:
    tower = {
        "architecture": "vit_tiny_patch16_224",
        "image_size": 32,
        "patch_size": 8,
        "width": 24,
        "depth": 1,
        "heads": 3,
    }
    return ModelConfig.model_validate({"tower": tower, "language_model": {"path": str(language_model)}})


def test_parts_put_together_say_what_is_new(tmp_path: Path) -> None:
    rows = len(build_tokenizer(["a"], 320)) - 9
    folder = write_language_model(tmp_path, rows, special=False)
    said: list[str] = []
    tokenizer = tokenizer_of(str(folder), said.append)
    model = assemble(composed(folder), tokenizer, 0, say=said.append)
    assert said[0].startswith(f"tokenizer: 9 tokens are new to {folder}: <img> </img> <IMG_CONTEXT>")
    assert said[1].startswith("language model: 9 embedding rows are new")
    assert said[2:] == [
        f"language model: {folder}",
        "tower: random, drawn from the seed",
        "projector: random, drawn from the seed",
    ]
    weight = model.language_model.get_input_embeddings().weight
    torch.testing.assert_close(weight[rows:], weight[:rows].mean(0).expand(9, -1))
    again = assemble(composed(folder), tokenizer, 0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_language_models_that_cannot_be_used(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["a"], 320)
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "gpt2")
    message = refused(lambda: assemble(composed(tmp_path / "gpt2"), tokenizer, 0))
    assert "GPT2LMHeadModel" in message
    assert "Qwen2, Qwen3 or Llama" in message
    folder = write_language_model(tmp_path / "short", 320, special=True)
    retensor(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    message = refused(lambda: assemble(composed(folder), tokenizer, 0))
    assert "lacks 'model.layers.0.mlp.up_proj.weight'" in message
    (folder / "model.bin").write_bytes(b"x")
    assert "a pickle" in refused(lambda: assemble(composed(folder / "model.bin"), tokenizer, 0))
    assert "no such file" in refused(lambda: assemble(composed(folder / "no.gguf"), tokenizer, 0))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no causal language model can be loaded" in refused(lambda: assemble(composed(folder), tokenizer, 0))
