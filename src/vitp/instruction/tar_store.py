"""Records in tar shards, as WebDataset writes them: members that share a key are one sample.

The key of a member is its path up to the first dot of its last part, its kind what follows (`train/0012.jpg`: key
`train/0012`, kind `jpg`). Of a key:

* `.json` is a record; its images are members of the same key, named with or without their folder, and where it names
  none, the only one there is;
* `.txt`, where there is no `.json` or the `.json` holds no turns, is a caption: the answer to one of
  `vitp.instruction.native.CAPTION_PROMPTS`, chosen by the CRC-32 of the key;
* members with an image's suffix are its images; other members are not read.

Members are read by position (`vitp.instruction.tar_index`). Hidden members and those named `__...` are left out, as
WebDataset does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitp.errors import DataError
from vitp.files import file_state
from vitp.images.decode import ImageError
from vitp.images.stored import FileSlice, StoredImage
from vitp.instruction.native import CAPTION_PROMPTS, _pick
from vitp.instruction.records import RecordError, decode_record
from vitp.instruction.sample import IMAGE_MARK
from vitp.instruction.stores import check_length, with_images
from vitp.instruction.tar_index import key_and_kind, tar_index
from vitp.instruction.unpack import is_packed, unpacked

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")


class TarRecords:
    """The samples of tar shards.

    Args:
        shards: what each is called, its name relative to the source's root, and the file.
        file: what messages call all of them.

    Raises:
        DataError: a shard is no tar file, or cannot be read at all.
    """

    format = "webdataset"

    def __init__(self, shards: Sequence[tuple[str, str, Path]], file: str) -> None:
        self.file = file
        self._digest: str | None = None
        self._shards = [_Shard(*shard) for shard in shards]
        self._starts = np.cumsum([0, *(len(shard.index.samples) for shard in self._shards)])
        self._numbers = {shard.name: number for number, shard in enumerate(self._shards)}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[_Shard, int]:
        """The shard of a sample, and its number there."""
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._shards[number], index - int(self._starts[number])

    def where(self, index: int) -> str:
        """``shard:member`` of the text, or of what is wrong."""
        shard, sample = self._place(index)
        problem = shard.index.problems.get(sample)
        member = problem[0] if problem else shard.index.name(int(shard.index.samples[sample, 0]))
        return f"{shard.shown}:{member}"

    def record(self, index: int) -> object:
        """The record of one key: its .json, or a turn made of its .txt."""
        shard, sample = self._place(index)
        where, name = self.where(index), shard.index.name
        if sample in shard.index.problems:
            _, found, fix = shard.index.problems[sample]
            raise RecordError("shard-member", found, fix, where)
        first, texts, images = shard.index.samples[sample].tolist()
        caption = next((m for m in range(first, first + texts) if key_and_kind(name(m))[1] == "txt"), None)
        members = [name(member) for member in range(first + texts, first + texts + images)]
        held = [f"{shard.name}:{member}" for member in members]
        record: object = None
        if caption != first:  # texts[0] is the .json, if there is one
            record = decode_record(shard.text(first), where)
        if caption is not None and not (isinstance(record, dict) and {"conversations", "messages"} & set(record)):
            text = shard.text(caption).decode("utf-8", "replace").strip()
            question: str = _pick(CAPTION_PROMPTS, key_and_kind(name(caption))[0])
            answer = {"from": "gpt", "value": text}
            asked = IMAGE_MARK * len(held) + "\n" + question if held else question
            record = {"conversations": [{"from": "human", "value": asked}, answer]}
        if not isinstance(record, dict):
            return record
        there = ", ".join(map(os.path.basename, members)) or "none"
        named = {
            **dict(zip(members, held, strict=True)),
            **dict(zip(map(os.path.basename, members), held, strict=True)),
        }

        def resolve(written: str) -> str:
            plain = written.removeprefix("./")
            if plain in named:
                return named[plain]
            found = f"names the image {written}, which its key does not hold (its images: {there})"
            raise RecordError("shard-member", found, "name a member of the same key", where)

        result = with_images(record, held, resolve)
        if len(held) > 1 and result.get("images") is held:
            found = f"names none of its images ({there})"
            raise RecordError("shard-member", found, "list them under 'images' of its .json, in order", where)
        return result

    def digest(self) -> str:
        """Hash of the texts, and of names and sizes of the images; reads all texts."""
        if self._digest is not None:
            return self._digest
        made = hashlib.blake2b(digest_size=16)
        for index in range(len(self)):
            shard, sample = self._place(index)
            first, texts, images = shard.index.samples[sample].tolist()
            for member in range(first, first + texts + images):
                name, size = shard.index.name(member), int(shard.index.members[member, 1])
                made.update(f"{index} {name} {size}\n".encode("utf-8", "surrogateescape"))
                if member < first + texts:
                    with shard.slice(member).open() as stream:
                        made.update(stream.read())
            made.update(" ".join(shard.index.problems.get(sample, ())).encode("utf-8", "surrogateescape"))
        self._digest = made.hexdigest()
        return self._digest

    def image(self, name: str) -> StoredImage | None:
        """The member behind the name of an image; raises ImageError where there is none."""
        end = name.find(":")
        while end >= 0:  # names of shards and members may hold colons themselves
            number = self._numbers.get(name[:end])
            member = None if number is None else self._shards[number].index.image(name[end + 1 :])
            if number is not None and member is not None:
                return self._shards[number].slice(member)
            end = name.find(":", end + 1)
        raise ImageError("image-missing", "is in none of the shards", "correct the record", name)


class _Shard:
    """A shard in use: the tar itself (unpacked where it was compressed), what it is called, and its index."""

    def __init__(self, shown: str, name: str, path: Path) -> None:
        self.shown, self.name = shown, name
        try:
            # The end of a damaged compressed shard shows as that of a truncated tar
            self.path = unpacked(path, shown).path if is_packed(path.name) else path
            self._state = file_state(self.path)
        except OSError as error:
            found = f"cannot be read ({error.strerror}); check the file and its permissions"
            raise DataError(found, shown) from error
        self.index = tar_index(self.path, shown)

    def slice(self, member: int) -> FileSlice:
        """A member as a part of the shard."""
        (offset, size), name = self.index.members[member].tolist(), self.index.name(member)
        return FileSlice(str(self.path), offset, size, os.path.basename(name), self._state, f"{self.shown}:{name}")

    def text(self, member: int) -> bytes:
        """The bytes of a text member; raises RecordError where it is too long."""
        part = self.slice(member)
        check_length(part.size, part.shown)
        with part.open() as stream:
            return stream.read()
