"""What `vitp pretrain` does besides when it runs on many ranks: every rank learns the sizes of all samples beforehand."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from vitp.instruction.index import Index, IndexConfig, SizeRules
from vitp.instruction.index_build import build_index
from vitp.instruction.pack import StepBuilder
from vitp.instruction.source import Source
from vitp.progress import lines
from vitp.train.distributed import Ranks
from vitp.train.strategies import StrategyName


class OtherRank:
    """Progress of a rank that does not show any, but says what it waits for."""

    def __init__(self, rank: int, say: Callable[[str], None]) -> None:
        self._rank, self._say = rank, say

    def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
        """Nothing: rank 0 shows the run's numbers."""

    def say(self, text: str) -> None:
        """A line that begins with the rank."""
        self._say(f"rank {self._rank}: {text}")


def share_steps(
    builder: StepBuilder,
    sources: Sequence[Source],
    index: IndexConfig,
    strategy: StrategyName,
    ranks: Ranks,
    say: Callable[[str], None],
) -> None:
    """Let each rank lay out its own part of every step, by indexes that rank 0 builds where there are none.

    Ranks of other machines, which may have caches of their own, find the same index or build it once more.

    Raises:
        DataError: the annotations changed meanwhile.
        OutputError: an index cannot be written.
        TrainingError: the ranks find different sizes.
    """
    rules = SizeRules(builder.chat, builder.tiling, builder.tile_size, builder.tokens_per_tile, builder.max_length)

    def opened() -> list[Index]:
        return [
            build_index(source, rules, index, progress=_shown(say, source.config.name), say=say) for source in sources
        ]

    ranks.together(lambda: opened() if ranks.first else [])
    indexes = ranks.together(opened)
    found = {f"index of source '{s.config.name}'": _sum(i) for s, i in zip(sources, indexes, strict=True)}
    ranks.agree(found, "run `vitp index --rebuild` on the recipe on every node, with the same image files")
    builder.on_ranks(ranks.rank, ranks.size, indexes, lockstep=strategy == "fsdp")


def _sum(index: Index) -> int:
    """A checksum of all that a plan takes from an index."""
    total = 0
    for column in (index.text_tokens, index.supervised_tokens, index.tiles, index.flags):
        total = zlib.crc32(column.tobytes(), total)
    return total


def _shown(say: Callable[[str], None], name: str) -> Callable[[int, int], None]:
    show = lines(say, f"indexed {name}", "samples")
    return lambda done, total: show(done, total, "")
