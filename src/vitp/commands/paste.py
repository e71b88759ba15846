"""`vitp paste`: structures given as patches with a place in a table, made into one mask an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.datasets.patches import paste_patches
from vitp.errors import ConfigError, OutputError


@dataclass(frozen=True)
class PasteResult:
    """Where the masks are, and how many; class name -> id."""

    out: Path
    masks: int
    classes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {"out": str(self.out), "masks": self.masks, "classes": self.classes}


def paste(table: Path, images: Path, out: Path, classes: Sequence[str], *, overwrite: bool = False) -> PasteResult:
    """Write out/STEM.png for every image the table names; see `vitp.datasets.patches`.

    Args:
        table: CSV with the columns Class, Filename, Mask, Left, Top, Width and Height; patches lie under its folder.
        images: folder of the images.
        out: folder of the masks, new or empty.
        classes: ``NAME=ID`` each, NAME as in the table, ID from 1; several names may share one. Where structures overlap the
            higher id lies on top.
        overwrite: `out` may hold files; those of the same name are replaced.

    Raises:
        ConfigError: a class is not written so.
        DataError: a column, image or patch is missing or does not fit.
        OutputError: `out` is in use or cannot be written to.
    """
    ids = dict(_class_id(text) for text in classes)
    if not ids:
        raise ConfigError("no class is given; say which structures become which id, as in --class 'Left Lung=1'")
    if out.resolve() == images.resolve():
        raise OutputError(f"{out} is the folder of the images; masks go into one of their own")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty; choose another folder, or say --overwrite to replace masks in it")
    return PasteResult(out, paste_patches(table, images, out, ids), ids)


def _class_id(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.strip().isdecimal():
        raise ConfigError(f"class '{text}' is not written NAME=ID with a whole number, as in 'Left Lung=1'")
    return name, int(number)
