"""A few of many images for a report: half of them evenly spread, half the worst."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


def _same(one: T) -> T:
    return one


class Gallery(Generic[T]):
    """Told of every image in turn; keeps a few, and asks for no more than it keeps."""

    def __init__(self, total: int, wanted: int, first: int = 0) -> None:
        """For `total` images, `wanted` of which are kept; this one is told of those from number `first` on (`merge`)."""
        self._spread = max(0, math.ceil(wanted / 2))
        self._most = max(0, wanted - self._spread)
        self._every = max(1, math.ceil(total / self._spread)) if self._spread else total + 1
        self._seen = first
        self._even: list[tuple[float, float, int, T]] = []
        self._heap: list[tuple[float, float, int, T]] = []  # the least wrong on top

    def add(self, wrong: float, make: Callable[[], T], count: float = 0.0) -> None:
        """Look at the next image.

        Args:
            wrong: how wrong it is; NaN: nothing to judge by, so it is none of the worst.
            make: what is kept of it; called only if it is.
            count: decides between equally wrong ones.
        """
        number = self._seen
        self._seen += 1
        if number % self._every == 0 and len(self._even) < self._spread:
            self._even.append((wrong, count, -number, make()))
        elif not math.isnan(wrong):
            self._judge((wrong, count, -number), make)

    def _judge(self, entry: tuple[float, float, int], make: Callable[[], T]) -> None:
        """Keep an image if it is among the worst so far."""
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (*entry, make()))
        elif self._most and entry > self._heap[0][:3]:
            heapq.heapreplace(self._heap, (*entry, make()))

    def merge(self, other: Gallery[T]) -> None:
        """Add what another gallery of the same images and the same wishes kept of those that come after this one's."""
        self._even += other._even
        for wrong, count, place, one in other._heap:
            self._judge((wrong, count, place), partial(_same, one))

    @property
    def even(self) -> list[T]:
        """Those spread over all images, in their order."""
        return [one for *_, one in self._even]

    @property
    def worst(self) -> list[T]:
        """The worst of the others, worst first."""
        return [one for *_, one in sorted(self._heap, key=lambda entry: entry[:3], reverse=True)]

    @property
    def by_wrong(self) -> list[T]:
        """Both, worst first."""
        every = [*self._even, *self._heap]
        every.sort(key=lambda entry: (not math.isnan(entry[0]), *entry[:3]), reverse=True)
        return [one for *_, one in every]
