"""The command line: one short function a command; everything heavy is imported inside."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="vitp",
    help="Visual instruction pretraining: instruction data in, domain vision backbone out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Recipe = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe (see `vitp recipes`).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Dotted overrides, e.g. steps=400 data.sources.0.root=/data model.tower.depth=8"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run in the output folder and start anew.")]
Json = Annotated[bool, typer.Option("--json", help="End with one line of JSON on standard output.")]


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _speaks() -> bool:
    """Whether this process is the one of many ranks that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


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

    result = run_demo(out, seed=seed, minutes=minutes, overwrite=overwrite, console=Console())
    _say(f"report: {result.report}")
    _finish(result.numbers, as_json)


@app.command()
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
        _say(f"report: {check_html(html, report, recipe, given, leaks=leaks)}")
    if as_json:
        typer.echo(json.dumps(found))
    if report.errors:
        raise typer.Exit(2)


@app.command()
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


@app.command()
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
    _finish(report.to_json(), as_json)
    if report.failed:
        raise typer.Exit(2)


@app.command()
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
    _finish(found.to_json(), as_json)


@app.command()
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
    _finish(result.to_json(), as_json)


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
    from vitp.commands.pretrain import pretrain as run
    from vitp.progress import Console

    console = Console()
    if sweep or is_sweep(recipe):
        _sweep(recipe, overrides or [], sweep or [], then or [], list_only, resume, overwrite, as_json)
        return
    if then or list_only:
        from vitp.errors import ConfigError

        raise ConfigError("--then and --list go with --sweep; say what is varied, as in --sweep drop_ratio=0,0.5,0.75")
    if not _speaks():
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
    _finish(
        {"out": str(result.out), "loss": trained.loss, "seconds": trained.seconds, "skipped": trained.skipped}, as_json
    )


def _sweep(
    recipe: str,
    overrides: list[str],
    axes: list[str],
    then: list[str],
    list_only: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    from vitp.commands.sweep import commands
    from vitp.commands.sweep import sweep as run
    from vitp.progress import Console

    if list_only:
        for line in commands(recipe, axes, overrides, then=then):
            typer.echo(line)
        return
    console = Console()
    with console.training("sweep") as progress:
        result = run(
            recipe,
            axes,
            overrides,
            then=then,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            say=console.say,
        )
    for line in result.lines():
        typer.echo(line, err=as_json)
    _say(f"report: {result.out / 'sweep.html'}")
    _finish(result.to_json(), as_json)
    if result.failed:
        raise typer.Exit(2)


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
        say=_say,
    )
    _say(f"wrote {result.weights}, {result.config}, {result.card}")
    _say(
        f"parity: max abs difference {result.max_abs_difference:.3g} (fixed input, re-loaded through {result.library})"
    )
    _say(result.command)
    if result.pushed:
        _say(f"pushed: {result.pushed}")
    numbers = {"weights": str(result.weights), "max_abs_difference": result.max_abs_difference}
    _finish({**numbers, **({"pushed": result.pushed} if result.pushed else {})}, as_json)


@app.command()
def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a backbone on a downstream task and evaluate it on the test split."""
    from vitp.commands.finetune import finetune as run
    from vitp.progress import Console

    console = Console()
    with console.training("finetune") as progress:
        result = run(recipe, overrides or [], resume=resume, overwrite=overwrite, progress=progress, say=console.say)
    _finish(result.numbers, as_json)
    for name, value in result.numbers.items():
        console.say(f"{name}: {value}")


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

    console = Console()
    with console.bars(("predict", "windows")) as (windows,):
        result = run_predict(
            run, image, out, overrides or [], after=after, overwrite=overwrite, progress=windows, say=console.say
        )
    for line in result.lines():
        typer.echo(line, err=as_json)
    _finish(result.to_json(), as_json)
    if result.failed:
        raise typer.Exit(2)


@app.command()
def probe(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Measure frozen features: linear probe and nearest neighbours on labelled images."""
    from vitp.commands.probe import probe as run
    from vitp.progress import Console

    console = Console()
    result = run(recipe, overrides or [], say=console.say)
    for name, value in result.numbers.items():
        console.say(f"{name}: {value}")
    _finish(result.numbers, as_json)


@app.command()
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


@app.command()
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
        _say("reading every label; of a large data set that takes minutes")
    shown = run(name, root)
    for line in shown.lines():
        typer.echo(line, err=as_json)
    _finish(shown.to_json(), as_json)
    if shown.folder is not None and not shown.folder.complete:
        raise typer.Exit(2)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A data set of `vitp datasets`.")],
    source: Annotated[Path, typer.Argument(help="Folder of the data set as distributed.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    tile: Annotated[int | None, typer.Option("--tile", min=8, help="Side of the tiles; default as released.")] = None,
    overlap: Annotated[int | None, typer.Option("--overlap", min=0, help="Pixels that tiles share.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="That cut and write.")] = 4,
    as_json: Json = False,
) -> None:
    """Cut and translate a benchmark for its recipe. Given again, it goes on; nothing is overwritten."""
    from vitp.commands.prepare import prepare as run
    from vitp.progress import Console

    with Console().bar("prepare", "images") as bar:
        result = run(name, source, out, tile=tile, overlap=overlap, threads=threads, progress=bar)
    for line in result.lines():
        typer.echo(line, err=as_json)
    _say(f"next: vitp datasets {name} --root {out}")
    _finish(result.to_json(), as_json)


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


def _finish(numbers: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(numbers))


def main() -> None:
    """Run the command line; a mistake the user can mend is told on standard error, exit code 2."""
    from vitp.errors import StoppedElsewhereError, VitpError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=True)
    except StoppedElsewhereError:
        sys.exit(2)
    except VitpError as error:
        _say(f"error: {error}" if _speaks() else f"error: rank {os.environ['RANK']}: {error}")
        sys.exit(2)
    except OSError as error:  # the disk is full, a folder cannot be read: a traceback would not help
        place = f" ({error.filename})" if error.filename else ""
        _say(f"error: {error.strerror or error}{place}: mend the place or choose another, then run again")
        sys.exit(2)
