"""A plain timm ViT as a backbone: any image size in, aligned maps at four strides out.

Shape legend: B images, H x W pixels, C channels (the ViT's width), p patch size,
h x w = ceil(H / p) x ceil(W / p) tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional

from vitp.backbone.dense import STRIDES as STRIDES
from vitp.backbone.dense import DenseBackbone, resample
from vitp.backbone.published import is_published, is_vision_folder, read_sizes, read_vision_folder, to_timm_names
from vitp.backbone.resample import Resample, resized
from vitp.backbone.timm_folder import read_timm_folder
from vitp.config import Config
from vitp.errors import CheckpointError, ConfigError
from vitp.files import write_atomic
from vitp.train.checkpoint import load_model, load_tensors, model_tensors
from vitp.vlm.internvl import read_json
from vitp.vlm.stored import refuse_pickle

_PLAIN_TOKENS = 400  # measured: above it the score matrix costs more than it saves
METADATA = "vitp"  # key of the JSON in a weights file's safetensors metadata


class BackboneConfig(Config):
    """Which timm ViT; every field left out keeps the value of the named architecture."""

    architecture: str  # a timm name, e.g. vit_intern300m_patch14_448 (the tower of the released models)
    image_size: int = Field(ge=1)  # side of the square the position embeddings were made for, pixels
    patch_size: int = Field(ge=1)  # side of a patch, pixels
    width: int | None = Field(default=None, ge=1)  # None: timm's
    depth: int | None = Field(default=None, ge=1)  # None: timm's
    heads: int | None = Field(default=None, ge=1)  # None: timm's
    mlp_ratio: float | None = Field(default=None, gt=0)  # None: timm's
    class_token: bool | None = None  # None: timm's
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN  # what the InternVL towers are fed
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD  # likewise

    @field_validator("architecture")
    @classmethod
    def _known(cls, name: str) -> str:
        if not timm.is_model(name):
            stem = name.split("_patch")[0]
            close = timm.list_models(f"{stem}*")[:3] or timm.list_models("vit_*")[:3]
            raise ValueError(f"timm {timm.__version__} has no model '{name}'; near it: {', '.join(close)}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> BackboneConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if min(self.std) <= 0:
            raise ValueError("every std must be above 0")
        return self

    def timm_kwargs(self) -> dict[str, Any]:
        """Arguments with which ``timm.create_model(architecture, num_classes=0, ...)`` builds this very ViT.

        All values are JSON. No pooling: the state dict holds embeddings, blocks and the final norm, nothing else.
        """
        wanted: dict[str, Any] = {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "class_token": self.class_token,
            "global_pool": "",
            "dynamic_img_size": True,
        }
        return {key: value for key, value in wanted.items() if value is not None}

    def create(self, drop_path: float = 0.0) -> nn.Module:
        """The timm model with fresh weights from torch's global generator (`random_backbone` takes a seed).

        Args:
            drop_path: stochastic depth of the last block; it grows linearly from 0.

        Raises:
            ConfigError: the architecture is not a plain ViT, or the sizes do not fit together.
        """
        try:
            model = timm.create_model(
                self.architecture, pretrained=False, num_classes=0, drop_path_rate=drop_path, **self.timm_kwargs()
            )
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"backbone: timm cannot build '{self.architecture}' with these sizes: {error}") from error
        if not all(hasattr(model, part) for part in ("patch_embed", "blocks", "forward_intermediates")):
            raise ConfigError(f"backbone: '{self.architecture}' is not a plain ViT; take one of timm's vit_*")
        return cast(nn.Module, model)


def choose_attention(vit: nn.Module, tokens: int, device: torch.device, *, bf16: bool) -> None:
    """Switch timm's fused attention off where its unfused one is faster: short sequences on CPUs in bf16.

    Args:
        vit: whose attention modules are set.
        tokens: of the longest sequence to come.
        device: where it runs.
        bf16: whether it runs in bf16 (bench/attention.py: in fp32 the fused one is faster at every length).
    """
    fused = not (device.type == "cpu" and bf16 and tokens <= _PLAIN_TOKENS)
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 - Module declares tensors only


class ViTBackbone(DenseBackbone):
    """A timm ViT that normalises its input itself and takes images of any height and width.

    The picture is padded at the bottom and the right (with the mean colour) to whole patches; position embeddings are
    resized bicubically with antialias by timm's `dynamic_img_size`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, config: BackboneConfig) -> None:
        super().__init__()
        self.vit, self.config = vit, config
        self.patch_size = config.patch_size
        self.frozen = 0  # layers (see `layer_of`) that do not learn
        self.channels = int(cast(Any, vit).embed_dim)
        self.depth = len(cast(Any, vit).blocks)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def prepare(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W], uint8 0-255 or float 0-1, to normalised ones [B, 3, h * p, w * p] in the ViT's dtype.

        Raises:
            ValueError: another shape or an integer type other than uint8.
        """
        if x.ndim != 4 or x.shape[1] != 3 or not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise ValueError(
                f"images must be [B, 3, H, W], uint8 (0-255) or float (0-1); found {list(x.shape)} {x.dtype}"
            )
        dtype = next(self.vit.parameters()).dtype
        pixels = x.float() / 255.0 if x.dtype == torch.uint8 else x.float()
        pixels = ((pixels - self.mean.float()) / self.std.float()).to(dtype)
        below, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        return functional.pad(pixels, (0, right, 0, below)) if below or right else pixels

    @property
    def plain(self) -> ViTBackbone:
        """Itself."""
        return self

    def layer_of(self, name: str) -> int:
        """See `DenseBackbone.layer_of`; the final norm comes last."""
        block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
        if block is not None:
            return int(block.group(1)) + 1
        return self.depth + 1 if re.search(r"(?:^|\.)(?:norm|fc_norm)\.", name) else 0

    def freeze(self, blocks: int | None = None) -> None:
        """The embeddings and the first `blocks` blocks (None: the whole ViT) stop learning and stay in eval mode."""
        self.frozen = self.depth + 2 if blocks is None else blocks + 1
        for name, parameter in self.named_parameters():
            if self.layer_of(name) < self.frozen:
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ViTBackbone:
        """Training mode for what is not frozen."""
        super().train(mode)
        if self.frozen > self.depth + 1:
            self.vit.eval()
        for block in list(cast(Any, self.vit).blocks)[: max(0, self.frozen - 1)]:
            block.eval()
        return self

    def blocks(self, x: Tensor, indices: list[int], *, norm: bool) -> list[Tensor]:
        """Patch tokens [B, C, h, w] after the given blocks (0-based, rising), with the ViT's final norm if `norm`.

        A ViT frozen as a whole runs without recording gradients.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen <= self.depth + 1):
            found = cast(Any, self.vit).forward_intermediates(
                self.prepare(x), indices=indices, norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
        return cast(list[Tensor], found)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to four maps [B, C, ceil(H / s), ceil(W / s)], s = 4, 8, 16, 32.

        Map k holds the output of block ceil((k + 1) * depth / 4), resampled without parameters (`resample`).
        """
        chosen = [math.ceil((k + 1) * self.depth / len(STRIDES)) - 1 for k in range(len(STRIDES))]
        distinct = sorted(set(chosen))
        found = dict(zip(distinct, self.blocks(x, distinct, norm=False), strict=True))
        height, width = x.shape[-2:]
        return [resample(found[i], self.patch_size, s, height, width) for i, s in zip(chosen, STRIDES, strict=True)]

    def features(self, x: Tensor, norm: bool = True) -> Tensor:
        """Patch tokens of the last block, [B, C, h, w]; `norm` applies the ViT's final norm (if it has one)."""
        return self.blocks(x, [self.depth - 1], norm=norm)[0]

    def pooled(self, x: Tensor, layers: int = 1) -> Tensor:
        """Mean over the patch tokens of each of the last `layers` blocks, normed, side by side: [B, C * layers].

        Raises:
            ValueError: the ViT has fewer blocks.
        """
        if not 1 <= layers <= self.depth:
            raise ValueError(f"layers must lie in 1 ... {self.depth} (the backbone's blocks); found {layers}")
        maps = self.blocks(x, list(range(self.depth - layers, self.depth)), norm=True)
        return torch.cat([m.flatten(2).mean(2) for m in maps], dim=1)


def random_backbone(config: BackboneConfig, seed: int) -> ViTBackbone:
    """A backbone with random weights, the same for the same seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTBackbone(config.create(), config)


def save_backbone(
    path: Path,
    model: nn.Module,
    config: BackboneConfig,
    extra: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write one .safetensors file with the weights under timm's own names and the config in its metadata.

    ``timm.create_model(config.architecture, checkpoint_path=path, num_classes=0, **config.timm_kwargs())`` reads it
    too.

    Args:
        path: ends in .safetensors; written atomically.
        model: the timm ViT, or the `ViTBackbone` around it.
        config: what `model` was created from.
        extra: further texts for the metadata (where the weights come from, their licence).
        dtype: of the tensors in the file; None: the model's.

    Raises:
        OutputError: no space left or not writable.
    """
    assert path.suffix == ".safetensors", path
    assert not extra or "backbone" not in extra, "the key 'backbone' holds the config"
    vit = model.vit if isinstance(model, ViTBackbone) else model
    tensors = {name: t.to(dtype or t.dtype).contiguous().cpu() for name, t in model_tensors(vit).items()}
    about = {"backbone": config.model_dump(mode="json"), **(extra or {})}
    metadata = {METADATA: json.dumps(about), "format": "pt"}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_backbone(
    path: Path | str,
    *,
    trainable: bool = True,
    image_size: int | None = None,
    patch_size: int | None = None,
    resample: Resample = "pinv",
) -> ViTBackbone:
    """Load a backbone; every tensor of the file is used and every tensor of the model is filled, or it is an error.

    The weights are float32 whatever the file holds. A backbone takes images of any size as it is; the sizes below
    resample it once, before training on or because a head wants another patch.

    Args:
        path: a .safetensors file written by `save_backbone`, one as ViTP and InternVL publish them (ViT_L_300M_rs, with
            or without ``vision_model.`` before the names, the ViT alone or a whole model in one file), or a folder of
            timm (its local-dir layout) or of transformers' InternVLVisionModel (config.json + model.safetensors).
        trainable: False switches gradients off and sets eval mode.
        image_size: side in pixels to resize the position embeddings for; None: the file's, or with a new `patch_size`
            the one with as many patches.
        patch_size: side in pixels to resample the patch embedding to; None: the file's.
        resample: how: "pinv" (timm's pseudo-inverse) or "bicubic" (the released code); see `vitp.backbone.resample`.

    Raises:
        CheckpointError: missing, damaged, a pickle, a training run that was not exported, or another architecture.
        ConfigError: sizes that do not fit together.
    """
    path = Path(path)
    if path.is_dir():
        config, tensors, weights = _read_folder(path)
    else:
        config, tensors, weights = _read_file(path)
    config, tensors = resized(config, tensors, image_size, patch_size, resample)
    try:
        backbone = random_backbone(config, seed=0)
    except ConfigError as error:
        raise CheckpointError(f"{weights}: {error}") from error
    load_model(backbone.vit, tensors, weights)
    backbone.requires_grad_(trainable)
    return backbone.train(trainable)


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON that `save_backbone` put beside the weights; empty when the file carries none.

    Raises:
        CheckpointError: not a complete safetensors file, or its metadata is not JSON.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA, "{}")
        about = json.loads(text)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such weights file") from error
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}); copy or export it again") from error
    return cast(dict[str, Any], about)


