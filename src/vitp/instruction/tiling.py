"""Dynamic tiling: an image of any shape becomes a few square tiles for the tower (InternVL's scheme).

Chosen grid: the one whose aspect ratio is nearest to the image's, among all grids with a number of tiles in
[min_tiles, max_tiles]. The whole image is stretched to the grid, cut row by row, and when there is more than one tile
a thumbnail of the whole image follows last.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from vitp.config import Config


class TilingConfig(Config):
    """How images are cut; a tile has the tower's input size."""

    min_tiles: int = Field(default=1, ge=1)  # released scripts
    max_tiles: int = Field(default=6, ge=1)  # released scripts; most remote-sensing and medical sources raise it to 12
    thumbnail: bool = True  # released scripts

    @model_validator(mode="after")
    def _ordered(self) -> TilingConfig:
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles ({self.min_tiles}) is above max_tiles ({self.max_tiles})")
        return self

    def with_most(self, max_tiles: int | None) -> TilingConfig:
        """These limits with another `max_tiles`, as a source may set it; None: as they are."""
        if max_tiles is None:
            return self
        return self.model_copy(update={"max_tiles": max_tiles, "min_tiles": min(self.min_tiles, max_tiles)})


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    found = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if min_tiles <= columns * rows <= max_tiles
    ]
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def choose_grid(width: int, height: int, min_tiles: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """The grid (columns, rows) for an image of `width` x `height` pixels.

    Ties in aspect ratio go to the larger grid only when the image has more than half of that grid's pixels.
    """
    target = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(target - columns / rows)
        enough = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and enough):
            best, best_distance = (columns, rows), distance
    return best


def tile_count(width: int, height: int, config: TilingConfig, tile_size: int, images: int = 1) -> int:
    """Tiles of one image, the thumbnail included; several images of a sample share the maximum."""
    columns, rows = choose_grid(width, height, config.min_tiles, _share(config, images), tile_size)
    return columns * rows + int(config.thumbnail and columns * rows > 1)


def _share(config: TilingConfig, images: int) -> int:
    return max(config.min_tiles, config.max_tiles // max(1, images))


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if tuple(image.shape[-2:]) == (height, width):
        return image
    out = tv.resize(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert isinstance(out, Tensor)
    return out


def cut_tiles(image: Tensor, config: TilingConfig, tile_size: int, images: int = 1) -> Tensor:
    """Stretch and cut one image.

    Args:
        image: uint8 [3, H, W].
        config: tile limits.
        tile_size: side of a tile in pixels.
        images: number of images in the sample; they share `max_tiles`.

    Returns:
        uint8 [tiles, 3, tile_size, tile_size], row-major, thumbnail last.
    """
    height, width = image.shape[-2:]
    columns, rows = choose_grid(width, height, config.min_tiles, _share(config, images), tile_size)
    whole = _resize(image, rows * tile_size, columns * tile_size)
    tiles = whole.reshape(3, rows, tile_size, columns, tile_size).permute(1, 3, 0, 2, 4)
    tiles = tiles.reshape(rows * columns, 3, tile_size, tile_size)
    if config.thumbnail and columns * rows > 1:
        tiles = torch.cat([tiles, _resize(image, tile_size, tile_size)[None]])
    return tiles.contiguous()
