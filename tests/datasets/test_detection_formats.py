"""Labels of every format become the same objects: pycocotools, xml.etree and plain text reading as references."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pydantic import ValidationError
from shapely import Polygon
from tests.datasets.objectsets import CONFIG, DOTA, VOC, coco, dota, drawn, note, opened, picture, voc

from vitp.errors import DataError

COCO_SET = {"kind": "coco", "images": "images/**/*.png", "labels": "labels.json", "skip_empty": False}
SHIP = [note(1, 1, [1, 2, 10, 8]), note(2, 3, [5, 5, 20, 20], category=3)]


# ------------------------------------------------------------------------------------------------------------------ COCO


def _rich(root: Path) -> Path:
    """All that COCO's format knows: polygons, several of them, packed and plain run lengths, crowds, an image without."""
    blob = np.zeros((30, 40), dtype=np.uint8)
    blob[4:20, 6:31], blob[8:12, 10:14] = 1, 0
    packed = masks.encode(np.asfortranarray(blob))
    runs = np.diff(np.flatnonzero(np.diff(blob.T.ravel(), prepend=2, append=2)))
    polygon = [[2.5, 3.5, 20.25, 4, 18, 17, 3, 15.5], [25, 20, 33, 21, 30, 28]]
    return coco(
        root,
        [
            note(11, 1, [2.5, 3.5, 30.5, 24.5], segmentation=polygon),
            note(12, 1, [6, 4, 25, 16], 3, segmentation={"size": [30, 40], "counts": packed["counts"].decode()}),
            note(13, 3, [6, 4, 25, 16], 3, segmentation={"size": [30, 40], "counts": runs.tolist()}, iscrowd=1),
            note(14, 3, [1, 1, 4, 4], 900),
        ],
        categories={900: "van", 7: "ship", 3: "car"},
    )


def test_coco_boxes_crowds_and_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    _rich(tmp_path)
    data = opened(root=tmp_path, outlines=True, **COCO_SET)
    reference = COCO(tmp_path / "labels.json")
    assert data.classes == ("car", "ship", "van")  # by category id
    for index, item in enumerate(data.items):
        (image_id,) = (i for i, image in reference.imgs.items() if image["file_name"] == item.image.name)
        notes = reference.loadAnns(reference.getAnnIds(image_id))
        objects = data.objects(index)
        assert [data.classes[i] for i in objects.labels.tolist()] == [
            reference.cats[n["category_id"]]["name"] for n in notes
        ]
        assert objects.crowd.tolist() == [bool(n["iscrowd"]) for n in notes]
        expected = torch.tensor([n["bbox"] for n in notes], dtype=torch.float32).reshape(-1, 4)
        torch.testing.assert_close(objects.boxes, torch.cat((expected[:, :2], expected[:, :2] + expected[:, 2:]), 1))
        shown = [n for n in notes if "segmentation" in n]
        for mine, n in zip(drawn(data, index), shown, strict=True):
            assert (mine == reference.annToMask(n)).all()
    assert len(data.objects(1)) == 0
    assert [len(o) for o in data.objects(2).outlines or ()] == [1, 0]  # run lengths with a hole; none


def test_an_image_with_its_objects_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    _rich(tmp_path)
    data = opened(root=tmp_path, outlines=True, **COCO_SET)
    other = pickle.loads(pickle.dumps(data))
    image, objects = data.read(0)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 30, 40)
    assert torch.equal(other.read(0)[1].boxes, objects.boxes)
    assert (data.rotated, data.outlined, data.size(0)) == (False, True, (30, 40))


