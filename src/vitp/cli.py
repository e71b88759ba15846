"""The command line: one short function a command; everything heavy is imported inside."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitp import cli_data, cli_evaluate
from vitp.cli_options import Json, Overrides, Overwrite, Recipe, Resume, finish, say, speaks

app = typer.Typer(
    name="vitp",
    help="Visual instruction pretraining: instruction data in, domain vision backbone out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs and report.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of scenes and training.")] = 0,
    minutes: Annotated[float, typer.Option(help="Rough time to spend; less gives smaller gains.")] = 5.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Pretrain, export, probe and fine-tune on procedural scenes: no download, no GPU, one HTML report."""
    from vitp.demo.run import run_demo
    from vitp.progress import Console
    from vitp.train.distributed import refuse_ranks

    refuse_ranks("`vitp demo`")
    result = run_demo(out, seed=seed, minutes=minutes, overwrite=overwrite, console=Console())
    say(f"report: {result.report}")
    finish(result.numbers, as_json)


app.command()(cli_data.check)


app.command()(cli_data.models)


app.command()(cli_data.index)


app.command()(cli_data.estimate)


app.command()(cli_data.synthesize)


@app.command()
def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="A key and its values, e.g. drop_ratio=0,0.5,0.75; several make a grid."),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option("--then", help='With --sweep: measure each point, e.g. "probe/rsscn7 data.root=/data/rsscn7".'),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="With --sweep: print the command of each point and end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pretrain a ViT inside a vision-language model on instruction data; under torchrun on many ranks, with --sweep at every
    point of a grid.
    """
    from vitp.ablation.plan import is_sweep
    from vitp.cli_sweep import run_sweep
    from vitp.commands.pretrain import pretrain as run
    from vitp.progress import Console

    console = Console()
    if sweep or is_sweep(recipe):
        run_sweep(
            recipe,
            overrides or [],
            sweep or [],
            then=then or [],
            list_only=list_only,
            resume=resume,
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    if then or list_only:
        from vitp.errors import ConfigError

        raise ConfigError("--then and --list go with --sweep; say what is varied, as in --sweep drop_ratio=0,0.5,0.75")
    if not speaks():
        run(recipe, overrides or [], resume=resume, overwrite=overwrite, say=console.say)
        return
    with console.training("pretrain") as progress:
        result = run(recipe, overrides or [], resume=resume, overwrite=overwrite, progress=progress, say=console.say)
    trained = result.train
    counts = trained.counts
    console.say(
        f"{trained.step} steps, {counts['samples']:.0f} samples in {trained.seconds:.0f} s; skipped {trained.skipped}, "
        f"truncated {counts.get('truncated', 0):.0f}; visual tokens to the language model: "
        f"{counts.get('visual_kept', 0):.0f} of {counts.get('visual_tokens', 0):.0f}"
    )
    console.say(f"next: vitp export {result.out} --to timm {result.out / 'backbone.safetensors'}")
    finish(
        {"out": str(result.out), "loss": trained.loss, "seconds": trained.seconds, "skipped": trained.skipped}, as_json
    )


@app.command()
def ask(
    run: Annotated[Path, typer.Argument(help="Folder of a pretraining run.")],
    image: Annotated[Path, typer.Argument(help="Picture, GeoTIFF, DICOM or NIfTI file.")],
    questions: Annotated[list[str], typer.Argument(help="One question or several, each in quotes.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer without an end is cut.")] = 256,
    as_json: Json = False,
) -> None:
    """Ask the model of a pretraining run about a picture."""
    from vitp.commands.ask import ask as run_ask

    answers = run_ask(run, image, questions, max_new_tokens=max_new_tokens)
    for given in answers:
        typer.echo(given, err=as_json)
    if as_json:
        typer.echo(json.dumps({"answers": answers}, ensure_ascii=False))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a pretraining run.")],
    path: Annotated[Path | None, typer.Argument(help="File or folder to write; default: in RUN, by format.")] = None,
    to: Annotated[str, typer.Option("--to", help="Format: timm, vitp, hf-vision, hf or onnx.")] = "timm",
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Resize the ViT's positions for this side, pixels.")
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option("--patch-size", help="Resample the ViT's patches to this side, pixels.")
    ] = None,
    resample: Annotated[
        str, typer.Option("--resample", help="How: pinv (timm's pseudo-inverse) or bicubic (released code).")
    ] = "pinv",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the tensors in the file: fp32 or bf16.")] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    push_to: Annotated[
        str | None, typer.Option("--push-to", help="owner/name on a Hugging Face hub to send it to, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push-to: make it public.")] = False,
    as_json: Json = False,
) -> None:
    """Take the ViT or the whole model out of a run for another library, and print the parity after re-loading it there."""
    from vitp.commands.export import export as run_export

    result = run_export(
        run,
        to=to,
        path=path,
        image_size=image_size,
        patch_size=patch_size,
        resample=resample,  # type: ignore[arg-type]  # any text; what is not a way of resampling is refused
        dtype=dtype,
        overwrite=overwrite,
        push_to=push_to,
        public=public,
        say=say,
    )
    say(f"wrote {result.weights}, {result.config}, {result.card}")
    say(f"parity: max abs difference {result.max_abs_difference:.3g} (fixed input, re-loaded through {result.library})")
    say(result.command)
    if result.pushed:
        say(f"pushed: {result.pushed}")
    numbers = {"weights": str(result.weights), "max_abs_difference": result.max_abs_difference}
    finish({**numbers, **({"pushed": result.pushed} if result.pushed else {})}, as_json)


@app.command()
def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a backbone on a downstream task and evaluate it on the test split; under torchrun on many ranks."""
    from vitp.commands.finetune import finetune as run
    from vitp.progress import Console

    console = Console()
    if not speaks():
        run(recipe, overrides or [], resume=resume, overwrite=overwrite, say=console.say)
        return
    with console.training("finetune") as progress:
        result = run(recipe, overrides or [], resume=resume, overwrite=overwrite, progress=progress, say=console.say)
    for line in result.lines():
        typer.echo(line, err=as_json)
    for name, value in result.numbers.items():
        if not isinstance(value, dict | list):
            console.say(f"{name}: {value}")
    console.say(f"report: {result.report}")
    finish(result.numbers, as_json)


