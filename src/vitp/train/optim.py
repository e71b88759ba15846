"""Parameter groups with their own learning rates, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vitp.config import Config
from vitp.errors import TrainingError

# embeddings that are added to tokens: matrices in shape, biases in kind
_POSITIONS = re.compile(
    r"(?:^|\.)(?:pos_embed|position_embedding|cls_token|class_embedding|reg_token|level_embed|relative_position_bias_table)$"
)


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


def freeze(groups: Sequence[ParameterGroup]) -> None:
    """Let the parts with a learning rate train, and no others."""
    for group in groups:
        for _, parameter in group.parameters:
            parameter.requires_grad_(group.lr > 0)


def uses_bf16_weights(weights: str, device: torch.device, ranks: int, *, bf16: bool) -> bool:
    """Whether weights are held in bf16 with fp32 copies in the optimiser; ``auto`` does on one GPU that trains in bf16.

    Raises:
        TrainingError: they were asked for where the precision is fp32, or on several ranks.
    """
    if weights != "bf16_master":
        return weights == "auto" and bf16 and device.type == "cuda" and ranks == 1
    if not bf16:
        raise TrainingError("weights: bf16_master goes with bf16, but the precision here is fp32; say precision: bf16")
    if ranks > 1:
        raise TrainingError(
            f"weights: bf16_master works on one process, this run has {ranks}; say weights: auto (strategy: fsdp gathers "
            "weights in bf16 and keeps them in fp32)"
        )
    return True


def to_bf16_weights(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Round a model's fp32 parameters to bf16 in place; returns what they were, for `build_optimizer`.

    Buffers stay: rotary frequencies in bf16 would be wrong positions. Where torch can (2.10 on), gradients stay fp32, so
    that those of several micro-batches are added up exactly.
    """
    masters: dict[nn.Parameter, Tensor] = {}
    for parameter in model.parameters():
        if parameter.dtype != torch.float32:
            continue
        # What is frozen is kept for checkpoints alone, out of the GPU's memory.
        masters[parameter] = parameter.detach().clone() if parameter.requires_grad else parameter.detach().cpu().clone()
        parameter.data = parameter.data.to(torch.bfloat16)
        if parameter.requires_grad and hasattr(parameter, "grad_dtype"):
            parameter.grad_dtype = torch.float32
    return masters


