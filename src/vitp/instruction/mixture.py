"""The order of the data as arithmetic: which sample stands at a position of the stream.

Sources are mixed by weight. In one epoch a source of n samples with weight w gives round(w n) samples, and at least
one: all of them floor(w) times, and for the fraction a window of a fixed random order that moves on every epoch, so
that no sample is shown twice before every other was shown once. The epoch is then shuffled by a keyed permutation
computed index by index. No list is shuffled and nothing is stored: position -> sample is O(1).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from vitp.errors import DataError
from vitp.train.draws import Purpose, generator

_MASK = 0xFFFFFFFFFFFFFFFF
_ROUNDS = 6
ATTEMPTS = 10  # samples tried at a position, unusable ones replaced (released loader: 10)


def _mix(value: int) -> int:
    """A 64-bit finaliser: every input bit moves every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permute(index: int, n: int, key: int) -> int:
    """Image of `index` under a keyed bijection of [0, n): a balanced Feistel network with cycle walking."""
    assert 0 <= index < n
    if n == 1:
        return 0
    half = ((n - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(key + round_number)) & mask)
        index = (left << half) | right
        if index < n:
            return index


_GOLDEN, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix_many(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` of every value; unsigned arithmetic wraps as the mask does."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def permute_many(indices: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """`permute` of every index, int64 [m]."""
    if n == 1:
        return np.zeros_like(indices)
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(_mix((key + number) & _MASK)) for number in range(_ROUNDS)]
    found = indices.astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        left, right = found[walking] >> half, found[walking] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix_many(right ^ round_key) & mask)
        found[walking] = (left << half) | right
        walking = walking[found[walking] >= n]
    return found.astype(np.int64)


@dataclass(frozen=True)
class Place:
    """Where a position of the stream points."""

    source: int
    index: int
    epoch: int


class Mixture:
    """Position of the stream -> sample, a pure function of (seed, sizes, weights)."""

    def __init__(self, sizes: list[int], weights: list[float], seed: int) -> None:
        """Sizes in samples and weights above 0, one each per source.

        Raises:
            DataError: every source is empty.
        """
        self.sizes, self.seed = sizes, seed
        self.taken = [max(1, round(size * weight)) if size else 0 for size, weight in zip(sizes, weights, strict=True)]
        self.ends = list(accumulate(self.taken))
        self.epoch_length = self.ends[-1] if self.ends else 0
        if self.epoch_length == 0:
            raise DataError("the sources hold no sample at all; name other files in data.sources")

    def _key(self, *parts: int) -> int:
        key = _mix(self.seed)
        for part in parts:
            key = _mix(key ^ part)
        return key

    def at(self, position: int) -> Place:
        """The sample at `position` >= 0 of the endless stream."""
        epoch, offset = divmod(position, self.epoch_length)
        slot = permute(offset, self.epoch_length, self._key(1, epoch))
        source = bisect_right(self.ends, slot)
        within = slot - (self.ends[source] - self.taken[source])
        size = self.sizes[source]
        repeats, fraction = divmod(self.taken[source], size)
        if within < repeats * size:
            return Place(source, within % size, epoch)
        moved = (epoch * fraction + within - repeats * size) % size
        return Place(source, permute(moved, size, self._key(2, source)), epoch)

    def replacement(self, place: Place, position: int, attempt: int) -> Place:
        """Another sample of the same source, for the one at `position` that cannot be used; `attempt` counts from 0."""
        draw = generator(self.seed, Purpose.REPLACEMENT, position, attempt)
        return Place(place.source, int(draw.integers(self.sizes[place.source])), place.epoch)

    def at_many(self, positions: range) -> list[Place]:
        """`at` of consecutive positions, about ten times as fast for a hundred of them."""
        places: list[Place] = []
        start = positions.start
        while start < positions.stop:
            epoch, offset = divmod(start, self.epoch_length)
            stop = min(positions.stop, (epoch + 1) * self.epoch_length)
            offsets = np.arange(offset, offset + stop - start)
            places += self._in_epoch(epoch, permute_many(offsets, self.epoch_length, self._key(1, epoch)))
            start = stop
        return places

    def _in_epoch(self, epoch: int, slots: NDArray[np.int64]) -> list[Place]:
        """The samples at shuffled places of one epoch."""
        sources = np.searchsorted(self.ends, slots, side="right")
        indices = np.zeros_like(slots)
        for source in np.unique(sources).tolist():
            here = sources == source
            within = slots[here] - (self.ends[source] - self.taken[source])
            size = self.sizes[source]
            repeats, fraction = divmod(self.taken[source], size)
            moved = (epoch * fraction + within - repeats * size) % size
            picked = permute_many(moved, size, self._key(2, source)) if fraction else moved
            indices[here] = np.where(within < repeats * size, within % size, picked)
        return [Place(s, i, epoch) for s, i in zip(sources.tolist(), indices.tolist(), strict=True)]
