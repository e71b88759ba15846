"""Perceptual hashes: the same picture is found again after re-encoding, resizing, brightening, flips and turns.

The hash is the sign pattern of low DCT frequencies of a 32 x 32 grey picture (pHash; Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010). The eight flips and turns of a picture only change signs and
swap axes of its DCT, so all eight hashes come from one transform.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vitp.images.raster import RasterConfig
from vitp.images.read import ImageConfig, read_image
from vitp.images.stored import ImageFile

SIDE = 32
_FREQUENCIES = slice(1, 9)  # 8 x 8 of them, without those that are constant along an axis
_FLAT = 2.0  # grey levels of standard deviation below which noise decides the hash; ours
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_BANDS, _BAND_BITS = 4, 16
MAX_DISTANCE = 2 * _BANDS - 1  # what the search below finds without exception

# The eight orientations: transposed or not, mirrored left-right or not, mirrored top-bottom or not.
ORIENTATIONS: tuple[tuple[bool, bool, bool], ...] = tuple(
    (transposed, mirrored, flipped)
    for transposed in (False, True)
    for mirrored in (False, True)
    for flipped in (False, True)
)


_ANY = ImageConfig(raster=RasterConfig())  # scaling is of no consequence: brightness and contrast do not count


def thumbnail(path: ImageFile) -> NDArray[np.float32]:
    """An image file as grey levels 0-255, [32, 32]; the aspect ratio is not kept.

    Raises:
        ImageError: it cannot be read.
    """
    pixels = read_image(path, _ANY).float()
    grey = (pixels * torch.tensor(_LUMA).view(3, 1, 1)).sum(0)
    small = functional.interpolate(grey[None, None], (SIDE, SIDE), mode="bilinear", antialias=True)[0, 0]
    found: NDArray[np.float32] = small.numpy()
    return found


def is_flat(picture: NDArray[np.float32]) -> bool:
    """Whether a thumbnail shows too little to be told from others: open sea, an empty slice."""
    return float(picture.std()) < _FLAT


def hashes(picture: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Hashes of a thumbnail [32, 32] in every orientation, uint64 [8], in the order of `ORIENTATIONS`."""
    low: NDArray[np.float32] = (_DCT @ picture @ _DCT.T)[_FREQUENCIES, _FREQUENCIES].astype(np.float32)
    return np.array([_bits(_turned(low, *orientation)) for orientation in ORIENTATIONS], np.uint64)


def oriented(picture: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """A thumbnail in one of the `ORIENTATIONS`."""
    transposed, mirrored, flipped = ORIENTATIONS[orientation]
    picture = picture.T if transposed else picture
    picture = picture[:, ::-1] if mirrored else picture
    return picture[::-1] if flipped else picture


def _turned(low: NDArray[np.float32], transposed: bool, mirrored: bool, flipped: bool) -> NDArray[np.float32]:
    """DCT coefficients of the turned picture: mirroring an axis negates its odd frequencies."""
    low = low.T if transposed else low
    odd = np.where(np.arange(_FREQUENCIES.start, _FREQUENCIES.stop) % 2, -1.0, 1.0).astype(np.float32)
    low = low * odd if mirrored else low
    return low * odd[:, None] if flipped else low


def _bits(low: NDArray[np.float32]) -> np.uint64:
    return np.uint64(int.from_bytes(np.packbits((low > np.median(low)).ravel()).tobytes(), "big"))


def _dct() -> NDArray[np.float32]:
    """The DCT-II as a matrix [32, 32], rows are frequencies; scale is of no consequence here."""
    position = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    return np.cos(np.arange(SIDE)[:, None] * position).astype(np.float32)


_DCT = _dct()


def correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson correlation of two thumbnails, -1 to 1: brightness and contrast do not count."""
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale else 0.0


def near(a: NDArray[np.uint64], b: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """All pairs whose hashes differ in at most `distance` <= 7 bits: int64 [n, 2] of indices into `a` and `b`, sorted.

    Two hashes that differ in at most 7 bits agree, up to one bit, in one of four 16-bit bands; so candidates are looked
    up band by band in sorted order, and no pair is missed.
    """
    assert 0 <= distance <= MAX_DISTANCE
    found = []
    flips = np.array([0, *(1 << i for i in range(_BAND_BITS))], np.uint64)
    for band in range(_BANDS):
        shift, mask = np.uint64(band * _BAND_BITS), np.uint64((1 << _BAND_BITS) - 1)
        keys = (a >> shift) & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for flip in flips:
            wanted = ((b >> shift) & mask) ^ flip
            first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            found.append(_matches(a, b, order, first, last, distance))
    pairs: NDArray[np.int64] = np.unique(np.concatenate(found), axis=0)
    return pairs


_AT_ONCE = 1 << 22  # candidate pairs compared at a time: 64 MB of indices


def _matches(
    a: NDArray[np.uint64],
    b: NDArray[np.uint64],
    order: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    distance: int,
) -> NDArray[np.int64]:
    """Pairs (order[k], j), first[j] <= k < last[j], that are close enough."""
    counts = last - first
    ends = np.cumsum(counts)
    kept = [np.zeros((0, 2), np.int64)]
    start = 0
    while start < len(b):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, "right")))
        number = counts[start:stop]
        j = np.repeat(np.arange(start, stop), number)
        offset = np.arange(len(j)) - np.repeat(np.cumsum(number) - number, number)
        i = order[np.repeat(first[start:stop], number) + offset]
        close = np.bitwise_count(a[i] ^ b[j]) <= distance
        kept.append(np.stack([i[close], j[close]], 1))
        start = stop
    return np.concatenate(kept)
