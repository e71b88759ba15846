"""Where the files of an image data set lie: images by a pattern, what belongs to each by a template of its path."""

from __future__ import annotations

import re
from glob import escape
from pathlib import Path
from typing import Protocol

from pydantic import Field, field_validator

from vitp.config import Config
from vitp.errors import DataError

_PLACES = {"stem", "name", "folder", "parent", "above"}
_COMPRESSED = ".gz"


class LayoutConfig(Config):
    """The folder of a data set, its images, and what images have in common.

    A template is a path under `root` made from the image's: {name} and {stem} (without suffix; of x.nii.gz it is x), its
    {folder} under root, the last part of that folder {parent}, the folder above it {above}, and the named groups of
    `parts`: ``masks/{stem}.png``, ``{above}/labels/{name}``, ``labels/{date}_mask_{number}.tif``.
    """

    root: Path
    images: str = Field(min_length=1)  # glob under root, e.g. images/*.png
    exclude: str | None = None  # glob under root of files that `images` finds but that are no images
    parts: str | None = None  # regular expression in the image's path under root; (?P<x>...) makes the place {x}
    group: str | None = None  # likewise; its first group (patient, scene) is never split over train and test

    @field_validator("images", "exclude")
    @classmethod
    def _images_below_root(cls, pattern: str | None) -> str | None:
        return below_root(pattern)

    @field_validator("group")
    @classmethod
    def _group_pattern(cls, group: str | None) -> str | None:
        if group is not None and compiled(group).groups < 1:
            raise ValueError(f"needs a group in parentheses, as in (patient\\d+): '{group}'")
        return group

    @field_validator("parts")
    @classmethod
    def _parts_pattern(cls, parts: str | None) -> str | None:
        if parts is not None and not compiled(parts).groupindex:
            raise ValueError(f"needs named groups, as in (?P<city>[^/]+): '{parts}'")
        return parts

    def check_template(self, key: str, template: str) -> None:
        """Raise ValueError unless `template` is a path under root that differs from image to image."""
        below_root(template)
        named = set(compiled(self.parts).groupindex) if self.parts is not None else set()
        found = set(re.findall(r"{(\w*)}", template))
        unknown = found - _PLACES - named
        telling = {"stem", "name"} | named
        if not re.search(
            r"[*?\[]", self.images.rpartition("/")[2]
        ):  # one image a folder: its folder tells images apart
            telling |= {"folder", "parent"}
        if unknown or not found & telling or re.search(r"[{}]", re.sub(r"{\w+}", "", template)):
            known = ", ".join(f"{{{place}}}" for place in sorted(_PLACES | named))
            raise ValueError(
                f"{key} must hold {{stem}} or {{name}} (or a place of `parts`), and no place but {known}; got '{template}'"
            )


class Item(Protocol):
    """One image of a data set."""

    @property
    def image(self) -> Path:
        """Its file, or the first of its files."""

    @property
    def group(self) -> str:
        """What is never split: the patient or scene, or the image itself."""


def compiled(expression: str) -> re.Pattern[str]:
    """A regular expression; raises ValueError where it is none."""
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error}): '{expression}'") from error


def below_root(pattern: str | None) -> str | None:
    """The pattern itself; raises ValueError where it is absolute or empty."""
    if pattern is not None and (not pattern or pattern.startswith("/")):
        raise ValueError(f"must be a pattern relative to root, got '{pattern}'")
    return pattern


def stem_of(file: Path) -> str:
    """The name without its suffix, of compressed files without both."""
    return Path(file.stem).stem if file.suffix.lower() == _COMPRESSED else file.stem


def find_images(config: LayoutConfig, *, folders: bool = False) -> list[Path]:
    """The images in order of their paths: files, and with `folders` also folders (of DICOM series).

    Raises:
        DataError: there is no such folder, or nothing in it matches.
    """
    root = config.root
    if not root.is_dir():
        raise DataError("no such folder; set data.root to the folder of the data set", str(root))
    excluded = set(root.glob(config.exclude)) if config.exclude else set()
    found = sorted(
        path
        for path in root.glob(config.images)
        if (path.is_file() or (folders and path.is_dir())) and path not in excluded
    )
    if not found:
        raise DataError(f"no image matches '{config.images}'; correct the pattern or the folder", str(root))
    return found


def belonging(image: Path, template: str, config: LayoutConfig, noun: str) -> tuple[Path, ...]:
    """The files a template with * or without names for an image; one at least.

    Args:
        image: under the root.
        template: see `LayoutConfig`.
        config: of the data set.
        noun: what the files are, for the message.

    Raises:
        DataError: there is none, or the path has not the `parts` the template asks for.
    """
    root = config.root
    places = places_of(image, config)
    exact = root / template.format(**places)
    if exact.is_file():
        return (exact,)
    pattern = template.format(**{key: escape(value) for key, value in places.items()})
    found = tuple(sorted(file for file in root.glob(pattern) if file.is_file() and file != image))
    if not found:
        raise DataError(
            f"has no {noun}: {exact} does not exist; add it, or exclude the image (exclude: a glob)", str(image)
        )
    return found


def group_of(image: Path, config: LayoutConfig) -> str:
    """The patient or scene of an image; without `group` its own path.

    Raises:
        DataError: the path does not match.
    """
    relative = image.relative_to(config.root).as_posix()
    if config.group is None:
        return relative
    match = re.search(config.group, relative)
    if match is None or match.group(1) is None:
        raise DataError(f"does not match group '{config.group}'; widen the expression", str(image))
    return match.group(1)


def places_of(image: Path, config: LayoutConfig) -> dict[str, str]:
    """What the places of a template stand for, of one image.

    Raises:
        DataError: the path has not the `parts`.
    """
    relative = image.relative_to(config.root)
    places = {
        "stem": stem_of(image),
        "name": image.name,
        "folder": relative.parent.as_posix(),
        "parent": relative.parent.name,
        "above": relative.parent.parent.as_posix(),
    }
    if config.parts is None:
        return places
    match = re.search(config.parts, relative.as_posix())
    if match is None:
        raise DataError(f"does not match parts '{config.parts}'; widen the expression or exclude the image", str(image))
    return {**places, **{name: value or "" for name, value in match.groupdict().items()}}
