"""Where the records of a text file lie: found by scanning it, or remembered by an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vitp.instruction.index_file import IndexFile


@dataclass(frozen=True)
class Places:
    """Where the records of a text file lie."""

    starts: npt.NDArray[np.int64]  # [n] first bytes
    lengths: npt.NDArray[np.int64]  # [n] bytes; 0: not a record, but what is lost behind damage
    lines: npt.NDArray[np.integer]  # [n] 1-based
    content: str  # hash of the whole (unpacked) text
    state: tuple[int, int]  # size and time of change of the file they belong to
    cut_off: bool  # the file ends without a newline
    by_line: bool  # a line number tells a record from every other
    index: IndexFile | None = None  # the file the arrays are mapped from: to be pickled in their stead

    def __reduce__(self) -> tuple[Any, ...]:
        if self.index is not None:
            return _places_of, (self.index,)
        return Places, (self.starts, self.lengths, self.lines, self.content, self.state, self.cut_off, self.by_line)


def _places_of(index: IndexFile) -> Places:
    places = index.places
    assert places is not None
    return places
