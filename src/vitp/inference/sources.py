"""Images to predict: pictures, GeoTIFFs and large PNGs read row by row, and pairs of them that must align."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitp.errors import DataError
from vitp.images.decode import MAX_PIXELS
from vitp.images.georeference import require_same_grid
from vitp.images.levels import RangeScaling, import_extra
from vitp.images.raster import (
    RasterConfig,
    Stored,
    Window,
    raster_kind,
    rasterio_opened,
    read_stored,
    tiff_orientation,
    to_picture,
    turned,
)
from vitp.images.read import ImageConfig, image_size, kind_of, read_image

_CACHE_BYTES = 128 << 20  # of GDAL's decoded blocks: two rows of 512-pixel blocks of 40,000 columns in RGB
_WHOLE_PIXELS = 25_000_000  # ours: 75 MB; larger PNGs are read row by row
_SAMPLES, _SAMPLE_SIDE = 12, 256  # windows each way, and their side, that percentiles of a large raster are taken from


@dataclass(frozen=True)
class Place:
    """Where an image lies on the ground; nothing is known of an ordinary picture."""

    crs: str | None  # WKT
    transform: tuple[float, ...]  # a, b, c, d, e, f as in GDAL's affine: x = a column + b row + c


@dataclass(frozen=True, eq=False)
class Source:
    """An image that is read row by row."""

    path: Path
    height: int
    width: int
    channels: int
    place: Place | None
    raster: bool  # it came from a raster file, and goes into one
    notes: tuple[str, ...] = field(default=())  # what was decided about its bands and levels

    def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """uint8 [C, count, W], and where pixels are valid, bool [count, W]."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class PictureSource(Source):
    """A picture in memory."""

    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((3, 0, 0), dtype=np.uint8))

    def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """See `Source.rows`."""
        part = self.pixels[:, top : top + count]
        return np.ascontiguousarray(part), np.ones(part.shape[1:], dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class RasterSource(Source):
    """An open raster; its levels are scaled alike everywhere."""

    dataset: Any = None
    config: RasterConfig = field(default_factory=RasterConfig)

    def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """See `Source.rows`."""
        rasterio = import_extra("rasterio", "geo", "reading GeoTIFF")
        window = Window(top, 0, count, self.width)
        try:
            stored = read_stored(self.dataset, self.config, window, max(MAX_PIXELS, count * self.width), self.path)
        except rasterio.errors.RasterioError as error:
            found = f"cannot be read at rows {top} to {top + count} ({error.__cause__ or error})"
            raise DataError(f"{found}; copy the file again", str(self.path)) from error
        picture = to_picture(stored, self.config, self.path)
        return picture.pixels, picture.valid


@dataclass(frozen=True, eq=False)
class PairSource(Source):
    """Two dates of one place; channels of the first, then of the second."""

    before: Source | None = None
    after: Source | None = None

    def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """See `Source.rows`; valid where both dates are."""
        assert self.before is not None
        assert self.after is not None
        first, known = self.before.rows(top, count)
        second, also = self.after.rows(top, count)
        return np.concatenate([first, second]), known & also


@contextmanager
def opened(path: Path, after: Path | None, reader: ImageConfig) -> Iterator[Source]:
    """An image, or a pair of dates, ready to be read.

    Raises:
        DataError: missing, damaged, not an image, or two dates that do not align.
        MissingExtraError: its format needs an extra that is not installed.
    """
    with ExitStack() as stack:
        first = stack.enter_context(_one(path, reader))
        if after is None:
            yield first
            return
        second = stack.enter_context(_one(after, reader))
        check_aligned(first, second)
        notes = [*(f"{path.name}: {n}" for n in first.notes), *(f"{after.name}: {n}" for n in second.notes)]
        yield PairSource(
            path, first.height, first.width, 6, first.place, first.raster, tuple(notes), before=first, after=second
        )


@contextmanager
def _one(path: Path, reader: ImageConfig) -> Iterator[Source]:
    config = reader if reader.raster is not None else reader.model_copy(update={"raster": RasterConfig()})
    assert config.raster is not None
    large = _large_png(path) is not None
    if kind_of(path, config) != "raster" and not large:
        pixels = read_image(path, config).contiguous().numpy()
        _, height, width = pixels.shape
        yield PictureSource(path, height, width, 3, None, False, _picture_notes(path), pixels=pixels)
        return
    driver, _ = raster_kind(path)
    rasterio = import_extra("rasterio", "geo", "predicting GeoTIFF")
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), rasterio_opened(path, driver) as dataset:
        orientation = tiff_orientation(path, dataset)
        if orientation > 1:
            raise turned(orientation, path)
        yield replace(_raster_source(path, dataset, config.raster), raster=not large)


