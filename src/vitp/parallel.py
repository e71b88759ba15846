"""The same work on many jobs in a few processes, in order."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from vitp.errors import DataError

J = TypeVar("J")
R = TypeVar("R")

_work: Callable[[Any], Any] | None = None  # of a worker process


def mapped(make: Callable[[], Callable[[J], R]], jobs: Sequence[J], workers: int) -> Iterator[R]:
    """The jobs' results, in the jobs' order.

    Args:
        make: called once in every process, gives what is called with each job. Forked processes inherit it; where
            there is no fork it is pickled, as jobs and results always are.
        jobs: what there is to do; at least two for processes to be worth starting.
        workers: processes; with 0 or 1 this one does it all.

    Raises:
        DataError: a worker process died.
    """
    if workers <= 1 or len(jobs) <= 1:
        gc.freeze()  # as in `_start`
        try:
            yield from map(make(), jobs)
        finally:
            gc.unfreeze()
        return
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (make,)) as pool:
        try:
            yield from pool.map(_run, jobs)
        except BrokenProcessPool as error:
            found = "a worker process died, perhaps for lack of memory"
            raise DataError(f"{found}; set workers to 1 to see at which sample or image") from error
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure nothing more is begun


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # a forked child must not wait for its parent's threads
    gc.freeze()  # a full collection would walk through all of torch, a quarter of a second each, and unshare its pages
    _work = make()


def _run(job: Any) -> Any:
    assert _work is not None
    return _work(job)
