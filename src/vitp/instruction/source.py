"""One data set of a mixture: an annotation file, or native annotations, and a folder of images.

A JSON Lines file or JSON array is scanned once for where its records are; records are read and parsed when asked for,
so a source costs 24 bytes a record however long its texts are. Reading is by position (`os.pread`), which shares
nothing between processes: a source may be forked or pickled to any number of workers.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vitp.config import Config
from vitp.errors import DataError
from vitp.images.decode import ImageError
from vitp.images.read import ImageConfig
from vitp.instruction.native import FORMATS, NativeArgs, NativeRecord, detect
from vitp.instruction.records import BOM, RecordError, decode_record, index_array, parse_record
from vitp.instruction.sample import Sample

MAX_RECORD_BYTES = 32 << 20  # ours: far above any real record; guards against a file without line ends
MAX_UNPACKED_BYTES = 4 << 30  # ours: a .gz is held in memory unpacked
_CHUNK = 16 << 20
_BLANKS = (9, 13, 32)
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_PARENTS = 4096  # resolved folders remembered

Format = Literal["auto", "conversations", "rsicd", "rsvqa", "vqa_rad", "rocov2"]
Int64 = npt.NDArray[np.int64]


class AugmentConfig(Config):
    """What may be done to a source's images; boxes and quads in its texts move along, words such as "left" do not."""

    flip: bool = False  # released script: none
    rot90: bool = False  # released script: none
    crop_min_scale: float = Field(default=1.0, gt=0.0, le=1.0)  # smallest share of the area kept; released script: 1
    jpeg: bool = False  # each tile recompressed at quality 75-100; released script: data_augment, per source

    @property
    def moves(self) -> bool:
        """Whether places in the image change, and with them what boxes and quads say."""
        return self.flip or self.rot90 or self.crop_min_scale < 1


class SourceConfig(Config):
    """One source of the mixture."""

    name: str = Field(min_length=1)
    root: Path  # folder the image paths are relative to
    annotations: Path | None = None  # below root or absolute; None: where a native data set keeps them
    format: Format = "auto"
    split: str = "train"  # native data sets only
    turns: int = Field(default=3, ge=1)  # ours: turns of a record; native data sets only
    weight: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)  # released script: repeat_time
    max_tiles: int | None = Field(default=None, ge=1)  # None: the recipe's; released script: max_dynamic_patch
    augment: AugmentConfig = AugmentConfig()
    images: ImageConfig = ImageConfig()  # bands, scaling, windows and slices of files deeper than 8 bits
    # What follows describes the source in reports and changes nothing in training.
    modality: str | None = None
    tasks: tuple[Literal["caption", "vqa", "classification", "grounding", "ocr", "dialogue"], ...] = ()
    domain: Literal["domain", "general"] = "domain"
    licence: str | None = None
    samples: int | None = Field(default=None, ge=1)  # records to expect; held to with `declared_in`
    obtain: str | None = None  # where to get it
    declared_in: Path | None = None  # the released meta JSON that names the source; its `length` is `samples`


# What a resumed run may change: `Source.fingerprint` stands for the content, the rest describes.
DESCRIPTIVE = ("root", "annotations", "modality", "tasks", "domain", "licence", "samples", "obtain", "declared_in")


