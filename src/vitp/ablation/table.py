"""What a sweep found: a point's numbers, and the table with mean and deviation over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitp.ablation.axes import SEED, Axis, Choice, Point
from vitp.train.trackers import read_log

LAST = 0.1  # share of the steps at the end that the final loss is the mean of: single steps are noisy


@dataclass(frozen=True)
class Outcome:
    """One point's result; `numbers` are the table's columns in their order."""

    point: Point
    folder: Path
    state: Literal["done", "kept", "failed", "open"]  # kept: finished by an earlier call; open: not run yet
    numbers: dict[str, float] = field(default_factory=dict)
    downstream: dict[str, dict[str, Any]] = field(default_factory=dict)  # all numbers of each recipe
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """Points that differ in nothing but the seed: (mean, deviation or None, number) of each column."""

    choices: tuple[Choice, ...]
    cells: dict[str, tuple[float, float | None, int]]
    failed: int
    open: int


def training_numbers(run: Path, warm: int, seconds: float) -> dict[str, float]:
    """Final loss (mean over the last tenth of the steps), samples/s (median) and minutes of a finished run.

    Args:
        run: its folder.
        warm: text-only steps at its beginning, left out.
        seconds: of training, those before an interruption included.
    """
    log = read_log(run)
    lines = [line for line in log if line["step"] > warm] or log
    last = lines[-1]["step"]
    final = [line for line in lines if line["step"] > last - LAST * (last - warm)] or lines[-1:]
    return {
        "loss": statistics.fmean(line["loss"] for line in final),
        "samples/s": statistics.median(line["samples_per_s"] for line in lines),
        "minutes": seconds / 60,
    }


def columns(outcomes: Sequence[Outcome]) -> list[str]:
    """Names of the numbers of all points, in order."""
    return list(dict.fromkeys(name for outcome in outcomes for name in outcome.numbers))


def row_axes(axes: Sequence[Axis]) -> list[int]:
    """Which axes the rows of the table stand for: all but the seed, unless there is nothing else."""
    return [i for i, axis in enumerate(axes) if axis.key != SEED] or list(range(len(axes)))


def rows(axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> list[Row]:
    """The table's rows in the order of the grid."""
    shown = row_axes(axes)
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(outcome.point.choices[i].label for i in shown), []).append(outcome)
    found = []
    for group in groups.values():
        cells = {}
        for name in columns(outcomes):
            values = [outcome.numbers[name] for outcome in group if name in outcome.numbers]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                cells[name] = (statistics.fmean(values), spread, len(values))
        states = [outcome.state for outcome in group]
        choices = tuple(group[0].point.choices[i] for i in shown)
        found.append(Row(choices, cells, states.count("failed"), states.count("open")))
    return found


def decimals(value: float) -> int:
    """Of a number of three significant digits, or more where they stand before the point: 0.123, 2.35, 35.1, 1234."""
    size = abs(value)
    return 3 if size < 1 else 2 if size < 10 else 1 if size < 1000 else 0


def cell(found: tuple[float, float | None, int] | None) -> str:
    """Mean and deviation of one column in one row."""
    if found is None:
        return "-"
    mean, spread, _ = found
    digits = decimals(mean)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def note(row: Row) -> str:
    """What a reader must know of a row's points."""
    parts = [f"{row.failed} failed"] * bool(row.failed) + [f"{row.open} to do"] * bool(row.open)
    return ", ".join(parts)


def cells(axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> list[list[str]]:
    """The table as texts, its first row the titles."""
    names, found = columns(outcomes), rows(axes, outcomes)
    notes = any(note(row) for row in found)
    table = [[axes[i].label for i in row_axes(axes)] + names + [""] * notes]
    for row in found:
        texts = [choice.label for choice in row.choices] + [cell(row.cells.get(name)) for name in names]
        table.append(texts + [note(row)] * notes)
    return table


def lines(axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> list[str]:
    """The table for a terminal, numbers to the right."""
    table = cells(axes, outcomes)
    first = len(row_axes(axes))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i < first or i >= first + len(columns(outcomes)) else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def to_csv(axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> str:
    """One line a point, nothing averaged: the values of the axes, its state, its numbers in full."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = columns(outcomes)
    writer.writerow(["point", *(axis.label for axis in axes), "state", *names, "error"])
    for outcome in outcomes:
        values = [choice.label for choice in outcome.point.choices]
        numbers = [outcome.numbers.get(name, "") for name in names]
        writer.writerow([outcome.point.name, *values, outcome.state, *numbers, outcome.error or ""])
    return stream.getvalue()


def to_json(axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Axes, table (mean, sd, number of points) and points."""
    return {
        "axes": [{"key": axis.key, "label": axis.label, "values": [c.label for c in axis.choices]} for axis in axes],
        "table": [
            {
                **{axes[i].label: _json_value(c) for i, c in zip(row_axes(axes), row.choices, strict=True)},
                **{name: {"mean": mean, "sd": sd, "n": n} for name, (mean, sd, n) in row.cells.items()},
            }
            for row in rows(axes, outcomes)
        ],
        "points": [
            {
                "point": outcome.point.name,
                "folder": str(outcome.folder),
                "state": outcome.state,
                **{axis.label: _json_value(c) for axis, c in zip(axes, outcome.point.choices, strict=True)},
                **outcome.numbers,
                "downstream": outcome.downstream,
                "error": outcome.error,
            }
            for outcome in outcomes
        ],
    }


def _json_value(choice: Choice) -> Any:
    return choice.label if choice.value is None else choice.value
