"""What every backbone of a dense task is: images in, one map a stride out, and which layer each parameter belongs to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vitp.backbone.vit import ViTBackbone

STRIDES = (4, 8, 16, 32)  # what UPerNet and FPN heads expect


class DenseBackbone(nn.Module):
    """Images [B, 3, H, W] (uint8 0-255 or float 0-1) to one map [B, channels, ceil(H / s), ceil(W / s)] a stride s."""

    channels: int
    depth: int  # blocks of the ViT
    strides: tuple[int, ...] = STRIDES

    @property
    def plain(self) -> ViTBackbone:
        """The ViT inside."""
        raise NotImplementedError

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 the embeddings, i + 1 block i, depth + 1 all after them (BEiT's numbering)."""
        raise NotImplementedError


def resample_matrix(
    tokens: int, patch: int, stride: int, pixels: int, device: torch.device, *, antialias: bool = True
) -> Tensor:
    """Weights [ceil(pixels / stride), tokens] that move one axis from token spacing `patch` to spacing `stride`.

    Token j is centred on pixel (j + 0.5) * patch and output cell i on (i + 0.5) * stride, so every map lies on the same
    picture even where `stride` does not divide `patch` or the picture was padded. The filter is the triangle of
    antialiased bilinear interpolation, as wide as the coarser of the two grids; rows sum to 1, borders repeat.
    Without `antialias` it is as wide as the tokens' own grid: plain bilinear interpolation.
    """
    cells = torch.arange(math.ceil(pixels / stride), device=device, dtype=torch.float32)
    at = (cells + 0.5) * (stride / patch) - 0.5
    if not antialias:
        at = at.clamp(0, tokens - 1)
    distance = (at[:, None] - torch.arange(tokens, device=device, dtype=torch.float32)).abs()
    weights = (1.0 - distance / (max(1.0, stride / patch) if antialias else 1.0)).clamp_min(0.0)
    return weights / weights.sum(1, keepdim=True)


def resample(tokens: Tensor, patch: int, stride: int, height: int, width: int, *, antialias: bool = True) -> Tensor:
    """Tokens [B, C, h, w] of `patch` pixels to the cells of a `stride` that cover `height` x `width` pixels."""
    if stride == patch:
        return tokens
    with torch.autocast(tokens.device.type, enabled=False):
        down, across = (
            resample_matrix(n, patch, stride, pixels, tokens.device, antialias=antialias).to(tokens.dtype)
            for n, pixels in zip(tokens.shape[-2:], (height, width), strict=True)
        )
        return torch.matmul(torch.matmul(down, tokens), across.mT)
