"""Slices of NIfTI volumes to pictures, through nibabel (extra `medical`).

Voxel axes are turned to the nearest RAS+ axes by the affine (no resampling), then one slice is shown in the
radiological convention:

* axial: seen from the feet; the patient's right on the left of the picture, anterior up;
* coronal: seen from the front; the patient's right on the left of the picture, superior up;
* sagittal: seen from the patient's left; anterior on the left of the picture, superior up.

Slices count from 0 towards superior, anterior and the patient's right. Only the slice is read where the file is not
compressed; of a compressed file that ends too early only a missing slice is noticed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vitp.images.decode import DAMAGE, MAX_PIXELS, ImageError, damaged, open_file
from vitp.images.levels import Limits, import_extra, measured, to_levels, window_limits
from vitp.images.medical import GreyConfig, scaled_limits, too_large

Plane = Literal["axial", "coronal", "sagittal"]
_PLANES: dict[Plane, tuple[int, int, int]] = {  # the RAS+ axes of slices, rows and columns
    "axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1),
}  # fmt: skip
_VOLUME_SLICES = 32  # ours: enough of a volume for its percentiles


class NiftiConfig(GreyConfig):
    """Which slice of a NIfTI volume is shown, and how."""

    plane: Plane = "axial"  # ours: the plane in which CT is acquired and read
    index: int | None = Field(default=None, ge=0)  # from 0, along the RAS+ axis; none: `fraction` decides
    fraction: float = Field(default=0.5, ge=0, le=1)  # ours: the middle, between the first slice (0) and the last (1)
    volume: int = Field(default=0, ge=0)  # of a 4-D file; the first, as in viewers
    # Of what percentiles are taken. Ours: the slice, the only thing read. `volume` reads up to 32 slices, so that
    # neighbouring slices match
    statistics: Literal["slice", "volume"] = "slice"


@dataclass(frozen=True, eq=False)
class NiftiSlice:
    """One slice of a NIfTI volume as a picture."""

    pixels: NDArray[np.uint8]  # [3, H, W], RGB
    invalid: int  # NaN, infinity and fill values: left out of statistics and shown black
    limits: Limits | None  # none for colours, and where nothing was valid
    index: int
    slices: int
    spacing: tuple[float, float]  # mm between rows, between columns of the picture
    affine: NDArray[np.float64]  # [4, 4]: (row, column, slices further, 1) of the picture -> RAS+ mm
    oriented: bool  # false: the header states no orientation, and NIfTI's fallback was taken


@dataclass(frozen=True, eq=False)
class View:
    """How a picture lies in the stored array: for slices, rows, columns the stored axis and whether it runs RAS+."""

    axes: tuple[int, int, int]
    positive: tuple[bool, bool, bool]
    lengths: tuple[int, int, int]

    def stored(self, shown: NDArray[Any]) -> NDArray[Any]:
        """Pictures of all slices, [slices, H, W], as the array they were cut from; a view of them, not a copy."""
        same = (self.positive[0], not self.positive[1], not self.positive[2])  # as `picture_slice` turned them
        first, second, third = (slice(None, None, 1 if kept else -1) for kept in same)
        return shown[first, second, third].transpose(np.argsort(self.axes))


def read_nifti(path: Path, config: NiftiConfig, max_pixels: int = MAX_PIXELS) -> NiftiSlice:
    """Read one slice as uint8 [3, H, W] (numpy).

    Raises:
        ImageError: missing, damaged, truncated, no NIfTI file, too large, of complex values, with an affine that gives
            no orientation, or without the slice or volume asked for.
        MissingExtraError: nibabel is not installed.
    """
    with nifti_opened(path) as image:
        view = view_of(image, config.plane, path)
        slices, height, width = view.lengths
        if height * width > max_pixels:
            raise too_large(f"announces slices of {width} x {height} pixels", max_pixels, path)
        index = config.index if config.index is not None else round(config.fraction * (slices - 1))
        _check_choice("slice", index, slices, path)
        volume = volume_index(image.shape, config.volume, path)
        values = picture_slice(image, view, index, volume)
        if values.dtype.names is not None:  # RGB24 and RGBA32
            pixels = np.stack([values[name] for name in values.dtype.names[:3]]).astype(np.uint8)
            invalid, limits = 0, None
        elif values.dtype.kind == "c":
            raise ImageError("image-complex", "holds complex values", "write their magnitude to a file", str(path))
        else:
            valid = measured(values)
            limits = _limits(image, values[valid], volume, config)
            pixels = np.stack([to_levels(values, limits, valid)] * 3)
            invalid = int(valid.size - np.count_nonzero(valid))
        affine = picture_affine(image.affine, view, index)
        header = image.header
        oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    spacing = (float(np.linalg.norm(affine[:3, 0])), float(np.linalg.norm(affine[:3, 1])))
    return NiftiSlice(pixels, invalid, limits, index, slices, spacing, affine, oriented)


def nifti_size(path: Path, config: NiftiConfig) -> tuple[int, int]:
    """(width, height) of the slices from the header alone; raises what `read_nifti` raises about headers."""
    with nifti_opened(path) as image:
        _, height, width = view_of(image, config.plane, path).lengths
        return width, height


@contextmanager
def nifti_opened(path: Path) -> Iterator[Any]:
    """The volume as nibabel gives it; whatever nibabel raises inside becomes an `ImageError` that names the file."""
    nibabel = import_extra("nibabel", "medical", "reading NIfTI")
    open_file(path).close()  # missing, empty, a folder: the same words as for every image
    foreign = "is no NIfTI file (.nii, .nii.gz), or is cut within its header"
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.nifti1.Nifti1Pair):
            raise ImageError("image-unknown", foreign, "convert it to NIfTI", str(path))
        if not 3 <= len(image.shape) <= 7 or min(image.shape) < 1:
            shape = " x ".join(map(str, image.shape))
            raise ImageError("nifti-shape", f"is no volume ({shape})", "give it three dimensions", str(path))
        if path.suffix == ".nii" and path.stat().st_size < _announced_bytes(image):
            raise EOFError("truncated")  # also where the slice itself is there
        yield image
    except nibabel.filebasedimages.ImageFileError as error:
        raise ImageError("image-unknown", foreign, "copy the file again or convert it", str(path)) from error
    except ImageError:
        raise
    except (*DAMAGE, nibabel.spatialimages.HeaderDataError, zlib.error, MemoryError) as error:
        raise damaged(error, path) from error


def _announced_bytes(image: Any) -> int:
    proxy = image.dataobj
    voxels = math.prod(int(length) for length in image.shape)
    return int(proxy.offset) + voxels * int(image.get_data_dtype().itemsize)


def view_of(image: Any, plane: Plane, path: Path) -> View:
    """How pictures of a plane lie in the stored array; raises ImageError where the affine gives no orientation."""
    nibabel = import_extra("nibabel", "medical", "reading NIfTI")
    affine = np.asarray(image.affine)
    turned = nibabel.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if not np.isfinite(turned).all():
        found = "has an affine that gives no orientation (not finite, or an axis of length zero)"
        raise ImageError("nifti-affine", found, "mend its sform or qform, for instance with nibabel", str(path))
    stored = [int(np.flatnonzero(turned[:, 0] == axis)[0]) for axis in _PLANES[plane]]
    first, second, third = stored
    lengths = (int(image.shape[first]), int(image.shape[second]), int(image.shape[third]))
    positive = (bool(turned[first, 1] > 0), bool(turned[second, 1] > 0), bool(turned[third, 1] > 0))
    return View((first, second, third), positive, lengths)


def picture_slice(image: Any, view: View, index: int, volume: tuple[int, ...]) -> NDArray[Any]:
    """The slice as it is shown, [H, W]: rows and columns both run against RAS+ (superior, anterior, right first)."""
    where: list[int | slice] = [slice(None)] * 3
    where[view.axes[0]] = _stored_index(view, index)
    plane = np.asarray(image.dataobj[(*where, *volume)])
    if view.axes[1] > view.axes[2]:
        plane = plane.T
    return plane[:: -1 if view.positive[1] else 1, :: -1 if view.positive[2] else 1]


def _stored_index(view: View, index: int) -> int:
    return index if view.positive[0] else view.lengths[0] - 1 - index


def picture_affine(affine: NDArray[np.float64], view: View, index: int) -> NDArray[np.float64]:
    """[4, 4] from (row, column, slices further, 1) to RAS+ mm: the stored affine after the picture's own turn."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    turn[view.axes[0], 2] = 1.0 if view.positive[0] else -1.0
    turn[view.axes[0], 3] = _stored_index(view, index)
    for place in (1, 2):
        turn[view.axes[place], place - 1] = -1.0 if view.positive[place] else 1.0
        turn[view.axes[place], 3] = view.lengths[place] - 1 if view.positive[place] else 0
    return np.asarray(affine, dtype=np.float64) @ turn


