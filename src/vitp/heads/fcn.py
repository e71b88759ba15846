"""A light segmentation head over four maps: project, bring to stride 4, add, one convolution, classify."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitp.heads.layers import enlarge


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [B, C, h, w].

    The residual stream of a ViT grows by orders of magnitude over the blocks; without this the deepest map drowns the
    others in the sum.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


class FCNHead(nn.Module):
    """Fully convolutional head (Long et al. 2015) with the additive merge of Semantic FPN (Kirillov et al. 2019)."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 128) -> None:
        """A head for maps of strides 4, 8, 16, 32.

        Args:
            channels: of each map.
            classes: number of classes.
            width: channels inside (128: Semantic FPN); a multiple of 32.
        """
        super().__init__()
        self.project = nn.ModuleList(nn.Sequential(ChannelNorm(c), nn.Conv2d(c, width, 1)) for c in channels)
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(32, width),  # 32 groups: Wu & He 2018
            nn.GELU(),
        )
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Four maps [B, C_k, ceil(H / s_k), ceil(W / s_k)] to logits [B, classes, H, W], `size` = (H, W)."""
        projected = [project(x) for project, x in zip(self.project, maps, strict=True)]
        total = projected[0]
        for level, x in enumerate(projected[1:], 1):
            total = total + enlarge(x, 2**level, (total.shape[2], total.shape[3]))
        return enlarge(self.classify(self.mix(total)), 4, size)
