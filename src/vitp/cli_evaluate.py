"""`vitp evaluate` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp.cli_options import Json, Overrides, Resume, finish, say


def evaluate(
    run: Annotated[
        str, typer.Argument(help="Folder of a fine-tuning run, or its model.safetensors; with --sweep a recipe.")
    ],
    overrides: Overrides = None,
    data: Annotated[Path | None, typer.Option("--data", help="Another place of the data set (data.root).")] = None,
    split: Annotated[str, typer.Option("--split", help="The part to score: test, val or train.")] = "test",
    tta: Annotated[
        str,
        typer.Option(
            "--tta", help="Views of an image: own (as the recipe says), none, flip, or multiscale (and flip)."
        ),
    ] = "own",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Whose data count; default: recipe.yaml of the run.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results; default: in the run's.")] = None,
    pictures: Annotated[int, typer.Option("--pictures", min=0, help="Images shown in the report.")] = 6,
    submission: Annotated[
        Path | None,
        typer.Option("--submission", help="Also write what a detector found as DOTA's server takes it (.zip)."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="Fine-tune and score at every point, e.g. fraction=1,0.2,0.1,0.05,0.02."),
    ] = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option("--backbones", help="Sweep these side by side: random, NAME=FILE; with commas or given again."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Repeat every point of a sweep with seeds 0, 1, ...")
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="With --sweep: print the command of each point and end.")
    ] = False,
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results there.")] = False,
    as_json: Json = False,
) -> None:
    """Score a fine-tuned model on a labelled part: tables, metrics.json, and a report with pictures.

    With --sweep (or --backbones, or a sweep's own recipe) fine-tune and score a recipe at every point of a grid: mean and
    spread over --seeds, one table and picture.
    """
    from vitp.ablation.plan import is_sweep
    from vitp.commands.evaluate import evaluate as run_evaluate
    from vitp.errors import ConfigError
    from vitp.progress import Console
    from vitp.train.distributed import refuse_ranks

    if sweep or backbones or (Path(run).suffix in ("", ".yaml", ".yml") and is_sweep(run)):
        given: dict[str, object] = {"--data": data, "--recipe": recipe, "--out": out, "--submission": submission}
        if wrong := [name for name, value in given.items() if value is not None]:
            key = {"--data": "data.root=...", "--recipe": "the recipe as first argument", "--out": "out=..."}.get(
                wrong[0]
            )
            fix = f"write {key}" if key else "give it when you score one point's run"
            raise ConfigError(f"{wrong[0]} does not go with --sweep; {fix}")
        _sweep(run, overrides or [], sweep or [], backbones or [], seeds, list_only, resume, overwrite, as_json)
        return
    if seeds is not None or list_only or resume:
        raise ConfigError(
            "--seeds, --list and --resume go with --sweep; say what is varied, as in --sweep fraction=1,0.1"
        )
    refuse_ranks("`vitp evaluate`")
    _one_of("--split", split, ("test", "val", "train"))
    _one_of("--tta", tta, ("own", "none", "flip", "multiscale"))
    console = Console()
    with console.bars(("evaluate", "images")) as (images,):
        result = run_evaluate(
            run,
            overrides or [],
            data=data,
            split=split,  # type: ignore[arg-type]  # refused above unless it is one
            tta=tta,  # type: ignore[arg-type]
            recipe=recipe,
            out=out,
            pictures=pictures,
            submission=submission,
            overwrite=overwrite,
            progress=images,
            say=console.say,
        )
    for line in result.lines():
        typer.echo(line, err=as_json)
    say(f"report: {result.report}")
    finish(result.numbers, as_json)


def _sweep(
    recipe: str,
    overrides: list[str],
    axes: list[str],
    backbones: list[str],
    seeds: int | None,
    list_only: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    from vitp.ablation.variants import backbone_variants, seed_variants
    from vitp.cli_sweep import run_sweep

    named = [text for listed in backbones for text in listed.split(",") if text]
    variants = {**backbone_variants(named, recipe), **(seed_variants(seeds) if seeds is not None else {})}
    run_sweep(
        recipe,
        overrides,
        axes,
        kind="finetune",
        variants=variants,
        list_only=list_only,
        resume=resume,
        overwrite=overwrite,
        as_json=as_json,
    )


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    from vitp.errors import ConfigError

    if value not in known:
        raise ConfigError(f"{option} {value}: known are {', '.join(known)}")
