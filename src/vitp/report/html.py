"""One self-contained HTML file from plain data: no script, no request to anywhere, readable on a phone and in print."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

import vitp
from vitp.files import write_text
from vitp.report.charts import (
    SMOOTH_ABOVE,
    STYLES,
    BarChart,
    BarSeries,
    Curve,
    Drawing,
    LineChart,
    clean,
    draw_bars,
    draw_lines,
    number,
    numbers,
)
from vitp.report.matrix import Matrix, MatrixDrawing, draw_matrix, matrix_words

__all__ = [
    "BarChart",
    "BarSeries",
    "Commands",
    "Curve",
    "Dialogue",
    "DialogueItem",
    "Facts",
    "ImageGrid",
    "LineChart",
    "Matrix",
    "Picture",
    "Section",
    "Table",
    "Text",
    "colour_mask",
    "overlay",
    "write_report",
]

Pixels = npt.NDArray[np.uint8]
Palette = Sequence[tuple[int, int, int]]

WIDE, NARROW = 736, 344  # pixels a chart is drawn for: a page, a phone; the style sheet shows the one that fits
SMALLEST_PICTURE = 160  # pixels; smaller pictures are shown enlarged by a whole factor, their pixels as squares


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of texts and numbers; `highlight_row` is marked as the best or own one."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]
    caption: str = ""
    highlight_row: int | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"table '{self.title}': {len(row)} cells, {len(self.columns)} columns"


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels uint8 [H, W, 3] or [H, W], embedded losslessly; `alt` says in words what is seen."""

    pixels: Pixels
    alt: str
    label: str = ""

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        assert self.pixels.dtype == np.uint8, f"picture '{self.alt}': pixels are {self.pixels.dtype}, not uint8"
        assert len(shape) == 2 or (len(shape) == 3 and shape[2] == 3), f"picture '{self.alt}': shape {shape}"
        assert min(shape) > 0, f"picture '{self.alt}': no pixels"


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """Rows of pictures under common column titles; rows may differ in length."""

    title: str
    rows: Sequence[Sequence[Picture]]
    column_titles: Sequence[str] = ()
    caption: str = ""
    widest: float = 17  # of a column, in rem; a page is 46 wide


@dataclass(frozen=True, eq=False)
class DialogueItem:
    """A question about a picture, the expected and the given answer; `correct` None: not judged."""

    picture: Picture | None
    question: str
    expected: str
    answer: str
    correct: bool | None = None


@dataclass(frozen=True, eq=False)
class Dialogue:
    """Questions and answers, each beside its picture."""

    title: str
    items: Sequence[DialogueItem]
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Text:
    """Paragraphs of plain text."""

    title: str
    paragraphs: Sequence[str]


@dataclass(frozen=True, eq=False)
class Commands:
    """Shell commands to copy, each with a comment (which may be empty)."""

    title: str
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Facts:
    """Headline numbers as cards: (name, value)."""

    items: Sequence[tuple[str, str]]


Section = LineChart | BarChart | Matrix | Table | ImageGrid | Dialogue | Text | Commands | Facts


@dataclass(frozen=True)
class _Block:
    """A section as the template sees it: its kind, its anchor, and for charts the drawings and the notes."""

    kind: str
    anchor: str
    section: Section
    title: str
    drawings: tuple[tuple[str, Drawing | MatrixDrawing | None], ...] = ()
    summary: str = ""
    notes: tuple[str, ...] = ()


