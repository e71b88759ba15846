"""Large images and their labels cut into tiles: iSAID, UAVid, LEVIR-CD, WHU-CD.

Shape legend: H x W pixels of an image, h x w of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitp.datasets.benchmark import Benchmark
from vitp.datasets.catalog import ISAID, LEVIR_CD, UAVID, WHU_CD
from vitp.datasets.labels import LabelConfig, LabelReader
from vitp.datasets.prepare import Piece, Preparation, require_folders, save_png
from vitp.errors import DataError
from vitp.images.georeference import is_tiff
from vitp.images.raster import RasterConfig, Window, raster_size, read_raster
from vitp.images.read import ImageConfig, image_size, read_image
from vitp.inference.grid import flush_starts
from vitp.metrics.segmentation import IGNORE

_SPLITS = ("train", "val", "test")
_PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
_COLOUR_SUFFIX = "_instance_color_RGB"  # of iSAID's labels


class Tile(NamedTuple):
    """A tile's place in its image; it may reach beyond it."""

    row: int
    column: int


@dataclass(frozen=True)
class Cut:
    """How images are cut: squares of `tile` pixels, sharing `overlap` with the next; the last ends flush with the border."""

    tile: int
    overlap: int = 0

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side; an image smaller than a tile gets one, which is padded."""
        return flush_starts(length, self.tile, self.tile - self.overlap)

    def tiles(self, size: tuple[int, int]) -> list[Tile]:
        """All tiles of an image of (width, height)."""
        width, height = size
        return [Tile(row, column) for row in self.starts(height) for column in self.starts(width)]


def plan_isaid(source: Path, out: Path, cut: Cut) -> Preparation:
    """Crops of iSAID's images with class ids: {train,val}/{images,masks}/P0000_ROW_END_COLUMN_END.png.

    Raises:
        DataError: a folder, an image's label, or an image is missing or unfit.
    """
    require_folders(source, [f"{part}/images" for part in _SPLITS[:2]], "expected train/images/P0000.png and so on")
    labels = _colour_reader(ISAID, source)
    pieces = []
    for part in _SPLITS[:2]:
        images = [file for file in sorted((source / part / "images").glob("P*.png")) if "_instance_" not in file.stem]
        for image in images:
            name = f"{image.stem}{_COLOUR_SUFFIX}.png"
            mask = _one_of(image, [source / part / "Semantic_masks/images" / name, image.with_name(name)])
            pieces.append(_masked_piece(image, mask, out / part, labels, cut.tiles(_size(image)), cut.tile))
    return _plan(ISAID, cut, pieces, source)


def plan_uavid(source: Path, out: Path, cut: Cut) -> Preparation:
    """Tiles of UAVid's training frames as GeoSeg cuts them, and whole validation frames, all with class ids.

    The last two tile heights of rows, columns padded to a multiple of the tile: eight tiles of 1,024 of a 4K frame.

    Raises:
        DataError: a folder or a frame's label is missing, or a frame is lower than two tiles.
    """
    folders = {"train": "uavid_train", "val": "uavid_val"}
    require_folders(source, list(folders.values()), "expected uavid_train/seq1/Images/000000.png and so on")
    labels = _colour_reader(UAVID, source)
    pieces = []
    for part, folder in folders.items():
        for image in sorted((source / folder).glob("seq*/Images/*.png")):
            mask = _one_of(image, [image.parents[1] / "Labels" / image.name])
            name = f"{image.parents[1].name}_{image.stem}"
            width, height = _size(image)
            if part == "val":
                pieces.append(_whole_piece(image, mask, out / part, labels, name))
                continue
            top = height - 2 * cut.tile
            if top < 0:
                raise DataError(f"is {height} pixels high, less than two tiles of {cut.tile}", str(image))
            tiles = [Tile(top + row, column) for row in (0, cut.tile) for column in range(0, width, cut.tile)]
            pieces.append(_masked_piece(image, mask, out / part, labels, tiles, cut.tile, name))
    return _plan(UAVID, cut, pieces, source)


def plan_levir(source: Path, out: Path, cut: Cut) -> Preparation:
    """Tiles of LEVIR-CD in {A,B,label}/NAME_ROW_COLUMN.png, and list/{train,val,test}.txt.

    Raises:
        DataError: a folder, a second date or a label is missing.
    """
    require_folders(source, [f"{part}/A" for part in _SPLITS], "expected train/A, train/B, train/label and so on")
    pieces, lists = [], {}
    for part in _SPLITS:
        names: list[str] = []
        for first in sorted((source / part / "A").glob("*.png")):
            dates = _dates(first, source / part, "label")
            tiles = [(tile, f"{first.stem}_{tile.row:04}_{tile.column:04}.png") for tile in cut.tiles(_size(first))]
            names += [name for _, name in tiles]
            pieces.append(_pair_piece(dates, {key: out / key for key in dates}, tiles, cut.tile))
        if not names:
            raise DataError(
                f"holds no pair; the {part} part is missing, without which the lists would be wrong", str(source / part)
            )
        lists[out / "list" / f"{part}.txt"] = "".join(f"{name}\n" for name in names)
    return _plan(LEVIR_CD, cut, pieces, source, lists)


def plan_whu(source: Path, out: Path, cut: Cut) -> Preparation:
    """Tiles of the whole images of WHU-CD in {train,test}/{A,B,OUT}/NAME_ROW_COLUMN.png.

    Raises:
        DataError: a folder, a second date or a label is missing.
    """
    parts = ("train", "test")
    require_folders(source, [f"{part}/A" for part in parts], "expected train/A, train/B, train/OUT and so on")
    pieces = []
    for part in parts:
        for first in sorted(file for file in (source / part / "A").glob("*.*") if _is_picture(file)):
            dates = _dates(first, source / part, "OUT")
            tiles = [(tile, f"{first.stem}_{tile.row}_{tile.column}.png") for tile in cut.tiles(_size(first))]
            pieces.append(_pair_piece(dates, {key: out / part / key for key in dates}, tiles, cut.tile))
    return _plan(WHU_CD, cut, pieces, source)


TILED: dict[str, tuple[Callable[[Path, Path, Cut], Preparation], Cut]] = {
    "isaid": (plan_isaid, Cut(896, 384)),  # released configuration's patches
    "uavid": (plan_uavid, Cut(1024)),  # released configuration's tiles
    "levir_cd": (plan_levir, Cut(256)),  # likewise
    "whu_cd": (plan_whu, Cut(256)),  # likewise
}


# ----------------------------------------------------------------------------------------------------- one image


class _Picture:
    """A picture that is read whole, or of TIFFs only where it is cut."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._whole = None if is_tiff(file) else read_image(file, ImageConfig()).permute(1, 2, 0).numpy()

    def cut(self, tile: Tile, side: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """What lies inside the picture of (width, height): [h, w, 3]."""
        height, width = min(side, size[1] - tile.row), min(side, size[0] - tile.column)
        if self._whole is None:
            window = Window(tile.row, tile.column, height, width)
            return read_raster(self._file, RasterConfig(), window).pixels.transpose(1, 2, 0)
        found: NDArray[np.uint8] = self._whole[tile.row : tile.row + height, tile.column : tile.column + width]
        return found


def _masked_piece(
    image: Path,
    mask: Path,
    folder: Path,
    labels: LabelReader,
    tiles: Sequence[Tile],
    side: int,
    name: str | None = None,
) -> Piece:
    """An image's tiles with class ids in folder/images and folder/masks; what lies outside is black and ignored."""
    stem = name or image.stem
    places: dict[Path, tuple[Tile, bool]] = {}
    for tile in tiles:
        if name is None:
            text = (
                f"{stem}_{tile.row}_{tile.row + side}_{tile.column}_{tile.column + side}.png"  # mmsegmentation's names
            )
        else:
            text = f"{stem}_{tile.row}_{tile.column}.png"
        places[folder / "images" / text] = tile, False
        places[folder / "masks" / text] = tile, True

    def make(files: Sequence[Path]) -> None:
        size = _size(image)
        ids = labels.merged([mask], (size[1], size[0]), image)
        picture = _Picture(image)
        for file in files:
            tile, is_mask = places[file]
            if is_mask:
                part = ids[tile.row : tile.row + side, tile.column : tile.column + side]
                save_png(_padded(part, side, IGNORE), file)
            else:
                save_png(_padded(picture.cut(tile, side, size), side, 0), file)

    return Piece(tuple(places), make)


def _whole_piece(image: Path, mask: Path, folder: Path, labels: LabelReader, name: str) -> Piece:
    """An image as it is, with class ids."""

    def make(files: Sequence[Path]) -> None:
        size = _size(image)
        for file in files:
            if file.parent.name == "masks":
                save_png(labels.merged([mask], (size[1], size[0]), image), file)
            else:
                save_png(read_image(image, ImageConfig()).permute(1, 2, 0).numpy(), file)

    return Piece((folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"), make)


def _pair_piece(
    dates: dict[str, Path], folders: dict[str, Path], tiles: Sequence[tuple[Tile, str]], side: int
) -> Piece:
    """Tiles of two dates and their changes; `dates` and `folders` by the same names, the label's last."""
    label = list(dates)[-1]
    places = {folders[key] / name: (key, tile) for tile, name in tiles for key in dates}

    def make(files: Sequence[Path]) -> None:
        first, *others = dates.values()
        size = _size(first)
        for other in others:
            if (found := _size(other)) != size:
                raise DataError(
                    f"has {found[0]} x {found[1]} pixels and the first date, {first}, {size[0]} x {size[1]}; both must "
                    "show the same area",
                    str(other),
                )
        for key, file in dates.items():
            wanted = [place for place in files if places[place][0] == key]
            picture = _Picture(file) if wanted else None
            for place in wanted:
                assert picture is not None
                pixels = picture.cut(places[place][1], side, size)
                save_png(_padded(pixels[..., 0] if key == label else pixels, side, 0), place)

    return Piece(tuple(places), make)


def _padded(pixels: NDArray[np.uint8], side: int, value: int) -> NDArray[np.uint8]:
    """[h, w] or [h, w, 3] on a square of `side`, filled at the right and at the bottom."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    full = np.full((side, side, *pixels.shape[2:]), value, dtype=np.uint8)
    full[:height, :width] = pixels
    return full


# ----------------------------------------------------------------------------------------------------- the source


def _plan(
    entry: Benchmark, cut: Cut, pieces: Sequence[Piece], source: Path, lists: dict[Path, str] | None = None
) -> Preparation:
    if not pieces:
        raise DataError(f"holds no image; expected {'; '.join(entry.layout)}", str(source))
    settings = {"name": entry.name, "tile": cut.tile, "overlap": cut.overlap}
    return Preparation(settings, pieces, lists or {})


def _colour_reader(entry: Benchmark, source: Path) -> LabelReader:
    """Labels whose colours are the classes of an entry."""
    colours = {name: list(colour) for name, colour in entry.colours}
    config = LabelConfig.model_validate({"classes": list(colours), "colours": colours, "background": None})
    return LabelReader(config, source)


def _dates(first: Path, folder: Path, label: str) -> dict[str, Path]:
    """The files of a pair: A, B and its label, of the same stem."""
    found = {"A": first}
    for key in ("B", label):
        others = sorted(file for file in (folder / key).glob("*.*") if file.stem == first.stem and _is_picture(file))
        found[key] = _one_of(first, [folder / key / first.name, *others])
    return found


def _is_picture(file: Path) -> bool:
    """Whether it is neither hidden nor a file that map tools lay beside a picture."""
    return not file.name.startswith(".") and file.suffix.lower() in _PICTURES


def _one_of(image: Path, places: Sequence[Path]) -> Path:
    """The first file that is there."""
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"has no label or second date: {places[0]} does not exist; add it or take the image out", str(image)
    )


def _size(file: Path) -> tuple[int, int]:
    """(width, height)."""
    return raster_size(file) if is_tiff(file) else image_size(file, ImageConfig())
