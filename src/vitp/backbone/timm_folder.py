"""timm's local-dir folders: what their config.json says about a ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vitp.errors import CheckpointError

_POOLING = ("head.", "head_dist.", "attn_pool.")  # parts of a timm classifier that come after the backbone
# timm model arguments of a config.json -> our fields, and those that change no weight
_TIMM_FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "class_token": "class_token",
}
_TIMM_HARMLESS = {"in_chans", "num_classes", "global_pool", "dynamic_img_size", "drop_rate", "drop_path_rate"}


def read_timm_folder(
    card: dict[str, Any], tensors: dict[str, Tensor], origin: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of a `vitp.backbone.vit.BackboneConfig`, and the tensors of the ViT without its pooling and classifier.

    Args:
        card: the config.json; sizes it leaves out come from its preprocessing and its weights.
        tensors: of the model.safetensors beside it.
        origin: the config.json's path, for messages.

    Raises:
        CheckpointError: no timm model, or one with an argument that is not supported.
    """
    if "architecture" not in card:
        raise CheckpointError(f"{origin}: names no timm 'architecture'; it belongs to another library")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_POOLING)}
    arguments, preprocessing = card.get("model_args") or {}, card.get("pretrained_cfg") or {}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    strange = sorted(arguments.keys() - _TIMM_FIELDS.keys() - _TIMM_HARMLESS)
    if strange:
        raise CheckpointError(
            f"{origin}: model argument '{strange[0]}' is not supported; take the timm architecture that has it built in"
        )
    fields: dict[str, Any] = {ours: arguments[theirs] for theirs, ours in _TIMM_FIELDS.items() if theirs in arguments}
    fields["architecture"] = card["architecture"]
    fields.setdefault("image_size", (preprocessing.get("input_size") or [3, 224, 224])[-1])
    for name in ("image_size", "patch_size"):
        if isinstance(fields.get(name), (list, tuple)):
            fields[name] = fields[name][0]
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        fields.setdefault("patch_size", kernel.shape[-1])
    for name in ("mean", "std"):
        if preprocessing.get(name):
            fields[name] = tuple(preprocessing[name])
    return fields, tensors
