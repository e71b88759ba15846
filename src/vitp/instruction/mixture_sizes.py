"""How large the samples of a mixture are on average: from its indexes, from a few records of each source, or assumed.

An estimate must do without data, without a tokenizer and without decoding an image; where something is missing it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitp.errors import VitpError
from vitp.instruction.index import IndexConfig, SizeRules, open_index
from vitp.instruction.index_file import Flag, IndexDamagedError
from vitp.instruction.measure import Measurer
from vitp.instruction.source import Source
from vitp.instruction.tiling import TilingConfig
from vitp.vlm.flops import Work
from vitp.vlm.token_drop import TokenDropConfig

Origin = Literal["index", "sample", "assumed", "given"]
Floats = NDArray[np.float64]

# Where there is no data: tiles of a sample and their share, text and supervised tokens; a mixture of overhead pictures from
# 448 to 1,300 pixels a side cut by the released tiling, with answers of a sentence or two. Ours, not the paper's.
ASSUMED_TILES = {1: 0.30, 3: 0.12, 4: 0.05, 5: 0.33, 7: 0.20}
ASSUMED_TEXT, ASSUMED_SUPERVISED = 190.0, 70.0


@dataclass(frozen=True, eq=False)
class MixtureSizes:
    """Sizes of samples that stand for a mixture, arrays [n]; `share` sums to 1."""

    origin: Origin
    told: str  # where they come from, a sentence for people
    tiles: Floats
    visual: Floats  # tokens before the drop
    text: Floats
    supervised: Floats
    share: Floats

    def sample(self, vrl: TokenDropConfig) -> Work:
        """The expected work of one sample under a drop; squares are those of the mixture, not of the mean."""
        dropped = np.floor(vrl.ratio * self.visual + 1e-9)
        lengths = ((self.visual, 1.0 - vrl.probability), (self.visual - dropped, vrl.probability))

        def mean(values: Floats) -> float:
            return float((self.share * values).sum())

        return Work(
            samples=1.0,
            tiles=mean(self.tiles),
            kept=sum(chance * mean(kept) for kept, chance in lengths),
            tokens=sum(chance * mean(self.text + kept) for kept, chance in lengths),
            squares=sum(chance * mean((self.text + kept) ** 2) for kept, chance in lengths),
            supervised=mean(self.supervised),
        )


def given_sizes(tiles: float, text: float, supervised: float, tokens_per_tile: int) -> MixtureSizes:
    """A mixture of samples that are all alike, as somebody says they are."""
    told = f"as given: {tiles:g} tiles, {text:g} text tokens, {supervised:g} of them supervised"
    one = [np.array([float(value)]) for value in (tiles, tiles * tokens_per_tile, text, supervised, 1.0)]
    return MixtureSizes("given", told, *one)


def assumed_sizes(tiling: TilingConfig, tokens_per_tile: int, why: str) -> MixtureSizes:
    """A mixture where nothing is known but the tiling; `why` is told."""
    most = tiling.max_tiles + (1 if tiling.thumbnail and tiling.max_tiles > 1 else 0)
    tiles = np.minimum(np.array(list(ASSUMED_TILES), np.float64), most)
    share = np.array(list(ASSUMED_TILES.values()))
    told = (
        f"assumed, since {why}: {float((share * tiles).sum()):.2f} tiles, {ASSUMED_TEXT:g} text tokens, "
        f"{ASSUMED_SUPERVISED:g} of them supervised"
    )
    same = np.ones(len(tiles))
    return MixtureSizes(
        "assumed", told, tiles, tiles * tokens_per_tile, ASSUMED_TEXT * same, ASSUMED_SUPERVISED * same, share
    )


def measured_sizes(
    sources: Sequence[Source], rules: SizeRules, index: IndexConfig, *, records: int = 64, absent: int = 0
) -> MixtureSizes:
    """Sizes from the sources' indexes, and of sources without one from a few records spread over it.

    Args:
        sources: those that could be opened, at least one.
        rules: what decides how large a sample becomes.
        index: where indexes are kept.
        records: of a source without an index; only image headers are read.
        absent: how many further sources the recipe names, for the sentence.

    Returns:
        the sizes; assumed ones where no source holds a usable sample, or where it cannot be looked at.
    """
    try:
        return _measured(sources, rules, index, records, absent)
    except VitpError as error:  # annotations that changed while they were read, a missing extra
        return assumed_sizes(rules.tiling, rules.tokens_per_tile, f"the samples cannot be measured ({error})")


def _measured(
    sources: Sequence[Source], rules: SizeRules, index: IndexConfig, records: int, absent: int
) -> MixtureSizes:
    parts: list[list[Floats]] = []
    indexed = looked_at = 0
    for source in sources:
        found = _indexed(source, rules, index)
        if found is not None:
            indexed += 1
        else:
            found = _sampled(source, rules, records)
        count = len(found[0])
        looked_at += count
        if count:
            weight = max(1, round(len(source) * source.config.weight))
            parts.append([*found, np.full(count, weight / count)])
    if not parts:
        return assumed_sizes(rules.tiling, rules.tokens_per_tile, "no sample of the data is usable")
    tiles, text, supervised, share = (np.concatenate(column) for column in zip(*parts, strict=True))
    whole = f"{len(sources)} of {len(sources) + absent} sources" if absent else f"{len(sources)} sources"
    if len(sources) == 1 and not absent:
        whole = "the source"
    how = "from the index of" if indexed == len(sources) else f"from {looked_at:,} records of"
    visual = tiles * rules.tokens_per_tile
    text = np.minimum(text + visual, rules.max_length) - visual
    return MixtureSizes(
        "index" if indexed == len(sources) else "sample",
        f"{how} {whole}",
        tiles,
        visual,
        text,
        supervised,
        share / share.sum(),
    )


def _indexed(source: Source, rules: SizeRules, config: IndexConfig) -> list[Floats] | None:
    """Tiles, text and supervised tokens of the usable samples of an index; None where there is no fresh one."""
    try:
        index = open_index(source, rules, config)
    except IndexDamagedError:  # `vitp index` builds it anew
        return None
    if index is None:
        return None
    usable = (index.flags & Flag.UNUSABLE) == 0
    return [c[usable].astype(np.float64) for c in (index.tiles, index.text_tokens, index.supervised_tokens)]


def _sampled(source: Source, rules: SizeRules, records: int) -> list[Floats]:
    """The same of records at even distances."""
    measurer = Measurer(source, rules)
    at = np.unique(np.linspace(0, max(0, len(source) - 1), min(records, len(source))).astype(np.int64))
    rows = [measurer.row(int(i)) for i in at]
    usable = [row for row in rows if not row.flags & Flag.UNUSABLE]
    return [np.array([getattr(row, name) for row in usable], np.float64) for name in ("tiles", "text", "supervised")]
