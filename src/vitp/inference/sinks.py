"""Finished layers into files: GeoTIFF or cloud-optimised GeoTIFF, PNG with a palette, and the picture beside them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vitp.errors import OutputError
from vitp.files import temporary_name, write_atomic
from vitp.images.levels import import_extra
from vitp.inference.colours import Colour
from vitp.inference.engine import PROBABILITY_STEPS
from vitp.inference.partial import raw_rows
from vitp.inference.sources import Place
from vitp.metrics.segmentation import IGNORE

_BLOCK = 512  # pixels of a side of a tile; the size of the COG driver
_PURPOSE = "writing GeoTIFF"


@dataclass(frozen=True)
class Look:
    """How class ids are shown."""

    classes: tuple[str, ...]
    colours: Sequence[Colour]
    background: int | None = 0  # left clear in previews, and without outlines

    def table(self) -> list[int]:
        """A palette of 256 RGB colours, flat; unknown ids and nodata are black."""
        flat = [level for colour in self.colours for level in colour]
        return flat + [0] * (768 - len(flat))


@dataclass(frozen=True)
class TiffOptions:
    """How GeoTIFFs are written."""

    format: Literal["geotiff", "cog"]
    compress: Literal["deflate", "lzw", "none"]
    overviews: bool


def write_class_png(path: Path, raw: Path, size: tuple[int, int], look: Look) -> None:
    """Class ids as an 8-bit palette PNG; 255 (nodata) is transparent.

    Raises:
        OutputError: no space left or not writable.
    """
    picture = Image.frombytes("P", (size[1], size[0]), raw.read_bytes())
    picture.putpalette(look.table())
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG", transparency=IGNORE))


def write_probability_png(path: Path, raw: Path, size: tuple[int, int], kinds: int, kind: int) -> None:
    """The probabilities of one class as an 8-bit grey PNG, 254 for certainty.

    Raises:
        OutputError: no space left or not writable.
    """
    stored = np.memmap(raw, dtype=np.uint8, mode="r", shape=(size[0], kinds, size[1]))
    picture = Image.fromarray(np.ascontiguousarray(stored[:, kind]))
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))


def write_class_tiff(
    path: Path, raw: Path, size: tuple[int, int], place: Place | None, look: Look, options: TiffOptions
) -> None:
    """Class ids as a tiled uint8 GeoTIFF with nodata 255, a palette, and the names in its tags (CLASS_0, ...).

    Raises:
        OutputError: no space left or not writable.
    """

    def describe(dataset: Any) -> None:
        colours = {i: (*colour, 255) for i, colour in enumerate(look.colours)}
        dataset.write_colormap(1, colours | {IGNORE: (0, 0, 0, 0)})
        dataset.set_band_description(1, "class")
        dataset.update_tags(**{f"CLASS_{i}": name for i, name in enumerate(look.classes)})

    _write_tiff(path, raw, size, 1, place, options, describe)


def write_probability_tiff(
    path: Path, raw: Path, size: tuple[int, int], place: Place | None, look: Look, options: TiffOptions
) -> None:
    """A band of probabilities for each class, uint8 with scale 1/254 and nodata 255.

    Raises:
        OutputError: no space left or not writable.
    """
    kinds = len(look.classes)

    def describe(dataset: Any) -> None:
        dataset.scales = [1 / PROBABILITY_STEPS] * kinds
        for index, name in enumerate(look.classes, 1):
            dataset.set_band_description(index, name)

    _write_tiff(path, raw, size, kinds, place, options, describe)


def _write_tiff(
    path: Path, raw: Path, size: tuple[int, int], bands: int, place: Place | None, options: TiffOptions, describe: Any
) -> None:
    """The same bytes for the same layer: rows go in from the top, in steps of whole tiles."""
    rasterio = import_extra("rasterio", "geo", _PURPOSE)
    resampling = import_extra("rasterio.enums", "geo", _PURPOSE).Resampling
    copy = import_extra("rasterio.shutil", "geo", _PURPOSE).copy
    height, width = size
    profile: dict[str, Any] = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8"}
    profile |= {"nodata": IGNORE, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "bigtiff": "IF_SAFER"}
    profile |= {"compress": options.compress, "interleave": "band"}
    if place is not None:
        profile["crs"] = place.crs
        profile["transform"] = rasterio.Affine(*place.transform)

    def fill(target: Path) -> None:
        with rasterio.open(target, "w", **profile) as dataset:
            describe(dataset)
            for top in range(0, height, _BLOCK):
                count = min(_BLOCK, height - top)
                values = raw_rows(raw, top, count, (bands, width))
                dataset.write(values.transpose(1, 0, 2), window=((top, top + count), (0, width)))
        if options.overviews and max(size) > _BLOCK and options.format == "geotiff":
            levels = [2**i for i in range(1, 16) if max(size) / 2 ** (i - 1) > _BLOCK]
            with rasterio.open(target, "r+") as dataset:
                dataset.build_overviews(levels, resampling.nearest)

    def write(temporary: Path) -> None:
        try:
            with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=128 << 20):
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                if options.format == "geotiff":
                    fill(temporary)
                    return
                plain = temporary_name(temporary)
                try:
                    fill(plain)
                    overviews = "AUTO" if options.overviews else "NONE"
                    copy(plain, temporary, driver="COG", compress=options.compress, overviews=overviews,
                         overview_resampling="nearest", blocksize=_BLOCK, bigtiff="IF_SAFER")  # fmt: skip
                finally:
                    plain.unlink(missing_ok=True)
        except rasterio.errors.RasterioError as error:
            reason = error.__cause__ or error
            found = f"{path} cannot be written ({reason})"
            raise OutputError(
                f"{found}; free some space or choose another --out, then run it again to go on"
            ) from error

    write_atomic(path, write)


def write_preview(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]], ids: np.ndarray[Any, np.dtype[np.uint8]],
                  look: Look) -> None:  # fmt: skip
    """The image with its classes laid over it, and beside it the image alone.

    Args:
        path: a PNG.
        pixels: [h, w, 3].
        ids: [h, w]; the background and nodata are left clear.
        look: colours.

    Raises:
        OutputError: no space left or not writable.
    """
    table = np.array(look.table(), dtype=np.float32).reshape(256, 3)
    shown = ids != IGNORE if look.background is None else (ids != look.background) & (ids != IGNORE)
    mixed = pixels.astype(np.float32)
    mixed[shown] = 0.45 * mixed[shown] + 0.55 * table[ids[shown]]
    both = np.concatenate([pixels, np.full((pixels.shape[0], 4, 3), 255, np.uint8), mixed.astype(np.uint8)], axis=1)
    write_atomic(path, lambda temporary: Image.fromarray(both).save(temporary, format="PNG"))
