"""VRL's choice: Eq. 4's count, uniform, ordered, reproducible, and refused outside [0, 1)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vitp.config import load
from vitp.errors import ConfigError
from vitp.train.draws import Purpose, generator
from vitp.vlm.token_drop import TokenDropConfig, draw, keep, kept_count


@given(n=st.integers(0, 4000), percent=st.integers(0, 99))
def test_kept_count_is_the_ceiling_of_eq_4(n: int, percent: int) -> None:
    assert kept_count(n, percent / 100) == -((-(100 - percent) * n) // 100)  # exact in integers


@given(n=st.integers(1, 500), r=st.floats(0, 0.99), seed=st.integers(0, 2**31))
def test_survivors_are_ascending_unique_and_in_range(n: int, r: float, seed: int) -> None:
    kept = keep(n, r, np.random.default_rng(seed))
    assert np.all(np.diff(kept) > 0)
    assert kept[0] >= 0
    assert kept[-1] < n


def test_zero_ratio_is_the_identity() -> None:
    assert keep(17, 0.0, np.random.default_rng(0)).tolist() == list(range(17))


@pytest.mark.parametrize("r", [-0.1, 1.0, 1.2, math.nan])
def test_impossible_ratio_is_refused(r: float) -> None:
    with pytest.raises(ValueError, match="drop_ratio"):
        keep(8, r, np.random.default_rng(0))


def test_every_token_survives_equally_often() -> None:
    n, r, trials = 64, 0.75, 20_000
    counts = np.zeros(n)
    pairs = np.zeros((n, n))
    for step in range(trials):
        kept = keep(n, r, generator(3, Purpose.TOKEN_DROP, step, 0))
        counts[kept] += 1
        pairs[np.ix_(kept, kept)] += 1
    # Drawing without replacement shrinks the variance of each count by the dropped share.
    statistic = ((counts - trials * 0.25) ** 2 / (trials * 0.25 * 0.75)).sum() * (n - 1) / n
    assert stats.chi2.sf(statistic, n - 1) > 1e-3
    joint = pairs[np.triu_indices(n, 1)] / trials
    expected = 16 * 15 / (64 * 63)
    assert abs(joint.mean() - expected) < 1e-9  # every draw keeps exactly 16
    assert np.abs(joint - expected).max() < 6 * math.sqrt(expected / trials)


def test_draw_depends_on_seed_step_and_slot_alone() -> None:
    config = TokenDropConfig()
    first = draw(64, config, generator(1, Purpose.TOKEN_DROP, 7, 3))
    assert np.array_equal(first, draw(64, config, generator(1, Purpose.TOKEN_DROP, 7, 3)))
    others = [(2, 7, 3), (1, 8, 3), (1, 7, 4)]
    assert all(not np.array_equal(first, draw(64, config, generator(s, Purpose.TOKEN_DROP, *p))) for s, *p in others)


def test_released_preset_drops_on_a_quarter_of_the_samples() -> None:
    config = TokenDropConfig(preset="released")
    sizes = [len(draw(64, config, generator(0, Purpose.TOKEN_DROP, s, 0))) for s in range(4000)]
    assert set(sizes) == {16, 64}
    assert abs(sizes.count(16) / 4000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


def test_presets_and_custom_numbers() -> None:
    assert (TokenDropConfig().ratio, TokenDropConfig().probability) == (0.75, 1.0)
    custom = TokenDropConfig(preset="custom", drop_ratio=0.5)
    assert (custom.ratio, custom.probability) == (0.5, 1.0)
    with pytest.raises(ConfigError, match=r"command line: drop_ratio: .*1\.2"):
        load(TokenDropConfig, None, ["preset=custom", "drop_ratio=1.2"])
    with pytest.raises(ConfigError, match="preset: custom"):
        load(TokenDropConfig, None, ["drop_ratio=0.5"])
