"""`vitp check`: what is wrong with a recipe's data, before any step is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vitp.commands.pretrain import recipe_tokenizer, size_rules
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import CheckpointError
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.check_html import write_check_report
from vitp.instruction.check_report import CheckReport
from vitp.instruction.leakage import LeakReport, find_overlap, image_files, source_images
from vitp.instruction.lengths import LengthRule
from vitp.instruction.principles import assess, shortcomings
from vitp.recipes import find_recipe, load_recipe
from vitp.yaml_lines import read


def check(
    recipe: PretrainConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    decode: bool = False,
    near_duplicates: bool = False,
    lengths: bool = True,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every record and every image header of a pretraining recipe's sources, and assess the mixture.

    Args:
        recipe: a PretrainConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        decode: decode every image in full, not just its header.
        near_duplicates: find images that show the same as others; decodes every image too.
        lengths: count tokens, with the recipe's tokenizer: its own, or one built from the sources' text (seconds).
        workers: processes that share the work.
        progress: called with (done, total) samples, then for near-duplicates with (done, total) images.

    Raises:
        VitpError: the recipe is wrong, or a source cannot be opened at all.
    """
    config = load_recipe(PretrainConfig, recipe, overrides)
    sources = config.data.open_sources()
    rule, notes = None, []
    if lengths:
        try:
            rule = LengthRule(size_rules(config, recipe_tokenizer(config, sources)))
        except CheckpointError as error:
            notes.append(f"tokens were not counted: {error}")
    options = CheckOptions(decode, near_duplicates, rule)
    report = check_sources(sources, options, workers=workers, progress=progress)
    principles = assess(
        config.data.sources,
        report.sources,
        images=report.distinct_images,
        seen=config.steps * config.batch_size,
        downstream=config.data.downstream,
        downstream_modalities=config.data.downstream_modalities,
    )
    report = replace(report, principles=principles, notes=tuple(notes))
    return report.with_findings(shortcomings(principles, _declaration(recipe)))


def _declaration(recipe: PretrainConfig | Path | str) -> str:
    """``file:line`` of what a recipe is for, or of its data where that is said on the command line."""
    if isinstance(recipe, PretrainConfig):
        return f"recipe '{recipe.name}'"
    path = Path(recipe) if Path(recipe).is_file() else find_recipe(str(recipe))
    if path is None:
        return str(recipe)
    lines = read(path).lines
    keys = [("data", "downstream"), ("data", "downstream_modalities"), ("data",)]
    return f"{path}:{next((lines[key] for key in keys if key in lines), 1)}"


def check_leakage(
    recipe: PretrainConfig | Path | str,
    against: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> LeakReport:
    """Images of a pretraining recipe that are also downstream images (`vitp check --against`).

    Args:
        recipe: a PretrainConfig, a YAML file, or the name of a recipe that ships with vitp.
        against: folders (or files) of downstream train, val or test images.
        overrides: dotted overrides, ``a.b.0.c=value``.
        workers: processes that share the work.
        progress: called with (done, total) images.

    Raises:
        VitpError: the recipe is wrong, a source cannot be opened, or a folder holds no image.
    """
    config = load_recipe(PretrainConfig, recipe, overrides)
    downstream = image_files(against)
    images = source_images(config.data.open_sources())
    return find_overlap(images, downstream, workers=workers, progress=progress)


def check_html(
    path: Path,
    report: CheckReport,
    recipe: PretrainConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    leaks: LeakReport | None = None,
) -> Path:
    """Write a report of `check`, and one of `check_leakage` where given, as one HTML file; returns its path.

    Raises:
        OutputError: the file cannot be written.
    """
    config = load_recipe(PretrainConfig, recipe, overrides)
    name = config.name if isinstance(recipe, PretrainConfig) else str(recipe)
    return write_check_report(path, report, config.data.sources, name, leaks)
