"""The real sample data against an independent count; and every fragment of docs/detection_data.md reads it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from tests.datasets.objectsets import CONFIG, REAL, drawn, opened


def _need(name: str) -> Path:
    root = REAL / name
    if not root.is_dir():
        pytest.skip(f"the real sample data ({root}) is not here")
    return root


DOCUMENTED = [
    yaml.safe_load(text)["data"]
    for text in re.findall(
        r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs/detection_data.md").read_text(), re.S
    )
]


@pytest.mark.parametrize("fragment", DOCUMENTED, ids=lambda fragment: Path(fragment["root"]).name)
def test_a_documented_fragment_is_valid_and_reads_real_data(fragment: dict[str, Any]) -> None:
    config = CONFIG.validate_python(fragment)
    root = _need(Path(fragment["root"]).name)
    data = opened(**{**fragment, "root": root})
    assert sum(data.check(threads=1).objects["train"].values()) > 100
    _, objects = data.read(data.test[0])
    assert (objects.quads is not None) == data.rotated == (config.kind == "dota" or fragment.get("quads") is not None)


def test_every_object_of_dota_example() -> None:
    root = _need("dota_example")
    data = opened(kind="dota", root=root, images="images/*", labels="labelTxt/{stem}.txt")
    report = data.check()
    rows = [
        line.split() for file in sorted((root / "labelTxt").glob("*.txt")) for line in file.read_text().splitlines()
    ]
    expected = Counter(row[8] for row in rows if len(row) == 10)
    assert {n: report.objects["train"][n] + report.objects["test"][n] for n in data.classes} == expected
    assert report.most == 536  # P0706, as its source says
    for index, item in enumerate(data.items):
        objects = data.objects(index)
        lines = [
            r
            for r in (t.split() for t in (root / "labelTxt" / f"{item.image.stem}.txt").read_text().splitlines())
            if len(r) == 10
        ]
        assert objects.quads is not None
        for quad, row in zip(objects.quads.tolist(), lines, strict=True):
            written = [tuple(map(float, row[k : k + 2])) for k in range(0, 8, 2)]
            assert sorted(map(tuple, quad)) == sorted(written)
            assert tuple(quad[0]) == written[0]


def test_every_object_of_nwpu_vhr10() -> None:
    root = _need("nwpu_vhr10")
    data = opened(kind="coco", root=root, images="*/*.jpg", labels="annotations.json", outlines=True)
    reference = COCO(root / "annotations.json")
    report = data.check()
    total = sum(sum(counts.values()) for counts in report.objects.values())
    assert total == len(reference.anns)
    assert not report.findings
    by_name = {image["file_name"]: number for number, image in reference.imgs.items()}
    for index in range(0, len(data), 9):
        notes = reference.loadAnns(reference.getAnnIds(by_name[data.items[index].image.name]))
        for mine, n in zip(drawn(data, index), notes, strict=True):
            assert (mine == reference.annToMask(n)).all()


def test_every_object_of_ssdd_in_its_three_forms() -> None:
    root = _need("ssdd")
    lists = {"test_list": "ImageSets/Main/test.txt"}
    places = {"kind": "voc", "root": root, "images": "JPEGImages/*", "labels": "Annotations/{stem}.xml", **lists}
    plain, turned = opened(**places), opened(quads="rotated_bndbox", outlines=True, **places)
    assert len(plain.test) == len((root / "ImageSets/Main/test.txt").read_text().split())
    count = 0
    for index in range(len(plain)):
        tree = ElementTree.parse(root / "Annotations" / f"{plain.items[index].image.stem}.xml")
        ships = tree.findall("object")
        upright, rotated = plain.objects(index), turned.objects(index)
        assert rotated.quads is not None
        assert rotated.outlines is not None
        for i, ship in enumerate(ships):
            box = [float(ship.findtext(f"bndbox/{t}") or "nan") for t in ("xmin", "ymin", "xmax", "ymax")]
            corners = {
                tuple(float(ship.findtext(f"rotated_bndbox/{a}{k}") or "nan") for a in "xy") for k in range(1, 5)
            }
            assert upright.boxes[i].tolist() == box
            assert set(map(tuple, rotated.quads[i].tolist())) == corners
            segm = ship.find("segm")
            assert segm is not None
            assert len(rotated.outlines[i][0]) == len(segm)
        count += len(ships)
        assert len(upright) == len(rotated) == len(ships)
    assert count == sum(sum(c.values()) for c in plain.check().objects.values())


def test_every_object_of_bccd_but_those_without_area() -> None:
    root = _need("bccd")
    data = opened(kind="voc", root=root, images="JPEGImages/*", labels="Annotations/{stem}.xml")
    boxes = [
        [float(o.findtext(f"bndbox/{t}") or "nan") for t in ("xmin", "ymin", "xmax", "ymax")]
        for file in (root / "Annotations").glob("*.xml")
        for o in ElementTree.parse(file).findall("object")
    ]
    flat = sum(x2 <= x1 or y2 <= y1 for x1, y1, x2, y2 in boxes)
    report = data.check()
    assert sum(sum(counts.values()) for counts in report.objects.values()) == len(boxes) - flat
    assert report.dropped == flat
    assert Image.open(data.items[0].image).size == (data.size(0)[1], data.size(0)[0])
