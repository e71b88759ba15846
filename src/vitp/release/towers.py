"""The ViT alone: timm's file or folder, the released safetensors layout, and transformers' InternVLVisionModel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitp.backbone.layouts import from_timm
from vitp.backbone.published import PREFIX, tensors_as, to_timm_names
from vitp.backbone.vit import METADATA, load_backbone, save_backbone
from vitp.errors import CheckpointError
from vitp.files import write_atomic, write_json
from vitp.release.contract import PENDING, OnHub, Parity, Release, compare, file_at, opened_at, tower_features
from vitp.release.quiet import quiet
from vitp.train.checkpoint import load_tensors

if TYPE_CHECKING:
    from vitp.backbone.vit import BackboneConfig

TIMM_WEIGHTS, TIMM_CONFIG = "model.safetensors", "config.json"


def stamp(path: Path, difference: float) -> None:
    """Put the measured difference in a safetensors header, where `PENDING` holds its place; no tensor is rewritten."""
    with open(path, "rb+") as file:
        header = file.read(8 + int.from_bytes(file.read(8), "little"))
        place = [found.start(1) for found in re.finditer(rb'max_abs_difference\\*": ?\\*"(\?{12})', header)]
        assert len(place) == 1, f"{len(place)} places for the difference in {path}"
        file.seek(8 + place[0])
        file.write(f"{difference:.6e}".encode().rjust(len(PENDING)))


# ------------------------------------------------------------------------------------------------------------------ timm


def timm_call(config: BackboneConfig, path: Path) -> str:
    """The Python expression that opens the exported file with timm alone."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in config.timm_kwargs().items())
    return f"timm.create_model({config.architecture!r}, checkpoint_path={str(path)!r}, num_classes=0, {arguments})"


def timm_command(release: Release, place: Path | OnHub) -> str:
    """The expression for a file, for a folder in timm's local-dir layout, or for a hub."""
    if isinstance(place, OnHub):
        return f"timm.create_model({'hf-hub:' + place.repo!r}, pretrained=True)"
    if place.suffix:
        return timm_call(release.backbone, place)
    return f"timm.create_model({'local-dir:' + str(place)!r}, pretrained=True)"


def timm_config(backbone: BackboneConfig, width: int) -> dict[str, Any]:
    """The config.json that timm's local-dir and hub loading read."""
    return {
        "architecture": backbone.architecture,
        "num_classes": 0,
        "num_features": width,
        "model_args": backbone.timm_kwargs(),
        "pretrained_cfg": {
            "input_size": [3, backbone.image_size, backbone.image_size],
            "interpolation": "bicubic",
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
        },
    }


@torch.no_grad()
def write_timm(release: Release, path: Path) -> Parity:
    """One .safetensors file, or a folder with config.json and model.safetensors; re-opened through public timm."""
    backbone = release.backbone
    weights = path if path.suffix else path / TIMM_WEIGHTS
    save_backbone(weights, release.tower, backbone, release.metadata(), release.dtype)
    if path.suffix:
        again = timm.create_model(
            backbone.architecture, checkpoint_path=str(path), num_classes=0, **backbone.timm_kwargs()
        )
    else:
        write_json(path / TIMM_CONFIG, timm_config(backbone, int(release.tower.num_features)))  # type: ignore[arg-type]
        again = timm.create_model(f"local-dir:{path}", pretrained=True)
    x, ours = tower_features(release)
    parity = compare(ours, again.eval().forward_features(x))
    stamp(weights, parity.difference)
    return parity


# -------------------------------------------------------------------------------------------------- the released layout


@torch.no_grad()
def write_published(release: Release, path: Path) -> Parity:
    """One file as ViTP and InternVL publish them; re-opened as a backbone and in transformers' InternVLVisionModel."""
    tensors = {n: t.to(release.dtype) for n, t in _in_layout(release, "internvit", PREFIX).items()}
    about = {"backbone": release.backbone.model_dump(mode="json"), **release.metadata()}
    metadata = {METADATA: json.dumps(about), "format": "pt"}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    x, ours = tower_features(release)
    parity = compare(ours, load_backbone(path, trainable=False).vit.forward_features(x))  # type: ignore[operator]
    names = from_timm(to_timm_names(load_tensors(path), path), "transformers")
    theirs = _vision_model(release, names)(pixel_values=x).last_hidden_state
    parity = parity.worse(compare(ours, theirs))
    stamp(path, parity.difference)
    return parity


