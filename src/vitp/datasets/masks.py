"""Images with one or more mask files each: where the masks lie, what their pixel values mean, how the set is split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from vitp.config import Config
from vitp.errors import DataError
from vitp.images.read import ImageConfig, image_size, read_image
from vitp.metrics.segmentation import IGNORE
from vitp.train.draws import Purpose, generator

Split = Literal["train", "test"]
_PLACES = {"stem", "name", "folder", "parent", "above"}
_MAX_VALUE = 65535  # of a mask pixel: 16-bit files are the deepest in use


class MaskFolderConfig(Config):
    """A segmentation data set in a folder.

    `masks` is a path under `root` made from the image's: {name} and {stem} (without suffix), its {folder} under root,
    the last part of that folder {parent}, and the folder above it {above}. It may hold * for several masks an image:
    ``masks/{stem}.png``, ``{folder}/{stem}_mask*.png``, ``{above}/labels/{stem}.tif``.
    """

    root: Path
    images: str  # glob under root, e.g. images/*.png
    masks: str  # see above
    exclude: str | None = None  # glob under root of files that `images` finds but that are no images
    reader: ImageConfig = ImageConfig()  # bands, scaling, windows and slices of images deeper than 8 bits
    classes: list[str] | None = Field(default=None, min_length=2)  # names by class id; None: root/classes.json
    labels: dict[int, int] | None = None  # pixel value -> class id; None: the value is the id
    ignore: int | None = Field(default=None, ge=0)  # pixel value that is neither trained on nor scored
    background: int | None = 0  # class id left out of the foreground means; None: there is no background class
    test_images: str | None = None  # glob under root of the test images
    test_list: Path | None = None  # or a text file, one image a line: path under root, name or stem
    train_list: Path | None = None  # likewise, beside test_list; None: all the others
    test_fraction: float = Field(default=0.2, gt=0, lt=1)  # without either: a seeded share (customary)
    group: str | None = None  # regular expression; its first group (patient, scene) is never split over train and test
    train: int | None = Field(default=None, ge=1)  # few-shot: so many training images; a smaller set lies in a larger
    split_seed: int = Field(default=0, ge=0)

    @field_validator("images", "masks", "exclude", "test_images")
    @classmethod
    def _below_root(cls, pattern: str | None) -> str | None:
        if pattern is not None and (not pattern or pattern.startswith("/")):
            raise ValueError(f"must be a pattern relative to root, got '{pattern}'")
        return pattern

    @field_validator("masks")
    @classmethod
    def _template(cls, masks: str) -> str:
        found = set(re.findall(r"{(\w*)}", masks))
        if not found & {"stem", "name"} or found - _PLACES:
            known = ", ".join(f"{{{place}}}" for place in sorted(_PLACES))
            raise ValueError(f"must hold {{stem}} or {{name}}, and no place but {known}; got '{masks}'")
        return masks

    @field_validator("group")
    @classmethod
    def _pattern(cls, group: str | None) -> str | None:
        try:
            if group is not None and re.compile(group).groups < 1:
                raise ValueError(f"needs a group in parentheses, as in (patient\\d+): '{group}'")
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error}): '{group}'") from error
        return group

    @model_validator(mode="after")
    def _lists(self) -> MaskFolderConfig:
        if self.train_list is not None and self.test_list is None:
            raise ValueError("train_list is given without test_list; name both, or test_list alone")
        if self.test_images is not None and self.test_list is not None:
            raise ValueError("test_images and test_list both say what the test images are; keep one")
        return self


@dataclass(frozen=True)
class MaskItem:
    """One image with its mask files; several masks are merged by the higher class id."""

    image: Path
    masks: tuple[Path, ...]
    group: str


@dataclass(frozen=True)
class MaskReport:
    """What `MaskFolder.check` counted: labelled pixels per class."""

    train: dict[str, int]
    test: dict[str, int]

    def missing(self, split: Split) -> list[str]:
        """Classes without a pixel in that split."""
        return [name for name, count in (self.train if split == "train" else self.test).items() if not count]


class MaskFolder:
    """The images of a `MaskFolderConfig`, found and split; pixels are read on demand.

    `train` and `test` hold indices into `items`.
    """

    def __init__(self, config: MaskFolderConfig) -> None:
        """Find every image and its masks.

        Raises:
            DataError: no image, an image without mask, a list that names unknown images, or a group on both sides.
        """
        self.config = config
        self.classes = tuple(config.classes if config.classes is not None else _read_classes(config.root))
        self._table = _value_table(config, len(self.classes))
        self.items = tuple(self._find(image) for image in _find_images(config))
        self.train, self.test = _split(self.items, config)

    def __len__(self) -> int:
        return len(self.items)

    def indices(self, split: Split) -> list[int]:
        """The images of a split."""
        return self.train if split == "train" else self.test

    def _find(self, image: Path) -> MaskItem:
        root = self.config.root
        relative = image.relative_to(root)
        places = {
            "stem": image.stem,
            "name": image.name,
            "folder": relative.parent.as_posix(),
            "parent": relative.parent.name,
            "above": relative.parent.parent.as_posix(),
        }
        exact = self.config.masks.format(**places)
        found = [root / exact] if (root / exact).is_file() else []
        if not found:
            pattern = self.config.masks.format(**{key: escape(value) for key, value in places.items()})
            found = sorted(file for file in root.glob(pattern) if file.is_file() and file != image)
        if not found:
            raise DataError(
                f"has no mask: {root / exact} does not exist; add it, or exclude the image (exclude: a glob)",
                str(image),
            )
        group = relative.as_posix()
        if self.config.group is not None:
            match = re.search(self.config.group, group)
            if match is None or match.group(1) is None:
                raise DataError(f"does not match group '{self.config.group}'; widen the expression", str(image))
            group = match.group(1)
        return MaskItem(image, tuple(found), group)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3, H, W] and class ids uint8 [H, W] (255: ignored).

        Raises:
            DataError: a file is damaged, sizes differ, or a pixel value is no class.
        """
        item = self.items[index]
        image = read_image(item.image, self.config.reader)
        return image, self.read_mask(index, (image.shape[1], image.shape[2]))

    def read_mask(self, index: int, size: tuple[int, int] | None = None) -> Tensor:
        """Class ids uint8 [H, W] of one image, all its mask files merged by the higher id (255: ignored).

        Args:
            index: into `items`.
            size: (H, W) of the image; None reads it from the image's header.

        Raises:
            DataError: as for `read`.
        """
        item = self.items[index]
        if size is None:
            width, height = image_size(item.image, self.config.reader)
            size = height, width
        merged: NDArray[np.uint8] | None = None
        for file in item.masks:
            values = _read_values(file)
            if values.shape != size:
                raise DataError(
                    f"the mask has {values.shape[1]} x {values.shape[0]} pixels and its image {item.image.name} has "
                    f"{size[1]} x {size[0]}; both must have the same size",
                    str(file),
                )
            ids = self._ids(values, file)
            merged = ids if merged is None else np.maximum(merged, ids)
        assert merged is not None
        return torch.from_numpy(merged)

    def _ids(self, values: NDArray[Any], file: Path) -> NDArray[np.uint8]:
        lowest, highest = int(values.min()), int(values.max())
        counts = np.bincount(values.ravel(), minlength=1) if lowest >= 0 and highest <= _MAX_VALUE else np.empty(0)
        strange = [int(v) for v in np.flatnonzero(counts) if self._table[v] < 0] if len(counts) else [lowest, highest]
        if strange:
            value = strange[0]
            known = ", ".join(str(v) for v in np.flatnonzero(self._table >= 0)[:12])
            raise DataError(
                f"pixel value {value} is no class (known values: {known}); map it with labels: {{{value}: CLASS_ID}} "
                f"or leave it out with ignore: {value}",
                str(file),
            )
        ids: NDArray[np.uint8] = self._table[values].astype(np.uint8)
        return ids

    def check(self, threads: int = 4) -> MaskReport:
        """Read every mask of both splits once and count its pixels by class.

        Raises:
            DataError: the first mask that cannot be used.
        """
        counts: dict[str, dict[str, int]] = {}
        for split, indices in (("train", self.train), ("test", self.test)):
            with ThreadPoolExecutor(threads) as pool:
                each = pool.map(lambda i: np.bincount(self.read_mask(i).numpy().ravel(), minlength=256), indices)
                total = sum(each, start=np.zeros(256, dtype=np.int64))
            counts[split] = {name: int(total[i]) for i, name in enumerate(self.classes)}
        return MaskReport(**counts)


