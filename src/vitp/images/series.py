"""A folder with the slices of one DICOM series to a NIfTI volume in the cache folder.

Slices are ordered by their place along the normal of the slices (PS3.3 C.7.6.2.1.1), never by file name, and must be evenly
spaced. Values are those after the modality rescale (Hounsfield units of CT). DICOM's axes point left, posterior and up,
NIfTI's right, anterior and up, so the first two change sign.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitp.cache import CacheEntry
from vitp.files import file_state
from vitp.images.decode import ImageError
from vitp.images.levels import import_extra
from vitp.images.medical import dicom_opened, dicom_pixels

_UNEVEN = 0.01  # of the distance between slices; ours: positions are written with few digits
_AXES = np.diag([-1.0, -1.0, 1.0, 1.0])  # left, posterior, up -> right, anterior, up


class _Slice(NamedTuple):
    place: float  # along the normal, mm
    position: NDArray[np.float64]
    file: Path


def series_as_nifti(folder: Path) -> Path:
    """The volume of the only series in a folder; converted once for each state of its files.

    Raises:
        ImageError: no DICOM file, several series, slices of other sizes or directions, missing or double slices, several
            frames a file, or colours.
        MissingExtraError: pydicom or nibabel is not installed.
        OutputError: the cache folder is full or cannot be written to.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and _is_dicom(file))
    if len(files) < 2:
        raise _unfit(folder, f"holds {len(files)} DICOM slices", "name the folder of a series")
    state = str([(file.name, *file_state(file)) for file in files])
    return CacheEntry(str(folder.resolve()), state).made(f"{folder.name}.nii", partial(_write, folder, files))


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _unfit(folder: Path, found: str, fix: str) -> ImageError:
    return ImageError("dicom-series", found, fix, str(folder))


def _write(folder: Path, files: list[Path], target: Path) -> None:
    nibabel = import_extra("nibabel", "medical", "writing NIfTI")
    slices, directions, spacing = _ordered(folder, files)
    step = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0] = directions[:3] * spacing[1]  # along a row the column grows
    affine[:3, 1] = directions[3:] * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, slices[0].position
    planes = [_values(item.file) for item in slices]
    if len({plane.shape for plane in planes}) > 1:
        raise _unfit(folder, "holds slices of several sizes", "keep one series in the folder")
    volume = np.stack([plane.T for plane in planes], axis=2)  # column, row, slice
    short = np.iinfo(np.int16)
    whole = short.min <= volume.min() and volume.max() <= short.max and bool((volume == np.rint(volume)).all())
    volume = volume.astype(np.int16 if whole else np.float32)  # Hounsfield units are whole as a rule
    image = nibabel.Nifti1Image(volume, _AXES @ affine)
    with target.open("wb") as stream:
        stream.write(image.to_bytes())


def _ordered(folder: Path, files: list[Path]) -> tuple[list[_Slice], NDArray[np.float64], tuple[float, float]]:
    """Slices by place, directions of rows and columns [6], and mm between rows, between columns."""
    headers = {file: _geometry(file) for file in files}
    if len(series := {header[0] for header in headers.values()}) > 1:
        raise _unfit(folder, f"holds {len(series)} series", "give each series a folder of its own")
    _, directions, spacing, _ = headers[files[0]]
    for file, (_, other, steps, _) in headers.items():
        if not (np.allclose(other, directions, atol=1e-3) and np.allclose(steps, spacing)):
            raise _unfit(
                folder, f"holds slices of another direction or pixel size ({file.name})", "keep one stack of slices"
            )
    normal = np.cross(directions[:3], directions[3:])
    slices = sorted(_Slice(float(h[3] @ normal), h[3], file) for file, h in headers.items())
    gaps = np.diff([item.place for item in slices])
    wanted = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: one that occurs
    if wanted <= 0 or float(np.abs(gaps - wanted).max()) > _UNEVEN * wanted:
        at = int(np.abs(gaps - wanted).argmax())
        raise _unfit(
            folder,
            f"has {gaps[at]:.4g} mm between {slices[at].file.name} and {slices[at + 1].file.name}, and {wanted:.4g} mm "
            "elsewhere",
            "add the missing slice or remove the double one",
        )
    return slices, directions, spacing


def _geometry(file: Path) -> tuple[str, NDArray[np.float64], tuple[float, float], NDArray[np.float64]]:
    """Series, directions [6], spacing and position [3] of a slice."""
    with dicom_opened(file) as (_, header):
        found: dict[str, Any] = {
            name: header.get(name) for name in ("ImageOrientationPatient", "PixelSpacing", "ImagePositionPatient")
        }
        for name, value in found.items():
            if value is None:
                raise ImageError("dicom-series", f"has no {name}", "leave it out of the series", str(file))
        if int(header.get("NumberOfFrames") or 1) > 1 or int(header.get("SamplesPerPixel") or 1) > 1:
            raise ImageError("dicom-series", "holds several frames or colours", "convert it to NIfTI", str(file))
        directions, spacing, position = (np.array([float(x) for x in value]) for value in found.values())
        return str(header.get("SeriesInstanceUID")), directions, (float(spacing[0]), float(spacing[1])), position


def _values(file: Path) -> NDArray[Any]:
    """Values [H, W] of a slice after the modality rescale."""
    rescale = import_extra("pydicom.pixels", "medical", "reading DICOM").apply_modality_lut
    with dicom_opened(file) as (stream, header):
        return np.asarray(rescale(dicom_pixels(stream, header, 0, file), header))
