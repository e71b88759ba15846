"""DOTA's large images and their oriented boxes cut into patches, by the rules that results on DOTA are compared under.

The rules (mmrotate's splitting tool, which the released config's patches come from): windows of `tile` pixels share `overlap`
with the next, and the last ends flush with the border; an object goes into every window that holds at least 0.7 of its area,
whole, and is marked with difficulty 2 where the window cuts it; what reaches beyond the image at the right and at the bottom
is filled with ImageNet's mean colour; a patch is called ``id__tile__x___y``. Several rates cut windows of tile / rate pixels,
which the recipe's resize brings to one size.

Windows of which the image fills 0.6 or less are dropped, as that tool does, unless none of any rate is fuller: then the
fullest stay. As the last window is flush, windows of one rate are filled alike; so of an image smaller than the windows of a
low rate, those of the other rates remain.

Shape legend: N objects; 4 corners; x to the right, y down, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitp.datasets.benchmark import Benchmark
from vitp.datasets.object_geometry import clip_ring, quad_areas, signed_area, uncrossed
from vitp.datasets.objects_dota import dota_lines
from vitp.datasets.prepare import Piece, Preparation, require_folders, save_lines, save_png
from vitp.datasets.prepare_tiles import Cut, Tile
from vitp.datasets.transforms import FILL
from vitp.errors import DataError
from vitp.images.read import ImageConfig
from vitp.inference.sources import Source, opened, scene_size
from vitp.synthesis.labels import SUFFIXES
from vitp.synthesis.objects import DOTA_FOLDERS

DOTA_CUT = Cut(1024, 200)  # released configuration's patches
MIN_SHARE = 0.7  # of an object's area that a window must hold (mmrotate: iof_thr)
MIN_FILLED = 0.6  # of a window, which the image must fill to more (mmrotate: img_rate_thr)
CUT_DIFFICULTY = 2  # of an object that its window cuts (mmrotate)
_PARTS = ("train", "val")
_CUT = 1 - 1e-9
_ROUNDING = 1e-9  # of a share


@dataclass(frozen=True)
class Labels:
    """The objects of one image."""

    quads: NDArray[np.float64]  # [N, 4, 2], as written
    outlines: NDArray[np.float64]  # [N, 4, 2]: the corners in an order whose sides do not cross
    areas: NDArray[np.float64]  # [N], of the outlines
    names: tuple[str, ...]
    difficulties: tuple[int, ...]

    def kept(self, tile: Tile, side: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which objects go into a window [N], and which lie in it as a whole [N]."""
        shares = shares_in(self.outlines, self.areas, tile, side)
        return shares >= MIN_SHARE, shares == 1

    def lines(self, tile: Tile, side: int) -> list[str]:
        """The lines of a patch of `side` pixels at `tile`, in its pixels."""
        kept, whole = self.kept(tile, side)
        found = []
        for i in np.flatnonzero(kept).tolist():
            corners = (self.quads[i] - (tile.column, tile.row)).ravel()
            difficulty = self.difficulties[i] if whole[i] else CUT_DIFFICULTY
            found.append(f"{' '.join(map(_number, corners.tolist()))} {self.names[i]} {difficulty}")
        return found


