"""Files made from other files and kept from run to run: unpacked, converted and fetched data.

They lie in ``$VITP_CACHE``, else ``$XDG_CACHE_HOME/vitp``, else ``~/.cache/vitp``. Everything there can be made again, so
the folder may be deleted whenever no run is using it.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vitp.errors import OutputError
from vitp.files import write_atomic

_ABANDONED = 24 * 3600  # seconds; ours: no file takes a day to make
_NAME = 80  # characters kept of a name; file systems allow 255 bytes


def cache_folder() -> Path:
    """Where cached files lie; it need not exist."""
    own = os.environ.get("VITP_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vitp"


class CacheEntry:
    """What was made from one state of one original."""

    def __init__(self, original: str, state: str) -> None:
        """Nothing is read or written.

        Args:
            original: a resolved path or a URL.
            state: changes whenever the original does, for instance its size and time.
        """
        self.original = original
        self._folder = cache_folder() / _hash(original)
        self._state = _hash(state)

    def path(self, name: str) -> Path:
        """Where the file of this name is, or will be."""
        return self._folder / f"{self._state}-{name[-_NAME:]}"

    def made(self, name: str, write: Callable[[Path], None]) -> Path:
        """The file of this name; `write` fills it if it is not there. Files of the original's earlier states go.

        Raises:
            OutputError: the cache folder is full or cannot be written to. Besides, what `write` raises.
        """
        path = self.path(name)
        if path.is_file():
            return path
        part = path.with_name(f".{uuid.uuid4().hex}.part")  # machines with equal process ids may share the folder
        try:
            write_atomic(part, write)
            os.replace(part, path)
        except OutputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno is None:
                raise error.__cause__ from None  # no system call failed, so it is the original that cannot be read
            reason = getattr(error.__cause__, "strerror", None) or "no space left"
            raise OutputError(
                f"{self.original} needs the cache folder {cache_folder()}, which cannot be written ({reason}); free "
                "some space there, or set the environment variable VITP_CACHE to another folder"
            ) from error
        self._sweep()
        return path

    def _sweep(self) -> None:
        """Remove what belongs to earlier states, and what killed processes left half-made."""
        for other in self._folder.iterdir():
            with suppress(OSError):
                half_made = other.name.startswith(".")
                if half_made and time.time() - other.stat().st_mtime < _ABANDONED:
                    continue
                if half_made or not other.name.startswith(self._state):
                    other.unlink()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
