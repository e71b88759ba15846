"""Data sets of procedural scenes on disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.datasets.folder import read_label_list
from vitp.demo.scenes import (
    CLASSES,
    PALETTE,
    SceneConfig,
    draw_pair,
    draw_scene,
    instructions,
    write_dataset,
    write_pairs,
)
from vitp.errors import OutputError
from vitp.instruction.records import parse_record


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    config = SceneConfig(size=48)
    seen: list[tuple[int, int]] = []
    write_dataset(tmp_path / "one", 35, 3, config, first_index=100, progress=lambda *at: seen.append(at))
    write_dataset(tmp_path / "two", 35, 3, config, first_index=100, workers=2)
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert one == two
    assert seen[-1] == (35, 35)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {"images/000100.png", "masks/000134.png", "coco.json", "labels.csv", "classes.json"} <= set(one)
    assert len(one) == 2 * 35 + 4


def test_the_files_agree_with_the_scenes_and_with_their_readers(tmp_path: Path) -> None:
    config = SceneConfig(size=64, theme="port")
    files = write_dataset(tmp_path, 5, 9, config, turns_per_image=4, image_format="jpeg")
    coco = json.loads(files.coco.read_text())
    lines = files.instructions.read_text().splitlines()
    labelled = read_label_list(files.labels, files.root)
    assert [(file.name, label) for file, label, _ in labelled] == [(f"{i:06d}.jpg", "port") for i in range(5)]
    assert json.loads(files.classes.read_text())["classes"] == list(CLASSES)
    with files.labels.open(newline="") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == [i["file_name"] for i in coco["images"]]
    for index in range(5):
        scene = draw_scene(9, index, config)
        with Image.open(files.masks / f"{index:06d}.png") as mask:
            assert mask.mode == "P"
            assert np.array_equal(np.asarray(mask), scene.mask)
            assert mask.getpalette()[: 3 * len(CLASSES)] == PALETTE.ravel().tolist()
        with Image.open(files.images / f"{index:06d}.jpg") as image:
            assert np.abs(np.asarray(image).astype(int) - scene.image).mean() < 4
        sample = parse_record(json.loads(lines[index]), f"instructions.jsonl:{index + 1}")
        assert sample.images == (f"images/{index:06d}.jpg",)
        asked = instructions(scene, 9, index, 4)
        assert [t.text for t in sample.turns[1::2]] == [answer for _, answer, _ in asked]
        assert sample.turns[0].text == f"<image>\n{asked[0][0]}"
        boxes = [a for a in coco["annotations"] if a["image_id"] == index]
        assert [coco["categories"][a["category_id"] - 1]["name"] for a in boxes] == [
            i.category for i in scene.instances
        ]
        for a, instance in zip(boxes, scene.instances, strict=True):
            x, y, w, h = a["bbox"]
            assert (x, y, x + w, y + h) == pytest.approx(instance.bbox, abs=0.02)
            assert a["obb"] == pytest.approx(instance.obb, abs=0.01)
            assert 0 < a["area"] <= w * h + 0.5
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])


def test_pairs_on_disk(tmp_path: Path) -> None:
    config = SceneConfig(size=48, theme="storage", change_probability=0.5)
    files = write_pairs(tmp_path, 3, 4, config)
    for index in range(3):
        pair = draw_pair(4, index, config)
        name = f"{index:06d}.png"
        assert np.array_equal(np.asarray(Image.open(files.before / name)), pair.before.image)
        assert np.array_equal(np.asarray(Image.open(files.after / name)), pair.after.image)
        assert np.array_equal(np.asarray(Image.open(files.label / name)), pair.change)


def test_a_killed_run_leaves_no_finished_data_set_and_can_be_repeated(tmp_path: Path) -> None:
    config = SceneConfig(size=32)

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "a", 20, 0, config, progress=stop)
    assert not (tmp_path / "a" / "instructions.jsonl").exists()
    (tmp_path / "a" / "images" / ".000003.png.1.tmp").write_bytes(b"half")
    write_dataset(tmp_path / "a", 20, 0, config)
    write_dataset(tmp_path / "b", 20, 0, config)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with pytest.raises(OutputError, match="already holds"):
        write_dataset(tmp_path / "a", 20, 0, config)


def test_an_unusable_place_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (write_dataset, write_pairs):
        with pytest.raises(OutputError, match="choose another"):
            write(tmp_path / "file" / "out", 2, 0, SceneConfig(size=32))
