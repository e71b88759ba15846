"""`vitp evaluate` of detectors: the run's own scores again, tables, report, pictures, submission, sweep, and mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitp
from vitp.boxes.objects import Detections, Objects
from vitp.cli import main
from vitp.errors import ConfigError, DataError, OutputError
from vitp.metrics.dota_submission import read_submission
from vitp.report.gallery import Gallery
from vitp.report.objects import draw_objects, judge, object_pictures
from vitp.tasks.detect import load_detector

TINY = {"architecture": "vit_tiny_patch16_224", "image_size": 64, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
RPN = {"channels": 32, "anchors": {"scales": [4.0]}, "train_proposals": 60, "test_proposals": 60, "per_level": 60,
             "test_per_level": 60}  # fmt: skip
PARTS = {"rpn": RPN, "roi": {"width": 64, "sampler": {"count": 32}}}
COLOURS = {"red": (230, 60, 60), "blue": (60, 90, 230)}
PATCHES = ("P1__64__0___0", "P1__64__32___0", "P2__64__0___0", "P3", "P4", "P5", "P6", "P7")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a blue rectangle in each picture, labelled as COCO does, and a recipe for masks and one for rotated boxes."""
    root = tmp_path_factory.mktemp("evaluate_detect")
    (root / "images").mkdir()
    images, notes = [], []
    for i, name in enumerate(PATCHES):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        images.append({"id": i, "file_name": f"{name}.png", "height": 64, "width": 64})
        for k, colour in enumerate(COLOURS.values()):
            width, height = (int(n) for n in rng.integers(12, 17, 2))
            x, y = int(rng.integers(0, 32 - width)) + 32 * k, int(rng.integers(0, 64 - height))
            pixels[y : y + height, x : x + width] = colour
            ring = [x, y, x + width, y, x + width, y + height, x, y + height]
            note = {"id": 2 * i + k + 1, "image_id": i, "category_id": k + 1, "bbox": [x, y, width, height]}
            notes.append(note | {"area": width * height, "iscrowd": 0, "segmentation": [ring]})
        Image.fromarray(pixels).save(root / f"images/{name}.png")
    categories = [{"id": k, "name": name} for k, name in enumerate(COLOURS, 1)]
    (root / "labels.json").write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    for part, names in {"train": PATCHES[3:], "val": PATCHES[2:3], "test": PATCHES[:3]}.items():
        (root / f"{part}.txt").write_text("\n".join(f"{name}.png" for name in names))
    data = {"kind": "coco", "root": str(root), "images": "images/*.png", "labels": "labels.json",
            **{f"{part}_list": f"{part}.txt" for part in ("train", "val", "test")}}  # fmt: skip
    common = {"task": "detect", "steps": 60, "seed": 1, "device": "cpu", "precision": "fp32", "workers": 0,
              "backbone_config": TINY, "neck": {"kind": "simple_fpn", "channels": 32},
              "augment": {"size": 64, "keep_ratio": True}, "batch_size": 3, "backbone_lr": 3e-3, "head_lr": 3e-3,
              "layer_decay": 1.0, "warmup": 0.1}  # fmt: skip
    mask = {"kind": "mask_rcnn", **PARTS, "mask": {"channels": 16, "convolutions": 1}}
    write(root, {**common, "name": "masks", "detector": mask, "data": {**data, "outlines": True}})
    no_val = {key: value for key, value in data.items() if key != "val_list"}
    rotated = {"boxes": "rotated", "detector": {"kind": "oriented_rcnn", **PARTS}, "data": {**no_val, "rotated": True}}
    write(root, {**common, "name": "turned", "steps": 2, **rotated})
    return root


def write(root: Path, recipe: dict[str, Any]) -> None:
    """As a file named after itself, whose run goes below the root."""
    (root / f"{recipe['name']}.yaml").write_text(json.dumps({**recipe, "out": str(root / "runs" / recipe["name"])}))


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    """What each run told."""
    return {"masks": [], "turned": []}


@pytest.fixture(scope="module")
def runs(place: Path, said: dict[str, list[str]]) -> dict[str, Path]:
    """Both recipes, run."""
    return {name: vitp.finetune(place / f"{name}.yaml", say=said[name].append).out for name in said}


# -------------------------------------------------------------------------------------------------------------- finetune


