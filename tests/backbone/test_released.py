"""Checkpoints in the released layout: every key finds its place, and what does not fit is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitp.backbone.adapter import AdapterConfig, ViTAdapter
from vitp.backbone.pyramid import SimpleFPN
from vitp.backbone.released import load_released_adapter
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone
from vitp.errors import CheckpointError


def _adapter(variant: str) -> ViTAdapter:
    config = BackboneConfig(
        architecture="vit_intern300m_patch14_448",
        image_size=64,
        patch_size=16,
        width=64,
        depth=4,
        heads=4,
        class_token=False,
    )
    torch.manual_seed(0)
    adapter = ViTAdapter(
        random_backbone(config, 0), AdapterConfig.model_validate({"variant": variant, "stem_width": 8})
    )
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return adapter.eval()


def _released(adapter: ViTAdapter) -> dict[str, Tensor]:
    """As the released code would have saved it, beside a neck and a head."""
    found = {}
    for name, tensor in adapter.state_dict().items():
        name = re.sub(r"^backbone\.vit\.blocks\.(\d+)\.", r"layers.\1.", name)
        name = re.sub(r"(layers\.\d+\.ls[12])\.gamma", r"\1", name)
        name = name.replace("backbone.vit.patch_embed.proj", "embeddings.patch_embedding")
        if name == "backbone.vit.pos_embed":
            name, tensor = "embeddings.position_embedding", torch.cat([torch.full_like(tensor[:, :1], 9.0), tensor], 1)
        found[f"backbone.{name}"] = tensor.contiguous()
    neck = {f"neck.{name}": t for name, t in SimpleFPN([64] * 4, 16).state_dict().items()}
    return {**found, **neck, "roi_head.bbox_head.fc_cls.weight": torch.zeros(2, 4)}


def _save(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "released.safetensors")
    return folder / "released.safetensors"


@pytest.mark.parametrize("variant", ["compiled", "fallback"])
def test_a_released_checkpoint_gives_the_same_maps(variant: str, tmp_path: Path) -> None:
    expected = _adapter(variant)
    file = _save(_released(expected), tmp_path)
    found, others = load_released_adapter(file, heads=4)
    assert found.config.variant == variant
    assert found.backbone.config.image_size == 64
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for a, b in zip(found.eval()(images), expected(images), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    neck = SimpleFPN([64] * 4, 16)
    neck.load_state_dict({k.removeprefix("neck."): t for k, t in others.items() if k.startswith("neck.")})
    assert "roi_head.bbox_head.fc_cls.weight" in others


def test_the_large_checkpoints_names_are_exactly_ours() -> None:
    """Names and shapes of reference tables, written here by hand for one layer of each kind."""
    config = BackboneConfig(architecture="vit_intern300m_patch14_448", image_size=512, patch_size=16, class_token=False)
    with torch.device("meta"):
        adapter = ViTAdapter(ViTBackbone(config.create(), config))
    shapes = {name: tuple(t.shape) for name, t in adapter.state_dict().items()}
    for name, shape in {
        "level_embed": (3, 1024),
        "spm.stem.0.weight": (64, 3, 3, 3),
        "spm.stem.7.weight": (64,),
        "spm.conv4.0.weight": (256, 256, 3, 3),
        "spm.fc2.weight": (1024, 128, 1, 1),
        "interactions.0.injector.gamma": (1024,),
        "interactions.0.injector.attn.sampling_offsets.weight": (384, 1024),
        "interactions.0.injector.attn.attention_weights.bias": (192,),
        "interactions.2.extractor.attn.value_proj.weight": (256, 1024),
        "interactions.2.extractor.attn.attention_weights.weight": (64, 1024),
        "interactions.3.extra_extractors.1.ffn.dwconv.dwconv.weight": (256, 1, 3, 3),
        "up.weight": (1024, 1024, 2, 2),
        "norm4.bias": (1024,),
    }.items():
        assert shapes[name] == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop interactions.2.extractor.ffn.fc2.bias", "'interactions.2.extractor.ffn.fc2.bias' is missing"),
        ("drop spm.stem.0.weight", "'backbone.spm.stem.0.weight' is missing"),
        ("add embeddings.rel_pos", "'embeddings.rel_pos' is left over"),
        ("cut norm1.weight", r"'norm1.weight' is \[63\] in the file and \[64\] in the model"),
    ],
)
def test_what_does_not_fit_is_named(change: str, message: str, tmp_path: Path) -> None:
    tensors = _released(_adapter("compiled"))
    action, name = change.split(" ")
    if action == "drop":
        del tensors[f"backbone.{name}"]
    elif action == "add":
        tensors[f"backbone.{name}"] = torch.zeros(3)
    else:
        tensors[f"backbone.{name}"] = tensors[f"backbone.{name}"][:-1].contiguous()
    with pytest.raises(CheckpointError, match=message):
        load_released_adapter(_save(tensors, tmp_path), heads=4)


def test_pickles_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"save_file\(torch.load\(FILE, weights_only=True\)"):
        load_released_adapter(tmp_path / "epoch_12.pth")
    with pytest.raises(CheckpointError, match=r"is missing \(0 keys under 'backbone.'\)"):
        load_released_adapter(_save({"head.weight": torch.zeros(1)}, tmp_path))
