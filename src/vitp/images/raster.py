"""Rasters of measurements to pictures: GeoTIFF, TIFF, JPEG 2000 and PNG of 8 to 64 bits, integer or floating-point.

* Bands are counted from 1, as in GDAL. One band is shown grey, three are shown as red, green and blue.
* Values are taken as stored: scale and offset tags are not applied, and scaling limits are given in stored units.
* A pixel is invalid where any chosen band is: by the nodata value, a mask or alpha band, NaN, infinity, a fill value
  (`levels.FILL_VALUE`), or zero and less where decibels are asked for. Invalid pixels take no part in statistics,
  become black, and are counted.
* A window is read without the rest of the file, with the affine transform of the window. Percentiles are those of the
  window: for windows that must match, give fixed limits (`Raster.limits` of one read serve the next).

Through rasterio (extra `geo`) where it is installed; otherwise Pillow reads what it can read unchanged (8 bit, and one
band of 16-bit, signed 32-bit or floating-point values), without georeference.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from vitp.config import Config
from vitp.errors import MissingExtraError
from vitp.images.decode import DAMAGE, MAX_PIXELS, ImageError, damaged, open_file, upright
from vitp.images.levels import (  # fmt: skip
    Limits,
    PercentileScaling,
    RangeScaling,
    Scaling,
    decibels,
    import_extra,
    measured,
    percentile_limits,
    to_levels,
)

# First bytes -> GDAL driver and Pillow format. No other driver is tried: some follow references to other files.
_KINDS = {
    b"II*\0": ("GTiff", "TIFF"), b"MM\0*": ("GTiff", "TIFF"), b"II+\0": ("GTiff", "TIFF"), b"MM\0+": ("GTiff", "TIFF"),
    b"\x89PNG": ("PNG", "PNG"), b"\0\0\0\x0c": ("JP2OpenJPEG", "JPEG2000"), b"\xff\x4f\xff\x51": ("JP2OpenJPEG", "JPEG2000"),
}  # fmt: skip
GEO_MAGIC = tuple(magic for magic, (_, form) in _KINDS.items() if form != "PNG")  # TIFF, BigTIFF, JPEG 2000
_DB_FACTOR = {"amplitude": 20.0, "power": 10.0}  # dB of a ratio of powers, and power is amplitude squared
_ORIENTATION, _BITS, _SAMPLE_FORMAT, _GDAL_NODATA = 274, 258, 339, 42113  # TIFF tags
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # values of the tag SampleFormat


class Window(NamedTuple):
    """A part of an image in pixels; rows are counted from the top, columns from the left, both from 0."""

    row: int
    column: int
    height: int
    width: int


class RasterConfig(Config):
    """Which bands of a raster are shown, and how their values become 8-bit levels."""

    bands: tuple[int, ...] | None = None  # GDAL's order: 1, 2, 3 as red, green, blue where there are three, else 1
    scaling: Scaling | None = None  # 8-bit unsigned values as stored; all others PercentileScaling() (QGIS: 2-98 %)
    decibel: Literal["amplitude", "power"] | None = None  # ours: SAR says so itself, 20 or 10 log10 before scaling
    nodata: float | None = Field(default=None, allow_inf_nan=False)  # GDAL: the value the file declares; this adds one
    mask: bool = True  # GDAL: mask and alpha bands hide pixels; a band chosen for showing is never taken as alpha

    @model_validator(mode="after")
    def _consistent(self) -> RasterConfig:
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ValueError(f"`bands` must be one or three numbers from 1 up, not {list(self.bands)}")
        if isinstance(self.scaling, RangeScaling):
            given, wanted = len(self.scaling.low), (1, 3) if self.bands is None else (1, len(self.bands))
            if given not in wanted:
                raise ValueError(f"`scaling` has limits for {given} bands; give one pair, or one for each chosen band")
        return self


@dataclass(frozen=True, eq=False)
class Raster:
    """A raster, or a window of one, as a picture."""

    pixels: NDArray[np.uint8]  # [3, H, W], RGB
    invalid: int  # pixels left out of statistics and shown black
    limits: tuple[Limits | None, ...]  # of each shown band, after decibels; None where nothing was valid
    bands: tuple[int, ...]
    size: tuple[int, int]  # height, width of the whole image
    window: Window  # what was read of it
    crs: str | None  # WKT
    transform: tuple[float, ...] | None  # a, b, c, d, e, f: x = a column + b row + c, y = d column + e row + f
    valid: NDArray[np.bool_]  # [H, W]


@dataclass(frozen=True, eq=False)
class Stored:
    """What a reader hands over: values [B, H, W] of the chosen bands and where they are valid, [H, W]."""

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    bands: tuple[int, ...]
    size: tuple[int, int]
    window: Window
    crs: str | None = None
    transform: tuple[float, ...] | None = None


def read_raster(path: Path, config: RasterConfig, window: Window | None = None, max_pixels: int = MAX_PIXELS) -> Raster:
    """Read a raster, or a window of it, as uint8 [3, H, W] (numpy).

    Raises:
        ImageError: missing, empty, damaged or of another format; more than `max_pixels`; a band or window it does not
            have; complex values; inks instead of colours.
        MissingExtraError: rasterio is not installed, and Pillow cannot read this file unchanged.
    """
    driver, pillow_format = raster_kind(path)
    # Without the import: a broken installation of rasterio must be told, not worked around
    if importlib.util.find_spec("rasterio") is not None:
        stored = _read_with_rasterio(path, driver, config, window, max_pixels)
    else:
        stored = _read_with_pillow(path, pillow_format, config, window, max_pixels)
    return to_picture(stored, config, path)


def raster_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as `read_raster` gives them, from the header alone; raises what it raises."""
    driver, pillow_format = raster_kind(path)
    if importlib.util.find_spec("rasterio") is None:
        with _pillow_opened(path, pillow_format) as image:
            return image.width, image.height
    with rasterio_opened(path, driver) as dataset:
        height, width = int(dataset.height), int(dataset.width)
        return (height, width) if tiff_orientation(path, dataset) >= 5 else (width, height)


