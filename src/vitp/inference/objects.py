"""Objects of one image of any size: found window by window, each kept once, written in the image's own pixels and on the ground.

Pixels are read strip by strip and forgotten; of a window only its finds stay, in one small file a row of windows, from which a
killed call goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from vitp.boxes.merge import merge_windows
from vitp.boxes.objects import Detections, joined
from vitp.boxes.paste import STEPS
from vitp.errors import OutputError
from vitp.files import write_atomic
from vitp.inference.engine import Strip, ahead, strips_of
from vitp.inference.finder import Finder, cut_in
from vitp.inference.grid import Axis, Grid, make_grid
from vitp.inference.object_files import Picture, write_coco, write_object_polygons, write_object_preview
from vitp.inference.partial import Partial
from vitp.inference.scene import Settings, state_folder, with_suffix
from vitp.inference.sources import Source, opened
from vitp.inference.thumbnail import PREVIEW, Thumbnail


@dataclass(frozen=True, kw_only=True)
class ObjectWork(Settings):
    """What is the same for every input of a detector."""

    finder: Finder
    whole: int  # longer side up to which an image is seen whole, in the image's pixels

    @property
    def dates(self) -> int:
        """Pictures an input is made of."""
        return 1

    def fingerprint(self, path: Path, after: Path | None) -> dict[str, Any]:
        """As for maps; finds are filtered and merged by these too."""
        return {
            **super().fingerprint(path, after),
            "threshold": self.finder.threshold,
            "merge": self.finder.merge,
            "whole": self.whole,
        }


def find_objects(path: Path, target: Path, work: ObjectWork) -> list[Path]:
    """Find the objects of an image and write its outputs; a killed call goes on where it was.

    Args:
        path: the image.
        target: the outputs' path without suffix.
        work: model and settings.

    Returns:
        the files written, the list of objects (COCO) first.

    Raises:
        DataError: the image is unusable.
        OutputError: no space left or not writable; what is finished is kept for the next call.
    """
    with opened(path, None, work.reader) as source:
        for note in source.notes:
            work.say(f"{path.name}: {note}")
        longer = max(source.height, source.width)
        whole = longer <= work.whole
        grid = make_grid(source.height, source.width, longer if whole else work.side, work.config.overlap)
        if not whole:
            work = replace(work, finder=work.finder.in_windows(work.side))
        longest = work.config.preview
        thumbnail = Thumbnail(source.height, source.width, longest) if longest else None
        layers = {} if thumbnail is None else {PREVIEW: thumbnail.bytes}
        partial = Partial(state_folder(target), work.fingerprint(path, None), layers)
        try:
            _find(source, grid, thumbnail, partial, work)
            found = _merged(partial, len(grid.rows.starts), work.finder)
        except BaseException:
            partial.close()
            raise
        written = _write(source, found, thumbnail, partial, target, work)
        partial.remove()
    return written


def object_list(target: Path) -> Path:
    """The file of objects."""
    return with_suffix(target, ".json")


def _find(source: Source, grid: Grid, thumbnail: Thumbnail | None, partial: Partial, work: ObjectWork) -> None:
    """A file of finds for each row of windows, and the thumbnail."""
    count = len(grid.rows.starts)
    if partial.done:
        work.say(f"{source.path.name}: going on after {partial.done} of {count} rows of windows")
    if partial.done >= count:
        return
    with closing(ahead(strips_of(source, grid.rows, partial.done))) as strips:
        for strip in strips:
            finds = list(_row(strip, grid, (source.height, source.width), work))
            _save(partial.folder / _row_name(strip.index), finds)
            if thumbnail is not None:
                thumbnail.store(grid.rows.starts[strip.index], strip.pixels.numpy(), partial)
            partial.note(strip.index + 1, now=strip.index + 1 == count)


def _row(strip: Strip, grid: Grid, size: tuple[int, int], work: ObjectWork) -> Iterator[tuple[Detections, Tensor]]:
    """The finds of a row of windows in the image's pixels, and which of them a window may have cut."""
    columns, top = grid.columns, grid.rows.starts[strip.index]
    alive = [i for i in range(len(columns.starts)) if strip.valid[:, _part(columns, i)].any()]
    before = strip.index * len(columns.starts)
    for first in range(0, len(alive), work.batch_size):
        some = alive[first : first + work.batch_size]
        batch = torch.stack([strip.pixels[:, :, _part(columns, i)] for i in some])
        for index, found in zip(some, work.finder.find(batch), strict=True):
            left = columns.starts[index]
            moved = found.moved(left, top)
            yield moved, cut_in(moved, (left, top, columns.end(index), grid.rows.end(strip.index)), size)
        work.progress(before + some[-1] + 1, grid.windows)
    work.progress(before + len(columns.starts), grid.windows)


