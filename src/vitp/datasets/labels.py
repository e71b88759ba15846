"""What the pixels of a label picture mean: values, palettes or colours to class ids, 255 where nothing is said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from vitp.config import Config
from vitp.errors import DataError
from vitp.images.georeference import is_tiff, read_tiff_labels
from vitp.metrics.segmentation import IGNORE

Colour = tuple[int, int, int]

_MAX_VALUE = 65535  # of a label pixel: 16-bit files are the deepest in use
_UNKNOWN = 254  # in the table of colours; 255 is ignored


class LabelConfig(Config):
    """Classes, and how label pictures encode them: at most one of `labels`, `colours`, `threshold`, `reduce_zero_label`."""

    classes: list[str] | None = Field(default=None, min_length=2)  # names by class id; None: root/classes.json
    labels: dict[int, int] | None = None  # pixel value -> class id, several values to one if wanted; None: value = id
    # class name, or "ignore" -> red, green, blue; one or several
    colours: dict[str, Colour | list[Colour]] | None = None
    colour_tolerance: int = Field(
        default=0, ge=0, le=64
    )  # ours: exact; JPEG or resized labels need some levels a channel
    threshold: int | None = Field(default=None, ge=1, le=_MAX_VALUE)  # two classes: this value and more is class 1
    reduce_zero_label: bool = False  # mmsegmentation: value 0 is ignored, value v is class v - 1 (LoveDA, ADE20K)
    ignore: int | None = Field(default=None, ge=0)  # pixel value that is neither trained on nor scored
    background: int | None = 0  # class id left out of the foreground means; None: there is no background class

    @model_validator(mode="after")
    def _one_meaning(self) -> LabelConfig:
        keys = ("labels", "colours", "threshold", "reduce_zero_label")
        given = [key for key in keys if getattr(self, key) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each say what label pixels mean; keep one")
        for name, colours in (self.colours or {}).items():
            for colour in _listed_colours(colours):
                if not all(0 <= level <= 255 for level in colour):
                    raise ValueError(f"colours: {name} has the levels {list(colour)}; they run from 0 to 255")
        if self.colours is not None and self.ignore is not None:
            raise ValueError(
                "ignore is a pixel value; with colours name the ignored colour as colours: {ignore: [r, g, b]}"
            )
        return self


class Stored(NamedTuple):
    """A label picture as stored: values [H, W], or colours [H, W, 3], and the value the file declares as nodata."""

    values: NDArray[Any]
    nodata: float | None


class LabelReader:
    """Reads label pictures of one data set as class ids."""

    def __init__(self, config: LabelConfig, root: Path, classes: list[str] | None = None) -> None:
        """Prepare the translation.

        Args:
            config: what pixels mean.
            root: of the data set: where classes.json lies, and for messages.
            classes: names where neither the recipe nor a file says any.

        Raises:
            DataError: the classes are unknown, or a class id or colour does not fit them.
        """
        found = config.classes if config.classes is not None else classes
        self.classes = tuple(found if found is not None else read_classes(root))
        self._config, self._root = config, root
        count = len(self.classes)
        if count >= _UNKNOWN:
            raise DataError(f"{count} classes; at most {_UNKNOWN - 1} fit into a mask", str(root))
        if config.background is not None and not 0 <= config.background < count:
            raise DataError(f"background: {config.background} is no class id (0 ... {count - 1})", str(root))
        if config.threshold is not None and count != 2:
            raise DataError(f"threshold makes two classes, and {count} are named", str(root))
        self._table = _value_table(config, count, root)
        self._colours = _colour_ids(config, self.classes, root) if config.colours is not None else None
        self._cube: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cube": None}  # 16 MB that worker processes make themselves

    def read(self, file: Path) -> NDArray[np.uint8]:
        """Class ids [H, W] of a label picture, 255 where ignored.

        Raises:
            DataError: it is damaged, or a value or colour is no class.
        """
        stored = read_stored(file, colours=self._colours is not None)
        if self._colours is not None:
            return self._from_colours(stored.values, file)
        return self.ids(stored.values, file, stored.nodata)

    def merged(self, files: Sequence[Path], size: tuple[int, int], image: Path) -> NDArray[np.uint8]:
        """Class ids [H, W] of an image's label pictures, merged by the higher id (ignored is the highest).

        Args:
            files: its label pictures.
            size: (H, W) of the image.
            image: for messages.

        Raises:
            DataError: as for `read`, and where a picture has another size than the image.
        """
        merged: NDArray[np.uint8] | None = None
        for file in files:
            ids = self.read(file)
            if ids.shape != size:
                raise DataError(
                    f"the mask has {ids.shape[1]} x {ids.shape[0]} pixels and its image {image.name} has "
                    f"{size[1]} x {size[0]}; both must have the same size",
                    str(file),
                )
            merged = ids if merged is None else np.maximum(merged, ids)
        assert merged is not None
        return merged

    def ids(self, values: NDArray[Any], where: Path | str, nodata: float | None = None) -> NDArray[np.uint8]:
        """Class ids of whole numbers of any shape; a declared nodata value that is no class is ignored.

        Raises:
            DataError: a value is no class; `where` names the file.
        """
        hidden = None
        if nodata is not None and not (0 <= nodata <= _MAX_VALUE and self._table[int(nodata)] >= 0):
            hidden = values == nodata
            values = np.where(hidden, np.flatnonzero(self._table >= 0)[0], values)
        lowest, highest = int(values.min()), int(values.max())
        counts = np.bincount(values.ravel(), minlength=1) if lowest >= 0 and highest <= _MAX_VALUE else np.empty(0)
        strange = [int(v) for v in np.flatnonzero(counts) if self._table[v] < 0] if len(counts) else [lowest, highest]
        if strange:
            value = next((v for v in strange if not 0 <= v <= _MAX_VALUE), strange[0])
            known = ", ".join(str(v) for v in np.flatnonzero(self._table >= 0)[:12])
            raise DataError(
                f"pixel value {value} is no class (known values: {known}); map it with labels: {{{value}: CLASS_ID}} "
                f"or leave it out with ignore: {value}",
                str(where),
            )
        if self._config.threshold is not None and highest == 1 < self._config.threshold:
            raise DataError(
                f"holds 0 and 1 only, all below threshold: {self._config.threshold}; write labels: {{0: 0, 1: 1}} instead",
                str(where),
            )
        ids: NDArray[np.uint8] = self._table[values].astype(np.uint8)
        if hidden is not None:
            ids[hidden] = IGNORE
        return ids

    def _from_colours(self, colours: NDArray[Any], file: Path) -> NDArray[np.uint8]:
        """Class ids [H, W] of colours [H, W, 3]."""
        assert self._colours is not None
        if self._cube is None:
            self._cube = _cube(self._colours, self._config.colour_tolerance)
        red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
        ids: NDArray[np.uint8] = self._cube[(red << 16) | (green << 8) | blue]
        strange = ids == _UNKNOWN
        if strange.any():
            row, column = np.unravel_index(int(strange.argmax()), strange.shape)
            raise DataError(
                f"colour {[int(level) for level in colours[row, column]]} at row {row}, column {column} is no class "
                f"({np.count_nonzero(strange)} such pixels); add it to colours, or allow colour_tolerance",
                str(file),
            )
        return ids


def read_classes(root: Path) -> list[str]:
    """Names from root/classes.json: a list, or a mapping of ids to names (or a mapping with either under "classes").

    Raises:
        DataError: the file is missing or holds something else.
    """
    file = root / "classes.json"
    if not root.is_dir():
        raise DataError("no such folder; set data.root to the folder of the data set", str(root))
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("does not exist; list the class names in the recipe (classes: [...])", str(file)) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"is not readable JSON ({error})", str(file)) from error
    if isinstance(found, dict) and "classes" in found:
        found = found["classes"]
    if isinstance(found, dict) and all(str(i) in found for i in range(len(found))):
        found = [found[str(i)] for i in range(len(found))]
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(name, str) for name in found):
        raise DataError('must hold a list of class names, or {"0": name, "1": name, ...} without gaps', str(file))
    return found


def read_stored(file: Path, *, colours: bool = False) -> Stored:
    """A label picture: values [H, W] (palette indices as they are, 1-bit as 0 and 255), or colours [H, W, 3].

    Raises:
        DataError: it is missing or damaged, or holds no whole numbers; without `colours` also where it is coloured.
    """
    try:
        values, nodata = read_tiff_labels(file) if is_tiff(file) else (None, None)
        if values is None:
            with Image.open(file) as picture:
                if colours:
                    return Stored(np.asarray(picture.convert("RGB")), None)
                values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the mask cannot be read ({error}); copy it again", str(file)) from error
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"holds {values.dtype} pixels; masks must hold whole numbers", str(file))
    if colours:
        planes = (
            values
            if values.ndim == 3 and values.shape[2] >= 3
            else np.repeat(values.reshape(*values.shape[:2], -1), 3, 2)
        )
        return Stored(planes[..., :3], nodata)
    return Stored(_one_band(values, file), nodata)


def _one_band(values: NDArray[Any], file: Path) -> NDArray[Any]:
    """Values [H, W] of grey pictures stored as several equal channels; alpha is left out."""
    if values.ndim == 2:
        return values
    colours = values[..., : 1 if values.shape[2] == 2 else 3]
    if (colours != values[..., :1]).any():
        raise DataError(
            "is a colour picture; masks must hold one number a pixel (grey or palette), unless colours: {class: [r, g, b]} "
            "says what the colours mean",
            str(file),
        )
    return values[..., 0]


def _value_table(config: LabelConfig, classes: int, root: Path) -> NDArray[np.int16]:
    """Pixel value -> class id, 255 where ignored, -1 where unknown; one entry for each 16-bit value."""
    table = np.full(_MAX_VALUE + 1, -1, dtype=np.int16)
    if config.threshold is not None:
        table[:] = 0
        table[config.threshold :] = 1
    elif config.reduce_zero_label:
        table[0], table[1 : classes + 1] = IGNORE, np.arange(classes)
    for value, target in (config.labels or {}).items():
        if not 0 <= target < classes or not 0 <= value <= _MAX_VALUE:
            raise DataError(
                f"labels maps pixel value {value} to class id {target}, but there are {classes} classes "
                f"(ids 0 ... {classes - 1})",
                str(root),
            )
        table[value] = target
    if config.labels is None and config.threshold is None and not config.reduce_zero_label:
        table[:classes] = np.arange(classes)
    if config.ignore is not None:
        if config.ignore > _MAX_VALUE:
            raise DataError(f"ignore: {config.ignore} is no pixel value (0 ... {_MAX_VALUE})", str(root))
        table[config.ignore] = IGNORE
    return table


def _listed_colours(colours: Colour | list[Colour]) -> list[Colour]:
    return colours if isinstance(colours, list) else [colours]


def _colour_ids(config: LabelConfig, classes: tuple[str, ...], root: Path) -> dict[Colour, int]:
    """Colour -> class id; refuses colours so close that the tolerance could not tell them apart."""
    known: Mapping[str, int] = {**{name: i for i, name in enumerate(classes)}, "ignore": IGNORE}
    found: dict[Colour, int] = {}
    for name, colours in (config.colours or {}).items():
        if name not in known:
            raise DataError(f"colours names '{name}', which is no class ({', '.join(classes)}) nor 'ignore'", str(root))
        for colour in _listed_colours(colours):
            for other, target in found.items():
                apart = max(abs(a - b) for a, b in zip(colour, other, strict=True))
                if target != known[name] and apart <= 2 * config.colour_tolerance:
                    raise DataError(
                        f"colours {list(colour)} and {list(other)} of two classes lie {apart} levels apart, too close for "
                        f"colour_tolerance: {config.colour_tolerance}",
                        str(root),
                    )
            found[colour] = known[name]
    return found


def _cube(colours: dict[Colour, int], tolerance: int) -> NDArray[np.uint8]:
    """Class id of every 24-bit colour, [2^24]."""
    cube = np.full((256, 256, 256), _UNKNOWN, dtype=np.uint8)
    for (red, green, blue), target in colours.items():
        part = tuple(slice(max(0, level - tolerance), level + tolerance + 1) for level in (red, green, blue))
        cube[part] = target
    return cube.reshape(-1)
