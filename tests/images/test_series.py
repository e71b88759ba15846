"""DICOM series: slices by place, not by name; Hounsfield units; the affine; what is no series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitp.datasets.volumes import VolumeFolder, VolumeFolderConfig
from vitp.images.decode import ImageError
from vitp.images.series import series_as_nifti

pydicom = pytest.importorskip("pydicom")
nib = pytest.importorskip("nibabel")
ORDER = [3, 0, 4, 1, 2]  # file names say nothing of places


def _stored() -> np.ndarray:
    """[slices, rows, columns]"""
    return np.random.default_rng(0).integers(0, 2000, (5, 6, 8)).astype(np.int16)


def _series(folder: Path, **tags: Any) -> Path:
    """Axial slices 3 mm apart, from the feet up, pixels 0.5 mm high and 0.8 mm wide, HU = value - 1024."""
    folder.mkdir(parents=True)
    for name, place in enumerate(ORDER):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID = (
            pydicom.uid.CTImageStorage,
            pydicom.uid.generate_uid(entropy_srcs=[str(name)]),
        )
        header.SeriesInstanceUID = "1.2.3"
        header.Rows, header.Columns = 6, 8
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 1
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit = 15
        header.RescaleSlope, header.RescaleIntercept = 1, -1024
        header.PixelSpacing = [0.5, 0.8]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [-10, -20, 100 + 3 * place]
        header.PixelData = _stored()[place].tobytes()
        if name == 0:
            header.update(tags)
        header.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return folder


def test_slices_are_ordered_by_place_with_values_and_affine(tmp_path: Path) -> None:
    image = nib.load(series_as_nifti(_series(tmp_path / "ct")))
    np.testing.assert_array_equal(np.asarray(image.dataobj), _stored().transpose(2, 1, 0) - 1024)
    wanted = np.array([[-0.8, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 3, 100], [0, 0, 0, 1]])  # LPS to RAS
    np.testing.assert_allclose(image.affine, wanted, atol=1e-5)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (
            {"ImagePositionPatient": [-10, -20, 130]},
            "has 18 mm between 2.dcm and 0.dcm, and 3 mm elsewhere; add the missing slice",
        ),
        ({"SeriesInstanceUID": "1.2.4"}, "holds 2 series"),
        ({"PixelSpacing": [1, 1]}, "another direction or pixel size"),
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
    ],
)
def test_what_is_no_single_stack_is_refused(tmp_path: Path, tags: dict[str, Any], said: str) -> None:
    with pytest.raises(ImageError, match=said):
        series_as_nifti(_series(tmp_path / "ct", **tags))


def test_a_folder_without_slices_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ImageError, match="holds 0 DICOM slices"):
        series_as_nifti(tmp_path)


def test_a_data_set_of_series_with_nifti_labels(tmp_path: Path) -> None:
    for patient in "ab":
        volume = nib.load(series_as_nifti(_series(tmp_path / f"ct/{patient}")))
        ids = (np.asarray(volume.dataobj) > 0).astype(np.uint8)
        (tmp_path / "seg").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(ids, volume.affine), tmp_path / f"seg/{patient}.nii.gz")
    config = {"root": tmp_path, "images": "ct/*", "masks": "seg/{name}.nii.gz", "classes": ["low", "high"]}
    data = VolumeFolder(VolumeFolderConfig.model_validate({**config, "channels": [{"window": [0, 2]}]}))
    image, mask = data.read(1)
    np.testing.assert_array_equal(image[0] > 127, mask == 1)
    np.testing.assert_array_equal(mask, _stored()[1] - 1024 > 0)  # rows from anterior, columns from the patient's right
    assert data.check().train["high"] > 0