class Source:
    """The samples of one source, by number.

    Raises (on construction):
        DataError: the folder or the annotations are missing, empty, or unreadable as a whole. A record that is wrong
            in itself raises when it is asked for.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.root = config.root.expanduser()
        if not self.root.is_dir():
            raise _missing(self.root, f"is the root of {_label(config)} and no folder")
        self._resolved_root = os.path.realpath(self.root)
        self._parents: dict[str, str] = {}
        self._records = _open_records(config, self.root)
        if len(self._records) == 0:
            raise DataError("holds no record; add some or remove the source", self._records.file)
        if config.declared_in is not None and config.samples not in (None, len(self)):
            found = f"{config.name}.length is {config.samples}, but {self._records.file} holds {len(self)} records"
            raise DataError(f"{found}; complete the file or set the source's samples=null", str(config.declared_in))

    def __len__(self) -> int:
        return len(self._records)

    def where(self, index: int) -> str:
        """``file:line`` of a sample, without reading it."""
        self._check_index(index)
        return self._records.where(index)

    def sample(self, index: int) -> Sample:
        """Read and parse one sample.

        Raises:
            DataError: the record is damaged or breaks the rules of `vitp.instruction.records`.
            IndexError: no such sample.
        """
        self._check_index(index)
        return parse_record(self._records.record(index), self._records.where(index))

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self._records):
            raise IndexError(f"source '{self.config.name}' has no sample {index}, only {len(self._records)}")

    def image_path(self, name: str) -> Path:
        """Where an image of a sample lies; it need not exist, but it must lie in the source's root.

        Raises:
            DataError: the path leads out of the root, by ``..``, a symbolic link, or being absolute.
        """
        folder, last = os.path.split(os.path.join(self.root, name))
        resolved = self._parents.get(folder)
        if resolved is None:
            try:
                resolved = os.path.realpath(folder)
            except ValueError as error:  # a NUL character
                raise ImageError("image-missing", "has a name no file can have", "correct it", ascii(name)) from error
            if len(self._parents) >= _PARENTS:
                self._parents.clear()
            self._parents[folder] = resolved
        path = os.path.join(resolved, last)
        if last in ("", ".", "..") or os.path.islink(path):
            path = os.path.realpath(path)
        if os.path.commonpath([self._resolved_root, path]) != self._resolved_root:
            found = f"leads out of the source's root {self.root}"
            raise ImageError("image-outside", found, "move it below the root or choose a higher root", name)
        return Path(path)

    def fingerprint(self) -> str:
        """Hash of what the samples are: format and content (of a native data set: its records as they were made).

        Neither places nor times of files count, nor what the configuration makes of the samples.
        """
        key = f"1 {self._records.format} {self._records.digest()}"  # 1: raised when the same content is read otherwise
        return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _label(config: SourceConfig) -> str:
    """A source as messages call it."""
    declared = f" ({config.declared_in})" if config.declared_in is not None else ""
    return f"source '{config.name}'{declared}"


def _missing(path: Path, what: str) -> DataError:
    """A sentence about a missing path, with what lies near it under a similar name."""
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    wanted = path.relative_to(folder).parts[0] if folder else path.name
    names = [] if folder is None else [name for name in os.listdir(folder) if name != wanted]
    close = difflib.get_close_matches(wanted, sorted(names), n=3)
    fix = f"did you mean {' or '.join(close)} in {folder}" if close else "correct the path"
    return DataError(f"{what}; {fix}", str(path))


def _open_records(config: SourceConfig, root: Path) -> _TextRecords | _NativeRecords:
    """Find the annotations, their format, and a reader for them."""
    path = None if config.annotations is None else root / config.annotations.expanduser()
    if path is not None and not path.exists():
        raise _missing(path, f"holds the annotations of {_label(config)} and does not exist")
    form = config.format
    if form in ("auto", "conversations") and path is not None and path.is_file() and not _is_native(root, path, form):
        if (config.split, config.turns) != ("train", 3):
            raise DataError(
                "is a plain list of records, so 'split' and 'turns' mean nothing; leave them out", str(path)
            )
        return _TextRecords(path)
    native = detect(root, path) if form == "auto" else form
    if native is None or native == "conversations":
        listed = sorted(p.name for p in (path or root).iterdir() if p.name.endswith(_SUFFIXES))[:5]
        fix = f"set it to one of the {', '.join(_SUFFIXES)} files" + (f" ({', '.join(listed)})" if listed else "")
        raise DataError(f"source '{config.name}' has no file as 'annotations'; {fix}", str(path or root))
    return _NativeRecords(native, NativeArgs(root=root, annotations=path, split=config.split, turns=config.turns))


def _is_native(root: Path, path: Path, form: str) -> bool:
    """Whether a file, named as a native one, is to be read as such: those of RSICD and RSVQA hold one object."""
    if form != "auto" or path.name.endswith((".jsonl", ".gz")):
        return False
    native = detect(root, path)
    if native not in ("rsicd", "rsvqa"):
        return native is not None
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(BOM).lstrip().startswith(b"{")


class _NativeRecords:
    """Records made from native annotations, in memory; pickled as the recipe to make them again."""

    def __init__(self, form: str, args: NativeArgs) -> None:
        self.format = form
        self.file = str(args.annotations or args.root)
        self._args = args
        self._made: list[NativeRecord] | None = FORMATS[form](args)
        self._count = len(self._made)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_made": None}

    def __len__(self) -> int:
        return self._count

    def _records(self) -> list[NativeRecord]:
        if self._made is None:
            self._made = FORMATS[self.format](self._args)
            if len(self._made) != self._count:
                raise DataError("changed while it was in use; start again", self.file)
        return self._made

    def where(self, index: int) -> str:
        return self._records()[index].where

    def record(self, index: int) -> object:
        return self._records()[index].record

    def digest(self) -> str:
        made = hashlib.blake2b(digest_size=16)
        for item in self._records():
            made.update(json.dumps(item.record, sort_keys=True).encode() + b"\n")
        return made.hexdigest()


class _TextRecords:
    """Where the records of a JSON Lines file or JSON array lie, and reading them."""

    format = "conversations"

    def __init__(self, path: Path) -> None:
        self.file = str(path)
        if not path.name.endswith(_SUFFIXES):
            raise DataError(f"is none of {', '.join(_SUFFIXES)}; convert it or set 'format'", self.file)
        self._packed = path.name.endswith(".gz")
        self._unpacked: bytes | None = None
        self._descriptor: int | None = None
        try:
            status = path.stat()
            self._state = (status.st_size, status.st_mtime_ns)
            if self._packed:
                self._unpacked = _unpack(path)
            content = hashlib.blake2b(digest_size=16)
            with path.open("rb") as stream:
                first = self._first_byte(stream)
                if first == b"[":
                    data = stream.read() if self._unpacked is None else self._unpacked
                    content.update(data)
                    self._starts, self._ends, self._lines = index_array(data, self.file)
                    self._cut_off = False
                else:
                    self._index_lines(stream, content)
        except OSError as error:
            raise DataError(
                f"cannot be read ({error.strerror}); check the file and its permissions", self.file
            ) from error
        self._content = content.hexdigest()
        # Records of an array that share a line are told apart by their number.
        self._by_line = first != b"[" or bool(np.all(np.diff(self._lines) > 0))
        if first == b"{" and len(self) > 1 and not path.name.endswith((".jsonl", ".jsonl.gz")):
            self._refuse_lone_object()

    def _first_byte(self, stream: BinaryIO) -> bytes:
        """What the text starts with, blanks and byte-order mark apart; leaves the stream at its start."""
        head = stream.read(4096) if self._unpacked is None else self._unpacked[:4096]
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

    def _index_lines(self, stream: BinaryIO, content: hashlib.blake2b) -> None:
        """Set the places of all lines that are not blank; line numbers are those of the file."""
        starts: list[Int64] = []
        breaks: list[Int64] = []
        firsts: list[npt.NDArray[np.uint8]] = []
        position, at_start = 0, True
        while chunk := self._next_chunk(stream, position):
            content.update(chunk)
            array = np.frombuffer(chunk, np.uint8)
            found = np.flatnonzero(array == 10)
            begin = np.concatenate([[0] if at_start else [], found + 1]).astype(np.int64)
            begin = begin[begin < len(chunk)]
            starts.append(begin + position)
            firsts.append(array[begin])
            breaks.append(found + position)
            position, at_start = position + len(chunk), chunk.endswith(b"\n")
        self._cut_off = not at_start
        self._starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self._ends = np.concatenate([*breaks, [position] if self._cut_off else []]).astype(np.int64)
        self._lines = np.arange(1, len(self._starts) + 1)
        blank = np.isin(np.concatenate(firsts), (*_BLANKS, 10)) if firsts else np.zeros(0, bool)
        if len(blank) and self._bytes(0, min(3, int(self._ends[0]))) == BOM:
            self._starts[0] += 3
            blank[0] = True
        for line in np.flatnonzero(blank & (self._ends - self._starts > 1)):  # shorter: nothing but the blank itself
            blank[line] = self._is_blank(int(self._starts[line]), int(self._ends[line]))
        if blank.any():
            self._starts, self._ends, self._lines = (a[~blank] for a in (self._starts, self._ends, self._lines))

    def _is_blank(self, start: int, end: int) -> bool:
        return end - start <= MAX_RECORD_BYTES and not self._bytes(start, end).strip()

    def _next_chunk(self, stream: BinaryIO, position: int) -> bytes:
        if self._unpacked is not None:
            return self._unpacked[position : position + _CHUNK]
        return stream.read(_CHUNK)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None, "_unpacked": None}

    def __del__(self) -> None:
        descriptor = self.__dict__.get("_descriptor")
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        return f"{self.file}:{self._lines[index]}" if self._by_line else f"{self.file}:record {index + 1}"

    def digest(self) -> str:
        return self._content

    def _bytes(self, start: int, end: int) -> bytes:
        """Bytes of the (unpacked) file; the file is opened once in each process."""
        if self._packed:
            if self._unpacked is None:
                self._check_unchanged(os.stat(self.file))
                self._unpacked = _unpack(Path(self.file))
            return self._unpacked[start:end]
        if self._descriptor is None:
            self._descriptor = os.open(self.file, os.O_RDONLY)
            self._check_unchanged(os.fstat(self._descriptor))
        data = os.pread(self._descriptor, end - start, start)
        while len(data) < end - start:
            more = os.pread(self._descriptor, end - start - len(data), start + len(data))
            if not more:
                raise DataError("became shorter while it was in use; start again", self.file)
            data += more
        return data

    def _check_unchanged(self, status: os.stat_result) -> None:
        if (status.st_size, status.st_mtime_ns) != self._state:
            raise DataError("changed while it was in use; start again", self.file)

    def record(self, index: int) -> object:
        """The decoded JSON of one record."""
        start, end, where = int(self._starts[index]), int(self._ends[index]), self.where(index)
        if end - start > MAX_RECORD_BYTES:
            found = f"is {(end - start) / 2**20:.0f} MB long, more than the {MAX_RECORD_BYTES >> 20} MB allowed"
            raise RecordError("line-too-long", found, "put one record on each line", where)
        try:
            data = self._bytes(start, end)
        except OSError as error:
            found = f"cannot be read ({error.strerror})"
            raise RecordError("file-changed", found, "check the file and its permissions", where) from error
        return decode_record(data, where, at_cut_end=self._cut_off and index == len(self) - 1)


def _unpack(path: Path) -> bytes:
    """All of a .gz file, within a bound."""
    pieces: list[bytes] = []
    total = 0
    try:
        with gzip.open(path) as stream:
            while piece := stream.read(_CHUNK):
                pieces.append(piece)
                total += len(piece)
                if total > MAX_UNPACKED_BYTES:
                    limit = f"{MAX_UNPACKED_BYTES >> 30} GB"
                    raise DataError(
                        f"is larger than {limit} unpacked; unpack it with gunzip and name the result", str(path)
                    )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"is damaged or truncated ({error}); copy it again", str(path)) from error
    return b"".join(pieces)
