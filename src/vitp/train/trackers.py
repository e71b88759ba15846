"""Numbers of a run: JSON lines always, TensorBoard beside them, and every skipped sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from vitp.train.task import Observation, StepBatch


class Tracker:
    """Averages over `every` steps and writes one line each time.

    Fields of a line: step, loss and grad_norm (means), lr_<part>, samples_per_s, tokens_per_s (language-model tokens),
    dropped_share (visual tokens dropped by VRL), wait_share (time spent waiting for data), tflops_per_s (useful matrix
    products a second, waiting included) with mfu (the same over the hardware's dense peak), and the task's own numbers.
    """

    def __init__(
        self, out: Path, start: int, last: int, every: int, peak_lr: dict[str, float], peak: float | None = None
    ) -> None:
        """A run from `start` finished steps to `last`; the first, the last and every checkpoint's step get a line too.

        Args:
            out: folder of the logs.
            start: finished steps.
            last: the run's last step.
            every: steps a line averages over.
            peak_lr: highest learning rate of each part.
            peak: dense FLOP/s of all devices that compute the counted steps; None: unknown, no utilisation is written.
        """
        out.mkdir(parents=True, exist_ok=True)
        self.last, self.every, self.peak_lr, self.peak = last, every, peak_lr, peak
        self._log: IO[str] = open(out / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._skipped: IO[str] = open(out / "skipped.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._board = self._open_board(out, start)
        self._reset()
        self.newest: dict[str, float] = {}
        self._observed: dict[str, float] = {}

    @staticmethod
    def _open_board(out: Path, start: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._steps, self._wait, self._busy = 0, 0.0, 0.0
        self._newest_step, self._factor = 0, 0.0

    def step(
        self, step: int, numbers: dict[str, float], batch: StepBatch, wait: float, busy: float
    ) -> dict[str, float]:
        """Take in one finished step; returns the newest averaged line (empty before the first).

        Args:
            step: 1-based number of finished steps.
            numbers: loss, grad_norm, lr_factor and the task's own sums.
            batch: the step's data, for its counts and skipped samples.
            wait: seconds spent waiting for the data.
            busy: seconds of computation.
        """
        for record in batch.skipped:
            self._skipped.write(json.dumps({"step": step, **record}, ensure_ascii=False) + "\n")
        for key, value in numbers.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        for key, value in batch.counts.items():
            self._counts[key] = self._counts.get(key, 0.0) + value
        self._steps += 1
        self._wait += wait
        self._busy += busy
        self._newest_step, self._factor = step, numbers["lr_factor"]
        if step % self.every == 0 or step in (1, self.last):
            self._write()
        return {**self._observed, **self.newest}

    def observe(self, step: int, look: Callable[[int], Observation | None] | None) -> None:
        """Let `look` see a finished step; what it finds out is a line of its own, and shown in TensorBoard."""
        found = None if look is None else look(step)
        if found is None:
            return
        self.flush()  # the lines stay in the order of the steps
        self._observed = _rounded(found.numbers)
        warned = {"warnings": list(found.warnings)} if found.warnings else {}
        self._log.write(json.dumps({"step": step, **self._observed, **warned}, ensure_ascii=False) + "\n")
        self._log.flush()
        for key, value in self._observed.items():
            self._board.add_scalar(key, value, step)
        for key, pixels in found.pictures.items():
            self._board.add_image(key, pixels, step, dataformats="HWC")
        for key, text in found.texts.items():
            self._board.add_text(key, text, step)
        for text in found.warnings:
            self._board.add_text("warnings", text, step)

    def _write(self) -> None:
        step, factor = self._newest_step, self._factor
        seconds = max(1e-9, self._wait + self._busy)
        line: dict[str, float] = {}
        line.update({k: v / self._steps for k, v in self._sums.items() if k != "lr_factor"})
        line.update({f"lr_{name}": lr * factor for name, lr in self.peak_lr.items()})
        counts = self._counts
        line["samples_per_s"] = counts.get("samples", 0.0) / seconds
        if "lm_tokens" in counts:
            line["tokens_per_s"] = counts["lm_tokens"] / seconds
        if counts.get("visual_tokens"):
            line["dropped_share"] = 1.0 - counts["visual_kept"] / counts["visual_tokens"]
        line["wait_share"] = self._wait / seconds
        if counts.get("tflop"):
            line["tflops_per_s"] = counts["tflop"] / seconds
            if self.peak:
                line["mfu"] = counts["tflop"] * 1e12 / seconds / self.peak
        for key in ("truncated", "text_only"):
            if counts.get(key):
                line[key] = counts[key]
        rounded = _rounded(line)
        self.newest = {"step": step, **rounded}
        self._log.write(json.dumps(self.newest) + "\n")
        self._log.flush()
        for key, value in rounded.items():
            self._board.add_scalar(key, value, step)
        self._reset()

    def flush(self) -> None:
        """Push everything to the files; a window cut short gets its line, so that a resumed run's lines are the same."""
        if self._steps:
            self._write()
        self._log.flush()
        self._skipped.flush()
        self._board.flush()

    def close(self) -> None:
        """Flush and close; safe to call twice."""
        if not self._log.closed:
            self.flush()
            self._log.close()
            self._skipped.close()
            self._board.close()


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.6g}") for key, value in numbers.items()}


class SilentTracker(Tracker):
    """On all ranks but the first, which writes the numbers of all."""

    def __init__(
        self, out: Path, start: int, last: int, every: int, peak_lr: dict[str, float], peak: float | None = None
    ) -> None:
        self.newest: dict[str, float] = {}

    @override
    def step(
        self, step: int, numbers: dict[str, float], batch: StepBatch, wait: float, busy: float
    ) -> dict[str, float]:
        return self.newest

    @override
    def observe(self, step: int, look: Callable[[int], Observation | None] | None) -> None:
        if look is not None:  # all ranks have to compute where each holds a part of the weights only
            look(step)

    @override
    def flush(self) -> None:
        pass

    @override
    def close(self) -> None:
        pass


def read_log(out: Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl about training."""
    return [line for line in _lines(out) if "loss" in line]


def read_evaluations(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl about evaluations: step, ``evaluation/...`` numbers, and warnings if there were any.

    A step evaluated twice, because the run was killed before its first checkpoint, counts once.
    """
    found = {line["step"]: line for line in _lines(out) if "loss" not in line}
    return [found[step] for step in sorted(found)]


def _lines(out: Path) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
