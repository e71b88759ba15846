"""Parquet and Arrow files by row, in constant memory; nothing here knows what the columns mean."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitp.cache import CacheEntry
from vitp.files import file_state

TABLE_SUFFIXES = (".parquet", ".arrow")
MAX_GROUP_BYTES = 256 << 20  # ours: of what is used of a row group; `datasets` writes groups of 100 images
_GROUPS = 4  # ours: row groups kept, texts and images of two
_BATCH = 256  # rows; ours: of the batches of a converted file


class TableReader(Protocol):
    """Rows of one file; opened anew in each process."""

    rows: int
    schema: Any  # pyarrow.Schema
    damage: str | None  # why the file ends early

    def cell(self, row: int, column: str) -> Any:
        """One value, as a pyarrow scalar."""
        ...

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Record batches of the columns, in order; binary parts may be missing."""
        ...


def arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files."""
    import pyarrow

    return (pyarrow.ArrowException, OSError)


def first_line(error: Exception) -> str:
    """The gist of what pyarrow says, which may go on for lines."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return text[:120].rstrip(". ")


def is_binary(kind: Any) -> bool:
    """Whether a pyarrow type holds bytes that are no text."""
    import pyarrow

    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def open_table(path: Path) -> TableReader:
    """A reader for a file, by its suffix; raises `arrow_errors`."""
    if path.suffix == ".parquet":
        return _ParquetReader(path)
    return _ArrowReader(path)


def with_small_groups(path: Path, columns: Sequence[str]) -> Path:
    """The file itself, or an Arrow file in the cache where a Parquet row group is too large to be read for one row.

    Raises:
        OutputError: the cache is full or cannot be written to. Besides, what `arrow_errors` says.
    """
    if path.suffix != ".parquet":
        return path
    import pyarrow
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, memory_map=True) as file:
        used = [name for name in file.schema_arrow.names if name in columns]
        leaves = [leaf for leaf in range(file.metadata.num_columns)
                  if file.metadata.schema.column(leaf).path.partition(".")[0] in used]  # fmt: skip
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    if max(sizes, default=0) <= MAX_GROUP_BYTES:
        return path

    def convert(target: Path) -> None:
        with (
            parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as source,
            pyarrow.OSFile(str(target), "wb") as sink,
        ):
            schema = pyarrow.schema([source.schema_arrow.field(name) for name in used])
            with pyarrow.ipc.new_stream(sink, schema) as writer:
                for batch in source.iter_batches(batch_size=_BATCH, columns=used, use_threads=False):
                    writer.write_batch(batch)

    entry = CacheEntry(os.path.realpath(path), f"arrow {file_state(path)} {used}")
    return entry.made(f"{path.stem}.arrow", convert)


class _ParquetReader:
    """Rows of a Parquet file by row group; the last few are kept."""

    damage: str | None = None

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self._file = parquet.ParquetFile(path, memory_map=True)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self._starts = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])
        self.rows = int(self._starts[-1])
        self._kept: OrderedDict[tuple[int, str], Any] = OrderedDict()

    def cell(self, row: int, column: str) -> Any:
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        key = (group, column)
        values = self._kept.get(key)
        if values is None:
            values = self._read(group, [column]).column(column)
            self._kept[key] = values
            while len(self._kept) > _GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return values[row - int(self._starts[group])]

    def _read(self, group: int, columns: list[str]) -> Any:
        return self._file.read_row_group(group, columns=columns, use_threads=False)  # threads do not survive a fork

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        schema = self._file.metadata.schema
        leaves = [schema.column(leaf) for leaf in range(len(schema))]
        binary = [leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "STRING" for leaf in leaves]
        texts = [leaf.path for leaf, is_binary in zip(leaves, binary, strict=True)
                 if not is_binary and leaf.path.partition(".")[0] in columns]  # fmt: skip
        for group in range(len(self._starts) - 1):
            yield from self._read(group, texts).to_batches()


class _ArrowReader:
    """Rows of an Arrow file (stream or file format), memory-mapped; a stream is read up to its damage."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self.damage: str | None = None
        mapped = pyarrow.memory_map(str(path))
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        self._batches: list[Any] = []
        if is_file:
            file = pyarrow.ipc.open_file(mapped)
            self.schema = file.schema
            self._batches += [file.get_batch(number) for number in range(file.num_record_batches)]
        else:
            stream = pyarrow.ipc.open_stream(mapped)
            self.schema = stream.schema
            try:
                self._batches.extend(stream)
            except arrow_errors() as error:
                self.damage = first_line(error)
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.rows = int(self._starts[-1])

    def cell(self, row: int, column: str) -> Any:
        batch = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._batches[batch].column(column)[row - int(self._starts[batch])]

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        for batch in self._batches:
            yield batch.select(list(columns))


def feed(made: hashlib.blake2b, array: Any) -> None:
    """Add an array's values to a hash, whatever its memory layout; binary values are left out."""
    import pyarrow
    import pyarrow.compute as compute

    kind = array.type
    types = pyarrow.types
    if is_binary(kind):
        return
    made.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if types.is_struct(kind):
        for field, values in zip(kind, array.flatten(), strict=True):
            if not is_binary(field.type):
                made.update(field.name.encode())
                feed(made, values)
    elif types.is_list(kind) or types.is_large_list(kind):
        made.update(compute.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).tobytes())
        feed(made, array.flatten())
    elif types.is_string(kind) or types.is_large_string(kind):
        values = array.fill_null("").cast(pyarrow.large_string())
        made.update(compute.binary_length(values).to_numpy(zero_copy_only=False).tobytes())
        offsets, data = values.buffers()[1:]
        bounds = (
            np.frombuffer(offsets, np.int64)[[values.offset, values.offset + len(values)]] if len(values) else (0, 0)
        )
        if data is not None:
            made.update(memoryview(data)[int(bounds[0]) : int(bounds[1])])
    else:
        made.update(repr(array.to_pylist()).encode())
