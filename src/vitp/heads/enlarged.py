"""A 3 x 3 convolution over maps enlarged to the finest one and laid side by side, without enlarging them.

Convolution and bilinear enlargement are both linear: a tap of the kernel, a 1 x 1 product, may come before the enlargement,
where there are 4, 16 or 64 times fewer cells, and the shift that belongs to the tap is part of the matrix that
enlarges. UPerNet's last convolution so takes 0.4 of its time on a CPU (bench/segment_step.py), and the maps side by side are
never held.

Shape legend: B images, C channels of a map, K channels out, h x w cells of a map, H x W of the finest, I = 3 rows and
J = 3 columns of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vitp.backbone.dense import resample_matrix
from vitp.heads.layers import enlarge

_SIDE = 2  # cells a side for each channel out: beyond it the enlarging matrices cost more than the kernel's taps save


def convolve_enlarged(levels: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Convolve the maps as if enlarged by 1, 2, 4 ... and cut to the first one's size, zeros around them.

    Args:
        levels: maps [B, C, ceil(H / 2**k), ceil(W / 2**k)], the finest first.
        weight: [K, sum of C, 3, 3].

    Returns:
        [B, K, H, W].
    """
    finest = levels[0]
    size = (finest.shape[-2], finest.shape[-1])
    if not _pays(finest.device, size, weight.shape[0]):
        wide = [finest, *(enlarge(x, 2**k, size) for k, x in enumerate(levels[1:], 1))]
        return functional.conv2d(torch.cat(wide, 1), weight, padding=1)
    own, *others = torch.split(weight, [x.shape[1] for x in levels], dim=1)
    total = functional.conv2d(finest, own, padding=1)
    if not others:
        return total
    parts = [
        _taps_first(x, kernel, 2**k, size) for k, (x, kernel) in enumerate(zip(levels[1:], others, strict=True), 1)
    ]
    return total + torch.stack(parts).sum(0).permute(0, 3, 1, 2)


def _pays(device: torch.device, size: tuple[int, int], channels: int) -> bool:
    """Whether taps come first: on CPUs (elsewhere it is not measured), not in exported graphs, not for huge maps."""
    captured = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    return device.type == "cpu" and not captured and max(size) <= _SIDE * channels


def _taps_first(x: Tensor, weight: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Map [B, C, h, w], enlarged by `factor`, convolved with [K, C, 3, 3]: [B, H, W, K]."""
    batch, channels, height, width = x.shape
    out = weight.shape[0]
    kernel_CJIK = weight.permute(1, 3, 2, 0).reshape(channels, -1)
    taps = torch.matmul(x.flatten(2).mT, kernel_CJIK)  # [B, h * w, J * I * K]
    across = torch.matmul(_shifted(width, factor, size[1], taps), taps.view(batch * height, width * 3, 3 * out))
    rows = across.view(batch, height, size[1], 3, out).transpose(2, 3).reshape(batch, height * 3, size[1] * out)
    return torch.matmul(_shifted(height, factor, size[0], taps), rows).view(batch, *size, out)


def _shifted(cells: int, factor: int, size: int, like: Tensor) -> Tensor:
    """The enlargement of one axis as seen by the three taps of a kernel, [size, cells * 3]; beyond the border lie zeros."""
    plain = resample_matrix(cells, factor, 1, size, like.device, antialias=False).to(like.dtype)
    before, after = functional.pad(plain[:-1], (0, 0, 1, 0)), functional.pad(plain[1:], (0, 0, 0, 1))
    return torch.stack([before, plain, after], dim=2).flatten(1)
