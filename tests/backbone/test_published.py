"""Files as ViTP publishes them: any prefix and dtype, the ViT alone or a whole model, and what is wrong with damaged ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitp import load_backbone
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone
from vitp.errors import CheckpointError

CONFIG = BackboneConfig(
    architecture="vit_intern300m_patch14_448", image_size=56, patch_size=14, width=128, depth=2, heads=2
)
# The published names, written down from the released models.
NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
} | {
    f"blocks.{i}.{ours}": f"encoder.layers.{i}.{theirs}"
    for i in range(2)
    for ours, theirs in [
        *((f"{m}.{k}", f"{m}.{k}") for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
          for k in ("weight", "bias")),
        ("ls1.gamma", "ls1"),
        ("ls2.gamma", "ls2"),
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def original() -> ViTBackbone:
    return random_backbone(CONFIG, 5).eval()


def published(backbone: ViTBackbone, prefix: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    state = backbone.vit.state_dict()
    assert state.keys() == NAMES.keys()
    return {prefix + NAMES[name]: tensor.to(dtype) for name, tensor in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_published_files_open(original: ViTBackbone, tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    path = tmp_path / "ViTP_ViT_L_300M_rs.safetensors"
    save_file(published(original, prefix, dtype), path)
    backbone = load_backbone(path)
    assert backbone.config == CONFIG.model_copy(update={"mlp_ratio": 4.0})
    for name, tensor in backbone.vit.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original.vit.state_dict()[name].to(dtype).float()), name
    images = torch.randint(0, 256, (2, 3, 60, 44), dtype=torch.uint8)
    if dtype == torch.float32:
        torch.testing.assert_close(backbone.eval()(images), original(images), rtol=0, atol=1e-6)
    assert load_backbone(path, patch_size=16, image_size=64).config.patch_size == 16


def test_a_whole_model_in_one_file_gives_its_vit(original: ViTBackbone, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    others = {"language_model.model.embed_tokens.weight": torch.zeros(4, 8), "mlp1.0.weight": torch.zeros(8)}
    save_file({**published(original, "vision_model."), **others}, path)
    assert load_backbone(path).config.depth == 2
    renamed = {n.replace("patch_embedding.", "patch_embedding.proj."): t for n, t in published(original, "").items()}
    save_file(renamed, path)  # a spelling that the released loader takes too
    assert load_backbone(path).config.patch_size == 14
    save_file({**published(original, ""), "mlp1.0.weight": torch.zeros(8)}, path)
    with pytest.raises(CheckpointError, match=r"'mlp1\.0\.weight' has no counterpart"):
        load_backbone(path)  # without a prefix nothing says that it belongs to another part


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("vision_model.embeddings.position_embedding"), r"'pos_embed' .*is missing"),
        (lambda t: t.pop("vision_model.encoder.layers.1.ls2"), r"'blocks\.1\.ls2\.gamma' is missing"),
        (lambda t: t.update({"vision_model.encoder.layers.0.attn.q_norm.weight": torch.ones(128)}), "q_norm"),
        (lambda t: t.update({"vision_model.embeddings.position_embedding": torch.zeros(1, 16, 128)}), "no square grid"),
        (lambda t: t.update({"vision_model.embeddings.position_embedding": torch.zeros(1, 17, 100)}), "heads of 64"),
        (lambda t: t.update({"vision_model.encoder.layers.0.norm1.weight": torch.zeros(3)}), r"0\.norm1\.weight' is \[3\]"),
    ],
)  # fmt: skip
def test_damage_is_named(original: ViTBackbone, tmp_path: Path, change, said: str) -> None:
    tensors = published(original, "vision_model.")
    change(tensors)
    path = tmp_path / "ViTP.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_backbone(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_download_cut_short_is_named(original: ViTBackbone, tmp_path: Path) -> None:
    path = tmp_path / "ViTP.safetensors"
    save_file(published(original, ""), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_backbone(path)
