"""An exponential moving average of the weights: kept beside them, saved with them, and used instead of them in the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vitp.errors import CheckpointError
from vitp.train.checkpoint import AVERAGE, checkpoint_weights, load_model, load_tensors, model_tensors


class WeightAverage:
    """The average a of the weights w, in fp32: after step t (from 0) a becomes d a + (1 - d) w.

    d is the smaller of the given decay and (1 + t) / (10 + t) (as TensorFlow's and timm's averages begin): a short run is not
    held back by its random start. The statistics of batch norms are averaged alike; frozen tensors are left out.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """An average of the tensors of `model` that training changes; call it once the frozen ones are frozen."""
        self.decay = decay
        self.tensors = {name: t.to(torch.float32, copy=True) for name, t in _moving(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        newest = _moving(model)
        averages = list(self.tensors.values())
        torch._foreach_lerp_(averages, [newest[name].float() for name in self.tensors], 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averages in the place of the weights."""
        own = model_tensors(model)
        for name, average in self.tensors.items():
            own[name].copy_(average)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The averages in the place of the weights for the time of a block; then the weights are bit for bit as before."""
        own = model_tensors(model)
        kept = {name: own[name].clone() for name in self.tensors}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in kept.items():
                    own[name].copy_(tensor)

    def load(self, folder: Path) -> None:
        """Go on from the average in a checkpoint's folder.

        Raises:
            CheckpointError: missing, damaged, or of another model.
        """
        saved = load_tensors(folder / AVERAGE)
        if saved.keys() != self.tensors.keys() or any(saved[k].shape != t.shape for k, t in self.tensors.items()):
            raise CheckpointError(
                f"{folder / AVERAGE}: averages other weights; resume with the recipe it was made with"
            )
        for name, average in self.tensors.items():
            average.copy_(saved[name])


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Put the weights of a checkpoint's folder into `model`: the averages where the run kept some.

    Raises:
        CheckpointError: missing, damaged, or of another architecture.
    """
    averaged, tensors = checkpoint / AVERAGE, checkpoint_weights(checkpoint)
    load_model(model, tensors | load_tensors(averaged) if averaged.is_file() else tensors, checkpoint)


def _moving(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters, and the buffers of floating type that are saved (statistics of batch norms)."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {k: t for k, t in model_tensors(model).items() if k not in frozen and t.is_floating_point()}
