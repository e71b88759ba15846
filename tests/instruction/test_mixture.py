"""The stream of samples: exact shares, every sample in turn, nothing but arithmetic."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.errors import DataError
from vitp.instruction.mixture import Mixture, permute, permute_many


@given(n=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_permutation_is_a_bijection(n: int, key: int) -> None:
    assert sorted(permute(i, n, key) for i in range(n)) == list(range(n))


def test_permutation_mixes() -> None:
    n = 4096
    image = [permute(i, n, 12345) for i in range(n)]
    jumps = sum(abs(a - b) for a, b in zip(image, image[1:], strict=False)) / (n - 1)
    assert abs(jumps - n / 3) < n * 0.02  # mean distance of two random places
    assert sum(i == j for i, j in enumerate(image)) < 8


def epoch(mixture: Mixture, number: int) -> Counter[tuple[int, int]]:
    first = number * mixture.epoch_length
    places = [mixture.at(p) for p in range(first, first + mixture.epoch_length)]
    assert all(p.epoch == number for p in places)
    return Counter((p.source, p.index) for p in places)


def test_weights_give_exact_shares_and_fractions() -> None:
    mixture = Mixture([100, 40, 10], [1.0, 0.25, 2.5], seed=7)
    assert mixture.epoch_length == 100 + 10 + 25
    seen = epoch(mixture, 0)
    by_source = [Counter({i: c for (s, i), c in seen.items() if s == k}) for k in range(3)]
    assert set(by_source[0].values()) == {1}
    assert len(by_source[0]) == 100
    assert len(by_source[1]) == 10
    assert set(by_source[1].values()) == {1}
    assert sorted(by_source[2].values()) == [2] * 5 + [3] * 5


def test_a_fraction_shows_every_sample_before_any_twice() -> None:
    mixture = Mixture([40], [0.25], seed=1)
    epochs = [epoch(mixture, e) for e in range(4)]
    assert epochs[0] != epochs[1]
    assert sum(epochs, Counter()) == Counter({(0, i): 1 for i in range(40)})
    subset = sorted(i for _, i in epochs[0])
    assert subset != list(range(10))  # not the first lines, as the released loader takes


def test_order_differs_by_epoch_and_seed_and_repeats_exactly() -> None:
    def order(seed: int, number: int) -> list[int]:
        mixture = Mixture([64], [1.0], seed)
        return [mixture.at(number * 64 + p).index for p in range(64)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_far_positions_cost_nothing() -> None:
    mixture = Mixture([10**9, 3], [0.5, 100.0], seed=0)
    place = mixture.at(10**15)
    assert 0 <= place.index < 10**9


def test_empty_mixture_is_refused() -> None:
    with pytest.raises(DataError, match="no sample at all"):
        Mixture([0, 0], [1.0, 2.0], seed=0)


def test_a_small_source_is_never_left_out() -> None:
    mixture = Mixture([1000, 4], [1.0, 0.1], seed=0)
    assert sum(count for (source, _), count in epoch(mixture, 0).items() if source == 1) == 1


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permuting_many_is_permuting_each(n: int, key: int) -> None:
    indices = np.random.default_rng(n).integers(0, n, 50)
    assert permute_many(indices, n, key).tolist() == [permute(int(i), n, key) for i in indices]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0.05, 3.7)), min_size=1, max_size=5).filter(
        lambda s: any(n for n, _ in s)
    ),
    st.integers(0, 3000),
    st.integers(0, 200),
)
def test_many_places_are_each_place(sources: list[tuple[int, float]], start: int, count: int) -> None:
    mixture = Mixture([n for n, _ in sources], [w for _, w in sources], 5)
    positions = range(start, start + count)
    assert mixture.at_many(positions) == [mixture.at(p) for p in positions]


def test_many_places_far_along_a_huge_mixture() -> None:
    mixture = Mixture([10**9, 3 * 10**6], [1.0, 0.25], 1)
    positions = range(10**12 + 7, 10**12 + 135)
    assert mixture.at_many(positions) == [mixture.at(p) for p in positions]
