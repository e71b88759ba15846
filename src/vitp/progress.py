"""What the user sees of long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_QUIET_SECONDS = 15.0  # between lines when standard error is not a terminal


class TrainingProgress:
    """Takes the loop's updates; see `vitp.train.loop.Progress`."""

    def __init__(self, show: Callable[[int, int, str], None], say: Callable[[str], None]) -> None:
        self._show = show
        self.say = say

    def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
        """Show the newest numbers."""
        parts = [f"point {logs['point']:.0f} of {logs['points']:.0f}"] if "point" in logs else []
        for key, label, form in (
            ("loss", "loss", ".3f"),
            ("samples_per_s", "samples/s", ".0f"),
            ("tflops_per_s", "TFLOP/s", ".3g"),
            ("mfu", "MFU", ".0%"),  # nothing where the hardware's peak is not known
            ("wait_share", "waiting for data", ".0%"),
            ("evaluation/loss", "held-out loss", ".3f"),
            ("evaluation/vqa_exact", "answers right", ".0%"),
        ):
            if key in logs:
                parts.append(f"{label} {logs[key]:{form}}")
        if found := next((key for key in logs if key.startswith("validation/")), None):  # the score that was asked for
            parts.append(f"{found.replace('/', ' ')} {logs[found]:.3f}")
        self._show(step, steps, "  ".join(parts))


def lines(say: Callable[[str], None], title: str, unit: str) -> Callable[[int, int, str], None]:
    """A receiver of (done, total, note) that says a line with the time left every 15 seconds, and one at the end."""
    begun = last = time.monotonic()
    first = 0

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal last, begun, first
        now = time.monotonic()
        if first == 0:
            first, begun = done, now
        if now - last < _QUIET_SECONDS and done != total:
            return
        last = now
        rate = (done - first) / max(1e-9, now - begun)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        say(f"{title}: {done}/{total} {unit}{left}  {note}".rstrip())

    return show


def with_rate(show: Callable[[int, int, str], None], unit: str) -> Callable[[int, int], None]:
    """`show` with the units a second since the first call as its note."""
    begun: tuple[float, int] | None = None

    def rated(done: int, total: int) -> None:
        nonlocal begun
        now = time.monotonic()
        begun = begun or (now, done)
        rate = (done - begun[1]) / max(1e-9, now - begun[0])
        show(done, total, f"{rate:.1f} {unit}/s" if rate > 0 else "")

    return rated


class Console:
    """Everything goes to standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        self._console = RichConsole(stderr=True, highlight=False)
        self._live = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """One plain line."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def _shown(self, title: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
        if not self._live:
            yield lines(self.say, title, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=False) as bar:
            task = bar.add_task(title, total=None, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)

    @contextmanager
    def bar(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A callable (done, total) for work that counts itself."""
        with self._shown(title, unit) as show:
            yield lambda done, total: show(done, total, "")

    @contextmanager
    def bars(self, *named: tuple[str, str]) -> Iterator[list[Callable[[int, int], None]]]:
        """For each (title, unit) of a command's stages, one after the other, a callable (done, total); with the rate.

        A bar appears, and its clock starts, when it is first called.
        """
        with ExitStack() as stack:
            current: list[str] = []
            shown: dict[str, Callable[[int, int], None]] = {}

            def receiver(title: str, unit: str) -> Callable[[int, int], None]:
                def show(done: int, total: int) -> None:
                    if current != [title]:
                        stack.close()  # two live displays would overwrite each other
                        current[:] = [title]
                        shown[title] = with_rate(stack.enter_context(self._shown(title, unit)), unit)
                    shown[title](done, total)

                return show

            yield [receiver(title, unit) for title, unit in named]

    @contextmanager
    def training(self, title: str) -> Iterator[TrainingProgress]:
        """A progress receiver for the training loop."""
        with self._shown(title, "steps") as show:
            yield TrainingProgress(show, self.say)
