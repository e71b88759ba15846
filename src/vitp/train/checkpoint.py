"""Atomic checkpoints: weights and optimiser state as safetensors, the rest as JSON.

A checkpoint is a folder ``checkpoints/step_00000400`` that appears under its name only when every byte is on disk.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitp.errors import CheckpointError
from vitp.files import raise_if_unwritable, write_json

FOLDER = "checkpoints"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied parameters appear once, under their first name."""
    kept: dict[str, Tensor] = dict(model.named_parameters())
    persistent = set(model.state_dict().keys())
    kept.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return {name: tensor.detach() for name, tensor in kept.items()}


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
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        detail = f"'{missing[0]}' is missing" if missing else f"'{extra[0]}' is left over"
        raise CheckpointError(
            f"{origin}: belongs to another architecture: {detail} ({len(missing)} missing, {len(extra)} left over); "
            "use the recipe it was made with"
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointError(
                f"{origin}: belongs to another architecture: '{name}' is {list(tensors[name].shape)} in the file and "
                f"{list(tensor.shape)} in the model; use the recipe it was made with"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
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
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep_last: int
) -> Path:
    """Write the checkpoint of `step` (number of finished steps), then delete all but the newest `keep_last`.

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
        save_file({k: v.contiguous().cpu() for k, v in model_tensors(model).items()}, temporary / "model.safetensors")
        save_file(
            {k: v.contiguous().cpu() for k, v in _optimizer_tensors(model, optimizer).items()},
            temporary / "optimizer.safetensors",
        )
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


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore model and optimiser in place; returns the JSON state.

    Raises:
        CheckpointError: incomplete or of another architecture.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: state.json is unreadable ({error}); resume from an older checkpoint") from error
    load_model(model, load_tensors(path / "model.safetensors"), path / "model.safetensors")
    _load_optimizer(model, optimizer, load_tensors(path / "optimizer.safetensors"))
    assert isinstance(state, dict)
    return state
