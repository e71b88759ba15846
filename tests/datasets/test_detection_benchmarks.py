"""Every recipe of detection on its miniature, for two steps; every benchmark of detection prepared and checked."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.fakes import FAKES
from tests.fakes.detection import OBJECTS
from tests.fakes.ready import TINY, ready

from vitp.commands.datasets import classes_of
from vitp.commands.finetune import finetune, load_finetune
from vitp.commands.finetune_detect import DetectConfig, DetectResult
from vitp.datasets.benchmark import Benchmark
from vitp.datasets.benchmark_check import check_folder, data_of
from vitp.datasets.catalog import benchmark
from vitp.datasets.catalog_detection import DETECTION
from vitp.datasets.detection import open_detection
from vitp.errors import ConfigError
from vitp.train.optim import StepSchedule

NAMES = [*OBJECTS, "ssdd_detection"]
TINY_HEAD = (
    "detector.rpn.channels=8",
    "detector.rpn.per_level=20",
    "detector.rpn.train_proposals=20",
    "detector.rpn.test_proposals=20",
    "detector.roi.width=8",
)


def recipe(name: str) -> DetectConfig:
    config = load_finetune(f"finetune/{name}", ["backbone=x.safetensors"])
    assert isinstance(config, DetectConfig)
    return config


def tiny(name: str, root: Path, out: Path) -> list[str]:
    """Overrides that make a recipe small; everything else stays as it is."""
    config = recipe(name)
    parts = ["features.stem_width=8"] if config.features.kind == "adapter" else ["features.channels=8"]
    parts += ["neck.channels=8"] if config.neck.kind != "none" else []
    parts += ["detector.mask.channels=8", "detector.mask.convolutions=1"] if config.detector.kind == "mask_rcnn" else []
    parts += ["augment.longest=96"] if config.augment.longest is not None else []
    return [*TINY, *TINY_HEAD, *parts, "augment.size=64", f"data.root={root}", f"out={out}"]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_runs_two_steps_on_its_miniature(name: str, tmp_path: Path) -> None:
    root = ready(name, tmp_path)
    result = finetune(name, tiny(name, root, tmp_path / "out"))
    assert isinstance(result, DetectResult)
    assert result.train.step == 2
    assert math.isfinite(result.train.loss)
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["loss"] == result.train.loss
    assert result.model.is_file()


@pytest.mark.parametrize("entry", DETECTION, ids=lambda entry: entry.name)
def test_a_whole_folder_lacks_nothing_but_the_rest_of_the_public_set(entry: Benchmark, tmp_path: Path) -> None:
    root = ready(entry.name, tmp_path)
    report = check_folder(entry, root, threads=1)
    assert report.counts["train"] >= 2
    assert report.counts["test"] >= 1
    assert all(" of the " in text and "public set" in text for text in report.missing), report.missing
    assert set(report.objects["train"]) == set(classes_of(entry))
    assert all(report.objects["train"].values())
    assert (report.pixels, report.to_json()["objects"]) == ({}, report.objects)


# The released orders, which exchanged weights rely on
ORDERS = {
    "dior": (20, {5: "chimney", 6: "dam", 7: "Expressway-Service-area", 8: "Expressway-toll-station", 19: "windmill"}),
    "dior_r": (
        20,
        {5: "chimney", 6: "expressway-service-area", 7: "expressway-toll-station", 8: "dam", 19: "windmill"},
    ),
    "dota_v1": (15, {0: "plane", 4: "small-vehicle", 9: "storage-tank", 11: "roundabout", 14: "helicopter"}),
    "dota_v1_5": (16, {0: "plane", 14: "helicopter", 15: "container-crane"}),
    "dota_v2": (18, {9: "storage-tank", 11: "roundabout", 15: "container-crane", 16: "airport", 17: "helipad"}),
    "sardet_100k": (6, dict(enumerate(("ship", "aircraft", "car", "tank", "bridge", "harbor")))),
    "rsar": (6, dict(enumerate(("ship", "aircraft", "car", "tank", "bridge", "harbor")))),
    "ssdd_detection": (1, {0: "ship"}),
    "hrsc2016": (1, {0: "ship"}),
    "coco": (80, {0: "person", 11: "stop sign", 39: "bottle", 79: "toothbrush"}),
}
# Steps (12 epochs, SSDD 24, of the images over 8), rate, decay over layers, side, head, neck, classes turned by quarters
RELEASED = {
    "dior": (17_592, 2e-5, 0.9, 800, "cascade_rcnn", "simple_fpn", set()),
    "dior_r": (17_592, 2.5e-5, 0.95, 800, "oriented_rcnn", "simple_fpn", {5, 15, 19}),
    "dota_v2": (None, 2.5e-5, 0.95, 1024, "oriented_rcnn", "simple_fpn", {9, 11, 16}),
    "rsar": (118_260, 2.5e-5, 0.95, 800, "oriented_rcnn", "simple_fpn", {3}),
    "sardet_100k": (141_744, 1e-5, 0.95, 1024, "cascade_rcnn", "simple_fpn", set()),
    "ssdd_detection": (2_784, 1e-5, 0.9, 608, "mask_rcnn", "fpn", set()),
}


def test_class_orders_are_the_released_ones() -> None:
    assert set(ORDERS) == {entry.name for entry in DETECTION}
    for name, (count, some) in ORDERS.items():
        classes = classes_of(benchmark(name))
        assert len(classes) == len(set(classes)) == count
        assert {i: classes[i] for i in some} == some
    assert sorted(c.lower() for c in classes_of(benchmark("dior"))) == sorted(classes_of(benchmark("dior_r")))


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_hold_the_released_numbers(name: str) -> None:
    c = recipe(name)
    steps, rate, decay, side, head, neck, quarters = RELEASED[name]
    assert (c.steps if steps else None, c.head_lr, c.backbone_lr) == (steps, rate, rate)
    assert (c.layer_decay, c.weight_decay, c.batch_size, c.micro_batch, c.clip_norm) == (decay, 0.05, 8, 1, 35)
    assert (c.detector.kind, c.neck.kind, c.features.kind) == (head, neck, "adapter")
    assert (c.warmup, c.warmup_from, c.seed) == (500, pytest.approx(1 / 3, abs=1e-6), 0)
    assert isinstance(c.schedule, StepSchedule)
    first = c.steps * 2 // 3  # epoch 8 of 12, 16 of 24
    assert [c.schedule.at(0, step, c.steps) for step in (0, first - 1, first, c.steps * 11 // 12)] == pytest.approx(
        [1, 1, 0.1, 0.01]
    )
    assert (c.augment.sizes, c.augment.keep_ratio) == ((side,), False)
    turned = (0.25, 0.25, 0.25, 180, 0.5) if head == "oriented_rcnn" else (0.5, 0, 0, 0, 0.5)
    a = c.augment
    assert (a.flip, a.flip_vertical, a.flip_diagonal, a.rotate, a.rotate_chance) == turned
    assert a.check_classes(classes_of(benchmark(name))) == quarters


def test_training_and_test_images_are_those_the_release_takes(tmp_path: Path) -> None:
    """DIOR trains on two lists, HRSC on train and val; RSAR's and SARDet's validation parts are not their test parts."""
    parts = {}
    for name in ("dior", "dior_r", "hrsc2016", "rsar", "sardet_100k", "dota_v2"):
        data = open_detection(data_of(benchmark(name), ready(name, tmp_path)))
        of = [[data.items[i].image for i in data.indices(split)] for split in ("train", "val", "test")]
        parts[name] = [{image.parent.name + "/" + image.stem for image in images} for images in of]
    trainval, tested = "JPEGImages-trainval/", "JPEGImages-test/"
    assert parts["dior"] == parts["dior_r"]
    assert parts["dior"][0] == {trainval + "00001", trainval + "00002", trainval + "00003"}
    assert parts["dior"][2] == {tested + "11726", tested + "11727"}
    assert parts["hrsc2016"] == [{"images/100000001", "images/100000003"}, set(), {"images/100000004"}]  # 2: no ship
    assert all(parts[name][1] for name in ("rsar", "sardet_100k"))
    assert {image.split("__")[0] for image in parts["dota_v2"][0]} == {"images/P0000", "images/P0001"}
    assert {image.split("__")[0] for image in parts["dota_v2"][2]} == {"images/P0003"}


def test_dota_trains_on_both_parts_as_its_header_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "recipes/finetune/dota_v2.yaml").read_text(encoding="utf-8")
    said = text.split("vitp finetune dota_v2 ... ")[1].split("\n")[0].split()
    root = ready("dota_v2", tmp_path)
    overrides = [*said, "data.test_fraction=0.4", f"data.root={root}", "backbone=x.safetensors"]
    config = load_finetune("dota_v2", overrides)
    assert isinstance(config, DetectConfig)
    data = open_detection(config.data)
    scenes = [{data.items[i].group for i in data.indices(split)} for split in ("train", "test")]
    assert scenes[0] | scenes[1] == {"P0000", "P0001", "P0003"}
    assert not scenes[0] & scenes[1]  # the patches of an image stay together


# ------------------------------------------------------------------------------------------------ what is missing


def test_what_is_missing_is_counted_by_what_it_is(tmp_path: Path) -> None:
    root = ready("dior_r", tmp_path / "a")
    (root / "Annotations/Oriented Bounding Boxes/00002.xml").unlink()
    (label,) = check_folder(benchmark("dior_r"), root).missing
    assert label.startswith("the label of 1 of 5 images; the first: ")
    assert "00002.xml does not exist" in label
    root = ready("dior", tmp_path / "b")
    (root / "ImageSets/Main/test.txt").unlink()
    (listed,) = check_folder(benchmark("dior"), root).missing
    assert listed == f"the list {root / 'ImageSets/Main/test.txt'}, which says what the test images are"
    root = ready("sardet_100k", tmp_path / "c")
    (root / "Annotations/val.json").unlink()
    (file,) = check_folder(benchmark("sardet_100k"), root).missing
    assert file == f"{root / 'Annotations/val.json'}, the labels of all val images"
    source = FAKES["dota_v2"](tmp_path / "DOTA")
    shown = "\n".join(check_folder(benchmark("dota_v2"), source).missing)
    assert "vitp prepare dota_v2 SOURCE data/dota_v2" in shown


def test_labels_of_another_version_and_odd_objects_are_told(tmp_path: Path) -> None:
    root = ready("dota_v2", tmp_path / "v2")
    (other,) = check_folder(benchmark("dota_v1"), root).missing
    assert "container-crane" in other
    ships = ready("rsar", tmp_path / "rsar")
    file = ships / "train/annfiles/0000000.txt"
    file.write_text(file.read_text() + "5 5 5 5 5 5 5 5 ship 0\n", encoding="utf-8")
    report = check_folder(benchmark("rsar"), ships)
    assert any(note.startswith("dropped: 1 ") and "0000000.txt:7" in note for note in report.notes), report.notes


def test_names_that_begin_alike_are_told_apart() -> None:
    assert benchmark("DIOR").name == "dior"
    assert benchmark("DIOR-R").name == "dior_r"
    assert benchmark("DOTA-v1").name == "dota_v1"
    assert benchmark("DOTA v1.5").name == "dota_v1_5"
    assert benchmark("ssdd").task == "segment"
    assert benchmark("SARDet").name == "sardet_100k"
    with pytest.raises(ConfigError, match="'dota' is no data set"):
        benchmark("dota")