def plan_dota(entry: Benchmark, source: Path, out: Path, cut: Cut, rates: Sequence[float] = (1.0,)) -> Preparation:
    """Patches of a version of DOTA: {train,val}/{images,labelTxt}/ID__TILE__X___Y.{png,txt}.

    Args:
        entry: the version.
        source: folders train and val, or, of a sample without parts, folders of images and labels at once.
        out: folder to write.
        cut: windows at rate 1.
        rates: windows of tile / rate pixels each; 0.5 shows twice the area.

    Raises:
        DataError: with file:line: a folder, an image or a label is missing or unfit.
    """
    parts = [part for part in _PARTS if (source / part / "images").is_dir()]
    if not parts:
        require_folders(
            source, ["images"], "expected train/images/P0000.png and train/labelTxt/P0000.txt, val likewise"
        )
    cuts = [Cut(int(cut.tile / rate), int(cut.overlap / rate)) for rate in rates]
    pieces, empty, lost = [], 0, 0
    for part in parts or [""]:
        labels = label_folder(entry, source / part, part)
        for image in _images(source / part / "images"):
            objects = read_labels(labels / f"{image.stem}.txt", image)
            size = scene_size(image)
            empty += int(np.count_nonzero(objects.areas == 0))
            lost += int(np.count_nonzero(~_held(objects, size, cuts) & (objects.areas > 0)))
            pieces.append(_patches(image, objects, out / part, size, cuts))
    if not pieces:
        raise DataError(f"holds no image; expected {'; '.join(entry.layout)}", str(source))
    said = [
        (empty, "without area were left out"),
        (lost, f"are in no patch: no window holds {MIN_SHARE} of their area"),
    ]
    notes = tuple(f"{count:,} objects {what}" for count, what in said if count)
    settings = {"name": entry.name, "tile": cut.tile, "overlap": cut.overlap, "rates": list(rates)}
    return Preparation(settings, pieces, notes=notes)


def label_folder(entry: Benchmark, folder: Path, part: str) -> Path:
    """Where the oriented labels of a part are, as the archives unpack or as users lay them.

    Raises:
        DataError: nowhere.
    """
    version = entry.name.removeprefix("dota_v").replace("_", ".")
    version = version if "." in version else f"{version}.0"
    inner = (f"DOTA-v{version}_{part}", "labelTxt", "")
    usual = [f"labelTxt-v{version}/{name}".rstrip("/") for name in inner] + [f"DOTA-v{version}_{part}"]
    others = [name for name in DOTA_FOLDERS if not name.startswith("labelTxt-")]  # never another version's
    for name in (*usual, *others):
        if any((folder / name).glob("*.txt")):
            return folder / name
    raise DataError(f"no folder holds its labels ({', '.join((*usual, *others))}); unpack them there", str(folder))


def read_labels(file: Path, image: Path) -> Labels:
    """The objects of a DOTA text file.

    Raises:
        DataError: with file:line: it is missing, or a line is no object.
    """
    if not file.is_file():
        raise DataError(f"has no label: {file} does not exist; add it or take the image out", str(image))
    rows = list(dota_lines(file))
    for number, (corners, _, _) in rows:
        if not all(map(math.isfinite, corners)):
            raise DataError("has a corner that is not finite; correct or remove the line", f"{file}:{number}")
    quads = np.array([corners for _, (corners, _, _) in rows], dtype=np.float64).reshape(-1, 4, 2)
    outlines = uncrossed(quads)[0]
    names, difficulties = tuple(name for _, (_, name, _) in rows), tuple(value for _, (*_, value) in rows)
    return Labels(quads, outlines, quad_areas(outlines), names, difficulties)


def shares_in(outlines: NDArray[np.float64], areas: NDArray[np.float64], tile: Tile, side: int) -> NDArray[np.float64]:
    """What of each object's area lies in a window [N]: exactly 1 where all of it does, 0 for objects without area.

    Args:
        outlines: polygons whose sides do not cross [N, 4, 2].
        areas: theirs [N].
        tile: where the window begins.
        side: of the window, pixels.
    """
    shares = np.zeros(len(outlines))
    if not len(outlines):
        return shares
    low, high = outlines.min(1), outlines.max(1)  # [N, 2]
    start = np.array((tile.column, tile.row), dtype=np.float64)
    inside = ((low >= start) & (high <= start + side)).all(1) & (areas > 0)
    near = ((low < start + side) & (high > start)).all(1) & (areas > 0) & ~inside
    shares[inside] = 1.0
    for i in np.flatnonzero(near).tolist():
        part = abs(signed_area(clip_ring(outlines[i] - start, (side, side)))) / areas[i]
        shares[i] = min(part, _CUT)  # rounding must not make an object whole that a window cuts
    return shares


