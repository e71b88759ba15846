"""Randomness as arithmetic: every number drawn is a function of (seed, index, stream) and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_POOL = 256  # uniform numbers fetched at a time: one numpy call instead of 256
_WORD = (1 << 64) - 1


class Stream(IntEnum):
    """Independent sources of chance of one scene; a new number here never disturbs the others."""

    LAYOUT = 1  # the scene graph: what stands where
    GROUND = 2  # terrain noise: the same land on every date and in every modality
    CHANGE = 3  # which structures a pair gains and loses
    QUESTIONS = 4  # wording and choice of the instructions
    THEME = 5  # order of the themes in a block of indices
    DATE = 16  # + date: season, light, which movable things are present
    SENSOR = 32  # + date: optical noise
    SPECKLE = 48  # + date: radar speckle
    RADAR = 64  # + date: radar geometry


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """A numpy generator on Philox4x64 with key (seed, index) and the stream in the counter's highest word."""
    key = np.array([seed & _WORD, index & _WORD], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class Dice:
    """Scalar draws from one stream, cheap enough to be asked hundreds of times a scene."""

    __slots__ = ("_generator", "_pool")

    def __init__(self, seed: int, index: int, stream: int) -> None:
        self._generator = generator(seed, index, stream)
        self._pool: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._pool:
            self._pool = self._generator.random(_POOL).tolist()
        return self._pool.pop()

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def whole(self, low: int, high: int) -> int:
        """Uniform integer in [low, high], both ends included."""
        return low + int((high - low + 1) * self.unit())

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(len(options) * self.unit())]

    def weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """One of the options, likely in proportion to its weight."""
        mark = self.unit() * sum(weight for _, weight in options)
        for option, weight in options:
            mark -= weight
            if mark < 0:
                return option
        return options[-1][0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        return [item for _, item in sorted(((self.unit(), item) for item in items), key=lambda pair: pair[0])]

    def units(self, count: int) -> tuple[float, ...]:
        """`count` uniform numbers in [0, 1)."""
        return tuple(self.unit() for _ in range(count))
