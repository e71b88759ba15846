"""Where windows lie on an image, and how much each counts: weights that sum to one at every pixel.

The weights are separable, so those of a window are the outer product of a row's and a column's. Because they sum to one,
blended logits need no division and no buffer of counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def flush_starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin, `step` pixels apart, the last flush with the end: how benchmarks are cut and scored.

    `cut` spaces its windows evenly instead, which blends better; the released numbers are of these.
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, step), length - window]


@dataclass(frozen=True)
class Axis:
    """Windows along one side of an image."""

    length: int  # pixels
    window: int  # pixels; at most `length`
    starts: tuple[int, ...]
    weights: tuple[Tensor, ...]  # of each window, float32 [window]

    def end(self, index: int) -> int:
        """The first pixel after a window."""
        return self.starts[index] + self.window

    def finished(self, index: int) -> int:
        """Pixels before this one get nothing from later windows."""
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.length

    def first_touching(self, index: int) -> int:
        """The first window that shares a pixel with window `index`, or `index` itself."""
        return next(i for i in range(index + 1) if i == index or self.end(i) > self.starts[index])


def cut(length: int, window: int, overlap: float) -> Axis:
    """Windows that share at least `overlap` (0 ... 0.75) of their side with the next, evenly spaced, with cosine blending.

    A window counts fully in its middle and less towards a neighbour: sin^2 over the shared pixels, divided by the sum of all
    windows there.
    """
    window = min(window, length)
    step = max(1, window - math.ceil(window * overlap))
    count = 1 + math.ceil((length - window) / step)
    starts = [round(i * (length - window) / max(1, count - 1)) for i in range(count)]
    raw = []
    for i, start in enumerate(starts):
        before = window - (start - starts[i - 1]) if i else 0
        after = window - (starts[i + 1] - start) if i + 1 < count else 0
        raw.append(_ramp(window, before) * _ramp(window, after)[::-1])
    total = np.zeros(length)
    for start, weight in zip(starts, raw, strict=True):
        total[start : start + window] += weight
    weights = [
        torch.from_numpy((w / total[s : s + window]).astype(np.float32)) for s, w in zip(starts, raw, strict=True)
    ]
    return Axis(length, window, tuple(starts), tuple(weights))


def _ramp(window: int, shared: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Ones, but for the first `shared` pixels, over which it rises like sin^2."""
    ramp = np.ones(window)
    if shared > 0:
        ramp[:shared] = np.sin(0.5 * np.pi * (np.arange(shared) + 0.5) / shared) ** 2
    return ramp


@dataclass(frozen=True)
class Grid:
    """Windows of an image."""

    rows: Axis
    columns: Axis

    @property
    def windows(self) -> int:
        """How many there are."""
        return len(self.rows.starts) * len(self.columns.starts)


def make_grid(height: int, width: int, window: int, overlap: float) -> Grid:
    """The windows of an image; where it is smaller than a window, the window shrinks to it."""
    return Grid(cut(height, window, overlap), cut(width, window, overlap))
