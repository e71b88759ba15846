"""The samples of a step and their sizes, from the indexes alone: what a plan needs before anything is read or decoded.

All draws are those of `vitp.instruction.pack.StepBuilder`, keyed by (seed, step, slot), so the numbers of tiles and of kept
visual tokens are those of the step itself. Two things are estimates: where flips, turns or crops rewrite boxes, the number
of digits in a text may change, and its tokens with it; and crops of samples with boxes, which boxes may widen, count as
the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitp.errors import TrainingError
from vitp.instruction.augment import augmented_size
from vitp.instruction.index import Index
from vitp.instruction.index_file import Flag
from vitp.instruction.mixture import ATTEMPTS, Mixture, Place
from vitp.instruction.plan import SampleSize
from vitp.instruction.source import Source
from vitp.instruction.tiling import TilingConfig, tile_count
from vitp.train.draws import Purpose, generator
from vitp.vlm.token_drop import TokenDropConfig, applies


@dataclass(frozen=True)
class StepSizer:
    """(step, positions) -> sizes of its samples; indexes and sources are those of the mixture, in its order.

    A source may be a part of what its index is about.
    """

    indexes: Sequence[Index]
    sources: Sequence[Source]
    mixture: Mixture
    seed: int
    vrl: TokenDropConfig
    tiling: TilingConfig
    tile_size: int

    def places(self, positions: range) -> dict[int, Place]:
        """The sample at every position, those the index calls unusable replaced as in training.

        Raises:
            TrainingError: ten samples in a row are unusable.
        """
        return {p: self._usable(p, place) for p, place in zip(positions, self.mixture.at_many(positions), strict=True)}

    def _usable(self, position: int, place: Place) -> Place:
        index, source = self.indexes[place.source], self.sources[place.source]
        for attempt in range(ATTEMPTS):
            if index.usable(source.row(place.index)):
                return place
            place = self.mixture.replacement(place, position, attempt)
        raise TrainingError(
            f"source '{source.config.name}': {ATTEMPTS} samples in a row are unusable; run `vitp check` on the recipe"
        )

    def sizes(self, step: int, places: dict[int, Place], *, text_only: bool = False) -> dict[int, SampleSize]:
        """What `vitp.instruction.plan.plan_step` takes.

        Args:
            step: of the run, warm start included, since draws are keyed by it.
            places: position -> sample, all of the step's, by ascending position; the n-th has the slot n.
            text_only: as in the warm start, where images are left out; the tokens are then an upper bound.
        """
        slots = {position: slot for slot, position in enumerate(places)}
        found: dict[int, SampleSize] = {}
        for number, (index, source) in enumerate(zip(self.indexes, self.sources, strict=True)):
            mine = [position for position, place in places.items() if place.source == number]
            if not mine:
                continue
            at = [source.row(places[position].index) for position in mine]  # the index is of the whole source
            tiles = drops = None
            augment = source.config.augment
            if text_only:
                tiles = np.zeros(len(at), np.int64)
            elif augment.rot90 or augment.crop_min_scale < 1.0:
                tiles = np.array(
                    [self._tiles(number, i, step, slots[p]) for i, p in zip(at, mine, strict=True)], np.int64
                )
            if self.vrl.probability < 1.0:
                rngs = (generator(self.seed, Purpose.TOKEN_DROP, step, slots[p]) for p in mine)
                drops = np.array([applies(self.vrl, rng) for rng in rngs])
            sizes = index.sizes(at, tiles)
            tokens = sizes.tokens(self.vrl, drops)
            rows = zip(mine, sizes.tiles.tolist(), tokens.tolist(), sizes.supervised.tolist(), strict=True)
            found |= {p: SampleSize(t, n, s, source.where(places[p].index)) for p, t, n, s in rows}
        return found

    def _tiles(self, number: int, sample: int, step: int, slot: int) -> int:
        """Tiles of one sample after augmentation."""
        index, config = self.indexes[number], self.sources[number].config
        images, boxes = index.images(sample), bool(index.flags[sample] & Flag.BOXES)
        tiling, count = self.tiling.with_most(config.max_tiles), 0
        for image in images:
            rng = generator(self.seed, Purpose.AUGMENT, step, slot)  # all images of a sample are augmented alike
            width, height = augmented_size(image.width, image.height, boxes, config.augment, rng)
            count += tile_count(width, height, tiling, self.tile_size, len(images))
        return count
