"""Labels that no one should write: each is an error with its line, or dropped and counted, before training starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shapely import Polygon, box
from tests.datasets.objectsets import DOTA, VOC, coco, dota, note, opened, picture, voc

from vitp.datasets.detection import DetectionData, Finding
from vitp.datasets.object_transforms import ObjectAugmentConfig, augment_objects
from vitp.errors import DataError

COCO_SET = {"kind": "coco", "images": "images/*.png", "labels": "labels.json", "test_images": "images/c.png"}
GOOD = "20 20 30 20 30 28 20 28 ship 0"


def _index(data: DetectionData, stem: str) -> int:
    return next(i for i, item in enumerate(data.items) if item.image.stem == stem)


def _found(data: DetectionData, beginning: str) -> Finding:
    return next(f for f in data.check().findings if f.what.startswith(beginning))


# ---------------------------------------------------------------------------------------------------- dropped and counted


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("nan 5 15 5 15 12 5 12 ship 0", "objects with a coordinate that is not finite"),
        ("inf 5 15 5 15 12 5 12 ship 0", "objects with a coordinate that is not finite"),
        ("1e300 5 15 5 15 12 5 12 ship 0", "objects with a coordinate that is not finite"),
        ("5 5 5 5 5 5 5 5 ship 0", "objects without area"),
        ("5 5 15 5 25 5 9 5 ship 0", "objects without area"),
        ("50 5 60 5 60 12 50 12 ship 0", "objects outside their image"),
        ("-20 5 -5 5 -5 12 -20 12 ship 0", "objects outside their image"),
        ("44 -6 50 2 49 3 43 -5 ship 0", "objects outside their image"),  # its box touches the image, it does not
    ],
)
def test_an_unusable_quad_is_dropped_and_told_with_its_line(tmp_path: Path, line: str, what: str) -> None:
    dota(tmp_path, [GOOD, line, GOOD])
    data = opened(root=tmp_path, **DOTA)
    report = data.check()
    assert report.dropped == 1
    (finding,) = report.findings
    assert finding.what.startswith(what)
    assert finding.examples == (f"{tmp_path}/labelTxt/x.txt:2",)
    objects = data.objects(_index(data, "x"))
    assert len(objects) == 2
    assert bool(objects.boxes.isfinite().all())


@pytest.mark.parametrize("bbox", [[5, 5, 0, 3], [5, 5, -4, 3], [50, 5, 4, 4], [float("nan"), 1, 2, 3]])
def test_an_unusable_box_is_dropped_and_told_with_its_line(tmp_path: Path, bbox: list[float]) -> None:
    coco(tmp_path, [note(1, 1, [1, 1, 5, 5]), note(2, 1, bbox), note(3, 3, [1, 1, 5, 5])])
    data = opened(root=tmp_path, **COCO_SET)
    (finding,) = data.check().findings
    assert finding.dropped
    assert finding.examples[0].endswith("labels.json:8")
    assert [len(data.objects(i)) for i in range(3)] == [1, 0, 1]


def test_a_quad_whose_sides_cross_is_put_in_order(tmp_path: Path) -> None:
    dota(tmp_path, ["5 5 15 12 15 5 5 12 ship 0", GOOD])
    data = opened(root=tmp_path, **DOTA)
    quads = data.objects(_index(data, "x")).quads
    assert quads is not None
    assert quads[0].tolist() == [[5, 5], [15, 5], [15, 12], [5, 12]]
    finding = _found(data, "quads whose sides cross")
    assert (finding.count, finding.dropped) == (1, False)


def test_what_reaches_over_the_border_is_cut_but_quads_stay_whole(tmp_path: Path) -> None:
    corners = [(30, 20), (50, 30), (45, 40), (25, 30)]
    dota(tmp_path, [" ".join(f"{x} {y}" for x, y in corners) + " ship 0", "-0.5 1 9 1 9 9 -0.5 9 ship 0"])
    data = opened(root=tmp_path, **DOTA)
    objects = data.objects(_index(data, "x"))
    assert objects.quads is not None
    assert objects.quads[0].tolist() == [list(map(float, c)) for c in corners]
    seen = Polygon(corners).intersection(box(0, 0, 40, 30))
    torch.testing.assert_close(objects.boxes[0], torch.tensor(seen.bounds))
    assert objects.boxes[1].tolist() == [0, 1, 9, 9]
    assert _found(data, "objects that reach over the border").count == 1  # half a pixel is not worth a word


def test_any_quad_is_dropped_or_has_a_box_around_what_is_seen(tmp_path: Path) -> None:
    quads = np.random.default_rng(0).integers((-30, -30), (70, 60), (500, 4, 2))
    quads[::7, 3] = quads[::7, 1]  # triangles, lines
    dota(tmp_path, [f"{' '.join(map(str, q.ravel()))} c{i} 0" for i, q in enumerate(quads)])
    data = opened(root=tmp_path, tolerate=1, **DOTA)
    objects = data.objects(_index(data, "x"))
    assert objects.quads is not None
    image, kept = box(0, 0, 40, 30), {}
    for quad, bounds, label in zip(objects.quads, objects.boxes, objects.labels.tolist(), strict=True):
        shape = Polygon(quad.tolist())
        assert shape.exterior.is_ccw  # clockwise as seen, y down
        torch.testing.assert_close(bounds, torch.tensor(shape.intersection(image).bounds, dtype=torch.float32))
        kept[data.classes[label]] = shape
    simple = {f"c{i}": Polygon(q) for i, q in enumerate(quads.tolist()) if Polygon(q).is_valid}
    assert len(simple) > 200
    for name, shape in simple.items():
        assert (name in kept) == (shape.intersection(image).area > 1e-3)
        assert name not in kept or kept[name].equals(shape)


def test_annotations_of_images_that_are_not_listed_or_not_there(tmp_path: Path) -> None:
    coco(
        tmp_path,
        [note(1, 1, [1, 1, 5, 5]), note(2, 99, [1, 1, 5, 5]), note(3, 2, [1, 1, 5, 5]), note(4, 3, [1, 1, 5, 5])],
    )
    (tmp_path / "images/b.png").unlink()
    data = opened(root=tmp_path, **COCO_SET)
    assert len(data) == 2
    lines = data.check().lines()
    assert any("1 objects of images that the labels do not list" in s and "labels.json:8" in s for s in lines)
    assert any("1 images that the labels list are not there" in s and "labels.json:3: b.png" in s for s in lines)


def test_images_that_no_file_lists_and_labels_of_no_image_are_said(tmp_path: Path) -> None:
    coco(tmp_path / "c", [note(1, 1, [1, 1, 5, 5]), note(4, 3, [1, 1, 5, 5])])
    picture(tmp_path / "c/images/more.png")
    assert any(
        "1 images are listed in no label file" in s for s in opened(root=tmp_path / "c", **COCO_SET).check().lines()
    )
    dota(tmp_path / "d", [GOOD])
    (tmp_path / "d/labelTxt/gone.txt").write_text(GOOD)
    lines = opened(root=tmp_path / "d", **DOTA).check().lines()
    assert any("1 label files belong to no image" in s and "gone.txt" in s for s in lines)


def test_an_image_without_its_label_file(tmp_path: Path) -> None:
    dota(tmp_path, [GOOD])
    bare = picture(tmp_path / "images/bare.png")
    with pytest.raises(DataError, match=rf"1 of 4 images have no labels \(the first: {bare} without .*bare.txt\)"):
        opened(root=tmp_path, **DOTA)
    assert len(opened(root=tmp_path, unlabelled="leave_out", **DOTA)) == 3
    kept = opened(root=tmp_path, unlabelled="empty", **DOTA)
    assert len(kept.objects(_index(kept, "bare"))) == 0
    assert any("count as without objects" in s for s in kept.check().lines())


def test_five_thousand_objects_in_one_image(tmp_path: Path) -> None:
    lines = [
        f"{x} {y} {x + 3} {y} {x + 3} {y + 2} {x} {y + 2} ship 0" for x in range(0, 400, 4) for y in range(0, 150, 3)
    ]
    dota(tmp_path, lines)
    Image.new("RGB", (400, 150)).save(tmp_path / "images/x.png")
    data = opened(root=tmp_path, **DOTA)
    assert data.check().most == 5000
    start = time.perf_counter()
    config = ObjectAugmentConfig(size=256, rotate=180, rotate_chance=1.0)
    found = [augment_objects(*data.read(_index(data, "x")), config, 0, 0, slot)[1] for slot in range(3)]
    assert time.perf_counter() - start < 10  # 0.1 s each on an idle core; what a loop over pairs would not reach
    assert all(1000 < len(objects) < 5000 for objects in found)


def test_one_pixel_and_nothing_on_it(tmp_path: Path) -> None:
    dota(tmp_path, ["0 0 1 0 1 1 0 1 ship 0"])
    Image.new("RGB", (1, 1)).save(tmp_path / "images/x.png")
    Image.new("RGB", (1, 900)).save(tmp_path / "images/thin.png")
    (tmp_path / "labelTxt/thin.txt").write_text("")
    data = opened(root=tmp_path, skip_empty=False, **DOTA)
    data.check()
    for config in (
        ObjectAugmentConfig(size=64, rotate=90, rotate_chance=1.0),
        ObjectAugmentConfig(size=64, crop=32, rotate=90, rotate_chance=1.0, photometric=1.0),
        ObjectAugmentConfig(size=64, keep_ratio=True, longest=128, pad_multiple=32),
    ):
        for index in range(len(data)):
            image, objects = augment_objects(*data.read(index), config, 0, 0, index)
            assert min(image.shape) >= 1
            assert bool(objects.boxes.isfinite().all())


# ------------------------------------------------------------------------------------------------------------------ refused


def test_more_unusable_objects_than_tolerated_mean_a_misread_format(tmp_path: Path) -> None:
    bad = ["100 5 150 5 150 12 100 12 ship 0"] * 11  # labels of a larger image
    dota(tmp_path, [*bad, *[GOOD] * 30])
    with pytest.raises(
        DataError, match=r"11 of 43 objects cannot be used, more than data.tolerate \(5%\): 11 objects outside"
    ):
        opened(root=tmp_path, **DOTA).check()
    assert opened(root=tmp_path, tolerate=0.3, **DOTA).check().dropped == 11


def test_an_unknown_class_is_told_with_the_nearest(tmp_path: Path) -> None:
    dota(tmp_path, [GOOD, "1 1 9 1 9 9 1 9 storage-tnak 0"])
    found = r"x.txt:2: 'storage-tnak' is none of the classes \(ship, storage-tank\)"
    wanted = found + r"; write data.rename: \{storage-tnak: storage-tank\}"
    with pytest.raises(DataError, match=wanted):
        opened(root=tmp_path, classes=("ship", "storage-tank"), **DOTA)
    coco(tmp_path / "c", [note(1, 1, [1, 1, 5, 5], 3)])
    with pytest.raises(DataError, match=r"labels.json:7: 'car' is none of the classes"):
        opened(root=tmp_path / "c", classes=("ship", "tram"), **COCO_SET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"category_id": 99},
            r"labels.json:7: entry 1 of 'annotations' has the category 99, which 'categories' \(3: car, 7: ship\)",
        ),
        ({"category_id": "7"}, r"labels.json:7: .* has '7' as 'category_id'; write a whole number"),
        ({"image_id": None}, r"labels.json:7: .* has None as 'image_id'"),
        ({"bbox": [1, 2, 3]}, r"labels.json:7: .* has a bbox of 3 numbers"),
        ({"bbox": None}, r"labels.json:7: .* has None as 'bbox'"),
        ({"bbox": ["1", 2, 3, 4]}, r"labels.json:7: .* as 'bbox'; write a list of numbers"),
        ({"segmentation": [[1, 2, 3]]}, r"labels.json:7: .* has a polygon of 3 numbers"),
        ({"segmentation": "x"}, r"labels.json:7: .* has 'x' as 'segmentation'"),
        ({"segmentation": {"size": [30, 40], "counts": [3]}}, r"labels.json:7: .* run lengths that cover 3 pixels"),
        (
            {"segmentation": {"size": [2**40, 2**40], "counts": [2**80]}},
            r"labels.json:7: .* run lengths that have the size \[1099511627776, 1099511627776\], which is more than",
        ),
        (
            {"segmentation": {"size": [30, 40], "counts": [2**70]}},
            r"labels.json:7: .* run lengths that cover more than",
        ),
        ({"segmentation": {"size": [40, 30], "counts": [1200]}}, r"of 40 x 30 pixels, where the image has 30 x 40"),
    ],
)
def test_broken_coco_entries_are_told_with_their_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    coco(tmp_path, [note(1, 1, [1, 1, 5, 5]) | change])
    with pytest.raises(DataError, match=message):
        opened(root=tmp_path, outlines=True, **COCO_SET)


def test_degenerate_outlines_are_left_out_and_said(tmp_path: Path) -> None:
    lost = [[1, 1, 5, 5], [float("nan"), 1, 2, 3, 4, 5]]
    coco(tmp_path, [note(1, 1, [1, 1, 5, 5], segmentation=lost), note(2, 3, [1, 1, 5, 5], segmentation=[])])
    data = opened(root=tmp_path, outlines=True, **COCO_SET)
    assert data.objects(0).outlines == ((),)
    assert _found(data, "parts of outlines").count == 1
    assert _found(data, "objects without outline").count == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], r"labels.json:\d+: (is no JSON|ends too early)"),
        (lambda _: "", r"labels.json:1: ends too early"),
        (lambda _: "[]", r"holds no list under 'images'"),
        (lambda text: text.replace('"id": 7', '"id": 3'), r"labels.json:12: .* has the id 3, as '\w+' has"),
        (
            lambda text: text.replace('"id": 2, "file', '"id": 1, "file'),
            r"labels.json:3: .* has the id 1, as another image",
        ),
        (lambda text: text.replace(".png", ".jpg"), r"lists 3 images, of which none is among the 3 that match"),
        (lambda text: "[" * 100_000, r"is no JSON"),
        (
            lambda text: text.replace('"width": 40', '"width": Infinity', 1),
            r"labels.json:2: entry 1 of 'images' has the size inf x 30; write the image's width and height",
        ),
        (lambda text: text.replace('"height": 30', '"height": 1e300', 1), r"labels.json:2: .* size 40 x 1e\+300"),
    ],
)
def test_broken_json_is_told_with_its_line(tmp_path: Path, change: Any, message: str) -> None:
    coco(tmp_path, [note(1, 1, [1, 1, 5, 5]), note(2, 3, [1, 1, 5, 5])])
    file = tmp_path / "labels.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(DataError, match=message):
        opened(root=tmp_path, **COCO_SET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object><name>ship</name>", r"x.xml:1: is no whole XML file"),
        ("", r"x.xml:1: is no whole XML file"),
        ("<html></html>", r"x.xml:1: begins with <html>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', r"x.xml:1: declares a document type"),
        ("<annotation><object>\n<name>ship</name></object></annotation>", r"x.xml:1: an <object> has no <bndbox>"),
        (
            "<annotation><object><bndbox>\n<xmin>a</xmin></bndbox></object></annotation>",
            r"x.xml:2: <xmin> is 'a'; write a number",
        ),
        (
            "<annotation><object><bndbox>\n<xmin>1</xmin></bndbox></object></annotation>",
            r"x.xml:1: <bndbox> has no <ymin>",
        ),
    ],
)
def test_broken_xml_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    voc(tmp_path, "")
    (tmp_path / "Annotations/x.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(root=tmp_path, **VOC)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 4 5 6 7 8", "has 8 fields"),
        ("1 2 3 4 5 6 7 x ship 0", "are no eight numbers"),
        ("1 2 3 4 5 6 7 8 ship easy", "'easy' stands where difficult"),
        ("1 2 3 4 5 6 7 8 large vehicle 0", "has 11 fields"),
        ("1 2 3 4 5 6 7 8 ship " + "1" * 5000, "'1{20}' stands where difficult"),
    ],
)
def test_broken_dota_lines_are_told_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    dota(tmp_path, ["gsd:0.1", GOOD, line])
    with pytest.raises(DataError, match=rf"x.txt:3: .*{message}"):
        opened(root=tmp_path, **DOTA)


def test_labels_for_an_image_of_another_size(tmp_path: Path) -> None:
    coco(tmp_path, [note(1, 1, [1, 1, 5, 5]), note(2, 3, [1, 1, 5, 5])])
    Image.new("RGB", (20, 15)).save(tmp_path / "images/a.png")
    data = opened(root=tmp_path, **COCO_SET)
    for look in (data.check, lambda: data.read(0), lambda: data.objects(0)):
        with pytest.raises(DataError, match="the labels are for 40 x 30 pixels, the image has 20 x 15"):
            look()
    opened(root=tmp_path, stated_size="ignore", **COCO_SET).check()


def test_a_damaged_image_is_found_before_training(tmp_path: Path) -> None:
    dota(tmp_path, [GOOD])
    (tmp_path / "images/x.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"x\.png"):
        opened(root=tmp_path, **DOTA).check()


def test_no_object_at_all(tmp_path: Path) -> None:
    dota(tmp_path, [], others=0)
    picture(tmp_path / "images/other1.png")
    (tmp_path / "labelTxt/other1.txt").write_text("gsd:null\n")
    with pytest.raises(DataError, match="hold no object of any class"):
        opened(root=tmp_path, **DOTA)
    with pytest.raises(DataError, match="leave 0 for training"):
        opened(root=tmp_path, classes=("ship",), **DOTA)
    with pytest.raises(DataError, match="no training image shows an object that can be learned"):
        opened(root=tmp_path, classes=("ship",), skip_empty=False, **DOTA).check()


def test_the_same_seed_of_parts_whatever_the_order_of_entries(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(8)]
    coco(tmp_path, [note(k, k + 1, [1, 1, 5, 5]) for k in range(8)], names=names)
    rules = COCO_SET | {"root": tmp_path}
    rules.pop("test_images")
    first = opened(**rules)
    document = json.loads((tmp_path / "labels.json").read_text())
    document["images"].reverse()
    document["annotations"].reverse()
    (tmp_path / "labels.json").write_text(json.dumps(document))
    second = opened(**rules)
    assert [first.items[i].image for i in first.test] == [second.items[i].image for i in second.test]
