"""Images whose end is missing are found before training, by their last bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.datasets.objectsets import DOTA, dota, opened

from vitp.datasets.masks import MaskFolder, MaskFolderConfig
from vitp.datasets.pairs import PairFolder, PairFolderConfig
from vitp.errors import DataError
from vitp.images.decode import ImageError, read_rgb, require_whole


def picture(path: Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_anywhere_is_refused_as_reading_it_would_be(tmp_path: Path, name: str, left: float) -> None:
    data = picture(tmp_path / name)
    require_whole(tmp_path / name)
    for rest in (data[: int(left * len(data))], data[: int(left * len(data))].ljust(len(data) + 9000, b"\0")):
        (tmp_path / name).write_bytes(rest)
        for look in (require_whole, read_rgb):
            with pytest.raises(ImageError, match="truncated"):
                look(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_what_follows_a_whole_picture_does_no_harm(tmp_path: Path, name: str) -> None:
    data = picture(tmp_path / name)
    for more in (b"\0" * 100, b"notes" * 5000):
        (tmp_path / name).write_bytes(data + more)
        require_whole(tmp_path / name)
        assert read_rgb(tmp_path / name).shape == (3, 48, 64)


def test_other_formats_are_left_to_their_readers(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").write_bytes(data[:-40])
    require_whole(tmp_path / "a.bmp")


def masks(root: Path) -> Callable[[], object]:
    for i in range(4):
        picture(root / f"images/{i}.png", i)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((48, 64), i % 2, np.uint8)).save(root / f"masks/{i}.png")
    config = MaskFolderConfig(
        root=root, images="images/*.png", masks="masks/{name}", classes=["a", "b"], test_images="images/3.png"
    )
    return MaskFolder(config).check


def pairs(root: Path) -> Callable[[], object]:
    for i in range(4):
        picture(root / f"before/{i}.png", i)
        picture(root / f"images/{i}.png", i + 9)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((48, 64), i % 2, np.uint8)).save(root / f"masks/{i}.png")
    config = PairFolderConfig(
        root=root,
        images="before/*.png",
        after="images/{name}",
        masks="masks/{name}",
        labels={0: 0, 1: 1},
        test_images="before/3.png",
    )
    return PairFolder(config).check


def objects(root: Path) -> Callable[[], object]:
    dota(root, ["20 20 30 20 30 28 20 28 ship 0"])
    return opened(root=root, **DOTA).check


@pytest.mark.parametrize("made", [masks, pairs, objects])
def test_a_truncated_test_image_stops_the_run_before_it_begins(
    tmp_path: Path, made: Callable[[Path], Callable[[], object]]
) -> None:
    check = made(tmp_path)
    check()
    last = max((tmp_path / "images").iterdir())
    cut(last)
    with pytest.raises(DataError, match=rf"{last.name}: is truncated"):
        check()
