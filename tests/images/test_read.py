"""Files deeper than 8 bits go the whole way: check, pretraining, leakage; told apart by their bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vitp.cli import app
from vitp.images.decode import ImageError
from vitp.images.levels import RangeScaling
from vitp.images.raster import RasterConfig
from vitp.images.read import ImageConfig, image_size, kind_of, read_image

pydicom = pytest.importorskip("pydicom", reason="needs the extra 'medical'")
nibabel = pytest.importorskip("nibabel", reason="needs the extra 'medical'")
rasterio = pytest.importorskip("rasterio", reason="needs the extra 'geo'")

SCALED = ImageConfig(raster=RasterConfig(scaling=RangeScaling(low=(0.0,), high=(4095.0,))))


def values(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4096, (height, width)).astype(np.uint16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM without a suffix, a NIfTI volume, a 16-bit GeoTIFF of four bands, a 16-bit PNG and a plain JPEG."""
    place = tmp_path_factory.mktemp("deep")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["vitp"])
    scan = pydicom.dataset.FileDataset(str(place / "scan"), {}, file_meta=meta, preamble=b"\0" * 128)
    scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    scan.Modality, scan.Rows, scan.Columns, scan.SamplesPerPixel = "CT", 40, 56, 1
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 12, 11, 0
    scan.PhotometricInterpretation, scan.WindowCenter, scan.WindowWidth = "MONOCHROME2", 2048, 4096
    scan.PixelData = values(40, 56).tobytes()
    scan.save_as(place / "scan", enforce_file_format=True)
    nibabel.save(nibabel.Nifti1Image(np.stack([values(40, 56)] * 5, 2).astype(np.int16), np.eye(4)), place / "v.nii.gz")
    profile = {"driver": "GTiff", "height": 40, "width": 56, "count": 4, "dtype": "uint16"}
    with rasterio.open(place / "bands.tif", "w", **profile) as file:
        file.write(np.stack([values(40, 56) // k for k in (1, 2, 3, 4)]))
    Image.fromarray(values(40, 56)).save(place / "deep.png")
    Image.fromarray((values(40, 56) >> 4).astype(np.uint8)).convert("RGB").save(place / "plain.jpg")
    return place


def test_each_file_finds_its_reader(place: Path) -> None:
    kinds = {name: kind_of(place / name, SCALED) for name in ("scan", "v.nii.gz", "bands.tif", "deep.png", "plain.jpg")}
    assert kinds == {
        "scan": "dicom", "v.nii.gz": "nifti", "bands.tif": "raster", "deep.png": "picture", "plain.jpg": "picture",
    }  # fmt: skip
    for name in kinds:
        pixels = read_image(place / name, SCALED)
        assert pixels.dtype == torch.uint8
        assert image_size(place / name, SCALED) == (pixels.shape[2], pixels.shape[1])
        assert len(torch.unique(pixels)) > 50  # scaled, not cut off


def test_levels_are_those_of_the_scaling(place: Path) -> None:
    wanted = np.rint(values(40, 56) / 4095.0 * 255.0)
    for name in ("bands.tif", "deep.png"):
        assert np.abs(read_image(place / name, SCALED)[0].numpy() - wanted).max() <= 1
    assert np.abs(read_image(place / "scan", SCALED)[0].numpy().astype(float) - wanted).max() <= 1


def test_without_a_scaling_deep_files_are_refused_with_the_way_out(place: Path) -> None:
    with pytest.raises(ImageError, match=r"images\.raster"):
        read_image(place / "deep.png", ImageConfig())


def test_pretraining_reads_all_of_them(place: Path, tmp_path: Path) -> None:
    names = ("scan", "v.nii.gz", "bands.tif", "deep.png", "plain.jpg")
    turns = [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "noise"}]
    lines = [json.dumps({"image": name, "conversations": turns}) for name in names]
    (place / "all.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: deep\nsteps: 2\nbatch_size: 5\nworkers: 0\n"
        "data:\n  tiling: {max_tiles: 1}\n  sources:\n"
        f"    - name: all\n      root: {place}\n      annotations: all.jsonl\n"
        "      images:\n        raster: {bands: [4, 3, 2], scaling: {kind: percentile, low: 1, high: 99}}\n"
        "        dicom: {window: [1000, 3000]}\n        nifti: {plane: axial, fraction: 0.3}\n"
        "model:\n  tower: {architecture: vit_tiny_patch16_224, image_size: 32, patch_size: 16, width: 64, depth: 2, heads: 2}\n"
        "  pixel_shuffle: 1\n"
        "  language_model: {width: 64, depth: 1, heads: 1, kv_heads: 1, mlp_width: 64, vocabulary: 300}\n"
    )
    # deep.png has one band, and the source's bands are 4, 3, 2: told with its line, before a step is taken
    run = CliRunner().invoke(app, ["check", str(recipe), "--decode", "--json"])
    found = json.loads(run.stdout.splitlines()[-1])["findings"]
    assert [(f["where"].rsplit(":", 1)[1], f["code"]) for f in found if f["severity"] == "error"] == [
        ("4", "image-bands")
    ]
    overrides = ["data.sources.0.images.raster.bands=null", f"out={tmp_path / 'run'}"]
    run = CliRunner().invoke(app, ["pretrain", str(recipe), *overrides, "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout.splitlines()[-1])["skipped"] == 0
