"""Where the elements of a JSON array lie, found in one pass that holds a window of the text, whatever its size."""

from __future__ import annotations

import array
import codecs
import json
import re
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vitp.errors import DataError

Int64 = npt.NDArray[np.int64]

BOM = b"\xef\xbb\xbf"  # of UTF-8
MAX_ELEMENT = (
    64 << 20
)  # characters; ours: twice the longest record that is read, so that a longer one costs itself only
_CHUNK = 1 << 20
_MARGIN = 16  # characters: longer than any piece of a value that reads differently once its rest is there
_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


def index_array(stream: BinaryIO, file: str, seen: Callable[[bytes], None] | None = None) -> tuple[Int64, Int64, Int64]:
    """Where the elements of a JSON array lie: int64 first bytes, end bytes and line numbers (1-based), one an element.

    Args:
        stream: the text, from its start.
        file: for messages.
        seen: called with all bytes of the file, in order.

    Raises:
        DataError: the text is no JSON array, or an element is longer than `MAX_ELEMENT`; with the line of the mistake.
    """
    window = _Window(stream, file, seen)
    places = array.array("q")
    try:
        if window.peek() != "[":
            raise json.JSONDecodeError("no [ at its start", window.text, window.at)
        window.advance(window.at + 1)
        separator = window.peek()
        while separator != "]":
            window.peek()
            places.extend((window.offset, 0, window.line))
            window.advance(window.value_end())
            places[-2] = window.offset
            separator = window.peek()
            if separator not in (",", "]"):  # also at the end of the text, where it is empty
                raise json.JSONDecodeError("a comma or ] is missing", window.text, window.at)
            window.advance(window.at + 1)
        if not places:
            window.advance(window.at + 1)
        if window.peek():
            raise json.JSONDecodeError("something follows the closing ]", window.text, window.at)
    except json.JSONDecodeError as error:
        line = window.line + window.text.count("\n", window.at, error.pos)
        raise DataError(f"is no JSON ({error.msg}); mend it or copy the file again", f"{file}:{line}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        found = "holds JSON that is too deep or too long to be a record"
        raise DataError(f"{found}; mend it", f"{file}:{window.line}") from error
    table = np.array(places, np.int64).reshape(-1, 3)
    return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()


class _Window:
    """The part of a text that is being looked at: `at` is the position in `text`, `offset` its byte in the file."""

    def __init__(self, stream: BinaryIO, file: str, seen: Callable[[bytes], None] | None) -> None:
        self._stream, self._file, self._seen = stream, file, seen
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines_read = 1
        self._started = self.ended = False
        self.text, self.at, self.offset, self.line = "", 0, 0, 1

    def advance(self, to: int) -> None:
        """Move on to a position of `text`."""
        self.line += self.text.count("\n", self.at, to)
        self.offset += to - self.at if self.text.isascii() else len(self.text[self.at : to].encode())
        self.at = to

    def peek(self) -> str:
        """Move on to what is no blank, and return it; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.advance(match.end() if match else self.at)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._grow()

    def value_end(self) -> int:
        """The position behind the JSON value that starts here."""
        while True:
            try:
                _, end = _decode(self.text, self.at)
                if self.ended or end + _MARGIN <= len(self.text):
                    return end
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - _MARGIN or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise
            self._grow()

    def _grow(self) -> None:
        """Drop what lies behind, and read on: as much again as there is, so that a long value is not read too often."""
        if len(self.text) - self.at > MAX_ELEMENT:
            found = f"holds an element of more than {MAX_ELEMENT >> 20} MB, or a quote that is never closed"
            raise DataError(f"{found}; mend it", f"{self._file}:{self.line}")
        self.text = self.text[self.at :]
        self.at = 0
        data = self._stream.read(max(_CHUNK, len(self.text), len(BOM)))
        if self._seen is not None:
            self._seen(data)
        self.ended = not data
        if not self._started:
            self._started = True
            if data.startswith(BOM):
                data, self.offset = data[len(BOM) :], len(BOM)
        try:
            self.text += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._lines_read + error.object.count(b"\n", 0, error.start)
            raise DataError("is not UTF-8; save the file as UTF-8", f"{self._file}:{line}") from error
        self._lines_read += data.count(b"\n")
