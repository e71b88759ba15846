"""What label pixels mean: colours with a tolerance, thresholds, zero as ignore, declared nodata, every kind of TIFF."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vitp.datasets.labels import LabelConfig, LabelReader, read_stored
from vitp.errors import DataError

ROOT = Path("data")
COLOURS = {"water": [0, 0, 255], "roof": [[255, 0, 0], [128, 0, 0]], "ignore": [0, 0, 0]}


def _reader(**fields: Any) -> LabelReader:
    return LabelReader(LabelConfig.model_validate({"classes": ["water", "roof"], **fields}), ROOT)


def _save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    picture.save(path)
    return path


def _colours(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A colour mask [6, 8, 3] and its class ids."""
    table = np.array([[0, 0, 255], [255, 0, 0], [128, 0, 0], [0, 0, 0]], dtype=np.uint8)
    drawn = np.random.default_rng(seed).integers(0, 4, (6, 8))
    return table[drawn], np.array([0, 1, 1, 255])[drawn]


@pytest.mark.parametrize(("suffix", "mode"), [("png", None), ("png", "P"), ("tif", None)])
def test_colours_become_classes_several_to_one(tmp_path: Path, suffix: str, mode: str | None) -> None:
    pixels, ids = _colours()
    file = _save(tmp_path / f"mask.{suffix}", pixels, mode)
    reader = _reader(colours=COLOURS)
    np.testing.assert_array_equal(reader.read(file), ids)
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.read(file), ids)
    assert len(pickle.dumps(reader)) < 1 << 20


def test_an_unknown_colour_is_named_with_its_place_and_the_file(tmp_path: Path) -> None:
    pixels, _ = _colours()
    pixels[2, 5] = [250, 3, 0]
    file = _save(tmp_path / "mask.png", pixels)
    with pytest.raises(DataError, match=r"colour \[250, 3, 0\] at row 2, column 5 .*1 such pixel") as error:
        _reader(colours=COLOURS).read(file)
    assert error.value.where == str(file)
    assert _reader(colours=COLOURS, colour_tolerance=5).read(file)[2, 5] == 1


@given(st.tuples(*[st.integers(0, 255)] * 3), st.tuples(*[st.integers(-9, 9)] * 3), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_the_tolerance_is_the_largest_difference_of_a_channel(
    colour: tuple[int, int, int], shift: tuple[int, int, int], tolerance: int
) -> None:
    shown = np.clip(np.add(colour, shift), 0, 255)
    far = tuple(255 if level < 128 else 0 for level in colour)
    reader = _reader(colours={"water": colour, "roof": far}, colour_tolerance=tolerance)
    inside = int(np.abs(shown - colour).max()) <= tolerance
    pixels = shown.astype(np.uint8).reshape(1, 1, 3)
    if inside:
        assert reader._from_colours(pixels, Path("m.png")).tolist() == [[0]]
    else:
        with pytest.raises(DataError, match="no class"):
            reader._from_colours(pixels, Path("m.png"))


def test_colours_that_the_tolerance_cannot_tell_apart_and_unknown_names() -> None:
    near = {"water": [0, 0, 250], "roof": [0, 0, 255]}
    with pytest.raises(DataError, match="5 levels apart, too close for colour_tolerance: 3"):
        _reader(colours=near, colour_tolerance=3)
    assert _reader(colours=near, colour_tolerance=2)
    with pytest.raises(DataError, match="'street', which is no class"):
        _reader(colours={"street": [1, 2, 3]})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": {0: 0}, "threshold": 3}, "labels and threshold each say"),
        ({"colours": {"water": [0, 0, 256]}}, "from 0 to 255"),
        ({"colours": COLOURS, "ignore": 0}, "colours: {ignore"),
        ({"reduce_zero_label": True, "labels": {0: 0}}, "keep one"),
    ],
)
def test_two_meanings_at_once_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelConfig.model_validate({"classes": ["a", "b"], **fields})


def test_zero_as_ignore_shifts_the_classes(tmp_path: Path) -> None:
    file = _save(tmp_path / "m.png", np.array([[0, 1, 2]], dtype=np.uint8))
    reader = _reader(reduce_zero_label=True)
    assert reader.read(file).tolist() == [[255, 0, 1]]
    _save(file, np.array([[0, 1, 3]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"pixel value 3 is no class \(known values: 0, 1, 2\)"):
        reader.read(file)


def test_a_threshold_splits_grey_levels_and_refuses_ids(tmp_path: Path) -> None:
    file = _save(tmp_path / "m.png", np.array([[0, 127, 128, 255]], dtype=np.uint8))
    reader = _reader(threshold=128)
    assert reader.read(file).tolist() == [[0, 0, 1, 1]]
    _save(file, np.array([[0, 1, 1, 0]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"0 and 1 only, all below threshold: 128; write labels"):
        reader.read(file)
    _save(file, np.zeros((2, 2), dtype=np.uint8))
    assert reader.read(file).max() == 0
    with pytest.raises(DataError, match="makes two classes, and 3 are named"):
        _reader(classes=["a", "b", "c"], threshold=128)


def test_a_recipe_for_seven_classes_on_masks_with_eight(tmp_path: Path) -> None:
    file = _save(tmp_path / "m.png", np.arange(8, dtype=np.uint8).reshape(2, 4))
    with pytest.raises(DataError, match=r"m\.png: pixel value 7 is no class \(known values: 0, 1, 2, 3, 4, 5, 6\)"):
        _reader(classes=list("abcdefg")).read(file)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64"])
def test_geotiffs_of_every_integer_type(tmp_path: Path, dtype: str) -> None:
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(0, 3, (20, 33)).astype(dtype)
    values[0, :5] = 100
    nodata = 100
    file = tmp_path / "m.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 20, "width": 33, "dtype": dtype, "nodata": nodata}
    with rasterio.open(file, "w", **profile, tiled=True, blockxsize=16, blockysize=16, compress="deflate") as out:
        out.write(values, 1)
    reader = _reader(classes=["a", "b", "c"])
    ids = reader.read(file)
    assert (ids[0, :5] == 255).all()  # declared nodata that is no class
    np.testing.assert_array_equal(ids[1:], values[1:])
    with pytest.raises(DataError, match="pixel value 100"):
        reader.ids(read_stored(file).values, file)


def test_negative_nodata_is_ignored_and_other_negatives_are_named(tmp_path: Path) -> None:
    reader = _reader()
    values = np.array([[-9999, 0, 1]], dtype=np.int16)
    assert reader.ids(values, "m.tif", nodata=-9999).tolist() == [[255, 0, 1]]
    with pytest.raises(DataError, match="pixel value -9999"):
        reader.ids(values, "m.tif")
    assert reader.ids(np.array([[0, 1]]), "m.tif", nodata=0).tolist() == [[0, 1]]  # nodata that is a class stays one
