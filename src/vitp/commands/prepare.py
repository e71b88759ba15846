"""`vitp prepare`: a benchmark as distributed into the folders its recipe reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vitp.datasets.benchmark import Benchmark
from vitp.datasets.catalog import BENCHMARKS, benchmark
from vitp.datasets.prepare import Preparation, Prepared, run_preparation
from vitp.datasets.prepare_dota import DOTA_CUT, plan_dota
from vitp.datasets.prepare_hrsc import plan_hrsc
from vitp.datasets.prepare_ssdd import plan_ssdd
from vitp.datasets.prepare_tiles import TILED, Cut
from vitp.errors import ConfigError, OutputError


def prepare(
    name: str,
    source: Path,
    out: Path,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    rates: Sequence[float] | None = None,
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
        rates: of DOTA: tiles of tile / rate pixels for each, 0.5 twice as large; None: 1 alone.
        threads: that cut and write.
        progress: receives (images done, images in all).

    Raises:
        ConfigError: there is no such data set, nothing to prepare, or tile, overlap and rates do not fit.
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
    return run_preparation(_plan(entry, source, out, tile, overlap, rates), out, threads=threads, progress=progress)


def _plan(
    entry: Benchmark, source: Path, out: Path, tile: int | None, overlap: int | None, rates: Sequence[float] | None
) -> Preparation:
    name = entry.name
    dota = name.startswith("dota_")
    if rates is not None and not dota:
        raise ConfigError(f"rates are given, but only DOTA is cut at several, not {name}; leave them out")
    if not dota and name not in TILED:
        if tile is not None or overlap is not None:
            raise ConfigError(f"tile and overlap are given, but {name} is not cut; leave them out")
        assert name in _WHOLE, f"no preparation for {name}, but {', '.join(BENCHMARKS)}"
        return _WHOLE[name](source, out)
    cut = DOTA_CUT if dota else TILED[name][1]
    cut = replace(cut, tile=cut.tile if tile is None else tile, overlap=cut.overlap if overlap is None else overlap)
    if not 0 <= cut.overlap < cut.tile:
        raise ConfigError(f"overlap: {cut.overlap} must be less than tile: {cut.tile}, and neither below 0")
    if dota:
        return plan_dota(entry, source, out, cut, _checked_rates(rates or (1.0,), cut))
    if name == "uavid" and cut.overlap:
        raise ConfigError("overlap: UAVid's tiles share nothing; leave it out")
    return TILED[name][0](source, out, cut)


def _checked_rates(rates: Sequence[float], cut: Cut) -> Sequence[float]:
    for rate in rates:
        if not (math.isfinite(rate) and 0 < rate <= cut.tile / _MIN_TILE):
            raise ConfigError(f"rate: {rate:g} makes no tiles of {_MIN_TILE} pixels or more; 0.5, 1 and 1.5 are usual")
    if len({int(cut.tile / rate) for rate in rates}) < len(rates):
        raise ConfigError("rate: two of them make tiles of the same size, whose names would be the same; leave one out")
    return rates


_WHOLE = {"ssdd": plan_ssdd, "hrsc2016": plan_hrsc}  # not cut
_MIN_TILE = 8  # as --tile