def write_report(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    """Write the report atomically and return its path; the same input gives the same bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cells": _cells, "data_uri": _data_uri, "enlarged": _enlarged}
    environment.tests["numeric"] = _is_numeric
    template = environment.from_string(files("vitp.report").joinpath("template.html").read_text(encoding="utf-8"))
    blocks = [_block(index, section) for index, section in enumerate(sections, 1)]
    text = template.render(title=title, subtitle=subtitle, blocks=blocks, styles=STYLES, version=vitp.__version__)
    text = text.lstrip()
    # Lone surrogates (file names that are not UTF-8) cannot be written; show them as question marks.
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


def overlay(image: Pixels, mask: npt.NDArray[np.integer], palette: Palette, opacity: float = 0.55) -> Pixels:
    """Colour a class mask [H, W] over an image uint8 [H, W, 3]; returns uint8 [H, W, 3].

    Classes outside the palette, such as an ignore index of 255 or -1, leave the image as it is.
    """
    assert image.shape == (*mask.shape, 3), f"image {image.shape} and mask {mask.shape} differ"
    assert 0 <= opacity <= 1, f"opacity {opacity} is not within 0 and 1"
    inside = (mask >= 0) & (mask < len(palette))
    mixed = image * (1 - opacity) + colour_mask(mask, palette) * opacity
    return np.where(inside[..., None], np.rint(mixed), image).astype(np.uint8)


def colour_mask(mask: npt.NDArray[np.integer], palette: Palette) -> Pixels:
    """Picture uint8 [H, W, 3] of a class mask [H, W]; classes outside the palette become mid grey."""
    assert mask.ndim == 2, f"mask of shape {mask.shape}, expected [H, W]"
    colours = np.array([*palette, (128, 128, 128)], dtype=np.uint8)
    index = np.asarray(mask, dtype=np.int64)
    return colours[np.where((index >= 0) & (index < len(palette)), index, len(palette))]


def _block(index: int, section: Section) -> _Block:
    anchor, kind = f"section-{index}", type(section).__name__
    if isinstance(section, Facts):
        return _Block(kind, anchor, section, "")
    if isinstance(section, LineChart):
        sizes = (("wide", draw_lines(section, WIDE, 330)), ("narrow", draw_lines(section, NARROW, 270)))
        return _Block(kind, anchor, section, section.title, sizes, _summary(section), _notes(section))
    if isinstance(section, BarChart):
        sizes = (("wide", draw_bars(section, WIDE)), ("narrow", draw_bars(section, NARROW)))
        return _Block(kind, anchor, section, section.title, sizes, _summary(section))
    if isinstance(section, Matrix):
        shown = (("wide", draw_matrix(section, WIDE)), ("narrow", draw_matrix(section, NARROW)))
        return _Block(kind, anchor, section, section.title, shown, matrix_words(section))
    return _Block(kind, anchor, section, section.title)


def _summary(chart: LineChart | BarChart) -> str:
    """The chart in words, for those who cannot see it."""
    if isinstance(chart, BarChart):
        rows = [
            f"{series.name}: " + ", ".join(f"{g} {number(v)}" for g, v in zip(chart.groups, series.values, strict=True))
            for series in chart.series
        ]
        return f"Bar chart of {chart.y_label}. " + "; ".join(rows)
    parts = []
    for curve in chart.curves:
        x, y, _ = clean(curve, chart.log_y, chart.log_x)
        if len(x):
            ends = f"{number(y[0])} at {number(x[0])} to {number(y[-1])} at {number(x[-1])}"
            parts.append(f"{curve.name}: from {ends}, between {number(y.min())} and {number(y.max())}")
        else:
            parts.append(f"{curve.name}: no points")
    return f"Line chart of {chart.y_label} over {chart.x_label}. " + "; ".join(parts)


def _notes(chart: LineChart) -> tuple[str, ...]:
    """What the reader of a line chart must know of how it was drawn."""
    notes = []
    counts = [(curve.name, *clean(curve, chart.log_y, chart.log_x)) for curve in chart.curves]
    if any(len(x) > SMOOTH_ABOVE for _, x, _, _ in counts):
        notes.append("Faint: every point. Strong: running mean over a fortieth of the curve.")
    why = "not finite or, on this logarithmic axis, not positive" if chart.log_y or chart.log_x else "not finite"
    for name, x, _, left_out in counts:
        if left_out:
            notes.append(f"{name}: {left_out:,} of {len(x) + left_out:,} points left out ({why}).")
    return tuple(notes)


def _is_numeric(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cells(table: Table) -> list[list[tuple[object, str]]]:
    """(value, text) of every cell; the numbers of a column share their decimals."""
    texts = []
    for column in zip(*table.rows, strict=True):
        real = [float(value) for value in column if isinstance(value, float | np.floating)]
        shared = iter(numbers(real))
        texts.append([next(shared) if isinstance(value, float | np.floating) else _text(value) for value in column])
    by_row = zip(*texts, strict=True)
    return [list(zip(row, shown, strict=True)) for row, shown in zip(table.rows, by_row, strict=True)]


def _text(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{int(value):,}".replace("-", "−") if isinstance(value, int | np.integer) else str(value)


def _data_uri(picture: Picture) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.pixels)).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _enlarged(picture: Picture) -> tuple[int, int, bool]:
    """(width, height, was enlarged) to show a picture at, in pixels."""
    height, width = picture.pixels.shape[:2]
    factor = max(1, math.ceil(SMALLEST_PICTURE / width))
    return width * factor, height * factor, factor > 1
