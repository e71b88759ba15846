"""Run lengths and outlines: pycocotools as the independent reference, both ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as reference

from vitp.datasets.run_lengths import RunLengthError, decode, rings_of, unpack

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(np.bool_, size))


def _area(ring: NDArray[np.float32]) -> float:
    x, y = ring.T.astype(np.float64)
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


@given(MASKS)
@settings(max_examples=200)
def test_what_pycocotools_packs_is_unpacked(mask: NDArray[np.bool_]) -> None:
    packed = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    height, width = mask.shape
    assert (decode([height, width], packed["counts"].decode(), (height, width)) == mask).all()


def test_long_runs_and_lists_of_runs() -> None:
    mask = np.zeros((900, 700), dtype=np.bool_)
    mask[5:890, 3:600] = True
    mask[100:200, 50:400] = False
    packed = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (decode([900, 700], packed["counts"].decode(), None) == mask).all()
    runs = unpack(packed["counts"].decode())
    assert (decode([900, 700], runs, None) == mask).all()
    assert sum(runs[1::2]) == reference.area(packed)


@given(MASKS)
@settings(max_examples=300)
def test_outlines_have_the_area_of_the_mask_and_draw_it_again(mask: NDArray[np.bool_]) -> None:
    rings = rings_of(mask)
    assert all(_area(ring) > 0 for ring in rings)
    assert sum(map(_area, rings)) == mask.sum()
    if rings:
        flat = [ring.astype(float).reshape(-1).tolist() for ring in rings]
        assert (reference.decode(reference.merge(reference.frPyObjects(flat, *mask.shape))) == mask).all()


def test_a_hole_in_a_hole_and_pixels_that_touch_at_corners() -> None:
    mask = np.ones((9, 9), dtype=np.bool_)
    mask[1:8, 1:8] = False
    mask[2:7, 2:7] = True
    mask[4, 4] = False
    assert len(rings_of(mask)) == 2  # the frame and the block within, each with its hole cut open
    assert len(rings_of(np.eye(5, dtype=np.bool_))) == 5


@pytest.mark.parametrize(
    ("size", "counts", "expected", "found"),
    [
        ([4, 4], [3, 4], None, "cover 7 pixels, where the mask has 16"),
        ([4, 4], [3, -4, 17], None, "neither a list of whole numbers nor text"),
        ([4, 4], [16.0], None, "neither a list"),
        ([4, 4], None, None, "neither a list"),
        ([4, 4], "é", None, "hold 'é'"),
        ([4, 4], "oooooooooo", None, "where none can be"),
        ([4, 4], "P", None, "end within a number"),
        ([4, 4], "4", (5, 4), "are of 4 x 4 pixels, where the image has 5 x 4"),
        # and nothing of that size is allocated
        ([10**9, 10**9], [10**18], None, r"have the size \[1000000000, 1000000000\], which is more than"),
        ([2**20, 2**20], [2**40], (2**20, 2**20), "have the size .* which is more than 1,073,741,824 pixels"),
        ([10**4000, 10**4000], [1], None, "have the size"),
        ([4, 4], [2**70, 2**70], None, "cover more than 1,073,741,824 pixels, where the mask has 16"),
        ([4, 4], [9 * 10**4299, 9 * 10**4299], None, "cover more than"),
        ([4], [16], None, "have the size"),
        (None, [16], None, "have the size"),
    ],
)
def test_damaged_run_lengths_are_refused(size: object, counts: object, expected: tuple[int, int], found: str) -> None:
    with pytest.raises(RunLengthError, match=found):
        decode(size, counts, expected)
