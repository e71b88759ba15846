"""Load, save, load: the same bits in every layout and dtype; and what is written here opens in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.internvldata import PublishedInternVL, write_checkpoint, write_shards
from tests.tinyvlm import SIZE, laid_out_sample, tiny_model
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from vitp.errors import CheckpointError
from vitp.instruction.pack import join
from vitp.vlm.internvl_names import VLM_LAYOUTS, VlmLayout
from vitp.vlm.tokenizer import build_tokenizer
from vitp.vlm.weights import load_vlm, save_vlm


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return build_tokenizer(["a house by the sea"] * 4, 320)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", VLM_LAYOUTS)
def test_load_save_load_is_bit_identical(
    tmp_path: Path, tokenizer: object, layout: VlmLayout, tied: bool, dtype: torch.dtype
) -> None:
    first = write_checkpoint(tmp_path / "first", PublishedInternVL(tied=tied), layout, dtype)
    model = load_vlm(str(first))
    save_vlm(tmp_path / "second", model, tokenizer, layout, dtype=dtype)
    assert_same(stored(first), stored(tmp_path / "second"))
    again = load_vlm(str(tmp_path / "second"))
    assert_same(model.state_dict(), again.state_dict())
    assert again.language_model.config.to_dict() == model.language_model.config.to_dict()


def test_every_path_through_the_layouts_comes_back_to_the_same_bits(tmp_path: Path, tokenizer: object) -> None:
    first = write_checkpoint(tmp_path / "0", PublishedInternVL("qwen3"), "internvl")
    write_shards(first, 2)
    model = load_vlm(str(first))
    for i, layout in enumerate(("internvl_hf", "internvl_hf_prefixed", "internvl")):
        folder = tmp_path / str(i + 1)
        save_vlm(folder, model, tokenizer, layout, shard_bytes=20_000)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {f.name for f in folder.glob("*.safetensors")}
        assert len(set(index["weight_map"].values())) > 2
        model = load_vlm(str(folder))
    assert_same(stored(first), stored(tmp_path / "3"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", ["internvl_hf", "internvl_hf_prefixed"])
def test_what_is_written_opens_in_transformers(
    tmp_path: Path, tokenizer: object, layout: VlmLayout, tied: bool
) -> None:
    model = load_vlm(str(write_checkpoint(tmp_path / "first", PublishedInternVL(tied=tied), "internvl")))
    save_vlm(tmp_path / "hf", model, tokenizer, layout)
    theirs, found = InternVLForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(found.values())
    assert theirs.config.image_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert theirs.config.image_seq_length == 16
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")) == len(tokenizer)
    sample = laid_out_sample(2, 1, 0.0)
    sample.ids[sample.ids == 5] = theirs.config.image_token_id
    normalised = (sample.tiles.float() - model.mean) / model.std
    with torch.no_grad():
        hidden = model.hidden(join([sample], model.tokens_per_tile, SIZE, 0))
        ours = model.language_model.get_output_embeddings()(hidden)
        other = theirs.eval()(input_ids=torch.from_numpy(sample.ids)[None], pixel_values=normalised).logits[0]
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_a_tower_of_another_kind_is_not_written_as_an_internvl(tmp_path: Path, tokenizer: object) -> None:
    with pytest.raises(CheckpointError, match="holds an InternViT, with a class token and layer scale"):
        save_vlm(tmp_path, tiny_model(), tokenizer, "internvl")
    assert not (tmp_path / "config.json").exists()
