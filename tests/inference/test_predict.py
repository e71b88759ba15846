"""The command: files in, files with the same place on the ground or in the body out; mistakes in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine
from torch import Tensor, nn
from typer.testing import CliRunner

import vitp.commands.predict as command
from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.cli import app
from vitp.commands.finetune import FinetuneConfig
from vitp.commands.predict import predict
from vitp.config import save
from vitp.errors import CheckpointError, ConfigError, DataError, OutputError, VitpError
from vitp.inference.config import PredictConfig
from vitp.inference.model import Predictor
from vitp.tasks.segment import InferenceConfig, SegmenterParts, build_segmenter, save_segmenter

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2)
CLASSES = ("dark", "bright")
PLACE = Affine(0.5, 0.1, 500_000.0, 0.1, -0.5, 5_000_000.0)  # turned: six numbers to keep
SMALL = PredictConfig(window=64, preview=0)


class Threshold(nn.Module):
    """Bright pixels are class 1; of pairs, pixels that became brighter."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3 or 6, h, w] to [B, 2, h, w]."""
        level = images[:, -1].float() - (images[:, 0].float() if images.shape[1] == 6 else 0)
        return torch.stack([torch.full_like(level, 127.5), level], 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_segmenter(
        folder / "model.safetensors", build_segmenter(random_backbone(TINY, 0), CLASSES, 0), InferenceConfig(window=64)
    )
    return folder


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the run's model one whose answer is known."""
    monkeypatch.setattr(
        command, "load_predictor", lambda *_, **__: (Predictor(Threshold(), CLASSES, torch.device("cpu")), 64)
    )


def _pixels(height: int = 150, width: int = 200, seed: int = 0) -> NDArray[np.uint8]:
    blocks = np.random.default_rng(seed).integers(1, 255, (3, -(-height // 8), -(-width // 8)), dtype=np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def _tiff(path: Path, values: NDArray[Any], **changes: Any) -> Path:
    profile = {"driver": "GTiff", "count": values.shape[0], "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype, "crs": "EPSG:32633", "transform": PLACE}
    with rasterio.open(path, "w", **(profile | changes)) as dataset:
        dataset.write(values)
    return path


def test_a_geotiff_keeps_its_georeference_and_its_holes(run: Path, tmp_path: Path, bright: None) -> None:
    pixels = _pixels(600, 700)
    pixels[:, :, :130] = 0
    scene = _tiff(tmp_path / "scene.v1.tif", pixels, nodata=0)
    config = PredictConfig(window=128, probabilities=True, polygons="geojson", preview=100)
    result = predict(run, scene, tmp_path / "out", config=config)
    files = [file.name for file in result.outputs["scene.v1.tif"]]
    assert files == ["scene.v1.tif", "scene.v1_probabilities.tif", "scene.v1.geojson", "scene.v1_preview.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*files, "predict.json"])
    with rasterio.open(tmp_path / "out/scene.v1.tif") as found, rasterio.open(scene) as source:
        assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        assert (found.nodata, found.profile["tiled"], found.overviews(1)) == (255, True, [2])
        assert found.tags()["CLASS_1"] == "bright"
        assert found.colormap(1)[0][:3] == (0, 0, 0)
        ids = found.read(1)
    assert (ids[:, :130] == 255).all()
    assert np.array_equal(ids[:, 130:], (pixels[2] >= 128)[:, 130:])
    with rasterio.open(tmp_path / "out/scene.v1_probabilities.tif") as found:
        assert found.descriptions == CLASSES
        shares = found.read() * found.scales[0]
        assert np.allclose(shares.sum(0)[:, 130:], 1, atol=0.01)
    with Image.open(tmp_path / "out/scene.v1_preview.png") as picture:
        assert max(picture.size) == 2 * 100 + 4


def test_polygons_cover_the_class_and_lie_on_it(run: Path, tmp_path: Path, bright: None) -> None:
    pixels = np.full((3, 60, 80), 10, dtype=np.uint8)
    pixels[:, 10:20, 30:50] = 200
    pixels[:, 14:16, 34:36] = 10  # a hole
    pixels[:, 50, 70] = 200
    scene = _tiff(tmp_path / "a.tif", pixels)
    predict(run, scene, tmp_path / "out", config=PredictConfig(polygons="geojson", min_polygon=2))
    (feature,) = json.loads((tmp_path / "out/a.geojson").read_text(encoding="utf-8"))["features"]
    assert feature["properties"] == {"class": "bright", "id": 1, "pixels": 196}
    ring, hole = feature["geometry"]["coordinates"]
    from rasterio.warp import transform

    x, y = transform("EPSG:4326", "EPSG:32633", *np.array(ring).T.tolist())
    columns, rows = ~PLACE @ (np.array(x), np.array(y))
    assert (round(columns.min()), round(columns.max()), round(rows.min()), round(rows.max())) == (30, 50, 10, 20)
    assert len(hole) == 5


def test_a_cog_is_a_cog(run: Path, tmp_path: Path, bright: None) -> None:
    scene = _tiff(tmp_path / "a.tif", _pixels(700, 1100))
    predict(run, scene, tmp_path / "out", config=PredictConfig(window=256, format="cog", preview=0))
    with rasterio.open(tmp_path / "out/a.tif") as found:
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.overviews(1)
        assert (found.transform, found.nodata) == (PLACE, 255)
        assert np.array_equal(found.read(1), _pixels(700, 1100)[2] >= 128)


def test_a_killed_prediction_ends_with_the_bytes_of_one_that_was_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitp.inference.partial._SECONDS", 0.0)
    scene = _tiff(tmp_path / "a.tif", _pixels(300, 140))
    config = PredictConfig(window=64, overlap=0.5, probabilities=True, preview=60)
    whole = predict(run, scene, tmp_path / "whole", config=config).outputs["a.tif"]

    def killed(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(run, scene, tmp_path / "again", config=config, progress=killed)
    assert [p.name for p in (tmp_path / "again").iterdir()] == [".a.partial"]
    (tmp_path / "again/.a.partial/classes.raw").open("r+b").truncate(150 * 140 + 7)  # what a power cut may leave behind
    said: list[str] = []
    counts: list[int] = []
    again = predict(
        run, scene, tmp_path / "again", config=config, say=said.append, progress=lambda done, _: counts.append(done)
    )
    assert any("going on after" in line for line in said)
    assert len(counts) < 40
    for one, two in zip(whole, again.outputs["a.tif"], strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    assert not (tmp_path / "again/.a.partial").exists()


def test_another_setting_does_not_go_on_with_a_killed_prediction(run: Path, tmp_path: Path) -> None:
    scene = _tiff(tmp_path / "a.tif", _pixels())

    def killed(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(run, scene, tmp_path / "out", config=SMALL, progress=killed)
    with pytest.raises(OutputError, match=r"unfinished prediction made otherwise \(overlap changed\)"):
        predict(run, scene, tmp_path / "out", ["window=64", "overlap=0.5", "preview=0"])
    predict(run, scene, tmp_path / "out", ["window=64", "overlap=0.5", "preview=0"], overwrite=True)


def test_pictures_become_palette_pictures(run: Path, tmp_path: Path, bright: None) -> None:
    pixels = _pixels(40, 50)
    Image.fromarray(pixels[2]).save(tmp_path / "grey.png")
    said: list[str] = []
    config = PredictConfig(colours=["#102030", "#ff0080"], probabilities=True)
    result = predict(run, tmp_path / "grey.png", tmp_path / "out", config=config, say=said.append)
    with Image.open(tmp_path / "out/grey.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), pixels[2] >= 128)
        assert picture.getpalette()[:6] == [16, 32, 48, 255, 0, 128]  # type: ignore[index]
    assert len(result.outputs["grey.png"]) == 3
    assert any("one channel" in line for line in said)
    assert any("smaller than the window of 64" in line for line in said)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_bands_are_scaled_alike_in_every_window(run: Path, tmp_path: Path, bright: None, dtype: str) -> None:
    ramp = np.broadcast_to(np.linspace(1000, 3000, 300), (1, 200, 300)).astype(dtype)
    said: list[str] = []
    predict(run, _tiff(tmp_path / "a.tif", ramp), tmp_path / "out", config=SMALL, say=said.append)
    with rasterio.open(tmp_path / "out/a.tif") as found:
        ids = found.read(1)
    edges = np.diff(ids.astype(int), axis=1)
    assert (np.count_nonzero(edges, axis=1) == 1).all()  # windows with limits of their own would each have an edge
    assert abs(int(np.argmax(edges[0])) - 150) <= 2
    assert any("grey" in line for line in said)
    assert any("percentiles" in line for line in said)


# ---------------------------------------------------------------------------------------------------------------- pairs


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("change")
    model = build_segmenter(random_backbone(TINY, 0), ("unchanged", "changed"), 0, SegmenterParts(fusion="concat"))
    save_segmenter(folder / "model.safetensors", model, InferenceConfig(window=64))
    return folder


def test_two_dates_go_through_a_change_detector(detector: Path, tmp_path: Path) -> None:
    before, after = _tiff(tmp_path / "a.tif", _pixels()), _tiff(tmp_path / "b.tif", _pixels(seed=1), nodata=77)
    predict(detector, before, tmp_path / "out", after=after, config=SMALL)
    with rasterio.open(tmp_path / "out/a.tif") as found:
        assert found.transform == PLACE
        ids = found.read(1)
    missing = (_pixels(seed=1) == 77).any(axis=0)
    assert missing.any()
    assert np.array_equal(ids == 255, missing)
    from vitp.tasks.segment import load_change

    model, _ = load_change(detector)
    pair = torch.from_numpy(np.concatenate([_pixels(), _pixels(seed=1)]))
    pair[:, torch.from_numpy(missing)] = 0
    predict(
        detector, before, tmp_path / "whole", after=after, config=PredictConfig(window=200, preview=0, precision="fp32")
    )
    with rasterio.open(tmp_path / "whole/a.tif") as found, torch.no_grad():
        pair[:3] = torch.from_numpy(_pixels())
        assert np.mean(found.read(1)[~missing] == model(pair[None])[0].argmax(0).numpy()[~missing]) > 0.999
    with pytest.raises(ConfigError, match=r"compares two dates; give the second one with --after"):
        predict(detector, before, tmp_path / "one", config=SMALL)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"crs": "EPSG:32634"}, "coordinate system EPSG:32633 and EPSG:32634"),
        ({"transform": PLACE @ Affine.translation(1, 0)}, "1.00 pixels apart"),
        ({"transform": PLACE @ Affine.scale(1.01)}, "resolution"),
    ],
)
def test_dates_that_do_not_align_are_refused(
    detector: Path, tmp_path: Path, changes: dict[str, Any], differs: str
) -> None:
    before, after = _tiff(tmp_path / "a.tif", _pixels()), _tiff(tmp_path / "b.tif", _pixels(), **changes)
    with pytest.raises(DataError) as caught:
        predict(detector, before, tmp_path / "out", after=after, config=SMALL)
    assert differs in str(caught.value)
    assert str(before) in str(caught.value)
    assert str(after) in str(caught.value)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_keeps_grid_orientation_and_affine(
    run: Path, tmp_path: Path, bright: None, plane: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    values = np.random.default_rng(0).integers(-200, 200, (14, 9, 17)).astype(np.int16)
    affine = np.array([[0, 0, -2.5, 10], [-0.7, 0.02, 0, 20], [0, 1.1, 0, -30], [0, 0, 0, 1.0]])  # stored as P S L
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 2)
    image.set_qform(None, 0)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / f"ct{ending}")
    settings = [f"reader.nifti.plane={plane}", "reader.nifti.scaling={kind: range, low: [-200], high: [201]}"]
    predict(run, tmp_path / f"ct{ending}", tmp_path / "out", settings)
    found = nibabel.load(tmp_path / f"out/ct{ending}")
    assert np.array_equal(found.affine, nibabel.load(tmp_path / f"ct{ending}").affine)
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (2, 0)
    assert found.header.get_zooms() == image.header.get_zooms()
    assert found.get_data_dtype() == np.uint8
    levels = np.rint((values + 200.0) * 255 / 401)  # no ties at the threshold
    assert np.array_equal(np.asarray(found.dataobj), levels >= 128)
    assert (tmp_path / "out/ct_preview.png").is_file()


def test_a_killed_volume_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitp.inference.partial._SECONDS", 0.0)
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    values = np.random.default_rng(0).integers(0, 200, (20, 24, 11)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "ct.nii.gz")
    config = PredictConfig(batch_size=3, preview=0)
    predict(run, tmp_path / "ct.nii.gz", tmp_path / "whole", config=config)

    def killed(done: int, total: int) -> None:
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(run, tmp_path / "ct.nii.gz", tmp_path / "again", config=config, progress=killed)
    counts: list[int] = []
    predict(
        run, tmp_path / "ct.nii.gz", tmp_path / "again", config=config, progress=lambda done, _: counts.append(done)
    )
    assert counts == [9, 11]
    assert (tmp_path / "whole/ct.nii.gz").read_bytes() == (tmp_path / "again/ct.nii.gz").read_bytes()


# ------------------------------------------------------------------------------------------------- folders and mistakes


def test_a_folder_goes_on_after_a_damaged_file_and_says_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    Image.fromarray(_pixels(40, 50).transpose(1, 2, 0)).save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:300])
    _tiff(tmp_path / "in/deep/c.tif", _pixels(80, 90))
    (tmp_path / "in/notes.txt").write_text("no image", encoding="utf-8")
    done = CliRunner().invoke(
        app, ["predict", str(run), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 2
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found["outputs"]) == ["a.png", "deep/c.tif"]
    assert list(found["failed"]) == ["b.png"]
    assert str(tmp_path / "in/b.png") in found["failed"]["b.png"]
    assert (tmp_path / "out/deep/c.tif").is_file()
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_an_interrupted_folder_goes_on_and_a_finished_one_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.fromarray(_pixels(40, 50).transpose(1, 2, 0)).save(tmp_path / f"in/{name}.png")
    calls: list[int] = []

    def killed(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(run, tmp_path / "in", tmp_path / "out", config=SMALL, progress=killed)
    result = predict(run, tmp_path / "in", tmp_path / "out", config=SMALL)
    assert result.skipped == ["a.png"]
    assert sorted(result.outputs) == ["b.png", "c.png"]
    with pytest.raises(OutputError, match=r"a\.png exists already: say --overwrite"):
        predict(run, tmp_path / "in", tmp_path / "out", config=SMALL)
    assert len(predict(run, tmp_path / "in", tmp_path / "out", config=SMALL, overwrite=True).outputs) == 3


def _mistakes(run: Path, root: Path) -> dict[str, tuple[Callable[[], object], type[VitpError], str]]:
    scene = _tiff(root / "a.tif", _pixels())
    (root / "cut.tif").write_bytes(scene.read_bytes()[:5000])
    (root / "empty").mkdir()
    (root / "twins").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(_pixels(40, 50).transpose(1, 2, 0)).save(root / "twins" / name)
    (root / "notes.txt").write_text("no image", encoding="utf-8")
    out = root / "out"
    return {
        "no such file": (lambda: predict(run, root / "x.tif", out), DataError, r"x\.tif: no such file"),
        "no such run": (lambda: predict(root / "x", scene, out), CheckpointError, "does not exist"),
        "no image": (lambda: predict(run, root / "notes.txt", out), DataError, r"notes\.txt"),
        "empty folder": (lambda: predict(run, root / "empty", out), DataError, "holds no image"),
        "twins": (lambda: predict(run, root / "twins", out), ConfigError, "both be written to"),
        "cut": (lambda: predict(run, root / "cut.tif", out, config=SMALL), DataError, r"cut\.tif"),
        "band": (lambda: predict(run, scene, out, ["reader.raster.bands=[7]"]), DataError, "band 7 is asked for"),
        "pair": (lambda: predict(run, scene, out, after=scene), ConfigError, "takes single images"),
        "onto itself": (lambda: predict(run, scene, root, overwrite=True), OutputError, "is the input itself"),
        "typo": (lambda: predict(run, scene, out, ["windw=64"]), ConfigError, "window"),
        "colours": (lambda: predict(run, scene, out, ['colours=["#000000"]']), ConfigError, "2 classes"),
        "out is a file": (lambda: predict(run, scene, root / "notes.txt"), OutputError, "is a file"),
    }


def test_mistakes_are_one_sentence_and_leave_nothing_behind(run: Path, tmp_path: Path) -> None:
    for name, (call, kind, words) in _mistakes(run, tmp_path).items():
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value), name
        left = [p for p in (tmp_path / "out").glob("**/*") if not p.is_relative_to(tmp_path / "out/.cut.partial")]
        assert not left, (name, left)


def test_a_full_disk_is_a_sentence_and_the_work_is_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = _tiff(tmp_path / "a.tif", _pixels())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vitp.inference.sinks.raw_rows", full)
        with pytest.raises(OutputError, match="no space left to write"):
            predict(run, scene, tmp_path / "out", config=SMALL)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".a.partial"]
    predict(run, scene, tmp_path / "out", config=SMALL, progress=lambda *_: pytest.fail("nothing is left to predict"))
    assert (tmp_path / "out/a.tif").is_file()


# ------------------------------------------------------------------------------------------------ what the run remembers


def _with_recipe(run: Path, folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    fields = {"name": "x", "steps": 1, "backbone_config": TINY.model_dump(), "data": data}
    save(FinetuneConfig.model_validate(fields), folder / "recipe.yaml")
    return folder


def test_images_are_read_as_in_training(run: Path, tmp_path: Path, bright: None) -> None:
    reader = {"raster": {"bands": [2], "scaling": {"kind": "range", "low": [0], "high": [1000]}}}
    masks = {"root": tmp_path, "images": "*.tif", "masks": "{stem}.png", "reader": reader, "background": None}
    trained = _with_recipe(run, tmp_path / "run", masks)
    values = np.random.default_rng(0).integers(0, 1000, (3, 60, 70)).astype(np.uint16)
    predict(trained, _tiff(tmp_path / "a.tif", values), tmp_path / "out", config=SMALL)
    with rasterio.open(tmp_path / "out/a.tif") as found:
        assert np.array_equal(found.read(1), np.rint(values[1] * 0.255) >= 128)
    (trained / "recipe.yaml").write_text("data: [", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml: is damaged"):
        predict(trained, tmp_path / "a.tif", tmp_path / "again", config=SMALL)


def test_slices_are_seen_with_their_neighbours_and_spacing_as_in_training(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rising(nn.Module):
        """Class 1 where the next slice is brighter than the one before; it also notes the size it sees."""

        def forward(self, images: Tensor) -> Tensor:
            sizes.add(tuple(images.shape[2:]))
            rise = images[:, 2].float() - images[:, 0].float()
            return torch.stack([torch.zeros_like(rise), rise], 1)

    sizes: set[tuple[int, ...]] = set()
    monkeypatch.setattr(
        command, "load_predictor", lambda *_, **__: (Predictor(Rising(), CLASSES, torch.device("cpu")), 64)
    )
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    channel = {"scaling": {"kind": "range", "low": [0], "high": [255]}}
    data = {"kind": "volumes", "root": tmp_path, "images": "*.nii.gz", "masks": "{stem}_seg.nii.gz"}
    data |= {"neighbours": 1, "channels": [channel], "spacing": 2.0, "classes": list(CLASSES)}
    trained = _with_recipe(run, tmp_path / "run", data)
    levels = np.array([10, 60, 30, 30, 200], dtype=np.int16)
    nibabel.save(
        nibabel.Nifti1Image(np.broadcast_to(levels, (12, 20, 5)), np.diag([-1, -1, 3, 1])), tmp_path / "ct.nii.gz"
    )
    predict(trained, tmp_path / "ct.nii.gz", tmp_path / "out", config=None)
    found = np.asarray(nibabel.load(tmp_path / "out/ct.nii.gz").dataobj)
    assert found.shape == (12, 20, 5)
    assert found[6, 9].tolist() == [1, 1, 0, 1, 1]  # the outermost slices stand for what is beyond
    assert sizes == {(10, 6)}
