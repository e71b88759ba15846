"""What a wrong box costs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

Beta = Annotated[float, Field(ge=0)]  # where smooth L1 turns from square to straight; 0: L1


def offset_loss(offsets: Tensor, target: Tensor, weight: Tensor, beta: float) -> Tensor:
    """Smooth L1 (Girshick, Fast R-CNN, 2015, Eq. 3) of offsets [P, D] against `target` [P, D], weighted by [P] and summed."""
    apart = functional.smooth_l1_loss(offsets.float(), target, beta=beta, reduction="none")
    return (apart.sum(1) * weight).sum()
