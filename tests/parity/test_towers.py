"""Towers of other families through the same contract: uint8 tiles in, patch features [T, P, C] out, no prefix tokens left.

SigLIP and SigLIP2 differ from InternViT in all that the contract covers: no class token, a final norm, no layer scale,
another mean and std, other names and another activation. The reference is transformers' own vision model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.internvldata import PublishedInternVL
from tests.tinyvlm import SIZE, VOCABULARY, laid_out_sample
from transformers import (
    InternVLVisionConfig,
    InternVLVisionModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vitp.errors import CheckpointError
from vitp.instruction.pack import join
from vitp.vlm.build import ModelConfig, assemble, load_tower
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.tokenizer import build_tokenizer

PATCH, WIDTH = 8, 24
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "patch_size": PATCH,
}
TILES = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def randomise(model: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


def composed(weights: Path | None, architecture: str = "vit_so400m_patch16_siglip_256", **tower: object) -> ModelConfig:
    fields = {"architecture": architecture, "image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "depth": 2,
              "heads": 3, "mlp_ratio": 4, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "drop_path": 0.1,
              "weights": None if weights is None else str(weights), **tower}  # fmt: skip
    language = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 48}
    return ModelConfig.model_validate({"tower": fields, "pixel_shuffle": 2, "language_model": language})


def built(config: ModelConfig, said: list[str] | None = None) -> VisionLanguageModel:
    tokenizer = build_tokenizer(["a"], VOCABULARY)
    return assemble(config, tokenizer, 0, say=(said if said is not None else []).append).eval()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiglipVisionModel, Path]:
    folder = tmp_path_factory.mktemp("siglip")
    model = randomise(SiglipVisionModel(SiglipVisionConfig(image_size=SIZE, **SIZES)))
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_siglip_of_transformers(siglip: tuple[SiglipVisionModel, Path]) -> None:
    theirs, folder = siglip
    said: list[str] = []
    model = built(composed(folder), said)
    features = model.encode(TILES)
    expected = theirs((TILES.float() / 255 - 0.5) / 0.5).last_hidden_state
    assert features.shape == (3, 16, WIDTH)
    assert model.tokens_per_tile == 4
    torch.testing.assert_close(features, expected, **TOLERANCE)
    assert any("tensors behind the ViT are not needed" in line and "head." in line for line in said)
    assert len(model.depth_modules) == 4  # stochastic depth finds its places in this family too


@torch.no_grad()
def test_siglip2_with_its_linear_patch_embedding(tmp_path: Path) -> None:
    """The NaFlex checkpoints, at the grid that their position embeddings were made for."""
    config = Siglip2VisionConfig(num_patches=(SIZE // PATCH) ** 2, **SIZES)
    theirs = randomise(Siglip2VisionModel(config))
    theirs.save_pretrained(tmp_path)
    model = built(composed(tmp_path))
    pixels = (TILES.float() / 255 - 0.5) / 0.5
    side = SIZE // PATCH
    patches = pixels.view(3, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(3, side * side, -1)
    expected = theirs(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(3, side * side, dtype=torch.int32),
        spatial_shapes=torch.tensor([[side, side]] * 3),
    ).last_hidden_state
    torch.testing.assert_close(model.encode(TILES), expected, **TOLERANCE)


def test_a_siglip_trains_through_the_whole_model(siglip: tuple[SiglipVisionModel, Path]) -> None:
    model = built(composed(siglip[1])).train()
    sample = laid_out_sample(3, 0, 0.5, tokens_per_tile=4)
    for ids in (sample.ids, sample.targets):
        ids %= model.language_model.config.vocab_size
    model(join([sample], model.tokens_per_tile, SIZE, 4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert model.tower.pos_embed.grad.abs().max() > 0


INTERN = {"architecture": "vit_intern300m_patch14_448"}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["file with a prefix", "file without", "transformers folder", "timm file"])
def test_an_internvit_from_each_place(tmp_path: Path, kind: str) -> None:
    config = InternVLVisionConfig(image_size=SIZE, attention_bias=True, **SIZES)
    theirs = randomise(InternVLVisionModel(config))
    theirs.save_pretrained(tmp_path)
    place = tmp_path
    if kind != "transformers folder":
        from vitp.backbone.layouts import from_timm, to_timm

        timm_names = to_timm(load_file(tmp_path / "model.safetensors"), "transformers")
        place = tmp_path / "vit.safetensors"
        prefix = "vision_model." if kind == "file with a prefix" else ""
        renamed = timm_names if kind == "timm file" else from_timm(timm_names, "internvit", prefix)
        save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, place)
    model = built(composed(place, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], **INTERN))
    expected = theirs(TILES.float() / 255).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.encode(TILES), expected, **TOLERANCE)


def test_a_tower_of_another_architecture_names_the_tensor(
    siglip: tuple[SiglipVisionModel, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: belongs to another architecture: .* 'embeddings|post_layernorm"
    ):
        built(composed(siglip[1], **INTERN))
    with pytest.raises(
        CheckpointError, match=r"'embeddings.position_embedding.weight' is \[1, 16, 24\] in the file and \[1, 64, 24\]"
    ):
        built(composed(siglip[1], image_size=2 * SIZE))
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match="these are not the tensors of a ViT of timm, InternVL or SigLIP"):
        built(composed(tmp_path / "resnet.safetensors"))


def test_an_activation_of_another_kind_is_said(siglip: tuple[SiglipVisionModel, Path]) -> None:
    said: list[str] = []
    built(composed(siglip[1], architecture="vit_base_patch16_siglip_224"), said)
    assert any("was trained with gelu_pytorch_tanh, this architecture computes gelu" in line for line in said)
    said.clear()
    built(composed(siglip[1]), said)
    assert not any("gelu" in line for line in said)


def test_the_tower_of_a_whole_internvl(tmp_path: Path) -> None:
    """model.tower.weights may be the whole checkpoint: its tower is taken, the rest is said to be left out."""
    published = PublishedInternVL()
    save_file(published.tensors(), tmp_path / "model.safetensors")
    config = composed(None, patch_size=4, mlp_ratio=80 / 24, **INTERN)
    tower = config.tower.create()
    said: list[str] = []
    load_tower(tower, tmp_path / "model.safetensors", said.append)
    assert torch.equal(tower.pos_embed, published.vision_model.embeddings.position_embedding)
    assert "not needed" in said[0]
