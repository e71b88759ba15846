"""Oriented boxes in text: what is printed is read back, mistakes are placed, and order survives every move."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp.instruction.grammar import GrammarError, flip_horizontal, flip_vertical, map_boxes, parse_boxes, rotate90
from vitp.instruction.quads import Quad, in_order, map_quads, normalise_quad, parse_quads, print_quads


@st.composite
def quad(draw: st.DrawFn) -> Quad:
    """A turned rectangle inside the image, rounded to whole units."""
    angle = draw(st.floats(0, math.tau))
    half = draw(st.integers(20, 250)), draw(st.integers(20, 250))
    reach = math.hypot(*half)
    x, y = (draw(st.floats(reach, 1000 - reach)) for _ in range(2))
    corners = []
    for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        a, b = u * half[0], v * half[1]
        corners += [x + a * math.cos(angle) - b * math.sin(angle), y + a * math.sin(angle) + b * math.cos(angle)]
    found = normalise_quad(corners, 1000, 1000)
    assert found is not None
    return found


quads = st.lists(quad(), min_size=1, max_size=3)
words = st.text(max_size=10).filter(lambda t: "<" not in t)


@given(st.lists(st.tuples(words, quads), max_size=3), words)
def test_what_is_printed_is_read_back(pieces: list[tuple[str, list[Quad]]], tail: str) -> None:
    text = "".join(word + print_quads("a ship", found) for word, found in pieces) + tail
    assert parse_quads(text) == [one for _, found in pieces for one in found]
    assert map_quads(text, lambda same: same) == text
    assert parse_boxes(text) == []


def test_only_quads_are_rewritten() -> None:
    text = "<ref>a</ref> <box>[[1, 2, 3, 4]]</box>,\n<quad> [ [10,0 , 20,0,20,5,10,5] ]</quad> [[1, 2]] <quad"
    assert parse_quads(text.removesuffix("<quad")) == [(10, 0, 20, 0, 20, 5, 10, 5)]
    moved = map_quads(text, flip_horizontal)
    assert moved == (
        "<ref>a</ref> <box>[[1, 2, 3, 4]]</box>,\n<quad>[[980, 0, 990, 0, 990, 5, 980, 5]]</quad> [[1, 2]] <quad"
    )
    assert map_boxes(moved, flip_horizontal).endswith(moved.split("</box>")[1])


@pytest.mark.parametrize(
    ("text", "code", "position"),
    [
        ("a <quad>[[1, 2, 3, 4, 5, 6, 7, 8]]", "quad-syntax", 2),
        ("a </quad>", "quad-syntax", 2),
        ("<quad><quad>[[1, 2, 3, 4, 5, 6, 7, 8]]</quad></quad>", "quad-syntax", 0),
        ("<quad></quad>", "quad-syntax", 6),
        ("<quad>[]</quad>", "quad-syntax", 7),
        ("<quad>((1, 2))</quad>", "quad-syntax", 6),
        ("<quad>[1, 2, 3, 4, 5, 6, 7, 8]</quad>", "quad-syntax", 7),
        ("<quad>[[1, 2, 3, 4]]</quad>", "quad-syntax", 7),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, 8, 9]]</quad>", "quad-syntax", 7),
        ("<quad>[[1, 2], [3, 4], [5, 6], [7, 8]]</quad>", "quad-syntax", 7),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, 8] [1, 2, 3, 4, 5, 6, 7, 8]]</quad>", "quad-syntax", 32),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, 8],]</quad>", "quad-syntax", 32),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, x]]</quad>", "quad-syntax", 28),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, 1001]]</quad>", "quad-range", 7),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, -8]]</quad>", "quad-range", 28),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, 0.5]]</quad>", "quad-range", 28),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, 99999999999]]</quad>", "quad-range", 28),
        ("<quad>[[1, 2, 3, 4, 5, 6, 7, ٤]]</quad>", "quad-range", 28),
    ],
)
def test_mistakes_are_placed(text: str, code: str, position: int) -> None:
    for read in (parse_quads, lambda t: map_quads(t, rotate90(1))):
        with pytest.raises(GrammarError) as caught:
            read(text)
        assert (caught.value.code, caught.value.position) == (code, position)


def test_what_leaves_the_image_is_refused() -> None:
    with pytest.raises(GrammarError, match="leaves the image"):
        map_quads("<quad>[[1, 2, 3, 2, 3, 6, 1, 6]]</quad>", lambda b: (b[0] + 998, b[1], b[2], b[3]))


def test_hostile_texts_are_read_in_linear_time() -> None:
    for text in ("<quad>[" + "[" * 300_000 + "]</quad>", "<quad>" * 200_000, "<quad>[[" + " " * 300_000 + "]]</quad>"):
        with pytest.raises(GrammarError):
            parse_quads(text)
    assert len(parse_quads("<quad>[" + ", ".join(["[1, 2, 3, 4, 5, 6, 7, 8]"] * 20_000) + "]</quad>")) == 20_000


@given(quad(), st.integers(0, 3), st.booleans())
def test_the_order_is_that_of_the_notation(found: Quad, start: int, backwards: bool) -> None:
    """Clockwise as seen, from the corner with the smallest x + y, however the corners came."""
    points = list(zip(found[0::2], found[1::2], strict=True))
    sums = [x + y for x, y in points]
    assert sums[0] == min(sums)
    assert all(y >= points[0][1] for (_, y), total in zip(points, sums, strict=True) if total == sums[0])
    middle = sum(x for x, _ in points) / 4, sum(y for _, y in points) / 4
    angles = [math.atan2(y - middle[1], x - middle[0]) for x, y in points]
    assert all(0 < (angles[(i + 1) % 4] - angles[i]) % math.tau < math.pi for i in range(4))
    given_points = points[start:] + points[:start]
    assert in_order(given_points[::-1] if backwards else given_points) == found


@given(quads, st.integers(-5, 5), st.integers(-5, 5))
def test_the_moves_form_the_symmetries_of_the_square(found: list[Quad], i: int, j: int) -> None:
    text = print_quads("x", found)
    assert map_quads(map_quads(text, flip_horizontal), flip_horizontal) == text
    assert map_quads(map_quads(text, flip_vertical), flip_vertical) == text
    turned = text
    for _ in range(4):
        turned = map_quads(turned, rotate90(1))
    assert turned == text
    assert map_quads(map_quads(text, rotate90(j)), rotate90(i)) == map_quads(text, rotate90(i + j))
    assert map_quads(map_quads(text, flip_vertical), flip_horizontal) == map_quads(text, rotate90(2))
    for moved in parse_quads(map_quads(map_quads(text, rotate90(i)), flip_vertical)):
        assert normalise_quad(moved, 1000, 1000) == moved
