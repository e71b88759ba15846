"""Boxes in text: what is printed is read back, mistakes are placed, and boxes move exactly as the pixels do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitp.instruction.grammar import (
    Box,
    GrammarError,
    denormalise,
    flip_horizontal,
    flip_vertical,
    map_boxes,
    normalise,
    parse_boxes,
    print_boxes,
    rotate90,
)


@st.composite
def box(draw: st.DrawFn) -> Box:
    x1, y1 = draw(st.integers(0, 999)), draw(st.integers(0, 999))
    return x1, y1, draw(st.integers(x1 + 1, 1000)), draw(st.integers(y1 + 1, 1000))


boxes = st.lists(box(), min_size=1, max_size=4)
phrases = st.none() | st.text(min_size=1, max_size=12).filter(lambda t: t.strip() and "<" not in t)
words = st.text(max_size=10).filter(lambda t: "<" not in t)


@given(st.lists(st.tuples(words, phrases, boxes), max_size=3), words)
def test_what_is_printed_is_read_back(pieces: list[tuple[str, str | None, list[Box]]], tail: str) -> None:
    text = "".join(word + print_boxes(phrase, found) for word, phrase, found in pieces) + tail
    parsed = parse_boxes(text)
    assert [(item.phrase, list(item.boxes)) for item in parsed] == [(phrase, found) for _, phrase, found in pieces]
    for item in parsed:
        assert text[slice(*item.span)] == print_boxes(item.phrase, item.boxes)
    assert map_boxes(text, lambda same: same) == text


def test_what_counts_as_a_grounding() -> None:
    spaced = "<ref>It</ref> \n<box>[[1,2 , 3,4],[ 5, 6, 7, 8 ] ]</box>"
    text = f"Where is <ref>the ship</ref>? {spaced} or <box>[[0, 0, 1000, 1000]]</box>"
    first, second = parse_boxes(text)
    assert (first.phrase, first.boxes) == ("It", ((1, 2, 3, 4), (5, 6, 7, 8)))
    assert text[slice(*first.span)].startswith("<ref>It")
    assert (second.phrase, second.boxes) == (None, ((0, 0, 1000, 1000),))
    assert parse_boxes("Name <ref>the ship</ref>, then <box>[[1, 2, 3, 4]]</box>")[0].phrase is None
    assert parse_boxes("[[1, 2, 3, 4]] is no box, nor is <b>") == []
    assert map_boxes(text, flip_horizontal).startswith(
        "Where is <ref>the ship</ref>? <ref>It</ref> \n<box>[[997, 2, 999, 4], [993, 6, 995, 8]]</box> or <box>[[0,"
    )


@pytest.mark.parametrize(
    ("text", "code", "position"),
    [
        ("a <box>[[1, 2, 3, 4]]", "box-syntax", 2),
        ("a <ref>b", "box-syntax", 2),
        ("a </box>", "box-syntax", 2),
        ("<ref>a<box>[[1, 2, 3, 4]]</box></ref>", "box-syntax", 0),
        ("<box><box>[[1, 2, 3, 4]]</box></box>", "box-syntax", 0),
        ("<ref> </ref>", "box-syntax", 5),
        ("<box></box>", "box-syntax", 5),
        ("<box>[]</box>", "box-syntax", 6),
        ("<box>]</box>", "box-syntax", 5),
        ("<box>[[]]</box>", "box-syntax", 6),
        ("<box>[1, 2, 3, 4]</box>", "box-syntax", 6),
        ("<box>[[1, 2, 3]]</box>", "box-syntax", 6),
        ("<box>[[1, 2, 3, 4, 5]]</box>", "box-syntax", 6),
        ("<box>[[1, 2, 3, 4] [1, 2, 3, 4]]</box>", "box-syntax", 19),
        ("<box>[[1, 2, 3, 4],]</box>", "box-syntax", 19),
        ("<box>[[1, 2, 3, 4]] x</box>", "box-syntax", 5),
        ("<box>[[1, x, 3, 4]]</box>", "box-syntax", 9),
        ("<box>[[1, 2.5, 3, 4]]</box>", "box-range", 9),
        ("<box>[[-1, 2, 3, 4]]</box>", "box-range", 7),
        ("<box>[[1, 2, 3, 1001]]</box>", "box-range", 6),
        ("<box>[[1, 2, 3, 99999999999999]]</box>", "box-range", 15),
        ("<box>[[1, 2, 3, ٤]]</box>", "box-range", 15),
        ("<box>[[5, 2, 5, 4]]</box>", "box-order", 6),
        ("<box>[[1, 2, 3, 4], [5, 9, 6, 4]]</box>", "box-order", 20),
    ],
)
def test_mistakes_are_placed(text: str, code: str, position: int) -> None:
    for read in (
        parse_boxes,
        lambda t: map_boxes(f"{t}<box>[[0, 0, 1, 1]]</box>" if "box>" not in t else t, rotate90(1)),
    ):
        with pytest.raises(GrammarError) as caught:
            read(text)
        assert (caught.value.code, caught.value.position) == (code, position)
        assert f"at character {position + 1}; " in str(caught.value)


def test_what_cannot_be_printed() -> None:
    for phrase, found in (
        ("a", []),
        (" ", [(0, 0, 1, 1)]),
        ("a</ref>", [(0, 0, 1, 1)]),
        ("a", [(0, 0, 0, 1)]),
        (None, [(0, 0, 1, 1001)]),
    ):
        with pytest.raises(GrammarError):
            print_boxes(phrase, found)
    with pytest.raises(GrammarError):
        map_boxes("<box>[[0, 0, 1, 1]]</box>", lambda _: (3, 3, 3, 3))


def test_many_open_brackets_are_read_in_linear_time() -> None:
    with pytest.raises(GrammarError):
        parse_boxes("<box>[" + "[" * 300_000 + "]</box>")
    assert len(parse_boxes("<box>[" + ", ".join(["[1, 2, 3, 4]"] * 20_000) + "]</box>")[0].boxes) == 20_000


# ------------------------------------------------------------------------------------------------------- with pixels


@given(box(), st.integers(1, 4000), st.integers(1, 4000))
def test_normalising_undoes_denormalising(found: Box, width: int, height: int) -> None:
    assert normalise(denormalise(found, width, height), width, height) == found


@given(st.tuples(*[st.floats(-50, 450)] * 4), st.integers(1, 400), st.integers(1, 400))
def test_normalised_boxes_are_valid_and_close(
    edges: tuple[float, float, float, float], width: int, height: int
) -> None:
    x1, y1, x2, y2 = edges
    inside = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        with pytest.raises(GrammarError, match="no area inside"):
            normalise(edges, width, height)
        return
    unit = normalise(edges, width, height)
    assert parse_boxes(print_boxes("x", [unit]))[0].boxes == (unit,)
    back = denormalise(unit, width, height)
    for edge, original, side in zip(back, inside, (width, height) * 2, strict=True):
        assert abs(edge - original) <= side / 1000  # half a unit by rounding, one where it had to be widened


def test_boxes_that_are_no_numbers() -> None:
    for edge in (math.nan, math.inf):
        with pytest.raises(GrammarError, match="not finite"):
            normalise((0, 0, edge, 5), 10, 10)


def painted(found: Box) -> torch.Tensor:
    """A [100, 100] image that is 1 inside a box whose edges lie on tens."""
    x1, y1, x2, y2 = (edge // 10 for edge in found)
    image = torch.zeros(100, 100)
    image[y1:y2, x1:x2] = 1
    return image


tens = box().map(lambda b: tuple(edge // 10 * 10 for edge in b)).filter(lambda b: b[0] < b[2] and b[1] < b[3])


@given(tens, st.integers(-5, 5))
def test_boxes_move_as_the_pixels_do(found: Box, k: int) -> None:
    image = painted(found)
    assert torch.equal(painted(flip_horizontal(found)), image.flip(-1))
    assert torch.equal(painted(flip_vertical(found)), image.flip(-2))
    assert torch.equal(painted(rotate90(k)(found)), torch.rot90(image, k, (-2, -1)))


@given(box(), st.integers(-9, 9), st.integers(-9, 9))
def test_the_transforms_form_the_symmetries_of_the_square(found: Box, i: int, j: int) -> None:
    assert flip_horizontal(flip_horizontal(found)) == found
    assert flip_vertical(flip_vertical(found)) == found
    assert rotate90(i)(rotate90(j)(found)) == rotate90(i + j)(found)
    assert rotate90(4)(found) == found
    assert rotate90(2)(found) == flip_horizontal(flip_vertical(found))
    assert flip_horizontal(rotate90(i)(flip_horizontal(found))) == rotate90(-i)(found)
    moved = rotate90(i)(flip_vertical(found))
    assert parse_boxes(print_boxes(None, [moved]))[0].boxes == (moved,)
