"""Stochastic depth of a tower whose decisions come with the data.

The uniform numbers travel in the pack, keyed by (seed, step, sample): the same tile loses the same residual branches
whatever the micro-batch or the rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitp.train.keyed_drop import KeyedDrop, KeyedDropPath


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


def set_uniforms(modules: Sequence[KeyedDrop], uniforms: Tensor | None) -> None:
    """Hand each module its column of `uniforms` [tiles, modules]; None switches dropping off."""
    for i, module in enumerate(modules):
        module.decide(None if uniforms is None else uniforms[:, i : i + 1])
