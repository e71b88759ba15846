"""Patches of scenes, as `vitp prepare dota_v1` cuts them: what is found in them is merged to the scenes they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

import vitp.commands.predict as command
from vitp.boxes.formats import from_polygon
from vitp.boxes.iou import rotated_iou
from vitp.boxes.objects import Detections
from vitp.commands.predict import predict
from vitp.errors import DataError
from vitp.inference.config import PredictConfig
from vitp.inference.finder import Finder
from vitp.inference.grid import make_grid
from vitp.metrics.dota_submission import read_submission

CLASSES = ("dim", "bright")
SIDE, OVERLAP = 96, 0.5
PIXEL = 0.02  # files hold two decimals


class Blocks:
    """Finds bright rectangles; `whole` leaves out those that its window may have cut. The larger, the surer."""

    def __init__(self, *, rotated: bool, whole: bool) -> None:
        self.rotated, self.whole, self.seen = rotated, whole, 0

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """See `vitp.inference.finder.ObjectModel`."""
        self.seen += len(images)
        return [self._one(image[0, :h, :w].numpy()) for image, (h, w) in zip(images, sizes, strict=True)]

    def _one(self, level: NDArray[np.uint8]) -> Detections:
        regions, count = ndimage.label(level > 60)
        boxes, scores, labels = [], [], []
        for number in range(1, count + 1):
            y, x = np.nonzero(regions == number)
            cut = min(x.min(), y.min()) == 0 or x.max() + 1 == level.shape[1] or y.max() + 1 == level.shape[0]
            if cut and self.whole:
                continue
            box = torch.tensor([x.min(), y.min(), x.max() + 1.0, y.max() + 1.0])
            if self.rotated:
                corners = box[[0, 1, 2, 1, 2, 3, 0, 3]].tolist()
                box = from_polygon(corners).float()
            boxes.append(box)
            scores.append(0.2 + len(x) / 2000)
            labels.append(int(level[y, x].mean() > 160))
        if not boxes:
            return Detections(
                torch.zeros(0, 5 if self.rotated else 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
            )
        return Detections(torch.stack(boxes), torch.tensor(scores), torch.tensor(labels))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Instead of the run's model one whose answer is known."""
    asked: dict[str, Any] = {"rotated": True, "whole": True}

    def load(_run: Path, config: PredictConfig) -> tuple[Finder, int]:
        blocks = Blocks(**asked)
        finder = Finder(blocks, CLASSES, torch.device("cpu"), asked["rotated"], window=SIDE, merge=0.1)
        return finder, SIDE

    monkeypatch.setattr(command, "is_detector", lambda _: True)
    monkeypatch.setattr(command, "load_finder", load)
    return asked


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.safetensors").write_bytes(b"weights")
    return tmp_path / "run"


