"""What the same ViT's tensors are called in other libraries, both ways.

Three layouts of an InternViT: timm's (``vit_intern300m_patch14_448``, what this package computes with), the published
one (``vision_model.*`` of an InternVL checkpoint, without that prefix) and transformers' ``InternVLVisionModel``. And
two of a SigLIP: timm's and transformers' ``SiglipVisionModel`` / ``Siglip2VisionModel``. They differ in names, in
whether queries, keys and values are one matrix or three, and for SigLIP in the shape of two embeddings; the numbers are
the same. Names follow transformers' published conversion script of InternVL and the modules themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitp.errors import CheckpointError

Layout = Literal["timm", "internvit", "transformers", "siglip"]
LAYOUTS: tuple[Layout, ...] = ("timm", "internvit", "transformers", "siglip")

# timm's module -> theirs; inside a block without the block's own prefix. Longer names stand before their beginnings.
_OUTER: dict[Layout, dict[str, str]] = {
    "internvit": {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj": "embeddings.patch_embedding",
    },
    "transformers": {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    },
    "siglip": {
        "pos_embed": "embeddings.position_embedding.weight",
        "patch_embed.proj": "embeddings.patch_embedding",
        "norm": "post_layernorm",
    },
}
_INNER: dict[Layout, dict[str, str]] = {
    "internvit": {
        "norm1": "norm1",
        "attn.qkv": "attn.qkv",
        "attn.proj": "attn.proj",
        "ls1.gamma": "ls1",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "ls2.gamma": "ls2",
    },
    "transformers": {
        "norm1": "layernorm_before",
        "attn.proj": "attention.projection_layer",
        "ls1.gamma": "lambda_1",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "ls2.gamma": "lambda_2",
    },
    "siglip": {
        "norm1": "layer_norm1",
        "attn.proj": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
}
_BLOCK: dict[Layout, str] = {
    "timm": "blocks.",
    "internvit": "encoder.layers.",
    "transformers": "encoder.layer.",
    "siglip": "encoder.layers.",
}
_SPLIT: dict[Layout, tuple[str, str, str]] = {  # where queries, keys and values are three matrices
    "transformers": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "siglip": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
_MARKS: dict[Layout, str] = {  # a tensor that one layout has and no other, whatever stands before it
    "timm": "blocks.0.norm1.weight",
    "internvit": "encoder.layers.0.attn.qkv.weight",
    "transformers": "encoder.layer.0.attention.q_proj.weight",
    "siglip": "post_layernorm.weight",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor of another layout belongs: a tensor of ours, or a third of its rows.

    `part` is 0, 1, 2 for queries, keys and values of a fused matrix, None for the whole tensor.
    """

    name: str
    part: int | None = None

    def view(self, tensor: Tensor) -> Tensor:
        """The part of the whole `tensor` that this place means; shares its memory."""
        return tensor if self.part is None else tensor.chunk(3, 0)[self.part]


