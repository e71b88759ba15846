"""The labels of a whole data set as columns: small enough to send to worker processes, and quick to look up.

Shape legend: I images, T objects of all images, N of one.
"""

from __future__ import annotations

import difflib
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitp.datasets.object_geometry import corners_of
from vitp.datasets.objects_config import ObjectRules
from vitp.errors import DataError
from vitp.synthesis.json_lines import entry_line

_LEFT_OUT = -1
Size = tuple[int, int]  # H, W


@dataclass(frozen=True)
class ObjectItem:
    """One image and where its labels are."""

    image: Path
    group: str
    labels: Path | None  # None: no file
    stated: Size | None = None  # size of the image that the labels name


@dataclass(frozen=True)
class ObjectTable:
    """Objects as they are written, in the order of the images."""

    starts: NDArray[np.int64]  # [I + 1]: the objects of an image are starts[i] to starts[i + 1]
    boxes: NDArray[np.float64] | None  # [T, 4]; None where quads are
    quads: NDArray[np.float64] | None  # [T, 4, 2]
    labels: NDArray[np.int64]  # [T]
    difficult: NDArray[np.bool_]  # [T]
    crowd: NDArray[np.bool_]  # [T]
    lines: NDArray[np.int64]  # [T]: in the label file; of JSON the number of the entry
    left_out: int  # objects that the recipe does not want
    points: NDArray[np.float32] | None = None  # [P, 2]: of all outlines
    rings: NDArray[np.int64] | None = None  # [R + 1]: where each ring begins in `points`
    outlines: NDArray[np.int64] | None = None  # [T + 1]: where each object's rings begin in `rings`

    @property
    def checksum(self) -> int:
        """Of everything above."""
        total = 0
        for one in fields(self):
            column = np.asarray(getattr(self, one.name))
            total = zlib.crc32(b"" if column.dtype == object else column.tobytes(), total)
        return total

    def rows(self, index: int) -> slice:
        """The objects of an image."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def corners(self, rows: slice) -> NDArray[np.float64]:
        """Quads, or boxes as quads, [N, 4, 2]."""
        if self.quads is not None:
            return self.quads[rows]
        assert self.boxes is not None
        return corners_of(self.boxes[rows])

    def outline(self, row: int) -> list[NDArray[np.float32]]:
        """The rings of an object."""
        assert self.points is not None, "outlines were not read"
        assert self.rings is not None
        assert self.outlines is not None
        first, last = int(self.outlines[row]), int(self.outlines[row + 1])
        return [self.points[self.rings[r] : self.rings[r + 1]] for r in range(first, last)]

    def where(self, row: int, item: ObjectItem) -> str:
        """``file:line`` of an object."""
        return line_of(item.labels, int(self.lines[row]))


def line_of(file: Path | None, line: int) -> str:
    """``file:line``, where for JSON the line of an annotation is looked up by its number."""
    if file is not None and file.suffix.lower() == ".json":
        return entry_line(file, "annotations", line)
    return f"{file}:{line}"


@dataclass
class TableBuilder:
    """Columns that grow object by object, image by image."""

    quads: bool  # eight numbers an object, not four
    outlined: bool
    files: list[Path | None] = field(default_factory=list)  # of each image
    starts: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    names: list[str] = field(default_factory=list)
    difficult: array[int] = field(default_factory=lambda: array("b"))
    crowd: array[int] = field(default_factory=lambda: array("b"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    points: list[NDArray[np.float32]] = field(default_factory=list)  # rings
    outlines: array[int] = field(default_factory=lambda: array("q"))  # rings before each object

    def begin(self, file: Path | None) -> None:
        """What is added from now on belongs to the next image, whose labels are in `file`."""
        self.files.append(file)
        self.starts.append(len(self.names))

    def add(
        self,
        name: str,
        numbers: Sequence[float],
        line: int,
        *,
        difficult: bool = False,
        crowd: bool = False,
        outline: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        """One object: x1, y1, x2, y2 of a box, or x1, y1, ..., x4, y4 of a quad."""
        assert len(numbers) == (8 if self.quads else 4)
        self.names.append(name)
        self.numbers.extend(numbers)
        self.lines.append(line)
        self.difficult.append(difficult)
        self.crowd.append(crowd)
        self.outlines.append(len(self.points))
        self.points.extend(outline)

    def build(self, rules: ObjectRules, usual: Sequence[str] | None = None) -> tuple[ObjectTable, tuple[str, ...]]:
        """The table and the classes.

        Args:
            rules: classes, and what is renamed or left out.
            usual: the classes where the recipe names none; None: all names that occur, sorted.

        Raises:
            DataError: with file:line: a name that is no class.
        """
        classes, ids = self._classes(rules, usual)
        labels = np.array([ids[name] for name in self.names], dtype=np.int64)
        starts = np.array([*self.starts, len(self.names)], dtype=np.int64)
        kept = labels != _LEFT_OUT
        before = np.concatenate([[0], np.cumsum(kept)])
        numbers = np.array(self.numbers, dtype=np.float64).reshape(-1, 8 if self.quads else 4)[kept]
        points = rings = outlines = None
        if self.outlined:
            bounds = [*self.outlines, len(self.points)]
            own = [self.points[bounds[row] : bounds[row + 1]] for row in np.flatnonzero(kept)]
            flat = [ring for some in own for ring in some]
            points = np.concatenate([np.zeros((0, 2), dtype=np.float32), *flat])
            rings = np.cumsum([0, *(len(ring) for ring in flat)], dtype=np.int64)
            outlines = np.cumsum([0, *(len(some) for some in own)], dtype=np.int64)
        table = ObjectTable(
            starts=before[starts],
            boxes=None if self.quads else numbers,
            quads=numbers.reshape(-1, 4, 2) if self.quads else None,
            labels=labels[kept],
            difficult=np.array(self.difficult, dtype=np.bool_)[kept],
            crowd=np.array(self.crowd, dtype=np.bool_)[kept],
            lines=np.array(self.lines, dtype=np.int64)[kept],
            left_out=int((~kept).sum()),
            points=points,
            rings=rings,
            outlines=outlines,
        )
        return table, classes

    def _classes(self, rules: ObjectRules, usual: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, int]]:
        """The classes, and the class or -1 of every name in the labels."""
        found = dict.fromkeys(self.names)
        wanted = [rules.rename.get(name, name) for name in usual or sorted(found) if name not in rules.leave_out]
        classes = rules.classes if rules.classes is not None else tuple(dict.fromkeys(wanted))
        if not classes:
            raise DataError("the labels hold no object of any class; correct the template or the label files")
        by_lower = {name.lower(): i for i, name in enumerate(classes)}
        ids: dict[str, int] = {}
        for name in found:
            target = rules.rename.get(name, name)
            ids[name] = _LEFT_OUT if name in rules.leave_out else by_lower.get(target.lower(), len(classes))
            if ids[name] == len(classes):
                near = difflib.get_close_matches(target.lower(), by_lower, n=1)
                hint = f"rename: {{{name}: {classes[by_lower[near[0]]]}}}" if near else f"rename: {{{name}: CLASS}}"
                raise DataError(
                    f"'{name}' is none of the classes ({', '.join(classes)}); write data.{hint}, or data.leave_out: [{name}]",
                    self._where(self.names.index(name)),
                )
        return classes, ids

    def _where(self, row: int) -> str:
        return line_of(self.files[bisect_right(self.starts, row) - 1], self.lines[row])
