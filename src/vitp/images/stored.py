"""Images that are no files of their own: members of shards, cells of tables, objects behind URLs."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from vitp.errors import DataError
from vitp.files import file_state

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class StoredImage(Protocol):
    """An image to be opened; picklable and small, whatever it leads to. ``str()`` of it says where it is."""

    @property
    def name(self) -> str:
        """A file name, whose suffix tells NIfTI and DICOM."""
        ...

    def open(self) -> BinaryIO:
        """A seekable stream of its bytes; raises DataError where there is none."""
        ...


ImageFile = Path | StoredImage


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A part of a file, read by position: nothing is shared between processes, and headers are read without the rest."""

    path: str
    offset: int
    size: int
    name: str
    state: tuple[int, int]  # size and time (ns) of the file when the part was found
    shown: str

    def __str__(self) -> str:
        return self.shown

    def open(self) -> BinaryIO:
        """The part as a stream.

        Raises:
            DataError: the file is gone, may not be read, or is another one by now.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot be opened ({error.strerror}); put the file back", self.path) from error
        if file_state(descriptor) != self.state:
            os.close(descriptor)
            raise DataError("changed while it was in use; start again", self.path)
        return cast("BinaryIO", io.BufferedReader(_Part(descriptor, self.offset, self.size), 1 << 16))


@dataclass(frozen=True, slots=True)
class _Held:
    """An image whose bytes are at hand."""

    data: bytes
    name: str
    shown: str

    def __str__(self) -> str:
        return self.shown

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


def held(file: ImageFile) -> ImageFile:
    """The same image, in memory where opening it again would fetch it again; raises what `open` raises."""
    if isinstance(file, Path | FileSlice | _Held):
        return file
    with file.open() as stream:
        return _Held(stream.read(), file.name, str(file))


class _Part(io.RawIOBase):
    """Bytes [offset, offset + size) of an open file, which is closed with it."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._offset, self._size, self._at = descriptor, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        wanted = max(0, min(len(target), self._size - self._at))
        data = os.pread(self._descriptor, wanted, self._offset + self._at) if wanted else b""
        target[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
