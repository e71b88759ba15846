"""Objects of scenes: a detector whose answer is known (bright blobs), and what comes of it in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from rasterio.transform import Affine
from rasterio.warp import transform
from scipy import ndimage
from torch import Tensor

import vitp.commands.predict as command
from vitp.boxes.formats import from_polygon, to_quads, to_xyxy
from vitp.boxes.iou import rotated_iou
from vitp.boxes.objects import Detections
from vitp.commands.predict import predict
from vitp.errors import ConfigError, DataError
from vitp.inference.config import PredictConfig
from vitp.inference.finder import Finder
from vitp.metrics.dota_submission import read_submission

CLASSES = ("dim", "bright")
PLACE = Affine(0.5, 0.1, 500_000.0, 0.1, -0.5, 5_000_000.0)


class Blobs:
    """Every connected region above 60 is an object; above 160 it is of class 1. The larger, the surer."""

    def __init__(self, *, rotated: bool = False, masks: bool = False) -> None:
        self.rotated, self.masks, self.calls = rotated, masks, 0

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """See `vitp.inference.finder.ObjectModel`."""
        self.calls += 1
        return [self._one(image[0, :h, :w].numpy()) for image, (h, w) in zip(images, sizes, strict=True)]

    def _one(self, level: NDArray[np.uint8]) -> Detections:
        regions, count = ndimage.label(level > 60)
        boxes, scores, labels, masks = [], [], [], []
        for number in range(1, count + 1):
            y, x = np.nonzero(regions == number)
            if len(x) < 12:
                continue
            pixels = np.concatenate([np.stack([x + dx, y + dy], 1) for dx in (0, 1) for dy in (0, 1)])
            box = from_polygon(pixels.astype(float).ravel().tolist())
            upright = torch.tensor([x.min(), y.min(), x.max() + 1.0, y.max() + 1.0])
            boxes.append(box.float() if self.rotated else upright.float())
            scores.append(min(0.99, 0.2 + len(x) / 2000))
            labels.append(int(level[y, x].mean() > 160))
            masks.append(torch.ones(28, 28))
        if not boxes:
            return Detections(torch.zeros(0, 5 if self.rotated else 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64),
                              torch.zeros(0, 28, 28) if self.masks else None)  # fmt: skip
        return Detections(
            torch.stack(boxes), torch.tensor(scores), torch.tensor(labels), torch.stack(masks) if self.masks else None
        )


def _finder(**changes: Any) -> Finder:
    rotated, masks = changes.pop("rotated", False), changes.pop("masks", False)
    return Finder(
        Blobs(rotated=rotated, masks=masks), CLASSES, torch.device("cpu"), rotated, **{"threshold": 0.1, **changes}
    )


def _scene(height: int, width: int, seed: int = 0, longest: float = 40.0) -> tuple[NDArray[np.uint8], int]:
    """Bright and dim bars at all angles that do not touch, on dark ground; how many."""
    random = np.random.default_rng(seed)
    picture = Image.new("L", (width, height), 10)
    pen, count = ImageDraw.Draw(picture), 0
    for top in range(0, height - 50, 50):
        for left in range(0, width - 50, 50):
            if random.random() < 0.4:
                continue
            angle, long, short = random.uniform(-1.5, 1.5), random.uniform(20, longest), random.uniform(6, 12)
            box = torch.tensor([left + 25.0, top + 25.0, long, short, angle])
            corners = [(float(x), float(y)) for x, y in to_quads(box)]
            pen.polygon(corners, fill=int(random.choice([110, 220])))
            count += 1
    return np.repeat(np.asarray(picture)[None], 3, 0), count


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("flips", ["horizontal", "all"])
def test_a_mirrored_look_finds_the_same(rotated: bool, flips: Any) -> None:
    pixels, count = _scene(160, 210)
    windows = torch.from_numpy(pixels.copy())[None]
    (plain,) = _finder(rotated=rotated).find(windows)
    (augmented,) = _finder(rotated=rotated, flips=flips).find(windows)
    assert len(plain) == len(augmented) == count
    nearest = (plain.boxes[:, None, :2] - augmented.boxes[None, :, :2]).abs().sum(-1).argmin(1)
    if rotated:
        assert rotated_iou(plain.boxes, augmented.boxes[nearest]).diagonal().min() > 0.98
    else:
        assert torch.equal(plain.boxes, augmented.boxes[nearest])


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Instead of the run's model one whose answer is known; what is put in here changes it."""
    changes: dict[str, Any] = {}

    def load(_run: Path, config: PredictConfig) -> tuple[Finder, int | None]:
        asked: dict[str, Any] = {"scales": config.scales, "flips": config.flips}
        if config.threshold is not None:
            asked["threshold"] = config.threshold
        if "finder" not in changes:
            changes["finder"] = _finder(**asked, **changes)
        return changes["finder"], 96

    monkeypatch.setattr(command, "is_detector", lambda _: True)
    monkeypatch.setattr(command, "load_finder", load)
    return changes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.safetensors").write_bytes(b"weights")
    return tmp_path / "run"