def _read_classes(root: Path) -> list[str]:
    """Names from root/classes.json: a list, or a mapping of ids to names (or a mapping with either under "classes")."""
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


def _value_table(config: MaskFolderConfig, classes: int) -> NDArray[np.int16]:
    """Pixel value -> class id, 255 where ignored, -1 where unknown; one entry for each 16-bit value."""
    if classes > IGNORE:
        raise DataError(f"{classes} classes; at most {IGNORE} fit into a mask", str(config.root))
    labels = config.labels if config.labels is not None else {i: i for i in range(classes)}
    table = np.full(_MAX_VALUE + 1, -1, dtype=np.int16)
    for value, target in labels.items():
        if not 0 <= target < classes or not 0 <= value <= _MAX_VALUE:
            raise DataError(
                f"labels maps pixel value {value} to class id {target}, but there are {classes} classes "
                f"(ids 0 ... {classes - 1})",
                str(config.root),
            )
        table[value] = target
    if config.ignore is not None:
        if config.ignore > _MAX_VALUE:
            raise DataError(f"ignore: {config.ignore} is no pixel value (0 ... {_MAX_VALUE})", str(config.root))
        table[config.ignore] = IGNORE
    if config.background is not None and not 0 <= config.background < classes:
        raise DataError(f"background: {config.background} is no class id (0 ... {classes - 1})", str(config.root))
    return table


