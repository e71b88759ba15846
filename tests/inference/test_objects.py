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
from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.boxes.formats import from_polygon, to_quads, to_xyxy
from vitp.boxes.iou import rotated_iou
from vitp.boxes.objects import Detections
from vitp.commands.predict import predict
from vitp.datasets.object_transforms import ObjectAugmentConfig
from vitp.errors import ConfigError, DataError, OutputError
from vitp.inference.config import PredictConfig
from vitp.inference.finder import Finder
from vitp.inference.load_finder import load_finder, whole_up_to
from vitp.metrics.dota_submission import read_submission
from vitp.tasks.detect import DetectorParts, ObjectInference, Shown, build_detector, save_detector

CLASSES = ("dim", "bright")
PLACE = Affine(0.5, 0.1, 500_000.0, 0.1, -0.5, 5_000_000.0)


class Blobs:
    """Every connected region above 60 is an object; above 160 it is of class 1. The larger, the surer."""

    def __init__(self, *, rotated: bool = False, masks: bool = False, cells: Tensor | None = None) -> None:
        self.rotated, self.masks, self.calls = rotated, masks, 0
        self.cells = torch.ones(28, 28) if cells is None else cells

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
            masks.append(self.cells)
        if not boxes:
            return Detections(torch.zeros(0, 5 if self.rotated else 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64),
                              torch.zeros(0, 28, 28) if self.masks else None)  # fmt: skip
        return Detections(
            torch.stack(boxes), torch.tensor(scores), torch.tensor(labels), torch.stack(masks) if self.masks else None
        )


def _finder(**changes: Any) -> Finder:
    rotated = changes.pop("rotated", False)
    blobs = Blobs(rotated=rotated, masks=changes.pop("masks", False), cells=changes.pop("cells", None))
    return Finder(blobs, CLASSES, torch.device("cpu"), rotated, **{"threshold": 0.1, **changes})


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


