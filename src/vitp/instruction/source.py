"""One data set of a mixture: its records, in whatever store they are, and its images."""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from vitp.config import Config
from vitp.errors import DataError
from vitp.images.choice import Chosen, split_choice
from vitp.images.decode import ImageError
from vitp.images.read import ImageConfig
from vitp.images.stored import ImageFile
from vitp.instruction.find_store import label, missing, open_store
from vitp.instruction.places import Places
from vitp.instruction.records import parse_record
from vitp.instruction.remote import URL, RemoteImage, below
from vitp.instruction.sample import Sample
from vitp.instruction.text_store import TextRecords

_PARENTS = 4096  # resolved folders remembered

Format = Literal["auto", "conversations", "rsicd", "rsvqa", "vqa_rad", "rocov2"]
Url = Annotated[str, StringConstraints(pattern=URL)]


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
    root: Url | Path  # folder the image paths are relative to
    # Below root or absolute: a text file, shards, tables, or a folder of these; None: found in root
    annotations: Url | Path | None = None
    format: Format = "auto"
    split: str = "train"  # native data sets and folders of tables only
    turns: int = Field(default=3, ge=1)  # ours: turns of a record; native data sets only
    weight: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)  # released script: repeat_time
    max_tiles: int | None = Field(default=None, ge=1)  # None: the recipe's; released script: max_dynamic_patch
    hold_out: int | None = Field(
        default=None, ge=0
    )  # records kept from training; None: the recipe's evaluation.hold_out
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

    `places` are those of its annotations, if known; where the file is no longer as it was then, it is scanned anew.

    Raises (on construction):
        DataError: the folder or the annotations are missing, empty, or unreadable as a whole. A record that is wrong
            in itself raises when it is asked for.
    """

    def __init__(self, config: SourceConfig, places: Places | None = None) -> None:
        self.config = config
        self.root = config.root if isinstance(config.root, str) else config.root.expanduser()
        if isinstance(self.root, Path) and not self.root.is_dir():
            raise missing(self.root, f"is the root of {label(config)} and no folder")
        self._resolved_root = os.path.realpath(self.root)
        self._parents: dict[str, str] = {}
        self._rows: NDArray[np.int64] | None = None  # of a part: which samples of the whole
        self._records = open_store(config, self.root, places)
        if len(self._records) == 0:
            raise DataError("holds no record; add some or remove the source", self._records.file)
        if config.declared_in is not None and config.samples not in (None, len(self)):
            found = f"{config.name}.length is {config.samples}, but {self._records.file} holds {len(self)} records"
            raise DataError(f"{found}; complete the file or set the source's samples=null", str(config.declared_in))

    def __len__(self) -> int:
        return len(self._records) if self._rows is None else len(self._rows)

    def part(self, rows: NDArray[np.int64]) -> Source:
        """The samples `rows` [n] of this source alone, numbered anew; images, fingerprint and places stay the whole's."""
        found = copy.copy(self)
        found._rows = rows if self._rows is None else self._rows[rows]
        return found

    def row(self, index: int) -> int:
        """The number a sample has in the whole source (and in its index), which for a part is another one."""
        if not 0 <= index < len(self):
            raise IndexError(f"source '{self.config.name}' has no sample {index}, only {len(self)}")
        return index if self._rows is None else int(self._rows[index])

    def where(self, index: int) -> str:
        """``file:line`` of a sample, without reading it."""
        return self._records.where(self.row(index))

    def sample(self, index: int) -> Sample:
        """Read and parse one sample.

        Raises:
            DataError: the record is damaged or breaks the rules of `vitp.instruction.records`.
            IndexError: no such sample.
        """
        row = self.row(index)
        return parse_record(self._records.record(row), self._records.where(row))

    @property
    def places(self) -> Places | None:
        """Where its records lie; None where they do not lie in a text file."""
        return self._records.places if isinstance(self._records, TextRecords) else None

    def digest(self, start: int, stop: int) -> str:
        """Hash of the records [start, stop) of a text file."""
        assert isinstance(self._records, TextRecords)
        return self._records.digest_of(start, stop)

    def image_file(self, name: str) -> ImageFile:
        """An image of a sample, for `vitp.images.read`: in a store, behind a URL, or a path; ``str()`` says where.

        A name that ends in ``#slice=40`` or the like is a part of a file, see `vitp.images.choice`.

        Raises:
            DataError: it leads out of the root, or the store does not hold it.
        """
        name, choice = split_choice(name)
        if choice:
            return Chosen(self.image_file(name), choice)
        stored = self._records.image(name)
        if stored is not None:
            return stored
        return RemoteImage(below(self.root, name)) if isinstance(self.root, str) else self.image_path(name)

    def image_path(self, name: str) -> Path:
        """Where an image that is a file lies; it need not exist, but it must lie in the source's root.

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