def published_command(release: Release, place: Path | OnHub) -> str:
    """How `vitp` opens it; the released downstream code reads it with pretrained_type='full'."""
    return f"vitp.load_backbone({file_at(place)})"


# ---------------------------------------------------------------------------------------------------------- transformers


def vision_config(release: Release) -> Any:
    """The tower as an InternVLVisionConfig of transformers.

    Raises:
        CheckpointError: the tower has something that transformers' InternVL has no switch for.
    """
    from transformers import InternVLVisionConfig

    vit: Any = release.tower
    block = vit.blocks[0]
    norm = block.norm1
    plain = isinstance(norm, nn.LayerNorm) and isinstance(vit.norm_pre, nn.Identity)
    if not plain or not isinstance(getattr(block.mlp, "act", None), nn.GELU):
        raise CheckpointError(
            f"'{release.backbone.architecture}' has other norms or activations than transformers' InternVLVisionModel "
            "(LayerNorm before attention and MLP, GELU); use --to timm"
        )
    return InternVLVisionConfig(
        hidden_size=int(vit.embed_dim),
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=int(block.attn.num_heads),
        attention_bias=block.attn.qkv.bias is not None,
        use_qk_norm=False,
        intermediate_size=int(block.mlp.fc1.out_features),
        hidden_act="gelu",
        norm_type="layer_norm",
        layer_norm_eps=float(norm.eps),
        image_size=[release.backbone.image_size] * 2,
        patch_size=[release.backbone.patch_size] * 2,
        use_mean_pooling=isinstance(vit.norm, nn.Identity),  # transformers: no final norm where it pools by the mean
    )


def _in_layout(release: Release, layout: Any, prefix: str = "") -> dict[str, Tensor]:
    try:
        return tensors_as(release.tower, layout, prefix)
    except CheckpointError as error:
        raise CheckpointError(
            f"the tower '{release.backbone.architecture}' cannot be written so: {error}; use --to timm"
        ) from error


def vision_tensors(release: Release) -> dict[str, Tensor]:
    """The tower's tensors under transformers' names, fp32.

    Raises:
        CheckpointError: the tower has a part that InternVLVisionModel lacks.
    """
    return _in_layout(release, "transformers")


def _vision_model(release: Release, tensors: dict[str, Tensor]) -> Any:
    from transformers import InternVLVisionModel

    with torch.device("meta"):
        model = InternVLVisionModel(vision_config(release))
    model.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=True, assign=True)
    return model.eval()


def image_processor(release: Release, *, tiles: tuple[int, int] | None = None) -> Any:
    """A processor of InternVL images for transformers; with `tiles` (least, most) it cuts as in training."""
    from transformers import GotOcr2ImageProcessor

    side = release.backbone.image_size
    least, most = tiles or (1, 1)
    return GotOcr2ImageProcessor(
        size={"height": side, "width": side},
        crop_to_patches=tiles is not None,
        min_patches=least,
        max_patches=most,
        image_mean=list(release.backbone.mean),
        image_std=list(release.backbone.std),
    )


@torch.no_grad()
def write_hf_vision(release: Release, path: Path) -> Parity:
    """A folder that transformers opens as InternVLVisionModel, with its image processor; re-opened by from_pretrained."""
    from transformers import InternVLVisionModel

    path.mkdir()
    with quiet():
        _vision_model(release, vision_tensors(release)).to(release.dtype).save_pretrained(path)
        image_processor(release).save_pretrained(path)
        again, found = InternVLVisionModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    require_complete(found, path)
    x, ours = tower_features(release)
    return compare(ours, again.eval()(pixel_values=x).last_hidden_state)


def require_complete(found: dict[str, Any], path: Path) -> None:
    """Refuse what from_pretrained would silently have made up.

    Raises:
        CheckpointError: a tensor was missing, left over or of another shape.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found.get(kind):
            first = sorted(str(name) for name in found[kind])[0]
            raise CheckpointError(f"{path}: transformers reports {kind.replace('_', ' ')}: {first}; not written")


def hf_vision_command(release: Release, place: Path | OnHub) -> str:
    """How transformers opens it."""
    return f"transformers.InternVLVisionModel.from_pretrained({opened_at(place)})"
