"""Where a raster lies on Earth, whether two rasters lie on the same grid, and label rasters as stored.

All through rasterio (extra `geo`) where it is installed; without it files have no georeference, and labels are what
Pillow reads unchanged.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitp.errors import DataError
from vitp.images.levels import import_extra
from vitp.images.raster import declared_nodata, pillow_is_faithful, rasterio_opened

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SHIFT = 0.01  # pixels; ours: writers round the numbers of a transform, and a hundredth of a pixel moves no label


@dataclass(frozen=True)
class Georeference:
    """The grid of a raster."""

    width: int
    height: int
    crs: str | None  # as an authority's code where it has one, else WKT
    transform: tuple[float, ...] | None  # a, b, c, d, e, f: x = a column + b row + c, y = d column + e row + f


def is_tiff(path: Path) -> bool:
    """Whether the file begins as a TIFF or BigTIFF does; raises OSError where it cannot be opened."""
    with path.open("rb") as stream:
        return stream.read(4) in _TIFF


def read_georeference(path: Path) -> Georeference | None:
    """The grid of a TIFF from its header; None for other files, those without georeference, and without rasterio.

    Raises:
        ImageError: the file is damaged.
    """
    if not path.is_file() or not is_tiff(path) or importlib.util.find_spec("rasterio") is None:
        return None
    with rasterio_opened(path, "GTiff") as dataset:
        placed = not dataset.transform.is_identity
        if dataset.crs is None and not placed:
            return None
        transform = tuple(float(number) for number in tuple(dataset.transform)[:6]) if placed else None
        crs = dataset.crs.to_string() if dataset.crs is not None else None
        return Georeference(int(dataset.width), int(dataset.height), crs, transform)


def require_same_grid(first: Path, second: Path) -> bool:
    """Whether both files are georeferenced, and then on the same grid; false where one is not.

    Raises:
        DataError: the coordinate systems, sizes, resolutions or origins differ; it names both files and what differs.
    """
    one, other = read_georeference(first), read_georeference(second)
    if one is None or other is None:
        return False
    difference = _difference(one, other)
    if difference is not None:
        raise DataError(
            f"does not lie on the grid of {first}: {difference}; warp one onto the other (gdalwarp)", str(second)
        )
    return True


def _difference(one: Georeference, other: Georeference) -> str | None:
    """What differs first, in words; the first grid's value stands first."""
    if one.crs is not None and other.crs is not None and not _same_crs(one.crs, other.crs):
        return f"coordinate system {_short(one.crs)} and {_short(other.crs)}"
    if (one.width, one.height) != (other.width, other.height):
        return f"{one.width} x {one.height} and {other.width} x {other.height} pixels"
    if one.transform is None or other.transform is None:
        return None
    a, b, c, d, e, f = one.transform
    a2, b2, c2, d2, e2, f2 = other.transform
    pixel = max(np.hypot(a, d), np.hypot(b, e))
    reach = max(one.width, one.height)  # at the far edge a wrong resolution shows most
    if max(abs(a - a2), abs(b - b2), abs(d - d2), abs(e - e2)) * reach > _SHIFT * pixel:
        return f"resolution {_size(a, d)} x {_size(b, e)} and {_size(a2, d2)} x {_size(b2, e2)} map units a pixel"
    if max(abs(c - c2), abs(f - f2)) > _SHIFT * pixel:
        shift = float(np.hypot(c2 - c, f2 - f) / pixel)
        return f"origin ({c:g}, {f:g}) and ({c2:g}, {f2:g}), {shift:.2f} pixels apart"
    return None


def _same_crs(one: str, other: str) -> bool:
    """Equal in meaning: the same system may be written in many ways."""
    crs = import_extra("rasterio.crs", "geo", "comparing coordinate systems").CRS
    return one == other or bool(crs.from_string(one) == crs.from_string(other))


def _size(x: float, y: float) -> str:
    return f"{float(np.hypot(x, y)):.9g}"


def _short(crs: str) -> str:
    return crs[:60]


def read_tiff_labels(path: Path) -> tuple[NDArray[Any] | None, float | None]:
    """Values ([H, W] or [H, W, bands]) of a TIFF that Pillow would change, and the value the file declares as nodata.

    The values are None where Pillow reads the file as it is.

    Raises:
        ImageError: the file is damaged.
        MissingExtraError: only rasterio can read it, and it is not installed.
    """
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            nodata = declared_nodata(dict(getattr(image, "tag_v2", {})))
            if pillow_is_faithful(image, stream) or image.mode in ("1", "P"):
                return None, nodata
    except UnidentifiedImageError:
        pass
    with rasterio_opened(path, "GTiff") as dataset:
        values = np.moveaxis(dataset.read(), 0, -1)
        return values[..., 0] if values.shape[2] == 1 else values, dataset.nodatavals[0]
