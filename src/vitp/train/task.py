"""What the loop, its data feeding and the tasks know of each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitp.train.optim import ParameterGroup


class MicroBatch(Protocol):
    """What one forward pass computes on."""

    def to(self, device: torch.device) -> MicroBatch:
        """Itself with its tensors on `device`, without waiting for copies from pinned memory."""

    def pin_memory(self) -> MicroBatch:
        """Itself with its tensors in pinned memory."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, saved when the loss is not finite."""

    def of_step(self, weight: float, extent: tuple[int, int] | None) -> MicroBatch:
        """Itself, told what only all ranks together know of a step; one process, which laid out all of it, never calls it.

        Args:
            weight: the whole step's (`StepBatch.weight`).
            extent: the largest of all ranks' (`StepBatch.extent`).
        """


@dataclass(frozen=True)
class StepBatch:
    """One optimiser step's data, a pure function of the step number."""

    micros: list[Any]
    weight: float  # the gradient is the sum over micros of d(loss_sum), divided by this; a rank's part of it adds up
    counts: dict[str, float] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)  # where each sample stands, for messages
    skipped: list[dict[str, Any]] = field(default_factory=list)
    extent: tuple[int, int] | None = None  # (H, W) of its images, where all images of a step have the same

    def pin_memory(self) -> StepBatch:
        """The same step in pinned memory; torch's loader calls this where a GPU is to copy from it."""
        return replace(self, micros=[micro.pin_memory() for micro in self.micros])


@dataclass(frozen=True)
class Observation:
    """What was found out between two steps: numbers for the log, pictures uint8 [H, W, 3] and texts for TensorBoard."""

    numbers: dict[str, float]
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Task(Protocol):
    """What the loop asks of a task."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """The parts of the model with their peak learning rates."""

    def step_batch(self, step: int) -> StepBatch:
        """The data of one step; pure in `step`, called in worker processes. Calls `working_on` for every sample."""

    def where(self, step: int, slot: int) -> str:
        """Which file (and line) the sample at place `slot` of a step comes from, without reading it."""

    def loss(self, micro: Any) -> tuple[Tensor, dict[str, float]]:
        """The weighted SUM of the losses of a micro-batch (not divided), and numbers to add up for the log."""


class Progress(Protocol):
    """Somebody who wants to see the run go on."""

    def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
        """Called after every step; `logs` holds the newest values."""

    def say(self, text: str) -> None:
        """Called with a line worth reading now."""
