"""Which segmentation head a recipe asks for, and its fresh weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from vitp.config import Config
from vitp.heads.fcn import FCNHead
from vitp.heads.layers import Norm
from vitp.heads.linear import LinearHead
from vitp.heads.upernet import AuxiliaryHead, UPerNetHead


class _Head(Config, ABC):
    @abstractmethod
    def module(self, channels: Sequence[int], classes: int) -> nn.Module:
        """The head with weights from torch's global generator; `build` takes a seed."""

    def build(self, channels: Sequence[int], classes: int, seed: int) -> nn.Module:
        """A head whose initial weights depend on `seed` alone; torch's global generator is left as it was.

        Args:
            channels: of the maps at strides 4, 8, 16, 32.
            classes: number of classes K.
            seed: of the weights.

        Returns:
            a module ``(maps, (H, W)) -> logits [B, K, H, W]``.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.module(channels, classes)


class FCNConfig(_Head):
    """The light head: maps added at stride 4, one convolution."""

    kind: Literal["fcn"] = "fcn"
    width: int = Field(default=128, ge=32, multiple_of=32)  # Semantic FPN

    def module(self, channels: Sequence[int], classes: int) -> nn.Module:
        """The head."""
        return FCNHead(channels, classes, self.width)


class UPerNetConfig(_Head):
    """UPerNet."""

    kind: Literal["upernet"] = "upernet"
    width: int = Field(default=512, ge=1)  # released configs (LEVIR-CD: 1024)
    pools: tuple[int, ...] = Field(default=(1, 2, 3, 6), min_length=1)  # released configs
    dropout: float = Field(default=0.1, ge=0, lt=1)  # released configs
    norm: Norm = "batch"  # released configs: synchronised over 8 GPUs; group is exact for every micro-batch

    @field_validator("pools")
    @classmethod
    def _positive(cls, pools: tuple[int, ...]) -> tuple[int, ...]:
        if min(pools) < 1:
            raise ValueError(f"the sides of pooling grids must be at least 1, got {list(pools)}")
        return pools

    def module(self, channels: Sequence[int], classes: int) -> nn.Module:
        """The head."""
        return UPerNetHead(channels, classes, self.width, self.pools, self.dropout, self.norm)


class LinearConfig(_Head):
    """A linear classifier on all four maps."""

    kind: Literal["linear"] = "linear"
    norm: Norm = "batch"  # DINOv2's evaluation

    def module(self, channels: Sequence[int], classes: int) -> nn.Module:
        """The head."""
        return LinearHead(channels, classes, self.norm)


class AuxiliaryConfig(_Head):
    """The auxiliary FCN head; its loss counts `loss.auxiliary_weight`. The released configs have none."""

    width: int = Field(default=256, ge=1)  # mmsegmentation's UPerNet
    level: int = Field(default=2, ge=0, le=3)  # mmsegmentation: the map of stride 16
    convolutions: int = Field(default=1, ge=0)  # mmsegmentation
    dropout: float = Field(default=0.1, ge=0, lt=1)  # mmsegmentation
    norm: Norm = "batch"  # mmsegmentation

    def module(self, channels: Sequence[int], classes: int) -> nn.Module:
        """The head."""
        return AuxiliaryHead(channels, classes, self.width, self.level, self.convolutions, self.dropout, norm=self.norm)


HeadConfig = Annotated[FCNConfig | UPerNetConfig | LinearConfig, Field(discriminator="kind")]