def _part(columns: Axis, index: int) -> slice:
    return slice(columns.starts[index], columns.end(index))


# ------------------------------------------------------------------------------------------------------- kept on disk


def _row_name(index: int) -> str:
    return f"row_{index:06d}.npz"


def _save(path: Path, finds: list[tuple[Detections, Tensor]]) -> None:
    if not finds:
        write_atomic(path, lambda temporary: _store(temporary, {}))
        return
    found = joined([own for own, _ in finds])
    arrays = {
        "boxes": found.boxes.numpy(),
        "scores": found.scores.numpy(),
        "labels": found.labels.numpy(),
        "cut": torch.cat([cut for _, cut in finds]).numpy(),
    }
    if found.masks is not None:
        arrays["masks"] = (found.masks * STEPS).round().to(torch.uint8).numpy()
    write_atomic(path, lambda temporary: _store(temporary, arrays))


def _store(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def _load(path: Path) -> tuple[Detections, Tensor] | None:
    """What `_save` wrote, masks in 255ths still; None of a row without any window to look at."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        if not arrays:
            return None
        found = Detections(arrays["boxes"], arrays["scores"], arrays["labels"], arrays.get("masks"))
        return found, arrays["cut"]
    except (OSError, ValueError, EOFError, KeyError, AttributeError, BadZipFile) as error:
        raise OutputError(f"{path} is damaged; delete {path.parent}, or say --overwrite to start anew") from error


def _merged(partial: Partial, rows: int, finder: Finder) -> Detections:
    """All finds of the image, each object once, by falling score."""
    stored = [own for index in range(rows) if (own := _load(partial.folder / _row_name(index))) is not None]
    if not stored:
        return Detections(torch.zeros(0, 5 if finder.rotated else 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found, cut = joined([own for own, _ in stored]), torch.cat([cut for _, cut in stored])
    return found.take(merge_windows(found.boxes, found.scores, found.labels, cut, finder.merge))


# -------------------------------------------------------------------------------------------------------------- outputs


def _write(
    source: Source, found: Detections, thumbnail: Thumbnail | None, partial: Partial, target: Path, work: ObjectWork
) -> list[Path]:
    picture = Picture(source.path.name, source.height, source.width)
    classes, written = work.finder.classes, []
    counts = torch.bincount(found.labels, minlength=len(classes)).tolist()
    named = ", ".join(f"{count} {name}" for name, count in zip(classes, counts, strict=True) if count)
    work.say(f"{source.path.name}: {len(found)} objects" + (f" ({named})" if named else ""))
    if work.config.polygons is not None:
        written.append(with_suffix(target, f".{work.config.polygons}"))
        write_object_polygons(written[-1], found, picture, classes, source.place)
    if thumbnail is not None:
        written.append(with_suffix(target, "_preview.png"))
        pixels = thumbnail.read(partial.path(PREVIEW))
        write_object_preview(written[-1], pixels, found, thumbnail.step, work.look)
    final = object_list(target)  # last: where it stands, everything does
    write_coco(final, [(picture, found)], classes)
    return [final, *written]
