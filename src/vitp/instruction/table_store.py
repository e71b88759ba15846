"""Records in tables: Parquet files, and the Arrow files of Hugging Face data sets that were saved to disk.

A row is a record: `messages` or `conversations` (a list of turns, or the same as JSON text), `image` or `images` where
there are any, `system` if there is one. An image is a path relative to the source's root, the bytes of an image file,
or the `datasets` feature Image, {bytes, path}; or a list of these. Other columns are not read.

Rows are read where they are: Arrow files are memory-mapped, of Parquet files a few row groups are kept. A Parquet file
whose row groups are larger than `table_files.MAX_GROUP_BYTES` is converted once to an Arrow file in the cache.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitp.errors import DataError
from vitp.files import file_state
from vitp.images.decode import ImageError
from vitp.images.stored import StoredImage
from vitp.instruction.records import RecordError, decode_record
from vitp.instruction.stores import changed, check_length
from vitp.instruction.table_files import (
    TableReader,
    arrow_errors,
    feed,
    first_line,
    is_binary,
    open_table,
    with_small_groups,
)

_TURNS = ("messages", "conversations")
_IMAGES = ("image", "images")
_SYSTEM = "system"
_IMAGE_NAME = re.compile(r"(.*):row (\d+):image (\d+)", re.DOTALL)


class TableRecords:
    """Rows of one or several tables.

    Args:
        tables: what each is called, its name relative to the source's root, and the file.
        file: what messages call all of them.

    Raises:
        DataError: no table can be read, or the columns of one are not those of records.
    """

    format = "table"

    def __init__(self, tables: Sequence[tuple[str, str, Path]], file: str) -> None:
        self.file = file
        self._digest: str | None = None
        self._shown = [shown for shown, _, _ in tables]
        self._names = [name for _, name, _ in tables]
        self._tables: list[_Table | None] = []
        self._damage: dict[int, str] = {}  # table -> what counts as one bad record at its end
        for number, (shown, _, path) in enumerate(tables):
            table: _Table | None = None
            try:
                table = _Table(path, shown)
                damage = table.damage
            except arrow_errors() as error:
                damage = first_line(error)
            if damage is not None:
                self._damage[number] = damage
            self._tables.append(table)
        rows = [0 if table is None else table.rows for table in self._tables]
        if self._damage and not any(rows):
            number, damage = next(iter(self._damage.items()))
            raise DataError(f"is damaged or truncated ({damage}); copy it again", self._shown[number])
        self._rows = rows
        self._starts = np.cumsum([0, *(count + (number in self._damage) for number, count in enumerate(rows))])
        self._numbers = {name: number for number, name in enumerate(self._names)}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """Which table, and which row of it."""
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        return number, index - int(self._starts[number])

    def where(self, index: int) -> str:
        """``file:row 7``, rows counted from 0 as pandas and `datasets` do."""
        number, row = self._place(index)
        return f"{self._shown[number]}:row {row}"

    def record(self, index: int) -> object:
        """The row as a record; images whose bytes it holds are named ``file:row 7:image 0``."""
        number, row = self._place(index)
        table, where = self._tables[number], self.where(index)
        if table is None or row == self._rows[number]:
            found = f"and what follows cannot be read ({self._damage[number]})"
            raise RecordError("file-damaged", found, "copy the file again, or leave the rest out", where)
        try:
            record = table.texts(row)
            paths = table.image_paths(row)
        except arrow_errors() as error:
            found = f"cannot be read ({first_line(error)})"
            raise RecordError("file-damaged", found, "copy the file again", where) from error
        check_length(_length(record), where)
        turns = record[table.turns]
        record[table.turns] = decode_record(turns.encode(), where) if isinstance(turns, str) else _as_list(turns)
        if paths:
            own = f"{self._names[number]}:row {row}:image"
            record["images"] = [f"{own} {place}" if path is None else path for place, path in enumerate(paths)]
        return record

    def digest(self) -> str:
        """Hash of the texts and of the images' paths; reads them all, in the order of the rows."""
        if self._digest is not None:
            return self._digest
        made = hashlib.blake2b(digest_size=16)
        for number, table in enumerate(self._tables):
            if table is not None:
                table.digest(made)
            made.update(self._damage.get(number, "").encode())
        self._digest = made.hexdigest()
        return self._digest

    def image(self, name: str) -> StoredImage | None:
        """The cell behind ``file:row 7:image 0``; None for a path."""
        match = _IMAGE_NAME.fullmatch(name)
        table = self._tables[self._numbers[match[1]]] if match and match[1] in self._numbers else None
        return _Cell(table, int(match[2]), int(match[3])) if match and table is not None else None


