"""`vitp check`: what is wrong with a recipe's data, before any step is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vitp.commands.pretrain import PretrainConfig
from vitp.instruction.check import CheckReport, check_sources
from vitp.instruction.leakage import LeakReport, find_overlap, image_files, source_images
from vitp.instruction.source import Source
from vitp.recipes import load_recipe


def check(
    recipe: PretrainConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    decode: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every record and every image header of a pretraining recipe's sources.

    Args:
        recipe: a PretrainConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        decode: decode every image in full, not just its header.
        workers: processes that share the work.
        progress: called with (done, total) samples.

    Raises:
        VitpError: the recipe is wrong, or a source cannot be opened at all.
    """
    config = load_recipe(PretrainConfig, recipe, overrides)
    sources = [Source(s) for s in config.data.sources]
    return check_sources(sources, decode=decode, workers=workers, progress=progress)


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
    images = source_images([Source(s) for s in config.data.sources])
    return find_overlap(images, downstream, workers=workers, progress=progress)
