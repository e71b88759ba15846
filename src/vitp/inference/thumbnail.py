"""The picture beside big outputs: an image thinned while its rows go by."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitp.inference.partial import Partial

PREVIEW = "preview"  # the layer


class Thumbnail:
    """Every `step`-th row and column of an image, kept as a layer of RGB."""

    def __init__(self, height: int, width: int, longest: int) -> None:
        """Of an image of height x width pixels, no side longer than `longest` pixels."""
        self.step = max(1, math.ceil(max(height, width) / longest))
        self.height, self.width = math.ceil(height / self.step), math.ceil(width / self.step)

    @property
    def bytes(self) -> int:
        """Of the layer."""
        return 3 * self.height * self.width

    def store(self, top: int, pixels: NDArray[np.uint8], partial: Partial) -> None:
        """Put rows [C, n, W] from row `top` on into the layer; the last three channels are shown."""
        first = -top % self.step
        thin = pixels[-3:, first :: self.step, :: self.step].transpose(1, 2, 0)
        if thin.size:
            partial.write(PREVIEW, (top + first) // self.step * self.width * 3, thin)

    def read(self, raw: Path) -> NDArray[np.uint8]:
        """The whole picture [h, w, 3]."""
        return np.fromfile(raw, dtype=np.uint8).reshape(self.height, self.width, 3)