class MasterAdamW(torch.optim.AdamW):
    """Fused AdamW on fp32 copies of bf16 parameters, which are rounded anew after every step.

    An update is mostly smaller than what bf16 can tell apart; it must not be lost. The copy of a parameter is its state
    ``master``; checkpoints hold it in place of the parameter.
    """

    def __init__(self, groups: list[dict[str, Any]], masters: Mapping[nn.Parameter, Tensor], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.frozen = dict(masters)  # fp32 copies of parameters that stand in no group
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["master"] = self.frozen.pop(parameter)

    def _moments(self, parameter: nn.Parameter) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(state["master"]) for _ in range(2))
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of copies and parameters; `closure` belongs to torch's interface and must be None."""
        assert closure is None
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            states = [self._moments(p) for p in trained]
            if not trained:
                continue
            adamw(
                [s["master"] for s in states],
                [p.grad.float() for p in trained],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [s["step"] for s in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            torch._foreach_copy_(trained, [s["master"] for s in states])


def masters_of(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """The fp32 copies of bf16 parameters, trained and frozen, where the optimiser keeps some."""
    if not isinstance(optimizer, MasterAdamW):
        return {}
    trained = {p: optimizer.state[p]["master"] for group in optimizer.param_groups for p in group["params"]}
    return {**trained, **optimizer.frozen}


def build_optimizer(
    groups: Sequence[ParameterGroup],
    *,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    decay_vectors: bool,
    masters: Mapping[nn.Parameter, Tensor] | None = None,
    decay_positions: bool = True,
) -> torch.optim.AdamW:
    """AdamW (fused) over the unfrozen groups; freezes the others by `requires_grad`.

    Args:
        groups: the parts of the model; a parameter may stand in one group only.
        weight_decay: decoupled weight decay.
        betas: Adam's two decay rates.
        eps: Adam's epsilon.
        decay_vectors: also decay biases, norms and scales (the released pretraining does, in effect).
        masters: fp32 copies of bf16 parameters, from `to_bf16_weights`; the optimiser then works on them.
        decay_positions: also decay position, class-token and level embeddings. The released code means to exempt them, but
            its names never match, so that in effect it decays them.

    Returns:
        the optimiser; each of its groups carries ``name`` and ``peak_lr``.
    """
    settings: list[dict[str, Any]] = []
    freeze(groups)
    for group in groups:
        if group.lr <= 0:
            continue
        for decayed in (True, False):
            chosen = [
                p
                for name, p in group.parameters
                if ((decay_vectors or p.ndim >= 2) and (decay_positions or not _POSITIONS.search(name))) == decayed
            ]
            if chosen:
                decay = weight_decay if decayed else 0.0
                settings.append(
                    {"params": chosen, "lr": 0.0, "peak_lr": group.lr, "weight_decay": decay, "name": group.name}
                )
    if masters is not None:
        return MasterAdamW(settings, masters, lr=0.0, betas=betas, eps=eps, fused=True)
    return torch.optim.AdamW(settings, lr=0.0, betas=betas, eps=eps, fused=True)


class _Schedule(Config, ABC):
    """How the learning rate falls after the warm-up."""

    under_warmup: bool = (
        False  # True: the curve begins with the phase and the warm-up bends it, as in mmcv; ours: after it
    )

    @abstractmethod
    def at(self, done: float, step: int, length: int) -> float:
        """Factor of the peak rate at `done` in [0, 1) of the curve and at `step` of a phase of `length` steps."""


class CosineSchedule(_Schedule):
    """Half a cosine."""

    kind: Literal["cosine"] = "cosine"
    end: float = Field(default=0.0, ge=0, le=1)  # factor at the end (released scripts and segmentation configs: 0)

    def at(self, done: float, step: int, length: int) -> float:
        """Half a cosine from 1 to `end`."""
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * done))


class LinearSchedule(_Schedule):
    """A straight line (released: S2Looking, SVCD, WHU-CD)."""

    kind: Literal["linear"] = "linear"
    end: float = Field(default=0.0, ge=0, le=1)  # factor at the end

    def at(self, done: float, step: int, length: int) -> float:
        """A line from 1 to `end`."""
        return self.end + (1.0 - self.end) * (1.0 - done)


class PolySchedule(_Schedule):
    """A power of what is left (DeepLab)."""

    kind: Literal["poly"] = "poly"
    power: float = Field(default=0.9, gt=0)  # DeepLab, mmsegmentation
    end: float = Field(default=0.0, ge=0, le=1)  # factor at the end

    def at(self, done: float, step: int, length: int) -> float:
        """(1 - done) ^ power from 1 to `end`."""
        return self.end + (1.0 - self.end) * math.pow(1.0 - done, self.power)


class StepSchedule(_Schedule):
    """A constant that is multiplied by `factor` at each milestone (the released detection configs)."""

    kind: Literal["step"] = "step"
    milestones: tuple[float, ...] = Field(default=(2 / 3, 11 / 12), min_length=1)  # released: epochs 8 and 11 of 12
    factor: float = Field(default=0.1, gt=0, lt=1)  # released detection configs

    @field_validator("milestones")
    @classmethod
    def _rising(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if min(milestones) <= 0 or list(milestones) != sorted(set(milestones)):
            raise ValueError(f"must rise from above 0 (below 1: shares of the steps), got {list(milestones)}")
        return milestones

    def at(self, done: float, step: int, length: int) -> float:
        """The factor to the power of the milestones passed; a milestone below 1 is a share of the phase."""
        places = (m if m >= 1 else round(m * length) for m in self.milestones)
        return math.pow(self.factor, sum(step >= place for place in places))


ScheduleConfig = Annotated[CosineSchedule | LinearSchedule | PolySchedule | StepSchedule, Field(discriminator="kind")]


def lr_factor(
    step: int,
    steps: int,
    warmup: float,
    starts: Sequence[int] = (0,),
    schedule: ScheduleConfig = CosineSchedule(),
    warmup_from: float | None = None,
) -> float:
    """Linear warm-up, then the schedule, anew from every entry of `starts`.

    Args:
        step: 0-based step about to be taken.
        steps: total number of steps.
        warmup: steps of linear warm-up when >= 1, a share of the phase when < 1 (released script: 0.2).
        starts: ascending first steps of the phases, beginning with 0.
        schedule: how the rate falls.
        warmup_from: factor of the first step of the warm-up (released segmentation configs: 1e-6); None: 1 / w for a
            warm-up of w steps.

    Returns:
        factor in [0, 1] of the peak learning rate.
    """
    begin = max(s for s in starts if s <= step)
    end = min([s for s in starts if s > step] + [steps])
    length, at = end - begin, step - begin
    ramp = int(warmup) if warmup >= 1 else round(warmup * length)
    rise = 1.0
    if at < ramp:
        rise = (at + 1) / ramp if warmup_from is None else warmup_from + (1.0 - warmup_from) * at / ramp
    if schedule.under_warmup:
        return rise * schedule.at(at / max(1, length), at, length)
    return rise * schedule.at(max(0, at - ramp) / max(1, length - ramp), at, length)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's peak learning rate by `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
