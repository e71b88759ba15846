"""Which store a source's records are in: found by what its annotations are, or what lies in its root."""

from __future__ import annotations

import difflib
import glob
import itertools
import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitp.errors import DataError
from vitp.instruction.json_array import BOM
from vitp.instruction.native import NativeArgs, detect
from vitp.instruction.places import Places
from vitp.instruction.remote import fetched, files, is_url, joined
from vitp.instruction.stores import PLAIN, NativeRecords, RecordStore
from vitp.instruction.table_files import TABLE_SUFFIXES
from vitp.instruction.table_store import TableRecords
from vitp.instruction.tar_store import TAR_SUFFIXES, TarRecords
from vitp.instruction.text_store import SUFFIXES as TEXT_SUFFIXES
from vitp.instruction.text_store import TextRecords

if TYPE_CHECKING:
    from vitp.instruction.source import SourceConfig

_SPLITS = ("train", "validation", "valid", "val", "dev", "test")  # words by which data sets name their splits
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_SHARDS = 1_000_000  # of one range in braces

Place = tuple[str, str, Path]  # what messages call a file, its name relative to the root, the file


def open_store(config: SourceConfig, root: str | Path, places: Places | None = None) -> RecordStore:
    """A reader for a source's records.

    Args:
        config: of the source.
        root: its root, a URL or a folder that exists.
        places: of the records of a local text file, if known.

    Raises:
        VitpError: the annotations are missing, of no known format, or unreadable as a whole.
    """
    given = None if config.annotations is None else str(config.annotations)
    if isinstance(root, str) or (given is not None and is_url(given)):
        return _open_remote(config, str(root) if given is None else joined(str(root), given), str(root))
    path = None if given is None else root / Path(given).expanduser()
    if given is not None and path is not None and not path.exists() and _is_pattern(given):
        return _open_files(config, _placed(_matching(root, given), root), str(path))
    if path is not None and not path.exists():
        raise missing(path, f"holds the annotations of {label(config)} and does not exist")
    form = config.format
    if form in ("auto", PLAIN) and path is not None and path.is_file() and not _is_native(root, path, form):
        return _open_files(config, _placed([path], root), str(path), places=places)
    native = detect(root, path) if form == "auto" else form
    if native is not None and native != PLAIN:
        args = NativeArgs(root=root, annotations=path, split=config.split, turns=config.turns)
        return NativeRecords(native, args)
    folder = path or root
    found = _below(folder)
    if not found:
        listed = sorted(p.name for p in folder.iterdir() if p.name.endswith(TEXT_SUFFIXES))[:5]
        fix = f"set it to one of the {', '.join(TEXT_SUFFIXES)} files" + (f" ({', '.join(listed)})" if listed else "")
        raise DataError(
            f"source '{config.name}' has no file as 'annotations'; {fix}, or to shards or tables", str(folder)
        )
    if _kind([str(each) for each in found], str(folder)) == "tables":
        names = [(str(each), each.relative_to(folder).as_posix()) for each in found]
        found = [Path(each) for each in _of_split(names, config.split, str(folder))]
        config = config.model_copy(update={"split": "train"})
    return _open_files(config, _placed(found, root), str(folder))


def _open_remote(config: SourceConfig, url: str, root: str) -> RecordStore:
    """The store behind a URL; its files are fetched into the cache."""
    if config.format not in ("auto", PLAIN):
        raise DataError(f"is a URL, and the format {config.format} is read from folders only; copy it first", url)
    known = (*TEXT_SUFFIXES, *TAR_SUFFIXES, *TABLE_SUFFIXES)
    found = [each for pattern in _expanded(url) for each in files(pattern)]
    if found != [url]:
        states = {posixpath.dirname(each): fetched(each) for each in found if posixpath.basename(each) == "state.json"}
        found = _current(found, states)
        found = [each for each in found if each.endswith((*TAR_SUFFIXES, *TABLE_SUFFIXES)) and not _is_scratch(each)]
    if not found:
        raise DataError(f"is a folder without shards or tables; set 'annotations' to a file ({', '.join(known)})", url)
    if found != [url] and not _is_pattern(url) and _kind(found, url) == "tables":
        found = _of_split([(each, posixpath.relpath(each, url)) for each in found], config.split, url)
        config = config.model_copy(update={"split": "train"})
    prefix = root.rstrip("/") + "/"
    return _open_files(config, [(each, each.removeprefix(prefix), fetched(each)) for each in found], url)


def _open_files(config: SourceConfig, found: Sequence[Place], file: str, places: Places | None = None) -> RecordStore:
    """The store of files of one kind."""
    if (config.split, config.turns) != ("train", 3):
        raise DataError("is a plain list of records, so 'split' and 'turns' mean nothing; leave them out", file)
    kind = _kind([shown for shown, _, _ in found], file)
    if kind == "texts":
        if len(found) > 1:
            raise DataError("names several text files; put them together, or make each a source", file)
        return TextRecords(found[0][2], found[0][0], places)
    return TarRecords(found, file) if kind == "shards" else TableRecords(found, file)


