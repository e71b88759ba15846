"""Names and shapes of the same ViT in other libraries, at the real sizes and both ways."""

from __future__ import annotations

import pytest
import timm
import torch
from transformers import InternVLVisionConfig, InternVLVisionModel, SiglipVisionConfig, SiglipVisionModel

from vitp.backbone.layouts import LAYOUTS, Layout, from_timm, layout_of, names_of, place_of, to_timm
from vitp.errors import CheckpointError


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def intern300m() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return timm.create_model("vit_intern300m_patch14_448", num_classes=0, global_pool="").state_dict()


def test_internvit_300m_has_transformers_names_and_shapes(intern300m: dict[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        theirs = InternVLVisionModel(InternVLVisionConfig(attention_bias=True)).state_dict()
    assert shapes(from_timm(intern300m, "transformers")) == shapes(theirs)


def test_siglip_has_transformers_names_and_shapes() -> None:
    with torch.device("meta"):
        ours = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, global_pool="").state_dict()
        theirs = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False)).state_dict()
    assert shapes(from_timm(ours, "siglip")) == shapes(theirs)


def test_internvit_300m_has_the_published_names(intern300m: dict[str, torch.Tensor]) -> None:
    found = shapes(from_timm(intern300m, "internvit", "vision_model."))
    assert len(found) == 4 + 24 * 14
    assert found["vision_model.embeddings.class_embedding"] == (1, 1, 1024)
    assert found["vision_model.embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert found["vision_model.embeddings.position_embedding"] == (1, 1025, 1024)
    assert found["vision_model.encoder.layers.23.attn.qkv.weight"] == (3072, 1024)
    assert found["vision_model.encoder.layers.0.ls2"] == (1024,)
    assert found["vision_model.encoder.layers.7.mlp.fc2.bias"] == (1024,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_go_there_and_back(intern300m: dict[str, torch.Tensor], layout: Layout) -> None:
    reached = set()
    for name in intern300m:
        for part, theirs in enumerate(names_of(name, layout)):
            place = place_of(theirs, layout)
            assert place is not None
            assert place.name == name
            assert place.part in (None, part)
            reached.add(theirs)
    lacking = {name for name in intern300m if not names_of(name, layout)}
    assert all("ls" in name or name == "cls_token" for name in lacking)
    assert not lacking or layout == "siglip"
    assert len(reached) >= len(intern300m) - len(lacking)


def test_values_go_there_and_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_intern300m_patch14_448", img_size=28, embed_dim=24, depth=2, num_heads=3, num_classes=0
    )
    own = {name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}
    for layout in ("internvit", "transformers"):
        for prefix in ("", "vision_model."):
            there = from_timm(own, layout, prefix)
            assert layout_of(there) == (layout, prefix)
            back = to_timm(there, layout, prefix)
            assert back.keys() == own.keys()
            assert all(torch.equal(back[name], own[name]) for name in own)


def test_strangers_are_named(intern300m: dict[str, torch.Tensor]) -> None:
    theirs = from_timm(intern300m, "transformers")
    theirs.pop("encoder.layer.3.attention.k_proj.bias")
    with pytest.raises(CheckpointError, match=r"'encoder.layer.3.attention.k_proj.bias' is missing"):
        to_timm(theirs, "transformers")
    with pytest.raises(CheckpointError, match="'embeddings.mask_token' has no counterpart"):
        to_timm({"embeddings.mask_token": torch.zeros(1)}, "transformers")
    with pytest.raises(CheckpointError, match=r"'norm.weight' has no counterpart in the internvit layout"):
        from_timm({"norm.weight": torch.zeros(1)}, "internvit")
    with pytest.raises(CheckpointError, match="called conv1.weight"):
        layout_of(["conv1.weight"])
    assert place_of("encoder.layers.x.norm1.weight", "internvit") is None
    assert place_of("encoder.layers.0.norm1.running_mean", "internvit") is None
