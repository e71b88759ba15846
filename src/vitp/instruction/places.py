"""Where the records of a text file lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
