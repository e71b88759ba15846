"""How a ViT becomes a dense backbone (`features:` in a recipe), and what of it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from vitp.backbone.adapter import AdapterConfig, ViTAdapter
from vitp.backbone.dense import DenseBackbone
from vitp.backbone.pyramid import SimpleFeaturePyramid, SingleScale
from vitp.backbone.vit import ViTBackbone
from vitp.config import Config
from vitp.errors import ConfigError, MissingExtraError

Say = Callable[[str], None]


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2022) of the ViT's linear layers, by peft."""

    rank: int = Field(default=8, ge=1)  # peft's default
    alpha: float = Field(default=16.0, gt=0)  # scale alpha / rank; Hu et al.: a constant, here 2 x rank
    layers: tuple[str, ...] = ("attn.qkv", "attn.proj")  # QLoRA (2023): all of attention rather than query and value


class _Features(Config):
    """What all kinds have in common."""

    train: Literal["full", "frozen", "last_n", "lora"] = "full"  # of the ViT; released configs: full
    last_n: int | None = Field(default=None, ge=1)  # blocks that learn, with train: last_n
    lora: LoraConfig | None = None  # with train: lora

    @model_validator(mode="after")
    def _fits(self) -> _Features:
        if (self.train == "last_n") != (self.last_n is not None):
            raise ValueError("last_n goes with train: last_n, and train: last_n needs last_n (how many blocks learn)")
        if self.lora is not None and self.train != "lora":
            raise ValueError("lora is given, but train is not lora")
        return self

    def build(self, backbone: ViTBackbone, seed: int | None = None, say: Say = lambda _: None) -> DenseBackbone:
        """The dense backbone around `backbone`, which is kept inside; what does not learn is frozen, and said.

        Args:
            backbone: not copied.
            seed: of new parameters, torch's global generator being left as it was; None draws from that generator.
            say: receives lines worth reading.

        Raises:
            ConfigError: the sizes do not fit the ViT.
            MissingExtraError: LoRA without peft.
        """
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            dense = self.wrap(backbone)
            if self.train == "lora":
                add_lora(backbone, self.lora or LoraConfig())
        _freeze(self, backbone)
        _say_what_learns(self, dense, say)
        return dense

    def wrap(self, backbone: ViTBackbone) -> DenseBackbone:
        """The backbone's form; new weights come from torch's global generator."""
        raise NotImplementedError


class PlainFeatures(_Features):
    """The ViT alone: maps resampled without parameters."""

    kind: Literal["plain"] = "plain"
    maps: Literal["quarters", "last"] = "quarters"  # of blocks at 1/4, 2/4, 3/4 and the end, or of the last alone

    def wrap(self, backbone: ViTBackbone) -> DenseBackbone:
        """`SingleScale` or the backbone itself."""
        return SingleScale(backbone) if self.maps == "last" else backbone


class PyramidFeatures(_Features):
    """ViTDet's simple feature pyramid."""

    kind: Literal["pyramid"]
    channels: int = Field(default=256, ge=1)  # ViTDet A.2

    def wrap(self, backbone: ViTBackbone) -> DenseBackbone:
        """`SimpleFeaturePyramid`."""
        return SimpleFeaturePyramid(backbone, self.channels)


class AdapterFeatures(_Features, AdapterConfig):
    """ViT-Adapter; sizes as in `AdapterConfig`."""

    kind: Literal["adapter"]

    def wrap(self, backbone: ViTBackbone) -> DenseBackbone:
        """`ViTAdapter`."""
        return ViTAdapter(backbone, self)


FeaturesConfig = Annotated[PlainFeatures | PyramidFeatures | AdapterFeatures, Field(discriminator="kind")]


def _say_what_learns(config: _Features, dense: DenseBackbone, say: Say) -> None:
    new = [p.numel() for name, p in dense.named_parameters() if _is_new(name)]
    if new:
        say(f"features: {type(dense).__name__}, {sum(new) / 1e6:.2f} M new parameters with random weights")
    inside = sum(p.numel() for p in dense.plain.parameters())
    learning = sum(p.numel() for p in dense.plain.parameters() if p.requires_grad)
    what = {
        "full": "all of it learns",
        "frozen": "frozen",
        "last_n": f"its last {config.last_n} blocks learn",
        "lora": "low-rank updates learn",
    }[config.train]
    say(f"features: the ViT: {what} ({learning / 1e6:.2f} of {inside / 1e6:.2f} M parameters)")


def _freeze(config: _Features, backbone: ViTBackbone) -> None:
    if config.train == "frozen":
        backbone.freeze()
    elif config.last_n is not None:
        if config.last_n > backbone.depth:
            raise ConfigError(f"features.last_n: is {config.last_n}, but the ViT has {backbone.depth} blocks")
        backbone.freeze(backbone.depth - config.last_n)


def add_lora(backbone: ViTBackbone, config: LoraConfig) -> None:
    """Low-rank updates beside the ViT's linear layers, in place; everything else in it stops learning.

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: no layer of the ViT has such a name.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("features.train: lora needs peft; install it with: pip install 'vitp[lora]'") from error
    ends = tuple(f".{name}" for name in config.layers)
    targets = [n for n, m in backbone.vit.named_modules() if isinstance(m, nn.Linear) and f".{n}".endswith(ends)]
    if not targets:
        raise ConfigError(
            f"features.lora.layers: '{backbone.config.architecture}' has no linear layer named "
            f"{' or '.join(config.layers)}"
        )
    settings = peft.LoraConfig(r=config.rank, lora_alpha=cast(int, config.alpha), target_modules=targets)
    backbone.requires_grad_(False)
    peft.inject_adapter_in_model(settings, backbone.vit)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_lora(backbone: ViTBackbone) -> None:
    """Add the low-rank updates to the weights and take them out, in place: a plain timm ViT again."""
    for name, module in list(backbone.vit.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            layer = cast(Any, module)
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(backbone.vit.get_submodule(parent), last, layer.get_base_layer())


def merged(features: FeaturesConfig, backbone: ViTBackbone) -> FeaturesConfig:
    """Make the ViT a plain one again where it learned by low-rank updates, in place; `features` of what it is then."""
    if features.train != "lora":
        return features
    merge_lora(backbone)
    return features.model_copy(update={"train": "full", "lora": None})


def _is_new(name: str) -> bool:
    """Whether a dense backbone's parameter is none of the ViT's."""
    return not name.startswith(("backbone.", "vit."))
