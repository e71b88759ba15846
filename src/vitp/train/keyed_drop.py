"""Modules that drop by numbers that come with the data: stochastic depth, dropout, dropout of channels.

torch's and timm's own draw from the global generator, so that a step would depend on how it is cut into micro-batches and
spread over ranks. Here whoever lays out a step hands in uniform numbers keyed by (seed, step, sample)
(`vitp.vlm.stochastic_depth.set_uniforms`, `vitp.tasks.dense.hand_uniforms`); without numbers, or in eval mode, nothing drops.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SEEDS = 1 << 53  # numbers a double tells apart below 1


class KeyedDrop(nn.Module):
    """What all have in common; what `decide` made of the numbers waits in `decided` for the forward pass."""

    numbers = 1  # uniform numbers for each row of a batch

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.decided: Tensor | None = None

    def decide(self, uniform: Tensor | None) -> None:
        """Take in numbers in [0, 1), [rows, `numbers`]; None switches dropping off.

        Here and not in `forward`, so that compiled blocks do not depend on the rate and one compiled block serves all.
        """
        self.decided = None if uniform is None or self.rate == 0.0 else self._decision(uniform)

    def _decision(self, uniform: Tensor) -> Tensor:
        """By default 0 or 1 / (1 - rate) for each number."""
        return (uniform >= self.rate).float() / (1.0 - self.rate)

    def extra_repr(self) -> str:
        """The rate, for ``print(model)``."""
        return f"rate={self.rate:.3g}"


class KeyedDropPath(KeyedDrop):
    """Drops the residual branch of each row (a tile, an image) with a number below `rate`; others grow by 1 / (1 - rate)."""

    def forward(self, x: Tensor) -> Tensor:
        """Branch output [rows, ...] to the same shape, in the same dtype."""
        if not self.training or self.decided is None:
            return x
        return x * self.decided.to(x.dtype).view(-1, *([1] * (x.ndim - 1)))

    def of_rows(self, x_RC: Tensor, tiles_R: Tensor) -> Tensor:
        """The same for rows picked from the tiles: branch output [R, C] of rows that belong to `tiles_R`."""
        if not self.training or self.decided is None:
            return x_RC
        return x_RC * self.decided.to(x_RC.dtype).index_select(0, tiles_R)


class KeyedDropout(KeyedDrop):
    """Dropout of single elements; each row's mask is drawn from a generator seeded by the row's number."""

    def _decision(self, uniform: Tensor) -> Tensor:
        return uniform

    def forward(self, x: Tensor) -> Tensor:
        """[rows, ...] to the same shape, in the same dtype."""
        if not self.training or self.decided is None:
            return x
        rows = []
        for number in self.decided.double().flatten().tolist():
            random = torch.Generator(x.device).manual_seed(int(number * _SEEDS))
            rows.append(torch.rand(x.shape[1:], generator=random, device=x.device) >= self.rate)
        return x * torch.stack(rows).to(x.dtype) / (1.0 - self.rate)


class KeyedDropout2d(KeyedDrop):
    """Drops whole channels of a row; the others grow by 1 / (1 - rate)."""

    def __init__(self, rate: float, channels: int) -> None:
        super().__init__(rate)
        self.numbers = channels

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels, h, w] to the same shape."""
        if not self.training or self.decided is None:
            return x
        return x * self.decided.to(x.dtype)[:, :, None, None]