def _picture(path: Path, pixels: NDArray[np.uint8]) -> Path:
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return path


def _tiff(path: Path, values: NDArray[Any], **changes: Any) -> Path:
    profile = {"driver": "GTiff", "count": values.shape[0], "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype, "crs": "EPSG:32633", "transform": PLACE}
    with rasterio.open(path, "w", **(profile | changes)) as dataset:
        dataset.write(values)
    return path


@pytest.mark.parametrize("rotated", [False, True])
def test_windows_find_what_one_look_at_the_whole_finds(
    rotated: bool, run: Path, tmp_path: Path, known: dict[str, Any]
) -> None:
    known["rotated"] = rotated
    pixels, count = _scene(430, 520, seed=3)
    (whole,) = _finder(rotated=rotated).find(torch.from_numpy(pixels.copy())[None])
    assert len(whole) == count
    predict(run, _picture(tmp_path / "a.png", pixels), tmp_path / "out", config=PredictConfig(window=128, overlap=0.4))
    found = COCO(str(tmp_path / "out/a.json"))
    records = list(found.anns.values())
    assert len(records) == count
    truth = sorted(to_xyxy(whole.boxes).tolist() if rotated else whole.boxes.tolist())
    boxes = sorted([x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in records))
    assert np.allclose(boxes, truth, atol=0.02)
    assert [r["score"] for r in records] == sorted((r["score"] for r in records), reverse=True)
    if rotated:
        again = torch.tensor([r["rotated_box"] for r in records])
        corners = torch.tensor([r["segmentation"][0] for r in records])
        assert torch.allclose(to_quads(again).flatten(1), corners, atol=0.03)


def test_outlines_lie_on_the_ground(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    known["rotated"] = True
    pixels, count = _scene(300, 260, seed=1)
    scene = _tiff(tmp_path / "scene.tif", pixels)
    result = predict(run, scene, tmp_path / "out", config=PredictConfig(window=128, overlap=0.4, polygons="geojson"))
    assert [f.name for f in result.outputs["scene.tif"]] == ["scene.json", "scene.geojson", "scene_preview.png"]
    features = json.loads((tmp_path / "out/scene.geojson").read_text(encoding="utf-8"))["features"]
    records = json.loads((tmp_path / "out/scene.json").read_text(encoding="utf-8"))["annotations"]
    assert len(features) == len(records) == count
    for feature, record in zip(features, records, strict=True):
        x, y = np.array(record["segmentation"][0]).reshape(4, 2).T
        there = [PLACE * pair for pair in zip(x, y, strict=True)]
        lon, lat = transform("EPSG:32633", "EPSG:4326", [p[0] for p in there], [p[1] for p in there])
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert np.allclose(ring[:4], np.stack([lon, lat], 1), atol=1e-6)
        assert np.array_equal(ring[0], ring[4])
        assert feature["properties"]["class"] == CLASSES[record["category_id"] - 1]
        assert feature["properties"]["score"] == record["score"]


def test_nodata_is_not_looked_at(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    pixels = np.zeros((3, 256, 256), dtype=np.uint8)
    predict(run, _tiff(tmp_path / "empty.tif", pixels, nodata=0), tmp_path / "out", config=PredictConfig(window=64))
    assert known["finder"].model.calls == 0
    assert json.loads((tmp_path / "out/empty.json").read_text(encoding="utf-8"))["annotations"] == []


def test_a_killed_call_goes_on_and_ends_with_the_same_bytes(
    run: Path, tmp_path: Path, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = _scene(500, 300, seed=5)
    scene = _picture(tmp_path / "a.png", pixels)
    config = PredictConfig(window=96, overlap=0.4, preview=100)
    predict(run, scene, tmp_path / "whole", config=config)
    complete = known["finder"].model.calls

    def stop(done: int, _total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    monkeypatch.setattr("vitp.inference.partial._SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        predict(run, scene, tmp_path / "out", config=config, progress=stop)
    assert not (tmp_path / "out/a.json").exists()
    before = known["finder"].model.calls
    lines: list[str] = []
    predict(run, scene, tmp_path / "out", config=config, say=lines.append)
    assert any("going on after" in line for line in lines)
    assert known["finder"].model.calls - before < complete
    for name in ("a.json", "a_preview.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "out").glob(".*"))


def test_a_folder_gives_one_list_of_all(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    (tmp_path / "in/b").mkdir(parents=True)
    counts = {}
    for name, seed in (("a.png", 1), ("b/a.png", 2)):
        pixels, counts[name] = _scene(150, 200, seed=seed)
        _picture(tmp_path / "in" / name, pixels)
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    result = predict(run, tmp_path / "in", tmp_path / "out", config=PredictConfig(window=128, overlap=0.4))
    assert list(result.failed) == ["broken.png"]
    found = COCO(str(tmp_path / "out/detections.json"))
    assert {i["file_name"]: len(found.getAnnIds(imgIds=[i["id"]])) for i in found.imgs.values()} == counts
    assert len(found.anns) == sum(counts.values())


def test_masks_are_runs_of_the_whole_picture(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    known["masks"] = True
    pixels = np.full((3, 120, 150), 10, dtype=np.uint8)
    pixels[:, 20:50, 30:90] = 200
    predict(run, _picture(tmp_path / "a.png", pixels), tmp_path / "out")
    found = COCO(str(tmp_path / "out/a.json"))
    (record,) = found.anns.values()
    assert np.array_equal(found.annToMask(record).astype(bool), pixels[0] > 60)
    assert record["area"] == 30 * 60


def test_a_submission_holds_every_box(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    known["rotated"] = True
    pixels, count = _scene(200, 200, seed=4)
    predict(run, _picture(tmp_path / "P0001.png", pixels), tmp_path / "out", config=PredictConfig(dota=True))
    (found,) = read_submission(tmp_path / "out/task1.zip", CLASSES).values()
    records = json.loads((tmp_path / "out/P0001.json").read_text(encoding="utf-8"))["annotations"]
    assert len(found) == len(records) == count
    boxes = torch.tensor([record["rotated_box"] for record in records])
    assert (rotated_iou(found.boxes, boxes).max(1).values > 0.99).all()


def test_mistakes_are_said_in_a_sentence(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    pixels, _ = _scene(100, 100)
    scene = _picture(tmp_path / "a.png", pixels)
    with pytest.raises(ConfigError, match=r"single images, not pairs"):
        predict(run, scene, tmp_path / "out", after=scene)
    (tmp_path / "v.nii").write_bytes(b"")
    with pytest.raises(DataError, match="is a volume"):
        predict(run, tmp_path / "v.nii", tmp_path / "out")
    with pytest.raises(ConfigError, match="probabilities"):
        predict(run, scene, tmp_path / "out", ["probabilities=true"])
