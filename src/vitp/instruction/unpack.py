"""Compressed annotation files and shards, unpacked once into the cache, as far as they can be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vitp.cache import CacheEntry
from vitp.errors import DataError
from vitp.files import file_state, write_text

CODECS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}
MAX_UNPACKED_BYTES = 64 << 30  # ours: far above any text; a bomb of zeros stops here
_PIECE = 8 << 10  # what is lost in front of damage at most


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Where the unpacked file is, and why it ends early if it does."""

    path: Path
    damage: str | None


def is_packed(name: str) -> bool:
    """Whether a file of this name is compressed."""
    return os.path.splitext(name)[1] in CODECS


def unpacked(path: Path, shown: str) -> Unpacked:
    """The unpacked content of a .gz or .zst file; what lies in front of damage is kept.

    Args:
        path: a file for which `is_packed` holds.
        shown: what messages call it.

    Raises:
        DataError: nothing can be unpacked, or it is larger than `MAX_UNPACKED_BYTES`.
        OutputError: the cache folder is full or cannot be written to.
        OSError: `path` cannot be read.
    """
    entry = CacheEntry(os.path.realpath(path), f"unpacked {file_state(path)}")
    path.open("rb").close()  # a file that may not be read is no mistake of the cache
    note = entry.path("damage.txt")

    def write(target: Path) -> None:
        damage = _unpack(path, target, shown)
        if damage is not None:
            write_text(note, damage)

    made = entry.made(os.path.splitext(path.name)[0], write)
    return Unpacked(made, note.read_text(encoding="utf-8") if note.is_file() else None)


def _unpack(path: Path, target: Path, shown: str) -> str | None:
    """Unpack `path` into `target`; the complaint about what could not be unpacked."""
    import pyarrow

    total, damage = 0, None
    with pyarrow.OSFile(str(path)) as packed, target.open("wb") as out:
        stream = pyarrow.CompressedInputStream(packed, CODECS[path.suffix])
        while True:
            try:
                piece = stream.read(_PIECE)
            except OSError as error:
                damage = " ".join(str(error).split())
                break
            if not piece:
                break
            total += out.write(piece)
            if total > MAX_UNPACKED_BYTES:
                limit = f"{MAX_UNPACKED_BYTES >> 30} GB"
                raise DataError(f"is larger than {limit} unpacked; unpack it yourself and name the result", shown)
    if damage is not None and not total:
        raise DataError(f"is damaged or truncated ({damage}); copy it again", shown)
    return damage
