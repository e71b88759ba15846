"""Parameter groups with their own learning rates, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """A named part of the model with its peak learning rate; 0 freezes the part."""

    name: str
    parameters: list[tuple[str, nn.Parameter]]
    lr: float

    @property
    def size(self) -> int:
        """Number of scalars in the group."""
        return sum(p.numel() for _, p in self.parameters)


def build_optimizer(
    groups: Sequence[ParameterGroup],
    *,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    decay_vectors: bool,
) -> torch.optim.AdamW:
    """AdamW (fused) over the unfrozen groups; freezes the others by `requires_grad`.

    Args:
        groups: the parts of the model; a parameter may stand in one group only.
        weight_decay: decoupled weight decay.
        betas: Adam's two decay rates.
        eps: Adam's epsilon.
        decay_vectors: also decay biases, norms and scales (the released pretraining does, in effect).

    Returns:
        the optimiser; each of its groups carries ``name`` and ``peak_lr``.
    """
    settings: list[dict[str, Any]] = []
    for group in groups:
        for _, parameter in group.parameters:
            parameter.requires_grad_(group.lr > 0)
        if group.lr <= 0:
            continue
        for decayed in (True, False):
            chosen = [p for _, p in group.parameters if (decay_vectors or p.ndim >= 2) == decayed]
            if chosen:
                decay = weight_decay if decayed else 0.0
                settings.append(
                    {"params": chosen, "lr": 0.0, "peak_lr": group.lr, "weight_decay": decay, "name": group.name}
                )
    return torch.optim.AdamW(settings, lr=0.0, betas=betas, eps=eps, fused=True)


def lr_factor(step: int, steps: int, warmup: float, starts: Sequence[int] = (0,)) -> float:
    """Linear warm-up, then cosine to zero, anew from every entry of `starts`.

    Args:
        step: 0-based step about to be taken.
        steps: total number of steps.
        warmup: steps of linear warm-up when >= 1, a share of the phase when < 1 (released script: 0.2).
        starts: ascending first steps of the phases, beginning with 0.

    Returns:
        factor in (0, 1] of the peak learning rate; the first step of a warm-up of w steps gets 1 / w.
    """
    begin = max(s for s in starts if s <= step)
    end = min([s for s in starts if s > step] + [steps])
    length, at = end - begin, step - begin
    ramp = int(warmup) if warmup >= 1 else round(warmup * length)
    if at < ramp:
        return (at + 1) / ramp
    return 0.5 * (1.0 + math.cos(math.pi * (at - ramp) / max(1, length - ramp)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's peak learning rate by `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