class _Table:
    """One file with the columns of records; its reader is opened in each process when it is first used."""

    def __init__(self, path: Path, shown: str) -> None:
        self.shown = shown
        self._original, self._original_state = path, file_state(path)
        self._path = with_small_groups(path, (*_TURNS, *_IMAGES, _SYSTEM))
        self._reader: TableReader | None = None
        reader = self._opened()
        self.rows, self.damage = reader.rows, reader.damage
        names = list(reader.schema.names)
        turns, images = _one_of(_TURNS, names, shown), _one_of(_IMAGES, names, shown)
        if turns is None:
            found = f"has no column 'messages' or 'conversations' (its columns: {', '.join(names) or 'none'})"
            raise DataError(f"{found}; rename the one that holds the turns", shown)
        self.turns, self._images = turns, images
        self._columns = [turns, _SYSTEM] if _SYSTEM in names else [turns]
        if images is not None:
            _check_type(reader.schema.field(images).type, images, shown)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_reader": None}

    def _opened(self) -> TableReader:
        if self._reader is None:
            if file_state(self._original) != self._original_state:
                raise changed(self.shown)
            self._reader = open_table(self._path)
        return self._reader

    def texts(self, row: int) -> dict[object, object]:
        """The text columns of a row, as JSON values."""
        reader = self._opened()
        return {name: _without_nulls(reader.cell(row, name).as_py()) for name in self._columns}

    def image_paths(self, row: int) -> list[str | None]:
        """Of each image of a row its path, or None where the table holds its bytes."""
        return [None if _bytes(cell) is not None else _path(cell) for cell in self._cells(row)]

    def image(self, row: int, place: int) -> tuple[str, bytes]:
        """File name and bytes of an image that the table holds."""
        cell = self._cells(row)[place]
        held = _bytes(cell)
        return os.path.basename(_path(cell) or "image"), b"" if held is None else held.as_py()

    def _cells(self, row: int) -> list[Any]:
        """The images of a row as pyarrow scalars, without those that are null."""
        if self._images is None:
            return []
        cell = self._opened().cell(row, self._images)
        cells = cell.values if _is_list(cell.type) else [cell]
        return [each for each in (() if cells is None else cells) if _bytes(each) is not None or _path(each)]

    def digest(self, made: hashlib.blake2b) -> None:
        """Add all texts and paths to a hash."""
        columns = [*self._columns, *(() if self._images is None else (self._images,))]
        for batch in self._opened().batches(columns):
            made.update(f"{batch.num_rows} {batch.schema.names}\n".encode())
            for column in batch.columns:
                feed(made, column)


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """An image in a table."""

    table: _Table
    row: int
    place: int

    def __str__(self) -> str:
        return f"{self.table.shown}:row {self.row}:image {self.place}"

    @property
    def name(self) -> str:
        return self._read()[0]

    def open(self) -> BinaryIO:
        """The bytes in memory.

        Raises:
            ImageError: the table is damaged here.
        """
        return io.BytesIO(self._read()[1])

    def _read(self) -> tuple[str, bytes]:
        try:
            return self.table.image(self.row, self.place)
        except arrow_errors() as error:
            found = f"cannot be read ({first_line(error)})"
            raise ImageError("image-damaged", found, "copy the file again", str(self)) from error


def _one_of(wanted: tuple[str, str], names: Sequence[str], shown: str) -> str | None:
    found = [name for name in wanted if name in names]
    if len(found) > 1:
        raise DataError(f"has both a column '{found[0]}' and a column '{found[1]}'; remove one", shown)
    return found[0] if found else None


def _check_type(kind: Any, column: str, shown: str) -> None:
    """An image column holds paths, bytes, or both in a struct; or lists of them."""
    import pyarrow

    types = pyarrow.types
    inner = kind.value_type if _is_list(kind) else kind
    if types.is_struct(inner):
        known = bool({"bytes", "path"} & {field.name for field in inner})
    else:
        known = is_binary(inner) or types.is_string(inner) or types.is_large_string(inner) or types.is_null(inner)
    if not known:
        found = f"has a column '{column}' of type {' '.join(str(kind).split())[:80]}, which is no image"
        raise DataError(f"{found}; store paths, the bytes of image files, or structs of bytes and path", shown)


def _is_list(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind))


def _field(cell: Any, name: str) -> Any:
    """A field of a struct scalar, None where there is none."""
    return cell[name] if cell.is_valid and name in {field.name for field in cell.type} else None


def _bytes(cell: Any) -> Any:
    """The scalar that holds an image's bytes, None where there is none."""
    import pyarrow

    held = _field(cell, "bytes") if pyarrow.types.is_struct(cell.type) else cell
    return held if held is not None and held.is_valid and is_binary(held.type) else None


def _path(cell: Any) -> str:
    """The path of an image; empty where there is none."""
    import pyarrow

    held = _field(cell, "path") if pyarrow.types.is_struct(cell.type) else cell
    return str(held.as_py()) if held is not None and held.is_valid and not is_binary(held.type) else ""


def _without_nulls(value: object) -> object:
    """A value with the fields left out that are null: a table's structs have the fields of all rows."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _length(value: object) -> int:
    """Characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_length, inner))


def _as_list(turns: object) -> object:
    """A list of structs; older versions of `datasets` stored a struct of lists."""
    if isinstance(turns, dict) and turns and all(isinstance(column, list) for column in turns.values()):
        return [dict(zip(turns, turn, strict=False)) for turn in zip(*turns.values(), strict=False)]
    return turns