def to_picture(stored: Stored, config: RasterConfig, path: Path) -> Raster:
    """Scale the bands and lay them out as RGB."""
    valid = stored.valid.copy()
    bands: list[NDArray[Any]] = list(stored.values)
    for band in bands:
        valid &= measured(band)
    if config.decibel is not None:
        # Narrows `valid`: a pixel is invalid where any band has no logarithm
        bands = [decibels(band, valid, _DB_FACTOR[config.decibel]) for band in bands]
    scaling = config.scaling
    if isinstance(scaling, RangeScaling) and len(scaling.low) not in (1, len(bands)):
        found = f"shows {_counted(len(bands), 'band')}, and the scaling has limits for {len(scaling.low)}"
        raise ImageError("image-bands", found, "give one pair of limits, or one for each band", str(path))
    limits: list[Limits | None] = []
    for index, band in enumerate(bands):
        if isinstance(scaling, RangeScaling):
            limits.append(scaling.limits(index))
        elif scaling is None and band.dtype == np.uint8:
            limits.append((0.0, 255.0))
        else:
            limits.append(percentile_limits(band[valid], scaling or PercentileScaling()))
    channels = [to_levels(band, limit, valid) for band, limit in zip(bands, limits, strict=True)]
    pixels = np.stack(channels if len(channels) == 3 else channels * 3)
    invalid, where = int(valid.size - np.count_nonzero(valid)), (stored.crs, stored.transform)
    return Raster(pixels, invalid, tuple(limits), stored.bands, stored.size, stored.window, *where, valid)


def raster_kind(path: Path) -> tuple[str, str]:
    """GDAL's driver and Pillow's format, by the file's first bytes."""
    with open_file(path) as stream:
        kind = _KINDS.get(stream.read(4))
    if kind is None:
        found = "is not a raster in a known format (TIFF, PNG, JPEG 2000)"
        raise ImageError("image-unknown", found, "convert it to GeoTIFF, for instance with gdal_translate", str(path))
    return kind


def _checked_window(window: Window | None, size: tuple[int, int], max_pixels: int, path: Path) -> Window:
    """The window to read; all of the image where none is asked for."""
    height, width = size
    part = window or Window(0, 0, height, width)
    inside = part.row + part.height <= height and part.column + part.width <= width
    if not inside or min(part.row, part.column) < 0 or min(part.height, part.width) < 1:
        found = f"has {height} rows and {width} columns, and the window {tuple(part)} reaches outside"
        raise ImageError("image-window", found, "choose row, column, height and width inside the image", str(path))
    if part.height * part.width > max_pixels:
        announced = "the window has" if window else "announces"
        found = f"{announced} {part.width} x {part.height} pixels, more than the {max_pixels:,} allowed"
        fix = f"read it in {'smaller ' if window else ''}windows (row, column, height, width)"
        raise ImageError("image-too-large", found, fix, str(path))
    return part


def _checked_bands(config: RasterConfig, count: int, path: Path) -> tuple[int, ...]:
    bands = config.bands or ((1, 2, 3) if count >= 3 else (1,))
    if max(bands) > count:
        found = f"has {_counted(count, 'band')}, and band {max(bands)} is asked for"
        raise ImageError("image-bands", found, f"choose bands from 1 to {count}", str(path))
    return bands


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ------------------------------------------------------------------------------------------------------------- rasterio


