"""Images of the pretraining data that show the same: re-encoded, resized, brightened, flipped or turned copies.

The comparison is that of `vitp.instruction.leakage`, of the data with itself. Images that one sample shows side by side
are left out: two dates of a place, two slices of a scan are meant to resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from vitp.images.perceptual import correlation, oriented
from vitp.images.stored import ImageFile
from vitp.instruction.leakage import CORRELATION, DISTANCE, Overlap, cached_thumbnail, candidates, hash_images


def find_near_duplicates(
    images: Sequence[ImageFile],
    together: AbstractSet[tuple[str, str]] = frozenset(),
    *,
    distance: int = DISTANCE,
    least_correlation: float = CORRELATION,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Overlap, ...]:
    """Each image that shows the same as an earlier one of the list, once, with one of these.

    Args:
        images: files, each once; those that cannot be read or show too little are not compared.
        together: pairs of paths, sorted, that belong side by side.
        distance: hashes that differ in at most this many bits (0-7) are candidates.
        least_correlation: that a candidate's thumbnails must reach.
        workers: processes; the result does not depend on it.
        progress: called with (images hashed, images in all).

    Raises:
        DataError: a worker process died.
    """
    hashed = hash_images(images, workers, progress, 0, len(images))
    cache: dict[str, NDArray[np.float32]] = {}
    found: dict[int, Overlap] = {}
    for j, i, bits, orientation in sorted(_pairs(hashed.codes, distance)):
        a, b = hashed.paths[i], hashed.paths[j]
        low, high = sorted((str(a), str(b)))
        if j in found or (low, high) in together:
            continue
        r = correlation(cached_thumbnail(a, cache), oriented(cached_thumbnail(b, cache), orientation))
        if r >= least_correlation:
            found[j] = Overlap(str(b), str(a), bits, round(r, 4), orientation != 0)
    return tuple(found[j] for j in sorted(found))


def _pairs(codes: NDArray[np.uint64], distance: int) -> list[tuple[int, int, int, int]]:
    """Candidates (j, i, bits, orientation of j) with i < j, from hashes uint64 [n, 8].

    Rows of equal hashes are compared with the first of them only: a picture that occurs a thousand times makes a
    thousand pairs, not half a million.
    """
    if not len(codes):
        return []
    _, firsts, groups = np.unique(codes[:, 0], return_index=True, return_inverse=True)
    same = [(j, int(firsts[group]), 0, 0) for j, group in enumerate(groups.tolist()) if j != firsts[group]]
    order = np.sort(firsts)
    near = candidates(codes[order], codes[order], distance)
    return same + [(int(order[j]), int(order[i]), *how) for (i, j), how in near.items() if i < j]
