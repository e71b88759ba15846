"""Sweeps on the command line: what `vitp pretrain --sweep` and `vitp evaluate --sweep` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from vitp.cli_options import finish, say

if TYPE_CHECKING:
    from vitp.ablation.kinds import KindName
    from vitp.ablation.plan import Variants


def run_sweep(
    recipe: str,
    overrides: Sequence[str],
    axes: Sequence[str],
    *,
    then: Sequence[str] = (),
    kind: KindName = "pretrain",
    variants: Variants | None = None,
    list_only: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run a sweep and print its table, or print the commands of its points; exit code 2 where a point failed."""
    from vitp.commands.sweep import commands, sweep
    from vitp.progress import Console

    if list_only:
        for line in commands(recipe, axes, overrides, then=then, kind=kind, variants=variants):
            typer.echo(line)
        return
    console = Console()
    with console.training("sweep") as progress:
        result = sweep(
            recipe,
            axes,
            overrides,
            then=then,
            kind=kind,
            variants=variants,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            say=console.say,
        )
    for line in result.lines():
        typer.echo(line, err=as_json)
    say(f"report: {result.out / 'sweep.html'}")
    finish(result.to_json(), as_json)
    if result.failed:
        raise typer.Exit(2)
