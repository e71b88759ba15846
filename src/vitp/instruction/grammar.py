"""Boxes in text: ``<ref>phrase</ref><box>[[x1, y1, x2, y2], ...]</box>``.

Coordinates are whole numbers 0-1000 of the original image's width and height (not of its tiles), x to the right, y
down, with x1 < x2 and y1 < y2. The ``<ref>`` part may be missing; a ``<ref>`` without a box is a plain phrase, as in
the question "Where is <ref>the ship</ref>?". This is the notation InternVL was trained on, so a pretrained language
model keeps its meaning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vitp.errors import DataError

Box = tuple[int, int, int, int]
SCALE = 1000  # InternVL's grounding data

GrammarCode = Literal["box-syntax", "box-range", "box-order", "quad-syntax", "quad-range"]


@dataclass(frozen=True, slots=True)
class _Form:
    """What stands in one pair of inner brackets."""

    shape: str
    entry: re.Pattern[str]
    numbers: int
    syntax: GrammarCode
    range: GrammarCode


def _form(shape: str, syntax: GrammarCode, outside: GrammarCode) -> _Form:
    count = shape.count(",") + 1
    entry = r"\s*\[" + ",".join([r"([^\[\],]*)"] * count) + r"\]\s*"
    return _Form(shape, re.compile(entry), count, syntax, outside)


_TAG = re.compile(r"</?(?:ref|box)>")
_WHOLE = re.compile(r"\s*[0-9]{1,9}\s*", re.ASCII)
_FORMS: dict[Literal["box", "quad"], _Form] = {
    "box": _form("[x1, y1, x2, y2]", "box-syntax", "box-range"),
    "quad": _form("[x1, y1, x2, y2, x3, y3, x4, y4]", "quad-syntax", "quad-range"),
}


class GrammarError(DataError):
    """Box text cannot be read or written; `position` is the offset in the text (0-based, in characters)."""

    def __init__(self, code: GrammarCode, found: str, fix: str, position: int = 0) -> None:
        self.code: GrammarCode = code
        self.position = position
        self.found = found
        self.fix = fix
        super().__init__(f"{found} at character {position + 1}; {fix}")


@dataclass(frozen=True, slots=True)
class Grounding:
    """Boxes in a text and the phrase they belong to; `text[span[0]:span[1]]` is the whole notation."""

    phrase: str | None
    boxes: tuple[Box, ...]
    span: tuple[int, int]


def parse_boxes(text: str) -> list[Grounding]:
    """All groundings of a text, in order.

    Raises:
        GrammarError: unbalanced or nested tags, malformed boxes, coordinates outside 0-1000 or in the wrong order.
    """
    if "ref>" not in text and "box>" not in text:
        return []
    return [grounding for grounding, _ in _scan(text)]


def map_boxes(text: str, transform: Callable[[Box], Box]) -> str:
    """The text with every box replaced by `transform(box)`; all else stays as it is, character by character.

    Raises:
        GrammarError: as `parse_boxes`, or the transform returned something that is no box.
    """
    if "box>" not in text:
        return text
    pieces: list[str] = []
    done = 0
    for grounding, (start, end) in _scan(text):
        pieces += [text[done:start], _print_list([transform(box) for box in grounding.boxes])]
        done = end
    return "".join([*pieces, text[done:]])


def print_boxes(phrase: str | None, boxes: Sequence[Box]) -> str:
    """The canonical notation of one grounding; `parse_boxes` reads it back.

    Raises:
        GrammarError: no boxes, a box that `parse_boxes` would refuse, a blank phrase or one that holds a tag.
    """
    if not boxes:
        raise GrammarError("box-syntax", "there is no box to write", "leave the notation out")
    if phrase is not None and (not phrase.strip() or _TAG.search(phrase)):
        raise GrammarError("box-syntax", f"the phrase {phrase!r} is blank or holds a tag", "write plain words")
    reference = "" if phrase is None else f"<ref>{phrase}</ref>"
    return f"{reference}<box>{_print_list(boxes)}</box>"


def _print_list(boxes: Sequence[Box]) -> str:
    for box in boxes:
        _check_box(box, 0)
    return "[" + ", ".join("[{}, {}, {}, {}]".format(*box) for box in boxes) + "]"


def _check_box(box: Box, position: int) -> None:
    x1, y1, x2, y2 = box
    if min(box) < 0 or max(box) > SCALE:
        fix = f"coordinates are whole numbers 0-{SCALE} of the image's width and height"
        raise GrammarError("box-range", f"the box {list(box)} leaves the image", fix, position)
    if x1 >= x2 or y1 >= y2:
        fix = "write [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        raise GrammarError("box-order", f"the box {list(box)} has no area", fix, position)


def _scan(text: str) -> list[tuple[Grounding, tuple[int, int]]]:
    """Groundings, each with the span of its ``[[...]]`` list."""
    found: list[tuple[Grounding, tuple[int, int]]] = []
    reference: tuple[str, int, int] | None = None  # phrase, start of <ref>, end of </ref>
    tags = list(_TAG.finditer(text))
    for opening, closing in zip(tags[::2], [*tags[1::2], None], strict=False):
        kind = opening[0].strip("</>")
        if opening[0].startswith("</"):
            raise GrammarError("box-syntax", f"{opening[0]} closes nothing", "remove it or open it", opening.start())
        if closing is None or closing[0] != f"</{kind}>":
            fix = f"write </{kind}> before the next tag"
            raise GrammarError("box-syntax", f"{opening[0]} is not closed", fix, opening.start())
        inside = text[opening.end() : closing.start()]
        if kind == "ref":
            if not inside.strip():
                raise GrammarError("box-syntax", "the phrase is empty", "name what the box shows", opening.end())
            reference = (inside, opening.start(), closing.end())
            continue
        belongs = reference is not None and not text[reference[2] : opening.start()].strip()
        phrase, start = (reference[0], reference[1]) if reference and belongs else (None, opening.start())
        boxes = _parse_list(inside, opening.end())
        found.append((Grounding(phrase, boxes, (start, closing.end())), (opening.end(), closing.start())))
    return found


def _parse_list(inside: str, offset: int) -> tuple[Box, ...]:
    """Boxes of the text between the box tags, which starts at `offset`."""
    boxes: list[Box] = []
    for (x1, y1, x2, y2), position in number_lists(inside, offset, "box"):
        boxes.append((x1, y1, x2, y2))
        _check_box(boxes[-1], position)
    return tuple(boxes)


def number_lists(inside: str, offset: int, tag: Literal["box", "quad"]) -> Iterator[tuple[tuple[int, ...], int]]:
    """The entries of ``[[...], ...]``, each with its place in the text; their numbers may still lie outside 0-1000.

    Args:
        inside: what stands between the tags.
        offset: where that starts in the text.
        tag: which notation it is, which says how many numbers an entry has.

    Raises:
        GrammarError: the list is malformed, or a number is not whole.
    """
    form = _FORMS[tag]
    stripped = inside.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")) or len(stripped) < 2:
        fix = f"write <{tag}>[{form.shape}, ...]</{tag}>"
        plural = "boxes" if tag == "box" else "quads"
        raise GrammarError(form.syntax, f"{_shorten(stripped)} is no list of {plural}", fix, offset)
    position = inside.index("[") + 1
    end = inside.rindex("]")
    while True:
        match = form.entry.match(inside, position, end)
        if match is None:
            fix = f"write [{form.shape}, ...], {form.numbers} numbers each"
            raise GrammarError(form.syntax, f"{_shorten(inside[position:end])} is no {tag}", fix, offset + position)
        for index in range(1, form.numbers + 1):
            if not _WHOLE.fullmatch(match[index]):
                fix = f"coordinates are whole numbers 0-{SCALE} of the image's width and height"
                code = form.range if re.fullmatch(r"\s*-?[\d.]+\s*", match[index]) else form.syntax
                raise GrammarError(code, f"{_shorten(match[index])} is no coordinate", fix, offset + match.start(index))
        yield tuple(map(int, match.groups())), offset + inside.index("[", match.start())
        if match.end() == end:
            return
        if inside[match.end()] != ",":
            fix = f"separate the entries of <{tag}> by commas"
            raise GrammarError(form.syntax, "a comma is missing", fix, offset + match.end())
        position = match.end() + 1


def _shorten(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:37] + "...")


# --------------------------------------------------------------------------------------------- pixels and 0-1000


def normalise(box: tuple[float, float, float, float], width: int, height: int) -> Box:
    """A box in pixels to 0-1000: clipped to the image, rounded, and at least one unit wide and high.

    Args:
        box: x1, y1, x2, y2 in pixels of the original image, edges (a box over the whole image is 0, 0, W, H).
        width: image width in pixels.
        height: image height in pixels.

    Raises:
        GrammarError: not finite, or without any area inside the image.
    """
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        raise GrammarError("box-range", f"the box {list(box)} holds a number that is not finite", "mend its source")
    if not (max(x1, 0.0) < min(x2, width) and max(y1, 0.0) < min(y2, height)):
        found = f"the box {list(box)} has no area inside the {width} x {height} image"
        raise GrammarError("box-range", found, "write x1, y1, x2, y2 in pixels of the image")
    left, right = _units(x1, x2, width)
    top, bottom = _units(y1, y2, height)
    return left, top, right, bottom


def _units(low: float, high: float, side: int) -> tuple[int, int]:
    """An interval in pixels to whole units, never empty."""
    first = min(max(round(low / side * SCALE), 0), SCALE)
    last = min(max(round(high / side * SCALE), 0), SCALE)
    if first < last:
        return first, last
    return (first, first + 1) if first < SCALE else (SCALE - 1, SCALE)


def denormalise(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """A box in 0-1000 to pixels of an image of that size."""
    x1, y1, x2, y2 = box
    return x1 * width / SCALE, y1 * height / SCALE, x2 * width / SCALE, y2 * height / SCALE


# ---------------------------------------------------------------------------------------------- with the image


def flip_horizontal(box: Box) -> Box:
    """Where a box lies after `image.flip(-1)`."""
    x1, y1, x2, y2 = box
    return SCALE - x2, y1, SCALE - x1, y2


def flip_vertical(box: Box) -> Box:
    """Where a box lies after `image.flip(-2)`."""
    x1, y1, x2, y2 = box
    return x1, SCALE - y2, x2, SCALE - y1


def rotate90(k: int) -> Callable[[Box], Box]:
    """Where a box lies after `torch.rot90(image, k, (-2, -1))`: k quarter turns counter-clockwise."""

    def turn(box: Box) -> Box:
        x1, y1, x2, y2 = box
        for _ in range(k % 4):  # a point (x, y) goes to (y, 1000 - x)
            x1, y1, x2, y2 = y1, SCALE - x2, y2, SCALE - x1
        return x1, y1, x2, y2

    return turn


def into_window(corner: tuple[int, int], window: tuple[int, int], image: tuple[int, int]) -> Callable[[Box], Box]:
    """Where a box lies after a window is cut out of the image; the box must lie in it.

    Args:
        corner: left and top of the window in pixels.
        window: width and height of the window in pixels.
        image: width and height of the image in pixels.
    """

    def place(value: int, axis: int) -> int:  # in whole numbers, so that a box never loses its last unit to rounding
        inside = 2 * (value * image[axis] - SCALE * corner[axis])
        return (inside + window[axis]) // (2 * window[axis])

    def move(box: Box) -> Box:
        x1, y1, x2, y2 = box
        return place(x1, 0), place(y1, 1), place(x2, 0), place(y2, 1)

    return move
