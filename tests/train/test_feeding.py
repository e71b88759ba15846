"""Worker processes: the same steps, and a name for whoever is slow or dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tinyvlm import MODULES, SIZE, laid_out_sample
from tests.train.test_loop import Regression, config

from vitp.errors import DataError, TrainingError
from vitp.instruction.pack import join
from vitp.train import feeding
from vitp.train.feeding import Feeding, batches, working_on
from vitp.train.loop import train
from vitp.train.task import StepBatch


class Disturbed(Regression):
    """Calls `disturb` when the sample at place 5 of step 3 is laid out."""

    def __init__(self, disturb: Callable[[], object]) -> None:
        super().__init__()
        self.disturb = disturb

    def step_batch(self, step: int) -> StepBatch:
        for slot in range(12):
            working_on(slot)
            if (step, slot) == (3, 5):
                self.disturb()
        return super().step_batch(step)


def fed(task: Regression, steps: range, workers: int, timeout: float = 0.0, say: Callable[[str], None] = print) -> Any:
    return list(batches(task, steps, Feeding(workers, timeout, pin_memory=False), say))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_steps_in_order(workers: int) -> None:
    alone, together = (fed(Regression(), range(4, 15), n) for n in (0, workers))
    assert [b.samples for b in together] == [[f"data.jsonl:{step}"] for step in range(4, 15)]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.micros[0].x, b.micros[0].x)


def test_a_killed_worker_is_named_with_its_sample(tmp_path: Path) -> None:
    task = Disturbed(lambda: os.kill(os.getpid(), signal.SIGKILL))
    found = r"data worker \d of 2 \(process \d+\) died at step 4, data\.jsonl:3\.5, perhaps"
    with pytest.raises(TrainingError, match=found):
        train(task, config(workers=2), tmp_path)


def test_a_slow_worker_is_named_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "SLOW_SECONDS", 0.05)
    go_on = multiprocessing.get_context("fork").Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "step 4" in text:
            go_on.set()

    assert len(fed(Disturbed(go_on.wait), range(6), 1, say=say)) == 6
    named = [text for text in said if "step 4" in text]
    assert named
    assert "data worker 1 of 1" in named[0]
    assert "has been at step 4, data.jsonl:3.5 for" in named[0]


def test_a_worker_that_hangs_stops_the_run(tmp_path: Path) -> None:
    task = Disturbed(signal.pause)
    with pytest.raises(
        TrainingError, match=r"step 4 was not ready after 0\.5 s: data worker 1 of 1 .* data\.jsonl:3\.5"
    ):
        train(task, config(workers=1, worker_timeout=0.5), tmp_path)


def test_a_mistake_in_the_data_arrives_as_itself() -> None:
    def fail() -> None:
        raise DataError("is damaged; mend it", "a.jsonl:7")

    with pytest.raises(DataError, match=r"a\.jsonl:7: is damaged; mend it"):
        fed(Disturbed(fail), range(6), 1)


def test_every_tensor_of_a_step_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning needs a GPU, so the call alone is counted."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    whole = join([laid_out_sample(2, 0, 0.5), laid_out_sample(0, 1, 0.0)], 16, SIZE, MODULES)
    pinned = StepBatch([whole], 1.0).pin_memory().micros[0]
    for name, tensor in whole.tensors().items():
        assert torch.equal(pinned.tensors()[name], tensor if name == "lengths" else tensor + 1), name