def _scene(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Bars that are shorter than windows overlap, none at the border."""
    random = np.random.default_rng(seed)
    level = np.full((height, width), 10, dtype=np.uint8)
    for top in range(4, height - 44, 44):
        for left in range(4, width - 44, 44):
            high, wide = (int(n) for n in random.integers(6, 36, 2))
            y, x = top + int(random.integers(0, 40 - high)), left + int(random.integers(0, 40 - wide))
            level[y : y + high, x : x + wide] = random.choice([110, 220])
    return level


def _save(file: Path, level: NDArray[np.uint8]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(level[..., None], 3, 2)).save(file)
    return file


def _cut(level: NDArray[np.uint8], folder: Path, name: str) -> int:
    """The windows `vitp predict` looks at, each a file with its place in its name."""
    grid = make_grid(*level.shape, SIDE, OVERLAP)
    for row, top in enumerate(grid.rows.starts):
        for column, left in enumerate(grid.columns.starts):
            part = level[top : grid.rows.end(row), left : grid.columns.end(column)]
            _save(folder / f"{name}__{SIDE}__{left}___{top}.png", part)
    return grid.windows


def _sorted(found: Detections) -> NDArray[np.float64]:
    """Rows of label, score and box, in an order that does not depend on how they were found."""
    rows = torch.cat([found.labels[:, None], found.scores[:, None], found.boxes], 1).double().numpy()
    return rows[np.lexsort(np.round(rows[:, ::-1], 1).T)]


@pytest.mark.parametrize("rotated", [True, False])
def test_patches_give_what_the_scene_gives_whole(
    run: Path, tmp_path: Path, known: dict[str, Any], rotated: bool
) -> None:
    """The same windows, so the same finds: equal but for the two decimals of the files."""
    known["rotated"] = rotated
    config = PredictConfig(dota=True, overlap=OVERLAP, threshold=0.1, preview=0, polygons="geojson")
    scenes = {"P0001": _scene(230, 340, 1), "P0002.v2": _scene(200, 150, 2)}
    count = 0
    for name, level in scenes.items():
        _save(tmp_path / f"scenes/{name}.png", level)
        count += _cut(level, tmp_path / "patches/images", name)
    predict(run, tmp_path / "scenes", tmp_path / "whole", config=config)
    result = predict(run, tmp_path / "patches", tmp_path / "merged", config=config)
    task = 1 if rotated else 2
    zips = [tmp_path / f"{part}/task{task}.zip" for part in ("whole", "merged")]
    whole, merged = (read_submission(file, CLASSES, task=task) for file in zips)
    assert list(whole) == list(merged) == list(scenes)
    for name, level in scenes.items():
        assert len(whole[name]) == ndimage.label(level > 60)[1] > 5
        np.testing.assert_allclose(_sorted(merged[name]), _sorted(whole[name]), atol=PIXEL)
        ours, theirs = (
            json.loads((tmp_path / part / f"{name}.json").read_text(encoding="utf-8"))
            for part in ("merged/scenes", "whole")
        )
        assert ours["images"] == theirs["images"]  # the name, height and width of the scene
        key = "rotated_box" if rotated else "bbox"
        boxes = [np.sort([one[key] for one in found["annotations"]], axis=0) for found in (ours, theirs)]
        np.testing.assert_allclose(*boxes, atol=PIXEL)
        features = json.loads((tmp_path / f"merged/scenes/{name}.geojson").read_text(encoding="utf-8"))["features"]
        assert len(features) == len(whole[name])
    assert len(result.outputs) == count, "every patch keeps its own files"
    assert sorted(file.name for file in result.scenes if file.suffix == ".json") == [f"{name}.json" for name in scenes]
    assert any("merged from patches: 4 files" in line for line in result.lines())


def test_of_objects_that_patches_cut_no_more_than_pieces_are_left_over(
    run: Path, tmp_path: Path, known: dict[str, Any]
) -> None:
    """What a window shows of an object stays only where it overlaps the whole one by no more than the NMS threshold.

    Every object of the scene is among the finds of the patches, exactly (0.02 pixels); the finds beside them lie inside
    objects and cover no more than a tenth of one (merge NMS at 0.1, the benchmark's; whole scenes lose such pieces).
    """
    known["whole"] = False
    level = _scene(230, 340, 3)
    config = PredictConfig(dota=True, overlap=OVERLAP, threshold=0.1, preview=0)
    _cut(level, tmp_path / "patches", "P1")
    predict(run, _save(tmp_path / "P1.png", level), tmp_path / "whole", config=config)
    predict(run, tmp_path / "patches", tmp_path / "merged", config=config)
    whole, merged = (read_submission(tmp_path / f"{part}/task1.zip", CLASSES)["P1"] for part in ("whole", "merged"))
    gaps = (whole.boxes[:, None] - merged.boxes[None]).abs().amax(-1)
    assert gaps.amin(1).max() < PIXEL
    beside = merged.take(gaps.amin(0) >= PIXEL)
    shares = rotated_iou(beside.boxes, whole.boxes)  # of a piece inside an object: its share of the object
    assert len(beside) > 0, "the test is of nothing otherwise"
    assert shares.max() <= 0.1
    assert shares.max(1).values.min() > 0


def test_a_patch_that_cannot_be_read_costs_its_finds_alone(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    level = _scene(230, 340, 4)
    count = _cut(level, tmp_path / "patches", "P1")
    broken = sorted((tmp_path / "patches").iterdir())[0]
    broken.write_bytes(b"no picture")
    said: list[str] = []
    result = predict(
        run, tmp_path / "patches", tmp_path / "out", config=PredictConfig(dota=True, preview=0), say=said.append
    )
    assert list(result.failed) == [broken.name]
    assert (tmp_path / "out/scenes/P1.json").is_file()
    assert any(line.startswith(f"P1: merged without 1 of its {count} patches") for line in said)


def test_what_failed_as_a_whole_is_not_called_merged(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    """An image that is no patch, and a scene of which no patch can be read."""
    _save(tmp_path / "in/P1.png", _scene(90, 90, 5))
    for name in ("P2", "P3__96__0___0", "P3__96__48___0"):
        (tmp_path / f"in/{name}.png").write_bytes(b"no picture")
    said: list[str] = []
    result = predict(
        run, tmp_path / "in", tmp_path / "out", config=PredictConfig(dota=True, preview=0), say=said.append
    )
    assert len(result.failed) == 3
    assert [line for line in said if "submission" in line or "merged" in line] == [
        "P2: not in the submission, as it failed",
        "P3: not in the submission, as it failed",
    ]
    assert list(read_submission(tmp_path / "out/task1.zip", CLASSES)) == ["P1"]


def test_a_scene_whole_and_in_patches_is_refused_before_any_look(
    run: Path, tmp_path: Path, known: dict[str, Any]
) -> None:
    level = _scene(100, 100, 5)
    _cut(level, tmp_path / "in", "P1")
    _save(tmp_path / "in/P1.png", level)
    with pytest.raises(DataError, match="P1: is there whole and in patches"):
        predict(run, tmp_path / "in", tmp_path / "out", config=PredictConfig(dota=True))
    assert not (tmp_path / "out").exists()


def test_without_the_submission_patches_stay_patches(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    _cut(_scene(100, 100, 5), tmp_path / "in", "P1")
    result = predict(run, tmp_path / "in", tmp_path / "out", config=PredictConfig(preview=0))
    assert result.scenes == []
    assert not (tmp_path / "out/scenes").exists()
