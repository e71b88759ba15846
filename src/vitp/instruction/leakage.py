"""Overlap between the images pretrained on and the images a downstream result is reported on.

An image counts as seen when a perceptual hash finds it, in any of eight orientations, and the two small grey versions
correlate as well. Crops of a larger image are not found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitp.errors import DataError
from vitp.images.decode import ImageError
from vitp.images.perceptual import ORIENTATIONS, correlation, hashes, is_flat, near, oriented, thumbnail
from vitp.images.stored import ImageFile
from vitp.instruction.source import Source
from vitp.parallel import mapped

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
DISTANCE = 6  # bits of 64; ours: see docs/experiments.md
CORRELATION = 0.95  # ours: see docs/experiments.md
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Overlap:
    """One pretraining image that is also a downstream image, or another pretraining image."""

    image: str  # pretraining
    found_in: str  # downstream, or an earlier one of pretraining
    distance: int  # bits the hashes differ in, 0-64
    correlation: float  # of the grey thumbnails, up to 1
    turned: bool  # one is a flip or quarter turn of the other

    def how(self) -> str:
        """How the two are alike, in words."""
        return f"{'turned or flipped' if self.turned else 'upright'}, {self.distance} bits, r = {self.correlation:.3f}"


@dataclass(frozen=True)
class LeakReport:
    """All overlaps, by pretraining image, and what could not be compared."""

    overlaps: tuple[Overlap, ...]
    images: int  # pretraining images compared
    against: int  # downstream images compared
    flat: int  # of both, too uniform to be told apart
    unreadable: tuple[str, ...]

    @property
    def leaked(self) -> int:
        """Downstream images that occur in pretraining."""
        return len({overlap.found_in for overlap in self.overlaps})

    def to_json(self) -> dict[str, object]:
        """Everything as plain JSON data."""
        return {**asdict(self), "leaked": self.leaked}

    def summary(self) -> list[str]:
        """The figures, without the pairs."""
        share = 100 * self.leaked / max(1, self.against)
        lines = [
            f"leakage: {self.leaked:,} of {self.against:,} downstream images ({share:.1f} %) occur among "
            f"{self.images:,} pretraining images"
        ]
        if self.flat:
            lines.append(f"  {self.flat:,} images show too little to be compared")
        if self.unreadable:
            lines.append(f"  {len(self.unreadable):,} images cannot be read, the first is {self.unreadable[0]}")
        return lines

    def lines(self, most: int = 20) -> list[str]:
        """The report for people."""
        lines = self.summary()
        lines += [f"  {pair.image} is {pair.found_in} ({pair.how()})" for pair in self.overlaps[:most]]
        if len(self.overlaps) > most:
            lines.append(f"  ... and {len(self.overlaps) - most:,} more pairs (--json lists all)")
        return lines


def image_files(folders: Sequence[Path]) -> list[Path]:
    """Image files anywhere below the folders, sorted; a file may be named itself.

    Raises:
        DataError: a folder does not exist or holds no image.
    """
    found: list[Path] = []
    for folder in folders:
        if folder.is_file():
            found.append(folder)
            continue
        if not folder.is_dir():
            raise DataError("does not exist; correct the path after --against", str(folder))
        below = [
            Path(parent) / name
            for parent, _, names in os.walk(folder)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        if not below:
            raise DataError(f"holds no image ({', '.join(SUFFIXES)}); name another folder", str(folder))
        found += below
    return sorted(dict.fromkeys(found))


def source_images(sources: Sequence[Source]) -> list[ImageFile]:
    """Every image that the sources' samples name, once; samples that cannot be used are left out."""
    found: dict[str, ImageFile] = {}
    for source in sources:
        for index in range(len(source)):
            try:
                for name in source.sample(index).images:
                    file = source.image_file(name)
                    found.setdefault(str(file), file)
            except DataError:
                continue  # `check_sources` reports it
    return list(found.values())


@dataclass(frozen=True)
class HashedImages:
    """Hashes of the comparable images of a list, and what was left out."""

    paths: list[ImageFile]
    codes: NDArray[np.uint64]  # [n, 8]
    flat: int
    unreadable: list[str]


