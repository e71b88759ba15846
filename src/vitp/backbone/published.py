"""ViT weights as InternVL and ViTP publish them: one .safetensors file, tensors called ``[vision_model.]embeddings.*`` and
``[vision_model.]encoder.layers.*``, without a word about the sizes.

What the shapes do not tell is taken from the family: InternViT's heads are 64 channels wide, its tiles square.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitp.backbone.layouts import Layout, from_timm, layout_of, to_timm
from vitp.errors import CheckpointError
from vitp.train.checkpoint import model_tensors
from vitp.vlm.internvl import read_json

ARCHITECTURE = "vit_intern300m_patch14_448"  # timm's ViT without a final norm and with layer scale
PREFIX = "vision_model."
_HEAD = 64  # InternViT-300M: 1024 wide, 16 heads
_OTHER_PARTS = ("language_model.", "mlp1.")  # of a whole InternVL checkpoint


def is_published(names: Iterable[str]) -> bool:
    """Whether a file's tensors are called as in the published checkpoints, with or without a prefix."""
    try:
        return layout_of(names)[0] == "internvit"
    except CheckpointError:
        return False


def to_timm_names(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """The ViT's tensors of a published file under timm's names; those of a language model beside it are left out.

    Raises:
        CheckpointError: a tensor that this ViT does not have.
    """
    prefix = layout_of(tensors)[1]
    own = {n: t for n, t in tensors.items() if not (prefix and n.startswith(_OTHER_PARTS))}
    # The released loader knows files that call the patch embedding's convolution `proj`.
    own = {n.replace("patch_embedding.proj.", "patch_embedding."): t for n, t in own.items()}
    try:
        return to_timm(own, "internvit", prefix)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def read_sizes(tensors: Mapping[str, Tensor], origin: Path, heads: int | None = None) -> dict[str, Any]:
    """The fields of a `BackboneConfig` that timm-named InternViT tensors imply; `heads` where a config tells them.

    Raises:
        CheckpointError: a tensor that tells a size is missing or has an impossible shape.
    """
    shapes = {}
    for name, dimensions in (("pos_embed", 3), ("patch_embed.proj.weight", 4), ("blocks.0.mlp.fc1.weight", 2)):
        if name not in tensors or tensors[name].ndim != dimensions:
            raise CheckpointError(f"{origin}: '{name}' (timm's name) is missing or misshapen; the file is incomplete")
        shapes[name] = tensors[name].shape
    positions, width = shapes["pos_embed"][1:]
    grid, patch = math.isqrt(max(0, positions - 1)), shapes["patch_embed.proj.weight"][-1]
    if grid * grid != positions - 1 or not grid:
        raise CheckpointError(f"{origin}: {positions} position embeddings are no square grid and a class token")
    if heads is None and width % _HEAD:
        raise CheckpointError(
            f"{origin}: the ViT is {width} wide, which heads of {_HEAD} channels (InternViT-300M's) do not divide; "
            "give a file whose metadata says how many heads there are (`vitp export` writes it)"
        )
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {
        "architecture": ARCHITECTURE,
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "depth": len(blocks),
        "heads": heads or width // _HEAD,
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
    }


def tensors_as(vit: nn.Module, layout: Layout, prefix: str = "") -> dict[str, Tensor]:
    """A timm ViT's tensors in another library's layout; a ViT without layer scale gets one of ones, which changes nothing.

    Raises:
        CheckpointError: the ViT has a part that the layout has no place for.
    """
    own = dict(model_tensors(vit))
    if getattr(vit, "no_embed_class", False) or "cls_token" not in own or own["cls_token"].shape[1] != 1:
        raise CheckpointError("the tower has no class token with a position of its own, which that layout needs")
    width, dtype = own["pos_embed"].shape[-1], own["pos_embed"].dtype
    for block in {name.split(".")[1] for name in own if name.startswith("blocks.")}:
        for scale in ("ls1", "ls2"):
            own.setdefault(f"blocks.{block}.{scale}.gamma", torch.ones(width, dtype=dtype))
    # A third of a fused matrix gets memory of its own: writers take tensors that share memory for tied ones.
    return {
        name: tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor.contiguous()
        for name, tensor in from_timm(own, layout, prefix).items()
    }


# ------------------------------------------------------------------------------------- a folder of InternVLVisionModel


def is_vision_folder(card: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of transformers' InternVLVisionModel."""
    return card.get("model_type") == "internvl_vision"


def read_vision_folder(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], described: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of a `BackboneConfig` and timm-named tensors of a folder that transformers wrote.

    Raises:
        CheckpointError: a tower of another kind than InternViT-300M's, or tensors that do not belong to it.
    """
    kind = {"use_mean_pooling": True, "use_qk_norm": False, "norm_type": "layer_norm", "attention_bias": True}
    for key, needed in kind.items():
        if card.get(key) != needed:
            raise CheckpointError(
                f"{described}: {key} is {card.get(key)}, and only {needed} is an InternViT-300M, whose timm twin is known; "
                "give a file that vitp or timm wrote"
            )
    try:
        named = to_timm(tensors, "transformers", layout_of(tensors)[1])
    except CheckpointError as error:
        raise CheckpointError(f"{described.parent}: {error}") from error
    fields = {**read_sizes(named, described.parent, int(card.get("num_attention_heads") or 0) or None)}
    preprocessing = described.with_name("preprocessor_config.json")
    if preprocessing.is_file():
        said = read_json(preprocessing)
        fields.update(
            {ours: said[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in said}
        )
    return fields, named
