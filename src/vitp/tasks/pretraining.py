"""The pretraining task: the vision-language model, its three parts and their learning rates."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitp.instruction.pack import StepBuilder
from vitp.train.optim import ParameterGroup
from vitp.train.task import StepBatch
from vitp.vlm.model import PackTensors, VisionLanguageModel


class PretrainingTask:
    """What the loop needs to train a vision-language model."""

    def __init__(
        self,
        model: VisionLanguageModel,
        builder: StepBuilder,
        *,
        lr_tower: float,
        lr_projector: float,
        lr_language_model: float,
    ) -> None:
        self.model = model
        self.builder = builder
        self._lr = {"tower": lr_tower, "projector": lr_projector, "language_model": lr_language_model}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Tower, projector and language model, each with its own peak learning rate."""
        return [
            ParameterGroup(part, list(getattr(self.model, part).named_parameters()), lr)
            for part, lr in self._lr.items()
        ]

    def step_batch(self, step: int) -> StepBatch:
        """The packs of one step."""
        return self.builder.step_batch(step)

    def where(self, step: int, slot: int) -> str:
        """``file:line`` of a sample of a step."""
        return self.builder.where(step, slot)

    def loss(self, micro: PackTensors) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum over the pack's supervised tokens."""
        return self.model(micro), {}

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("the task stays in its process; only its StepBuilder travels to workers")