def find_overlap(
    images: Sequence[ImageFile],
    against: Sequence[ImageFile],
    *,
    distance: int = DISTANCE,
    least_correlation: float = CORRELATION,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> LeakReport:
    """Pretraining images that are also downstream images.

    Args:
        images: of pretraining.
        against: downstream; whichever orientation they are stored in.
        distance: hashes that differ in at most this many bits (0-7) are candidates.
        least_correlation: that a candidate's thumbnails must reach.
        workers: processes; the report does not depend on it.
        progress: called with (images hashed, images in all).

    Raises:
        DataError: a worker process died. An unreadable image is in the report.
    """
    total = len(images) + len(against)
    first = hash_images(images, workers, progress, 0, total)
    second = hash_images(against, workers, progress, len(images), total)
    cache: dict[str, NDArray[np.float32]] = {}
    overlaps = []
    for (i, j), (bits, orientation) in sorted(candidates(first.codes, second.codes, distance).items()):
        a, b = cached_thumbnail(first.paths[i], cache), cached_thumbnail(second.paths[j], cache)
        r = correlation(a, oriented(b, orientation))
        if r >= least_correlation:
            image, found_in = str(first.paths[i]), str(second.paths[j])
            overlaps.append(Overlap(image, found_in, bits, round(r, 4), orientation != 0))
    overlaps.sort(key=lambda o: (o.image, o.found_in))
    unreadable = tuple(first.unreadable + second.unreadable)
    return LeakReport(tuple(overlaps), len(first.paths), len(second.paths), first.flat + second.flat, unreadable)


def candidates(
    first: NDArray[np.uint64], second: NDArray[np.uint64], distance: int
) -> dict[tuple[int, int], tuple[int, int]]:
    """Pairs of rows of two tables of hashes [n, 8] that are near: (i, j) -> (bits, orientation of j), the best one."""
    best: dict[tuple[int, int], tuple[int, int]] = {}
    upright = first[:, 0]
    for orientation in range(len(ORIENTATIONS)):
        turned = second[:, orientation]
        for i, j in near(upright, turned, distance).tolist():
            bits = int(np.bitwise_count(upright[i] ^ turned[j]))
            best[i, j] = min(best.get((i, j), (65, 0)), (bits, orientation))
    return best


def cached_thumbnail(path: ImageFile, cache: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The thumbnail of an image; the cache keeps some thousands of them."""
    if str(path) not in cache:
        if len(cache) >= 4096:
            cache.clear()
        cache[str(path)] = thumbnail(path)
    return cache[str(path)]


def _hash_some(paths: Sequence[ImageFile]) -> list[NDArray[np.uint64] | str | None]:
    """Eight hashes of each image, None where it is flat, the reason where it cannot be read."""
    found: list[NDArray[np.uint64] | str | None] = []
    for path in paths:
        try:
            picture = thumbnail(path)
        except ImageError as error:
            found.append(str(error))
            continue
        found.append(None if is_flat(picture) else hashes(picture))
    return found


def _hashing() -> Callable[[Sequence[ImageFile]], list[NDArray[np.uint64] | str | None]]:
    return _hash_some


def hash_images(
    paths: Sequence[ImageFile], workers: int, progress: Callable[[int, int], None] | None, done: int, total: int
) -> HashedImages:
    """Hashes of all images that show enough to be compared; progress goes on from `done` of `total`."""
    kept: list[ImageFile] = []
    codes: list[NDArray[np.uint64]] = []
    flat, unreadable = 0, []
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    for chunk, results in zip(chunks, mapped(_hashing, chunks, workers), strict=True):
        for path, result in zip(chunk, results, strict=True):
            if result is None:
                flat += 1
            elif isinstance(result, str):
                unreadable.append(result)
            else:
                kept.append(path)
                codes.append(result)
        done += len(chunk)
        if progress is not None:
            progress(done, total)
    table = np.stack(codes) if codes else np.zeros((0, len(ORIENTATIONS)), np.uint64)
    return HashedImages(kept, table, flat, unreadable)
