"""SSDD's ships: COCO polygons into masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitp.datasets.catalog import SSDD
from vitp.datasets.prepare import Piece, Preparation, copy_file, require_folders, save_png
from vitp.errors import DataError
from vitp.images.read import ImageConfig, image_size
from vitp.synthesis.json_lines import Entries, read_json

_CORNERS = 3  # of a polygon, at least


def plan_ssdd(source: Path, out: Path) -> Preparation:
    """Images as they are and masks of ships, {train,test}/{images,masks}/NAME.

    Raises:
        DataError: with file:line: labels are missing or broken, or an image is missing.
    """
    require_folders(
        source, ["annotations"], "expected annotations/train.json and images/train, as in PSeg_SSDD/coco_style"
    )
    pieces: list[Piece] = []
    for part in ("train", "test"):
        file = source / "annotations" / f"{part}.json"
        if not file.is_file():
            raise DataError("does not exist; name the folder of the polygon labels in COCO's form", str(file))
        pieces += _pieces(file, [source / "images" / part, source / "images", source], out / part)
    return Preparation({"name": SSDD.name}, pieces)


def _pieces(file: Path, folders: Sequence[Path], out: Path) -> list[Piece]:
    """One piece an image of a label file."""
    document = read_json(file)
    images, notes = Entries(file, document, "images"), Entries(file, document, "annotations")
    outlines: dict[int, list[list[float]]] = defaultdict(list)
    for i in range(len(notes.items)):
        outlines[notes.whole(i, "image_id")] += _polygons(notes, i)
    ids = [images.whole(i, "id") for i in range(len(images.items))]
    if unknown := set(outlines) - set(ids):
        raise DataError(f"labels the image {min(unknown)}, which 'images' does not list; correct it", str(file))
    pieces = []
    for i, number in enumerate(ids):
        name = images.text(i, "file_name")
        if Path(name).name != name:
            raise images.mistake(i, f"has the file name '{name}'", "write a name without folders")
        image = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if image is None:
            raise images.mistake(i, f"names {name}, which is not in {folders[0]}", "copy the images there")
        pieces.append(_piece(image, outlines[number], out))
    return pieces


def _polygons(notes: Entries, i: int) -> list[list[float]]:
    outline = notes.mapping(i).get("segmentation")
    if not isinstance(outline, list) or not outline:
        raise notes.mistake(i, "has no polygon as 'segmentation'", "take the polygon labels (PSeg_SSDD)")
    found = [notes.numbers(i, "segmentation", polygon) for polygon in outline]
    for polygon in found:
        if len(polygon) < 2 * _CORNERS or len(polygon) % 2:
            raise notes.mistake(i, f"has a polygon of {len(polygon)} numbers", "write x1, y1, x2, y2, x3, y3, ...")
    return found


def _piece(image: Path, outlines: Sequence[Sequence[float]], out: Path) -> Piece:
    def make(files: Sequence[Path]) -> None:
        for file in files:
            if file.parent.name == "images":
                copy_file(image, file)
            else:
                save_png(draw_polygons(outlines, image_size(image, ImageConfig())), file)

    return Piece((out / "images" / image.name, out / "masks" / f"{image.stem}.png"), make)


def draw_polygons(outlines: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Mask [H, W] of an image of (width, height): 1 inside any of the outlines x1, y1, x2, y2, ... in pixels."""
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for outline in outlines:
        draw.polygon(list(zip(outline[::2], outline[1::2], strict=True)), fill=1)
    return np.asarray(mask)
