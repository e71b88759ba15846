"""One image, or one pair of dates, from the file to the files beside each other in the output folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vitp
from vitp.datasets.volumes import VolumeFolderConfig
from vitp.errors import ConfigError
from vitp.files import file_state
from vitp.images.read import ImageConfig
from vitp.inference.config import PredictConfig
from vitp.inference.engine import Rows, predicted
from vitp.inference.grid import Grid, make_grid
from vitp.inference.model import Predictor
from vitp.inference.partial import Partial
from vitp.inference.polygons import write_polygons
from vitp.inference.sinks import (
    Look,
    TiffOptions,
    write_class_png,
    write_class_tiff,
    write_preview,
    write_probability_png,
    write_probability_tiff,
)
from vitp.inference.sources import Source, opened
from vitp.inference.thumbnail import PREVIEW, Thumbnail

CLASSES, PROBABILITIES = "classes", "probabilities"  # layers
Progress = Callable[[int, int], None]  # windows (slices of a volume) done, of how many


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """What is the same for every input of a command, whatever the model gives."""

    look: Look
    config: PredictConfig
    reader: ImageConfig
    side: int  # of windows, in the file's pixels
    batch_size: int  # windows of a forward pass
    weights: tuple[int, int]  # size and time of change of the weights' file
    say: Callable[[str], None]
    progress: Progress

    def fingerprint(self, path: Path, after: Path | None) -> dict[str, Any]:
        """What must be equal for a killed prediction to go on, JSON-ready."""
        keys = {"overlap", "scales", "flips", "device", "precision"}
        files = [path] if after is None else [path, after]
        return {
            "vitp": vitp.__version__,
            "weights": self.weights,
            "image": [[file.name, *file_state(file)] for file in files],
            "window": self.side,
            "batch_size": self.batch_size,
            "reader": self.reader.model_dump(mode="json"),
            **self.config.model_dump(mode="json", include=keys),
        }

    @property
    @abstractmethod
    def dates(self) -> int:
        """Images an input of the model is made of."""

    def check_dates(self, path: Path, after: Path | None) -> None:
        """Raise ConfigError where the model wants another number of images."""
        if self.dates == 2 and after is None:
            raise ConfigError(f"{path}: the model compares two dates; give the second one with --after")
        if self.dates == 1 and after is not None:
            raise ConfigError(f"{after}: the model takes single images, not pairs; leave --after out")


@dataclass(frozen=True, kw_only=True)
class Work(Settings):
    """What is the same for every input of a model that maps pixels."""

    predictor: Predictor
    volumes: VolumeFolderConfig | None  # how volumes were seen in training; None: as `reader` says

    @property
    def dates(self) -> int:
        """Images an input of the model is made of."""
        return self.predictor.dates


def state_folder(target: Path) -> Path:
    """Where an unfinished prediction of `target` (an output without suffix) is kept."""
    return target.with_name(f".{target.name}.partial")


def predict_scene(path: Path, after: Path | None, target: Path, work: Work) -> list[Path]:
    """Predict an image and write its outputs; a killed call goes on where it was.

    Args:
        path: the image, or the first date.
        after: the second date of a pair.
        target: the outputs' path without suffix.
        work: model and settings.

    Returns:
        the files written, the class map first.

    Raises:
        DataError: the image is unusable, or two dates do not align.
        OutputError: no space left or not writable; what is finished is kept for the next call.
    """
    work.check_dates(path, after)
    with opened(path, after, work.reader) as source:
        for note in source.notes:
            work.say(f"{path.name}: {note}")
        grid = make_grid(source.height, source.width, work.side, work.config.overlap)
        if min(source.height, source.width) < work.side:
            held = f"{grid.columns.window} x {grid.rows.window}"
            work.say(f"{path.name}: smaller than the window of {work.side} pixels; predicted in windows of {held}")
        layers = _Layers(source, work)
        partial = Partial(state_folder(target), work.fingerprint(path, after), layers.sizes())
        try:
            _predict(source, grid, layers, partial, work)
        except BaseException:
            partial.close()
            raise
        written = _write(source, layers, partial, target, work)
        partial.remove()
    return written


class _Layers:
    """What is kept of finished rows, and where it lies in the raw files."""

    def __init__(self, source: Source, work: Work) -> None:
        self.height, self.width = source.height, source.width
        self.kinds = len(work.predictor.classes) if work.config.probabilities else 0
        longest = work.config.preview
        wanted = max(self.height, self.width) > longest > 0
        self.thumbnail = Thumbnail(self.height, self.width, longest) if wanted else None

    def sizes(self) -> dict[str, int]:
        """Bytes of each layer."""
        sizes = {CLASSES: self.height * self.width}
        if self.kinds:
            sizes[PROBABILITIES] = sizes[CLASSES] * self.kinds
        if self.thumbnail is not None:
            sizes[PREVIEW] = self.thumbnail.bytes
        return sizes

    def store(self, rows: Rows, partial: Partial) -> None:
        """Finished rows into the raw files: rows of ids; rows of each class; thinned rows of RGB."""
        partial.write(CLASSES, rows.top * self.width, rows.classes)
        if rows.probabilities is not None:
            partial.write(PROBABILITIES, rows.top * self.width * self.kinds, rows.probabilities.transpose(1, 0, 2))
        if self.thumbnail is not None:
            self.thumbnail.store(rows.top, rows.pixels, partial)


def _predict(source: Source, grid: Grid, layers: _Layers, partial: Partial, work: Work) -> None:
    """Fill the layers."""
    count = len(grid.rows.starts)
    if partial.done:
        work.say(f"{source.path.name}: going on after {partial.done} of {count} rows of windows")
    if partial.done >= count:
        return
    rows = predicted(
        work.predictor,
        source,
        grid,
        batch_size=work.batch_size,
        probabilities=work.config.probabilities,
        first=partial.done,
        progress=lambda done: work.progress(done, grid.windows),
    )
    with closing(rows):
        for index, finished in enumerate(rows, partial.done):
            layers.store(finished, partial)
            partial.note(index + 1, now=index + 1 == count)


def _write(source: Source, layers: _Layers, partial: Partial, target: Path, work: Work) -> list[Path]:
    """The finished layers as the user's files."""
    config, size = work.config, (source.height, source.width)
    options = TiffOptions(config.format, config.compress, config.overviews)
    ids, shares = partial.path(CLASSES), partial.path(PROBABILITIES)
    written = []
    if source.raster:
        if layers.kinds:
            written.append(with_suffix(target, "_probabilities.tif"))
            write_probability_tiff(written[-1], shares, size, source.place, work.look, options)
    else:
        for kind, name in enumerate(work.look.classes if layers.kinds else ()):
            written.append(with_suffix(target, f"_probability_{kind}_{_plain(name)}.png"))
            write_probability_png(written[-1], shares, size, layers.kinds, kind)
    if config.polygons is not None:
        written.append(with_suffix(target, f".{config.polygons}"))
        kept, left_out = write_polygons(written[-1], ids, size, source.place, work.look, config.min_polygon)
        work.say(f"{written[-1].name}: {kept} polygons" + (f", {left_out} smaller ones left out" if left_out else ""))
    if layers.thumbnail is not None:
        written.append(with_suffix(target, "_preview.png"))
        pixels = layers.thumbnail.read(partial.path(PREVIEW))
        write_preview(written[-1], pixels, _thinned(ids, layers, layers.thumbnail.step), work.look)
    final = class_map(target, raster=source.raster)  # last: where it stands, everything does
    if source.raster:
        write_class_tiff(final, ids, size, source.place, work.look, options)
    else:
        write_class_png(final, ids, size, work.look)
    return [final, *written]


def _thinned(raw: Path, layers: _Layers, step: int) -> NDArray[np.uint8]:
    stored = np.memmap(raw, dtype=np.uint8, mode="r", shape=(layers.height, layers.width))
    return np.stack([np.array(stored[row, ::step]) for row in range(0, layers.height, step)])


def class_map(target: Path, *, raster: bool) -> Path:
    """The file of class ids."""
    return with_suffix(target, ".tif" if raster else ".png")


def with_suffix(target: Path, ending: str) -> Path:
    """A name beside others of one input; dots in the stem stay."""
    return target.with_name(target.name + ending)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
