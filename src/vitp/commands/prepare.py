"""`vitp prepare`: a benchmark as distributed into the folders its recipe reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vitp.datasets.catalog import BENCHMARKS, benchmark
from vitp.datasets.prepare import Preparation, Prepared, run_preparation
from vitp.datasets.prepare_ssdd import plan_ssdd
from vitp.datasets.prepare_tiles import TILED
from vitp.errors import ConfigError, OutputError


def prepare(
    name: str,
    source: Path,
    out: Path,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    threads: int = 4,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Prepared:
    """Prepare a benchmark; the same call again goes on where it was, and nothing there is overwritten.

    Args:
        name: of the catalog (`vitp datasets`).
        source: the data set as distributed; it is only read.
        out: folder to write, new or of an unfinished preparation with the same settings.
        tile: side of the tiles in pixels; None: as the paper's released configuration.
        overlap: pixels that tiles share; None: likewise.
        threads: that cut and write.
        progress: receives (images done, images in all).

    Raises:
        ConfigError: there is no such data set, nothing to prepare, or tile and overlap do not fit.
        DataError: the source is not laid out as expected, or a file of it cannot be used.
        OutputError: `out` lies in the source, holds something else, or cannot be written to.
    """
    entry = benchmark(name)
    if not entry.needs_preparation:
        raise ConfigError(
            f"{entry.name} is read as it is distributed, there is nothing to prepare; set data.root={source} in its recipe"
        )
    if source.resolve() == out.resolve() or source.resolve() in out.resolve().parents:
        raise OutputError(f"{out} lies in the source {source}, which stays as it is; choose a folder outside")
    return run_preparation(_plan(entry.name, source, out, tile, overlap), out, threads=threads, progress=progress)


def _plan(name: str, source: Path, out: Path, tile: int | None, overlap: int | None) -> Preparation:
    if name not in TILED:
        if tile is not None or overlap is not None:
            raise ConfigError(f"tile and overlap are given, but {name} is not cut; leave them out")
        assert name == "ssdd", f"no preparation for {name}, but {', '.join(BENCHMARKS)}"
        return plan_ssdd(source, out)
    plan, cut = TILED[name]
    cut = replace(cut, tile=cut.tile if tile is None else tile, overlap=cut.overlap if overlap is None else overlap)
    if not 0 <= cut.overlap < cut.tile:
        raise ConfigError(f"overlap: {cut.overlap} must be less than tile: {cut.tile}, and neither below 0")
    if name == "uavid" and cut.overlap:
        raise ConfigError("overlap: UAVid's tiles share nothing; leave it out")
    return plan(source, out, cut)
