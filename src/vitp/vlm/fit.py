"""Whether the packs of a recipe fit a device, said before the first step, and bounds that do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vitp.errors import ConfigError
from vitp.train.hardware import Gpu
from vitp.train.optim import uses_bf16_weights
from vitp.vlm.checkpointing import Checkpointing
from vitp.vlm.flops import Work
from vitp.vlm.memory import MemoryPrecision, ModelMemory, largest_pack

GIB = 2.0**30
WORTHWHILE = 16  # ours: tiles of a pack that keep a large GPU busy (16,400 positions of the tower)
_TOKENS = 128  # packs are filled up to a multiple of this, `vitp.instruction.pack`


def memory_precision(precision: str, weights: str, ranks: int, gpu: Gpu | None = None) -> MemoryPrecision:
    """How numbers lie in a GPU's memory under a recipe's ``precision`` and ``weights``; None: a recent kind of GPU."""
    bf16 = precision == "bf16" or (precision == "auto" and (gpu is None or gpu.bf16 > 0))
    if not bf16:
        return "fp32"
    return "bf16" if uses_bf16_weights(weights, torch.device("cuda"), ranks, bf16=True) else "autocast"


def full_pack(sample: Work, max_tiles: int, max_tokens: int, max_samples: float) -> Work:
    """As many average samples as the bounds allow: what a full pack of the mixture looks like."""
    count = max_samples
    for size, bound in ((sample.tiles, max_tiles), (sample.tokens, max_tokens)):
        if size > 0:
            count = min(count, bound / size)
    return sample.times(max(1.0, count))


@dataclass(frozen=True)
class Bounds:
    """The bounds of a pack, and whether the recipe's author set them."""

    tiles: int
    tokens: int
    samples: float  # as many as a step has, or fewer
    chosen: bool


@dataclass(frozen=True)
class Fitted:
    """Bounds that fit, what a full pack then needs, and whether they are smaller than those asked for."""

    tiles: int
    tokens: int
    need: float  # bytes
    checkpointing: Checkpointing
    lowered: bool


def fit_bounds(
    memories: Mapping[Checkpointing, ModelMemory], sample: Work, bounds: Bounds, budget: float, device: str
) -> Fitted:
    """Hold the bounds of a pack against a device's memory.

    A full pack is one of average samples; where its bounds are lowered, a pack at both of the new ones fits too. Smaller packs
    are preferred to computing activations again, down to `WORTHWHILE` tiles; bounds that the author set are preferred to both.

    Args:
        memories: of the model in its precision by the kinds of checkpointing that may be used, the least first.
        sample: the mixture's average one.
        bounds: those of the recipe.
        budget: bytes a run may plan with.
        device: its name, for messages.

    Raises:
        ConfigError: not even one sample fits, or bounds that the recipe's author set do not; the message says which do.
    """
    pack = full_pack(sample, bounds.tiles, bounds.tokens, bounds.samples)
    least = next(iter(memories))
    for mode, memory in memories.items():
        need = memory.of(pack).total
        if need <= budget and (bounds.chosen or mode == least):
            return Fitted(bounds.tiles, bounds.tokens, need, mode, lowered=False)
    mode, largest = worthwhile_pack(memories, sample, budget)
    if largest is None:
        needed = memories[mode].of(sample).total
        raise ConfigError(
            f"the model and one average sample ({sample.tiles:.1f} tiles, {sample.tokens:.0f} tokens) need "
            f"{needed / GIB:.1f} GiB, {memories[mode].fixed / GIB:.1f} of them for weights, gradients and optimiser; "
            f"{device} has {budget / GIB:.1f} GiB to use: freeze a part (lr_language_model=0), lower data.tiling.max_tiles or "
            "take a smaller model"
        )
    tiles = max(1, min(bounds.tiles, int(largest.tiles)))
    tokens = min(bounds.tokens, max(_TOKENS, int(largest.tokens) // _TOKENS * _TOKENS))
    if bounds.chosen:
        raise ConfigError(
            f"max_tiles_per_pack {bounds.tiles} and max_tokens_per_pack {bounds.tokens}: a full pack ({pack.tiles:.0f} tiles, "
            f"{pack.tokens:.0f} tokens) needs {need / GIB:.1f} GiB, {device} has {budget / GIB:.1f} GiB to use: set "
            f"max_tiles_per_pack={tiles} max_tokens_per_pack={tokens}"
        )
    need = memories[mode].of(full_pack(sample, tiles, tokens, bounds.samples)).total
    return Fitted(tiles, tokens, need, mode, lowered=(tiles, tokens) != (bounds.tiles, bounds.tokens))


def worthwhile_pack(
    memories: Mapping[Checkpointing, ModelMemory], sample: Work, budget: float
) -> tuple[Checkpointing, Work | None]:
    """The least checkpointing under which a pack keeps a GPU busy, and the largest such pack; else the most."""
    packs = {mode: largest_pack(memory, sample, budget) for mode, memory in memories.items()}
    for mode, pack in packs.items():
        if pack is not None and (pack.tiles >= WORTHWHILE or pack.tokens >= WORTHWHILE * 256):
            return mode, pack
    return list(packs.items())[-1]
