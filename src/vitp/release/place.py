"""Where an export goes: everything is written beside its place under a hidden name, and takes its name when it is proved."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitp.errors import OutputError
from vitp.files import raise_if_unwritable, temporary_name

RECORD = "vitp_export.json"  # in every exported folder: what it is; also the sign that vitp may replace it
CARD = "README.md"


def files_of(path: Path, suffix: str) -> tuple[Path, Path, Path]:
    """(weights, record, card) of an export at `path`: three files side by side, or in a folder (`suffix` empty)."""
    if suffix == ".safetensors":
        return path, path.with_suffix(".json"), path.with_suffix(".md")
    if suffix:  # its whole name, so that backbone.onnx and backbone.safetensors can lie side by side
        return path, path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.md")
    return path, path / RECORD, path / CARD


def check_place(path: Path, suffix: str, *, overwrite: bool) -> None:
    """See whether an export may be written to `path`; changes nothing.

    Raises:
        OutputError: something is there already, or it cannot be a place at all.
    """
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise OutputError(f"{parent} is a file, so {path} cannot be written; choose another place")
    there = [file for file in (files_of(path, suffix) if suffix else (path,)) if file.exists() or file.is_symlink()]
    for file in there:
        if suffix and file.is_dir():
            raise OutputError(f"{file} is a folder; choose another name to write")
        if not suffix and not file.is_dir():
            raise OutputError(f"{file} is a file, and this format is a folder; choose another name")
    if not suffix and there and not any(path.iterdir()):
        return
    if there and not overwrite:
        raise OutputError(f"{there[0]} is there already: add --overwrite to replace it, or choose another place")
    if there and not suffix and not (path / RECORD).is_file():
        raise OutputError(
            f"{path} was not written by vitp (no {RECORD} in it), so it is not replaced; choose another place"
        )


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, in which the block writes ``path.name`` and what goes with it.

    When the block ends well, every file and folder in it takes its place beside `path`; otherwise all vanishes.

    Raises:
        OutputError: no space left, or the place is not writable; what was there before stays.
    """
    stage = temporary_name(path)
    try:
        stage.mkdir(parents=True)
        yield stage
        _flush(stage)
        # The named thing itself comes last: where it is new, what describes it is there too.
        for item in sorted(stage.iterdir(), key=lambda item: item.name == path.name):
            _take_place(item, path.with_name(item.name))
    except Exception as error:
        raise_if_unwritable(error, path)
        if isinstance(error, OSError):
            raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _flush(folder: Path) -> None:
    """All bytes to the disk, and the usual permissions on every file: safetensors makes its own readable by one user only."""
    usual = folder / ".usual"
    usual.touch()
    mode = usual.stat().st_mode
    usual.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())


def _take_place(item: Path, place: Path) -> None:
    if not place.is_dir():
        os.replace(item, place)
        return
    old = place.with_name(f".{place.name}.{os.getpid()}.old")  # a folder cannot be renamed over one with content
    os.replace(place, old)
    try:
        os.replace(item, place)
    except OSError:
        with suppress(OSError):
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)
