"""Dynamic tiling against the published table and against Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp.images.read import ImageConfig, read_image
from vitp.instruction.tiling import TilingConfig, choose_grid, cut_tiles, tile_count


@pytest.mark.parametrize(
    ("width", "height", "most", "grid", "tiles"),
    [
        (633, 633, 6, (1, 1), 1),
        (800, 800, 6, (2, 2), 5),
        (800, 800, 12, (2, 2), 5),
        (1024, 1024, 6, (2, 2), 5),
        (1024, 1024, 12, (3, 3), 10),
        (640, 480, 6, (3, 2), 7),
        (640, 480, 12, (4, 3), 13),
        (1920, 1080, 6, (2, 1), 3),
        (1920, 1080, 12, (4, 2), 9),
        (2000, 500, 6, (4, 1), 5),
        (2000, 500, 12, (4, 1), 5),
    ],
)
def test_grids_of_the_released_pipeline(width: int, height: int, most: int, grid: tuple[int, int], tiles: int) -> None:
    assert choose_grid(width, height, 1, most, 448) == grid
    assert tile_count(width, height, TilingConfig(max_tiles=most), 448) == tiles


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 12), st.integers(1, 4))
def test_count_equals_what_is_cut(width: int, height: int, most: int, images: int) -> None:
    config = TilingConfig(max_tiles=most)
    columns, rows = choose_grid(width, height, 1, max(1, most // images), 448)
    assert columns * rows <= max(1, most // images)
    assert tile_count(width, height, config, 448, images) == columns * rows + (columns * rows > 1)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    st.integers(1, 4),
    st.sampled_from(["share", "each"]),
    st.sampled_from(["released", "columns"]),
    st.sampled_from(["torch", "pillow"]),
    st.booleans(),
)
def test_whatever_the_options_as_many_tiles_are_cut_as_counted(
    size: tuple[int, int], tiles: tuple[int, int], images: int, several: str, order: str, resize: str, thumbnail: bool
) -> None:
    fewest, most = sorted(tiles)
    config = TilingConfig.model_validate(
        {"min_tiles": fewest, "max_tiles": most, "several_images": several, "grid_order": order, "resize": resize,
         "thumbnail": thumbnail}
    )  # fmt: skip
    cut = cut_tiles(torch.zeros(3, *size, dtype=torch.uint8), config, 8, images)
    assert len(cut) == tile_count(size[1], size[0], config, 8, images)
    if several == "each":
        assert fewest <= len(cut) - (thumbnail and len(cut) > 1) <= most


def assert_close_levels(tile: torch.Tensor, expected: np.ndarray) -> None:
    difference = np.abs(tile.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_tiles_equal_pillow_row_by_row_thumbnail_last() -> None:
    rng = np.random.default_rng(0)
    low = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture = low.resize((300, 200), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    size = 64
    tiles = cut_tiles(image, TilingConfig(max_tiles=6), size)
    assert tuple(tiles.shape) == (7, 3, size, size)
    whole = np.asarray(picture.resize((3 * size, 2 * size), Image.Resampling.BICUBIC)).astype(int)
    for k in range(6):
        row, column = divmod(k, 3)
        expected = whole[row * size : (row + 1) * size, column * size : (column + 1) * size]
        assert_close_levels(tiles[k], expected)
    thumbnail = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    assert_close_levels(tiles[6], thumbnail)


def test_an_image_of_the_tiles_size_is_untouched() -> None:
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert torch.equal(cut_tiles(image, TilingConfig(), 64)[0], image)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize(("width", "height", "tiles"), [(50, 52, 1), (200, 310, 7), (401, 100, 5), (31, 1, 7)])
def test_a_files_tiles_are_those_of_pillow(tmp_path: Path, name: str, width: int, height: int, tiles: int) -> None:
    """The whole way, file to tiles, for shrinking, enlarging and stretching, against the released pipeline's calls."""
    rng = np.random.default_rng(width)
    low = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / name)
    config, size = TilingConfig(max_tiles=6), 48
    found = cut_tiles(read_image(tmp_path / name, ImageConfig()), config, size)
    assert tuple(found.shape) == (tiles, 3, size, size)
    with Image.open(tmp_path / name) as opened:
        picture = opened.convert("RGB")
    columns, rows = choose_grid(width, height, 1, 6, size)
    whole = picture.resize((columns * size, rows * size))
    for k in range(columns * rows):
        left, top = k % columns * size, k // columns * size
        assert_close_levels(found[k], np.asarray(whole.crop((left, top, left + size, top + size))).astype(int))
    if tiles > 1:
        assert_close_levels(found[-1], np.asarray(picture.resize((size, size))).astype(int))


@pytest.mark.parametrize("shape", [(64, 64), (90, 200), (1, 40), (40, 1), (1, 1)])
def test_tiles_do_not_depend_on_how_the_image_lies_in_memory(shape: tuple[int, int]) -> None:
    planes = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    turned = torch.rot90(planes, 1, (-2, -1)).contiguous().rot90(-1, (-2, -1))
    expected = cut_tiles(planes, TilingConfig(), 32)
    for image in (together, turned):
        assert torch.equal(cut_tiles(image, TilingConfig(), 32), expected)
