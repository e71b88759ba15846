"""Building the index of a source: in parallel, in chunks that are kept on disk, so that a killed build goes on from them.

A chunk is named by a hash of its records and of all rules, hence always right wherever it comes from: an earlier build
that was killed, or the index itself, when other parts of the annotations changed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vitp.errors import DataError, OutputError
from vitp.files import file_state, raise_if_unwritable
from vitp.instruction.index import (
    Index,
    IndexConfig,
    SizeRules,
    annotation_file,
    index_path,
    known_indexes,
    open_index,
    sizing,
)
from vitp.instruction.index_file import (
    PLACE_FIELDS,
    SIZE_FIELDS,
    Flag,
    Header,
    IndexDamagedError,
    IndexFile,
    write_index_file,
)
from vitp.instruction.measure import Measurer
from vitp.instruction.source import Source
from vitp.parallel import mapped

CHUNK_ROWS = 8192  # ours: a second of work, or some ten with images on a slow disk, are lost at most when killed

Say = Callable[[str], None]
Size = tuple[int, int]


def build_index(
    source: Source,
    rules: SizeRules,
    config: IndexConfig,
    *,
    rebuild: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Say = lambda _: None,
) -> Index:
    """The index of a source: opened where it is fresh, otherwise built, as far as it is stale.

    Several processes may call this at once: one builds, the others wait for it.

    Args:
        source: the source.
        rules: what decides how large a sample becomes.
        config: where indexes are kept and how many processes build.
        rebuild: trust nothing that was built before.
        progress: called with (samples done, samples in all) while building.
        say: receives lines about stale or damaged indexes and about waiting.

    Raises:
        DataError: the annotations changed meanwhile, or a process died. Unusable samples are in the index, never raised.
        OutputError: no space left, or the folder of the indexes is not writable. Finished chunks stay, for the next try.
    """
    path = index_path(source.config, rules, config)
    found = None if rebuild else _settled(source, rules, config, say)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, say) as (alone, waited):
            found = _settled(source, rules, config, say) if waited and not rebuild else None
            if found is not None:
                return found
            parts = path.with_name(f".{path.name}.parts" if alone else f".{path.name}.{os.getpid()}.parts")
            if rebuild:
                shutil.rmtree(parts, ignore_errors=True)
            _Build(source, rules, config, path, parts, rebuild).run(progress)
            shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        raise_if_unwritable(error, path)
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); choose another data.index.folder"
        ) from error
    except OutputError as error:
        raise OutputError(f"{error} (data.index.folder says where indexes are kept)") from error
    return Index(IndexFile(path))


def _settled(source: Source, rules: SizeRules, config: IndexConfig, say: Say) -> Index | None:
    """The fresh index, if there is one in which no image problem has been mended."""
    name = source.config.name
    try:
        index = open_index(source, rules, config)
    except IndexDamagedError as error:
        say(f"the index of source '{name}' is damaged ({error}) and is built anew")
        return None
    if index is None:
        return None
    about_images = _image_problems(index.file, range(len(index)))
    if about_images:
        measurer = Measurer(source, rules)
        for i in about_images:
            row, problem = measurer.row(i), index.problem(i)
            if problem is None or (row.code, row.message) != (problem.code, problem.message):
                say(f"images of source '{name}' changed: their part of the index is built anew")
                return None
    places = source.places
    if places is not None and places.state != index.file.header.state:  # touched or copied: the content is the same
        header = index.file.header.model_copy(update={"state": places.state})
        with suppress(OutputError):  # a folder of others: its scan is repeated then
            write_index_file(index.path, pa.Table.from_batches([index.file.batch]), header)
            return Index(IndexFile(index.path))
    return index


def _image_problems(file: IndexFile, rows: range) -> list[int]:
    """The rows among `rows` that are unusable for an image's sake, which may have been mended since."""
    found: list[int] = (np.flatnonzero(file.column("flags")[rows.start : rows.stop] & Flag.IMAGE) + rows.start).tolist()
    return found


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[tuple[bool, bool]]:
    """Hold the lock of an index; gives whether it is held (some file systems have none), and whether it took waiting."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    waited = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            say(f"waiting for another process that builds {path.name}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            yield False, False
            return
        yield True, waited
    finally:
        os.close(descriptor)  # and with it the lock


@dataclass(frozen=True)
class _Chunks:
    """What a worker needs to provide chunks."""

    source: Source
    rules: SizeRules
    settings: str
    content: str  # fingerprint of all records
    parts: Path
    old: IndexFile | None  # an earlier index by the same rules
    hint: IndexFile | None  # an earlier index by whatever rules: its image sizes hold

    def worker(self) -> Callable[[int], tuple[str, bool]]:
        """The function of a process: number of a chunk -> its digest, and whether it lies in the old index or on disk."""
        measurer = Measurer(self.source, self.rules)

        def provide(number: int) -> tuple[str, bool]:
            rows = range(number * CHUNK_ROWS, min((number + 1) * CHUNK_ROWS, len(self.source)))
            digest = hashlib.blake2b(digest_size=8)
            # Records that do not lie in a text file are stale all at once.
            records = self.content if self.source.places is None else self.source.digest(rows.start, rows.stop)
            digest.update(f"{self.settings} {rows} {records}".encode())
            name = digest.hexdigest()
            if self._in_old(name, number, rows):
                return name, True
            if not self._on_disk(name, number):
                measurer.trust(self._sizes(rows))
                self._write(measurer, rows, name, number)
            return name, False

        return provide

    def part(self, number: int, digest: str) -> Path:
        return self.parts / f"{number:06}-{digest}.arrow"

    def _in_old(self, digest: str, number: int, rows: range) -> bool:
        """Whether the earlier index holds this very chunk."""
        if self.old is None or list(self.old.header.chunks[number : number + 1]) != [digest]:
            return False
        return not _image_problems(self.old, rows)

    def _on_disk(self, digest: str, number: int) -> bool:
        try:
            part = IndexFile(self.part(number, digest))
        except (OSError, IndexDamagedError):
            return False
        return not _image_problems(part, range(len(part)))

    def _sizes(self, rows: range) -> dict[str, Size]:
        """Path -> size of the images that these rows had in the earlier index."""
        if self.hint is None or rows.start >= len(self.hint):
            return {}
        images = self.hint.batch.column("images").slice(rows.start, len(rows)).flatten()
        columns = [images.field(name).to_pylist() for name in ("path", "width", "height")]
        return {path: (width, height) for path, width, height in zip(*columns, strict=True) if width}

    def _write(self, measurer: Measurer, rows: range, digest: str, number: int) -> None:
        table, reasons = measurer.table(rows)
        write_index_file(self.part(number, digest), table, self.header(reasons, [digest], len(rows)), durable=False)

    def header(self, reasons: Sequence[str], chunks: Sequence[str], rows: int) -> Header:
        """What an index of some or all chunks says of itself."""
        places = self.source.places
        return Header(
            settings=self.settings, sizing=sizing(self.source.config), content=self.content, rows=rows,
            tokens_per_tile=self.rules.tokens_per_tile, max_length=self.rules.max_length, reasons=tuple(reasons),
            chunks=tuple(chunks), chunk_rows=CHUNK_ROWS,
            text="" if places is None else places.content, state=(0, 0) if places is None else places.state,
            cut_off=places is not None and places.cut_off, by_line=places is None or places.by_line,
        )  # fmt: skip


class _Build:
    """One build of one index."""

    def __init__(
        self, source: Source, rules: SizeRules, config: IndexConfig, path: Path, parts: Path, rebuild: bool
    ) -> None:
        old = hint = None
        if not rebuild:
            with suppress(OSError, IndexDamagedError):
                old = IndexFile(path)
            same_sizing = (f for f in known_indexes(source.config, config) if f.header.sizing == sizing(source.config))
            hint = old or next(same_sizing, None)
        self._source, self._config, self._path = source, config, path
        settings, content = rules.settings(source.config), source.fingerprint()
        self._chunks = _Chunks(source, rules, settings, content, parts, old, hint)

    def run(self, progress: Callable[[int, int], None] | None) -> None:
        """Provide all chunks, join them, write the file."""
        source, count = self._source, len(self._source)
        jobs = range(-(-count // CHUNK_ROWS))
        if source.places is not None:
            source.digest(0, 1)  # opens the file, and unpacks it if need be, before processes are forked
        found: list[tuple[str, bool]] = []
        for chunk in mapped(self._chunks.worker, jobs, self._config.processes):
            found.append(chunk)
            if progress is not None:
                progress(min(len(found) * CHUNK_ROWS, count), count)
        file = annotation_file(source.config)
        if source.places is not None and file is not None and file_state(file) != source.places.state:
            raise DataError("changed while it was indexed; start again, what is still the same is kept", str(file))
        table, reasons = self._joined(found)
        digests = [digest for digest, _ in found]
        write_index_file(self._path, table, self._chunks.header(reasons, digests, count))

    def _joined(self, found: Sequence[tuple[str, bool]]) -> tuple[pa.Table, list[str]]:
        """All chunks as one table, with the places of the records and one list of reasons."""
        pieces: list[tuple[pa.RecordBatch, tuple[str, ...]]] = []
        for number, (digest, in_old) in enumerate(found):
            if in_old and self._chunks.old is not None:
                old = self._chunks.old
                pieces.append((old.batch.slice(number * CHUNK_ROWS, CHUNK_ROWS), old.header.reasons))
            else:
                part = IndexFile(self._chunks.part(number, digest))
                pieces.append((part.batch, part.header.reasons))
        reasons = ["", *sorted({reason for _, known in pieces for reason in known} - {""})]
        sizes = [field.name for field in SIZE_FIELDS]
        tables = []
        for batch, known in pieces:
            numbers = np.array([reasons.index(reason) for reason in known], np.uint8)[batch.column("reason").to_numpy()]
            at = batch.schema.get_field_index("reason")
            tables.append(
                pa.Table.from_batches([batch.set_column(at, SIZE_FIELDS[5], pa.array(numbers))]).select(sizes)
            )
        table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
        if self._source.places is not None:
            columns = (self._source.places.starts, self._source.places.lengths, self._source.places.lines)
            for at, (column, values) in enumerate(zip(PLACE_FIELDS, columns, strict=True)):
                table = table.add_column(at, column, pa.array(np.asarray(values), column.type))
        return table, reasons