def test_file_names_with_folders_and_the_same_name_twice(tmp_path: Path) -> None:
    coco(tmp_path, SHIP, names=("one/a.png", "two/a.png", "two/b.png"))
    data = opened(root=tmp_path, **COCO_SET)
    assert [item.image.relative_to(tmp_path / "images").as_posix() for item in data.items] == [
        "one/a.png", "two/a.png", "two/b.png",
    ]  # fmt: skip
    document = json.loads((tmp_path / "labels.json").read_text())
    document["images"][0]["file_name"] = "a.png"
    (tmp_path / "labels.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"names 'a.png', which could be images/one/a.png, images/two/a.png"):
        opened(root=tmp_path, **COCO_SET)
    document["images"][0]["file_name"] = ".\\images\\one\\a.png"
    (tmp_path / "labels.json").write_text(json.dumps(document))
    assert len(opened(root=tmp_path, **COCO_SET)) == 3


def test_an_image_listed_twice_has_the_objects_of_both_entries_once(tmp_path: Path) -> None:
    coco(tmp_path, [note(1, 1, [1, 2, 3, 4]), note(2, 2, [5, 5, 9, 9])], names=("a.png", "a.png", "c.png"))
    data = opened(root=tmp_path, **COCO_SET | {"test_images": "images/c.png"})
    assert [len(data.objects(i)) for i in range(len(data))] == [2, 0]
    assert any("listed twice" in line and "labels.json:3: a.png" in line for line in data.check().lines())


def test_parts_with_a_label_file_each(tmp_path: Path) -> None:
    names = {"train": "same.png", "test": "same.png"}  # DIOR's and SARDet's folders share no name, others' do
    for part, name in names.items():
        coco(tmp_path, [note(1, 1, [1, 1, 5, 5])], names=(f"{part}/{name}", f"{part}/more.png"), file=f"{part}.json")
        document = json.loads((tmp_path / f"{part}.json").read_text())
        for image in document["images"]:
            image["file_name"] = image["file_name"].rpartition("/")[2]
        (tmp_path / f"{part}.json").write_text(json.dumps(document))
    files = {"train_labels": "train.json", "val_labels": "test.json", "test_labels": "test.json"}
    globs = {"train_images": "images/train/*", "test_images": "images/test/*", "val_images": "images/test/*"}
    data = opened(kind="coco", root=tmp_path, images="images/*/*", **files, **globs)
    assert [data.items[i].image.parent.name for i in data.train] == ["train"]  # the other one shows nothing
    assert data.val == data.test
    assert len(data.test) == 2
    report = data.check()
    assert report.images == {"train": 1, "val": 2, "test": 2}
    assert report.empty == {"train": 0, "val": 1, "test": 1}
    assert any("test images are validation images too" in line for line in report.lines())
    with pytest.raises(DataError, match="in both the training and the test images"):
        opened(kind="coco", root=tmp_path, images="images/train/*", train_labels="train.json", test_labels="train.json")


def test_coco_outlines_as_quads(tmp_path: Path) -> None:
    corners = [[10, 5, 20, 10, 17, 16, 7, 11]]
    wheel = [[20 + 8 * np.cos(t) * 1.5, 15 + 8 * np.sin(t)] for t in np.linspace(0, 6, 20)]
    coco(
        tmp_path,
        [
            note(1, 1, [7, 5, 13, 11], segmentation=corners),
            note(2, 1, None, segmentation=[np.array(wheel).reshape(-1).tolist()]),
            note(3, 1, [1, 1, 4, 4]),
        ],
    )
    data = opened(root=tmp_path, rotated=True, **COCO_SET)
    quads = data.objects(0).quads
    assert quads is not None
    assert quads[0].reshape(-1).tolist() == corners[0]
    hull = Polygon(wheel).minimum_rotated_rectangle
    assert Polygon(quads[1].numpy()).symmetric_difference(hull).area < 1e-3 * hull.area
    assert quads[2].tolist() == [[1, 1], [5, 1], [5, 5], [1, 5]]
    assert data.rotated


# ------------------------------------------------------------------------------------------------------------------- XML

BOX = "<object><name>ship</name>{flags}<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>9</ymax></bndbox>{more}</object>"


@pytest.mark.parametrize(
    ("counting", "box"), [("edges", [3, 4, 10, 9]), ("from_1", [2, 3, 10, 9]), ("from_0", [3, 4, 11, 10])]
)
def test_what_the_sides_of_a_voc_box_mean(tmp_path: Path, counting: str, box: list[float]) -> None:
    voc(tmp_path, BOX.format(flags="", more=""))
    data = opened(root=tmp_path, counting=counting, **VOC)
    assert data.objects(0).boxes.tolist() == [box]


def test_a_box_from_1_that_fills_the_image_fills_it(tmp_path: Path) -> None:
    full = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
    voc(tmp_path, f"<object><name>ship</name>{full}</object>")
    assert opened(root=tmp_path, counting="from_1", **VOC).objects(0).boxes.tolist() == [[0, 0, 40, 30]]


def test_difficult_and_truncated(tmp_path: Path) -> None:
    flags = ("", "<difficult>1</difficult>", "<truncated>1</truncated>", "<difficult>0</difficult>")
    voc(tmp_path, "".join(BOX.format(flags=f, more="") for f in flags))
    assert opened(root=tmp_path, **VOC).objects(0).difficult.tolist() == [False, True, False, False]
    both = opened(root=tmp_path, difficult="keep", truncated="ignore", **VOC)
    assert both.objects(0).difficult.tolist() == [False, False, True, False]
    report = opened(root=tmp_path, **VOC).check()
    assert report.ignored == {"train": 1, "val": 0, "test": 1}
    assert report.objects["train"] == {"ship": 3}


def test_ssdd_holds_three_forms_of_every_ship_and_the_recipe_chooses(tmp_path: Path) -> None:
    corners = "".join(
        f"<{a}{i}>{v}</{a}{i}>"
        for i, xy in enumerate([(4, 4), (9, 5), (8, 9), (3, 8)], 1)
        for a, v in zip("xy", xy, strict=True)
    )
    points = "<segm><point-1>4,4</point-1><point-2>9,5</point-2><point-3>8,9</point-3></segm>"
    more = f"<rotated_bndbox><rotated_bbox_cx>6</rotated_bbox_cx>{corners}</rotated_bndbox>{points}"
    voc(tmp_path, BOX.format(flags="", more=more))
    plain, turned = opened(root=tmp_path, **VOC), opened(root=tmp_path, quads="rotated_bndbox", outlines=True, **VOC)
    assert (plain.rotated, plain.outlined, turned.rotated, turned.outlined) == (False, False, True, True)
    assert plain.objects(0).boxes.tolist() == [[3, 4, 10, 9]]
    objects = turned.objects(0)
    assert objects.quads is not None
    assert objects.outlines is not None
    assert objects.quads.tolist() == [[[4, 4], [9, 5], [8, 9], [3, 8]]]
    assert objects.boxes.tolist() == [[3, 4, 9, 9]]  # around the quad
    assert objects.outlines[0][0].tolist() == [[4, 4], [9, 5], [8, 9]]


def test_dior_r(tmp_path: Path) -> None:
    places = ("left_top", "right_top", "right_bottom", "left_bottom")
    corners = "".join(
        f"<x_{p}>{x}</x_{p}><y_{p}>{y}</y_{p}>"
        for p, (x, y) in zip(places, [(4, 4), (9, 5), (8, 9), (3, 8)], strict=True)
    )
    voc(tmp_path, f"<object><name>Dam</name><robndbox>{corners}</robndbox></object>")
    data = opened(root=tmp_path, classes=("airplane", "dam"), **VOC | {"kind": "dior_r"})
    quads = data.objects(0).quads
    assert quads is not None
    assert quads.tolist() == [[[4, 4], [9, 5], [8, 9], [3, 8]]]
    assert data.objects(0).labels.tolist() == [1]  # upper and lower case do not matter
    with pytest.raises(DataError, match=r"x.xml:3: an <object> has no <bndbox> but <robndbox>; data.quads"):
        opened(root=tmp_path, **VOC)


# ------------------------------------------------------------------------------------------------------------------ DOTA


def test_dota_headers_difficulty_and_corners(tmp_path: Path) -> None:
    lines = [
        "imagesource:GoogleEarth",
        "acquisition dates:2014-07-03",
        "gsd:0.25",
        "",
        "5 5 15 5 15 12 5 12 ship 0",
        "5 5 5 12 15 12 15 5 ship 1",  # the other way round
        "20.5 20 30 20 30 28 20 28 large-vehicle 2",
        "1 1 9 1 9 9 1 9 ship",
    ]
    dota(tmp_path, lines)
    data = opened(root=tmp_path, **DOTA)
    index = next(i for i, item in enumerate(data.items) if item.image.stem == "x")
    objects = data.objects(index)
    assert data.classes == ("large-vehicle", "ship")
    assert objects.labels.tolist() == [1, 1, 0, 1]
    assert objects.difficult.tolist() == [False] * 4  # as released
    assert objects.quads is not None
    assert objects.quads[0].tolist() == objects.quads[1].tolist() == [[5, 5], [15, 5], [15, 12], [5, 12]]
    server = opened(root=tmp_path, ignore_difficulty=(1, 2), **DOTA)
    assert server.objects(index).difficult.tolist() == [False, True, True, False]


def test_rsar_lies_in_parts_with_images_of_any_kind(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for suffix in ("png", "jpg", "bmp"):
            picture(tmp_path / part / "images" / f"{suffix}0.{suffix}")
            (tmp_path / part / "annfiles").mkdir(exist_ok=True)
            (tmp_path / part / "annfiles" / f"{suffix}0.txt").write_text("1 1 9 1 9 9 1 9 ship 0\n")
    globs = {f"{part}_images": f"{part}/images/*" for part in ("train", "val", "test")}
    data = opened(kind="dota", root=tmp_path, images="*/images/*", labels="{above}/annfiles/{stem}.txt", **globs)
    assert (len(data.train), len(data.val), len(data.test)) == (3, 3, 3)
    assert data.check().objects["val"] == {"ship": 3}


def test_renamed_and_unwanted_classes(tmp_path: Path) -> None:
    dota(tmp_path, ["1 1 9 1 9 9 1 9 boat 0", "1 1 9 1 9 9 1 9 vessel 0", "1 1 9 1 9 9 1 9 buoy 0"])
    rules = {"rename": {"boat": "ship", "vessel": "ship"}, "leave_out": ("buoy",)}
    data = opened(root=tmp_path, **rules, **DOTA)
    assert data.classes == ("ship",)
    assert data.check().objects["train"] == {"ship": 3}
    assert any("1 objects are left out as data.leave_out asks" in line for line in data.check().lines())


def test_a_geotiff_of_16_bits_is_an_image_like_any_other(tmp_path: Path) -> None:
    dota(tmp_path, ["1 1 9 1 9 9 1 9 ship 0"])
    (tmp_path / "images/x.png").unlink()
    bands = np.random.default_rng(0).integers(0, 4000, (4, 30, 40), dtype=np.uint16)
    shape = {"driver": "GTiff", "width": 40, "height": 30, "count": 4, "dtype": "uint16"}
    place = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.open(tmp_path / "images/x.tif", "w", crs="EPSG:32632", transform=place, **shape) as file:
        file.write(bands)
    levels = {"kind": "range", "low": [0], "high": [4000]}
    data = opened(root=tmp_path, reader={"raster": {"bands": [3, 2, 1], "scaling": levels}}, **DOTA)
    index = next(i for i, item in enumerate(data.items) if item.image.suffix == ".tif")
    image, objects = data.read(index)
    assert image.shape == (3, 30, 40)
    assert len(objects) == 1
    expected = torch.from_numpy(bands[[2, 1, 0]] / 4000 * 255)
    assert (image - expected).abs().max() <= 1


def test_lists_groups_and_few_shots_are_those_of_every_data_set(tmp_path: Path) -> None:
    for scene in "abc":
        for tile in range(4):
            picture(tmp_path / "images" / f"{scene}_{tile}.png")
            (tmp_path / "labelTxt").mkdir(exist_ok=True)
            (tmp_path / "labelTxt" / f"{scene}_{tile}.txt").write_text("1 1 9 1 9 9 1 9 ship 0\n" if tile else "")
    (tmp_path / "test.txt").write_text("c\n")
    rules = DOTA | {"group": "/(.)_", "test_list": tmp_path / "test.txt", "root": tmp_path}
    rules.pop("test_images")
    data = opened(**rules)
    assert {data.items[i].group for i in data.test} == {"c"}
    assert len(data.train) == 6  # of eight images two show nothing
    assert len(opened(**rules, skip_empty=False).train) == 8
    few, more = (set(opened(**rules, train=n).train) for n in (2, 4))
    assert few < more <= set(data.train)


# -------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "coco", "images": "*"}, "labels is missing"),
        ({"kind": "coco", "images": "*", "labels": "a.json", "test_labels": "b.json"}, "labels is missing"),
        ({"kind": "coco", "images": "*", "train_labels": "a.json"}, "belong together"),
        ({"kind": "coco", "images": "*", "labels": "/a.json"}, "paths under root"),
        ({"kind": "dota", "images": "*", "labels": "labels.txt"}, "must hold {stem} or {name}"),
        ({**DOTA, "classes": ("ship", "Ship")}, "holds a name twice"),
        ({**DOTA, "classes": ("ship",), "rename": {"a": "shipp"}}, "none of the classes"),
        ({**DOTA, "rename": {"a": "b"}, "leave_out": ("a",)}, "both renamed and left out"),
        ({**DOTA, "ignored": (1,)}, "ignored"),
    ],
)
def test_recipes_that_cannot_be_meant(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIG.validate_python({"root": "x", **data})
