"""What tasks on dense backbones share: learning rates by depth, and draws that belong to a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitp.backbone.dense import DenseBackbone
from vitp.heads.layers import KeyedDropout2d
from vitp.train.draws import Purpose, generator
from vitp.train.optim import ParameterGroup
from vitp.vlm.stochastic_depth import KeyedDropout, KeyedDropPath


def backbone_groups(backbone: DenseBackbone, *, lr: float, new_lr: float, layer_decay: float) -> list[ParameterGroup]:
    """The ViT and what is built on it, by depth where the rate decays; each parameter in one group.

    Args:
        backbone: whose parameters that ask for no gradient (a partly frozen ViT) stay as they are, in a group of rate 0.
        lr: of the ViT; 0 freezes it.
        new_lr: of what the backbone adds to the ViT.
        layer_decay: factor from a layer to the one below, the last being ``depth + 1`` (`DenseBackbone.layer_of`); 1: one rate
            (released: 0.9 and 0.95).
    """
    inside = {id(parameter) for parameter in backbone.plain.parameters()}
    top = backbone.depth + 1
    found: dict[tuple[str, int], list[tuple[str, nn.Parameter]]] = {}
    rates: dict[tuple[str, int], float] = {}
    for name, parameter in backbone.named_parameters():
        part, rate = ("backbone", lr) if id(parameter) in inside else ("features", new_lr)
        layer = backbone.layer_of(name) if layer_decay < 1.0 and rate > 0 else top
        if part == "backbone" and rate > 0 and not parameter.requires_grad:
            part, rate, layer = "frozen", 0.0, top
        found.setdefault((part, layer), []).append((name, parameter))
        rates[part, layer] = rate * layer_decay ** (top - layer)
    split = {part for part, layer in found if layer != top}
    return [
        ParameterGroup(f"{part}_{layer:02d}" if part in split else part, members, rates[part, layer])
        for (part, layer), members in sorted(found.items())
    ]


def items_of_step(train: Sequence[int], seed: int, step: int, batch_size: int) -> list[int]:
    """Which of the training items `train` step `step` learns from: every epoch is a permutation of its own."""
    orders: dict[int, list[int]] = {}
    found = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, at = divmod(position, len(train))
        if epoch not in orders:
            orders[epoch] = generator(seed, Purpose.MIXTURE, 3, epoch).permutation(len(train)).tolist()
        found.append(train[orders[epoch][at]])
    return found


def hand_uniforms(model: nn.Module, seed: int, step: int, slots: Sequence[int], device: torch.device) -> None:
    """Give every dropping module of `model` the uniform numbers of the samples at `slots` of a step.

    A sample's numbers depend on (seed, step, slot) alone, so a step is the same however it is cut. A module of the backbone that
    sees two dates of each sample gets a number for each date.
    """
    keyed = [m for m in model.modules() if isinstance(m, KeyedDropout2d | KeyedDropout | KeyedDropPath) and m.rate > 0]
    if not keyed:
        return
    dates = int(getattr(model, "dates", 1))
    sizes = [m.channels if isinstance(m, KeyedDropout2d) else dates for m in keyed]
    rows = [generator(seed, Purpose.DROPOUT, step, slot).random(sum(sizes), dtype="float32") for slot in slots]
    numbers = torch.stack([torch.from_numpy(row) for row in rows]).to(device)
    for module, part in zip(keyed, torch.split(numbers, sizes, dim=1), strict=True):
        module.uniform = part if isinstance(module, KeyedDropout2d) else _by_date(part)


def _by_date(numbers: Tensor) -> Tensor:
    """[B, dates] to the order of a batch that holds all samples of the first date, then all of the second."""
    return numbers.T.flatten()
