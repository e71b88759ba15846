"""An image row by row of windows: read ahead, predicted in batches, blended in a buffer of a few rows.

Only what two rows of windows share is kept as logits. Rows that no later window touches become class ids at once.
Shape legend: C channels, K classes, W columns of the image, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitp.inference.grid import Axis, Grid
from vitp.inference.model import Predictor
from vitp.metrics.segmentation import IGNORE

T = TypeVar("T")
PROBABILITY_STEPS = 254  # a probability p is stored as round(254 p); 255 is nodata


class Pixels(Protocol):
    """An image whose rows are read from top to bottom."""

    @property
    def height(self) -> int:
        """Rows."""
        ...

    @property
    def width(self) -> int:
        """Columns."""
        ...

    def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """uint8 [C, count, W], and where pixels are valid, bool [count, W]."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """Finished rows of an image."""

    top: int
    pixels: NDArray[np.uint8]  # [C, n, W], as the model saw them before its zoom
    classes: NDArray[np.uint8]  # [n, W]; 255 where the image has no valid pixel
    probabilities: NDArray[np.uint8] | None  # [K, n, W]: round(254 p), 255 likewise
    windows: int  # of the image, done so far


@dataclass(frozen=True, eq=False)
class Strip:
    """The pixels of one row of windows."""

    index: int
    pixels: Tensor  # uint8 [C, window, W]
    valid: NDArray[np.bool_]  # [window, W]


def predicted(
    predictor: Predictor,
    image: Pixels,
    grid: Grid,
    *,
    batch_size: int,
    probabilities: bool = False,
    first: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Generator[Rows, None, None]:
    """Finished rows, one `Rows` for each row of windows, from row `first` of windows on.

    Started at a later row it computes what earlier windows add to that row again, in the same order and the same batches, so
    the values are those of an uninterrupted call.

    Args:
        predictor: the model.
        image: read in another thread, while the model computes.
        grid: its windows.
        batch_size: windows of one forward pass; a batch never reaches into the next row.
        probabilities: also give those.
        first: the row of windows to start from.
        progress: told how many windows are done, after each batch.

    Close it (`contextlib.closing`) before the image's file is closed.

    Raises:
        ImageError: the image is damaged.
    """
    begin = grid.rows.first_touching(first)
    band = _Band(predictor, grid, probabilities)
    columns = grid.columns
    # closed from the outer to the inner, so that no thread reads on when the caller stops early and closes the file
    with (
        closing(ahead(strips_of(image, grid.rows, begin))) as strips,
        closing(ahead(_batches(predictor, strips, columns, batch_size))) as batches,
    ):
        for batch in batches:
            emit = batch.strip.index >= first
            for index, logits in batch.windows:
                band.add(batch.strip, index, logits, emit=emit)
            progress(batch.strip.index * len(columns.starts) + batch.windows[-1][0] + 1)
            if batch.last and (rows := band.end(batch.strip, emit=emit)) is not None:
                yield rows


def strips_of(image: Pixels, axis: Axis, begin: int) -> Iterator[Strip]:
    """The strips of pixels from row `begin` of windows on; every row of the image is read once."""
    held: NDArray[np.uint8] | None = None
    known: NDArray[np.bool_] | None = None
    end = axis.starts[begin]
    for index in range(begin, len(axis.starts)):
        top, bottom = axis.starts[index], axis.end(index)
        pixels, valid = image.rows(end, bottom - end)
        if held is not None and known is not None and end > top:
            pixels = np.concatenate([held[:, top - end :], pixels], axis=1)
            valid = np.concatenate([known[top - end :], valid])
        held, known, end = pixels, valid, bottom
        yield Strip(index, torch.from_numpy(pixels), valid)


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items, each computed in a thread while the one before is used; closing it waits for the one under way."""
    done = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, items, done)
            yield item  # type: ignore[misc]


def read_ahead(read: Callable[[int], T], indices: Iterable[int]) -> Iterator[tuple[int, T]]:
    """(index, sample) of each, read in another thread while the one before is used."""
    with closing(ahead((index, read(index)) for index in indices)) as samples:
        yield from samples


@dataclass(frozen=True, eq=False)
class _Batch:
    """Neighbouring windows of a strip with their logits [K, window, window]; None where no pixel is valid."""

    strip: Strip
    windows: list[tuple[int, Tensor | None]]
    last: bool  # of the strip


