"""What every training run sets, whatever its task, and which device and precision that means here."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from vitp.config import Config
from vitp.errors import TrainingError
from vitp.train.optim import CosineSchedule, ScheduleConfig
from vitp.train.strategies import StrategyName

Share = Annotated[float, Field(ge=0, lt=1)]


class LoopConfig(Config):
    """What every training run sets, whatever its task."""

    steps: int = Field(default=8000, ge=1)  # released scripts; plateau in paper Fig. 5
    seed: int = Field(default=42, ge=0, lt=2**63)  # the released trainer's default
    warmup: float = Field(default=0.2, ge=0)  # released scripts: share of the steps; from 1 on: number of steps
    weight_decay: float = Field(default=0.01, ge=0)  # released scripts
    warmup_from: float | None = Field(default=None, ge=0, le=1)  # factor of the first step; None: 1 / warm-up steps
    schedule: ScheduleConfig = CosineSchedule()  # released scripts
    decay_positions: bool = (
        True  # False exempts position, class-token and level embeddings, which the released code means to
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1
    )  # decay of an average of the weights, the one scored and exported
    decay_vectors: bool = False  # True decays biases, norms and scales too, as the released optimiser does in effect
    betas: tuple[Share, Share] = (0.9, 0.999)  # released scripts
    eps: float = Field(default=1e-8, gt=0)  # released scripts
    clip_norm: float = Field(default=1.0, ge=0)  # released trainer's default; 0 switches clipping off
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # released: bf16; auto takes it where the hardware has it
    # With bf16: fp32 weights under autocast, or bf16 weights with fp32 copies in the optimiser, as the released trainer
    # (DeepSpeed). Copies halve the activations; auto takes them on one GPU (docs/performance.md)
    weights: Literal["auto", "fp32", "bf16_master"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: StrategyName = "auto"  # how many ranks share the work; auto: ddp, since states of 1 B parameters fit
    workers: int | None = Field(
        default=None, ge=0
    )  # a rank; None: its share of the cores less one, at most 8 (released: 8)
    worker_timeout: float = Field(default=1800.0, ge=0)  # ours: seconds a step may be waited for; 0: for ever
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_last: int = Field(default=2, ge=1)
    max_skipped_share: float = Field(default=0.05, ge=0, le=1)  # stop when more of the samples were unusable


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one, else the CPU.

    Raises:
        TrainingError: CUDA was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device: cuda was asked for but torch sees no GPU here; say device: cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def uses_bf16(precision: str, device: torch.device) -> bool:
    """`auto` is bf16 on GPUs that have it and on CPUs with AVX512-BF16 or AMX instructions, else fp32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(probe()) for probe in probes if probe is not None)
