"""Boxes of answers against boxes of references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.errors import DataError
from vitp.instruction.grammar import print_boxes
from vitp.instruction.quads import in_order, print_quads
from vitp.metrics.grounding import fit, intersection_over_union, shapes

BOX = "<box>[[100, 200, 300, 400]]</box>"


def test_one_box_against_one_box() -> None:
    assert fit(BOX, BOX) == fit(f"It is <ref>here</ref>{BOX}.", f"<ref>the ship</ref>{BOX}")
    exact = fit(BOX, BOX)
    assert (exact.accuracy, exact.iou, exact.readable) == (1.0, 1.0, True)
    half = fit("<box>[[100, 200, 300, 300]]</box>", BOX)
    assert (half.accuracy, half.iou) == (1.0, 0.5)  # 0.5 is enough
    less = fit("<box>[[100, 200, 300, 299]]</box>", BOX)
    assert less.accuracy == 0.0
    assert less.iou == pytest.approx(0.495)
    apart = fit("<box>[[300, 400, 500, 600]]</box>", BOX)  # they touch in a corner
    assert (apart.accuracy, apart.iou, apart.readable) == (0.0, 0.0, True)


@pytest.mark.parametrize(
    "answer",
    ["", "on the left", "<box>[[1, 2, 3]]</box>", "<box>[[1, 2, 3, 4]", "<box>[[300, 0, 100, 5]]</box>",
     "<box>[[0, 0, 1001, 5]]</box>", "<box>[]</box>", "<quad>[[1, 2, 3, 4]]</quad>", "</box>", "<box>[[0.1, 0, 5, 5]]</box>"],
)  # fmt: skip
def test_what_cannot_be_read_counts_as_missed(answer: str) -> None:
    missed = fit(answer, BOX)
    assert (missed.accuracy, missed.iou, missed.readable) == (0.0, 0.0, False)


def test_several_boxes_are_matched_best_first_and_too_many_cost() -> None:
    two = "<box>[[0, 0, 100, 100], [500, 500, 600, 600]]</box>"
    turned = "<box>[[500, 500, 600, 600], [0, 0, 100, 100]]</box>"
    assert fit(turned, two).accuracy == 1.0
    assert fit("<box>[[0, 0, 100, 100]]</box>", two).accuracy == 0.5
    assert fit("<box>[[0, 0, 100, 100], [0, 0, 100, 100]]</box>", two).accuracy == 0.5  # one box is found once
    assert fit("<box>[[0, 0, 100, 100], [500, 500, 600, 600], [1, 1, 9, 9], [2, 2, 8, 8]]</box>", two).accuracy == 0.5


def test_names_count_where_there_are_several() -> None:
    reference = "<ref>A ship</ref><box>[[0, 0, 100, 100]]</box> and <ref>the pier</ref><box>[[500, 0, 600, 100]]</box>"
    swapped = "<ref>pier</ref><box>[[0, 0, 100, 100]]</box> and <ref>ship</ref><box>[[500, 0, 600, 100]]</box>"
    assert fit(reference.replace("A ship", "ship").replace("the pier", "Pier."), reference).accuracy == 1.0
    assert fit(swapped, reference).accuracy == 0.0
    assert fit(swapped.split(" and ")[0], reference.split(" and ")[0]).accuracy == 1.0  # one thing: any name


def test_a_broken_reference_is_the_users_to_mend() -> None:
    with pytest.raises(DataError, match="not closed"):
        fit(BOX, "<box>[[1, 2, 3, 4]]")


def painted(outline: tuple[tuple[float, float], ...], side: int = 400) -> np.ndarray:
    """Which of side x side sample points of 0-1000 lie in a convex outline."""
    at = (np.arange(side) + 0.5) / side * 1000
    x, y = np.meshgrid(at, at)
    inside = np.ones((side, side), bool)
    for (ax, ay), (bx, by) in zip(outline, [*outline[1:], outline[0]], strict=True):
        inside &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
    return inside


@st.composite
def turned_rectangles(draw: st.DrawFn) -> str:
    """An oriented box of at least 250 units a side inside the image."""
    angle, width, height = draw(st.floats(0, 3.14)), draw(st.integers(250, 500)), draw(st.integers(250, 500))
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    centre = np.array([draw(st.integers(400, 600)), draw(st.integers(400, 600))])
    corners = [
        centre + a * width / 2 * along + b * height / 2 * across for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    return print_quads(
        "it", [in_order([(round(min(max(x, 0), 1000)), round(min(max(y, 0), 1000))) for x, y in corners])]
    )


@settings(max_examples=60)
@given(turned_rectangles(), turned_rectangles())
def test_iou_of_oriented_boxes_equals_counting_points(first: str, second: str) -> None:
    a, b = shapes(first)[0].outline, shapes(second)[0].outline
    one, two = painted(a), painted(b)
    counted = (one & two).sum() / (one | two).sum()
    assert intersection_over_union(a, b) == pytest.approx(counted, abs=0.02)
    assert intersection_over_union(a, b) == pytest.approx(intersection_over_union(b, a), abs=1e-9)
    assert intersection_over_union(a, a) == pytest.approx(1.0)


def test_a_box_fits_the_same_box_drawn_as_a_quad() -> None:
    quad = print_quads("ship", [(100, 200, 300, 200, 300, 400, 100, 400)])
    assert fit(print_boxes(None, [(100, 200, 300, 400)]), quad).iou == 1.0
    tangled = "<quad>[[100, 200, 300, 400, 300, 200, 100, 400]]</quad>"  # crosses itself: its hull counts
    assert fit(tangled, quad).iou == 1.0
    assert fit("<quad>[[5, 5, 5, 5, 5, 5, 5, 5]]</quad>", quad).iou == 0.0