@contextmanager
def rasterio_opened(path: Path, driver: str) -> Iterator[Any]:
    """The raster as rasterio gives it; whatever rasterio raises inside becomes an `ImageError` that names the file."""
    rasterio = import_extra("rasterio", "geo", "reading GeoTIFF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # an ordinary TIFF is no mistake
        try:
            with rasterio.open(path.absolute(), driver=driver) as dataset:
                yield dataset
        except (rasterio.errors.RasterioError, MemoryError) as error:
            raise damaged(error.__cause__ or error, path) from error


def _read_with_rasterio(
    path: Path, driver: str, config: RasterConfig, window: Window | None, max_pixels: int
) -> Stored:
    with rasterio_opened(path, driver) as dataset:
        stored = read_stored(dataset, config, window, max_pixels, path)
        orientation = tiff_orientation(path, dataset)
    if orientation == 1:
        return stored
    if window is not None:
        raise turned(orientation, path)
    values = upright(torch.from_numpy(stored.values), orientation).numpy()
    valid = upright(torch.from_numpy(stored.valid[None]), orientation).numpy()[0]
    return replace(stored, values=values, valid=valid, size=valid.shape, window=Window(0, 0, *valid.shape))


def read_stored(dataset: Any, config: RasterConfig, window: Window | None, max_pixels: int, path: Path) -> Stored:
    """A window's bands, unscaled, as they lie in the file; `path` is for messages."""
    bands = _checked_bands(config, dataset.count, path)
    size = (int(dataset.height), int(dataset.width))
    part = _checked_window(window, size, max_pixels, path)
    _refuse_unreadable(dataset, bands, config, max_pixels, path)
    slices = ((part.row, part.row + part.height), (part.column, part.column + part.width))
    values = dataset.read(list(bands), window=slices)  # [B, h, w]
    valid = _valid_of(dataset, bands, config, slices, values)
    if config.bands is None and dataset.colorinterp[0].name == "palette":
        values, valid = _unpalette(values[0], valid, dataset.colormap(1))
    georeferenced = dataset.crs is not None or not dataset.transform.is_identity
    transform = _moved(dataset.transform, part) if georeferenced else None
    crs = dataset.crs.to_wkt() if dataset.crs is not None else None
    return Stored(values, valid, bands, size, part, crs, transform)


def turned(orientation: int, path: Path) -> ImageError:
    """The refusal of windows of a file that is stored turned."""
    found = f"is stored turned (orientation tag {orientation}), so its windows are ambiguous"
    return ImageError("image-window", found, "write the file upright first", str(path))


def _moved(transform: Any, part: Window) -> tuple[float, ...]:
    """An affine transform of the whole image as that of a window."""
    a, b, c, d, e, f = (float(number) for number in tuple(transform)[:6])
    return a, b, a * part.column + b * part.row + c, d, e, d * part.column + e * part.row + f


def _refuse_unreadable(dataset: Any, bands: tuple[int, ...], config: RasterConfig, max_pixels: int, path: Path) -> None:
    where = str(path)
    for band in bands:
        if str(dataset.dtypes[band - 1]).startswith("complex"):
            found = "holds complex values, which have no single brightness"
            raise ImageError("image-complex", found, "write their amplitude to a file of its own", where)
        rows, columns = dataset.block_shapes[band - 1]
        if rows * columns > max_pixels:  # a compressed block is decoded whole, whatever the window
            found = f"is stored in blocks of {columns} x {rows} pixels, more than the {max_pixels:,} allowed"
            raise ImageError("image-too-large", found, "rewrite it with tiles (gdal_translate -co TILED=YES)", where)
    inks = dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK"  # GDAL's own conversion is crude
    if config.bands is None and (inks or dataset.colorinterp[0].name == "cyan"):
        raise ImageError("image-inks", "holds inks (CMYK), not colours", "convert it to RGB", where)


def _valid_of(
    dataset: Any,
    bands: tuple[int, ...],
    config: RasterConfig,
    slices: tuple[tuple[int, int], ...],
    values: NDArray[Any],
) -> NDArray[np.bool_]:
    """Where no chosen band is nodata or masked, bool [h, w]."""
    valid = np.ones(values.shape[1:], dtype=np.bool_)
    alpha_is_shown = any(dataset.colorinterp[band - 1].name == "alpha" for band in bands)
    for band, layer in zip(bands, values, strict=True):
        for nodata in (dataset.nodatavals[band - 1], config.nodata):
            if nodata is not None:  # a nodata of NaN never equals; `measured` finds it
                valid &= layer != nodata
        flags = {flag.name for flag in dataset.mask_flag_enums[band - 1]}
        if config.mask and "all_valid" not in flags and not ("alpha" in flags and alpha_is_shown):
            valid &= dataset.read_masks(band, window=slices) > 0
    return valid


def _unpalette(
    indices: NDArray[Any], valid: NDArray[np.bool_], colours: dict[int, tuple[int, ...]]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Palette indices [H, W] to RGB [3, H, W]; entirely transparent entries are invalid."""
    table = np.zeros((np.iinfo(indices.dtype).max + 1, 4), dtype=np.uint8)
    for index, colour in colours.items():
        if index < len(table):
            table[index] = colour
    shown = table[indices]  # [H, W, 4]
    return np.ascontiguousarray(shown[..., :3].transpose(2, 0, 1)), valid & (shown[..., 3] > 0)


def tiff_orientation(path: Path, dataset: Any) -> int:
    """The TIFF's orientation tag, which GDAL does not give; 1 for maps, and where Pillow cannot open the file."""
    if dataset.driver != "GTiff" or dataset.crs is not None or not dataset.transform.is_identity:
        return 1
    with suppress(*DAMAGE, Image.DecompressionBombError), Image.open(path, formats=("TIFF",)) as image:
        value = image.tag_v2.get(_ORIENTATION, 1)  # type: ignore[attr-defined, unused-ignore]
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    return 1


# --------------------------------------------------------------------------------------------------------------- Pillow


@contextmanager
def _pillow_opened(path: Path, pillow_format: str) -> Iterator[Image.Image]:
    with open_file(path) as stream:
        try:
            image = Image.open(stream, formats=(pillow_format,))
        except Image.DecompressionBombError as error:
            raise _needs_rasterio("an image this large, in windows,", path) from error
        except UnidentifiedImageError as error:
            raise _needs_rasterio("a raster of this kind (several deep bands, or 64 bit)", path) from error
        except DAMAGE as error:
            raise damaged(error, path) from error
        with image:
            if not pillow_is_faithful(image, stream):
                raise _needs_rasterio("pixels of this depth", path)
            yield image


def _read_with_pillow(
    path: Path, pillow_format: str, config: RasterConfig, window: Window | None, max_pixels: int
) -> Stored:
    with _pillow_opened(path, pillow_format) as image:
        size = (image.height, image.width)
        if window is not None and image.height * image.width > max_pixels:
            raise _needs_rasterio("an image this large, in windows,", path)
        part = _checked_window(window, size, max_pixels, path)
        tags: dict[int, object] = dict(getattr(image, "tag_v2", {}))
        try:
            image.load()
            if config.bands is None and image.mode == "CMYK":
                raise ImageError("image-inks", "holds inks (CMYK), not colours", "convert it to RGB", str(path))
            if image.mode not in ("L", "LA", "I", "F", "I;16", "I;16B", "RGB", "RGBA", "CMYK"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            array = np.asarray(image)
        except DAMAGE as error:
            raise error if isinstance(error, ImageError) else damaged(error, path) from error
        has_alpha = image.mode in ("LA", "RGBA")
    layers = array[:, :, None] if array.ndim == 2 else array  # [H, W, B]
    layers = layers[part.row : part.row + part.height, part.column : part.column + part.width]
    bands = _checked_bands(config, layers.shape[2], path)
    values = np.stack([layers[:, :, band - 1] for band in bands])
    valid = np.ones(values.shape[1:], dtype=np.bool_)
    if has_alpha and config.mask and layers.shape[2] not in bands:
        valid &= layers[:, :, -1] > 0
    for nodata in (declared_nodata(tags), config.nodata):
        if nodata is not None:
            valid &= (values != nodata).all(axis=0)
    return Stored(values, valid, bands, size, part)


def pillow_is_faithful(image: Image.Image, stream: BinaryIO) -> bool:
    """Whether Pillow gives this file's values unchanged: it halves deep colours and forgets or invents signs."""
    if image.format == "PNG":
        stream.seek(24)  # signature 8, IHDR length and name 8, width 4, height 4, then the bit depth
        return stream.read(1) != b"\x10" or image.mode in ("I", "I;16", "I;16B")
    if image.format == "TIFF":
        tags: dict[int, Any] = image.tag_v2  # type: ignore[attr-defined, unused-ignore]
        bits, kinds = max(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)))
        if bits <= 8 or image.mode in ("I;16", "I;16B"):
            return kinds == {_UNSIGNED}
        return (image.mode == "I" and kinds == {_SIGNED}) or (image.mode == "F" and kinds == {_FLOAT})
    return image.mode in ("L", "LA", "RGB", "RGBA", "I;16")


def declared_nodata(tags: dict[int, object]) -> float | None:
    """The nodata value in GDAL's TIFF tag, a decimal number in ASCII."""
    with suppress(ValueError):
        return float(str(tags.get(_GDAL_NODATA, "")).strip("\0 "))
    return None


def _needs_rasterio(purpose: str, path: Path) -> MissingExtraError:
    return MissingExtraError(f"{path}: reading {purpose} needs rasterio; install it with: pip install 'vitp[geo]'")
