"""Splits by hypothesis: whatever the groups, no group is cut, nothing is lost, and smaller sets lie in larger ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vitp.datasets.splits import SplitConfig, split_items
from vitp.errors import DataError

ROOT = Path("data")


class _Item(NamedTuple):
    image: Path
    group: str


def _items(groups: list[int]) -> list[_Item]:
    return [_Item(ROOT / f"{i}.png", f"g{group}") for i, group in enumerate(groups)]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=150)
def test_groups_stay_whole_and_every_image_is_in_one_part(groups: list[int], fraction: float, seed: int) -> None:
    assume(len(set(groups)) > 1)
    items = _items(groups)
    parts = split_items(items, SplitConfig(test_fraction=fraction, split_seed=seed), ROOT)
    assert sorted(parts.train + parts.test) == list(range(len(items)))
    assert parts.val == []
    assert not {items[i].group for i in parts.train} & {items[i].group for i in parts.test}
    sizes = sorted({1, max(1, len(parts.train) // 2), len(parts.train)})
    few = [
        set(split_items(items, SplitConfig(test_fraction=fraction, split_seed=seed, train=k), ROOT).train)
        for k in sizes
    ]
    assert [len(some) for some in few] == sizes
    assert all(a <= b for a, b in zip(few, few[1:], strict=False))


@given(st.lists(st.integers(0, 9), min_size=3, max_size=60), st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=150)
def test_shares_of_the_training_images_are_whole_groups_inside_each_other(
    groups: list[int], seed: int, drawn: int
) -> None:
    assume(len(set(groups)) > 1)
    items = _items(groups)
    whole = split_items(items, SplitConfig(split_seed=seed), ROOT)
    sizes = {
        group: sum(items[i].group == group for i in whole.train) for group in {items[i].group for i in whole.train}
    }
    found = []
    for fraction in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        parts = split_items(items, SplitConfig(split_seed=seed, fraction=fraction, fraction_seed=drawn), ROOT)
        assert parts.test == whole.test
        assert {items[i].group for i in parts.train} & {items[i].group for i in whole.train}
        for group in {items[i].group for i in parts.train}:  # no patient is cut
            assert sum(items[i].group == group for i in parts.train) == sizes[group]
        off = abs(len(parts.train) - fraction * len(whole.train))
        assert len({items[i].group for i in parts.train}) == 1 or off <= max(sizes.values()) / 2
        found.append(set(parts.train))
    assert found[-1] == set(whole.train)
    assert all(a <= b for a, b in zip(found, found[1:], strict=False))


def test_another_seed_draws_another_share_of_the_same_training_images() -> None:
    items = _items(list(range(50)))
    shares = [split_items(items, SplitConfig(fraction=0.1, fraction_seed=s), ROOT) for s in (0, 0, 1)]
    assert shares[0] == shares[1]
    assert shares[0].train != shares[2].train
    assert shares[0].test == shares[2].test
    assert len(shares[0].train) == 4
    with pytest.raises(ValueError, match="keep one"):
        SplitConfig(fraction=0.1, train=3)


def test_one_group_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="3 images leave 3 for training, 0 for testing"):
        split_items(_items([1, 1, 1]), SplitConfig(), ROOT)


def test_all_in_the_test_list_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("0.png\n1\n")
    with pytest.raises(DataError, match="2 images leave 0 for training, 2 for testing"):
        split_items(_items([1, 2]), SplitConfig(test_list=tmp_path / "test.txt"), ROOT)


def test_validation_apart_from_test_is_taken_out_of_training(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("0\n")
    (tmp_path / "val.txt").write_text("g2\n")
    config = SplitConfig(test_list=tmp_path / "test.txt", val_list=tmp_path / "val.txt")
    parts = split_items(_items([1, 2, 2, 3]), config, ROOT)
    assert (parts.train, parts.val, parts.test) == ([3], [1, 2], [0])


@given(st.lists(st.integers(0, 9), min_size=4, max_size=60), st.floats(0.05, 0.9), st.integers(0, 5))
@settings(max_examples=100)
def test_validation_images_are_drawn_from_the_training_images_in_whole_groups(
    groups: list[int], share: float, seed: int
) -> None:
    assume(len(set(groups)) > 2)
    items = _items(groups)
    before = split_items(items, SplitConfig(test_fraction=0.2, split_seed=seed), ROOT)
    assume(len({groups[i] for i in before.train}) > 1)
    parts = split_items(items, SplitConfig(test_fraction=0.2, split_seed=seed, val_fraction=share), ROOT)
    assert parts.test == before.test
    assert sorted(parts.train + parts.val) == before.train
    assert parts.val
    assert not {groups[i] for i in parts.train} & {groups[i] for i in parts.val}
    largest = max(groups.count(group) for group in groups)
    assert len(parts.val) < max(1, round(share * len(before.train))) + largest


@pytest.mark.parametrize("seed", range(6))
def test_a_group_of_the_test_images_is_never_drawn_for_validation(tmp_path: Path, seed: int) -> None:
    """Refused whatever is drawn; with some seeds all of the group's other images would be put aside."""
    (tmp_path / "test.txt").write_text("0.png\n")
    config = SplitConfig(test_list=tmp_path / "test.txt", val_fraction=0.3, split_seed=seed)
    with pytest.raises(DataError, match="in both the training and the test images"):
        split_items(_items([0, 0, 1, 1, 2, 2, 3, 3]), config, ROOT)


def test_validation_images_are_drawn_or_named_not_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="val_fraction and val_list both say"):
        SplitConfig(val_fraction=0.1, val_list=tmp_path / "val.txt")
    items = _items([0, 1, 2, 3])
    with pytest.raises(DataError, match="has 1 validation images already"):
        split_items(items, SplitConfig(val_fraction=0.5), ROOT, known={"train": {0, 1}, "val": {2}, "test": {3}})
    with pytest.raises(DataError, match="are of one group"):
        split_items(_items([0, 1, 1]), SplitConfig(val_fraction=0.5, test_fraction=0.2, split_seed=1), ROOT)
    parts = split_items(items, SplitConfig(val_fraction=0.4), ROOT, known={"train": {0, 1, 2}, "test": {3}})
    assert (len(parts.train), len(parts.val), parts.test) == (2, 1, [3])