def _read_file(path: Path) -> tuple[BackboneConfig, dict[str, Tensor], Path]:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: expected a .safetensors file or a timm folder (config.json, model.safetensors)")
    about, tensors = read_metadata(path), load_tensors(path)
    if is_published(tensors):
        tensors = to_timm_names(tensors, path)
        return _parse(about.get("backbone") or read_sizes(tensors, path), path), tensors, path
    if "backbone" not in about:
        raise CheckpointError(
            f"{path}: its metadata does not say which ViT it holds; write it with `vitp export`, "
            "or give a timm folder (config.json, model.safetensors)"
        )
    return _parse(about["backbone"], path), tensors, path


def _parse(fields: object, origin: Path) -> BackboneConfig:
    try:
        return BackboneConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "backbone"
        raise CheckpointError(f"{origin}: its description of the ViT is not usable: {where}: {first['msg']}") from error


def _read_folder(folder: Path) -> tuple[BackboneConfig, dict[str, Tensor], Path]:
    if (folder / "recipe.yaml").is_file() or (folder / "checkpoints").is_dir():
        exported = folder / "backbone.safetensors"
        first = "" if exported.is_file() else f"run `vitp export {folder} --to timm` and "
        raise CheckpointError(f"{folder}: this is a training run, not a backbone; {first}give {exported}")
    described, weights = folder / "config.json", folder / "model.safetensors"
    for file in (described, weights):
        if not file.is_file():
            raise CheckpointError(
                f"{folder}: has no {file.name}; a timm folder holds config.json and model.safetensors"
            )
    card, tensors = read_json(described), load_tensors(weights)
    if is_vision_folder(card):
        fields, tensors = read_vision_folder(card, tensors, described)
        return _parse(fields, described), tensors, weights
    fields, tensors = read_timm_folder(card, tensors, described)
    return _parse(fields, described), tensors, weights
