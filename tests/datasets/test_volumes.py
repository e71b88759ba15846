"""Volumes: orientation, grids, channels, neighbours, patients, and slices that show nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vitp.commands.finetune import FinetuneConfig, finetune
from vitp.datasets.volumes import VolumeFolder, VolumeFolderConfig
from vitp.errors import DataError
from vitp.images.nifti import NiftiConfig, read_nifti

nib = pytest.importorskip("nibabel")
SHAPE = (12, 10, 6)  # x, y, z of the stored array
CT = {"window": [40, 400]}


def _values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-300, 300, SHAPE).astype(np.int16)


def _labels(seed: int) -> np.ndarray:
    """Slices 3 and 4 (along z) are labelled: a stack turned over shows."""
    found = np.zeros(SHAPE, dtype=np.uint8)
    found[:, :, 3:5] = np.random.default_rng(seed).integers(0, 3, (*SHAPE[:2], 2))
    return found


def _save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 5.0, 1.0]) if affine is None else affine), path)


def _amos(root: Path, count: int = 5, suffix: str = ".nii.gz") -> dict[str, Any]:
    """The layout of AMOS2022."""
    for i in range(count):
        _save(root / f"imagesTr/amos_{i}{suffix}", _values(i))
        _save(root / f"labelsTr/amos_{i}{suffix}", _labels(i))
    return {
        "root": root,
        "images": f"imagesTr/*{suffix}",
        "masks": f"labelsTr/{{stem}}{suffix}",
        "classes": ["background", "liver", "spleen"],
        "channels": [CT],
    }


def _open(fields: dict[str, Any], **changes: Any) -> VolumeFolder:
    return VolumeFolder(VolumeFolderConfig.model_validate({**fields, **changes}))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_and_labels_are_those_of_the_single_slice_reader(tmp_path: Path, suffix: str) -> None:
    data = _open(_amos(tmp_path, suffix=suffix))
    assert (len(data.volumes), len(data), len(data.train), len(data.test)) == (5, 30, 24, 6)
    for index in (0, 3, 17):
        item = data.items[index]
        image, mask = data.read(index)
        shown = read_nifti(item.image, NiftiConfig(index=item.slice, window=(40, 400)))
        np.testing.assert_array_equal(image, shown.pixels)
        number = int(item.image.name[5])
        np.testing.assert_array_equal(mask, _labels(number)[::-1, ::-1, item.slice].T)
    assert np.allclose(data.volumes[0].grid.spacing, (2, 2, 5))
    report = data.check()
    drawn = sum(int((_labels(int(data.volumes[v].image.name[5])) == 1).sum()) for v in data.volume_parts.train)
    assert report.train["liver"] == drawn
    assert pickle.loads(pickle.dumps(data)).read(3)[0].equal(data.read(3)[0])


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_turned_files_give_the_same_slices(tmp_path: Path, plane: str) -> None:
    fields = {**_amos(tmp_path / "a", 2, ".nii"), "plane": plane}
    for i in range(2):
        for folder, values in (("imagesTr", _values(i)), ("labelsTr", _labels(i))):
            turned = np.ascontiguousarray(values.transpose(2, 0, 1)[::-1, ::-1])  # I, L, A
            affine = np.array([[0, -2, 0, 2 * 11], [0, 0, 2, 0], [-5, 0, 0, 5 * 5], [0, 0, 0, 1.0]])
            _save(tmp_path / f"b/{folder}/amos_{i}.nii", turned, affine)
    one, other = _open(fields), _open({**fields, "root": tmp_path / "b"})
    assert len(one) == len(other)
    for index in range(0, len(one), 3):
        assert all(torch.equal(a, b) for a, b in zip(one.read(index), other.read(index), strict=True))
    assert np.allclose(one.volumes[0].grid.affine, other.volumes[0].grid.affine)
    assert _open(fields, empty_slices=0).train == _open({**fields, "root": tmp_path / "b"}, empty_slices=0).train


def test_labels_on_another_grid_are_named_before_anything_is_read(tmp_path: Path) -> None:
    fields = _amos(tmp_path, suffix=".nii")
    mask = tmp_path / "labelsTr/amos_1.nii"
    _save(mask, np.zeros((12, 10, 7), dtype=np.uint8))
    with pytest.raises(
        DataError, match=r"labelsTr/amos_1.*has 7 slices of 10 x 12 voxels, and .*imagesTr/amos_1.* has 6"
    ):
        _open(fields)
    _save(mask, _labels(1), np.diag([2.0, 2.0, 4.0, 1.0]))
    with pytest.raises(DataError, match=r"amos_1.*lies up to 5 mm from .*spacing 2 x 2 x 5 and 2 x 2 x 4 mm"):
        _open(fields)
    shifted = np.diag([2.0, 2.0, 5.0, 1.0])
    shifted[0, 3] = 0.5
    _save(mask, _labels(1), shifted)
    with pytest.raises(DataError, match="lies up to 0.5 mm"):
        _open(fields)
    assert _open(fields, grid_tolerance=0.3)


def test_label_values_that_are_no_class_or_no_whole_number(tmp_path: Path) -> None:
    fields = _amos(tmp_path, suffix=".nii")
    _save(tmp_path / "labelsTr/amos_2.nii", _labels(2).astype(np.float32) * 2)
    with pytest.raises(DataError, match=r"amos_2\.nii slice 3: pixel value 4 is no class"):
        _open(fields).check()
    with pytest.raises(DataError, match=r"amos_2\.nii: pixel value 4 is no class"):
        _open(fields, empty_slices=0.5, test_images="imagesTr/amos_0.nii")
    _open(fields, labels={0: 0, 1: 1, 2: 2, 4: 2}).check()  # whole numbers stored as floats, two values to one class
    _save(tmp_path / "labelsTr/amos_2.nii", _labels(2).astype(np.float32) * 0.5)
    with pytest.raises(DataError, match=r"amos_2\.nii: holds fractions"):
        _open(fields).check()
    _save(tmp_path / "labelsTr/amos_2.nii", _labels(2))
    _save(tmp_path / "imagesTr/amos_3.nii", np.full(SHAPE, np.nan, dtype=np.float32))
    with pytest.raises(DataError, match=r"imagesTr/amos_3\.nii: holds no measured voxel"):
        _open(fields, channels=[{}]).check()


def test_neighbours_and_windows_are_channels(tmp_path: Path) -> None:
    fields = _amos(tmp_path, 2, ".nii")
    plain, thick = _open(fields), _open(fields, neighbours=1)
    for index in (0, 2, 5):  # first, middle and last slice of a volume
        image = thick.read(index)[0]
        for channel, at in enumerate((max(0, index - 1), index, min(5, index + 1))):
            assert torch.equal(image[channel], plain.read(at)[0][0])
    windows = _open(fields, channels=[{"window": [40, 400]}, {"window": [0, 100]}, {"window": [-100, 50]}])
    image = windows.read(2)[0]
    assert torch.equal(image[0], plain.read(2)[0][0])
    assert not torch.equal(image[0], image[1])
    assert not torch.equal(image[1], image[2])


def test_modalities_are_channels_scaled_over_their_own_volume(tmp_path: Path) -> None:
    """The layout of BraTS2021."""
    modalities = ("flair", "t1", "t1ce", "t2")
    for case in range(3):
        folder = tmp_path / f"BraTS2021_{case:05}"
        for number, modality in enumerate(modalities):
            values = np.random.default_rng([case, number]).gamma(2.0, 50.0 * (number + 1), SHAPE).astype(np.float32)
            values[:3] = 0  # outside the skull
            _save(folder / f"{folder.name}_{modality}.nii.gz", values)
        _save(folder / f"{folder.name}_seg.nii.gz", _labels(case) * 2)
    chosen = ("flair", "t1ce", "t2")
    fields = {
        "root": tmp_path,
        "images": "*/*_flair.nii.gz",
        "parts": r"(?P<case>BraTS2021_\d+)_flair",
        "masks": "{folder}/{case}_seg.nii.gz",
        "classes": ["background", "oedema", "tumour"],
        "labels": {0: 0, 2: 1, 4: 2},
        "channels": [{"file": f"{{folder}}/{{case}}_{m}.nii.gz", "above": 0} for m in chosen],
    }
    data = _open(fields)
    image, mask = data.read(data.train[2])
    volume = data.volumes[data.items[data.train[2]].volume]
    assert [file.name.split("_")[2][:-7] for file in volume.files] == list(chosen)
    for channel, file in enumerate(volume.files):
        stored = np.asarray(nib.load(file).dataobj)
        low, high = np.percentile(stored[stored > 0], (0.5, 99.5))
        wanted = np.rint(np.clip((stored - low) / (high - low), 0, 1) * 255)[::-1, ::-1, 2].T
        assert np.abs(image[channel].numpy() - wanted).max() <= 1
    assert set(mask.unique().tolist()) <= {0, 1, 2}
    (volume.image.parent / volume.image.name.replace("flair", "t2")).unlink()
    with pytest.raises(DataError, match="has no volume of that modality"):
        _open(fields)


def test_a_patient_is_never_cut_and_lists_name_volumes(tmp_path: Path) -> None:
    for patient in range(5):
        for visit in range(2):
            _save(tmp_path / f"images/p{patient}_{visit}.nii", _values(patient))
            _save(tmp_path / f"labels/p{patient}_{visit}.nii", _labels(patient))
    fields = {
        "root": tmp_path,
        "images": "images/*",
        "masks": "labels/{name}",
        "classes": ["a", "b", "c"],
        "group": r"(p\d)_",
    }
    for seed in range(5):
        data = _open(fields, split_seed=seed)
        train, test = ({data.items[i].group for i in side} for side in (data.train, data.test))
        assert train | test == {f"p{i}" for i in range(5)}
        assert not train & test
    (tmp_path / "test.txt").write_text("p3_0\np3_1\n")
    data = _open(fields, test_list="test.txt")
    assert {data.items[i].image.name for i in data.test} == {"p3_0.nii", "p3_1.nii"}
    assert len(data.test) == 12
    (tmp_path / "test.txt").write_text("p3_0\n")
    with pytest.raises(DataError, match="'p3' is in both"):
        _open(fields, test_list="test.txt")


def test_background_slices_are_thinned_in_training_alone(tmp_path: Path) -> None:
    fields = _amos(tmp_path, suffix=".nii")
    none, some, every = (_open(fields, empty_slices=share) for share in (0.0, 0.5, 1.0))
    assert (len(none.train), len(some.train), len(every.train)) == (8, 16, 24)
    assert set(none.train) < set(some.train) < set(every.train)
    assert {none.items[i].slice for i in none.train} == {3, 4}
    assert none.test == some.test == every.test
    assert any("16 of 24 training slices show background alone" in note for note in none.check().notes)
    assert _open(fields, empty_slices=0.5).train == some.train
    with pytest.raises(ValidationError, match="empty_slices needs to know the background"):
        _open(fields, empty_slices=0.5, background=None)


def test_spacing_resamples_image_and_label_alike(tmp_path: Path) -> None:
    fields = _amos(tmp_path, 2, ".nii")
    image, mask = _open(fields, spacing=1.0).read(3)
    assert (tuple(image.shape), tuple(mask.shape)) == ((3, 20, 24), (20, 24))
    assert torch.equal(mask[::2, ::2], _open(fields).read(3)[1])
    assert set(mask.unique().tolist()) == {0, 1, 2}
    image, mask = _open(fields, spacing=2.5, plane="coronal").read(0)
    assert tuple(image.shape) == (3, 12, 10)  # 6 slices of 5 mm, 12 columns of 2 mm


def test_mistakes_in_the_recipe(tmp_path: Path) -> None:
    fields = _amos(tmp_path, 2, ".nii")
    for changes, said in [
        ({"channels": [CT, CT]}, "one .grey. or three"),
        ({"channels": [CT, CT, CT], "neighbours": 1}, "use their offset"),
        ({"colours": {"liver": [1, 2, 3]}}, "use labels instead"),
        ({"masks": "labels/all.nii"}, "must hold {stem}"),
        ({"channels": [{"file": "t1.nii"}]}, "channels.file must hold"),
    ]:
        with pytest.raises(ValidationError, match=said):
            _open(fields, **changes)
    _save(tmp_path / "labelsTr/amos_0b.nii", _labels(0))
    with pytest.raises(DataError, match=r"amos_0\.nii.*2 files for one label volume"):
        _open(fields, masks="labelsTr/{stem}*.nii", images="imagesTr/*.nii", exclude="x/*")
    with pytest.raises(DataError, match="has 1 volume, and volume 1"):
        _open(fields, channels=[{**CT, "volume": 1}]).read(0)


def test_a_cut_file_is_named_itself_not_its_unpacked_copy(tmp_path: Path) -> None:
    fields = _amos(tmp_path, 2)
    file = tmp_path / "imagesTr/amos_1.nii.gz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError) as error:
        _open(fields).check()
    assert error.value.where == str(file)


def test_a_recipe_with_volumes_is_trained_scored_and_says_what_it_found(tmp_path: Path) -> None:
    fields = _amos(tmp_path / "data", 3, ".nii")
    recipe = {
        "name": "ct",
        "out": tmp_path / "run",
        "steps": 2,
        "warmup": 0,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "augment": {"crop": 16},
        "backbone_config": {
            "architecture": "vit_tiny_patch16_224",
            "image_size": 16,
            "patch_size": 8,
            "width": 16,
            "depth": 1,
            "heads": 2,
        },
        "data": {**fields, "kind": "volumes", "empty_slices": 0.0},
    }
    said: list[str] = []
    result = finetune(FinetuneConfig.model_validate(recipe), say=said.append)
    assert result.scores.pixels == 6 * 120  # one volume of six slices
    for part in (
        "3 volumes of 3 patients",
        "8 of 12 training slices show background alone",
        "less than the crop of 16",
    ):
        assert any(part in line for line in said), part
