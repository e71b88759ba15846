"""What every reader turns a data set into, and what all readers refuse in the same words."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vitp.errors import DataError
from vitp.synthesis.config import Format

Corners = tuple[float, float, float, float, float, float, float, float]  # x1, y1, ..., x4, y4 in pixels
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
MAX_LABEL_BYTES = 2 << 30  # ours: COCO train2017 has 470 MB
_OUTSIDE = 0.005  # share of a side by which annotators' corners may leave the image and still be meant to lie in it


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """One object. `box` is x1, y1, x2, y2 in pixels, clipped to the image; `area` in square pixels of its outline.

    `doubtful`: marked difficult, crowded or truncated, or cut off by the image's border. It is there, but it is not
    counted, and no question hangs on it.
    """

    label: str
    box: tuple[float, float, float, float]
    area: float
    doubtful: bool = False
    quad: Corners | None = None


@dataclass(frozen=True)
class LabelledImage:
    """One image (or a pair) with all that its labels say; what a format does not know is empty.

    `images` are paths relative to the root, with forward slashes; `source` is the label file, relative to the root
    where it lies below it. `masks` are files of pixel values, read when the questions are made.
    """

    images: tuple[str, ...]
    size: tuple[int, int]  # width, height in pixels
    source: str
    objects: tuple[LabelledObject, ...] = ()
    label: str | None = None
    captions: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The key of all that is random about this image."""
        return self.images[0]


@dataclass
class LabelledSet:
    """A whole data set: images by name, the class names that its labels use, and what was left out and why."""

    format: Format
    images: list[LabelledImage] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> images
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first image
    noted: Counter[str] = field(default_factory=Counter)  # what was clipped or not used, by kind -> objects

    def skip(self, reason: str, name: str) -> None:
        """Count an image that is left out."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, name)


def below(root: Path, name: str, where: str) -> Path:
    """The file of an image that a label names; it need not exist.

    Raises:
        DataError: the name leads out of the root, or can be no file's name.
    """
    if not name.strip() or "\0" in name or "\n" in name or "\r" in name:
        raise DataError(f"the image name {name!r} is no file name; correct it", where)
    path = root / name
    if os.path.commonpath([os.path.realpath(root), os.path.realpath(path)]) != os.path.realpath(root):
        raise DataError(f"the image '{name}' leads out of {root}; move it below, or choose a higher root", where)
    return path


def relative(path: Path, root: Path) -> str:
    """A path as the output names it: relative to the root where it lies below it, with forward slashes."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def find_size(path: Path, found: LabelledSet, name: str) -> tuple[int, int] | None:
    """(width, height) from the header; None, and counted as skipped, where the image cannot be used."""
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x0112, 1) not in (0, 1)
            size: tuple[int, int] = picture.size
    except FileNotFoundError:
        found.skip("missing", name)
        return None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        found.skip("unreadable", name)
        return None
    if turned:  # labels were drawn on the stored or on the upright picture; nobody can tell which
        found.skip("stored turned (EXIF)", name)
        return None
    return size


def check_size(stated: tuple[int, int], size: tuple[int, int], where: str) -> None:
    """Refuse labels that were made for an image of another size."""
    if stated != size:
        found = f"the labels are for {stated[0]} x {stated[1]} pixels and the image has {size[0]} x {size[1]}"
        raise DataError(f"{found}; label that image, or correct width and height", where)


def make_object(
    label: str,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    where: str,
    *,
    doubtful: bool = False,
    area: float | None = None,
    quad: Corners | None = None,
) -> tuple[LabelledObject, str]:
    """An object with its box clipped to the image, and what was clipped ("" for nothing).

    Args:
        label: class name.
        box: x1, y1, x2, y2 in pixels.
        size: width and height of the image.
        where: ``file:line`` of the label.
        doubtful: the labels call it difficult, truncated or a crowd.
        area: of its outline, if the labels know better than the box.
        quad: its four corners in order.

    Raises:
        DataError: numbers that are not finite, a box without area, or one that lies outside the image.
    """
    x1, y1, x2, y2 = box
    width, height = size
    shown = ", ".join(f"{value:g}" for value in box)
    if not all(map(math.isfinite, (*box, *(quad or ())))):
        raise DataError(f"the box ({shown}) holds a number that is not finite; correct it", where)
    if x2 <= x1 or y2 <= y1:
        fix = "write a positive width and height, or remove the object"
        raise DataError(f"the box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) has no area; {fix}", where)
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        found = f"the box ({shown}) lies outside the {width} x {height} image"
        raise DataError(f"{found}; correct it (pixels, x to the right, y down), or remove the object", where)
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    # Within a pixel of the border nobody can say whether the object ends there or goes on outside.
    cut = x1 <= 1 or y1 <= 1 or x2 >= width - 1 or y2 >= height - 1
    kept = quad
    if quad is not None and not _fits(quad, size):
        kept = None
    note = "quads that leave the image" if kept is not quad else "boxes clipped to the image" if inside != box else ""
    drawn = area if area is not None and area > 0 else (x2 - x1) * (y2 - y1)
    return LabelledObject(label, inside, drawn, doubtful or cut, kept), note


def _fits(quad: Corners, size: tuple[int, int]) -> bool:
    """Whether all corners lie in the image, but for the little by which annotators miss its border."""
    slack = tuple(max(2.0, _OUTSIDE * side) for side in size)
    pairs = zip(quad, (*size, *size, *size, *size), (*slack, *slack, *slack, *slack), strict=True)
    return all(-room <= value <= side + room for value, side, room in pairs)


def polygon_area(points: Iterable[float]) -> float:
    """Area of a polygon x1, y1, x2, y2, ... (shoelace); positive where it turns clockwise with y down."""
    flat = list(points)
    xs, ys = flat[0::2], flat[1::2]
    return sum(x * v - u * y for x, y, u, v in zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)) / 2


def read_label_text(path: Path) -> str:
    """A label file as text (UTF-8, with or without a byte order mark).

    Raises:
        DataError: missing, too large, or not UTF-8 (with the line).
    """
    try:
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise DataError(f"has more than {MAX_LABEL_BYTES >> 30} GB; split it", str(path))
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); correct the path or its permissions", str(path)) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("is not UTF-8 text; save it as UTF-8", f"{path}:{line}") from error
