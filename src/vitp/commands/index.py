"""`vitp index`: what every sample of a recipe asks of the machine, measured once and remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp.commands.pretrain import recipe_tokenizer, size_rules
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import DataError
from vitp.instruction.index import Index, IndexConfig, open_source
from vitp.instruction.index_build import build_index
from vitp.instruction.index_file import Flag
from vitp.instruction.source import Source
from vitp.recipes import load_recipe

_EXAMPLES = 5  # unusable samples told of each source


@dataclass(frozen=True)
class SourceSizes:
    """What a source asks of the machine; sums over its usable samples."""

    name: str
    file: str  # the index
    samples: int
    unusable: dict[str, int]  # reason -> samples
    truncated: int
    text_tokens: int  # after cutting to max_length
    supervised_tokens: int
    visual_tokens: int  # before dropping
    tiles: int
    examples: tuple[str, ...]  # the first unusable samples, with file:line


@dataclass(frozen=True)
class IndexReport:
    """All sources of a recipe: those that have an index now, and why the others have none."""

    sources: tuple[SourceSizes, ...]
    failed: dict[str, str]  # source -> message

    def lines(self) -> list[str]:
        """The report for people."""
        found = []
        for s in self.sources:
            bad = ", ".join(f"{reason} {count:,}" for reason, count in s.unusable.items())
            found.append(
                f"{s.name}: {s.samples:,} samples, {sum(s.unusable.values()):,} unusable{f' ({bad})' if bad else ''}, "
                f"{s.truncated:,} truncated; {s.text_tokens:,} text tokens, {s.supervised_tokens:,} of them supervised; "
                f"{s.tiles:,} tiles, {s.visual_tokens:,} visual tokens; {s.file}"
            )
            found += [f"  {example}" for example in s.examples]
        return found + [f"{name}: no index, since {message}" for name, message in self.failed.items()]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {"sources": [asdict(source) for source in self.sources], "failed": self.failed}


def describe(source: Source, index: Index) -> SourceSizes:
    """Sums over an index."""
    sizes = index.sizes(np.arange(len(index)))
    names, numbers = index.file.header.reasons, np.bincount(index.file.column("reason"))
    reasons = Counter({name: int(number) for name, number in zip(names, numbers, strict=False) if name and number})
    examples = []
    for i in index.unusable[:_EXAMPLES].tolist():
        problem = index.problem(i)
        assert problem is not None
        examples.append(f"{source.where(i)}: {problem.message}")
    return SourceSizes(
        name=source.config.name, file=str(index.path), samples=len(index), unusable=dict(reasons.most_common()),
        truncated=int(np.count_nonzero(sizes.flags & Flag.TRUNCATED)), text_tokens=int(sizes.text.sum()),
        supervised_tokens=int(sizes.supervised.sum()), visual_tokens=int(sizes.visual.sum()),
        tiles=int(sizes.tiles.sum()), examples=tuple(examples),
    )  # fmt: skip


def index(
    recipe: PretrainConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    workers: int = 0,
    rebuild: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> IndexReport:
    """Build the indexes of a pretraining recipe's sources, as far as there are no fresh ones.

    Args:
        recipe: a PretrainConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        workers: processes; 0: what ``data.index.workers`` says.
        rebuild: trust no earlier index.
        progress: called with (done, total) samples.
        say: receives lines worth reading (a damaged index, waiting for another process).

    Returns:
        what was found. A source that cannot be indexed does not keep the others from it: it is in `failed`.

    Raises:
        VitpError: the recipe is wrong, an index cannot be written, or the tokenizer, which is to be built from all
            sources, cannot be for want of one of them.
    """
    config = load_recipe(PretrainConfig, recipe, overrides)
    kept = IndexConfig(folder=config.data.index.folder, workers=workers or config.data.index.workers)
    sources: list[Source] = []
    failed: dict[str, str] = {}
    for each in config.data.sources:
        try:
            sources.append(open_source(each, kept))
        except DataError as error:
            if config.model.vlm is None and config.model.language_model.path is None:
                raise
            failed[each.name] = str(error)
    rules = size_rules(config, recipe_tokenizer(config, sources))
    total, done, found = sum(map(len, sources)), 0, []
    for source in sources:
        shown = None if progress is None else _shifted(progress, done, total)
        try:
            found.append(describe(source, build_index(source, rules, kept, rebuild=rebuild, progress=shown, say=say)))
        except DataError as error:
            failed[source.config.name] = str(error)
        done += len(source)
        if progress is not None:
            progress(done, total)
    return IndexReport(tuple(found), failed)


def _shifted(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """A receiver for one of several sources."""
    return lambda done, _: progress(before + done, total)
