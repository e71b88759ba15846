"""How long a sample is in tokens, and what becomes of it at the recipe's limit: whole, truncated or dropped.

The answer is that of the training itself (`vitp.instruction.pack.lay_out`), except that images are taken at their full
size: a random crop may be tiled otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitp.errors import DataError
from vitp.instruction.index import SizeRules
from vitp.instruction.pack import lay_out_text
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.tiling import tile_count

Fate = Literal["whole", "truncated", "dropped"]


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of a sample and what becomes of it; `sampled`: it was counted for the statistics."""

    fate: Fate
    tokens: int | None  # None: not counted, since it is whole in any case
    visual: int  # of these
    sampled: bool
    reason: str = ""  # why it is dropped


class LengthRule:
    """The limit of a recipe. Picklable."""

    def __init__(self, rules: SizeRules) -> None:
        """`rules`: those of the recipe, its limit among them.

        Raises:
            CheckpointError: the chat template rewrites earlier turns.
        """
        self.rules = rules
        one = (Turn("user", "a"), Turn("assistant", "b"))
        first, second = (len(rules.chat.encode(one * pairs, []).ids) for pairs in (1, 2))
        self._frame, self._more = first, second - first  # tokens of the template around one pair, and each further one

    def measure(self, sample: Sample, sizes: Sequence[tuple[int, int]], max_tiles: int | None, exact: bool) -> Length:
        """What becomes of a sample.

        Args:
            sample: parsed, its box texts readable.
            sizes: (width, height) of its images in pixels.
            max_tiles: the source's own, or None.
            exact: count its tokens even where it is whole in any case: a text has no more tokens than bytes.
        """
        rules = self.rules
        tiling = rules.tiling.with_most(max_tiles)
        counts = [tile_count(*size, tiling, rules.tile_size, len(sizes)) * rules.tokens_per_tile for size in sizes]
        visual = sum(counts)
        texts = sum(len(turn.text.encode("utf-8", "replace")) for turn in sample.turns)
        frame = self._frame + self._more * ((len(sample.turns) + 1) // 2)  # a pair to spare, for a system turn
        if not exact and texts + visual + frame <= rules.max_length:
            return Length("whole", None, visual, sampled=False)
        encoded = rules.chat.encode(sample.turns, counts, sample.where)
        try:
            laid = lay_out_text(encoded, rules.max_length, sample.where)
        except DataError as error:
            return Length("dropped", len(encoded.ids), visual, exact, error.reason)
        return Length("truncated" if laid.truncated else "whole", len(encoded.ids), visual, exact)
