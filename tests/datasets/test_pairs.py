"""Change pairs: files that belong together, grids that must agree, lists that must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from vitp.datasets.dense import DenseDataConfig, open_dataset
from vitp.datasets.masks import MaskFolder, MaskFolderConfig
from vitp.datasets.pairs import PairFolder, PairFolderConfig
from vitp.errors import DataError

rasterio = pytest.importorskip("rasterio")
REAL = Path(__file__).parents[2] / "../shared/data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real sample data (../shared/data) is not here")


def _levir(root: Path, count: int = 6) -> dict[str, Any]:
    """The layout of LEVIR-CD-256."""
    for folder in ("A", "B", "label", "list"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        for number, folder in enumerate("AB"):
            pixels = np.random.default_rng([i, number]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"t_{i}.png")
        label = np.where(np.random.default_rng(i).random((16, 16)) < 0.3, 255, 0).astype(np.uint8)
        Image.fromarray(label).save(root / "label" / f"t_{i}.png")
    (root / "list/train.txt").write_text("".join(f"t_{i}.png\n" for i in range(count - 2)))
    (root / "list/test.txt").write_text("".join(f"t_{i}.png\n" for i in range(count - 2, count)))
    lists = {"train_list": "list/train.txt", "test_list": "list/test.txt", "val_list": "list/test.txt"}
    return {"root": root, "images": "A/*.png", "after": "B/{name}", "masks": "label/{name}", **lists}


def _open(fields: dict[str, Any], **changes: Any) -> PairFolder:
    return PairFolder(PairFolderConfig.model_validate({**fields, **changes}))


def test_both_dates_and_the_label_are_those_of_the_same_name(tmp_path: Path) -> None:
    data = _open(_levir(tmp_path))
    assert data.classes == ("unchanged", "changed")
    assert (data.train, data.val, data.test) == ([0, 1, 2, 3], [4, 5], [4, 5])
    for i in range(len(data)):
        before, after, mask = data.read(i)
        for number, picture in enumerate((before, after)):
            drawn = np.random.default_rng([i, number]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            np.testing.assert_array_equal(picture.permute(1, 2, 0), drawn)
        np.testing.assert_array_equal(mask, np.random.default_rng(i).random((16, 16)) < 0.3)
    report = data.check()
    assert sum(report.train.values()) == 4 * 256
    assert report.val == report.test
    assert any("2 of 2 test images are validation images too" in note for note in report.notes)
    assert any("less than the crop of 32" in note for note in report.remarks(32))
    assert not any("crop" in note for note in report.remarks(16))


@pytest.mark.parametrize("key", ["train_list", "test_list", "val_list"])
def test_a_missing_list_never_means_everything(tmp_path: Path, key: str) -> None:
    fields = _levir(tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.txt: the list does not exist; all images are never meant"):
        _open(fields, **{key: "list/nowhere.txt"})
    (tmp_path / "list/empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="names no image"):
        _open(fields, **{key: "list/empty.txt"})


def test_training_without_a_test_part_and_patterns_without_images_are_refused(tmp_path: Path) -> None:
    fields = _levir(tmp_path)
    with pytest.raises(ValidationError, match="train_list is given without test_list"):
        _open({k: v for k, v in fields.items() if k != "test_list"})
    with pytest.raises(ValidationError, match="test_images and test_list both"):
        _open(fields, test_images="A/t_1.png")
    del fields["test_list"]
    with pytest.raises(DataError, match=r"test_images 'test/\*' matches none of the 6 images"):
        _open(fields, test_images="test/*")


def test_a_missing_second_date_or_label_names_what_is_missing(tmp_path: Path) -> None:
    fields = _levir(tmp_path)
    (tmp_path / "B/t_2.png").unlink()
    with pytest.raises(DataError, match=r"A/t_2\.png: has no second date: .*B/t_2\.png does not exist"):
        _open(fields)
    _levir(tmp_path)
    (tmp_path / "label/t_3.png").unlink()
    with pytest.raises(DataError, match=r"A/t_3\.png: has no label: .*label/t_3\.png"):
        _open(fields)


def test_dates_of_other_sizes_name_both_files(tmp_path: Path) -> None:
    fields = _levir(tmp_path)
    Image.new("RGB", (16, 20)).save(tmp_path / "B/t_0.png")
    for act in (lambda data: data.read(0), lambda data: data.check()):
        with pytest.raises(DataError, match=r"B/t_0\.png: the second date has 16 x 20 .*A/t_0\.png, has 16 x 16"):
            act(_open(fields))


def test_colour_labels_and_own_values(tmp_path: Path) -> None:
    fields = _levir(tmp_path)
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 2, (16, 16), dtype=np.uint8)).save(
            tmp_path / f"label/t_{i}.png"
        )
    with pytest.raises(DataError, match="all below threshold: 128"):
        _open(fields).check()
    assert _open(fields, labels={0: 0, 1: 1}).check().train["changed"] > 0
    for i in range(6):
        Image.new("RGB", (16, 16), (255, 0, 0) if i % 2 else (0, 0, 0)).save(tmp_path / f"label/t_{i}.png")
    colours = {"unchanged": [0, 0, 0], "changed": [255, 0, 0]}
    assert _open(fields, colours=colours).check().train == {"unchanged": 512, "changed": 512}


def _geotiff(path: Path, epsg: int = 32633, origin: tuple[float, float] = (5e5, 4e6), pixel: float = 10.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = rasterio.transform.from_origin(*origin, pixel, pixel)
    profile = {"driver": "GTiff", "count": 3, "height": 16, "width": 16, "dtype": "uint8", "transform": transform}
    with rasterio.open(path, "w", crs=f"EPSG:{epsg}", **profile) as out:
        out.write(np.random.default_rng(0).integers(1, 255, (3, 16, 16), dtype=np.uint8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsg": 32634}, "coordinate system EPSG:32633 and EPSG:32634"),
        ({"origin": (5e5 + 5, 4e6)}, r"origin \(500000, 4e\+06\) and \(500005, 4e\+06\), 0.50 pixels apart"),
        ({"pixel": 10.5}, "resolution 10 x 10 and 10.5 x 10.5 map units"),
        ({}, None),
        ({"origin": (5e5 + 0.001, 4e6)}, None),  # a rounded header
    ],
)
def test_geotiff_dates_must_lie_on_one_grid(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    for i in range(3):
        _geotiff(tmp_path / f"A/{i}.tif")
        _geotiff(tmp_path / f"B/{i}.tif", **(changes if i == 1 else {}))
        (tmp_path / "label").mkdir(exist_ok=True)
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / f"label/{i}.png")
    data = PairFolder(PairFolderConfig(root=tmp_path, images="A/*.tif", after="B/{name}", masks="label/{stem}.png"))
    if said is None:
        assert data.check().train["changed"] > 0
        return
    with pytest.raises(DataError, match=rf"B/1\.tif: does not lie on the grid of .*A/1\.tif: {said}"):
        data.check()


def test_a_mask_on_another_grid_and_an_image_of_nodata_alone(tmp_path: Path) -> None:
    for i in range(3):
        _geotiff(tmp_path / f"images/{i}.tif")
        _geotiff(tmp_path / f"masks/{i}.tif", origin=(5e5 + (40 if i == 2 else 0), 4e6))
        with rasterio.open(tmp_path / f"masks/{i}.tif", "r+") as out:
            out.write(np.ones((3, 16, 16), dtype=np.uint8))
    fields = {"root": tmp_path, "images": "images/*.tif", "masks": "masks/{name}", "classes": ["a", "b"]}
    with pytest.raises(DataError, match=r"masks/2\.tif: does not lie on the grid .*4.00 pixels apart"):
        MaskFolder(MaskFolderConfig.model_validate(fields)).check()
    with rasterio.open(tmp_path / "images/1.tif", "r+") as out:
        out.nodata = 0
        out.write(np.zeros((3, 16, 16), dtype=np.uint8))
    _geotiff(tmp_path / "masks/2.tif")
    with rasterio.open(tmp_path / "masks/2.tif", "r+") as out:
        out.write(np.ones((3, 16, 16), dtype=np.uint8))
    with pytest.raises(DataError, match=r"images/1\.tif: holds no valid pixel"):
        MaskFolder(MaskFolderConfig.model_validate({**fields, "reader": {"raster": {}}})).check()


def test_the_kind_of_a_data_set_is_masks_unless_said(tmp_path: Path) -> None:
    config = TypeAdapter(DenseDataConfig)
    pairs = config.validate_python({**_levir(tmp_path), "kind": "pairs"})
    assert isinstance(open_dataset(pairs), PairFolder)
    plain = config.validate_python(
        {"root": tmp_path, "images": "A/*.png", "masks": "label/{name}", "classes": ["a", "b"]}
    )
    assert isinstance(plain, MaskFolderConfig)
    assert isinstance(config.validate_python(plain), MaskFolderConfig)
    with pytest.raises(ValidationError, match="after"):
        config.validate_python(_levir(tmp_path))


def test_an_image_a_folder_is_told_apart_by_its_folder(tmp_path: Path) -> None:
    for city in ("bern", "oslo", "lima"):
        for name in ("img1", "img2"):
            (tmp_path / "Images" / city / "pair").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "Images" / city / "pair" / f"{name}.png")
        (tmp_path / "Labels" / city).mkdir(parents=True)
        Image.new("L", (8, 8), 255 if city == "oslo" else 0).save(tmp_path / "Labels" / city / "cm.png")
    fields = {
        "root": tmp_path,
        "images": "Images/*/pair/img1.png",
        "parts": "Images/(?P<city>[^/]+)/",
        "after": "{folder}/img2.png",
        "masks": "Labels/{city}/cm.png",
        "group": "Images/([^/]+)/",
    }
    (tmp_path / "test.txt").write_text("oslo\n")  # a list may name groups
    data = _open(fields, test_list="test.txt")
    assert [item.group for item in data.items] == ["bern", "lima", "oslo"]
    assert data.test == [2]
    assert bool((data.read(2)[2] == 1).all())
    with pytest.raises(ValidationError, match="must hold {stem} or {name}"):
        _open(fields, images="Images/*/pair/*1.png", after="{folder}/img2.png")
    with pytest.raises(DataError, match="does not match parts"):
        _open(fields, parts="Pictures/(?P<city>.+)/")


@needs_real
@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        (
            {
                "root": "levir_cd_samples",
                "images": "A/*.png",
                "after": "B/{name}",
                "masks": "label/{name}",
                "train_images": "A/train_*",
                "val_images": "A/val_*",
                "test_images": "A/test_*",
            },
            (1, 1, 5),
        ),
        (
            {
                "root": "oscd_rgb",
                "images": "Images/*/pair/img1.png",
                "parts": "Images/(?P<city>[^/]+)/",
                "after": "{folder}/img2.png",
                "masks": "Train Labels/{city}/cm/cm.png",
            },
            (6, 0, 1),
        ),
        ({"root": "dsifn_samples", "images": "A/*.png", "after": "B/{name}", "masks": "label/{name}"}, (6, 0, 1)),
    ],
)
def test_real_change_pairs(fields: dict[str, Any], counts: tuple[int, int, int]) -> None:
    data = _open({**fields, "root": REAL / fields["root"]})
    assert (len(data.train), len(data.val), len(data.test)) == counts
    report = data.check()
    assert 0 < report.train["changed"] < report.train["unchanged"]
    assert all(torch.is_tensor(part) for part in data.read(data.test[0]))
