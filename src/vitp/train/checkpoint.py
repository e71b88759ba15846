"""Atomic checkpoints: weights and optimiser state as safetensors, the rest as JSON.

A checkpoint is a folder ``checkpoints/step_00000400`` that appears under its name only when every byte is on disk.
Nothing is ever unpickled. One process writes ``model.safetensors`` and ``optimizer.safetensors``, many ranks write
``shard-*.safetensors`` (`vitp.train.saver`); tensors have the same names in both, a state of the optimiser that of its
parameter and ``::exp_avg`` and the like behind it, and either is read here.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitp.errors import CheckpointError
from vitp.files import raise_if_unwritable, write_json
from vitp.train.optim import masters_of

FOLDER = "checkpoints"
AVERAGE = "average.safetensors"  # of the weights, in a checkpoint's folder (train/average.py)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied parameters appear once, under their first name."""
    kept: dict[str, Tensor] = dict(model.named_parameters())
    persistent = set(model.state_dict().keys())
    kept.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return {name: tensor.detach() for name, tensor in kept.items()}


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """As `model_tensors`, with the optimiser's fp32 copies of bf16 parameters in their places."""
    masters = masters_of(optimizer)
    tensors = model_tensors(model)
    tensors.update({name: masters[p] for name, p in model.named_parameters() if p in masters})
    return tensors


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: missing, truncated or not a safetensors file.
    """
    try:
        return dict(load_file(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such weights file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); it was cut short or is of another format"
        ) from error


def load_model(model: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Copy `tensors` into `model`; every name and shape must match.

    Raises:
        CheckpointError: names the first missing, left-over or differently shaped tensor.
    """
    own = model_tensors(model)
    check_fits(_shapes(own), _shapes(tensors), origin)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def check_fits(own: Mapping[str, torch.Size], saved: Mapping[str, torch.Size], origin: Path) -> None:
    """See that what was saved has the names and shapes of the model's own tensors.

    Raises:
        CheckpointError: names the first missing, left-over or differently shaped tensor.
    """
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or extra:
        detail = f"'{missing[0]}' is missing" if missing else f"'{extra[0]}' is left over"
        raise CheckpointError(
            f"{origin}: belongs to another architecture: {detail} ({len(missing)} missing, {len(extra)} left over); "
            "use the recipe it was made with"
        )
    for name, shape in own.items():
        if shape != saved[name]:
            raise CheckpointError(
                f"{origin}: belongs to another architecture: '{name}' is {list(saved[name])} in the file and "
                f"{list(shape)} in the model; use the recipe it was made with"
            )


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if key == "master":  # stands in the place of the parameter, see `training_tensors`
                continue
            tensors[f"{name}::{key}"] = torch.as_tensor(value).detach().clone()
    return tensors


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, _, key = full.rpartition("::")
        parameter = parameters[name]
        state = optimizer.state[parameter]
        state[key] = value.to(parameter.device)  # the step count too: fused AdamW wants it beside the parameter


def save_checkpoint(
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep_last: int,
    average: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of `step` (number of finished steps), then delete all but the newest `keep_last`.

    `average` holds the averaged weights, where a run keeps some.

    Raises:
        OutputError: no space left or not writable; older checkpoints stay untouched.
    """
    folder = out / FOLDER
    final = folder / f"step_{step:08d}"
    temporary = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".tmp-*"):
            shutil.rmtree(stale)
        temporary.mkdir()
        weights = training_tensors(model, optimizer)
        save_file({k: v.contiguous().cpu() for k, v in weights.items()}, temporary / "model.safetensors")
        save_file(
            {k: v.contiguous().cpu() for k, v in _optimizer_tensors(model, optimizer).items()},
            temporary / "optimizer.safetensors",
        )
        if average is not None:
            save_file({k: v.contiguous().cpu() for k, v in average.items()}, temporary / AVERAGE)
        write_json(temporary / "state.json", {"step": step, **state})
        for file in temporary.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise_if_unwritable(error, final)
        raise
    for old in list_checkpoints(out)[:-keep_last]:
        shutil.rmtree(old)
    return final


def list_checkpoints(out: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (out / FOLDER).glob("step_*") if (p / "state.json").is_file())


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says besides tensors.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: state.json is unreadable ({error}); resume from an older checkpoint") from error
    assert isinstance(state, dict)
    return state


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore model and optimiser in place; returns the JSON state.

    Raises:
        CheckpointError: incomplete or of another architecture.
    """
    state = read_state(path)
    if sharded(path):
        saved = saved_shapes(path)
        check_fits(_shapes(model_tensors(model)), saved.model, path)
        weights, states = _read_shards(path, saved.model), _read_shards(path, saved.optimizer)
    else:
        weights = load_tensors(path / "model.safetensors")
        states = load_tensors(path / "optimizer.safetensors")
    load_model(model, weights, path if sharded(path) else path / "model.safetensors")
    masters = masters_of(optimizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter in masters:
                masters[parameter].copy_(weights[name])
    _load_optimizer(model, optimizer, states)
    return state


def checkpoint_weights(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint, whoever wrote it.

    Raises:
        CheckpointError: missing or truncated.
    """
    return _read_shards(path, saved_shapes(path).model) if sharded(path) else load_tensors(path / "model.safetensors")


# ------------------------------------------------------------------------------------------------ written by many ranks


@dataclass(frozen=True)
class SavedShapes:
    """Names and whole shapes of what a checkpoint holds."""

    model: dict[str, torch.Size]
    optimizer: dict[str, torch.Size]


def sharded(path: Path) -> bool:
    """Whether several ranks wrote a checkpoint."""
    return not (path / "model.safetensors").is_file() and any(path.glob("shard-*.safetensors"))


def shard_reader(path: Path) -> Any:
    """Torch's reader of a checkpoint's safetensors files, those of one process among them."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(path))


def saved_shapes(path: Path) -> SavedShapes:
    """What a checkpoint holds, from the heads of its files.

    Raises:
        CheckpointError: a file is missing or truncated.
    """
    try:
        found = shard_reader(path).read_metadata().state_dict_metadata
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a complete checkpoint ({error}); resume from an older one by moving this folder away"
        ) from error
    model: dict[str, torch.Size] = {}
    optimizer: dict[str, torch.Size] = {}
    for name, about in found.items():
        (optimizer if "::" in name else model)[name] = about.size
    return SavedShapes(model, optimizer)


def read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, or this rank's parts of them, from a checkpoint that holds them all in these shapes.

    Raises:
        CheckpointError: a file is truncated.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what we mean
            load(dict(tensors), storage_reader=shard_reader(path), no_dist=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete checkpoint ({error}); resume from an older one") from error


def _read_shards(path: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    about = shard_reader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(shape, dtype=about[name].properties.dtype) for name, shape in shapes.items()}
    read_into(path, tensors)
    return tensors
