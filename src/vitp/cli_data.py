"""Commands about data and recipes; `vitp.cli` puts them on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vitp.cli_options import Json, Overrides, Recipe, finish, say


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image in full, not just its header.")] = False,
    near_duplicates: Annotated[
        bool,
        typer.Option("--near-duplicates", help="Find images that show the same as others. Decodes every image."),
    ] = False,
    lengths: Annotated[
        bool, typer.Option("--lengths/--no-lengths", help="Count tokens, with the recipe's tokenizer.")
    ] = True,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="Folder of downstream images; pretraining images among them are listed."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML file, too.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a recipe's data: file, line and the fix. Exit code 2 when there are errors."""
    from vitp.commands.check import check as run_check
    from vitp.commands.check import check_html, check_leakage
    from vitp.progress import Console

    given, console, leaks = overrides or [], Console(), None
    with console.bar("check", "samples, then images" if near_duplicates else "samples") as bar:
        report = run_check(
            recipe,
            given,
            decode=decode,
            near_duplicates=near_duplicates,
            lengths=lengths,
            workers=workers,
            progress=bar,
        )
    lines, found = report.lines(), report.to_json()
    if against:
        with console.bar("compare", "images") as bar:
            leaks = check_leakage(recipe, against, given, workers=workers, progress=bar)
        lines += leaks.lines()
        found["leakage"] = leaks.to_json()
    for line in lines:
        typer.echo(line, err=as_json)
    if html is not None:
        say(f"report: {check_html(html, report, recipe, given, leaks=leaks)}")
    if as_json:
        typer.echo(json.dumps(found))
    if report.errors:
        raise typer.Exit(2)


def models(as_json: Json = False) -> None:
    """Checkpoints known to fit: whole models, towers and language models, by hub id."""
    from vitp.vlm.known import KNOWN_LANGUAGE_MODELS, KNOWN_TOWERS, KNOWN_VLMS

    kinds = {
        "model.vlm": KNOWN_VLMS,
        "model.tower.weights": KNOWN_TOWERS,
        "model.language_model.path": KNOWN_LANGUAGE_MODELS,
    }
    if as_json:
        typer.echo(json.dumps({key: dict(known) for key, known in kinds.items()}))
        return
    for key, known in kinds.items():
        typer.echo(f"{key}: a folder, a file or a hub id, such as")
        for name, what in known.items():
            typer.echo(f"  {name:46} {what}")


def index(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: as the recipe says.")] = 0,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build anew, e.g. after images were replaced.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the samples of a recipe once (tokens, tiles, image sizes) and remember them."""
    from vitp.commands.index import index as run
    from vitp.progress import Console

    console = Console()
    with console.bar("index", "samples") as bar:
        report = run(recipe, overrides or [], workers=workers, rebuild=rebuild, progress=bar, say=console.say)
    for line in report.lines():
        typer.echo(line, err=as_json)
    finish(report.to_json(), as_json)
    if report.failed:
        raise typer.Exit(2)


def estimate(
    recipe: Recipe,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="One kind of GPU: a40, a100, h100, h200, l40s, ...")] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="How many share the run.")] = 1,
    efficiency: Annotated[
        float | None, typer.Option("--efficiency", help="Useful FLOP/s over the dense peak; default 0.4.")
    ] = None,
    tiles: Annotated[float | None, typer.Option("--tiles", help="Of every sample, instead of the data's.")] = None,
    text: Annotated[float | None, typer.Option("--text", help="Text tokens of every sample, with --tiles.")] = None,
    supervised: Annotated[float | None, typer.Option("--supervised", help="Of these, tokens of answers.")] = None,
    as_json: Json = False,
) -> None:
    """Say what pretraining would cost: parameters, FLOPs, memory, the largest pack, hours. No GPU, no checkpoint."""
    from rich.console import Console as RichConsole

    from vitp.commands.estimate import EFFICIENCY
    from vitp.commands.estimate import estimate as run
    from vitp.commands.estimate_report import tables

    found = run(
        recipe,
        overrides or [],
        gpu=gpu,
        gpus=gpus,
        efficiency=EFFICIENCY if efficiency is None else efficiency,
        tiles=tiles,
        text_tokens=text,
        supervised_tokens=supervised,
    )
    shown = RichConsole(stderr=as_json, highlight=False)
    shown.width = max(shown.width, 110)  # a table in a file or a pipe is not to be broken
    shown.print(tables(found))
    finish(found.to_json(), as_json)


