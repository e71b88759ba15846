"""Looking at a model between two of its training steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients; afterwards every module and torch's generators are as they were."""
    trained = [module for module in model.modules() if module.training]
    devices = [parameter.device for parameter in model.parameters()][:1]
    with torch.random.fork_rng([d for d in devices if d.type == "cuda"]), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module in trained:
                module.training = True