app.command()(cli_evaluate.evaluate)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a fine-tuning run.")],
    image: Annotated[Path, typer.Argument(help="Picture, GeoTIFF or NIfTI, or a folder of them.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Dotted settings, e.g. window=512 overlap=0.5 probabilities=true")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the outputs, named after their inputs.")] = Path(
        "out/predict"
    ),
    after: Annotated[
        Path | None, typer.Option("--after", help="Second date (or folder of second dates), for change detection.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist; start anew.")] = False,
    as_json: Json = False,
) -> None:
    """Predict images of any size, pairs and volumes; each output keeps its input's georeference or affine.

    An interrupted prediction goes on where it was when the same command is given again.
    """
    from vitp.commands.predict import predict as run_predict
    from vitp.progress import Console
    from vitp.train.distributed import refuse_ranks

    refuse_ranks("`vitp predict`")
    console = Console()
    with console.bars(("predict", "windows")) as (windows,):
        result = run_predict(
            run, image, out, overrides or [], after=after, overwrite=overwrite, progress=windows, say=console.say
        )
    for line in result.lines():
        typer.echo(line, err=as_json)
    finish(result.to_json(), as_json)
    if result.failed:
        raise typer.Exit(2)


@app.command()
def probe(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Measure frozen features: linear probe and nearest neighbours on labelled images."""
    from vitp.commands.probe import probe as run
    from vitp.progress import Console
    from vitp.train.distributed import refuse_ranks

    refuse_ranks("`vitp probe`")
    console = Console()
    result = run(recipe, overrides or [], say=console.say)
    for name, value in result.numbers.items():
        console.say(f"{name}: {value}")
    finish(result.numbers, as_json)


app.command()(cli_data.recipes)


app.command()(cli_data.datasets)


app.command()(cli_data.prepare)
app.command()(cli_data.paste)


@app.command()
def env() -> None:
    """Print versions and hardware, for bug reports."""
    from vitp.provenance import provenance
    from vitp.train.loop_config import choose_device, uses_bf16

    device = choose_device("auto")
    facts: dict[str, Any] = {
        **provenance(),
        "device": str(device),
        "bf16": uses_bf16("auto", device),
        "cores": os.cpu_count(),
    }
    for name, value in facts.items():
        typer.echo(f"{name:14} {value}")


def main() -> None:
    """Run the command line; a mistake the user can mend is told on standard error, exit code 2."""
    from vitp.errors import StoppedElsewhereError, VitpError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=True)
    except StoppedElsewhereError:
        sys.exit(2)
    except VitpError as error:
        say(f"error: {error}" if speaks() else f"error: rank {os.environ['RANK']}: {error}")
        sys.exit(2)
    except OSError as error:  # the disk is full, a folder cannot be read: a traceback would not help
        place = f" ({error.filename})" if error.filename else ""
        say(f"error: {error.strerror or error}{place}: mend the place or choose another, then run again")
        sys.exit(2)