def _translate(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """`name` with its module replaced: it equals a module's name, or that and ``.weight`` or ``.bias``."""
    for source, target in pairs:
        if name == source:
            return target
        if name in (f"{source}.weight", f"{source}.bias"):
            return target + name[len(source) :]
    return None


def _in_block(name: str, prefix: str) -> tuple[str, str] | None:
    """(block number, rest) of a name inside a block."""
    found = re.fullmatch(re.escape(prefix) + r"(\d+)\.(.+)", name)
    return (found[1], found[2]) if found else None


def place_of(name: str, layout: Layout) -> Place | None:
    """Where the tensor `name` of `layout` belongs in timm's; None where timm's ViT has no such tensor."""
    if layout == "timm":
        return Place(name)
    block = _in_block(name, _BLOCK[layout])
    if block is None:
        outer = _translate(name, ((theirs, ours) for ours, theirs in _OUTER[layout].items()))
        return Place(outer) if outer else None
    number, rest = block
    for part, module in enumerate(_SPLIT.get(layout, ())):
        fused = _translate(rest, [(module, "attn.qkv")])
        if fused:
            return Place(f"blocks.{number}.{fused}", part)
    inner = _translate(rest, ((theirs, ours) for ours, theirs in _INNER[layout].items()))
    return Place(f"blocks.{number}.{inner}") if inner else None


def names_of(name: str, layout: Layout) -> tuple[str, ...]:
    """What timm's tensor `name` is called in `layout`: one name, three for a fused qkv that is split, or none."""
    if layout == "timm":
        return (name,)
    block = _in_block(name, _BLOCK["timm"])
    if block is None:
        outer = _translate(name, _OUTER[layout].items())
        return (outer,) if outer else ()
    number, rest = block
    split = [_translate(rest, [("attn.qkv", module)]) for module in _SPLIT.get(layout, ())]
    inner = split if any(split) else [_translate(rest, _INNER[layout].items())]
    return tuple(f"{_BLOCK[layout]}{number}.{found}" for found in inner if found)


def layout_of(names: Iterable[str]) -> tuple[Layout, str]:
    """The layout a ViT's tensors are in and the prefix they carry (``vision_model.``, ``model.vision_tower.``, ...).

    Raises:
        CheckpointError: the names belong to none of the layouts.
    """
    names = list(names)
    for layout in LAYOUTS:
        mark = _MARKS[layout]
        for name in names:
            if name == mark or name.endswith(f".{mark}"):
                return layout, name[: -len(mark)]
    shown = ", ".join(names[:3]) or "none at all"
    raise CheckpointError(f"these are not the tensors of a ViT of timm, InternVL or SigLIP (they are called {shown})")


def to_timm_shape(tensor: Tensor, name: str, layout: Layout) -> Tensor:
    """A whole tensor of `layout` in the shape timm gives to its tensor `name`; everything but SigLIP's embeddings as is.

    SigLIP keeps its positions as a table [N, C] (timm: [1, N, C]), and SigLIP2 its patch embedding as a linear layer
    [C, p * p * 3] over pixels in the order row, column, colour (timm: a convolution [C, 3, p, p]).
    """
    if layout == "siglip" and name == "pos_embed" and tensor.ndim == 2:
        return tensor[None]
    if layout == "siglip" and name == "patch_embed.proj.weight" and tensor.ndim == 2:
        side = round((tensor.shape[1] / 3) ** 0.5)
        return tensor.view(-1, side, side, 3).permute(0, 3, 1, 2)
    return tensor


def from_timm_shape(tensor: Tensor, name: str, layout: Layout) -> Tensor:
    """The inverse of `to_timm_shape` for the layouts that are written (a SigLIP with a convolution)."""
    return tensor[0] if layout == "siglip" and name == "pos_embed" else tensor


def to_timm(tensors: Mapping[str, Tensor], layout: Layout, prefix: str = "") -> dict[str, Tensor]:
    """A ViT's tensors under timm's names; fused matrices are joined, all others share memory with what was given.

    Args:
        tensors: all tensors of one ViT.
        layout: what they are called.
        prefix: what stands before every name.

    Raises:
        CheckpointError: a tensor has no counterpart in timm's ViT, or a third of a fused matrix is missing.
    """
    whole: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for full, tensor in tensors.items():
        place = place_of(full.removeprefix(prefix), layout)
        if place is None:
            raise CheckpointError(f"'{full}' has no counterpart in timm's ViT; it belongs to another architecture")
        if place.part is None:
            whole[place.name] = to_timm_shape(tensor, place.name, layout)
        else:
            thirds.setdefault(place.name, {})[place.part] = tensor
    for name, parts in thirds.items():
        absent = sorted({0, 1, 2} - parts.keys())
        if absent:
            raise CheckpointError(f"'{prefix}{names_of(name, layout)[absent[0]]}' is missing; the file is incomplete")
        whole[name] = torch.cat([parts[i] for i in range(3)])
    return whole


def from_timm(tensors: Mapping[str, Tensor], layout: Layout, prefix: str = "") -> dict[str, Tensor]:
    """A timm ViT's tensors under the names of `layout`; what is split off a fused matrix shares its memory.

    Raises:
        CheckpointError: a tensor has no counterpart there (a final norm in the published InternViT, registers, ...).
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        theirs = names_of(name, layout)
        if not theirs:
            raise CheckpointError(
                f"'{name}' has no counterpart in the {layout} layout; only ViTs of that architecture can be written so"
            )
        parts = tensor.chunk(3, 0) if len(theirs) == 3 else (from_timm_shape(tensor, name, layout),)
        out.update(zip((prefix + n for n in theirs), parts, strict=True))
    return out
