"""ViT-Adapters in the released downstream checkpoints' layout: their keys and shapes to a `ViTAdapter`.

A released detector or segmenter keeps, under ``backbone.``, the ViT (``embeddings.*`` and ``layers.N.*``) beside the
adapter, whose names are ours. The position embedding has a first row for a class token that does not exist.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from torch import Tensor

from vitp.backbone.adapter import AdapterConfig, ViTAdapter
from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.errors import CheckpointError
from vitp.train.checkpoint import load_model, load_tensors

_PREFIX = "backbone."
_ARCHITECTURE = "vit_intern300m_patch14_448"
_HEAD_WIDTH = 64  # InternViT
_SIZED_BY = (
    "embeddings.patch_embedding.weight",
    "embeddings.position_embedding",
    "layers.0.mlp.fc1.weight",
    "interactions.0.injector.attn.value_proj.weight",
    "interactions.0.injector.attn.sampling_offsets.weight",
    "interactions.0.extractor.ffn.fc1.weight",
    "spm.stem.0.weight",
)
_EMBEDDINGS = {
    "embeddings.patch_embedding.weight": "vit.patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "vit.patch_embed.proj.bias",
    "embeddings.position_embedding": "vit.pos_embed",
}


def split_released(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the backbone, without ``backbone.``, and the others (neck and heads) as they are named."""
    inside = {name.removeprefix(_PREFIX): t for name, t in tensors.items() if name.startswith(_PREFIX)}
    return inside, {name: t for name, t in tensors.items() if not name.startswith(_PREFIX)}


def load_released_adapter(
    path: Path | str, *, heads: int | None = None, deform_heads: int = 16
) -> tuple[ViTAdapter, dict[str, Tensor]]:
    """A released checkpoint's backbone, and the tensors of its neck and heads.

    Sizes are read from the tensors; which of the two deformable attentions it was trained with shows in the shape of
    ``value_proj`` (`AdapterConfig.variant`).

    Args:
        path: a .safetensors file with the checkpoint's ``state_dict``.
        heads: of the ViT's attention; None: 64 channels each, as in InternViT.
        deform_heads: of the deformable attention (released configs: 16).

    Raises:
        CheckpointError: missing, damaged, a pickle, or a key is left over, missing or of another shape.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: expected .safetensors, since a pickle can run any code while it is read; convert it with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True)['state_dict'], OUT)"
        )
    inside, others = split_released(load_tensors(path))
    if missing := [name for name in _SIZED_BY if name not in inside]:
        raise CheckpointError(
            f"{path}: is no released ViT-Adapter: '{_PREFIX}{missing[0]}' is missing "
            f"({len(inside)} keys under '{_PREFIX}')"
        )
    config, shape = _sizes(inside, path, heads, deform_heads)
    adapter = ViTAdapter(random_backbone(config, seed=0), shape)
    load_model(adapter, {_ours(name): _row(name, t) for name, t in inside.items()}, path)
    return adapter, others


def _sizes(
    inside: dict[str, Tensor], path: Path, heads: int | None, deform_heads: int
) -> tuple[BackboneConfig, AdapterConfig]:
    width, _, patch, _ = inside["embeddings.patch_embedding.weight"].shape
    side = math.isqrt(inside["embeddings.position_embedding"].shape[1] - 1)
    if side * side != inside["embeddings.position_embedding"].shape[1] - 1:
        raise CheckpointError(f"{path}: its position embedding is not a square grid behind one class row")
    depth = 1 + max(int(m.group(1)) for name in inside if (m := re.match(r"layers\.(\d+)\.", name)))
    blocks = 1 + max(int(m.group(1)) for name in inside if (m := re.match(r"interactions\.(\d+)\.", name)))
    extra = {m.group(1) for name in inside if (m := re.search(r"\.extra_extractors\.(\d+)\.", name))}
    value = inside["interactions.0.injector.attn.value_proj.weight"].shape[0]
    offsets = inside["interactions.0.injector.attn.sampling_offsets.weight"].shape[0]
    if blocks != 4:
        raise CheckpointError(f"{path}: has {blocks} interactions; the released adapters have 4")
    config = BackboneConfig(
        architecture=_ARCHITECTURE,
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=heads or max(1, width // _HEAD_WIDTH),
        mlp_ratio=inside["layers.0.mlp.fc1.weight"].shape[0] / width,
        class_token=False,
    )
    shape = AdapterConfig(
        variant="fallback" if value == width else "compiled",
        value_ratio=value / width,
        heads=deform_heads,
        points=offsets // (deform_heads * 3 * 2),
        ffn_ratio=inside["interactions.0.extractor.ffn.fc1.weight"].shape[0] / width,
        stem_width=inside["spm.stem.0.weight"].shape[0],
        extra_extractors=len(extra),
        final_norm="norm1.weight" in inside,
    )
    return config, shape


def _ours(name: str) -> str:
    """Our name of a released backbone's tensor; unknown ones keep theirs and are reported as left over."""
    if name in _EMBEDDINGS:
        return f"backbone.{_EMBEDDINGS[name]}"
    block = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if block is None:
        return name
    inside = re.sub(r"^(ls[12])$", r"\1.gamma", block.group(2))
    return f"backbone.vit.blocks.{block.group(1)}.{inside}"


def _row(name: str, tensor: Tensor) -> Tensor:
    """Position embeddings without the class token's row."""
    return tensor[:, 1:] if name == "embeddings.position_embedding" else tensor