def test_a_run_ends_with_its_report_and_says_the_threshold(runs: dict[str, Path], said: dict[str, list[str]]) -> None:
    numbers = json.loads((runs["masks"] / "metrics.json").read_text())
    chosen = load_detector(runs["masks"])[1].inference.threshold
    assert chosen is not None
    assert numbers["threshold"] == chosen
    assert any(f"threshold: from a score of {chosen:.2f} on" in line for line in said["masks"])
    assert any("scores: 3/3 test images" in line for line in said["masks"])
    assert json.loads((runs["turned"] / "metrics.json").read_text())["threshold"] is None
    assert any("no validation images to choose it on" in line for line in said["turned"])
    page = (runs["masks"] / "report.html").read_text()
    assert page.count("<img ") == 2 * 3
    for title in ("Mask scores by class", "Precision over recall", "Errors by class", "Score thresholds", "Pictures"):
        assert title in page
    assert f"A score of {chosen:.3g}, chosen on the validation images" in page
    assert "themselves" not in page


# -------------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("name", ["masks", "turned"])
def test_the_scores_are_those_the_run_itself_found(runs: dict[str, Path], name: str) -> None:
    seen: list[tuple[int, int]] = []
    result = vitp.evaluate(runs[name], out=runs[name] / "again", progress=lambda *at: seen.append(at))
    own = json.loads((runs[name] / "metrics.json").read_text())
    assert {key: result.numbers[key] for key in ("form", "AP", "AP50", "mAP_voc07", "mask_AP", "classes")} == {
        key: own[key] for key in ("form", "AP", "AP50", "mAP_voc07", "mask_AP", "classes")
    }
    assert {"out": str(result.out), **json.loads((result.out / "metrics.json").read_text())} == result.numbers
    assert seen == [(1, 3), (2, 3), (3, 3)]
    if name == "masks":
        assert result.numbers["AP50"] > 0.6
        assert result.numbers["mask_AP50"] > 0.6
        assert result.numbers["threshold"]["overall"]["score"] == own["threshold"]
    errors = result.numbers["errors"]["total"]
    kinds = ("found", "ignored", "duplicate", "classification", "localisation", "both", "background")
    assert errors["detections"] == sum(errors[kind] for kind in kinds)
    text = "\n".join(result.lines())
    for title in ("AP by size:", "Errors by class:", "Objects found and missed:"):
        assert title in text
    assert ("Mask scores by class:" in text) == (name == "masks")
    assert result.lines()[-1].startswith("AP " if name == "masks" else "mAP_voc07 ")


def test_other_views_other_parts_other_thresholds(runs: dict[str, Path], place: Path, tmp_path: Path) -> None:
    said: list[str] = []
    flipped = vitp.evaluate(runs["masks"], ["inference.flips=horizontal"], out=tmp_path / "a", say=said.append)
    assert flipped.numbers["inference"]["flips"] == "horizontal"
    assert any(line.endswith("2 views of each") for line in said)
    several = vitp.evaluate(runs["masks"], tta="multiscale", split="val", out=tmp_path / "b", pictures=0)
    assert several.numbers["inference"]["scales"] == [0.75, 1.0, 1.25]
    assert several.numbers["images"] == 1
    assert "<img " not in several.report.read_text()
    strict = vitp.evaluate(runs["masks"], ["inference.threshold=1"], out=tmp_path / "c")
    assert strict.numbers["threshold"]["origin"] == "set in the recipe"
    assert strict.numbers["errors"]["total"]["found"] == 0
    assert strict.numbers["AP50"] == json.loads((runs["masks"] / "metrics.json").read_text())["AP50"]
    boxes = vitp.evaluate(runs["masks"], ["data.outlines=false"], out=tmp_path / "d", say=said.append)
    assert boxes.numbers["mask_AP"] is None
    assert "boxes alone" in "\n".join(said)


def test_another_recipe_counts_for_its_data_alone(runs: dict[str, Path], place: Path, tmp_path: Path) -> None:
    other = json.loads((place / "masks.yaml").read_text())
    other |= {"augment": {"size": 32}, "inference": {"flips": "horizontal", "threshold": 0.99}}
    (tmp_path / "other.yaml").write_text(json.dumps(other))
    result = vitp.evaluate(runs["masks"], recipe=tmp_path / "other.yaml", out=tmp_path / "a")
    own = json.loads((runs["masks"] / "metrics.json").read_text())
    assert result.numbers["inference"]["flips"] == "none"
    assert [result.numbers[key] for key in ("AP", "mask_AP")] == [own[key] for key in ("AP", "mask_AP")]
    assert result.numbers["threshold"]["origin"] == "chosen on the validation images"
    assert result.numbers["threshold"]["overall"]["score"] == own["threshold"]
    asked = ["inference.flips=horizontal", "augment.size=32"]
    result = vitp.evaluate(runs["masks"], asked, recipe=tmp_path / "other.yaml", out=tmp_path / "b")
    assert result.numbers["inference"]["flips"] == "horizontal"
    assert result.numbers["AP"] != own["AP"]
    assert result.numbers["threshold"]["overall"]["score"] == own["threshold"]


