"""What `vitp pretrain` says of cost before its first step, and the packs it refuses because no memory holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vitp.instruction.index import SizeRules
from vitp.instruction.mixture_sizes import measured_sizes
from vitp.instruction.plan import PlanConfig
from vitp.tasks.pretraining import PretrainingTask
from vitp.train.hardware import usable_memory
from vitp.train.loop_config import choose_device, uses_bf16
from vitp.train.optim import uses_bf16_weights
from vitp.vlm.checkpointing import Checkpointing
from vitp.vlm.fit import GIB, Bounds, Fitted, fit_bounds, full_pack
from vitp.vlm.flops import Work, count_flops, last_block_of
from vitp.vlm.memory import MemoryPrecision, ModelMemory, count_memory

if TYPE_CHECKING:
    from vitp.commands.pretrain_recipe import PretrainConfig

_LOOKED_AT = 16  # records of a source without an index
_HUGELY = 4.0  # times a machine's free memory: below it swap, sharing or a poor guess may still save a run on a CPU


@dataclass(frozen=True)
class Fitting:
    """What a run does about its device's memory."""

    plan: PlanConfig  # with bounds that fit
    checkpointing: Checkpointing


def fitted_plan(
    task: PretrainingTask,
    config: PretrainConfig,
    *,
    ranks: int,
    resumed: bool,
    say: Callable[[str], None],
    modes: Sequence[Checkpointing] = ("none",),
) -> Fitting:
    """Say what a step costs; lower or refuse bounds of a pack that the device cannot hold.

    How samples are cut into packs changes nothing but rounding, so bounds that the recipe leaves out are lowered to what fits,
    and so are those of a resumed run. Bounds that it names are refused. CPUs refuse what is out of all proportion alone.

    Args:
        task: model and data; nothing of it need be on the device yet.
        config: the recipe.
        ranks: processes that share the run.
        resumed: the run goes on.
        say: receives the line.
        modes: kinds of activation checkpointing that may be used, the least first.

    Returns:
        the builder's plan, with the bounds that fit, and how much is computed again.

    Raises:
        ConfigError: the packs cannot fit; the message says what would.
    """
    builder, device = task.builder, choose_device(config.device)
    rules = SizeRules(builder.chat, builder.tiling, builder.tile_size, builder.tokens_per_tile, builder.max_length)
    sample = measured_sizes(builder.sources, rules, config.data.index, records=_LOOKED_AT).sample(config.vrl)
    last_block = last_block_of(task.model, config.vrl.kept_share)
    precision = _precision(config, device, ranks)
    memories = {mode: count_memory(task.model, precision, config.trained, mode, last_block) for mode in modes}
    share = -(-config.batch_size // ranks)
    most = min(share, config.max_samples_per_pack or share)
    bounds = Bounds(
        config.max_tiles_per_pack, config.max_tokens_per_pack, most, config.sets_pack_bounds and not resumed
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    budget = usable_memory(device)
    fitted = _fitted(memories, sample, bounds, budget, device, name)
    flops = count_flops(task.model).of(
        sample, config.trained, last_block=last_block, checkpointing=fitted.checkpointing
    )
    pack = full_pack(sample, fitted.tiles, fitted.tokens, most)
    say(
        f"an average sample: {flops.useful.total * 1e-12:.3g} TFLOP, {sample.tiles:.1f} tiles, {sample.tokens:.0f} tokens; a "
        f"full pack: {pack.tiles:.0f} tiles, {pack.tokens:.0f} tokens, about {fitted.need / GIB:.2g} of {name}'s "
        f"{budget / GIB:.3g} GiB"
    )
    changed: dict[str, int] = {}
    if fitted.lowered:
        say(
            f"packs are bounded by what {name} holds: {fitted.tiles} tiles (not {config.max_tiles_per_pack}), {fitted.tokens} "
            f"tokens (not {config.max_tokens_per_pack})"
        )
        changed = {"max_tiles_per_pack": fitted.tiles, "max_tokens_per_pack": fitted.tokens}
    return Fitting(builder.plan.model_copy(update=changed), fitted.checkpointing)


def _precision(config: PretrainConfig, device: torch.device, ranks: int) -> MemoryPrecision:
    bf16 = uses_bf16(config.precision, device)
    if uses_bf16_weights(config.weights, device, ranks, bf16=bf16):
        return "bf16"
    return "autocast" if bf16 else "fp32"


def _fitted(
    memories: Mapping[Checkpointing, ModelMemory],
    sample: Work,
    bounds: Bounds,
    budget: int,
    device: torch.device,
    name: str,
) -> Fitted:
    if device.type != "cpu":
        return fit_bounds(memories, sample, bounds, budget, name)
    mode, memory = list(memories.items())[-1]
    need = memory.of(full_pack(sample, bounds.tiles, bounds.tokens, bounds.samples)).total
    if budget and need > _HUGELY * budget:
        return fit_bounds({mode: memory}, sample, bounds, budget, name)
    first, memory = next(iter(memories.items()))
    need = memory.of(full_pack(sample, bounds.tiles, bounds.tokens, bounds.samples)).total
    return Fitted(bounds.tiles, bounds.tokens, need, first, lowered=False)
