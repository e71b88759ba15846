"""Objects in overlapping windows: each once, whatever the windows cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitp.boxes.formats import from_xyxy
from vitp.boxes.merge import cut_by_window, merge_windows


def _merge(boxes: list[list[float]], scores: list[float], cut: list[bool], labels: list[int] | None = None,
           threshold: float = 0.5, rotated: bool = False) -> list[int]:  # fmt: skip
    found: Tensor = torch.tensor(boxes)
    kinds = torch.tensor(labels or [0] * len(boxes))
    kept = merge_windows(
        from_xyxy(found) if rotated else found, torch.tensor(scores), kinds, torch.tensor(cut), threshold
    )
    return [int(i) for i in kept]


@pytest.mark.parametrize("rotated", [False, True])
def test_the_whole_find_wins_over_the_surer_piece_of_it(rotated: bool) -> None:
    boxes = [[0.0, 0, 100, 20], [0, 0, 40, 20]]  # IoU 0.4: plain suppression would keep both
    assert _merge(boxes, [0.6, 0.9], [False, True], rotated=rotated) == [0]
    assert _merge(boxes, [0.6, 0.9], [False, False], rotated=rotated) == [1, 0]


def test_a_piece_stays_where_nobody_saw_the_whole() -> None:
    assert _merge([[0, 0, 40, 20], [60, 0, 100, 20]], [0.9, 0.8], [True, True]) == [0, 1]


def test_pieces_of_one_object_that_overlap_much_are_one() -> None:
    assert _merge([[0, 0, 60, 20], [10, 0, 70, 20]], [0.7, 0.8], [True, True]) == [1]


def test_other_labels_are_left_alone() -> None:
    assert _merge([[0, 0, 10, 10], [0, 0, 10, 10]], [0.7, 0.8], [False, False], labels=[0, 1]) == [1, 0]


def test_nothing_and_the_not_finite() -> None:
    assert (
        merge_windows(
            torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), 0.1
        ).tolist()
        == []
    )
    nan = float("nan")
    assert _merge([[nan, 0, 1, 1], [0, 0, 1, 1]], [0.9, 0.8], [False, False]) == [0, 1]


def test_only_sides_inside_the_picture_cut() -> None:
    boxes = torch.tensor([[0.0, 0, 5, 5], [50, 50, 64, 60], [10, 10, 20, 20], [30, 30, 40, 63]])
    assert cut_by_window(boxes, (0, 0, 64, 64), (64, 64)).tolist() == [False] * 4
    assert cut_by_window(boxes, (0, 0, 64, 64), (100, 100)).tolist() == [False, True, False, True]
    assert cut_by_window(boxes + 100, (100, 100, 164, 164), (164, 164)).tolist() == [True, False, False, False]
