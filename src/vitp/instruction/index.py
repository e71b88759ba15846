"""The index of a source: what every sample asks of the machine, known before anything is decoded.

One file a source (`vitp.instruction.index_file`), mapped into memory: opening it takes no time that grows with the texts,
and processes share its pages. It remembers where the records lie, so that the annotations need not be scanned again, and
for every sample its images with their sizes, its tokens and tiles, and why it cannot be used, if so.
`vitp.instruction.index_build` makes it.

An index is fresh as long as the records, the images' settings, tokenizer, template, tiling and limits are the same; times
and places of files do not count. Only image files are not looked at again: whoever replaces them by images of other sizes
builds anew (``vitp index --rebuild``). Images that were missing or unreadable are looked at every time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vitp.cache import cache_folder
from vitp.config import Config
from vitp.files import file_state
from vitp.instruction.chat import ChatFormat
from vitp.instruction.index_file import VERSION, Flag, IndexDamagedError, IndexFile
from vitp.instruction.source import Source, SourceConfig
from vitp.instruction.tiling import TilingConfig
from vitp.instruction.token_count import tokenizer_fingerprint
from vitp.vlm.token_drop import TokenDropConfig

Ints = npt.NDArray[np.int64]


class IndexConfig(Config):
    """Where indexes are kept and how they are built; neither changes what is trained."""

    folder: Path | None = None  # None: index in $VITP_CACHE or ~/.cache/vitp, since data folders may be read-only
    workers: int = Field(default=0, ge=0)  # processes; 0: one for each core this process may use

    @property
    def place(self) -> Path:
        """The folder of all indexes."""
        if self.folder is not None:
            return self.folder.expanduser()
        return cache_folder().expanduser() / "index"

    @property
    def processes(self) -> int:
        """The number of processes to use."""
        if self.workers:
            return self.workers
        usable = getattr(os, "sched_getaffinity", None)
        return len(usable(0)) if usable else os.cpu_count() or 1


@dataclass(frozen=True)
class SizeRules:
    """What decides how large a sample becomes, besides the sample itself."""

    chat: ChatFormat
    tiling: TilingConfig
    tile_size: int  # pixels, side of a tile
    tokens_per_tile: int  # visual tokens of a tile before dropping
    max_length: int  # tokens of a sample before dropping
    _tokenizer: list[str] = field(default_factory=list, init=False, repr=False, compare=False)  # its hash, once known

    def settings(self, config: SourceConfig) -> str:
        """Fingerprint of all of it for one source."""
        if not self._tokenizer:
            self._tokenizer.append(f"{tokenizer_fingerprint(self.chat.tokenizer)} {self.chat.tokenise}")
        tiling = self.tiling.with_most(config.max_tiles).model_dump(mode="json")
        return _hash(
            VERSION, self._tokenizer[0], tiling, self.tile_size, self.tokens_per_tile, self.max_length, sizing(config),
            config.augment.moves,  # unreadable quads are refused where they must move
        )  # fmt: skip


def sizing(config: SourceConfig) -> str:
    """Fingerprint of what decides the pixel size of an image, besides its file."""
    return _hash(_absolute(config.root), config.images.model_dump(mode="json"))


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _absolute(place: Path | str) -> str:
    """A place by a name that does not depend on the working folder; a URL as it is."""
    text = str(place)
    return text if "://" in text else os.path.realpath(os.path.expanduser(text))


def annotation_file(config: SourceConfig) -> Path | None:
    """The annotations, if the recipe names a local place for them."""
    if config.annotations is None or "://" in f"{config.root}{config.annotations}":
        return None
    return Path(_absolute(Path(_absolute(config.root), os.path.expanduser(config.annotations))))


def index_stem(config: SourceConfig) -> str:
    """How the names of all indexes of a source begin, whatever the rules."""
    file = annotation_file(config)
    key = _hash(_absolute(config.root), str(file or config.annotations), config.format, config.split, config.turns)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(file or config.root).name)[-60:]
    return f"{readable}-{key}"


def index_path(source: SourceConfig, rules: SizeRules, config: IndexConfig) -> Path:
    """Where the index of a source lies; another tokenizer or tiling has another file, other content has not."""
    return config.place / f"{index_stem(source)}-{rules.settings(source)}.arrow"


def known_indexes(source: SourceConfig, config: IndexConfig) -> Iterator[IndexFile]:
    """Readable indexes of a source by whatever rules, newest first; damaged ones are left to `build_index` to mention."""
    found = []
    for path in config.place.glob(f"{index_stem(source)}-*.arrow"):
        with suppress(OSError):
            found.append((-path.stat().st_mtime_ns, path))
    for _, path in sorted(found):
        with suppress(OSError, IndexDamagedError):
            yield IndexFile(path)


def open_source(config: SourceConfig, index: IndexConfig) -> Source:
    """A source, opened by an index if there is one for its annotations as they are now; otherwise they are scanned.

    Raises:
        DataError: as `Source`.
    """
    file, places = annotation_file(config), None
    if file is not None and file.is_file():
        state = file_state(file)
        for known in known_indexes(config, index):
            if known.places is not None and known.header.state == state:
                places = known.places
                break
    return Source(config, places)


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """An image of a sample: path as written in the record, upright pixels; 0 x 0 where its header could not be read."""

    path: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a sample cannot be used: a code for all problems of one kind, and the sentence without its place."""

    code: str
    message: str


