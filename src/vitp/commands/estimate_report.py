"""The estimate of a recipe as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vitp.commands.estimate import Estimate, GpuEstimate

_SMALL = 0.05  # TFLOP of a sample
_MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "casts": "bf16 copies of the weights (autocast)",
    "tower": "activations, tower",
    "projector": "activations, projector",
    "language_model": "activations, language model",
    "working": "logits, or one layer's gradients",
    "total": "in all",
}


def tables(estimate: Estimate) -> RenderableType:
    """Everything an estimate holds, for a console of 80 columns or more."""
    e = estimate
    head = [
        f"{e.name}: {e.parameters / 1e6:,.1f} M parameters, {e.steps:,} steps of {e.batch_size} samples",
        f"samples {e.mixture_told}",
        f"VRL: {e.vrl}: x{e.speedup:.2f} fewer FLOPs",
    ]
    tail = [f"\nhours at {e.efficiency:.0%} of the dense peak ({e.efficiency_source}), without waiting for data"]
    if e.sample.tflop < _SMALL:
        tail.append("so small a model stays far below such a share: its layers are too narrow for a GPU")
    if e.paper is not None:
        tail.append(
            f"the paper's run took {e.paper.hours:g} h on {e.paper.gpus} {e.paper.gpu.upper()} (Table 8): "
            f"{e.paper.utilisation:.1%} of the peak, counting what this recipe needs; "
            f"at {e.efficiency:.0%} it would take {e.paper.estimated_hours:.1f} h"
        )
    return Group(*map(Text, head), _parts(e), _memory(e), _gpus(e), *map(Text, tail))


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Group:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return Group(Text(f"\n{title}", style="bold"), table)


def _parts(e: Estimate) -> Group:
    rows = [
        (
            part.name.replace("_", " ") + ("" if part.trained else " (frozen)"),
            f"{part.parameters / 1e6:,.2f}" if part.parameters else "tied",
            f"{part.tflop:.4g}",
            f"{part.tflop / e.sample.tflop:.0%}",
            f"{part.tflop_without_vrl:.4g}",
        )
        for part in e.parts
    ]
    whole = (f"{e.parameters / 1e6:,.2f}", f"{e.sample.tflop:.4g}", "100%", f"{e.sample_without_vrl.tflop:.4g}")
    for name, with_vrl, without in (
        ("tiles", e.sample.tiles, e.sample_without_vrl.tiles),
        ("tokens", e.sample.tokens, e.sample_without_vrl.tokens),
    ):
        rows.append((f"{name} of a sample", "", f"{with_vrl:.1f}", "", f"{without:.1f}"))
    rows.insert(len(e.parts), ("in all", *whole))
    return _table("A sample, forward and backward", ("", "M parameters", "TFLOP", "", "TFLOP without VRL"), rows)


def _memory(e: Estimate) -> Group:
    title = f"Memory, {e.precision}: a full pack of {e.pack['tiles']:,} tiles and {e.pack['tokens']:,} tokens"
    rows = [(label, f"{e.memory[key]:.2f}") for key, label in _MEMORY.items() if key == "total" or e.memory[key] > 0]
    return _table(title, ("", "GiB"), rows)


def _gpus(e: Estimate) -> Group:
    return _table(
        "GPUs",
        (
            "",
            "GiB to use",
            "recipe's pack",
            "largest pack that fits",
            "recomputed",
            "samples/s",
            "hours",
            "without VRL",
        ),
        [_gpu(g, e.bounds_chosen) for g in e.gpus],
    )


def _gpu(g: GpuEstimate, chosen: bool) -> tuple[str, ...]:
    largest, fits = g.largest_pack, g.recipe_pack_gib <= g.usable_gib
    return (
        f"{g.gpus} x {g.gpu.upper()}" if g.gpus > 1 else g.gpu.upper(),
        f"{g.usable_gib:.1f}",
        "fits" if fits else "too large" if chosen or largest is None else "is lowered",
        "none" if largest is None else f"{largest['tiles']:,} tiles, {largest['tokens']:,} tokens",
        g.checkpointing,
        f"{g.samples_per_s:.4g}",
        _hours(g.hours),
        _hours(g.hours_without_vrl),
    )


def _hours(hours: float) -> str:
    return "below 0.01" if hours < 0.01 else f"{hours:.2f}" if hours < 10 else f"{hours:,.1f}"
