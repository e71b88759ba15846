"""Real labelled data sets: each is turned into instructions, and `vitp check` finds no error in them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.synthesize.labelsets import match, questions, real, run

from vitp.instruction.check import check_sources
from vitp.instruction.grammar import parse_boxes
from vitp.instruction.quads import parse_quads
from vitp.instruction.source import Source, SourceConfig
from vitp.synthesis import phrases as say

LOVEDA = {1: "background", 2: "building", 3: "road", 4: "water", 5: "barren", 6: "forest", 7: "agriculture"}
POTSDAM = {1: "impervious ground", 2: "building", 3: "low vegetation", 4: "tree", 5: "car", 6: "clutter"}
RSSCN7 = {"aGrass": "grass", "bField": "field", "cIndustry": "industry", "dRiverLake": "river or lake",
          "eForest": "forest", "fResident": "residential area", "gParking": "parking lot"}  # fmt: skip
BUSI_MASKS = {"format": "masks", "images": "*/*.png", "masks": "{folder}/{stem}_mask*.png", "exclude": "*/*_mask*",
              "classes": {0: "background", 255: "lesion"}, "view": "ultrasound image"}  # fmt: skip
SETS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "dota": ("dota_example", {}, "dota", 5),
    "nwpu": ("nwpu_vhr10", {}, "coco", 80),
    "ssdd": ("ssdd", {"view": "SAR image"}, "voc", 140),
    "loveda": ("rs_seg_samples/loveda", {"classes": LOVEDA, "ignore": (0,)}, "masks", 2),
    "potsdam": ("rs_seg_samples/potsdam", {"classes": POTSDAM, "ignore": (0,)}, "masks", 1),
    "levir": ("levir_cd_samples", {"subject": "building"}, "change", 7),
    "busi": ("busi", BUSI_MASKS, "masks", 16),
    "busi classes": ("busi", {"format": "folders", "exclude": "*/*_mask*"}, "folders", 16),
    "rsscn7": ("rsscn7", {"rename": RSSCN7}, "folders", 80),
}


@pytest.mark.parametrize("name", SETS)
def test_check_finds_no_error_in_what_was_written(name: str, tmp_path: Path) -> None:
    folder, keys, fmt, least = SETS[name]
    root, out = real(folder), tmp_path / "o.jsonl"
    result, records = run(root, out, **keys)
    assert result.format == fmt
    assert result.records == len(records) >= least
    assert not result.skipped
    assert result.turns == sum(len(r["tasks"]) for r in records) >= 2 * len(records)
    for record in records:
        assert record["source_format"] == fmt
        assert (root / record["source_file"]).exists()
        for turn in record["conversations"]:
            assert "{" not in turn["value"]
            assert parse_quads(turn["value"]) is not None
    report = check_sources([Source(SourceConfig(name=name, root=root, annotations=out))])
    assert report.count("error") == 0, report.lines()
    assert not report.bad
    again = tmp_path / "again.jsonl"
    run(root, again, **keys)
    assert again.read_bytes() == out.read_bytes()


def test_nwpu_counts_and_boxes(tmp_path: Path) -> None:
    root = real("nwpu_vhr10")
    document = json.loads((root / "annotations.json").read_text())
    names = {c["id"]: c["name"].replace("_", " ") for c in document["categories"]}
    files = {i["id"]: i for i in document["images"]}
    counts: Counter[tuple[str, str]] = Counter()
    boxes: dict[tuple[str, str], list[list[int]]] = {}
    for note in document["annotations"]:
        image, name = files[note["image_id"]], names[note["category_id"]]
        key = (f"positive image set/{image['file_name']}", name)
        counts[key] += 1
        x, y, w, h = note["bbox"]
        sides = (image["width"], image["height"])
        # The box is clipped to the image before it is written.
        clipped = [min(max(v, 0), sides[i % 2]) for i, v in enumerate((x, y, x + w, y + h))]
        boxes.setdefault(key, []).append([round(v / sides[i % 2] * 1000) for i, v in enumerate(clipped)])
    _, records = run(root, tmp_path / "o.jsonl", turns=12)
    found = questions(records, "count")
    for record, question, answer in found:
        gaps = match(question, say.COUNT)
        assert gaps is not None
        assert gaps["many"].endswith("s")
        assert counts[record["image"], gaps["many"].removesuffix("s")] == int(answer)
    groundings = [(r, a) for r, _, a in questions(records, "grounding") if "<box>" in a]
    for record, answer in groundings:
        (grounding,) = parse_boxes(answer)
        assert sorted(map(list, grounding.boxes)) == sorted(boxes[record["image"], str(grounding.phrase)])
    assert len(found) > 100
    assert len(groundings) > 50


def test_ssdd_counts(tmp_path: Path) -> None:
    root = real("ssdd")
    _, records = run(root, tmp_path / "o.jsonl", split="test")
    listed = (root / "ImageSets/Main/test.txt").read_text().split()
    assert {Path(r["image"]).stem for r in records} <= set(listed)
    assert len(records) >= 10
    for record, _, answer in questions(records, "count"):
        tree = ElementTree.parse(root / record["source_file"])
        assert int(answer) == len(tree.findall("object"))
    quads = questions(records, "oriented")
    for record, _, answer in quads:
        assert len(parse_quads(answer)) == len(ElementTree.parse(root / record["source_file"]).findall("object"))
    assert quads


def test_loveda_shares(tmp_path: Path) -> None:
    root = real("rs_seg_samples/loveda")
    _, records = run(root, tmp_path / "o.jsonl", classes=LOVEDA, ignore=(0,), turns=30, tasks=("area", "layout"))
    for record, question, answer in questions(records, "area"):
        mask = np.asarray(Image.open(root / record["source_file"]))
        gaps = match(question, (*say.AREA_PERCENT, *say.AREA_WORDS))
        assert gaps is not None
        true = (mask == next(v for v, n in LOVEDA.items() if n == gaps["name"])).sum() / (mask > 0).sum()
        if "%" in answer:
            assert abs(true * 100 - int(answer.removeprefix("about ").removesuffix("%"))) <= 2.5
    assert questions(records, "layout")


def test_busi_without_a_lesion_says_so(tmp_path: Path) -> None:
    _, records = run(real("busi"), tmp_path / "o.jsonl", **BUSI_MASKS)
    captions = questions(records, "caption")
    for record, _, answer in captions:
        empty = record["image"].startswith("normal/")
        assert empty == (answer == "An ultrasound image without lesion.")
    assert sum("without" in answer for _, _, answer in captions) == 3


def test_busi_folder_alone_is_ambiguous(tmp_path: Path) -> None:
    root = real("busi")
    with pytest.raises(ValueError, match="looks like folders .* and masks"):
        run(root, tmp_path / "o.jsonl")
