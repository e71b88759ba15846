"""Runs on several gloo ranks in this machine: forked from one server that has imported everything, so they start at once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def context() -> Any:
    """A start method without the parent's threads, which a fork of the test process would not survive."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.distributed.preload"])
    return found


def _main(rank: int, size: int, port: int, errors: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    import torch

    from vitp.errors import StoppedElsewhereError, VitpError

    torch.set_num_threads(1)
    with open(errors, "a", buffering=1) as stream:
        os.dup2(stream.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    try:
        work(*arguments)
    except StoppedElsewhereError:
        sys.exit(2)
    except VitpError as error:
        os.write(2, f"error: {error}\n".encode())
        sys.exit(2)


class Started:
    """Ranks at work, and what they write to standard error."""

    def __init__(
        self, folder: Path, size: int, work: Callable[..., Any], *arguments: Any, per_rank: bool = False
    ) -> None:
        """`per_rank`: the last argument is a list with one value for each rank."""
        self.errors = folder / f"errors-{free_port()}.txt"
        port, start = free_port(), context()
        self.processes: list[BaseProcess] = []
        for rank in range(size):
            given = (*arguments[:-1], arguments[-1][rank]) if per_rank else arguments
            process = start.Process(target=_main, args=(rank, size, port, str(self.errors), work, given))
            process.start()
            self.processes.append(process)

    def join(self, seconds: float = 120) -> list[int | None]:
        """Exit codes, by rank."""
        for process in self.processes:
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        return self.errors.read_text() if self.errors.is_file() else ""


def pretrained(folder: Path, size: int, recipe: Path, overrides: list[str], resume: bool = False) -> None:
    """Pretrain on ranks that all end well."""
    started = Started(folder, size, run_pretrain, recipe, overrides, resume)
    assert started.join() == [0] * size, started.said()


def run_pretrain(recipe: Path, overrides: list[str], resume: bool = False) -> None:
    from vitp.commands.pretrain import pretrain

    pretrain(recipe, overrides, resume=resume)


def finetuned(folder: Path, size: int, calls: Sequence[tuple[Path, list[str], bool]]) -> None:
    """Fine-tune on ranks that all end well: one run after another, each a recipe, its overrides, and whether it resumes."""
    started = Started(folder, size, run_finetunes, calls)
    assert started.join() == [0] * size, started.said()


def run_finetunes(calls: Sequence[tuple[Path, list[str], bool]]) -> None:
    from vitp.commands.finetune import finetune

    for recipe, overrides, resume in calls:
        finetune(recipe, overrides, resume=resume)