def test_a_submission_merges_patches(runs: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "out" / "task2.zip"
    vitp.evaluate(runs["masks"], out=tmp_path / "a", submission=file, say=said.append)
    found = read_submission(file, list(COLOURS), task=2)
    assert set(found) == {"P1", "P2"}
    assert any("in 2 images (merged from 3 patches), task 2" in line for line in said)
    sure = found["P1"].take(found["P1"].scores > 0.5)
    assert float(sure.boxes[:, 2].max()) > 64  # the second patch lies 32 pixels to the right
    vitp.evaluate(runs["turned"], ["data.test_list=train.txt", "data.train_list=test.txt"], out=tmp_path / "b",
                  submission=tmp_path / "task1.zip")  # fmt: skip
    assert set(read_submission(tmp_path / "task1.zip", list(COLOURS))) <= set(PATCHES[3:])
    with pytest.raises(OutputError, match=r"task2\.zip exists: say --overwrite"):
        vitp.evaluate(runs["masks"], out=tmp_path / "c", submission=file)


@pytest.mark.parametrize("name", ["masks", "turned"])
def test_images_without_labels_have_no_scores_but_a_submission(
    runs: dict[str, Path], place: Path, tmp_path: Path, name: str
) -> None:
    labels = json.loads((place / "labels.json").read_text())
    labels["annotations"] = [note for note in labels["annotations"] if note["image_id"] > 2]
    (place / f"{name}_unlabelled.json").write_text(json.dumps(labels))
    file = tmp_path / "a.zip"
    result = vitp.evaluate(runs[name], [f"data.labels={name}_unlabelled.json"], out=tmp_path / "a", submission=file)
    assert (result.numbers["objects"], result.numbers["AP50"], result.numbers["mAP_voc07"]) == (0, None, None)
    assert result.lines()[-1].endswith("no labelled object")
    assert read_submission(file, list(COLOURS), task=2 if name == "masks" else 1)
    assert "NaN" not in (result.out / "metrics.json").read_text()


def test_the_command_line(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "vitp",
        "evaluate",
        str(runs["turned"]),
        "--out",
        str(tmp_path / "a"),
        "--submission",
        str(tmp_path / "z.zip"),
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.strip().splitlines()[-1])["form"] == "rotated"
    assert "Errors by class" in captured.err
    assert (tmp_path / "z.zip").is_file()


# --------------------------------------------------------------------------------------------------------------- hostile


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """The one sentence of a command that ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["vitp", "evaluate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def test_data_that_do_not_fit_are_one_sentence(
    runs: dict[str, Path],
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = ("--out", tmp_path / "x")
    with pytest.raises(ConfigError, match="finds rotated boxes, .* has upright boxes alone; take data with quads"):
        vitp.evaluate(runs["turned"], ["data.rotated=false"], out=tmp_path / "x")
    with pytest.raises(ConfigError, match=r"classes \(blue, red\) are not those of .* \(red, blue\)"):
        vitp.evaluate(runs["masks"], ["data.classes=[blue, red]"], out=tmp_path / "x")
    with pytest.raises(DataError, match="has no val images"):
        vitp.evaluate(runs["turned"], split="val", out=tmp_path / "x")
    assert "has upright boxes alone" in fails(capsys, monkeypatch, runs["turned"], "data.rotated=false", *out)
    segment = tmp_path / "segment.yaml"
    masks = {"root": "/x", "images": "*", "masks": "m/{name}", "classes": ["a", "b"]}
    segment.write_text(json.dumps({"name": "s", "task": "segment", "steps": 1, "backbone": "x", "data": masks}))
    assert "has task: segment" in fails(capsys, monkeypatch, runs["masks"], "--recipe", segment, *out)
    assert not (tmp_path / "x").exists()


def test_missing_and_damaged_images_are_one_sentence(
    runs: dict[str, Path],
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    (copy / "images").mkdir(parents=True)
    for file in (*place.glob("*.txt"), place / "labels.json", *place.glob("images/*.png")):
        (copy / file.relative_to(place)).write_bytes(file.read_bytes())
    last = copy / f"images/{PATCHES[2]}.png"
    whole = last.read_bytes()
    words = (runs["masks"], "--data", copy, "--out", tmp_path / "x")
    for broken in (whole[:12], whole[: len(whole) // 2]):
        last.write_bytes(broken)
        assert PATCHES[2] in fails(capsys, monkeypatch, *words)
    last.unlink()
    assert PATCHES[2] in fails(capsys, monkeypatch, *words)
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------------------------------------------------------- pictures


def test_finds_are_judged_by_their_objects() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    flags = torch.zeros(3, dtype=torch.bool)
    objects = Objects(boxes, torch.tensor([0, 1, 1]), torch.tensor([False, False, True]), flags)
    finds = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60], [0, 0, 5, 5]])
    found = Detections(finds, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1]), torch.tensor([0, 0, 0, 1, 0]))
    judged = judge(found, objects, ["a", "b"], rotated=False, least=0.2)
    assert judged.outcome.tolist() == [1, 0, 0, -1]  # right, once more, of another class, of a difficult object
    assert judged.hit.tolist() == [True, False, False]
    assert (judged.right, judged.mistakes, judged.wrong) == (1, 3, 0.75)
    image = torch.full((3, 60, 60), 90, dtype=torch.uint8)
    shown = draw_objects("x.png", image, objects, judged, ["a", "b"], rotated=False)
    assert shown.labels.shape == shown.finds.shape == (480, 480, 3)
    colours = {tuple(pixel) for pixel in shown.labels.reshape(-1, 3).tolist()}
    assert {(86, 180, 233), (240, 228, 66), (160, 160, 160)} <= colours  # found, missed, difficult
    colours = {tuple(pixel) for pixel in shown.finds.reshape(-1, 3).tolist()}
    assert {(60, 230, 160), (255, 110, 40), (160, 160, 160)} <= colours
    assert object_pictures([shown], 0.2).rows[0][0].label == "x.png: 2 objects, 1 missed"


def test_nothing_and_thousands_of_objects_can_be_shown() -> None:
    none = Detections(torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(3000, 2, generator=rng) * 900
    boxes = torch.cat((corner, corner + 8), 1)
    flags = torch.zeros(3000, dtype=torch.bool)
    quads = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2)
    objects = Objects(boxes, torch.zeros(3000, dtype=torch.int64), flags, flags, quads)
    judged = judge(none, objects, ["a"], rotated=True, least=0.5)
    assert (judged.right, judged.mistakes, judged.wrong) == (0, 3000, 1.0)
    image = torch.zeros(3, 1000, 500, dtype=torch.uint8)
    assert draw_objects("x", image, objects, judged, ["a"], rotated=True).finds.shape == (480, 240, 3)
    assert np.isnan(judge(none, objects.take(flags), ["a"], rotated=True, least=0.5).wrong)


def test_a_gallery_keeps_the_worst_and_makes_no_more_than_it_needs() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    gallery = Gallery[int](8, 4)
    wrong = [0.1, 0.9, 0.2, float("nan"), float("nan"), 0.3, 0.9, 0.1]
    for number, value in enumerate(wrong):
        gallery.add(value, lambda number=number: make(number), count=number)
    assert gallery.even == [0, 4]
    assert gallery.worst == [6, 1]
    assert gallery.by_wrong == [6, 1, 0, 4]
    assert 3 not in made
    assert 7 not in made


# ----------------------------------------------------------------------------------------------------------------- sweep


def test_a_sweep_of_detectors(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(place / "turned.yaml"), f"out={tmp_path / 's'}", "steps=1", "--sweep", "fraction=1,0.5", "--json"]
    monkeypatch.setattr(sys, "argv", ["vitp", "evaluate", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["fraction"] for row in found["table"]] == [1, 0.5]
    for point in found["points"]:
        own = json.loads((Path(point["folder"]) / "metrics.json").read_text())
        assert point["mAP"] == 100 * own["mAP_voc07"]
        assert point["AP"] == 100 * own["AP"]
    metrics = [Path(point["folder"]) / "metrics.json" for point in found["points"]]
    before = [file.stat().st_mtime_ns for file in metrics]
    monkeypatch.setattr(sys, "argv", ["vitp", "evaluate", *words, "--resume"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0, capsys.readouterr().err
    assert [file.stat().st_mtime_ns for file in metrics] == before
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["table"] == found["table"]


@pytest.mark.parametrize("kind", ["masks", "turned"])
def test_prediction_takes_a_run_as_it_is(place: Path, runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    vitp.predict(runs[kind], place / "images", tmp_path / "out", ["threshold=0.3"])
    found = json.loads((tmp_path / "out/detections.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in found["images"]] == [f"{name}.png" for name in sorted(PATCHES)]
    assert [category["name"] for category in found["categories"]] == ["red", "blue"]
    if kind == "masks":  # trained long enough to know both colours
        labelled = json.loads((place / "labels.json").read_text(encoding="utf-8"))["annotations"]
        first = [note["bbox"] for note in labelled if note["image_id"] == 3]
        image = next(image["id"] for image in found["images"] if image["file_name"] == f"{PATCHES[3]}.png")
        boxes = [note["bbox"] for note in found["annotations"] if note["image_id"] == image]
        assert all(min(np.abs(np.subtract(one, other)).max() for other in boxes) < 5 for one in first)