def scene_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image, from its header; unlike `image_size` of images too large to be held whole, too.

    Raises:
        ImageError: it is missing or damaged.
        MissingExtraError: its format needs an extra that is not installed.
    """
    return _large_png(path) or image_size(path, ImageConfig(raster=RasterConfig()))


def _large_png(path: Path) -> tuple[int, int] | None:
    """(width, height) of a PNG too large to be held whole (DOTA's go to 29,200 x 27,620 pixels), None for all else."""
    try:
        with path.open("rb") as stream:
            head = stream.read(24)  # signature, then the header's length, name, width and height
    except OSError:  # the picture reader has the sentence for it
        return None
    width, height = (int.from_bytes(head[start : start + 4], "big") for start in (16, 20))
    return (width, height) if head.startswith(b"\x89PNG") and width * height > _WHOLE_PIXELS else None


def _picture_notes(path: Path) -> tuple[str, ...]:
    try:
        with Image.open(path) as picture:
            grey = picture.mode in ("1", "L", "LA", "I", "F", "I;16", "I;16B")
    except (OSError, Image.DecompressionBombError):  # DICOM
        return ()
    return ("has one channel, which the model sees three times (grey)",) if grey else ()


def _raster_source(path: Path, dataset: Any, config: RasterConfig) -> RasterSource:
    sample = _sample(path, dataset, config)
    notes = []
    palette = config.bands is None and dataset.colorinterp[0].name == "palette"
    if len(sample.bands) == 1 and not palette:
        notes.append(
            f"band {sample.bands[0]} of {dataset.count} is shown three times (grey) to a model of three channels"
        )
    elif config.bands is None and dataset.count > 3 and not (dataset.count == 4 and _has_alpha(dataset)):
        notes.append(
            f"of {dataset.count} bands, 1, 2, 3 are taken as red, green, blue; reader.raster.bands=[...] says otherwise"
        )
    if isinstance(config.scaling, RangeScaling) or (config.scaling is None and sample.values.dtype == np.uint8):
        fixed = config
    else:
        found = to_picture(sample, config, path).limits
        limits = [pair or (0.0, 1.0) for pair in found]
        limits = [(low, high) if high > low else (low, float(np.nextafter(low, np.inf))) for low, high in limits]
        scaling = RangeScaling(low=tuple(low for low, _ in limits), high=tuple(high for _, high in limits))
        fixed = config.model_copy(update={"scaling": scaling})
        shown = ", ".join(f"{low:g} ... {high:g}" for low, high in limits)
        notes.append(f"levels 0 ... 255 stand for {shown} (percentiles of samples of the whole image)")
    place = None
    if dataset.crs is not None or not dataset.transform.is_identity:
        crs = dataset.crs.to_wkt() if dataset.crs is not None else None
        place = Place(crs, tuple(float(number) for number in tuple(dataset.transform)[:6]))
    return RasterSource(
        path, int(dataset.height), int(dataset.width), 3, place, True, tuple(notes), dataset=dataset, config=fixed
    )


def _has_alpha(dataset: Any) -> bool:
    return any(color.name == "alpha" for color in dataset.colorinterp)


def _sample(path: Path, dataset: Any, config: RasterConfig) -> Stored:
    """The values of windows spread over the image, as one tall picture; of a small image all of it."""
    height, width = int(dataset.height), int(dataset.width)
    rows, columns = _spread(height), _spread(width)
    if config.scaling is None and all(kind == "uint8" for kind in dataset.dtypes):
        rows, columns = rows[:1], columns[:1]  # only the bands' numbers are wanted
    side_y, side_x = min(_SAMPLE_SIDE, height), min(_SAMPLE_SIDE, width)
    parts = []
    for row in rows:
        for column in columns:
            window = Window(row, column, min(side_y, height - row), min(side_x, width - column))
            part = read_stored(dataset, config, window, MAX_PIXELS, path)
            shape = (part.values.shape[0], 1, -1)
            parts.append(replace(part, values=part.values.reshape(shape), valid=part.valid.reshape(1, -1)))
    values = np.concatenate([part.values for part in parts], axis=2)
    return replace(parts[0], values=values, valid=np.concatenate([part.valid for part in parts], axis=1))


def _spread(length: int) -> list[int]:
    count = min(_SAMPLES, -(-length // _SAMPLE_SIDE))
    if count * _SAMPLE_SIDE >= length:
        return [i * _SAMPLE_SIDE for i in range(count)]  # side by side, the last one shorter
    return [round(i * (length - _SAMPLE_SIDE) / max(1, count - 1)) for i in range(count)]


# ------------------------------------------------------------------------------------------------------------ alignment


def check_aligned(first: Source, second: Source) -> None:
    """Raise DataError, naming both files and what differs, unless two dates show the same pixels of the ground."""
    if (first.place is None) != (second.place is None):
        placed, bare = (first, second) if second.place is None else (second, first)
        raise DataError(f"has no georeference, and {placed.path} has one; give both dates or neither", str(bare.path))
    require_same_grid(first.path, second.path)
    if (first.height, first.width) != (second.height, second.width):
        sizes = f"{second.width} x {second.height} pixels, and {first.path} has {first.width} x {first.height}"
        raise DataError(f"has {sizes}; cut or resize one to the other", str(second.path))