def synthesize(
    root: Annotated[Path, typer.Argument(help="Folder of a labelled data set.")],
    out: Annotated[Path, typer.Argument(help="JSON Lines file to write.")],
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="YAML file with further keys.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    as_json: Json = False,
) -> None:
    """Turn labels (COCO, DOTA, VOC, class folders, masks, change pairs, captions) into instruction data."""
    from vitp.commands.synthesize import SynthesizeConfig
    from vitp.commands.synthesize import synthesize as run
    from vitp.config import load
    from vitp.progress import Console
    from vitp.recipes import find_recipe

    places = [f"root={json.dumps(str(root))}", f"out={json.dumps(str(out))}"]
    places += ["overwrite=true"] if overwrite else []
    config = load(SynthesizeConfig, recipe, [*places, *(overrides or [])], find=find_recipe)
    with Console().bars(("synthesize", "images"), ("reword", "texts")) as (images, texts):
        result = run(config, progress=images, rewording=texts)
    for line in result.lines():
        typer.echo(line, err=as_json)
    finish(result.to_json(), as_json)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe in full: its header and every source.")] = None,
    overrides: Overrides = None,
    base: Annotated[Path | None, typer.Option("--base", help="Folder the data lies below (data.base).")] = None,
    from_meta: Annotated[
        Path | None, typer.Option("--from-meta", help="Print a released mixture JSON as the data.sources of a recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that ship with vitp, what each needs, and how much of its data is on this disk."""
    from vitp.commands.recipes import show

    shown = show(name, overrides or [], base=base, from_meta=from_meta)
    for line in shown.lines():
        typer.echo(line, err=as_json)
    if as_json:
        typer.echo(json.dumps(shown.to_json()))


def datasets(
    name: Annotated[str | None, typer.Argument(help="Show this data set in full.")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Say what is missing in this folder of it.")] = None,
    as_json: Json = False,
) -> None:
    """List the paper's benchmarks, what each needs and how it is prepared; check a folder of one before training.

    Exit code 2 where something is missing.
    """
    from vitp.commands.datasets import datasets as run

    if name is not None and root is not None:
        say("reading every label; of a large data set that takes minutes")
    shown = run(name, root)
    for line in shown.lines():
        typer.echo(line, err=as_json)
    finish(shown.to_json(), as_json)
    if shown.folder is not None and not shown.folder.complete:
        raise typer.Exit(2)


def prepare(
    name: Annotated[str, typer.Argument(help="A data set of `vitp datasets`.")],
    source: Annotated[Path, typer.Argument(help="Folder of the data set as distributed.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    tile: Annotated[int | None, typer.Option("--tile", min=8, help="Side of the tiles; default as released.")] = None,
    overlap: Annotated[int | None, typer.Option("--overlap", min=0, help="Pixels that tiles share.")] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option("--rate", help="Of DOTA, several: tiles of tile / rate pixels. Default: 1 alone."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="That cut and write.")] = 4,
    as_json: Json = False,
) -> None:
    """Cut and translate a benchmark for its recipe. Given again, it goes on; nothing is overwritten."""
    from vitp.commands.prepare import prepare as run
    from vitp.progress import Console

    with Console().bar("prepare", "images") as bar:
        result = run(name, source, out, tile=tile, overlap=overlap, rates=rate or None, threads=threads, progress=bar)
    for line in result.lines():
        typer.echo(line, err=as_json)
    say(f"next: vitp datasets {name} --root {out}")
    finish(result.to_json(), as_json)


def paste(
    table: Annotated[Path, typer.Argument(help="CSV: Class, Filename, Mask, Left, Top, Width, Height.")],
    images: Annotated[Path, typer.Argument(help="Folder of the images.")],
    out: Annotated[Path, typer.Argument(help="Folder of the masks to write.")],
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="NAME=ID, NAME as in the table, ID from 1; give it often.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Turn structures stored as patches with a place in a table into one mask an image."""
    from vitp.commands.paste import paste as run

    result = run(table, images, out, classes or [], overwrite=overwrite)
    say(f"{result.masks} masks in {result.out}: 0 is where nothing was pasted, and {', '.join(classes or [])}")
    finish(result.to_json(), as_json)
