"""Which members a tar shard has, by key, and where they lie: found by its headers, and remembered in the cache.

Nothing is extracted. A shard that ends early, or is damaged further on, gives what lies in front, and one more sample
that says what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vitp.cache import CacheEntry
from vitp.errors import DataError, OutputError
from vitp.files import file_state
from vitp.instruction.native import SUFFIXES

_VERSION = 1  # raised when the same shard is indexed otherwise
_IMAGES = (*SUFFIXES, ".gif", ".ppm", ".pgm", ".pbm", ".jp2", ".nii", ".nii.gz", ".dcm", ".dicom")
_BLOCK = 512
_SKIPPED = 1 << 20  # bytes of zeros looked at a time

Int64 = npt.NDArray[np.int64]
Problem = tuple[str, str, str]  # member (or byte), what was found, the fix


@dataclass(frozen=True, slots=True, eq=False)
class TarIndex:
    """The samples of one shard. Members lie sample by sample: .json, .txt, images."""

    samples: Int64  # [n, 3] first member, number of texts, number of images
    members: Int64  # [m, 2] first byte, size
    names: bytes
    ends: Int64  # [m + 1] of the members' names in `names`
    hashes: npt.NDArray[np.uint64]  # [i] of the images' names, sorted
    hashed: Int64  # [i] the members they belong to
    problems: dict[int, Problem]  # sample -> why it cannot be used

    def name(self, member: int) -> str:
        """The name of a member."""
        start, end = self.ends[member : member + 2]
        return self.names[start:end].decode("utf-8", "surrogateescape")

    def image(self, name: str) -> int | None:
        """The member that is the image of this name, None if none is."""
        wanted = np.uint64(_hash(name))
        first, last = np.searchsorted(self.hashes, wanted, "left"), np.searchsorted(self.hashes, wanted, "right")
        return next((int(member) for member in self.hashed[first:last] if self.name(member) == name), None)


def key_and_kind(name: str) -> tuple[str, str]:
    """Key and kind of a member: its path up to the first dot of its last part, and what follows in small letters."""
    folder, last = os.path.split(name)
    stem, _, kind = last.partition(".")
    return os.path.join(folder, stem), kind.lower()


def tar_index(path: Path, shown: str) -> TarIndex:
    """The index of a shard, from the cache where it is there and can be read.

    Args:
        path: a plain tar file.
        shown: what messages call it.

    Raises:
        DataError: it is no tar file, or cannot be read at all.
    """
    try:
        entry = CacheEntry(os.path.realpath(path), f"tar {_VERSION} {file_state(path)}")
        found: list[TarIndex] = []

        def write(target: Path) -> None:
            found.append(_indexed(path, shown))
            target.write_bytes(_to_bytes(found[0]))

        with suppress(OutputError):  # a cache is a help, not a need
            made = entry.made("index.npz", write)
            with suppress(OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError):
                return found[0] if found else _from_bytes(made.read_bytes())
        return found[0] if found else _indexed(path, shown)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); check the file and its permissions", shown) from error


def _to_bytes(index: TarIndex) -> bytes:
    out = io.BytesIO()
    problems = json.dumps(list(index.problems.items())).encode()
    np.savez(
        out, samples=index.samples, members=index.members, ends=index.ends, hashes=index.hashes, hashed=index.hashed,
        names=np.frombuffer(index.names, np.uint8), problems=np.frombuffer(problems, np.uint8),
    )  # fmt: skip
    return out.getvalue()


def _from_bytes(data: bytes) -> TarIndex:
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        problems = {int(number): tuple(said) for number, said in json.loads(held["problems"].tobytes())}
        return TarIndex(
            held["samples"], held["members"], held["names"].tobytes(), held["ends"], held["hashes"], held["hashed"],
            problems,
        )  # fmt: skip


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


# ------------------------------------------------------------------------------------------------------------- headers


@dataclass
class _Group:
    """The members of one key: name -> (first byte, size)."""

    texts: dict[str, tuple[int, int]] = field(default_factory=dict)
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: tuple[str, str] | None = None  # found, fix
    first: str = ""  # name of its first member


@dataclass
class _End:
    """Where the readable part of a shard ends, and what is wrong there."""

    byte: int = 0
    problem: str | None = None


def _indexed(path: Path, shown: str) -> TarIndex:
    """Scan a shard."""
    samples: list[tuple[int, int, int]] = []
    places: list[tuple[int, int]] = []
    names: list[bytes] = []
    images: list[tuple[int, int]] = []  # hash, member
    problems: dict[int, Problem] = {}
    for group in _scan(path, shown):
        if group.problem is not None:
            problems[len(samples)] = (group.first, *group.problem)
        samples.append((len(places), len(group.texts), len(group.images)))
        images += [(_hash(name), len(places) + len(group.texts) + i) for i, name in enumerate(group.images)]
        for name, place in (*group.texts.items(), *group.images.items()):
            places.append(place)
            names.append(name.encode("utf-8", "surrogateescape"))
    images.sort()
    return TarIndex(
        np.array(samples, np.int64).reshape(-1, 3), np.array(places, np.int64).reshape(-1, 2), b"".join(names),
        np.cumsum([0, *map(len, names)], dtype=np.int64), np.array([value for value, _ in images], np.uint64),
        np.array([member for _, member in images], np.int64), problems,
    )  # fmt: skip


def _scan(path: Path, shown: str) -> list[_Group]:
    """The samples of a shard in the order of their first members, and one for what cannot be read of it."""
    groups: dict[str, _Group] = {}
    size, end = path.stat().st_size, _End()
    try:
        with path.open("rb") as stream:
            for member in _members(stream, size, end):
                name = member.name.removeprefix("./")
                last = os.path.basename(name)
                if member.isdir() or last.startswith((".", "__")):
                    continue
                key, kind = key_and_kind(name)
                group = groups.setdefault(key, _Group(first=name))
                problem = _problem(member, name, size)
                if problem is None:
                    problem = _place(group, name, kind, (member.offset_data, member.size))
                group.problem = group.problem or problem
    except tarfile.TarError as error:
        if not groups:
            raise DataError(f"is no tar file ({error}); copy it again or correct its name", shown) from error
        end.problem = end.problem or f"is damaged behind byte {end.byte} ({error})"
    found = list(groups.values())
    for group in found:
        if group.problem is None and not group.texts:
            group.problem = ("has no .json or .txt beside it", "add one, or leave the member out")
    if end.problem is not None:
        found.append(_Group(problem=(end.problem, "copy the shard again"), first=f"byte {end.byte}"))
    return found


def _members(stream: BinaryIO, size: int, end: _End) -> Iterator[tarfile.TarInfo]:
    """All members; `end` then says whether the shard ended as it should."""
    position = 0
    while True:
        stream.seek(position)
        archive = tarfile.TarFile(fileobj=stream, errorlevel=0)
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all otherwise, a kilobyte each
            yield member
            end.byte = archive.offset
        end.byte = archive.offset
        if end.byte >= size:
            end.problem = "ends without the mark of a complete tar file, so the shard is cut off"
            return
        position = _next_content(stream, end.byte, size)
        if position == end.byte:
            end.problem = f"holds no tar header at byte {end.byte}, so the rest of the shard is lost"
            return
        if position >= size:
            return


def _next_content(stream: BinaryIO, start: int, size: int) -> int:
    """The first block from `start` on that is not all zeros; shards may be written one behind another."""
    stream.seek(start)
    position = start
    while block := stream.read(_SKIPPED):
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            return position + zeros // _BLOCK * _BLOCK
        position += len(block)
    return size


def _problem(member: tarfile.TarInfo, name: str, size: int) -> tuple[str, str] | None:
    """What makes a member unusable; nothing is ever extracted, but such a name or link is no sample's."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return f"has the name {name!a}, which leads out of the shard", "write it under a plain relative name"
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!a}", "write the file itself into the shard (tar --dereference)"
    if not member.isreg() or member.issparse():
        return "is a device, pipe or sparse file", "write an ordinary file into the shard"
    if member.offset_data + member.size > size:
        return f"is cut off ({size - member.offset_data:,} of {member.size:,} bytes)", "copy the shard again"
    return None


def _place(group: _Group, name: str, kind: str, place: tuple[int, int]) -> tuple[str, str] | None:
    """Sort a member into its group: the .json first, then the .txt; images in their order. A second one is a problem."""
    held = group.texts if kind in ("json", "txt") else group.images
    if held is group.images and not name.lower().endswith(_IMAGES):
        return None
    if name in held or (held is group.texts and any(key_and_kind(other)[1] == kind for other in held)):
        return f"is there twice ({name})", "write every member once"
    held[name] = place
    if kind == "json":
        group.texts = {name: place, **held}
    return None
