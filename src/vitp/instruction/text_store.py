"""Records of a JSON Lines file or a JSON array, compressed or not.

The file is scanned once for where its records are; records are read and parsed when asked for, so a source costs 24
bytes a record however long its texts are. Reading is by position (`os.pread`), which shares nothing between processes.
A compressed file is unpacked into the cache first; where it is damaged, what lies in front of the damage is used and
the rest counts as one bad record.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vitp.errors import DataError
from vitp.files import file_state
from vitp.images.stored import StoredImage
from vitp.instruction.json_array import BOM, index_array
from vitp.instruction.places import Places
from vitp.instruction.records import RecordError, decode_record
from vitp.instruction.stores import PLAIN, changed, check_length, is_too_long
from vitp.instruction.unpack import is_packed, unpacked

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
_CHUNK = 16 << 20
_BLANKS = (9, 13, 32)

Int64 = npt.NDArray[np.int64]


class TextRecords:
    """Where the records of a text file lie, and reading them.

    Args:
        path: the file; its name ends in one of `SUFFIXES`.
        shown: what messages call it, where that is not its path.
        places: of its records, if known; where the file is no longer as it was then, it is scanned anew.

    Raises:
        DataError: unreadable as a whole: no such format, no UTF-8, an array that is no JSON.
        OutputError: a compressed file cannot be unpacked into the cache.
    """

    format = PLAIN

    def __init__(self, path: Path, shown: str = "", places: Places | None = None) -> None:
        self.file = shown or str(path)
        self._path = path
        self._descriptor: int | None = None
        self._damage: str | None = None
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"is none of {', '.join(SUFFIXES)}; convert it or set 'format'", self.file)
        try:
            self._state = file_state(path)
            self.places = places if places and places.state == self._state else self._scan()
        except OSError as error:
            raise DataError(
                f"cannot be read ({error.strerror}); check the file and its permissions", self.file
            ) from error

    def _plain(self) -> Path:
        """The file, or what it was unpacked to."""
        if not is_packed(self._path.name):
            return self._path
        made = unpacked(self._path, self.file)
        self._damage = made.damage
        return made.path

    def _scan(self) -> Places:
        """Find all records of the file."""
        content = hashlib.blake2b(digest_size=16)
        cut_off = False
        with self._plain().open("rb") as stream:
            first = self._first_byte(stream)
            if first == b"[":
                starts, ends, lines = self._index_array(stream, content)
            else:
                starts, ends, lines, cut_off = self._index_lines(stream, content)
        # Records of an array that share a line are told apart by their number.
        by_line = first != b"[" or bool(np.all(np.diff(lines) > 0))
        places = Places(starts, ends - starts, lines, content.hexdigest(), self._state, cut_off, by_line)
        if first == b"{" and len(starts) > 1 and ".jsonl" not in self._path.suffixes:
            self.places = places
            self._refuse_lone_object()
        return places

    def _first_byte(self, stream: BinaryIO) -> bytes:
        """What the text starts with, blanks and byte-order mark apart; leaves the stream at its start."""
        head = stream.read(4096)
        stream.seek(0)
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError("is UTF-16; save it as UTF-8", self.file)
        return head.removeprefix(BOM).lstrip()[:1]

    def _refuse_lone_object(self) -> None:
        """A .json file may hold JSON Lines, but not one object spread over lines."""
        try:
            self.record(0)
        except RecordError as error:
            found = "holds one JSON object, not an array of records"
            raise DataError(f"{found}; name the file of the records, or put them into [...]", self.file) from error

    def _index_array(self, stream: BinaryIO, content: hashlib.blake2b) -> tuple[Int64, Int64, Int64]:
        try:
            return index_array(stream, self.file, content.update)
        except DataError as error:
            if self._damage is None:
                raise
            raise DataError(f"is damaged or truncated ({self._damage}); copy it again", error.where) from error

    def _index_lines(self, stream: BinaryIO, content: hashlib.blake2b) -> tuple[Int64, Int64, Int64, bool]:
        """First bytes, ends and numbers of all lines that are not blank, and whether the last one has no newline."""
        starts: list[Int64] = []
        breaks: list[Int64] = []
        firsts: list[npt.NDArray[np.uint8]] = []
        position, at_start = 0, True
        while chunk := stream.read(_CHUNK):
            content.update(chunk)
            array = np.frombuffer(chunk, np.uint8)
            found = np.flatnonzero(array == 10)
            begin = np.concatenate([[0] if at_start else [], found + 1]).astype(np.int64)
            begin = begin[begin < len(chunk)]
            starts.append(begin + position)
            firsts.append(array[begin])
            breaks.append(found + position)
            position, at_start = position + len(chunk), chunk.endswith(b"\n")
        begins = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        ends = np.concatenate([*breaks, [] if at_start else [position]]).astype(np.int64)
        blank = np.isin(np.concatenate(firsts), (*_BLANKS, 10)) if firsts else np.zeros(0, bool)
        if len(blank) and self._bytes(0, min(3, int(ends[0]))) == BOM:
            begins[0] += 3
            blank[0] = True
        for line in np.flatnonzero(blank & (ends - begins > 1)):  # shorter: nothing but the blank itself
            start, end = int(begins[line]), int(ends[line])
            blank[line] = not is_too_long(end - start) and not self._bytes(start, end).strip()
        kept = np.flatnonzero(~blank)
        begins, ends, lines = begins[kept], ends[kept], kept + 1
        if self._damage is not None:  # one more record, of no bytes, for all that is missing
            content.update(self._damage.encode())
            begins, ends, lines = (
                np.append(begins, position),
                np.append(ends, position),
                np.append(lines, len(blank) + 1),
            )
        return begins, ends, lines, not at_start

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        descriptor = self.__dict__.get("_descriptor")
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __len__(self) -> int:
        return len(self.places.starts)

    def where(self, index: int) -> str:
        """``file:line``, or the number of the record where records share lines."""
        if self.places.by_line:
            return f"{self.file}:{self.places.lines[index]}"
        return f"{self.file}:record {index + 1}"

    def digest(self) -> str:
        """Hash of the unpacked text."""
        return self.places.content

    def digest_of(self, start: int, stop: int) -> str:
        """Hash of the text of the records [start, stop)."""
        content = hashlib.blake2b(digest_size=16)
        at, end = int(self.places.starts[start]), int(self.places.starts[stop - 1] + self.places.lengths[stop - 1])
        for first in range(at, end, _CHUNK):
            content.update(self._bytes(first, min(first + _CHUNK, end)))
        return content.hexdigest()

    def image(self, name: str) -> StoredImage | None:
        """None: all images are files."""
        return None

    def _bytes(self, start: int, end: int) -> bytes:
        """Bytes of the (unpacked) file; the file is opened once in each process."""
        if self._descriptor is None:
            if file_state(self._path) != self._state:
                raise changed(self.file)
            self._descriptor = os.open(self._plain(), os.O_RDONLY)
        data = os.pread(self._descriptor, end - start, start)
        while len(data) < end - start:
            more = os.pread(self._descriptor, end - start - len(data), start + len(data))
            if not more:
                raise DataError("became shorter while it was in use; start again", self.file)
            data += more
        return data

    def record(self, index: int) -> object:
        """The decoded JSON of one record."""
        start, length, where = int(self.places.starts[index]), int(self.places.lengths[index]), self.where(index)
        check_length(length, where)
        try:
            data = self._bytes(start, start + length)
        except OSError as error:
            found = f"cannot be read ({error.strerror})"
            raise RecordError("file-changed", found, "check the file and its permissions", where) from error
        if not length:
            found = f"and what follows cannot be unpacked ({self._damage})"
            raise RecordError("file-damaged", found, "copy the file again, or leave the rest out", where)
        lost = 0 if self.places.lengths[-1] else 1
        return decode_record(data, where, at_cut_end=self.places.cut_off and index == len(self) - 1 - lost)
