"""Data sets as distributed into the folders their recipes read: piece by piece, resumable, nothing overwritten.

A piece is one image of the source; each of its files is written under a temporary name and then renamed. What is there
already is kept, so the same command goes on where it was interrupted; lists come last, and a note of the settings first,
so that two different preparations never mix in one folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitp.errors import DataError, OutputError
from vitp.files import write_atomic, write_json, write_text

NOTE = "preparation.json"
_FILES = "files"  # key of the note: how many there are, once all are written
_THREADS = 4
_COMPRESSION = 1  # of PNG, for speed; zlib's usual level is 6


@dataclass(frozen=True)
class Piece:
    """One image of the source and the files made of it."""

    outputs: tuple[Path, ...]  # below the output folder
    make: Callable[[Sequence[Path]], None]  # writes those of the outputs that it is handed


@dataclass(frozen=True)
class Preparation:
    """All there is to do for a data set."""

    settings: Mapping[str, Any]  # what decides about the files; another preparation of the same folder is refused
    pieces: Sequence[Piece]
    lists: Mapping[Path, str] = field(default_factory=dict)  # text files written at the end
    notes: tuple[str, ...] = ()  # what of the source is left out, and why


@dataclass(frozen=True)
class Prepared:
    """What a preparation did."""

    out: Path
    written: int  # files
    kept: int  # files that were there already
    notes: tuple[str, ...] = ()  # of the preparation

    def lines(self) -> list[str]:
        """For people."""
        kept = f", {self.kept:,} were there already" if self.kept else ""
        return [f"{self.written:,} files written to {self.out}{kept}", *(f"note: {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        notes = {"notes": list(self.notes)} if self.notes else {}
        return {"out": str(self.out), "written": self.written, "kept": self.kept, **notes}


def run_preparation(
    plan: Preparation, out: Path, *, threads: int = _THREADS, progress: Callable[[int, int], None] = lambda *_: None
) -> Prepared:
    """Make what is not there yet.

    Args:
        plan: what to make; its paths lie below `out`.
        out: folder, made where missing.
        threads: that make pieces.
        progress: receives (pieces done, pieces in all).

    Raises:
        DataError: an image or label of the source cannot be used.
        OutputError: the folder holds another preparation or other files, or cannot be written to.
    """
    _claim(plan, out)
    written = kept = 0
    with ThreadPoolExecutor(threads) as pool:
        work = pool.map(_make, plan.pieces)
        try:
            for done, (new, old) in enumerate(work, 1):
                written, kept = written + new, kept + old
                progress(done, len(plan.pieces))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for file, text in plan.lists.items():
        if file.exists() and file.read_text(encoding="utf-8") == text:
            kept += 1
            continue
        write_text(file, text)
        written += 1
    write_json(out / NOTE, {**plan.settings, _FILES: written + kept})
    return Prepared(out, written, kept, plan.notes)


def unfinished(folder: Path) -> bool:
    """Whether a preparation of that folder was begun and did not end.

    Raises:
        OutputError: its note cannot be read.
    """
    found = _noted(folder)
    return found is not None and _FILES not in found


def save_png(pixels: NDArray[np.uint8], file: Path) -> None:
    """Write a picture [H, W] or [H, W, 3] as PNG, in one step.

    Raises:
        OutputError: the place cannot be written to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    write_atomic(file, partial(_save, picture), durable=False)


def save_lines(lines: Sequence[str], file: Path) -> None:
    """Write a text file, in one step.

    Raises:
        OutputError: the place cannot be written to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    write_atomic(file, lambda temporary: _write(temporary, content), durable=False)


def copy_file(source: Path, file: Path) -> None:
    """Copy a file, in one step.

    Raises:
        DataError: the source cannot be read.
        OutputError: the place cannot be written to.
    """
    try:
        content = source.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); copy it again", str(source)) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda temporary: _fill(temporary, content), durable=False)


def require_folders(source: Path, folders: Sequence[str], what: str) -> None:
    """Raise DataError unless `source` holds at least one of the folders; names what is expected."""
    if not source.is_dir():
        raise DataError("there is no such folder; name the folder of the data set as distributed", str(source))
    if not any((source / folder).is_dir() for folder in folders):
        raise DataError(f"holds none of the folders {', '.join(folders)}; {what}", str(source))


def _make(piece: Piece) -> tuple[int, int]:
    """Make the missing files of a piece: how many were made, and how many were there."""
    absent = [file for file in piece.outputs if not file.exists()]
    if absent:
        piece.make(absent)
    return len(absent), len(piece.outputs) - len(absent)


def _claim(plan: Preparation, out: Path) -> None:
    """Note the settings in `out`, or find them noted there."""
    found = _noted(out)
    if found is not None:
        settings = {key: value for key, value in found.items() if key != _FILES}
        if settings != dict(plan.settings):
            raise OutputError(f"{out} holds another preparation ({_short(settings)}); choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} holds other files; choose a new or an empty folder")
    write_json(out / NOTE, dict(plan.settings))


def _noted(folder: Path) -> dict[str, Any] | None:
    """The note of a preparation, None where there is none."""
    note = folder / NOTE
    if not note.is_file():
        return None
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{note} cannot be read ({error}); choose another folder") from error
    if not isinstance(found, dict):
        raise OutputError(f"{note} holds no settings; choose another folder")
    return found


def _short(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _save(picture: Image.Image, file: Path) -> None:
    picture.save(file, format="PNG", compress_level=_COMPRESSION)


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def _fill(file: Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
