"""Masks given as patches with a place in a table, made into one mask an image.

The layout of annotation tools that store each structure as a small picture and its box: a CSV with the columns Class,
Filename (of the image), Mask (of the patch, a path under root), Left, Top, Width and Height in the image's pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitp.datasets.layout import stem_of
from vitp.errors import DataError
from vitp.files import write_atomic
from vitp.images.decode import DAMAGE
from vitp.images.read import ImageConfig, image_size

_COLUMNS = ("Class", "Filename", "Mask", "Left", "Top", "Width", "Height")
_BOX = _COLUMNS[3:]


def paste_patches(table: Path, images: Path, out: Path, classes: Mapping[str, int]) -> int:
    """Write out/STEM.png, class ids of 8 bits, for every image the table names; the higher id lies on top.

    Args:
        table: the CSV; patches lie under its folder.
        images: folder of the images.
        out: folder of the masks.
        classes: class name -> id from 1; structures of other classes are left out, and 0 is where nothing is pasted.

    Returns:
        the number of masks written.

    Raises:
        DataError: with the line: a column, image or patch is missing, or a patch has another size than its box or reaches
            outside its image.
        OutputError: a mask cannot be written.
    """
    if unfit := [name for name, target in classes.items() if not 1 <= target < 255]:
        raise DataError(f"class '{unfit[0]}' has the id {classes[unfit[0]]}; ids run from 1 to 254", str(table))
    masks: dict[Path, NDArray[np.uint8]] = {}
    found: set[str] = set()
    for number, row in _rows(table):
        where = f"{table}:{number}"
        image = images / row["Filename"]
        if image not in masks:
            width, height = image_size(image, ImageConfig())
            masks[image] = np.zeros((height, width), dtype=np.uint8)
        found.add(row["Class"])
        if row["Class"] in classes:
            _paste(masks[image], row, table.parent / row["Mask"], classes[row["Class"]], where)
    if missing := sorted(set(classes) - found):
        raise DataError(
            f"names no structure of class '{missing[0]}'; its classes: {', '.join(sorted(found))}", str(table)
        )
    for image, mask in masks.items():
        file = out / f"{stem_of(image)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, partial(_save, mask))
    return len(masks)


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows of the table."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"has no column {missing[0]}; it needs {', '.join(_COLUMNS)}", f"{table}:1")
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table cannot be read ({error})", str(table)) from error


def _paste(mask: NDArray[np.uint8], row: Mapping[str, str], file: Path, target: int, where: str) -> None:
    """Raise `mask` [H, W] to `target` where the patch shows anything."""
    try:
        left, top, width, height = (int(row[key]) for key in _BOX)
    except (ValueError, TypeError) as error:
        raise DataError(f"{', '.join(_BOX)} must be whole numbers", where) from error
    try:
        with Image.open(file) as picture:
            shown = np.asarray(picture.convert("RGB")).any(axis=2)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"the patch {file} cannot be read ({error})", where) from error
    if shown.shape != (height, width):
        raise DataError(
            f"the patch {file} has {shown.shape[1]} x {shown.shape[0]} pixels and its box {width} x {height}", where
        )
    if min(left, top) < 0 or top + height > mask.shape[0] or left + width > mask.shape[1]:
        raise DataError(
            f"the box of {file} reaches outside the image of {mask.shape[1]} x {mask.shape[0]} pixels", where
        )
    part = mask[top : top + height, left : left + width]
    np.maximum(part, np.where(shown, target, 0).astype(np.uint8), out=part)


def _save(mask: NDArray[np.uint8], file: Path) -> None:
    Image.fromarray(mask).save(file, format="PNG")
