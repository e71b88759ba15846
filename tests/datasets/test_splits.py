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