def _kind(names: Sequence[str], file: str) -> Literal["texts", "shards", "tables"]:
    """What files are, by their names."""
    shards = [name for name in names if name.endswith(TAR_SUFFIXES)]
    tables = [name for name in names if name.endswith(TABLE_SUFFIXES)]
    if shards and tables:
        raise DataError(f"holds both shards ({shards[0]}) and tables ({tables[0]}); name the ones to use", file)
    return "shards" if shards else "tables" if tables else "texts"


def _placed(paths: Sequence[Path], root: Path) -> list[Place]:
    top = os.path.abspath(root)
    places = []
    for path in paths:
        full = os.path.abspath(path)
        inside = os.path.commonpath([top, full]) == top
        places.append((str(path), os.path.relpath(full, top) if inside else str(path), path))
    return places


# ------------------------------------------------------------------------------------------------------- finding files


def _is_pattern(text: str) -> bool:
    return any(letter in text for letter in "*?[{")


def _expanded(pattern: str) -> list[str]:
    """A pattern with ``{0001..0003}`` and ``{a,b}`` written out, in order."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span is None:
        inner = match[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MAX_SHARDS:
            raise DataError(f"has the range {match[0]}, which runs backwards or far too long; correct it", pattern)
        inner = [f"{number:0{len(span[1])}}" for number in range(first, last + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return list(itertools.chain.from_iterable(_expanded(before + part + after) for part in inner))


def _matching(root: Path, pattern: str) -> list[Path]:
    """All files a pattern stands for; each of its parts must exist."""
    found: list[Path] = []
    for each in _expanded(os.path.expanduser(pattern)):
        names = sorted(glob.glob(each, root_dir=root, recursive=True)) if _is_pattern(each) else [each]
        paths = [root / name for name in names]
        if not paths:
            raise DataError("matches no file; correct the pattern", str(root / each))
        for path in paths:
            if not path.is_file():
                raise missing(path, "is one of the annotations and no file")
        found += paths
    return list(dict.fromkeys(found))


def _below(folder: Path) -> list[Path]:
    """Shards and tables up to two folders deep (data/, default/train/); of a data set that lists its files, those."""
    known = (*TAR_SUFFIXES, *TABLE_SUFFIXES)
    near = itertools.chain.from_iterable(folder.glob(depth) for depth in ("*", "*/*", "*/*/*"))
    found = sorted(path for path in near if path.name.endswith(known) and path.is_file() and not _is_scratch(path.name))
    states = {str(parent): parent / "state.json" for parent in {path.parent for path in found}}
    current = _current(
        [str(path) for path in found], {name: state for name, state in states.items() if state.is_file()}
    )
    return [Path(name) for name in current]


def _current(names: Sequence[str], states: Mapping[str, Path]) -> list[str]:
    """The files that belong to a saved data set; `states` are the ``state.json`` of folders."""
    listed = {folder: _data_files(state) for folder, state in states.items()}
    parts = [posixpath.split(name) for name in names]
    return [name for name, (folder, last) in zip(names, parts, strict=True) if last in listed.get(folder, {last})]


def _data_files(state: Path) -> set[str]:
    """The file names in the ``state.json`` of a data set saved to disk; older files beside them do not count."""
    try:
        document = json.loads(state.read_text(encoding="utf-8"))
        return {str(entry["filename"]) for entry in document["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("is no list of a saved data set's files; save the data set again", str(state)) from error


def _is_scratch(name: str) -> bool:
    """Whether `datasets` wrote a file for itself: results of map and filter, indices, half-written files."""
    return posixpath.basename(name).startswith(("cache-", "tmp", ".", "indices"))


def _of_split(names: Sequence[tuple[str, str]], split: str, file: str) -> list[str]:
    """The files (given with their names below the folder) of a split; all where no name tells a split."""
    words = {name: re.split(r"[^a-z0-9]+", below.lower()) for name, below in names}
    chosen = [name for name, said in words.items() if split.lower() in said]
    others = sorted({word for said in words.values() for word in said if word in _SPLITS})
    if chosen or (not others and split == "train"):
        return chosen or list(words)
    fix = f"its splits are {', '.join(others)}" if others else "its files name no splits, so leave 'split' out"
    raise DataError(f"has no files of split '{split}'; {fix}", file)


def label(config: SourceConfig) -> str:
    """A source as messages call it."""
    declared = f" ({config.declared_in})" if config.declared_in is not None else ""
    return f"source '{config.name}'{declared}"


def missing(path: Path, what: str) -> DataError:
    """A sentence about a missing path, with what lies near it under a similar name."""
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    wanted = path.relative_to(folder).parts[0] if folder else path.name
    names = [] if folder is None else [name for name in os.listdir(folder) if name != wanted]
    close = difflib.get_close_matches(wanted, sorted(names), n=3)
    fix = f"did you mean {' or '.join(close)} in {folder}" if close else "correct the path"
    return DataError(f"{what}; {fix}", str(path))


def _is_native(root: Path, path: Path, form: str) -> bool:
    """Whether a file, named as a native one, is to be read as such: those of RSICD and RSVQA hold one object."""
    if form != "auto" or path.name.endswith((".jsonl", ".gz", ".zst")):
        return False
    native = detect(root, path)
    if native not in ("rsicd", "rsvqa"):
        return native is not None
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(BOM).lstrip().startswith(b"{")
