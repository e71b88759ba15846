"""A linear classifier on the maps of a backbone: what frozen features hold without a head that learns more."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitp.heads.layers import Norm, classifier, enlarge, norm_layer


class LinearHead(nn.Module):
    """Norm and a 1 x 1 convolution for each map, added up at stride 4 (as DINOv2 evaluates, arXiv 2304.07193).

    A linear map commutes with bilinear enlargement: this is one classifier on all maps side by side at stride 4, at a
    fraction of the cost.
    """

    def __init__(self, channels: Sequence[int], classes: int, norm: Norm = "batch") -> None:
        """A head for maps of strides 4, 8, 16, 32 with the given channels."""
        super().__init__()
        self.classify = nn.ModuleList(nn.Sequential(norm_layer(norm, c), classifier(c, classes)) for c in channels)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Four maps [B, C_k, ceil(H / s_k), ceil(W / s_k)] to logits [B, K, H, W], `size` = (H, W)."""
        finest = (maps[0].shape[-2], maps[0].shape[-1])
        logits = [classify(x).float() for classify, x in zip(self.classify, maps, strict=True)]
        total: Tensor = logits[0]
        for level, x in enumerate(logits[1:], 1):
            total = total + enlarge(x, 2**level, finest)
        return enlarge(total, 4, size)
