"""What the commands of the line share: their options, and how they speak."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

Recipe = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe (see `vitp recipes`).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Dotted overrides, e.g. steps=400 data.sources.0.root=/data model.tower.depth=8"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run in the output folder and start anew.")]
Json = Annotated[bool, typer.Option("--json", help="End with one line of JSON on standard output.")]


def say(text: str) -> None:
    """A line for people, on standard error."""
    typer.echo(text, err=True)


def speaks() -> bool:
    """Whether this process is the one of many ranks that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def finish(numbers: dict[str, Any], as_json: bool) -> None:
    """The command's figures as one line of JSON on standard output, where they were asked for."""
    if as_json:
        typer.echo(json.dumps(numbers))
