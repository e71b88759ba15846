"""Preparation: tiles hold the source's pixels, an interrupted one goes on, nothing is overwritten, mistakes are sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.fakes import FAKES
from tests.fakes.pictures import colour_label, picture
from tests.fakes.scenes import isaid
from typer.testing import CliRunner

from vitp.cli import app
from vitp.commands.prepare import prepare
from vitp.datasets.benchmark_check import check_folder
from vitp.datasets.catalog import ISAID, UAVID, benchmark
from vitp.datasets.prepare_tiles import Cut
from vitp.errors import ConfigError, DataError, OutputError, VitpError


def pixels(file: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(file))


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {
        str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()
    }


def ids(file: Path, colours: tuple[tuple[str, tuple[int, int, int]], ...]) -> NDArray[np.int64]:
    """Class ids of a colour label, by a slow reference."""
    found = np.full(pixels(file).shape[:2], -1)
    for number, (_, colour) in enumerate(colours):
        found[(pixels(file) == np.array(colour)).all(-1)] = number
    return found


@pytest.mark.parametrize(
    ("length", "expected"),
    [(896, [0]), (500, [0]), (897, [0, 1]), (1408, [0, 512]), (2000, [0, 512, 1024, 1104]), (1920, [0, 512, 1024])],
)
def test_crops_cover_an_image_and_end_flush(length: int, expected: list[int]) -> None:
    assert Cut(896, 384).starts(length) == expected


def test_isaid_crops_of_896_hold_the_pixels_of_their_names(tmp_path: Path) -> None:
    source = isaid(tmp_path / "iSAID", sizes=((1000, 700),))
    result = prepare("isaid", source, tmp_path / "out")
    assert result.written == 2 * 2 * 2  # two parts, two crops, image and mask
    image = pixels(source / "train/images/P0000.png")
    truth = ids(source / "train/Semantic_masks/images/P0000_instance_color_RGB.png", ISAID.colours)
    for column, width in ((0, 896), (104, 896)):
        name = f"P0000_0_896_{column}_{column + 896}.png"
        crop, mask = (pixels(tmp_path / "out/train" / kind / name) for kind in ("images", "masks"))
        assert crop.shape == (896, 896, 3)
        np.testing.assert_array_equal(crop[:700], image[:, column : column + width])
        np.testing.assert_array_equal(mask[:700], truth[:, column : column + width])
        assert (crop[700:] == 0).all()
        assert (mask[700:] == 255).all()


def test_isaid_labels_beside_their_images_are_found_too(tmp_path: Path) -> None:
    source = isaid(tmp_path / "iSAID")
    for part in ("train", "val"):
        for label in (source / part / "Semantic_masks/images").iterdir():
            label.rename(source / part / "images" / label.name)
    apart = prepare("isaid", isaid(tmp_path / "other"), tmp_path / "a", tile=64, overlap=28)
    beside = prepare("isaid", source, tmp_path / "b", tile=64, overlap=28)
    assert apart.written == beside.written
    assert {n: c for n, (c, _) in state(tmp_path / "a").items()} == {
        n: c for n, (c, _) in state(tmp_path / "b").items()
    }


def test_uavid_frames_make_eight_tiles_of_their_last_rows(tmp_path: Path) -> None:
    source = FAKES["uavid"](tmp_path / "uavid")
    prepare("uavid", source, tmp_path / "out", tile=64)
    assert len(list((tmp_path / "out/train/images").iterdir())) == 4 * 8
    truth = ids(source / "uavid_train/seq1/Labels/000000.png", UAVID.colours)
    image = pixels(source / "uavid_train/seq1/Images/000000.png")
    whole, seen = np.full((128, 256), -1), np.zeros((128, 256, 3), dtype=np.uint8)
    for row in (0, 1):
        for column in range(4):
            place = np.s_[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
            name = f"seq1_000000_{135 - 128 + 64 * row}_{64 * column}.png"
            whole[place] = pixels(tmp_path / "out/train/masks" / name)
            seen[place] = pixels(tmp_path / "out/train/images" / name)
    np.testing.assert_array_equal(whole[:, :240], truth[-128:])
    np.testing.assert_array_equal(seen[:, :240], image[-128:])
    assert (whole[:, 240:] == 255).all()
    val = pixels(tmp_path / "out/val/masks/seq16_000000.png")
    np.testing.assert_array_equal(val, ids(source / "uavid_val/seq16/Labels/000000.png", UAVID.colours))


@pytest.mark.parametrize(("name", "label", "suffix"), [("levir_cd", "label", "png"), ("whu_cd", "OUT", "tif")])
def test_tiles_of_pairs_put_together_are_the_pair(name: str, label: str, suffix: str, tmp_path: Path) -> None:
    source = FAKES[name](tmp_path / "source")
    prepare(name, source, tmp_path / "out", tile=32)
    stem = "train_1" if name == "levir_cd" else "2012_train"
    base = tmp_path / "out" if name == "levir_cd" else tmp_path / "out/train"
    for key in ("A", "B", label):
        whole = pixels(source / "train" / key / f"{stem}.{suffix}")
        seen = np.zeros_like(whole)
        tiles = sorted((base / key).glob(f"{stem}_*.png"))
        assert len(tiles) == (16 if name == "levir_cd" else 15)
        for tile in tiles:
            row, column = (int(part) for part in tile.stem.split("_")[-2:])
            seen[row : row + 32, column : column + 32] = pixels(tile)
        np.testing.assert_array_equal(seen, whole)


def test_levir_lists_name_each_tile_once_and_in_its_part(tmp_path: Path) -> None:
    prepare("levir_cd", FAKES["levir_cd"](tmp_path / "source"), tmp_path / "out", tile=32)
    listed = {part: (tmp_path / f"out/list/{part}.txt").read_text().split() for part in ("train", "val", "test")}
    assert all(name.startswith(f"{part}_") for part, names in listed.items() for name in names)
    assert sorted(name for names in listed.values() for name in names) == sorted(
        file.name for file in (tmp_path / "out/A").iterdir()
    )


def test_ssdd_masks_are_the_polygons_and_images_are_copied(tmp_path: Path) -> None:
    source = FAKES["ssdd"](tmp_path / "coco_style")
    prepare("ssdd", source, tmp_path / "out")
    mask = pixels(tmp_path / "out/train/masks/000002.png")
    expected = np.zeros((80, 100), dtype=np.uint8)
    for x, y in ((10, 20), (50, 30)):
        expected[y : y + 13, x : x + 21] = 1  # outlines are part of the ship
    np.testing.assert_array_equal(mask, expected)
    assert not pixels(tmp_path / "out/train/masks/000004.png").any()
    copied = tmp_path / "out/train/images/000002.jpg"
    assert copied.read_bytes() == (source / "images/train/000002.jpg").read_bytes()


def test_an_interrupted_preparation_goes_on_and_overwrites_nothing(tmp_path: Path) -> None:
    source = FAKES["levir_cd"](tmp_path / "source")

    class Killed(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        prepare("levir_cd", source, tmp_path / "out", tile=32, threads=1, progress=stop)
    assert not (tmp_path / "out/list").exists()
    (interrupted,) = check_folder(benchmark("levir_cd"), tmp_path / "out").missing
    assert "the preparation was interrupted" in interrupted
    before = {name: found for name, found in state(tmp_path / "out").items() if name.endswith(".png")}
    (tmp_path / "out/A/train_1_0000_0000.png").unlink()
    before.pop("A/train_1_0000_0000.png")
    result = prepare("levir_cd", source, tmp_path / "out", tile=32)
    after = state(tmp_path / "out")
    assert before.items() <= after.items()
    assert result.kept == len(before)
    assert result.written + result.kept == 4 * 16 * 3 + 3 == json.loads(after["preparation.json"][0])["files"]
    again = prepare("levir_cd", source, tmp_path / "out", tile=32)
    assert (again.written, again.kept) == (0, 195)
    prepare("levir_cd", source, tmp_path / "whole", tile=32)
    assert {n: c for n, (c, _) in after.items()} == {n: c for n, (c, _) in state(tmp_path / "whole").items()}


def test_the_command_says_what_it_did_and_what_comes_next(tmp_path: Path) -> None:
    source = FAKES["ssdd"](tmp_path / "coco_style")
    done = CliRunner().invoke(app, ["prepare", "SSDD", str(source), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1]) == {"out": str(tmp_path / "out"), "written": 10, "kept": 0}


# --------------------------------------------------------------------------------------------------------- mistakes


def broken(name: str, harm: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        source = FAKES[name](folder)
        harm(source)
        return source

    return make


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


TRAIN = "annotations/train.json"
MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "colour": (
        "isaid",
        lambda s: colour_label(s / "val/Semantic_masks/images/P0003_instance_color_RGB.png", [(1, 2, 3)], 150, 110),
        r"P0003_instance_color_RGB\.png: colour \[1, 2, 3\] at row 0, column 0 is no class",
    ),
    "label": (
        "isaid",
        lambda s: (s / "train/Semantic_masks/images/P0001_instance_color_RGB.png").unlink(),
        r"P0001\.png: has no label or second date: .*P0001_instance_color_RGB\.png does not exist",
    ),
    "size": (
        "isaid",
        lambda s: picture(s / "train/images/P0000.png", 151, 110),
        r"the mask has 150 x 110 pixels and its image P0000\.png has 151 x 110",
    ),
    "low": (
        "uavid",
        lambda s: picture(s / "uavid_train/seq1/Images/000000.png", 240, 127),
        "less than two tiles of 64",
    ),
    "date": ("levir_cd", lambda s: (s / "test/B/test_1.png").unlink(), r"test_1\.png: has no label or second date"),
    "dates": ("levir_cd", lambda s: picture(s / "val/B/val_1.png", 64, 128), "has 64 x 128 pixels and the first date"),
    "part": (
        "levir_cd",
        lambda s: (s / "val/A/val_1.png").unlink(),
        "val: holds no pair; the val part is missing, without which the lists would be wrong",
    ),
    "damaged": ("whu_cd", lambda s: (s / "test/A/2012_test.tif").write_bytes(b"II*\0"), r"2012_test\.tif"),
    "json": ("ssdd", lambda s: edit(s / TRAIN, '"images": [', '"images" ['), r"train\.json:2: is no JSON"),
    "no json": ("ssdd", lambda s: (s / TRAIN).unlink(), r"train\.json: does not exist"),
    "image": ("ssdd", lambda s: (s / "images/train/000003.jpg").unlink(), r"train\.json:9: .*names 000003\.jpg"),
    "polygon": ("ssdd", lambda s: edit(s / TRAIN, '"segmentation": [', '"outline": ['), "has no polygon"),
    "unknown": ("ssdd", lambda s: edit(s / TRAIN, '"image_id": 3', '"image_id": 77'), "labels the image 77"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_source_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    name, harm, expected = MISTAKES[mistake]
    source = broken(name, harm)(tmp_path / "source")
    tile = 64 if name in ("isaid", "uavid") else 32
    with pytest.raises(DataError, match=expected) as caught:
        prepare(
            name,
            source,
            tmp_path / "out",
            tile=None if name == "ssdd" else tile,
            overlap=None if name != "isaid" else 0,
        )
    assert "\n" not in str(caught.value)


def test_settings_and_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = FAKES["levir_cd"](tmp_path / "source")
    out = tmp_path / "out"
    prepare("levir_cd", source, out, tile=64)
    before = state(out)

    def refused(expected: str, kind: type[VitpError], *args: Path, name: str = "levir_cd", **sizes: int) -> None:
        with pytest.raises(kind, match=expected):
            prepare(name, *args, **sizes)

    refused("holds another preparation .*tile 64", OutputError, source, out, tile=32)
    assert state(out) == before
    other = tmp_path / "other"
    picture(other / "mine.png", 8, 8)
    refused("holds other files", OutputError, source, other)
    refused("lies in the source", OutputError, source, source / "tiles")
    refused("lies in the source", OutputError, source, source)
    refused("no such folder", DataError, tmp_path / "nowhere", tmp_path / "new")
    refused("holds none of the folders train/A, val/A, test/A", DataError, out, tmp_path / "new")
    refused("overlap: 64 must be less than tile: 64", ConfigError, source, tmp_path / "new", tile=64, overlap=64)
    refused("UAVid's tiles share nothing", ConfigError, source, tmp_path / "new", name="uavid", overlap=8)
    refused("ssdd is not cut", ConfigError, source, tmp_path / "new", name="ssdd", tile=64)
    refused("loveda is read as it is distributed", ConfigError, source, tmp_path / "new", name="loveda")
    refused("did you mean 'levir_cd'", ConfigError, source, tmp_path / "new", name="levircdd")
    assert not (tmp_path / "new").exists()
