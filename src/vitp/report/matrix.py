"""A confusion matrix as geometry: shares of each label's pixels as shades, in pixels; the template turns it into SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitp.report.charts import number, shorten

_MOST = 20  # classes of their own; rows of more could not be read
_LETTER = 6.8  # width of a letter of the labels, pixels
_DARK = 0.55  # share above which a cell's text takes the page's colour


@dataclass(frozen=True, eq=False)
class Matrix:
    """Counts [n][n]: rows are what is labelled, columns what was predicted. Every row is shown in percent of its sum.

    Of many classes those labelled most often stand for themselves, and the others together as one.
    """

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str = ""

    def __post_init__(self) -> None:
        assert [len(row) for row in self.counts] == [len(self.labels)] * len(self.labels), f"matrix '{self.title}'"


@dataclass(frozen=True)
class Cell:
    """One cell; `share` 0 ... 1 is its shade."""

    x: float
    y: float
    share: float
    text: str
    full: str  # in words
    dark: bool
    right: bool  # on the diagonal


@dataclass(frozen=True)
class Name:
    """A row's label (with its number) or a column's number."""

    x: float
    y: float
    text: str
    full: str


@dataclass(frozen=True)
class MatrixDrawing:
    """The matrix at one width."""

    width: int
    height: int
    side: float
    left: float
    top: float
    cells: tuple[Cell, ...]
    rows: tuple[Name, ...]
    columns: tuple[Name, ...]


def draw_matrix(matrix: Matrix, width: int) -> MatrixDrawing | None:
    """Geometry of a matrix; None where nothing was counted."""
    labels, counts = gathered(matrix)
    if not counts.any():
        return None
    shares = row_shares(counts)
    longest = max(map(len, labels)) + 4
    left = min(0.38 * width, 16 + _LETTER * longest)
    side = min(44.0, (width - left - 4) / len(labels))
    top = 40.0
    cells, rows, columns = [], [], []
    for i, label in enumerate(labels):
        x, y = left + i * side, top + i * side
        full = f"{i + 1} {label}"
        rows.append(
            Name(round(left - 8, 1), round(y + side / 2 + 4, 1), shorten(full, int((left - 12) / _LETTER)), full)
        )
        columns.append(Name(round(x + side / 2, 1), top - 8, str(i + 1), full))
        for j, other in enumerate(labels):
            share = float(shares[i, j])
            percent = f"{100 * share:.0f}"
            text = "" if side < 22 or np.isnan(share) or percent == "0" else percent
            words = f"{label}, predicted {other}: {number(100 * share, 3)} % ({counts[i, j]:,} pixels)"
            known = 0.0 if np.isnan(share) else share
            cells.append(
                Cell(round(left + j * side, 1), round(y, 1), round(known, 3), text, words, known > _DARK, i == j)
            )
    height = int(top + side * len(labels) + 10)
    return MatrixDrawing(width, height, round(side, 1), round(left, 1), top, tuple(cells), tuple(rows), tuple(columns))


def gathered(matrix: Matrix) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Labels and counts [n, n] to show: the classes labelled most often in their own order, the others as one."""
    counts = np.asarray(matrix.counts, dtype=np.int64).reshape(len(matrix.labels), len(matrix.labels))
    if len(matrix.labels) <= _MOST:
        return list(matrix.labels), counts
    kept = sorted(np.argsort(-counts.sum(1), kind="stable")[: _MOST - 1].tolist())
    rest = [i for i in range(len(matrix.labels)) if i not in kept]
    member = np.zeros((len(matrix.labels), _MOST), dtype=np.int64)
    for place, i in enumerate(kept):
        member[i, place] = 1
    member[rest, -1] = 1
    return [*(matrix.labels[i] for i in kept), f"{len(rest)} others"], member.T @ counts @ member


def row_shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Each row divided by its sum; NaN where nothing was labelled."""
    sums = counts.sum(1, keepdims=True).astype(np.float64)
    shares: npt.NDArray[np.float64] = np.full(counts.shape, np.nan)
    np.divide(counts, sums, out=shares, where=sums > 0)
    return shares


def matrix_words(matrix: Matrix) -> str:
    """The matrix for those who cannot see it: what is right of each class, and what it is taken for most often."""
    labels, counts = gathered(matrix)
    shares = row_shares(counts)
    parts = []
    for i, label in enumerate(labels):
        if np.isnan(shares[i, i]):
            parts.append(f"{label}: not labelled")
            continue
        others = shares[i].copy()
        others[i] = 0
        worst = int(others.argmax())
        taken = f", {100 * others[worst]:.0f} % taken for {labels[worst]}" if others[worst] >= 0.005 else ""
        parts.append(f"{label}: {100 * shares[i, i]:.0f} % right{taken}")
    return "Confusion matrix. " + "; ".join(parts)