def _find_images(config: MaskFolderConfig) -> list[Path]:
    root = config.root
    if not root.is_dir():
        raise DataError("no such folder; set data.root to the folder of the data set", str(root))
    excluded = set(root.glob(config.exclude)) if config.exclude else set()
    found = sorted(p for p in root.glob(config.images) if p.is_file() and p not in excluded)
    if not found:
        raise DataError(f"no image matches '{config.images}'; correct the pattern or the folder", str(root))
    return found


def _read_values(file: Path) -> NDArray[Any]:
    """Pixel values [H, W] of a mask file: palette indices as they are, 1-bit as 0 and 255."""
    try:
        with Image.open(file) as picture:
            values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the mask cannot be read ({error}); copy it again", str(file)) from error
    if values.ndim == 3:
        grey = values[..., :1]
        colours = values[..., : min(3, values.shape[2])]
        if values.shape[2] == 2:
            colours = grey
        if (colours != grey).any():
            raise DataError("is a colour picture; masks must hold one number a pixel (grey or palette)", str(file))
        values = values[..., 0]
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"holds {values.dtype} pixels; masks must hold whole numbers", str(file))
    return values


def _split(items: Sequence[MaskItem], config: MaskFolderConfig) -> tuple[list[int], list[int]]:
    """Indices of training and test images; no image and no group stands in both."""
    order = generator(config.split_seed, Purpose.MIXTURE, 0).permutation(len(items)).tolist()
    if config.test_list is not None:
        held = set(_listed(config.test_list, items, config.root))
    elif config.test_images is not None:
        files = set(config.root.glob(config.test_images))
        held = {i for i in order if items[i].image in files}
    else:
        held = _draw_groups([items[i].group for i in order], config.test_fraction, items)
    others = set(order) - held
    wanted = others if config.train_list is None else set(_listed(config.train_list, items, config.root))
    test, train = sorted(held), [i for i in order if i in wanted]
    shared = {items[i].group for i in train} & {items[i].group for i in test}
    if shared:
        raise DataError(
            f"'{min(shared)}' is in both the training and the test images; keep it in one", str(config.root)
        )
    if not train or not test:
        raise DataError(
            f"{len(items)} images leave {len(train)} for training, {len(test)} for testing", str(config.root)
        )
    if config.train is not None:
        if config.train > len(train):
            raise DataError(f"train: {config.train} images wanted, {len(train)} there; lower it", str(config.root))
        train = train[: config.train]
    return sorted(train), test


def _draw_groups(groups: Sequence[str], fraction: float, items: Sequence[MaskItem]) -> set[int]:
    """Images of the first groups in drawn order that together make up `fraction`; one group at least stays."""
    members: dict[str, list[int]] = {group: [] for group in groups}
    for i, item in enumerate(items):
        members[item.group].append(i)
    held: set[int] = set()
    for group in list(members)[:-1]:
        if len(held) >= max(1, round(fraction * len(items))):
            break
        held.update(members[group])
    return held


def _listed(file: Path, items: Iterable[MaskItem], root: Path) -> list[int]:
    """Indices of the images a list names."""
    by_name: dict[str, set[int]] = {}
    for i, item in enumerate(items):
        relative = item.image.relative_to(root)
        for name in {relative.as_posix(), relative.name, relative.stem}:
            by_name.setdefault(name, set()).add(i)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list cannot be read ({error})", str(file)) from error
    found: dict[int, None] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        hits = by_name.get(name, set())
        if len(hits) != 1:
            what = "names no image of the data set" if not hits else f"could be any of {len(hits)} images"
            raise DataError(f"'{name}' {what}; write its path under {root}", f"{file}:{number}")
        found[next(iter(hits))] = None
    return sorted(found)
