"""Masks as COCO's run lengths: decoded, and turned into outlines along the borders of their pixels.

Runs go down the columns, beginning with a run of zeros; COCO writes them as a list, or packed into text with six bits a
character (pycocotools' maskApi documents both).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]  # [H, W]
Corner = tuple[int, int]  # x, y
Ring = list[Corner]
_FIRST = 48  # character code of zero
_MORE, _SIGN, _BITS = 32, 16, 5  # of a character: another one follows; the number is negative; payload bits
_MOST = 2**30  # pixels of a mask that is decoded, a byte each (ours; DOTA's largest image has 0.8 of it)
_LONGEST = 7  # characters of a run below 2 ** 31, with its sign


class RunLengthError(ValueError):
    """Run lengths that cannot be decoded; completes "has run lengths that ..."."""


def decode(size: object, counts: object, expected: tuple[int, int] | None) -> Mask:
    """The mask [H, W] of run lengths.

    Args:
        size: [H, W] as the file states it.
        counts: a list of runs, or text.
        expected: (H, W) of the image, where it is known.

    Raises:
        RunLengthError: another size than the image, one too large, runs that do not fill it; nothing is allocated before.
    """
    if not isinstance(size, list) or len(size) != 2 or not all(type(v) is int and v > 0 for v in size):
        raise RunLengthError(f"have the size {size!r:.40}, not [height, width]")
    height, width = size
    if height * width > _MOST:
        raise RunLengthError(f"have the size {size!r:.40}, which is more than {_MOST:,} pixels")
    if expected is not None and (height, width) != expected:
        raise RunLengthError(f"are of {height} x {width} pixels, where the image has {expected[0]} x {expected[1]}")
    runs = unpack(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise RunLengthError("are neither a list of whole numbers nor text")
    if (covered := sum(runs)) != height * width:
        number = covered if covered <= _MOST else f"more than {_MOST:,}"
        raise RunLengthError(f"cover {number} pixels, where the mask has {height * width}")
    ones = np.zeros(len(runs), dtype=np.bool_)
    ones[1::2] = True
    columns: Mask = np.repeat(ones, runs).reshape(width, height)
    return columns.T


def unpack(text: str) -> list[int]:
    """The runs packed into text: after the third, each is the difference from the one before last.

    Raises:
        RunLengthError: characters that are none of it, or an end within a number.
    """
    runs: list[int] = []
    value = shift = length = 0
    for character in text:
        code = ord(character) - _FIRST
        if not 0 <= code < 2 * _MORE or length >= _LONGEST:
            raise RunLengthError(f"hold '{character}' where none can be")
        value |= (code & (_MORE - 1)) << shift
        shift, length = shift + _BITS, length + 1
        if code & _MORE:
            continue
        if code & _SIGN:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = length = 0
    if length:
        raise RunLengthError("end within a number")
    return runs


def rings_of(mask: Mask) -> list[NDArray[np.float32]]:
    """Outlines [K, 2] of a mask along its pixels' borders, one a region of 4-connected pixels, clockwise as seen.

    A hole is joined to what is around it by a cut without width, so that the area of the rings is the mask's, by the
    shoelace formula too, and a point is inside whichever filling rule is used.
    """
    outer: list[Ring] = []
    holes: list[Ring] = []
    for ring in _loops(mask):
        (outer if _twice_area(ring) > 0 else holes).append(ring)
    for hole in sorted(holes, key=min):  # from left to right: what lies left of a hole is already joined
        _join(outer, hole)
    return [np.array(ring, dtype=np.float32) for ring in outer]


def _loops(mask: Mask) -> list[Ring]:
    """Closed borders with the mask to the right of each step: clockwise around regions, anticlockwise around holes."""
    padded = np.pad(mask, 1).astype(np.int8)
    across = _edges(np.diff(padded, axis=0)[:, 1:-1])  # (row, first, last, sign): 1 where the mask begins below
    down = _edges(np.diff(padded, axis=1)[1:-1].T)
    leaving: dict[tuple[int, int, bool], list[Corner]] = {}  # corner, along a row -> other ends
    for y, first, last, sign in across:
        start, end = ((first, y), (last, y)) if sign > 0 else ((last, y), (first, y))
        leaving.setdefault((*start, True), []).append(end)
    for x, first, last, sign in down:
        start, end = ((x, last), (x, first)) if sign > 0 else ((x, first), (x, last))
        leaving.setdefault((*start, False), []).append(end)
    loops = []
    while leaving:
        key = next(iter(leaving))
        at: Corner = key[:2]
        before, level = at, key[2]
        way = leaving[key][0]
        ring: Ring = []
        while True:
            ends = leaving.get((*at, level), [])
            choice = [*ends, way] if ring and (*at, level) == key else ends
            end = choice[_right_turn(before, at, choice) if len(choice) > 1 else 0]
            if ring and (*at, level) == key and end == way:
                break
            ends.remove(end)
            if not ends:
                del leaving[(*at, level)]
            ring.append(at)
            before, at, level = at, end, not level
        loops.append(ring)
    return loops


def _right_turn(before: Corner, at: Corner, ends: list[Corner]) -> int:
    """Which of two ways on turns right, so that pixels which touch at a corner stay apart."""
    ux, uy = at[0] - before[0], at[1] - before[1]
    turns = [ux * (y - at[1]) - uy * (x - at[0]) for x, y in ends]
    return turns.index(max(turns))


def _edges(steps: NDArray[np.int8]) -> list[tuple[int, int, int, int]]:
    """(line, first, last, sign) of the runs of equal steps other than zero along each line [L, n]."""
    flat = np.pad(steps, ((0, 0), (0, 1))).ravel()  # a zero ends every line
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0)))
    stride = steps.shape[1] + 1
    found = []
    for start, stop in pairwise([*changes.tolist(), len(flat)]):
        if flat[start]:
            found.append((start // stride, start % stride, start % stride + stop - start, int(flat[start])))
    return found


def _twice_area(ring: Ring) -> int:
    return sum(x * v - u * y for (x, y), (u, v) in pairwise([*ring, ring[0]]))


def _join(outer: list[Ring], hole: Ring) -> None:
    """Cut from the hole's leftmost corner to the nearest border left of it, and make one ring of both."""
    start = hole.index(min(hole))
    x, y = hole[start]
    best: tuple[int, int, int] | None = None  # x of the border, ring, place in the ring
    for number, ring in enumerate(outer):
        for place, ((ax, ay), (bx, by)) in enumerate(pairwise([*ring, ring[0]])):
            if ax == bx and ax < x and min(ay, by) <= y < max(ay, by) and (best is None or ax > best[0]):
                best = (ax, number, place)
    assert best is not None, "a hole lies within a region"
    edge, number, place = best
    ring = outer[number]
    around = [*hole[start:], *hole[: start + 1]]
    outer[number] = [*ring[: place + 1], (edge, y), *around, (edge, y), *ring[place + 1 :]]
