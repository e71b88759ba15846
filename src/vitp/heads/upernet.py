"""UPerNet (Xiao et al. 2018) as the released configurations use it, and the FCN head beside it during training.

Shape legend: B images, K classes, maps at strides 4, 8, 16, 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitp.heads.enlarged import convolve_enlarged
from vitp.heads.layers import ConvNormReLU, Norm, classifier, enlarge
from vitp.train.keyed_drop import KeyedDropout2d


class PyramidPooling(nn.Module):
    """Averages over coarse grids of the deepest map, each projected and enlarged again, beside the map itself (PSPNet)."""

    def __init__(self, channels: int, width: int, pools: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.project = nn.ModuleList(ConvNormReLU(channels, width, 1, norm) for _ in pools)
        self.bottleneck = ConvNormReLU(channels + len(self.pools) * width, width, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] to [B, width, h, w]."""
        seen = [x]
        for side, project in zip(self.pools, self.project, strict=True):
            pooled = project(functional.adaptive_avg_pool2d(x, side))
            seen.append(functional.interpolate(pooled, x.shape[-2:], mode="bilinear"))
        mixed: Tensor = self.bottleneck(torch.cat(seen, 1))
        return mixed


class UPerNetHead(nn.Module):
    """Pyramid pooling on the deepest map, a top-down path, and all levels side by side at stride 4.

    Equal to transformers' ``UperNetHead`` where the picture's sides are multiples of 32. Elsewhere the deeper maps reach
    beyond the picture; here they are enlarged by exactly 2 and cut, so that every level stays in its place.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 512,
        pools: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        norm: Norm = "batch",
    ) -> None:
        """A head for maps of strides 4, 8, 16, 32.

        Args:
            channels: of each map, the finest first; any numbers.
            classes: number of classes.
            width: channels inside (released: 512).
            pools: sides of the pooling grids (released: 1, 2, 3, 6).
            dropout: share of channels dropped before the classifier in training (released: 0.1).
            norm: batch (released) or group.
        """
        super().__init__()
        self.pooling = PyramidPooling(channels[-1], width, pools, norm)
        self.lateral = nn.ModuleList(ConvNormReLU(c, width, 1, norm) for c in channels[:-1])
        self.smooth = nn.ModuleList(ConvNormReLU(width, width, 3, norm) for _ in channels[:-1])
        self.fuse = ConvNormReLU(len(channels) * width, width, 3, norm)
        self.dropout = KeyedDropout2d(dropout, width)
        self.classify = classifier(width, classes)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Four maps [B, C_k, ceil(H / s_k), ceil(W / s_k)] to logits [B, K, H, W], `size` = (H, W)."""
        return enlarge(self.coarse(maps), 4, size)

    def coarse(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, K, ceil(H / 4), ceil(W / 4)] in fp32, one per cell of the finest map."""
        path = [lateral(x) for lateral, x in zip(self.lateral, maps[:-1], strict=True)]
        path.append(self.pooling(maps[-1]))
        for level in range(len(path) - 1, 0, -1):
            path[level - 1] = path[level - 1] + enlarge(path[level], 2, _size(path[level - 1]))
        levels = [smooth(x) for smooth, x in zip(self.smooth, path[:-1], strict=True)]
        levels.append(path[-1])
        convolution, norm, activation = self.fuse
        fused = activation(norm(convolve_enlarged(levels, cast(Tensor, convolution.weight))))
        logits: Tensor = self.classify(self.dropout(fused))
        return logits.float()


class AuxiliaryHead(nn.Module):
    """Convolutions on one map and a classifier (the auxiliary FCN of mmsegmentation): a second loss while training."""

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 256,
        level: int = 2,
        convolutions: int = 1,
        dropout: float = 0.1,
        norm: Norm = "batch",
    ) -> None:
        """A head on map `level` (0: stride 4, 3: stride 32) with `convolutions` of 3 x 3 before the classifier."""
        super().__init__()
        self.level = level
        widths = [channels[level]] + [width] * convolutions
        self.mix = nn.Sequential(*(ConvNormReLU(a, b, 3, norm) for a, b in pairwise(widths)))
        self.dropout = KeyedDropout2d(dropout, widths[-1])
        self.classify = classifier(widths[-1], classes)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The maps of all levels to logits [B, K, H, W], `size` = (H, W)."""
        return enlarge(self.coarse(maps), 4 * 2**self.level, size)

    def coarse(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, K, h, w] in fp32, one per cell of the map."""
        logits: Tensor = self.classify(self.dropout(self.mix(maps[self.level])))
        return logits.float()


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
