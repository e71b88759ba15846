"""Hostile and broken labels: one clear sentence with file:line, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.synthesize.labelsets import coco_document, picture, run, write_coco

from vitp.commands.synthesize import synthesize
from vitp.errors import ConfigError, DataError, OutputError, VitpError


def broken(root: Path, change: Any, indent: int | None = 1) -> str:
    """The message of a COCO file after `change(document)`."""
    document = coco_document(4)
    change(document)
    write_coco(root, document, indent)
    with pytest.raises(DataError) as raised:
        run(root, root / "o.jsonl", format="coco")
    assert not (root / "o.jsonl").exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bbox", [10, 10, -5, 8], "no area"),
        ("bbox", [10, 10, 0, 8], "no area"),
        ("bbox", [200, 10, 5, 8], "outside the 96 x 80 image"),
        ("bbox", [10, 10, 5], "bbox of 3 numbers"),
        ("bbox", "10 10 5 8", "list of numbers"),
        ("bbox", None, "list of numbers"),
        ("bbox", [10, 10, float("nan"), 8], "not finite"),
        ("bbox", [10, 10, True, 8], "list of numbers"),
        ("segmentation", [[1, 2, 3]], "polygon of 3 numbers"),
        ("segmentation", [["x"] * 6], "list of numbers"),
        ("category_id", 99, "not listed"),
        ("category_id", "1", "whole number"),
        ("image_id", 77, "not listed"),
        ("area", "big", "write a list of numbers"),
        ("area", 10**400, "no computer holds"),
        ("bbox", [10**400, 1, 5, 5], "no computer holds"),
    ],
)
def test_a_broken_coco_entry_is_named_with_its_line(tmp_path: Path, key: str, value: Any, said: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["annotations"][2][key] = value

    message = broken(tmp_path, change)
    lines = (tmp_path / "labels.json").read_text().splitlines()
    number = int(message.split("labels.json:")[1].split(":")[0])
    assert said in message
    assert "entry 3 of 'annotations'" in message
    assert '"id": 3,' in lines[number] or lines[number - 1].strip() == "{", lines[number - 2 : number + 2]
    identifiers = [line for line in lines[: number + 1] if line.startswith('   "id": ')]
    assert identifiers[-1] == '   "id": 3,'


def test_a_truncated_json_is_named_with_its_line(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(3))
    path = tmp_path / "labels.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"labels.json:\d+: "):
        run(tmp_path, tmp_path / "o.jsonl", format="coco")
    path.write_bytes(b'{"images": [\n"\xff"]}')
    with pytest.raises(DataError, match=r"labels.json:2: is not UTF-8"):
        run(tmp_path, tmp_path / "o.jsonl", format="coco")
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="labels.json"):
        run(tmp_path, tmp_path / "o.jsonl", format="coco")


@pytest.mark.parametrize("name", ["../../x.png", "/etc/hostname", "a/../../../x.png", "a\0b.png", "a\nb.png"])
def test_image_names_cannot_leave_the_root(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "x.png")
    root = tmp_path / "set"
    write_coco(root, coco_document(2))
    document = json.loads((root / "labels.json").read_text())
    document["images"][1]["file_name"] = name
    (root / "labels.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="leads out|no file name"):
        run(root, root / "o.jsonl")


def test_a_link_out_of_the_root_is_left_out_and_counted(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    root = write_coco(tmp_path / "set", coco_document(3))
    (root / "images" / "001.png").unlink()
    (root / "images" / "001.png").symlink_to(tmp_path / "x.png")
    result, records = run(root, root / "o.jsonl")
    assert result.skipped == {"outside the root, or with a name that is no UTF-8": 1}
    assert len(records) == 2


def test_labels_for_an_image_of_another_size_are_refused(tmp_path: Path) -> None:
    message = broken(tmp_path, lambda document: document["images"][1].update(width=960))
    assert "960 x 80" in message
    assert "96 x 80" in message
    assert "labels.json:" in message


def test_all_images_missing_is_an_error(tmp_path: Path) -> None:
    root = write_coco(tmp_path, coco_document(3))
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of the labelled images can be used: 3 missing"):
        run(root, root / "o.jsonl")


def test_a_turned_image_is_left_out_and_counted(tmp_path: Path) -> None:
    root = write_coco(tmp_path, coco_document(3))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (96, 80)).save(root / "images" / "001.png", exif=exif)
    result, records = run(root, root / "o.jsonl")
    assert result.skipped == {"stored turned (EXIF)": 1}
    assert len(records) == 2


# ------------------------------------------------------------------------------------------------------------ DOTA, VOC


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 2 3 4 5 6 ship 0", "has 8 fields"),
        ("1 2 3 4 5 6 7 x ship 0", "no eight numbers"),
        ("10 10 30 10 30 30 10 30 ship maybe", "difficult is 0 or 1"),
        ("10 10 10 10 10 10 10 10 ship 0", "no area"),
        ("500 10 530 10 530 30 500 30 ship 0", "outside the 96 x 80 image"),
        ("nan 10 30 10 30 30 10 30 ship 0", "not finite"),
    ],
)
def test_a_broken_dota_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labelTxt").mkdir()
    (tmp_path / "labelTxt" / "a.txt").write_text(f"gsd:1\n10 10 30 10 30 30 10 30 ship 0\n\n{line}\n")
    with pytest.raises(DataError, match=r"labelTxt/a.txt:4: ") as raised:
        run(tmp_path, tmp_path / "o.jsonl")
    assert said in str(raised.value)


def voc(root: Path, text: str) -> str:
    picture(root / "JPEGImages" / "a.png")
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError) as raised:
        run(root, root / "o.jsonl")
    return str(raised.value)


BOMB = """<?xml version="1.0"?>
<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;"><!ENTITY z "&y;&y;&y;&y;&y;&y;&y;&y;">]>
<annotation><filename>&z;</filename></annotation>"""
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>\n<annotation><filename>&x;</filename></annotation>'


def annotation(inside: str) -> str:
    size = "<size><width>96</width><height>80</height></size>"
    return f"<annotation>\n<filename>a.png</filename>\n{size}\n<object>\n{inside}\n</object></annotation>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "a.xml:2: declares a document type"),
        (OUTSIDE, "a.xml:1: declares a document type"),
        ("<annotation><object>", "a.xml:1: is no whole XML file"),
        ("", "is no whole XML file"),
        ("<a>" * 200, "nested too deeply"),
        ("<html></html>", "begins with <html>"),
        (annotation("<name>ship</name>"), "a.xml:4: an <object> has no <bndbox>"),
        (annotation("<bndbox/>"), "a.xml:4: <object> has no <name>"),
        (annotation("<name>ship</name>\n<bndbox><xmin>1</xmin></bndbox>"), "a.xml:6: <bndbox> has no <ymin>"),
        (
            annotation("<name>s</name><bndbox><xmin>9</xmin><ymin>9</ymin>\n<xmax>x</xmax><ymax>5</ymax></bndbox>"),
            "a.xml:6: <xmax> is 'x'",
        ),
        (
            annotation("<name>s</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>5</xmax><ymax>20</ymax></bndbox>"),
            "a.xml:5: the box from (9, 9) to (5, 20) has no area",
        ),
        (annotation("<name>s</name>").replace("96", "inf"), "a.xml:3: <width> is 'inf'"),
        (annotation("<name>s</name>").replace("96", "69"), "a.xml:3: the labels are for 69 x 80"),
    ],
)
def test_broken_voc_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in voc(tmp_path, text)


# ------------------------------------------------------------------------------------------------------------- choosing


def test_an_ambiguous_folder_asks_for_the_format(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(2))
    (tmp_path / "labelTxt").mkdir()
    with pytest.raises(DataError, match=r"looks like coco .* and dota .*format: coco"):
        run(tmp_path, tmp_path / "o.jsonl")
    with pytest.raises(DataError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "o.jsonl")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no labels.*inner"):
        run(tmp_path / "empty", tmp_path / "o.jsonl")


def test_the_output_is_not_overwritten_unasked(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(2))
    out = tmp_path / "o.jsonl"
    out.write_text("precious\n")
    with pytest.raises(OutputError, match="not empty"):
        run(tmp_path, out)
    assert out.read_text() == "precious\n"
    # A mistake found on the way leaves the old file as it was, also where it may be overwritten.
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(VitpError):
        run(tmp_path, out, format="coco", overwrite=True)
    assert out.read_text() == "precious\n"
    write_coco(tmp_path, coco_document(2))
    assert len(run(tmp_path, out, overwrite=True)[1]) == 2
    with pytest.raises(OutputError, match="folder"):
        run(tmp_path, tmp_path / "images")


def test_a_recipe_with_overrides(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(4))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"root: {json.dumps(str(tmp_path))}\nout: {json.dumps(str(tmp_path / 'o.jsonl'))}\nturns: 3\n")
    result = synthesize(recipe, ["seed=4", "without.0=caption", "rename.harbor=quay"])
    assert result.records == 4
    assert "caption" not in result.tasks
    assert result.turns <= 12
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        synthesize(recipe, ["sed=4"])


def test_tasks_and_names_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(9))
    with pytest.raises(ConfigError, match=r"no task 'layout' for coco.*count"):
        run(tmp_path, tmp_path / "o.jsonl", tasks=("layout",))
    with pytest.raises(ConfigError, match=r"rename.shp: .*ship"):
        run(tmp_path, tmp_path / "o.jsonl", rename={"shp": "vessel"})
    with pytest.raises(ValueError, match="plain words"):
        run(tmp_path, tmp_path / "o.jsonl", rename={"ship": "<box>"})


def test_class_names_that_would_forge_notation_are_refused(tmp_path: Path) -> None:
    document = coco_document(9)
    document["categories"][0]["name"] = "ship</ref><box>"
    write_coco(tmp_path, document)
    with pytest.raises(DataError, match="cannot stand in a text"):
        run(tmp_path, tmp_path / "o.jsonl")
