"""The file of an index: one Arrow IPC file, one row a sample, readable by anything that reads Arrow.

Columns (none holds nulls):

* ``start`` int64, ``length`` int64, ``line`` uint32: where the record lies in its (unpacked) text file, bytes and 1-based
  line; absent where records do not lie in a text file;
* ``images``: list of (``path``, ``width``, ``height``), the paths as written in the record, upright pixels, 0 x 0 where
  the header could not be read;
* ``text_tokens``, ``supervised_tokens``, ``tiles`` uint32, ``flags`` uint8 (see `Flag`), ``reason`` uint8 (a number in
  the header's list of reasons), ``message`` text: see `vitp.instruction.index.Index`.

All rows lie in one record batch, so a column is one stretch of the file and numpy reads it in place. A second, empty
batch carries the length and CRC-32 of all bytes before it: what was damaged later is noticed when the file is opened. We
read the file from its front, as a stream; the footer, which no sum covers, is for other readers.
"""

from __future__ import annotations

import io
import mmap
import os
import zlib
from enum import IntFlag
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from vitp.config import Config
from vitp.errors import DataError
from vitp.files import write_atomic
from vitp.instruction.places import Places

VERSION = 2  # raised when the meaning of a column changes
_KEY, _SUM, _LENGTH = b"vitp.index", b"crc32", b"bytes"
_MAGIC = b"ARROW1\0\0"  # behind it an Arrow file is a stream
_READ = 16 << 20

IMAGE = pa.struct([pa.field("path", pa.large_string(), False), pa.field("width", pa.uint32(), False),
                   pa.field("height", pa.uint32(), False)])  # fmt: skip
SIZE_FIELDS = (
    pa.field("images", pa.large_list(pa.field("item", IMAGE, False)), False),
    pa.field("text_tokens", pa.uint32(), False),
    pa.field("supervised_tokens", pa.uint32(), False),
    pa.field("tiles", pa.uint32(), False),
    pa.field("flags", pa.uint8(), False),
    pa.field("reason", pa.uint8(), False),
    pa.field("message", pa.large_string(), False),
)
PLACE_FIELDS = (
    pa.field("start", pa.int64(), False),
    pa.field("length", pa.int64(), False),
    pa.field("line", pa.uint32(), False),
)


class Flag(IntFlag):
    """What is said of a sample in the column ``flags``."""

    UNUSABLE = 1  # training would replace it; `reason` and `message` say why
    TRUNCATED = 2  # longer than max_length: its end is cut off
    BOXES = 4  # its texts hold boxes, or quads where they are to be moved, which flips and turns rewrite
    IMAGE = 8  # unusable for the sake of an image file, which may be mended without touching the annotations


class Header(Config):
    """What an index says of itself."""

    version: int = VERSION
    settings: str  # fingerprint of tokenizer, template, tiling and limits
    sizing: str  # fingerprint of what decides an image's pixel size besides its file
    content: str  # fingerprint of the records
    rows: int
    tokens_per_tile: int
    max_length: int
    reasons: tuple[str, ...]  # reason codes by number; the first is "", for usable samples
    chunks: tuple[str, ...]  # digest of each chunk of rows
    chunk_rows: int
    # of a text file's `Places`:
    text: str = ""
    state: tuple[int, int] = (0, 0)
    cut_off: bool = False
    by_line: bool = True


class IndexDamagedError(Exception):
    """The file is no index, or not as it was written; the message says what is wrong, without the path."""


class _Summed(io.RawIOBase):
    """A stream that keeps the length and CRC-32 of what went through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sum = self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.sum = zlib.crc32(data, self.sum)
        self.length += len(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self.length


def write_index_file(path: Path, table: pa.Table, header: Header, *, durable: bool = True) -> None:
    """Write an index atomically.

    Raises:
        OutputError: no space left, or the place is not writable.
    """
    assert len(table) == header.rows
    schema = table.schema.with_metadata({_KEY: header.model_dump_json()})
    batches = table.cast(schema).combine_chunks().to_batches()
    batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema)
    assert len(batch) == len(table)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            summed = _Summed(stream)
            with pa.ipc.new_file(pa.PythonFile(summed, mode="w"), schema) as writer:
                writer.write_batch(batch)
                proof = {_SUM: str(summed.sum), _LENGTH: str(summed.length)}
                writer.write_batch(batch.slice(0, 0), custom_metadata=proof)

    write_atomic(path, write, durable=durable)


class IndexFile:
    """An open index file. Its columns are read in place; pickled, it is a path.

    Args:
        path: the file.
        verify: compare all bytes with the check sum (about a second a gigabyte).

    Raises:
        FileNotFoundError: there is none.
        IndexDamagedError: it is no index, of another version, or damaged.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise IndexDamagedError("it is empty")
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            try:
                reader = pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(mapped).slice(len(_MAGIC))))
                self.header = Header.model_validate_json((reader.schema.metadata or {}).get(_KEY, b""))
                if self.header.version != VERSION:
                    raise IndexDamagedError(f"it is of format {self.header.version}, not {VERSION}")
                self.batch = reader.read_next_batch()
                names = self.batch.schema.names
                _, proof = reader.read_next_batch_with_custom_metadata()
            except StopIteration as error:
                raise IndexDamagedError("it is not whole") from error
            except (pa.ArrowException, OSError, ValidationError, ValueError, KeyError) as error:
                raise IndexDamagedError(f"it cannot be read: {str(error).splitlines()[0]}") from error
            if verify:
                _verify(stream, proof)
        wanted = [*(PLACE_FIELDS if "start" in names else ()), *SIZE_FIELDS]
        if list(self.batch.schema) != wanted or len(self.batch) != self.header.rows:
            raise IndexDamagedError("its columns are not those of an index")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self.header.settings, self.header.content)

    def __len__(self) -> int:
        return self.header.rows

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of numbers as it lies in the file, [n]."""
        values: npt.NDArray[Any] = self.batch.column(name).to_numpy(zero_copy_only=True)
        return values

    @property
    def places(self) -> Places | None:
        """Where the records lie; None where they do not lie in a text file."""
        if "start" not in self.batch.schema.names:
            return None
        header = self.header
        return Places(self.column("start"), self.column("length"), self.column("line"), header.text, header.state,
                      header.cut_off, header.by_line, self)  # fmt: skip


def _verify(stream: BinaryIO, proof: Any) -> None:
    """Compare the bytes with the sum written behind them."""
    try:
        left, expected = int(proof[_LENGTH]), int(proof[_SUM])
    except (KeyError, TypeError, ValueError) as error:
        raise IndexDamagedError("its check sum is missing") from error
    found = 0
    while left > 0 and (data := stream.read(min(_READ, left))):
        found = zlib.crc32(data, found)
        left -= len(data)
    if left or found != expected:
        raise IndexDamagedError("its check sum is wrong")


def _reopened(path: Path, settings: str, content: str) -> IndexFile:
    """The index in another process."""
    try:
        file = IndexFile(path, verify=False)
    except (OSError, IndexDamagedError) as error:
        raise DataError(f"cannot be opened again ({error}); start again", str(path)) from error
    if (file.header.settings, file.header.content) != (settings, content):
        raise DataError("changed while it was in use; start again", str(path))
    return file
