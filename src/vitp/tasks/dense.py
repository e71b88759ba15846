"""What tasks on dense backbones share: learning rates by depth, draws that belong to a sample, and their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from vitp.backbone.dense import DenseBackbone
from vitp.backbone.vit import METADATA, read_metadata
from vitp.config import Config
from vitp.errors import CheckpointError, ConfigError
from vitp.files import write_atomic
from vitp.heads.layers import has_batch_norm
from vitp.train.checkpoint import model_tensors
from vitp.train.distributed import Ranks
from vitp.train.draws import Purpose, generator
from vitp.train.keyed_drop import KeyedDrop
from vitp.train.optim import ParameterGroup

C = TypeVar("C", bound=Config)


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


def check_parts(model: nn.Module, batch_size: int, micro_batch: int, ranks: Ranks) -> None:
    """See that every rank has a part of each step, and that batch norm can learn from it.

    Raises:
        ConfigError: more ranks than images; batch norm on one image alone, or on ranks that make unequally many forward passes
            (which wait for one another's statistics).
    """
    if batch_size < ranks.size:
        raise ConfigError(
            f"batch_size: a step of {batch_size} images leaves some of the {ranks.size} ranks without one; raise batch_size, or "
            f"start at most {batch_size} ranks"
        )
    if not has_batch_norm(model):
        return
    last = batch_size % micro_batch or micro_batch
    if ranks.alone and last < 2:
        raise ConfigError(
            f"micro_batch: batch norm cannot learn from one image alone, and a batch of {batch_size} in micro-batches "
            f"of {micro_batch} has such a one; choose other sizes, or set norm: group in head and auxiliary"
        )
    passes = [-(-len(part) // micro_batch) for part in ranks.parts(batch_size)]
    if min(passes) < max(passes):
        raise ConfigError(
            f"batch_size: batch norm learns from the images of all ranks, which must make equally many forward passes, and a "
            f"batch of {batch_size} on {ranks.size} ranks in micro-batches of {micro_batch} makes {min(passes)} on some and "
            f"{max(passes)} on others; take a batch_size that {ranks.size} divides, or set norm: group in head and auxiliary"
        )


def hand_uniforms(model: nn.Module, seed: int, step: int, slots: Sequence[int], device: torch.device) -> None:
    """Give every dropping module of `model` the uniform numbers of the samples at `slots` of a step.

    A sample's numbers depend on (seed, step, slot) alone, so a step is the same however it is cut. A module of the backbone that
    sees two dates of each sample gets a number for each date.
    """
    keyed = [m for m in model.modules() if isinstance(m, KeyedDrop) and m.rate > 0]
    if not keyed:
        return
    dates = int(getattr(model, "dates", 1))
    twice = set(cast(nn.Module, model.backbone).modules()) if dates > 1 else set()
    rows = [dates if m in twice else 1 for m in keyed]  # of the module's batch, for each sample
    sizes = [n * m.numbers for n, m in zip(rows, keyed, strict=True)]
    drawn = [generator(seed, Purpose.DROPOUT, step, slot).random(sum(sizes), dtype="float32") for slot in slots]
    numbers = torch.stack([torch.from_numpy(row) for row in drawn]).to(device)
    for module, n, part in zip(keyed, rows, torch.split(numbers, sizes, dim=1), strict=True):
        # a batch holds all samples of the first date, then all of the second
        module.decide(part.view(len(slots), n, module.numbers).transpose(0, 1).reshape(-1, module.numbers))


def save_described(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Write a model's weights, and `about` (JSON) beside them, to one .safetensors file, atomically."""
    tensors = {name: t.contiguous().cpu() for name, t in model_tensors(model).items()}
    metadata = {METADATA: json.dumps(about), "format": "pt"}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


@dataclass(frozen=True)
class Described:
    """What `save_described` wrote beside the weights."""

    about: dict[str, Any]
    file: Path  # that holds both

    def part(self, key: str, kind: type[C]) -> C:
        """A configuration.

        Raises:
            CheckpointError: it is missing, or none that this version knows.
        """
        try:
            return kind.model_validate(self.about[key])
        except KeyError as error:
            raise self._damaged(f"lacks '{key}'") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise self._damaged(
                f"cannot be read ({'.'.join(map(str, (key, *first['loc'])))}: {first['msg']})"
            ) from error

    @property
    def classes(self) -> list[str]:
        """Names of the classes.

        Raises:
            CheckpointError: they are missing.
        """
        found = self.about.get("classes")
        if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
            raise self._damaged("names no classes")
        return found

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: its description {what}; copy the file again, or open it with the version of vitp that wrote it"
        )


def read_described(path: Path | str, key: str, missing: str) -> Described:
    """What `save_described` wrote beside the weights.

    Args:
        path: a run's folder, or the model.safetensors in it.
        key: one that tells this kind of model from others.
        missing: the sentence where it is another kind.

    Raises:
        CheckpointError: no such file, damaged, or of another kind.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file}: does not exist; `vitp finetune` writes it when its last step is done")
    about = read_metadata(file)
    if not isinstance(about, dict) or key not in about:
        raise CheckpointError(f"{file}: {missing}")
    return Described(about, file)
