"""Necks: from a dense backbone's four maps to the five levels of a detector (`neck:` in a recipe).

Shape legend: B images, C channels in, K channels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vitp.backbone.pyramid import SimpleFPN
from vitp.config import Config


class FPN(nn.Module):
    """The feature pyramid network (Lin et al. 2017): 1 x 1 laterals, each added to the enlarged level above, 3 x 3 after.

    Levels beyond the inputs are the last one at every second cell.
    """

    def __init__(self, channels: Sequence[int], out_channels: int = 256, levels: int = 5) -> None:
        """A neck over maps of `channels` each, giving `levels` maps of `out_channels`."""
        super().__init__()
        assert levels >= len(channels), f"{levels} levels from {len(channels)} maps"
        self.levels, self.out_channels = levels, out_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in channels)
        for conv in (*self.lateral, *self.smooth):
            assert isinstance(conv, nn.Conv2d)
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_i, h_i, w_i] to `levels` maps [B, K, h_i, w_i], each further one half the size, rounded up."""
        inner = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for k in range(len(inner) - 2, -1, -1):
            inner[k] = inner[k] + functional.interpolate(inner[k + 1], size=inner[k].shape[-2:], mode="nearest")
        return with_coarser([smooth(x) for smooth, x in zip(self.smooth, inner, strict=True)], self.levels)


class MapsAsLevels(nn.Module):
    """The backbone's own maps, and coarser ones from the last (ViTDet)."""

    def __init__(self, channels: int, levels: int = 5) -> None:
        super().__init__()
        self.levels, self.out_channels = levels, channels

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C, h_i, w_i] to `levels` of them."""
        return with_coarser(list(maps), self.levels)


def with_coarser(maps: list[Tensor], levels: int) -> list[Tensor]:
    """Maps, and as many further ones of half the size as make `levels`: every second cell of the last."""
    while len(maps) < levels:
        maps = [*maps, maps[-1][..., ::2, ::2]]
    return maps


class _Neck(Config):
    channels: int = Field(default=256, ge=1)  # of every level; released configs
    levels: int = Field(default=5, ge=4, le=7)  # strides 4 to 64; released configs


class SimpleFPNConfig(_Neck):
    """The released neck: convolutions with layer norms, no way from coarse to fine."""

    kind: Literal["simple_fpn"] = "simple_fpn"

    def build(self, channels: Sequence[int]) -> nn.Module:
        """The neck over maps of `channels`; weights from torch's global generator."""
        return SimpleFPN(channels, self.channels, self.levels)


class FPNConfig(_Neck):
    """The feature pyramid network."""

    kind: Literal["fpn"]

    def build(self, channels: Sequence[int]) -> nn.Module:
        """The neck over maps of `channels`; weights from torch's global generator."""
        return FPN(channels, self.channels, self.levels)


class NoNeckConfig(Config):
    """The maps as they are, for `features: {kind: pyramid}`, which is a neck already."""

    kind: Literal["none"]
    levels: int = Field(default=5, ge=4, le=7)  # ViTDet: a fifth by pooling the fourth

    def build(self, channels: Sequence[int]) -> nn.Module:
        """The neck over maps of `channels`."""
        return MapsAsLevels(channels[-1], self.levels)


NeckConfig = Annotated[SimpleFPNConfig | FPNConfig | NoNeckConfig, Field(discriminator="kind")]
