"""Stochastic depth whose decisions come with the data.

timm's own module draws from the global generator, once per tensor row, so that the result depends on how tiles
are batched. Here the uniform numbers travel in the pack, keyed by (seed, step, sample): the same tile loses the
same residual branches whatever the micro-batch or the rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SEEDS = 1 << 53  # numbers a double tells apart below 1


class KeyedDropPath(nn.Module):
    """Drops the residual branch of each tile whose number is below `rate`; scales the others by 1 / (1 - rate).

    `scale` float32 [tiles] is 0 or 1 / (1 - rate), set by `set_uniforms` before a training forward; without it, or in
    eval mode, nothing drops.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None

    def decide(self, uniform: Tensor | None) -> None:
        """Take in one number in [0, 1) a tile, [tiles]; None switches dropping off.

        Here and not in `forward`, so that compiled blocks do not depend on the rate and one compiled block serves all.
        """
        if uniform is None or self.rate == 0.0:
            self.scale = None
        else:
            self.scale = (uniform >= self.rate).float() / (1.0 - self.rate)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output [tiles, ...] to the same shape, in the same dtype."""
        if not self.training or self.scale is None:
            return x
        return x * self.scale.to(x.dtype).view(-1, *([1] * (x.ndim - 1)))

    def of_rows(self, x_RC: Tensor, tiles_R: Tensor) -> Tensor:
        """The same for rows picked from the tiles: branch output [R, C] of rows that belong to `tiles_R`."""
        if not self.training or self.scale is None:
            return x_RC
        return x_RC * self.scale.to(x_RC.dtype).index_select(0, tiles_R)[:, None]

    def extra_repr(self) -> str:
        """The rate, for ``print(model)``."""
        return f"rate={self.rate:.3f}"


class KeyedDropout(KeyedDropPath):
    """Dropout of single elements; each row's mask is drawn from a generator seeded by the row's number in [0, 1)."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.uniform: Tensor | None = None

    def decide(self, uniform: Tensor | None) -> None:
        """Take in one number in [0, 1) a row, [rows]; None switches dropping off."""
        self.uniform = uniform

    def forward(self, x: Tensor) -> Tensor:
        """[rows, ...] to the same shape, in the same dtype."""
        if not self.training or self.rate == 0.0 or self.uniform is None:
            return x
        rows = []
        for number in self.uniform.double().tolist():
            random = torch.Generator(x.device).manual_seed(int(number * _SEEDS))
            rows.append(torch.rand(x.shape[1:], generator=random, device=x.device) >= self.rate)
        return x * torch.stack(rows).to(x.dtype) / (1.0 - self.rate)


def install(tower: nn.Module, rate: float) -> list[KeyedDropPath]:
    """Replace the drop-path modules of a timm ViT's blocks; rates grow linearly from 0 to `rate` (released script).

    Returns the new modules in order, two per block; empty when `rate` is 0.

    Raises:
        ValueError: the tower's blocks have no drop-path slots.
    """
    if rate == 0.0:
        return []
    blocks = list(getattr(tower, "blocks", []))
    installed: list[KeyedDropPath] = []
    for i, block in enumerate(blocks):
        for slot in ("drop_path1", "drop_path2"):
            if not hasattr(block, slot):
                raise ValueError(f"{type(block).__name__} has no '{slot}': set drop_path to 0 for this tower")
            module = KeyedDropPath(rate * i / max(1, len(blocks) - 1))
            setattr(block, slot, module)
            installed.append(module)
    if not installed:
        raise ValueError(f"{type(tower).__name__} has no blocks: set drop_path to 0 for this tower")
    return installed


def set_uniforms(modules: Sequence[KeyedDropPath], uniforms: Tensor | None) -> None:
    """Hand each module its column of `uniforms` [tiles, modules]; None switches dropping off."""
    for i, module in enumerate(modules):
        module.decide(None if uniforms is None else uniforms[:, i])
