"""Steps laid out ahead of the training by worker processes, and what is said when one of them is slow or dies.

A worker lays out whole steps, whose tensors travel through shared memory (torch's loader). Each worker notes in a
table shared with the training process which step and which sample it is at, so that a wait has a name.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import c_int64
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vitp.errors import TrainingError, VitpError
from vitp.train.task import StepBatch, Task

SLOW_SECONDS = 30.0  # ours: from which a wait is worth a line; the next one comes when it has doubled
_IDLE = -1
_FIELDS = 4  # of a worker's row: process id, step, slot, milliseconds of the monotonic clock when it got there

_row: tuple[Any, int] | None = None  # of a worker process: the shared table and where its row begins


def working_on(slot: int) -> None:
    """Note that this process now lays out the sample at place `slot` of its step; elsewhere than in a worker, nothing."""
    if _row is not None:
        table, first = _row
        table[first + 2], table[first + 3] = slot, _now()


def _now() -> int:
    return time.monotonic_ns() // 1_000_000


def _start_worker(table: Any, worker: int) -> None:
    global _row
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    _row = (table, worker * _FIELDS)
    table[worker * _FIELDS : worker * _FIELDS + _FIELDS] = [os.getpid(), _IDLE, 0, _now()]


class _Steps(Dataset[StepBatch | VitpError]):
    """The steps of a task as a map-style data set.

    A user's mistake comes back as a value: raised in a worker it would arrive as a traceback.
    """

    def __init__(self, step_batch: Callable[[int], StepBatch]) -> None:
        self.step_batch = step_batch

    def __getitem__(self, step: int) -> StepBatch | VitpError:
        if _row is not None:
            table, first = _row
            table[first + 1] = step
        working_on(0)
        try:
            return self.step_batch(step)
        except VitpError as error:
            return error
        finally:
            if _row is not None:
                table[first + 1] = _IDLE


@dataclass(frozen=True)
class Feeding:
    """How steps reach the training process."""

    workers: int  # 0: laid out by the training process itself
    timeout: float  # seconds a step may be waited for; 0: for ever
    pin_memory: bool  # for copies to a GPU that do not wait


def batches(task: Task, steps: range, feeding: Feeding, say: Callable[[str], None]) -> Iterator[StepBatch]:
    """The steps in order, laid out ahead by the workers.

    Args:
        task: whose `step_batch` travels to the workers, and whose `where` names samples here.
        steps: which.
        feeding: how.
        say: receives a line when a step is waited for long.

    Raises:
        VitpError: what laying out a step raises.
        TrainingError: a worker died, or a step took longer than `feeding.timeout`.
    """
    if feeding.workers == 0:
        for step in steps:
            yield task.step_batch(step)
        return
    # On POSIX systems workers are forked: they inherit opened sources, and a traced model is not pickled.
    context = multiprocessing.get_context("fork" if os.name == "posix" else None)
    table = context.RawArray(c_int64, feeding.workers * _FIELDS)
    loader: DataLoader[StepBatch | VitpError] = DataLoader(
        _Steps(task.step_batch),
        batch_size=None,
        sampler=steps,
        num_workers=feeding.workers,
        prefetch_factor=2,
        pin_memory=feeding.pin_memory,
        timeout=feeding.timeout,
        worker_init_fn=partial(_start_worker, table),
        multiprocessing_context=context,
    )
    with _Watch(task, table, say) as watch:
        ready = iter(loader)
        for step in steps:
            watch.wait_for(step)
            try:
                batch = next(ready)
            except RuntimeError as error:
                raise _explained(error, task, table, step, feeding.timeout) from error
            watch.wait_for(None)
            if isinstance(batch, VitpError):
                raise batch
            yield batch


def _explained(error: RuntimeError, task: Task, table: Any, step: int, timeout: float) -> Exception:
    """A loader's complaint about its workers as a sentence; any other error unchanged."""
    text = str(error)
    if "timed out" in text:
        found = f"step {step + 1} was not ready after {timeout:g} s: {_culprit(task, table, step)}"
        return TrainingError(f"{found}; look at that sample and its storage, or raise worker_timeout")
    died = re.search(r"DataLoader worker \(pid\D*(\d+)", text)
    if died is None:
        return error
    rows = _rows(table)
    number = next((i for i, row in enumerate(rows) if row[0] == int(died[1])), None)
    place = "" if number is None or rows[number][1] == _IDLE else f" at {_place(task, rows[number])}"
    who = f"data worker {'' if number is None else f'{number + 1} of {len(rows)} '}(process {died[1]})"
    how = f", killed by signal {killed[1]}" if (killed := re.search(r"killed by signal: ([^.]*\w)", text)) else ""
    return TrainingError(
        f"{who} died{place}{how}, perhaps for lack of memory; lower workers (0 lays out in the training process) and resume"
    )


def _rows(table: Any) -> list[list[int]]:
    return [list(table[i : i + _FIELDS]) for i in range(0, len(table), _FIELDS)]


def _place(task: Task, row: list[int]) -> str:
    return f"step {row[1] + 1}, {task.where(row[1], row[2])}"


def _culprit(task: Task, table: Any, step: int) -> str:
    """Which worker has the step, and how long it has been at which sample."""
    rows = _rows(table)
    for number, row in enumerate(rows, 1):
        if row[1] == step:
            spent = (_now() - row[3]) / 1000
            return f"data worker {number} of {len(rows)} (process {row[0]}) has been at {_place(task, row)} for {spent:.0f} s"
    return "no data worker is at it"


class _Watch:
    """A thread that says which worker and sample a long wait is for."""

    def __init__(self, task: Task, table: Any, say: Callable[[str], None]) -> None:
        self._task, self._table, self._say = task, table, say
        self._changed = threading.Condition()
        self._step: int | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="vitp-data-watch", daemon=True)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def wait_for(self, step: int | None) -> None:
        """The training process now waits for a step, or for none."""
        with self._changed:
            self._step = step
            if step is not None and not self._thread.ident:
                self._thread.start()  # only now, since workers are forked before the first wait
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                step, limit, begun = self._step, SLOW_SECONDS, time.monotonic()
                while step is not None and not self._closed and self._step == step:
                    left = begun + limit - time.monotonic()
                    if left <= 0:
                        self._say(f"waiting for step {step + 1}: {_culprit(self._task, self._table, step)}")
                        limit *= 2
                    else:
                        self._changed.wait(left)
                if not self._closed and self._step is None:
                    self._changed.wait()