@dataclass(frozen=True)
class Sizes:
    """Sizes of m samples, arrays [m]; those of unusable samples are 0."""

    tiles: Ints
    text: Ints  # tokens of the text after cutting to max_length, image start and end tokens included
    visual: Ints  # visual tokens before the drop
    supervised: Ints  # positions with a target, after cutting
    flags: npt.NDArray[np.uint8]  # see `Flag`

    def tokens(self, vrl: TokenDropConfig, drops: npt.NDArray[np.bool_] | None = None) -> Ints:
        """Positions in the language model after VRL's drop, [m].

        Args:
            vrl: the recipe's drop.
            drops: which samples drop at all, `vitp.vlm.token_drop.applies` of their generators; None: all of them.
        """
        dropped = np.floor(vrl.ratio * self.visual + 1e-9).astype(np.int64)  # as `kept_count`, element by element
        return self.text + self.visual - (dropped if drops is None else np.where(drops, dropped, 0))


class Index:
    """The open index of one source. Columns are numpy arrays that lie in the mapped file; pickled, it is a path."""

    def __init__(self, file: IndexFile) -> None:
        self.file = file
        self.text_tokens: npt.NDArray[np.uint32] = file.column("text_tokens")  # whole conversation, before cutting
        self.supervised_tokens: npt.NDArray[np.uint32] = file.column("supervised_tokens")  # after cutting
        self.tiles: npt.NDArray[np.uint32] = file.column("tiles")
        self.flags: npt.NDArray[np.uint8] = file.column("flags")

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.file,)

    def __len__(self) -> int:
        return len(self.file)

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    def sizes(self, indices: Sequence[int] | Ints, tiles: Ints | None = None) -> Sizes:
        """Sizes of m samples.

        Args:
            indices: which, [m].
            tiles: what else they are cut into, [m], after crops for instance; None: tiles of the whole images.
        """
        at, header = np.asarray(indices, np.int64), self.file.header
        tiles = self.tiles[at].astype(np.int64) if tiles is None else tiles
        visual = tiles * header.tokens_per_tile
        text = np.minimum(self.text_tokens[at] + visual, header.max_length) - visual
        return Sizes(tiles, text, visual, self.supervised_tokens[at].astype(np.int64), self.flags[at])

    def usable(self, index: int) -> bool:
        """Whether training would take this sample (a file that is damaged behind its header is found only then)."""
        return not self.flags[index] & Flag.UNUSABLE

    @property
    def unusable(self) -> Ints:
        """All samples that training would replace, ascending."""
        return np.flatnonzero(self.flags & Flag.UNUSABLE)

    def problem(self, index: int) -> Problem | None:
        """Why a sample is unusable; None if it is not."""
        if self.usable(index):
            return None
        code = self.file.header.reasons[self.file.column("reason")[index]]
        return Problem(code, self.file.batch.column("message")[index].as_py())

    def images(self, index: int) -> list[IndexedImage]:
        """The images of a sample."""
        return [IndexedImage(**image) for image in self.file.batch.column("images")[index].as_py()]


def open_index(source: Source, rules: SizeRules, config: IndexConfig) -> Index | None:
    """The index of a source; None if there is none or it is stale. Nothing is built.

    Raises:
        IndexDamagedError: there is one, and it is damaged.
    """
    try:
        file = IndexFile(index_path(source.config, rules, config))
    except OSError:  # there is none, or it is out of reach, which building will say
        return None
    fresh = (file.header.settings, file.header.content) == (rules.settings(source.config), source.fingerprint())
    return Index(file) if fresh and len(file) == len(source) else None
