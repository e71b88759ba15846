"""Two dates, one backbone: the maps of both, fused level by level, in front of any segmentation head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Fusion = Literal["concat", "difference"]


def fused_channels(channels: Sequence[int], fusion: Fusion) -> list[int]:
    """Channels of the fused maps."""
    return [c * (2 if fusion == "concat" else 1) for c in channels]


def fuse(before: Sequence[Tensor], after: Sequence[Tensor], fusion: Fusion) -> list[Tensor]:
    """Maps of both dates to fused maps, level by level.

    Args:
        before: maps [B, C_k, h_k, w_k] of the first date.
        after: maps of the second date, of the same shapes.
        fusion: concat puts the channels side by side (released, [B, 2 C_k, h_k, w_k]); difference takes the absolute
            difference [B, C_k, h_k, w_k], which does not know which date came first.
    """
    if fusion == "concat":
        return [torch.cat([a, b], 1) for a, b in zip(before, after, strict=True)]
    return [(a - b).abs() for a, b in zip(before, after, strict=True)]
