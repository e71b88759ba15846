"""Dynamic tiling: an image of any shape becomes a few square tiles for the tower (InternVL's scheme).

Chosen grid: the one whose aspect ratio is nearest to the image's, among all grids with a number of tiles in
[min_tiles, max_tiles]. The whole image is stretched to the grid, cut row by row, and when there is more than one tile
a thumbnail of the whole image follows last. Where implementations differ, an option names the difference; docs/templates.md
lists all of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from vitp.config import Config

GridOrder = Literal["released", "columns"]


class TilingConfig(Config):
    """How images are cut; a tile has the tower's input size.

    transformers' processor: ``max_tiles: 12, several_images: each, grid_order: columns``, the rest as it stands.
    """

    min_tiles: int = Field(default=1, ge=1)  # released scripts
    max_tiles: int = Field(default=6, ge=1)  # released scripts; most remote-sensing and medical sources raise it to 12
    thumbnail: bool = True  # released scripts
    # released code: the images of a sample share max_tiles evenly, 1 tile where that is less than min_tiles; each: all may
    # have max_tiles (transformers)
    several_images: Literal["share", "each"] = "share"
    # among equally near grids with equally many tiles, which comes last; never matters where min_tiles is 1
    grid_order: GridOrder = "released"
    # torch: transformers' pixels, bit for bit, and fast; pillow: the released code's, bit for bit
    resize: Literal["torch", "pillow"] = "torch"

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
def _grids(min_tiles: int, max_tiles: int, order: GridOrder) -> list[tuple[int, int]]:
    """(columns, rows) of every grid allowed, by number of tiles.

    The released code sorts a set, so that grids with equally many tiles keep the set's order. That order is a function of
    the numbers alone (CPython hashes them without a seed), but follows no rule one could write down.
    """
    visited = (
        (columns, rows)
        for longest in range(min_tiles if order == "released" else max_tiles, max_tiles + 1)
        for columns in range(1, longest + 1)
        for rows in range(1, longest + 1)
        if min_tiles <= columns * rows <= max_tiles
    )
    return sorted(set(visited) if order == "released" else visited, key=lambda grid: grid[0] * grid[1])


def choose_grid(
    width: int, height: int, min_tiles: int, max_tiles: int, tile_size: int, order: GridOrder = "released"
) -> tuple[int, int]:
    """The grid (columns, rows) for an image of `width` x `height` pixels; (1, 1) where no grid is allowed.

    Ties in aspect ratio go to the later grid only when the image has more than half of that grid's pixels.
    """
    target = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles, order):
        distance = abs(target - columns / rows)
        enough = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and enough):
            best, best_distance = (columns, rows), distance
    return best


def _grid(width: int, height: int, config: TilingConfig, tile_size: int, images: int) -> tuple[int, int]:
    """The grid of one image of a sample that has `images`."""
    most = config.max_tiles
    if config.several_images == "share":
        most = max(1, most // max(1, images))
    return choose_grid(width, height, config.min_tiles, most, tile_size, config.grid_order)


def tile_count(width: int, height: int, config: TilingConfig, tile_size: int, images: int = 1) -> int:
    """Tiles of one image, the thumbnail included; `images` is the number of images in the sample."""
    columns, rows = _grid(width, height, config, tile_size, images)
    return columns * rows + int(config.thumbnail and columns * rows > 1)


def _resize(pixels_HWC: Tensor, height: int, width: int, by: Literal["torch", "pillow"]) -> Tensor:
    """Bicubic, antialiased, in 8-bit arithmetic: uint8 [H, W, 3] -> uint8 [height, width, 3].

    torch has a vector kernel for interleaved channels, and takes it only where the strides of the batch fit.
    """
    if tuple(pixels_HWC.shape[:2]) == (height, width):
        return pixels_HWC
    if by == "pillow":
        picture = Image.fromarray(pixels_HWC.numpy()).resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture))
    batch = pixels_HWC[None].permute(0, 3, 1, 2)
    return functional.interpolate(batch, size=(height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0)


def cut_tiles(image: Tensor, config: TilingConfig, tile_size: int, images: int = 1) -> Tensor:
    """Stretch and cut one image.

    Args:
        image: uint8 [3, H, W]; fastest where the channels lie together in memory, as `vitp.images.read` gives them.
        config: tile limits and ways.
        tile_size: side of a tile in pixels.
        images: number of images in the sample, which may share `max_tiles`.

    Returns:
        uint8 [tiles, 3, tile_size, tile_size], row-major, thumbnail last, in channels_last memory format; with one tile
        that needs no resizing, a view of `image`.
    """
    height, width = image.shape[-2:]
    columns, rows = _grid(width, height, config, tile_size, images)
    pixels = image.permute(1, 2, 0).contiguous()
    whole = _resize(pixels, rows * tile_size, columns * tile_size, config.resize)
    count = rows * columns
    if count == 1:
        return whole[None].permute(0, 3, 1, 2)
    tiles = torch.empty((count + int(config.thumbnail), tile_size, tile_size, 3), dtype=torch.uint8)
    grid = whole.reshape(rows, tile_size, columns, tile_size, 3).transpose(1, 2)
    tiles[:count].view(rows, columns, tile_size, tile_size, 3).copy_(grid)
    if config.thumbnail:
        tiles[count].copy_(_resize(pixels, tile_size, tile_size, config.resize))
    return tiles.permute(0, 3, 1, 2)
