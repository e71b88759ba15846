"""Volumes slice by slice: NIfTI files read in place, and DICOM series, in the orientation of `vitp.images.nifti`.

A compressed file is unpacked once into the cache folder (`vitp.cache`), since a slice in its middle costs the whole file
otherwise; a few slices a volume are then read as fast as pictures.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vitp.cache import CacheEntry
from vitp.errors import DataError
from vitp.files import file_state
from vitp.images.decode import ImageError, damaged
from vitp.images.levels import Limits, measured, to_levels, window_limits
from vitp.images.medical import GreyConfig, scaled_limits
from vitp.images.nifti import (
    Plane,
    nifti_opened,
    picture_affine,
    picture_slice,
    sampled_values,
    view_of,
    volume_index,
)
from vitp.images.series import series_as_nifti


class ChannelConfig(GreyConfig):
    """What one channel of a slice shows: which file, which neighbour, and how its values become levels.

    Without a window the limits come from percentiles of the whole volume, so that its slices match.
    """

    file: str | None = (
        None  # template of the image's path (see `LayoutConfig`), for instance another modality; None: itself
    )
    volume: int = Field(default=0, ge=0)  # of a 4-D file
    offset: int = 0  # slices further
    above: float | None = None  # only larger values count in percentiles: 0 leaves out the air of skull-stripped MRI


@dataclass(frozen=True, eq=False)
class VolumeGrid:
    """A volume as a stack of pictures."""

    slices: int
    size: tuple[int, int]  # H, W of a slice
    spacing: tuple[float, float, float]  # mm between rows, columns, slices
    affine: NDArray[np.float64]  # [4, 4]: (row, column, slice, 1) -> RAS+ mm


def read_grid(path: Path, plane: Plane) -> VolumeGrid:
    """The grid of a NIfTI volume, from its header, or of the folder of a DICOM series.

    Raises:
        ImageError: it is damaged, or no volume.
        MissingExtraError: nibabel is not installed.
    """
    with nifti_opened(unpacked(path) if path.is_dir() else path) as image:
        view = view_of(image, plane, path)
        affine = picture_affine(image.affine, view, 0)
        slices, height, width = view.lengths
    steps = tuple(float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    return VolumeGrid(slices, (height, width), (steps[0], steps[1], steps[2]), affine)


def require_same_volume(image: Path, other: Path, plane: Plane, tolerance: float) -> None:
    """Raise DataError unless both volumes have as many voxels in the same places.

    Args:
        image: the volume.
        other: its labels, or another modality.
        plane: of the slices.
        tolerance: how far apart corners may lie, in the volume's smallest voxel side.
    """
    one, two = read_grid(image, plane), read_grid(other, plane)
    shapes = [f"{grid.slices} slices of {grid.size[0]} x {grid.size[1]} voxels" for grid in (one, two)]
    if shapes[0] != shapes[1]:
        raise DataError(f"has {shapes[1]}, and {image} has {shapes[0]}; resample one onto the other's grid", str(other))
    ends = np.array(np.meshgrid(*([0, length - 1] for length in (*one.size, one.slices)))).reshape(3, -1)
    corners = np.concatenate([ends, np.ones((1, ends.shape[1]))])  # [4, 8]
    apart = float(np.linalg.norm((one.affine - two.affine)[:3] @ corners, axis=0).max())
    if apart > tolerance * min(one.spacing):
        spacings = [" x ".join(f"{step:.4g}" for step in grid.spacing) for grid in (one, two)]
        differs = f"; spacing {spacings[0]} and {spacings[1]} mm" if spacings[0] != spacings[1] else ""
        raise DataError(
            f"lies up to {apart:.3g} mm from {image} (the affines differ{differs}); resample one onto the other's grid, or "
            "raise grid_tolerance if the headers are wrong",
            str(other),
        )


def unpacked(path: Path) -> Path:
    """The file itself, or of a compressed file or the folder of a DICOM series a plain NIfTI in the cache folder.

    Raises:
        ImageError: the file is damaged.
        OutputError: the cache folder is full or cannot be written to.
    """
    if path.is_dir():
        return series_as_nifti(path)
    if path.suffix.lower() != ".gz":
        return path

    def write(target: Path) -> None:
        with gzip.open(path) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)

    try:
        return CacheEntry(str(path.resolve()), str(file_state(path))).made(path.name[:-3], write)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(error, path) from error


class VolumeReader:
    """Reads slices of one NIfTI volume; the file is opened for each, so that it may be sent to another process."""

    def __init__(self, path: Path, plane: Plane, volume: int = 0, *, unpack: bool = True) -> None:
        """Nothing is read yet.

        Args:
            path: the volume.
            plane: of the slices.
            volume: of a 4-D file.
            unpack: whether a compressed file is unpacked into the cache folder.
        """
        self.path, self._plane, self._volume, self._unpack = path, plane, volume, unpack

    def values(self, index: int) -> NDArray[Any]:
        """Values [H, W] of a slice, in the file's unit.

        Raises:
            ImageError: the file is damaged, or has no such volume.
        """
        with self._opened() as (image, volume):
            view = view_of(image, self._plane, self.path)
            values = np.asarray(picture_slice(image, view, index, volume))
        if values.dtype.kind not in "biuf":
            raise ImageError("nifti-colour", f"holds {values.dtype} voxels", "write one number a voxel", str(self.path))
        return values

    def whole(self) -> NDArray[Any]:
        """All values [slices, H, W] at once, for label volumes; raises what `values` raises."""
        with self._opened() as (image, volume):
            view = view_of(image, self._plane, self.path)
            stored = np.asarray(image.dataobj[(slice(None), slice(None), slice(None), *volume)])
        slices, rows, columns = view.positive
        forward, backward = slice(None), slice(None, None, -1)
        return stored.transpose(view.axes)[
            forward if slices else backward, backward if rows else forward, backward if columns else forward
        ]

    def limits(self, config: ChannelConfig) -> Limits | None:
        """Limits of a channel: its window, or its scaling over the volume; None where nothing is measured."""
        if config.window is not None:
            return window_limits(*config.window, "LINEAR")
        with self._opened() as (image, volume):
            values = sampled_values(image, volume)
        return scaled_limits(config.scaling, values if config.above is None else values[values > config.above])

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """The volume and the index behind its axes of space; errors name the user's file, not the unpacked one."""
        try:
            with nifti_opened(unpacked(self.path) if self._unpack or self.path.is_dir() else self.path) as image:
                yield image, volume_index(image.shape, self._volume, self.path)
        except ImageError as error:
            raise ImageError(error.code, error.found, error.fix, str(self.path)) from error


def levels(values: NDArray[Any], limits: Limits | None) -> NDArray[np.uint8]:
    """A slice [H, W] as uint8 [H, W]; what is no measurement becomes black."""
    return to_levels(values, limits, measured(values))
