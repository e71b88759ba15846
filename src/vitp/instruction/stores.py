"""Where the records of a source come from, whatever holds them: text files, native annotations, shards, tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Protocol

from vitp.errors import DataError
from vitp.images.stored import StoredImage
from vitp.instruction.native import FORMATS, NativeArgs, NativeRecord
from vitp.instruction.records import MAX_RECORD_BYTES, RecordError

PLAIN = "conversations"  # the format of what already is a record


class RecordStore(Protocol):
    """Records by number, read when asked for; a store may be forked or pickled to any number of workers."""

    file: str  # what messages call it as a whole
    format: str  # part of the fingerprint

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """``file:line``, ``shard:member`` or ``file:row`` of a record, without reading it."""
        ...

    def record(self, index: int) -> object:
        """The decoded JSON of one record, for `vitp.instruction.records.parse_record`; raises RecordError."""
        ...

    def digest(self) -> str:
        """Hash of the records' content; places and times do not count."""
        ...

    def image(self, name: str) -> StoredImage | None:
        """An image that the store itself holds, by its name in a record; None: `name` is a path.

        Raises:
            ImageError: the store should hold it, and does not.
        """
        ...


def is_too_long(size: int) -> bool:
    """Whether a record has more than `MAX_RECORD_BYTES`."""
    return size > MAX_RECORD_BYTES


def check_length(size: int, where: str) -> None:
    """Refuse a record of more than `MAX_RECORD_BYTES` before it is read."""
    if is_too_long(size):
        found = f"is {size / 2**20:.0f} MB long, more than the {MAX_RECORD_BYTES >> 20} MB allowed"
        raise RecordError("line-too-long", found, "put one record on each line", where)


def changed(file: str) -> DataError:
    """A file is no longer what was indexed."""
    return DataError("changed while it was in use; start again", file)


def with_images(record: dict[object, object], held: list[str], resolve: Callable[[str], str]) -> dict[object, object]:
    """A record whose images lie beside it in a store: names become the store's own, and those it leaves out are added.

    Args:
        record: as written; a copy is returned.
        held: the store's names of the images that belong to the record, taken where it names none.
        resolve: a name as written to the store's name; raises RecordError where there is no such image.
    """

    def renamed(value: object) -> object:
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return resolve(value) if isinstance(value, str) and value.strip() else value

    result = dict(record)
    named = False
    for key in ("image", "images"):
        if result.get(key) not in (None, "", []):
            result[key], named = renamed(result[key]), True
    for key in ("conversations", "messages"):
        turns = result.get(key)
        if isinstance(turns, list):
            result[key] = [_with_parts(turn, renamed) for turn in turns]
            named = named or any(_names_parts(turn) for turn in turns)
    if held and not named:
        result["images"] = held
    return result


def _parts(turn: object) -> tuple[str, list[object]]:
    """The key and the content parts of a turn; none where its content is a text."""
    if isinstance(turn, dict):
        for key in ("value", "content"):
            if isinstance(turn.get(key), list):
                return key, turn[key]
    return "", []


def _named(part: object) -> str:
    """The key under which a content part holds a path; empty if it holds none."""
    if isinstance(part, dict) and part.get("type") == "image":
        return next((key for key in ("image", "path") if isinstance(part.get(key), str)), "")
    return ""


def _names_parts(turn: object) -> bool:
    return any(_named(part) for part in _parts(turn)[1])


def _with_parts(turn: object, renamed: Callable[[object], object]) -> object:
    key, parts = _parts(turn)
    if not isinstance(turn, dict) or not any(map(_named, parts)):
        return turn
    changed_parts = [
        {**part, _named(part): renamed(part[_named(part)])} if isinstance(part, dict) and _named(part) else part
        for part in parts
    ]
    return {**turn, key: changed_parts}


class NativeRecords:
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
                raise changed(self.file)
        return self._made

    def where(self, index: int) -> str:
        """What the reader of the format calls the place of a record."""
        return self._records()[index].where

    def record(self, index: int) -> object:
        """One record as it was made."""
        return self._records()[index].record

    def digest(self) -> str:
        """Hash of the records as they were made."""
        made = hashlib.blake2b(digest_size=16)
        for item in self._records():
            made.update(json.dumps(item.record, sort_keys=True).encode() + b"\n")
        return made.hexdigest()

    def image(self, name: str) -> StoredImage | None:
        """None: all images are files."""
        return None
