"""Who writes a run's checkpoints: one process at once, or all ranks their parts, in the background.

Ranks write through torch's distributed checkpoints, in safetensors files, one a rank: ``shard-*.safetensors`` with the
names that one process gives its tensors in ``model.safetensors`` and ``optimizer.safetensors``. So either is read by any
number of ranks, under any strategy; each rank reads the rows it keeps. The folder gets its name, by which a checkpoint
counts as complete, when all ranks have written, and keeps its temporary one if any of them dies before.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from vitp.errors import CheckpointError
from vitp.files import raise_if_unwritable, write_json
from vitp.train.average import WeightAverage
from vitp.train.checkpoint import (
    FOLDER,
    check_fits,
    list_checkpoints,
    load_checkpoint,
    model_tensors,
    read_into,
    read_state,
    save_checkpoint,
    saved_shapes,
)
from vitp.train.distributed import Ranks
from vitp.train.strategies import Strategy


class Saver:
    """Checkpoints of one process."""

    def __init__(
        self,
        out: Path,
        ranks: Ranks,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        strategy: Strategy,
        keep: int,
        average: WeightAverage | None,
    ) -> None:
        """A run's folder, what is saved, how it is laid out over the ranks, and how many checkpoints are kept.

        `average` is kept by one process alone.
        """
        self._out, self._ranks, self._model, self._optimizer = out, ranks, model, optimizer
        self._strategy, self._keep, self._average = strategy, keep, average

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = self._ranks.lead(lambda: [str(path) for path in list_checkpoints(self._out)[-1:]])
        return Path(found[0]) if found else None

    def load(self, path: Path) -> dict[str, Any]:
        """Restore model and optimiser in place, and give back the other values that were saved.

        Raises:
            CheckpointError: incomplete, or of another architecture.
        """
        state = load_checkpoint(path, self._model, self._optimizer)
        if self._average is not None:
            self._average.load(path)
        return state

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` finished steps; it is sure to be there after the next `save` or `wait`.

        Raises:
            OutputError: no space left or not writable, now or at the previous one; older checkpoints stay untouched.
        """
        average = None if self._average is None else self._average.tensors
        return save_checkpoint(self._out, step, self._model, self._optimizer, state, self._keep, average)

    def wait(self) -> None:
        """Until nothing is left to write; raises what `save` raises."""


class RankedSaver(Saver):
    """Checkpoints of many ranks, written while the training goes on."""

    _saving: _Saving | None = None
    _group: Any = None

    @override
    def load(self, path: Path) -> dict[str, Any]:
        return self._ranks.together(lambda: self._load(path))

    def _load(self, path: Path) -> dict[str, Any]:
        state = read_state(path)
        saved = saved_shapes(path)
        own = model_tensors(self._model)
        check_fits({name: tensor.shape for name, tensor in own.items()}, saved.model, path)
        parameters = dict(self._model.named_parameters())
        wanted: dict[str, Tensor] = dict(own)
        for full in saved.optimizer:
            name, _, key = full.rpartition("::")
            parameter = parameters[name]
            held = self._strategy.held(parameter)
            if not held.numel():
                continue  # another rank's rows
            scalar = key == "step"
            value = torch.zeros((), device=parameter.device) if scalar else torch.zeros_like(held, requires_grad=False)
            self._optimizer.state[held][key] = value
            wanted[full] = value if scalar else self._strategy.part_of(value, parameter)
        read_into(path, wanted)
        return state

    @override
    def save(self, step: int, state: dict[str, Any]) -> Path:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.wait()
        final = self._out / FOLDER / f"step_{step:08d}"
        temporary = final.with_name(f".tmp-{final.name}")
        self._ranks.lead(lambda: _make_anew(temporary))
        if self._group is None:
            self._group = dist.new_group(backend="gloo")  # the writing threads' own: messages must not mix
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        future: Any = async_save(self._tensors(), storage_writer=writer, process_group=self._group)
        finish = (lambda: self._finish(temporary, final, {"step": step, **state})) if self._ranks.first else None
        self._saving = _Saving(future, finish, final)
        return final

    @override
    def wait(self) -> None:
        if self._saving is not None:
            saving, self._saving = self._saving, None
            self._ranks.together(saving.result)

    def _tensors(self) -> dict[str, Tensor]:
        """What this rank knows of model and optimiser, by the names of a single process' files."""
        tensors = model_tensors(self._model)
        for name, parameter in self._model.named_parameters():
            for key, value in self._optimizer.state.get(self._strategy.held(parameter), {}).items():
                whole = value if key == "step" else self._strategy.part_of(value, parameter)
                tensors[f"{name}::{key}"] = whole.detach()
        return tensors

    def _finish(self, temporary: Path, final: Path, state: dict[str, Any]) -> None:
        """Give the folder its name, then delete all but the newest; on rank 0, once all ranks have written."""
        write_json(temporary / "state.json", state)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        for old in list_checkpoints(self._out)[: -self._keep]:
            shutil.rmtree(old)


class _Saving:
    """One checkpoint on its way to the disk."""

    def __init__(self, written: Future[Any], finish: Callable[[], None] | None, final: Path) -> None:
        self._written, self._finish, self._final = written, finish, final
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vitp-checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._written.result()
            if self._finish is not None:
                self._finish()
        except BaseException as error:
            self._error = error

    def result(self) -> None:
        """Wait; raise what went wrong."""
        self._thread.join()
        causes: dict[Any, Any] = getattr(self._error, "failures", {})  # of the ranks that failed, with their traces
        for cause in (self._error, *(c[0] if isinstance(c, tuple) else c for c in causes.values())):
            if isinstance(cause, Exception):
                raise_if_unwritable(cause, self._final)
        if self._error is not None:
            raise CheckpointError(
                f"{self._final} could not be written ({self._error}); older checkpoints stay"
            ) from self._error


def _make_anew(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(".tmp-*"):
            shutil.rmtree(stale)
        folder.mkdir()
    except OSError as error:
        raise_if_unwritable(error, folder)
        raise CheckpointError(f"{folder} cannot be made ({error.strerror}); choose another 'out' folder") from error


def saver_for(ranks: Ranks) -> type[Saver]:
    """The saver of one process or of many."""
    return Saver if ranks.alone else RankedSaver
