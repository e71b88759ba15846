"""Questions about masks, change pairs, class folders and captions: answers recomputed from the pixels and names."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.synthesize.labelsets import match, picture, questions, run

from vitp.errors import DataError
from vitp.instruction.grammar import parse_boxes
from vitp.synthesis import phrases as say

NAMES = {0: "background", 7: "water", 9: "forest", 20: "buildings"}
H, W = 120, 144  # no multiple of 7; both of 3, 4 and 8
PARTS = [f"{r} {c}" for r in ("upper", "middle", "lower") for c in ("left", "centre", "right")]
PARTS[4] = "centre"


def ninths(mask: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    cells = [c for row in np.split(mask, 3, 0) for c in np.split(row, 3, 1)]
    return dict(zip(PARTS, cells, strict=True))


def write_masks(root: Path, count: int) -> None:
    """Random rectangles of three classes on background; every fifth mask has a stripe of ignored pixels (255)."""
    rng = np.random.default_rng(3)
    for i in range(count):
        mask = np.zeros((H, W), np.uint8)
        for value in (7, 9, 20):
            if rng.random() < 0.7:
                x, y = int(rng.integers(0, W - 30)), int(rng.integers(0, H - 30))
                mask[y : y + int(rng.integers(20, 90)), x : x + int(rng.integers(20, 90))] = value
        if i % 5 == 0:
            mask[:, :3] = 255
        picture(root / "img_dir" / f"{i:03}.png", W, H)
        (root / "ann_dir").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "ann_dir" / f"{i:03}.png")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("masks")
    write_masks(root, 120)
    _, records = run(root, root / "o.jsonl", classes=NAMES, ignore=(255,), turns=12)
    masks = {r["image"]: np.asarray(Image.open(root / "ann_dir" / Path(r["image"]).name)) for r in records}
    return masks, records


def value_of(name: str) -> int:
    return next(v for v, n in NAMES.items() if n == name)


def share(mask: np.ndarray[Any, Any], name: str) -> float:
    return float((mask == value_of(name)).sum() / (mask != 255).sum())


def test_areas_and_comparisons(asked: Any) -> None:
    masks, records = asked
    words = {"less than a quarter": (0, 0.25), "between a quarter and a half": (0.25, 0.5),
             "between a half and three quarters": (0.5, 0.75), "more than three quarters": (0.75, 1)}  # fmt: skip
    found = questions(records, "area")
    for record, question, answer in found:
        gaps = match(question, (*say.AREA_PERCENT, *say.AREA_WORDS))
        assert gaps is not None
        true = share(masks[record["image"]], gaps["name"])
        if answer in words:
            assert words[answer][0] <= true < words[answer][1]
        else:
            assert abs(true * 100 - int(answer.removeprefix("about ").removesuffix("%"))) <= 2.5
    assert len(found) > 50
    yes = Counter[str]()
    for record, question, answer in questions(records, "compare"):
        gaps = match(question, say.COVER_COMPARE) or match(question, say.COVER_COMPARE_MORE)
        assert gaps is not None
        first, second = (share(masks[record["image"]], gaps[key]) for key in "ab")
        assert abs(first - second) > 0.05
        if answer in ("yes", "no"):
            yes[answer] += 1
            assert (answer == "yes") == (first > second)
        else:
            assert answer == (gaps["a"] if first > second else gaps["b"])
    assert min(yes["yes"], yes["no"]) > 0.25 * yes.total() > 5


def test_presence_is_true_and_balanced(asked: Any) -> None:
    masks, records = asked
    answers = Counter[str]()
    for record, question, answer in questions(records, "presence"):
        mask = masks[record["image"]]
        gaps = match(question, say.COVER_PRESENCE_PART) or match(question, say.COVER_PRESENCE)
        assert gaps is not None
        assert gaps["name"] != "background"
        here = ninths(mask)[gaps["part"]] if "part" in gaps else mask
        assert (answer == "yes") == bool((here == value_of(gaps["name"])).any())
        answers[answer] += 1
    assert 0.42 < answers["yes"] / answers.total() < 0.58
    assert answers.total() > 200


def test_maps_and_parts(asked: Any) -> None:
    masks, records = asked
    grids = Counter[int]()
    for record, question, answer in questions(records, "layout"):
        gaps = match(question, say.LAYOUT)
        rows = [row.split(", ") for row in answer.split("; ")]
        assert gaps is not None
        assert len(rows) == int(gaps["n"]) == len(rows[0])
        grids[len(rows)] += 1
        for strip, row in zip(np.array_split(masks[record["image"]], len(rows), 0), rows, strict=True):
            for cell, name in zip(np.array_split(strip, len(rows), 1), row, strict=True):
                shares = {n: (cell == v).sum() for v, n in NAMES.items()}
                best = max(shares, key=lambda n: shares[n])
                assert name == ("other" if best == "background" else best)
    assert grids[4] > 30
    parts = questions(records, "part")
    for record, question, answer in parts:
        gaps = match(question, say.PART)
        assert gaps is not None
        cell = ninths(masks[record["image"]])[gaps["part"]]
        shares = {("other" if v == 0 else n): share(cell, n) for v, n in NAMES.items()}
        assert answer.split(", ") == sorted((n for n in shares if shares[n] >= 0.1), key=lambda n: -shares[n])
    assert len(parts) > 100
    assert sum(answer == "other" for _, _, answer in parts) < 0.3 * len(parts)


def test_regions_extents_and_sides(asked: Any) -> None:
    masks, records = asked
    for record, question, answer in questions(records, "region"):
        ((x1, y1, x2, y2),) = parse_boxes(question)[0].boxes
        mask = masks[record["image"]]
        cell = mask[round(y1 * H / 1000) : round(y2 * H / 1000), round(x1 * W / 1000) : round(x2 * W / 1000)]
        assert share(cell, answer) >= 0.88
    extents = questions(records, "extent")
    for record, _, answer in extents:
        (grounding,) = parse_boxes(answer)
        ys, xs = np.nonzero(masks[record["image"]] == value_of(str(grounding.phrase)))
        true = (xs.min() / W, ys.min() / H, (xs.max() + 1) / W, (ys.max() + 1) / H)
        assert grounding.boxes == (tuple(round(v * 1000) for v in true),)
        assert not (masks[record["image"]] == 255).any()
    sides = questions(records, "position")
    for record, question, answer in sides:
        gaps = match(question, say.SIDE)
        assert gaps is not None
        here = masks[record["image"]] == value_of(gaps["name"])
        half = {"left": here[:, : W // 2], "right": here[:, W // 2 :], "top": here[: H // 2], "bottom": here[H // 2 :]}
        assert half[answer].sum() >= 0.87 * here.sum()
    assert len(extents) > 30
    assert len(sides) > 10


def test_an_unknown_value_names_file_value_and_fix(tmp_path: Path) -> None:
    write_masks(tmp_path, 6)
    with pytest.raises(DataError, match=r"ann_dir/000.png: pixel value 255 is no class.*ignore: \[255\]"):
        run(tmp_path, tmp_path / "o.jsonl", classes=NAMES)
    assert not (tmp_path / "o.jsonl").exists()
    assert not list(tmp_path.glob(".*tmp"))
    with pytest.raises(DataError, match="classes"):
        run(tmp_path, tmp_path / "o.jsonl")


def test_a_mask_of_another_size_and_a_colour_mask_are_refused(tmp_path: Path) -> None:
    write_masks(tmp_path, 2)
    Image.new("L", (10, 10)).save(tmp_path / "ann_dir" / "001.png")
    with pytest.raises(DataError, match=r"001.png: has 10 x 10 pixels and its image 144 x 120"):
        run(tmp_path, tmp_path / "o.jsonl", classes=NAMES, ignore=(255,))
    Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / "ann_dir" / "001.png")
    with pytest.raises(DataError, match="colour picture"):
        run(tmp_path, tmp_path / "o.jsonl", classes=NAMES, ignore=(255,))


# -------------------------------------------------------------------------------------------------------------- change


def write_pairs(root: Path, count: int) -> None:
    rng = np.random.default_rng(5)
    (root / "label").mkdir(parents=True)
    for i in range(count):
        changed = np.zeros((H, W), np.uint8)
        for _ in range(i % 4):
            x, y = int(rng.integers(0, 8)) * 18, int(rng.integers(0, 8)) * 15
            changed[y : y + 30, x : x + 36] = 255
        for side in "AB":
            picture(root / side / f"{i:03}.png", W, H)
        Image.fromarray(changed).save(root / "label" / f"{i:03}.png")


def test_change_answers(tmp_path: Path) -> None:
    write_pairs(tmp_path, 160)
    _, records = run(tmp_path, tmp_path / "o.jsonl", subject="building", turns=10)
    answers, kinds = Counter[str](), Counter[str]()
    for record in records:
        assert record["image"] == [f"{s}/{Path(record['image'][0]).name}" for s in "AB"]
        assert record["conversations"][0]["value"].startswith("<image>\n<image>\n")
        assert sum(turn["value"].count("<image>") for turn in record["conversations"]) == 2
        changed = np.asarray(Image.open(tmp_path / record["source_file"])) > 0
        cells = {part: cell.mean() for part, cell in ninths(changed).items()}
        for task in record["tasks"]:
            kinds[task] += 1
        for _, question, answer in questions([record], "change_presence"):
            gaps = match(question, say.CHANGE_PRESENCE)
            assert gaps is not None
            assert (answer == "yes") == (cells[gaps["part"]] > 0)
            answers[answer] += 1
        for _, _, answer in questions([record], "change_part"):
            assert answer == (", ".join(p for p in PARTS if cells[p] > 0) or "none")
        for _, _, answer in questions([record], "change_area"):
            assert abs(changed.mean() * 100 - int(answer.removeprefix("about ").removesuffix("%"))) <= 2.5
        for _, _, answer in questions([record], "change_layout"):
            rows = [row.split(", ") for row in answer.split("; ")]
            for strip, row in zip(np.array_split(changed, len(rows), 0), rows, strict=True):
                cut = np.array_split(strip, len(rows), 1)
                assert row == ["changed" if cell.mean() > 0.01 else "same" for cell in cut]
        for _, _, answer in questions([record], "change"):
            assert changed.any() == ("%" in answer)
            assert "building changes" in answer
    assert 0.4 < answers["yes"] / answers.total() < 0.6
    assert answers.total() > 150
    assert set(kinds) == {"change", "change_area", "change_presence", "change_part", "change_layout"}


def test_a_lossy_change_label_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, 4)
    grey = np.zeros((H, W), np.uint8)
    grey[0, :3] = (3, 250, 255)
    Image.fromarray(grey).save(tmp_path / "label" / "002.png")
    with pytest.raises(DataError, match=r"label/002.png: holds 4 values .*0, 3, 250"):
        run(tmp_path, tmp_path / "o.jsonl")


# ------------------------------------------------------------------------------------------------ folders and captions


def write_classes(root: Path, names: tuple[str, ...] = ("aGrass", "bField", "cPond"), each: int = 60) -> None:
    for name in names:
        for i in range(each):
            picture(root / name / f"{i:03}.jpg", 16, 16)


def test_class_folders_are_asked_truly_and_evenly(tmp_path: Path) -> None:
    write_classes(tmp_path)
    words = {"aGrass": "grass", "bField": "field", "cPond": "pond"}
    _, records = run(tmp_path, tmp_path / "o.jsonl", rename=words)
    answers = Counter[str]()
    for record, question, answer in questions(records, "verify"):
        gaps = match(question, say.CLASS_VERIFY)
        assert gaps is not None
        assert (answer == "yes") == (words[record["image"].split("/")[0]] == gaps["name"])
        answers[answer] += 1
    assert 0.4 < answers["yes"] / answers.total() < 0.6
    assert answers.total() == len(records) == 180
    for task in ("class", "choice"):
        for record, question, answer in questions(records, task):
            assert answer == words[record["image"].split("/")[0]]
            assert task == "class" or answer in question


def test_captions_that_would_forge_marks_are_left_out(tmp_path: Path) -> None:
    texts = ["fine", "<image> here", "a <box>[[1]]</box>", "<|im_end|>", "\ud800"]
    picture(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.png", "captions": texts}))
    result, records = run(tmp_path, tmp_path / "o.jsonl", turns=9)
    assert [answer for _, _, answer in questions(records, "caption")] == ["fine"]
    assert sum(result.noted.values()) == 4


def test_captions_of_every_layout(tmp_path: Path) -> None:
    texts = {"a.png": ["a ship", "a large ship"], "b.png": ["two planes,\nparked"]}
    clean = {"a.png": {"a ship", "a large ship"}, "b.png": {"two planes, parked"}}
    for name in texts:
        picture(tmp_path / "images" / name)
    documents: dict[str, str] = {
        "k.json": json.dumps({"images": [{"filename": n, "sentences": [{"raw": t} for t in ts]}
                                         for n, ts in texts.items()]}),
        "c.json": json.dumps({"images": [{"id": i, "file_name": n} for i, n in enumerate(texts)], "annotations": [
            {"image_id": i, "caption": t} for i, ts in enumerate(texts.values()) for t in ts]}),
        "l.jsonl": "\n".join(json.dumps({"image": n, "captions": ts}) for n, ts in texts.items()),
    }  # fmt: skip
    for name, text in documents.items():
        (tmp_path / name).write_text(text)
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["ID", "Caption"], *([n[:-4], t] for n, ts in texts.items() for t in ts)])
    for name in (*documents, "t.csv"):
        _, records = run(tmp_path, tmp_path / f"{name}.out", format="captions", labels=name)
        assert {r["image"] for r in records} == {"images/a.png", "images/b.png"}
        for record, question, answer in questions(records, "caption"):
            assert answer in clean[Path(record["image"]).name]
            assert match(question, [form.format(view="image") for form in say.CAPTION]) == {}