def windows(size: tuple[int, int], cuts: Sequence[Cut]) -> list[tuple[Cut, Tile]]:
    """The windows of all rates of an image of (width, height) that it fills enough."""
    found = [(cut, tile) for cut in cuts for tile in cut.tiles(size)]
    shares = [
        min(size[0] - tile.column, cut.tile) * min(size[1] - tile.row, cut.tile) / cut.tile**2 for cut, tile in found
    ]
    least = min(MIN_FILLED, max(shares) - _ROUNDING)
    return [window for window, share in zip(found, shares, strict=True) if share > least]


def _held(objects: Labels, size: tuple[int, int], cuts: Sequence[Cut]) -> NDArray[np.bool_]:
    """Which objects are in at least one patch [N]."""
    held = np.zeros(len(objects.names), dtype=np.bool_)
    for cut, tile in windows(size, cuts):
        held |= objects.kept(tile, cut.tile)[0]
    return held


def _number(value: float) -> str:
    """With as many decimals as it has, four at most: DOTA's labels have none or one."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


# ------------------------------------------------------------------------------------------------------------- pixels


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("[!.]*") if file.suffix.lower() in SUFFIXES)


def _patches(image: Path, objects: Labels, folder: Path, size: tuple[int, int], cuts: Sequence[Cut]) -> Piece:
    """An image's patches and their labels; pixels are read from top to bottom, a row of windows at a time."""
    places: dict[Path, tuple[Cut, Tile]] = {}
    for cut, tile in windows(size, cuts):
        name = f"{image.stem}__{cut.tile}__{tile.column}___{tile.row}"
        places[folder / "images" / f"{name}.png"] = cut, tile
        places[folder / "labelTxt" / f"{name}.txt"] = cut, tile

    def make(files: Sequence[Path]) -> None:
        pictures = [file for file in files if file.suffix == ".png"]
        for file in files:
            if file.suffix == ".txt":
                cut, tile = places[file]
                save_lines(objects.lines(tile, cut.tile), file)
        if not pictures:
            return
        with opened(image, None, ImageConfig()) as source:
            if (source.width, source.height) != size:
                raise DataError("changed its size while it was read; give the command again", str(image))
            for cut in cuts:
                rows: dict[int, list[Path]] = {}
                for file in pictures:
                    if places[file][0] == cut:
                        rows.setdefault(places[file][1].row, []).append(file)
                for row, strip in _strips(source, sorted(rows), cut.tile):
                    for file in rows[row]:
                        save_png(_patch(strip, places[file][1].column, cut.tile), file)

    return Piece(tuple(places), make)


def _strips(source: Source, rows: Sequence[int], side: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """What begins at each of `rows`, rising, as uint8 [3, h, W], h at most `side`; each row of pixels is read once."""
    held, first = np.zeros((3, 0, source.width), dtype=np.uint8), 0
    for row in rows:
        known = max(row, first + held.shape[1])
        end = min(row + side, source.height)
        held = held[:, row - first :] if row < known else held[:, :0]
        if end > known:
            held = np.concatenate([held, source.rows(known, end - known)[0]], axis=1)
        first = row
        yield row, held


def _patch(strip: NDArray[np.uint8], column: int, side: int) -> NDArray[np.uint8]:
    """A window [side, side, 3] of a strip [3, h, W], filled at the right and at the bottom."""
    part = strip[:, :, column : column + side].transpose(1, 2, 0)
    if part.shape[:2] == (side, side):
        return part
    full = np.empty((side, side, 3), dtype=np.uint8)
    full[:] = FILL  # mmrotate's 104, 116, 124 are the same in blue, green, red
    full[: part.shape[0], : part.shape[1]] = part
    return full