def _batches(predictor: Predictor, strips: Iterator[Strip], columns: Axis, size: int) -> Iterator[_Batch]:
    """The windows from left to right, as many valid ones at a time as the model is given."""
    parts = [slice(start, start + columns.window) for start in columns.starts]
    for strip in strips:
        alive = [bool(strip.valid[:, part].any()) for part in parts]
        first = 0
        while first < len(parts):
            end = _end_of_batch(alive, first, size)
            some = [i for i in range(first, end) if alive[i]]
            found: dict[int, Tensor] = {}
            if some:
                logits = predictor.logits(torch.stack([strip.pixels[:, :, parts[i]] for i in some]))
                found = dict(zip(some, logits, strict=True))
            yield _Batch(strip, [(i, found.get(i)) for i in range(first, end)], end == len(parts))
            first = end


def _end_of_batch(alive: list[bool], first: int, size: int) -> int:
    """The index after the `size`-th valid window from `first` on."""
    count = 0
    for index in range(first, len(alive)):
        count += alive[index]
        if count == size:
            return index + 1
    return len(alive)


class _Band:
    """The rolling buffers: what the row above left, and the windows of this row that still overlap."""

    def __init__(self, predictor: Predictor, grid: Grid, probabilities: bool) -> None:
        self.grid, self.device = grid, predictor.device
        kinds, rows, columns = len(predictor.classes), grid.rows, grid.columns
        kept = max(rows.end(i) - rows.finished(i) for i in range(len(rows.starts)))
        self.carried = torch.zeros(kinds, kept, columns.length, device=self.device)
        self.carried_rows = 0  # of `carried`, from its top, that hold something
        self.open = torch.zeros(kinds, rows.window, columns.window, device=self.device)
        self.beside = self.open[:, :, :0]  # the sums of earlier windows of this row, from where the next window begins
        self.classes = torch.empty(rows.window, columns.length, dtype=torch.uint8)
        self.levels: Tensor | None = None
        if probabilities:
            self.levels = torch.empty(kinds, rows.window, columns.length, dtype=torch.uint8)

    def add(self, strip: Strip, index: int, logits: Tensor | None, *, emit: bool) -> None:
        """Blend a window in; its columns that no later window touches are finished."""
        rows, columns = self.grid.rows, self.grid.columns
        done = rows.finished(strip.index) - rows.starts[strip.index]
        left, ready = columns.starts[index], columns.finished(index) - columns.starts[index]
        across = slice(left, left + ready)
        if logits is None:
            self.open.zero_()
        else:
            weight = rows.weights[strip.index][:, None] * columns.weights[index]
            torch.mul(logits, weight.to(self.device), out=self.open)
        if index > 0:  # the window before has left its right part
            self.open[:, :, : self.beside.shape[2]] += self.beside
        finished = self.open[:, :, :ready]
        finished[:, : self.carried_rows] += self.carried[:, : self.carried_rows, across]
        if emit and strip.valid[:done, across].any():
            self.classes[:done, across] = best(finished[:, :done])
            if self.levels is not None:
                shares = finished[:, :done].softmax(0)
                self.levels[:, :done, across] = (shares * PROBABILITY_STEPS).round_().to(torch.uint8)
        self.carried[:, : rows.window - done, across] = finished[:, done:]
        self.beside = self.open[:, :, ready:].clone()

    def end(self, strip: Strip, *, emit: bool) -> Rows | None:
        """After the last window of a row: its finished rows, where they are wanted."""
        rows, columns = self.grid.rows, self.grid.columns
        done = rows.finished(strip.index) - rows.starts[strip.index]
        self.carried_rows = rows.window - done
        if not emit:
            return None
        missing = ~strip.valid[:done]
        classes = self.classes[:done].numpy().copy()
        classes[missing] = IGNORE
        levels = None
        if self.levels is not None:
            levels = self.levels[:, :done].numpy().copy()
            levels[:, missing] = IGNORE
        windows = (strip.index + 1) * len(columns.starts)
        return Rows(rows.starts[strip.index], strip.pixels[:, :done].numpy(), classes, levels, windows)


def best(logits: Tensor) -> Tensor:
    """The class of the highest logit, uint8 [n, w] on the CPU, of [K, n, w]; the lower id where two are equal."""
    if logits.shape[0] == 2:
        return (logits[1] > logits[0]).to(torch.uint8).cpu()
    if logits.device.type != "cpu":
        return logits.argmax(0).to(torch.uint8).cpu()
    highest = logits[0].clone()  # class after class: torch's argmax over the first dimension takes five times as long
    ids = torch.zeros(highest.shape, dtype=torch.uint8)
    for kind in range(1, len(logits)):
        ids.masked_fill_(logits[kind] > highest, kind)
        torch.maximum(highest, logits[kind], out=highest)
    return ids
