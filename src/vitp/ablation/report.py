"""A sweep as one HTML file: the table, each number over the first axis, the loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitp.ablation import table
from vitp.ablation.axes import SEED, Axis
from vitp.ablation.table import Outcome, Row
from vitp.report.html import BarChart, BarSeries, Commands, Curve, Facts, LineChart, Section, Table, Text, write_report
from vitp.train.trackers import read_log

_CURVES = 12  # loss curves that can still be told apart
_MISSING = float("nan")
_DECADE = 10.0  # from the smallest value to the largest: from here on the axis is logarithmic


def write_sweep_report(path: Path, name: str, axes: Sequence[Axis], outcomes: Sequence[Outcome], command: str) -> Path:
    """Write the report and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    done = [outcome for outcome in outcomes if outcome.state in ("done", "kept")]
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    minutes = sum(outcome.numbers.get("minutes", 0.0) for outcome in outcomes)
    sections: list[Section] = [
        Facts([("points finished", f"{len(done)} of {len(outcomes)}"), ("training", f"{minutes:.1f} min")]),
        _table(axes, outcomes),
        *_charts(axes, outcomes),
    ]
    if curves := _losses(outcomes):
        sections.append(curves)
    if failed:
        sections.append(Text("What failed", [f"{o.point.name}: {o.error}" for o in failed]))
    sections.append(Commands("The command", [(command, "--resume continues it and adds points")]))
    return write_report(path, f"Sweep: {name}", " × ".join(axis.key for axis in axes), sections)


def _table(axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> Table:
    titles, *body = table.cells(axes, outcomes)
    seeds = next((len(axis.choices) for axis in axes if axis.key == SEED), 0)
    repeated = f"Mean ± standard deviation over {seeds} seeds. " if seeds > 1 and len(axes) > 1 else ""
    return Table(
        "The table",
        titles,
        body,
        caption=f"{repeated}Loss: mean over the last tenth of the steps; where the data or the visual tokens differ, losses "
        "say nothing about features. samples/s: median. Scores in percent.",
    )


def _charts(axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> list[Section]:
    """One chart a number; lines over a numeric first axis, bars otherwise, the other axes as series."""
    shown = [axes[i] for i in table.row_axes(axes)]
    found = table.rows(axes, outcomes)
    first, others = shown[0], shown[1:]
    names = [name for name in table.columns(outcomes) if name not in ("minutes",)]
    names.sort(key=lambda name: name in ("loss", "samples/s"))  # downstream first
    series: dict[str, list[Row]] = {}
    for row in found:
        key = ", ".join(f"{a.label} {c.label}" for a, c in zip(others, row.choices[1:], strict=True)) or first.label
        series.setdefault(key, []).append(row)
    charts: list[Section] = []
    for name in names:
        if first.numeric and len(first.choices) > 1:
            curves = [
                Curve(key, [float(r.choices[0].value) for r in part], _means(part, name))
                for key, part in series.items()
            ]
            values = [float(choice.value) for choice in first.choices]
            log = min(values) > 0 and max(values) >= _DECADE * min(
                values
            )  # fractions of 0.02 to 1 would crowd on the left
            charts.append(LineChart(name, first.key, name, [_by_x(curve) for curve in curves], log_x=log))
        else:
            bars = [BarSeries(key, _means(part, name), _spreads(part, name)) for key, part in series.items()]
            charts.append(BarChart(name, name, [choice.label for choice in first.choices], bars))
    return charts


def _by_x(curve: Curve) -> Curve:
    pairs = sorted(zip(curve.x, curve.y, strict=True))
    return Curve(curve.name, [x for x, _ in pairs], [y for _, y in pairs])


def _means(part: Sequence[Row], name: str) -> list[float]:
    return [row.cells[name][0] if name in row.cells else _MISSING for row in part]


def _spreads(part: Sequence[Row], name: str) -> list[float]:
    return [(row.cells[name][1] or 0.0) if name in row.cells else 0.0 for row in part]


def _losses(outcomes: Sequence[Outcome]) -> LineChart | None:
    """The training curves of the first points that have one."""
    curves: list[Curve] = []
    for outcome in outcomes:
        if len(curves) < _CURVES and (outcome.folder / "log.jsonl").is_file():
            log = read_log(outcome.folder)
            curves.append(Curve(outcome.point.name, [line["step"] for line in log], [line["loss"] for line in log]))
    return LineChart("Training loss", "step", "loss", curves) if curves else None
