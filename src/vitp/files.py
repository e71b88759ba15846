"""Writing files so that a reader sees the old content or the new one, never half of it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from vitp.errors import OutputError


def write_atomic(path: Path, write: Callable[[Path], None], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it over `path`.

    Args:
        path: the file; its folder is made if missing.
        write: called with the temporary file's path.
        durable: wait until the disk has it; without, a power cut may lose it (fine for what is written by the thousand
            and followed by one durable file).

    Raises:
        OutputError: no space left, or the place is not writable; `path` is then what it was before.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if durable:
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        with suppress(OSError):
            temporary.unlink()
        raise_if_unwritable(error, path)
        if isinstance(error, OSError):
            raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error
        raise


@contextmanager
def text_stream(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file that takes its name once the block has ended well; otherwise it vanishes.

    Raises:
        OutputError: no space left, or the place is not writable; an older file stays as it was.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise_if_unwritable(error, path)
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """Where a file is written before it gets its name: hidden, beside it, this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def raise_if_unwritable(error: Exception, path: Path) -> None:
    """Turn a full disk and missing permission into an OutputError; return if `error` is neither."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(error):  # safetensors reports it as text
        raise OutputError(f"no space left to write {path}: free some space, or choose another place") from error
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with ``\\n`` as line end everywhere.

    Raises:
        OutputError: the folder cannot be made or written to; nothing is left behind and an older file stays as it was.
    """
    write_atomic(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_state(file: Path | str | int) -> tuple[int, int]:
    """Size and time of change (ns) of a file: while they are the same, so is what was found in it."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
