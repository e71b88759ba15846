"""Values to levels: one rule, whatever way it is computed."""

import numpy as np
import pytest

from vitp.images.levels import to_levels


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16"])
def test_large_images_go_through_a_table_to_the_same_levels(dtype: str) -> None:
    info = np.iinfo(dtype)
    band = np.random.default_rng(7).integers(info.min, info.max + 1, (300, 300)).astype(dtype)
    valid = np.random.default_rng(1).random((300, 300)) > 0.1
    low, high = np.percentile(band, (10, 80))
    expected = np.rint(np.clip((band.astype(float) - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(to_levels(band, (low, high), valid), np.where(valid, expected, 0))
    assert np.array_equal(to_levels(band.astype(float), (low, high), valid), np.where(valid, expected, 0))


def test_a_few_bright_targets_on_a_constant_ground_stay_visible() -> None:
    ground = np.zeros((20, 20))
    ground[3, 4] = 9
    levels = to_levels(ground, (0.0, 0.0), np.ones((20, 20), dtype=bool))
    assert levels[3, 4] == 255
    assert levels.sum() == 255
