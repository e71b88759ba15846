"""What a look at every label of a data set found, before a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitp.datasets.splits import Parts, Split
from vitp.errors import DataError
from vitp.images.decode import DAMAGE
from vitp.images.georeference import is_tiff
from vitp.images.raster import RasterConfig, read_raster
from vitp.images.read import ImageConfig

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class MaskReport:
    """Labelled pixels per class of each part, and what is worth saying aloud."""

    train: dict[str, int]
    test: dict[str, int]
    val: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences
    smallest: tuple[int, int] | None = None  # least height and least width of any training image

    def missing(self, split: Split) -> list[str]:
        """Classes without a pixel in that part."""
        return [name for name, count in getattr(self, split).items() if not count]

    def noted(self, notes: Sequence[str]) -> MaskReport:
        """The report with further notes in front."""
        return replace(self, notes=(*notes, *self.notes))

    def remarks(self, crop: int | None = None) -> list[str]:
        """The notes, and whether images are smaller than training crops of `crop` pixels."""
        found = list(self.notes)
        if crop is not None and self.smallest is not None and min(self.smallest) < crop:
            height, width = self.smallest
            found.append(
                f"some training images are only {height} pixels high or {width} wide, less than the crop of {crop}: what "
                "lies outside them is filled and ignored"
            )
        return found


def count_labels(
    parts: Parts,
    classes: Sequence[str],
    label: Callable[[int], NDArray[np.uint8]],
    name: Callable[[int], str],
    threads: int,
) -> MaskReport:
    """Read every label once and count its pixels by class.

    Args:
        parts: which images.
        classes: names by id.
        label: class ids [H, W] of an image.
        name: of an image, for notes.
        threads: that read.

    Raises:
        DataError: the first label that cannot be used, or no labelled pixel in all training images.
    """

    def look(index: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        ids = label(index)
        return np.bincount(ids.ravel(), minlength=256), ids.shape

    counts: dict[str, dict[str, int]] = {}
    empty: list[str] = []
    smallest: tuple[int, int] | None = None
    for split in _SPLITS:
        total = np.zeros(256, dtype=np.int64)
        with ThreadPoolExecutor(threads) as pool:
            for index, (found, (height, width)) in zip(parts.of(split), pool.map(look, parts.of(split)), strict=True):
                total += found
                if not found[: len(classes)].any():
                    empty.append(name(index))
                if split == "train":
                    smallest = (
                        (height, width) if smallest is None else (min(smallest[0], height), min(smallest[1], width))
                    )
        counts[split] = {text: int(total[i]) for i, text in enumerate(classes)}
    if not any(counts["train"].values()):
        raise DataError("no training image has a labelled pixel: every one is ignored", name(parts.train[0]))
    notes = []
    if empty:
        notes.append(f"{len(empty)} images have no labelled pixel, all are ignored (the first: {empty[0]})")
    if shared := set(parts.val) & set(parts.test):
        notes.append(f"{len(shared)} of {len(parts.test)} test images are validation images too")
    return MaskReport(counts["train"], counts["test"], counts["val"] if parts.val else {}, tuple(notes), smallest)


def band_notes(files: Iterable[Path], reader: ImageConfig) -> list[str]:
    """The rule for images of one or four bands, said aloud where it applies."""
    bands: dict[int, list[Path]] = {}
    for file in files:
        if (count := _bands(file)) is not None:
            bands.setdefault(count, []).append(file)
    notes = []
    chosen = reader.raster.bands if reader.raster is not None else None
    if grey := [*bands.get(1, []), *bands.get(2, [])]:
        notes.append(f"{len(grey)} images have one band, shown as red, green and blue alike (the first: {grey[0]})")
    if chosen is None and (four := bands.get(4)):
        notes.append(
            f"{len(four)} images have four bands; the first three are red, green and blue, the fourth is left out unless "
            f"reader.raster.bands says otherwise (the first: {four[0]})"
        )
    return notes


def _bands(file: Path) -> int | None:
    """Bands of an ordinary picture, a palette counting as colours; None where Pillow cannot say."""
    try:
        with Image.open(file) as picture:
            return 3 if picture.mode == "P" else len(picture.getbands())
    except (*DAMAGE, Image.DecompressionBombError):
        return None


def require_valid_pixels(file: Path, reader: ImageConfig) -> None:
    """Raise DataError where a raster holds nothing but nodata; only TIFFs that a `RasterConfig` reads are looked at."""
    config: RasterConfig | None = reader.raster
    if config is None or not is_tiff(file):
        return
    raster = read_raster(file, config)
    if raster.invalid == raster.pixels[0].size:
        raise DataError("holds no valid pixel, all are nodata; leave it out with exclude: a glob", str(file))
