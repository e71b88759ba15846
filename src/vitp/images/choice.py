"""Which part of a file a record shows: ``ct.nii.gz#plane=coronal&slice=40``, ``scene.tif#window=0,512,256,256``.

What a record chooses goes before what the source's `images` says for all of its files. Of a NIfTI volume: plane, slice (or
fraction) and volume; of a DICOM file: frame; of rasters and ordinary pictures: window = row, column, height, width in
pixels. All count from 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pydantic import ValidationError

from vitp.config import Config
from vitp.images.decode import ImageError
from vitp.images.medical import DicomConfig
from vitp.images.nifti import NiftiConfig
from vitp.images.raster import Window

if TYPE_CHECKING:
    from vitp.images.stored import ImageFile

C = TypeVar("C", bound=Config)
_PAIR = r"(?:plane|slice|fraction|volume|frame|window)=[^#&=]*"
_CHOICE = re.compile(rf"(.+)#({_PAIR}(?:&{_PAIR})*)")
_CODE = "image-choice"
_NIFTI = {"plane": "plane", "slice": "index", "fraction": "fraction", "volume": "volume"}  # as `NiftiConfig` calls them


@dataclass(frozen=True)
class Chosen:
    """A part of an image file; opened, it is the file."""

    file: ImageFile
    text: str  # key=value&key=value
    values: dict[str, str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", dict(pair.split("=", 1) for pair in self.text.split("&")))

    def __str__(self) -> str:
        return f"{self.file}#{self.text}"

    @property
    def name(self) -> str:
        """The file's name, whose suffix tells NIfTI and DICOM."""
        return self.file.name

    def open(self) -> BinaryIO:
        """A stream of the whole file."""
        return self.file.open("rb") if isinstance(self.file, Path) else self.file.open()

    def nifti(self, config: NiftiConfig) -> NiftiConfig:
        """The slice to read of a volume; raises ImageError where something else is chosen."""
        self._only(_NIFTI, "a NIfTI volume")
        new: dict[str, Any] = {_NIFTI[key]: _number(value) for key, value in self.values.items()}
        if "fraction" in self.values and "slice" not in self.values:
            new["index"] = None
        return self._checked(NiftiConfig, config.model_dump() | new)

    def dicom(self, config: DicomConfig) -> DicomConfig:
        """The frame to read; raises ImageError where something else is chosen."""
        self._only({"frame"}, "a DICOM file")
        return self._checked(DicomConfig, config.model_dump() | {"frame": _number(self.values["frame"])})

    def window(self) -> Window:
        """The pixels to read of a raster or picture; raises ImageError where something else is chosen."""
        self._only({"window"}, "a raster or picture")
        found = [n for n in map(_number, self.values["window"].split(",")) if isinstance(n, int)]
        if len(found) != 4 or self.values["window"].count(",") != 3 or min(found[:2]) < 0 or min(found[2:]) < 1:
            raise self._wrong(f"window is '{self.values['window']}'", "write window=row,column,height,width in pixels")
        return Window(*found)

    def inside(self, window: Window, size: tuple[int, int]) -> None:
        """Raise ImageError unless the window lies in an image of (width, height)."""
        if window.row + window.height > size[1] or window.column + window.width > size[0]:
            raise self._wrong(f"window leaves the image of {size[0]} x {size[1]} pixels", "correct the window")

    def _only(self, keys: Any, kind: str) -> None:
        strange = next((key for key in self.values if key not in keys), None)
        if strange is not None:
            fix = f"of {kind} choose {', '.join(sorted(keys))}"
            raise self._wrong(f"chooses a {strange}, which {kind} does not have", fix)

    def _checked(self, cls: type[C], values: dict[str, Any]) -> C:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._wrong(
                f"{first['loc'][0] if first['loc'] else 'choice'}: {first['msg']}", "correct it"
            ) from error

    def _wrong(self, found: str, fix: str) -> ImageError:
        return ImageError(_CODE, found, fix, str(self))


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def split_choice(name: str) -> tuple[str, str]:
    """An image's name in a record as (file, choice); the choice is empty where there is none."""
    found = _CHOICE.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")