class Watching:
    """Finds nothing and keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.sizes: list[tuple[int, int]] = []

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """See `vitp.inference.finder.ObjectModel`."""
        self.seen += images.clone().unbind()
        self.sizes += sizes
        return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in images]


STRETCHED = ObjectAugmentConfig(size=96)


@pytest.mark.parametrize(
    ("window", "size", "shown", "sizes"),
    [
        (None, (60, 200), (96, 96), [(96, 96)]),  # whole, as a model that was trained on stretched images is scored
        (96, (60, 80), (96, 96), [(60, 80)]),  # filled up where it is smaller than a window
        (96, (60, 200), (96, 96), [(60, 96)] * 3),
        (48, (48, 48), (96, 96), [(96, 96)]),  # patches of 48 pixels, which training enlarged to 96
    ],
)
def test_windows_are_shown_as_they_are_cut(
    window: int | None, size: tuple[int, int], shown: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    zoom = 1.0 if window is None else 96 / window
    model, fill = Watching(), (0.5, 0.25, 0.75)
    finder = Finder(model, CLASSES, torch.device("cpu"), False, augment=STRETCHED, window=window, zoom=zoom, fill=fill)
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    finder.find_in(image)
    assert {tuple(seen.shape[-2:]) for seen in model.seen} == {shown}
    assert model.sizes == sizes
    first, (height, width) = model.seen[0], model.sizes[0]
    if window == 96:
        assert torch.equal(first[:, :height, :width], image[:, :height, :width])
        assert first[:, height:].flatten(1).unique(dim=1).flatten().tolist() == [128, 64, 191]


def test_what_is_beside_a_picture_is_the_mean_colour_in_every_view() -> None:
    model = Watching()
    finder = Finder(model, CLASSES, torch.device("cpu"), False, fill=(0.5, 0.25, 0.75), flips="all")
    finder.find_in(torch.full((3, 40, 50), 9, dtype=torch.uint8))
    assert model.sizes == [(40, 50)] * 4
    for seen in model.seen:
        assert seen.shape == (3, 64, 64)
        for outside in (seen[:, 40:], seen[:, :, 50:]):
            assert outside.flatten(1).unique(dim=1).flatten().tolist() == [128, 64, 191]


TINY = {"architecture": "vit_tiny_patch16_224", "image_size": 64, "patch_size": 8, "width": 24, "depth": 1, "heads": 3}


def _run(folder: Path, size: int, inference: ObjectInference) -> Path:
    """A folder with an untrained detector that is shown pictures stretched to `size`."""
    parts = {
        "neck": {"kind": "simple_fpn", "channels": 16},
        "detector": {"kind": "faster_rcnn", "rpn": {"channels": 16}, "roi": {"width": 16}},
    }
    backbone = random_backbone(BackboneConfig.model_validate(TINY), seed=0)
    model = build_detector(backbone, CLASSES, 0, DetectorParts.model_validate(parts))
    shown = Shown(augment=ObjectAugmentConfig(size=size), inference=inference)
    save_detector(folder / "model.safetensors", model, shown)
    return folder


def test_what_a_run_was_scored_with_is_what_it_predicts_with(tmp_path: Path) -> None:
    kept = ObjectInference(window=128, scales=(0.5, 1.0), flips="horizontal", threshold=0.4)
    run = _run(tmp_path, 64, kept)
    finder, side = load_finder(run, PredictConfig())
    assert (side, finder.window, finder.zoom) == (128, 128, 0.5)
    assert (finder.scales, finder.flips, finder.threshold) == ((0.5, 1.0), "horizontal", 0.4)
    assert whole_up_to(finder, PredictConfig(), side) == 0
    assert finder.in_windows(300).zoom == 0.5  # the scale it was trained at, however much it looks at
    asked = PredictConfig(scales=(1.0,), flips="none", threshold=0.7, dota=True)
    finder, _ = load_finder(run, asked)
    assert (finder.scales, finder.flips, finder.threshold) == ((1.0,), "none", 0.7)
    assert load_finder(run, PredictConfig(dota=True))[0].threshold == 0  # average precision counts the tail


def test_a_run_on_whole_images_takes_larger_ones_apart(tmp_path: Path) -> None:
    finder, side = load_finder(_run(tmp_path, 64, ObjectInference()), PredictConfig())
    assert (side, finder.window, finder.threshold) == (64, None, 0.3)
    assert whole_up_to(finder, PredictConfig(), side) == 128
    assert finder.in_windows(64).zoom == 1
    asked = PredictConfig(window=32)
    assert whole_up_to(finder, asked, 32) == 0
    assert finder.in_windows(32).zoom == 2


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


def test_outlines_of_masks_are_those_of_their_pixels(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    shape = torch.zeros(28, 28)
    shape[:, :9], shape[18:] = 1.0, 1.0  # an L, not the box around it
    known["masks"], known["cells"] = True, shape
    pixels = np.full((3, 120, 150), 10, dtype=np.uint8)
    pixels[:, 20:48, 30:58] = 200
    config = PredictConfig(polygons="geojson")
    predict(run, _picture(tmp_path / "a.png", pixels), tmp_path / "out", config=config)
    found = COCO(str(tmp_path / "out/a.json"))
    (record,) = found.anns.values()
    (feature,) = json.loads((tmp_path / "out/a.geojson").read_text(encoding="utf-8"))["features"]
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    canvas = Image.new("1", (1500, 1200))
    ImageDraw.Draw(canvas).polygon([(10 * x, 10 * y) for x, y in ring], fill=1)
    assert np.array_equal(np.asarray(canvas)[5::10, 5::10], found.annToMask(record).astype(bool))
    assert record["area"] < 28 * 28 * 0.7


@pytest.mark.parametrize("damage", ["no zip", "cut short", "an array is missing"])
def test_a_damaged_row_of_finds_is_one_sentence(
    run: Path, tmp_path: Path, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    pixels, _ = _scene(500, 300, seed=5)
    scene, config = _picture(tmp_path / "a.png", pixels), PredictConfig(window=96, overlap=0.4, preview=0)

    def stop(done: int, _total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    monkeypatch.setattr("vitp.inference.partial._SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        predict(run, scene, tmp_path / "out", config=config, progress=stop)
    row = tmp_path / "out/.a.partial/row_000000.npz"
    whole = row.read_bytes()
    if damage == "no zip":
        row.write_bytes(b"PK" + bytes(200))
    elif damage == "cut short":
        row.write_bytes(whole[: len(whole) // 2])
    else:
        np.savez(row, boxes=np.zeros((0, 4)))
    with pytest.raises(OutputError, match=r"row_000000\.npz is damaged; delete"):
        predict(run, scene, tmp_path / "out", config=config)


def test_upright_boxes_are_another_task(run: Path, tmp_path: Path, known: dict[str, Any]) -> None:
    pixels, count = _scene(150, 200, seed=4)
    (tmp_path / "in").mkdir()
    _picture(tmp_path / "in/P1.v2.png", pixels)
    result = predict(run, tmp_path / "in", tmp_path / "out", config=PredictConfig(dota=True))
    found = read_submission(tmp_path / "out/task2.zip", CLASSES, task=2)
    assert {name: len(own) for name, own in found.items()} == {"P1.v2": count}
    assert result.together == [tmp_path / "out/detections.json", tmp_path / "out/task2.zip"]
    assert list(result.outputs) == ["P1.v2.png"]
    assert result.to_json()["together"] == [str(file) for file in result.together]
    assert "task2.zip" in result.lines()[0]


@pytest.mark.parametrize(("names", "sentence"), [(("a.png", "b/a.png"), "has the name of"), (("a b.png",), "blank")])
def test_names_that_cannot_stand_in_a_submission_are_said_before_any_look(
    run: Path, tmp_path: Path, known: dict[str, Any], names: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "in/b").mkdir(parents=True)
    for name in names:
        _picture(tmp_path / "in" / name, _scene(60, 60)[0])
    for _ in range(2):
        with pytest.raises(DataError, match=sentence):
            predict(run, tmp_path / "in", tmp_path / "out", config=PredictConfig(dota=True))
    assert known["finder"].model.calls == 0
    assert not (tmp_path / "out").exists()
    predict(run, tmp_path / "in", tmp_path / "out")


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