def volume_index(shape: tuple[int, ...], volume: int, path: Path) -> tuple[int, ...]:
    """The index behind the three axes of space."""
    rest = shape[3:]
    if any(length > 1 for length in rest[1:]):
        dimensions = " x ".join(map(str, shape))
        raise ImageError("nifti-shape", f"has too many dimensions ({dimensions})", "write 3-D or 4-D files", str(path))
    _check_choice("volume", volume, rest[0] if rest else 1, path)
    return (volume,) + (0,) * (len(rest) - 1) if rest else ()


def _check_choice(noun: str, index: int, count: int, path: Path) -> None:
    if index >= count:
        found = f"has {count} {noun}{'s' if count > 1 else ''}, and {noun} {index} (from 0) is asked for"
        raise ImageError(f"nifti-{noun}", found, f"choose a {noun} from 0 to {count - 1}", str(path))


def _limits(image: Any, shown: NDArray[Any], volume: tuple[int, ...], config: NiftiConfig) -> Limits | None:
    """Limits by the window, or by the scaling of the valid values `shown` or of the volume."""
    if config.window is not None:
        return window_limits(*config.window, "LINEAR")
    if config.statistics == "slice" or config.scaling.kind == "range":
        return scaled_limits(config.scaling, shown)
    values = sampled_values(image, volume)
    return scaled_limits(config.scaling, values)


def sampled_values(image: Any, volume: tuple[int, ...]) -> NDArray[Any]:
    """The measurements of up to 32 slices spread over a volume, flat: enough for its percentiles."""
    depth = int(image.shape[2])  # slices along the last stored axis lie in one piece
    places = np.unique(np.linspace(0, depth - 1, min(depth, _VOLUME_SLICES)).round().astype(int))
    parts = [np.asarray(image.dataobj[(slice(None), slice(None), int(place), *volume)]) for place in places]
    return np.concatenate([part[measured(part)] for part in parts])
