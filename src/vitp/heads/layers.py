"""What heads are made of: convolution with norm and ReLU, aligned enlargement, classifier.

Shape legend: B images, C channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["batch", "group"]
_GROUPS = 32  # Wu & He 2018


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Batch norm, or group norm of 32 groups; fewer where they would not divide the channels or hold fewer than 4.

    Batch norm learns from the statistics of a micro-batch, so what is learnt depends on how a step is cut, and one image
    alone is too few where a map has one cell. Group norm looks at one image at a time.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in range(max(1, min(_GROUPS, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ConvNormReLU(nn.Sequential):
    """Convolution without bias (odd kernel, same size), norm, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int, norm: Norm) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False),
            norm_layer(norm, outside),
            nn.ReLU(inplace=True),
        )


def enlarge(x: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Bilinear by exactly `factor`, then cut to `size`: cells may reach beyond the picture, and must not be squeezed into it.

    Where `size` is `factor` times that of `x` this is interpolation with align_corners False.
    """
    return functional.interpolate(x, scale_factor=float(factor), mode="bilinear")[..., : size[0], : size[1]]


def classifier(channels: int, classes: int) -> nn.Conv2d:
    """1 x 1 convolution to logits, weights drawn from Normal(0, 0.01) and no bias to start with (mmsegmentation)."""
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def too_few_for_batch_norm(module: nn.Module, sizes: Sequence[int]) -> bool:
    """Whether `module` holds batch norm and one of the micro-batches has a single image and no other process helps."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return alone and min(sizes) < 2 and any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Batch norms that share their statistics over processes, where there are several and they hold GPUs (released: SyncBN).

    torch has no synchronised batch norm for CPUs; there the model comes back as it is.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_world_size() < 2 or next(model.parameters()).device.type == "cpu":
        return model
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted
