"""Test-time augmentation: the same pictures at several scales and mirrored, and what the model makes of all of them.

Shape legend: B pictures, C channels (3, or 6 for two dates), K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as images_functional


def _positive(scales: tuple[float, ...]) -> tuple[float, ...]:
    if min(scales) <= 0:
        raise ValueError(f"must be above 0, got {min(scales):g}")
    return scales


Scales = Annotated[tuple[float, ...], Field(min_length=1), AfterValidator(_positive)]
Flips = Literal["none", "horizontal", "all"]
FLIPS: dict[Flips, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "all": ((), (-1,), (-2,), (-2, -1)),
}


def over_views(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    zoom: float = 1.0,
    scales: Sequence[float] = (1.0,),
    flips: Flips = "none",
) -> Tensor:
    """Logits of pictures, of one view or of all of them.

    Probabilities of several views are averaged, as mmsegmentation does, not their logits: a view that is sure cannot
    outvote the others by more than its share. Their logarithm is returned, whose softmax is the average again.

    Args:
        predict: uint8 [B, C, h, w] of any size to logits [B, K, h, w].
        images: uint8 [B, C, H, W].
        zoom: of every view, before its scale.
        scales: one view each.
        flips: views mirrored left-right, or also up-down and both.

    Returns:
        float32 [B, K, H, W], every view's logits brought back to the pictures' place and size.
    """
    size = (images.shape[-2], images.shape[-1])
    count = len(scales) * len(FLIPS[flips])
    total: Tensor | None = None
    for scale in scales:
        zoomed = resized(images, size, zoom * scale)
        for dims in FLIPS[flips]:
            found = predict(zoomed.flip(dims) if dims else zoomed).float()
            if dims:
                found = found.flip(dims)
            if found.shape[-2:] != size:
                found = functional.interpolate(found, size, mode="bilinear", antialias=True)
            if count == 1:
                return found
            shares = found.softmax(1)
            total = shares if total is None else total.add_(shares)
    assert total is not None
    return (total / count).clamp_min_(torch.finfo(torch.float32).tiny).log_()


def resized(images: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Pictures [B, C, *size] zoomed by `scale`, smoothed."""
    target = [max(1, round(size[0] * scale)), max(1, round(size[1] * scale))]
    if target == list(size):
        return images
    found: Tensor = images_functional.resize(images, target, antialias=True)
    return found
