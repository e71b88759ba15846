"""How long a sample is in tokens, and what becomes of it at the recipe's limit: whole, truncated or dropped.

The answer is that of the training itself (`vitp.instruction.pack.lay_out`), except that images are taken at their full
size: a random crop may be tiled otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vitp.errors import DataError
from vitp.instruction.chat import ChatFormat
from vitp.instruction.pack import lay_out
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.tiling import TilingConfig, tile_count

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

    def __init__(
        self, chat: ChatFormat, *, max_length: int, tiling: TilingConfig, tile_size: int, tokens_per_tile: int
    ) -> None:
        """`tile_size` in pixels; `tokens_per_tile`: visual tokens of a tile before dropping.

        Raises:
            CheckpointError: the chat template rewrites earlier turns.
        """
        self.chat, self.max_length, self.tiling = chat, max_length, tiling
        self.tile_size, self.tokens_per_tile = tile_size, tokens_per_tile
        one = (Turn("user", "a"), Turn("assistant", "b"))
        first, second = len(chat.encode(one, []).ids), len(chat.encode(one * 2, []).ids)
        self._frame, self._more = first, second - first  # tokens of the template around one pair, and each further one

    def measure(self, sample: Sample, sizes: Sequence[tuple[int, int]], max_tiles: int | None, exact: bool) -> Length:
        """What becomes of a sample.

        Args:
            sample: parsed, its box texts readable.
            sizes: (width, height) of its images in pixels.
            max_tiles: the source's own, or None.
            exact: count its tokens even where it is whole in any case: a text has no more tokens than bytes.
        """
        tiling = self.tiling.with_most(max_tiles)
        counts = [tile_count(*size, tiling, self.tile_size, len(sizes)) * self.tokens_per_tile for size in sizes]
        visual = sum(counts)
        texts = sum(len(turn.text.encode("utf-8", "replace")) for turn in sample.turns)
        frame = self._frame + self._more * ((len(sample.turns) + 1) // 2)  # a pair to spare, for a system turn
        if not exact and texts + visual + frame <= self.max_length:
            return Length("whole", None, visual, sampled=False)
        encoded = self.chat.encode(sample.turns, counts, sample.where)
        kept, none = np.arange(visual), np.zeros((0, 0), np.float32)
        try:
            laid = lay_out(encoded, torch.zeros(0), none, kept, "sample", self.max_length, sample.where)
        except DataError as error:
            return Length("dropped", len(encoded.ids), visual, exact, error.reason)
        return Length("truncated" if laid.truncated else "whole", len(encoded.ids), visual, exact)
