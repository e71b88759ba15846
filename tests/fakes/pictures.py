"""What all fakes are made of: pictures that depend on their path alone, and label blocks that show every value."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def seed_of(file: Path) -> int:
    """The same for the same last three parts of a path, wherever it lies."""
    return zlib.crc32("/".join(file.parts[-3:]).encode())


def picture(file: Path, width: int, height: int) -> None:
    """Noise on a colour of its own, RGB."""
    rng = np.random.default_rng(seed_of(file))
    pixels = rng.normal(rng.integers(60, 200, 3), 25, (height, width, 3)).clip(0, 255)
    save(pixels.astype(np.uint8), file)


def blocks(values: Sequence[int], width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """[height, width] in blocks of 8 pixels that show every value as soon as there are blocks enough."""
    rows, columns = -(-height // 8), -(-width // 8)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(np.resize(np.asarray(values, dtype=np.uint8), rows * columns)).reshape(rows, columns)
    return np.repeat(np.repeat(drawn, 8, 0), 8, 1)[:height, :width]


def label(file: Path, values: Sequence[int], width: int, height: int) -> None:
    """A grey label picture that shows every value."""
    save(blocks(values, width, height, seed_of(file)), file)


def colour_label(file: Path, colours: Sequence[Sequence[int]], width: int, height: int) -> None:
    """An RGB label picture that shows every colour."""
    table = np.asarray(colours, dtype=np.uint8)
    save(table[blocks(range(len(table)), width, height, seed_of(file))], file)


def save(pixels: NDArray[np.uint8], file: Path) -> None:
    """Write a picture; its suffix says in which format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
