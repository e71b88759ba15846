"""Records that show a part of a file: ``volume.nii.gz#slice=3`` and the like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.refusals import refused

from vitp.images.choice import split_choice
from vitp.images.levels import RangeScaling
from vitp.images.nifti import NiftiConfig, read_nifti
from vitp.images.raster import RasterConfig
from vitp.images.read import ImageConfig, image_size, read_image
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.source import Source, SourceConfig


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.nii.gz#slice=3", ("a.nii.gz", "slice=3")),
        ("a/b#c.nii#plane=coronal&fraction=0.25", ("a/b#c.nii", "plane=coronal&fraction=0.25")),
        ("a.tif#window=0,1,2,3", ("a.tif", "window=0,1,2,3")),
        ("a.png", ("a.png", "")),
        ("a#1.png", ("a#1.png", "")),
        ("a.png#colour=red", ("a.png#colour=red", "")),
        ("#slice=3", ("#slice=3", "")),
    ],
)
def test_names_are_split_only_where_a_part_is_chosen(name: str, parts: tuple[str, str]) -> None:
    assert split_choice(name) == parts


def source(root: Path, *names: str, images: ImageConfig = ImageConfig()) -> Source:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a"}]
    lines = [json.dumps({"image": name, "conversations": turns}) for name in names]
    (root / "a.jsonl").write_text("\n".join(lines))
    return Source(SourceConfig(name="a", root=root, annotations=Path("a.jsonl"), images=images))


def test_a_window_of_a_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = source(tmp_path, "a.png#window=3,5,10,20")
    file = found.image_file("a.png#window=3,5,10,20")
    assert str(file).endswith("a.png#window=3,5,10,20")
    assert image_size(file, ImageConfig()) == (20, 10)
    assert torch.equal(read_image(file, ImageConfig()), torch.from_numpy(pixels[3:13, 5:25].transpose(2, 0, 1).copy()))


def test_a_window_of_a_deep_raster(tmp_path: Path) -> None:
    values = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / "a.tif")
    images = ImageConfig(raster=RasterConfig(scaling=RangeScaling(low=(0.0,), high=(1275.0,))))
    file = source(tmp_path, "a.tif", images=images).image_file("a.tif#window=2,4,8,6")
    assert image_size(file, images) == (6, 8)
    whole = read_image(tmp_path / "a.tif", images)
    assert torch.equal(read_image(file, images), whole[:, 2:10, 4:10])


def test_slices_of_a_volume_by_record(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    values = np.random.default_rng(0).normal(size=(19, 18, 17)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "ct.nii.gz")
    names = ["ct.nii.gz#slice=2", "ct.nii.gz#plane=coronal&slice=5", "ct.nii.gz#plane=sagittal&fraction=1"]
    expected = [NiftiConfig(index=2), NiftiConfig(plane="coronal", index=5), NiftiConfig(plane="sagittal", index=18)]
    found = source(tmp_path, *names, images=ImageConfig(nifti=NiftiConfig(index=1)))
    for name, config in zip(names, expected, strict=True):
        file = found.image_file(name)
        pixels = read_nifti(tmp_path / "ct.nii.gz", config).pixels
        assert np.array_equal(read_image(file, found.config.images).numpy(), pixels)
        assert image_size(file, found.config.images) == (pixels.shape[2], pixels.shape[1])
    report = check_sources([found], CheckOptions(decode=True))
    assert not report.findings
    assert report.distinct_images == 3


def test_wrong_choices_are_one_sentence(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    found = source(tmp_path, "a.png")
    for choice, what in {
        "slice=3": "chooses a slice, which a raster or picture does not have",
        "window=0,0,5": "window is '0,0,5'",
        "window=0,0,x,5": "window is '0,0,x,5'",
        "window=0,-1,5,5": "window is '0,-1,5,5'",
        "window=0,0,11,5": "window leaves the image of 20 x 10 pixels",
    }.items():
        file = found.image_file(f"a.png#{choice}")
        for read in (read_image, image_size):
            assert what in refused(
                "image-choice", Path(str(file)), lambda read=read, file=file: read(file, ImageConfig())
            )


def test_a_choice_does_not_lead_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    found = source(tmp_path / "in", "../a.png#window=0,0,5,5")
    (finding,) = check_sources([found]).findings
    assert finding.code == "image-outside"
