"""Labelled images: one folder a class, or a list of files with their labels; seeded splits and few-shot draws."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vitp.config import Config
from vitp.errors import DataError
from vitp.images.read import ImageConfig
from vitp.train.draws import Purpose, generator

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".jp2", ".dcm", ".dicom", ".nii", ".nii.gz",
)  # fmt: skip


class LabelledConfig(Config):
    """Labelled images with a training and a test part."""

    format: Literal["folder", "rsicd", "csv"]  # one folder a class; RSICD's captions.json; columns file,label[,split]
    root: Path
    labels: Path | None = None  # the CSV
    exclude: str | None = None  # folder: glob under root of image files to leave out
    test_root: Path | None = None  # folder: where the test images lie; None: a seeded share of every class
    test_fraction: float = Field(default=0.5, gt=0, lt=1)  # ours: few-shot training leaves many images to test on
    split_seed: int = Field(default=0, ge=0)
    images: ImageConfig = ImageConfig()  # bands, scaling, windows and slices of files deeper than 8 bits

    @model_validator(mode="after")
    def _fits(self) -> LabelledConfig:
        if (self.format == "csv") != (self.labels is not None):
            raise ValueError("labels (a CSV with the columns file,label) goes with format: csv, and only with it")
        if self.format != "folder" and (self.test_root is not None or self.exclude is not None):
            raise ValueError("test_root and exclude go with format: folder only")
        return self


@dataclass(frozen=True)
class LabelledImages:
    """Files with class ids; `classes` holds the names by id."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)


def label_images(pairs: Sequence[tuple[Path, str]], classes: Sequence[str] | None = None) -> LabelledImages:
    """Turn (file, class name) pairs into ids.

    Args:
        pairs: the images.
        classes: names by id; None takes the names that occur, sorted.

    Raises:
        DataError: fewer than two classes, or a name that is not among `classes`.
    """
    names = tuple(classes) if classes is not None else tuple(sorted({name for _, name in pairs}))
    ids = {name: i for i, name in enumerate(names)}
    if len(names) < 2:
        raise DataError(f"{len(names)} class among {len(pairs)} images; two are needed to tell apart")
    for file, name in pairs:
        if name not in ids:
            raise DataError(f"class '{name}' is unknown (known: {', '.join(names[:8])} ...)", str(file))
    return LabelledImages(tuple(f for f, _ in pairs), tuple(ids[name] for _, name in pairs), names)


def read_class_folders(root: Path, exclude: str | None = None) -> list[tuple[Path, str]]:
    """(file, class) of every image in the sub-folders of `root`; a sub-folder's name is the class.

    Args:
        root: holds one folder a class; images lie in it at any depth, files directly under `root` do not count.
        exclude: glob under root of image files to leave out (masks beside the images).

    Raises:
        DataError: no such folder, or no image in any sub-folder.
    """
    if not root.is_dir():
        raise DataError("no such folder; set data.root to the folder that holds one folder a class", str(root))
    excluded = set(root.glob(exclude)) if exclude else set()
    pairs = [
        (file, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in sorted(folder.rglob("*"))
        if file.name.lower().endswith(SUFFIXES) and file not in excluded and file.is_file()
    ]
    if not pairs:
        raise DataError(
            "no image in any of its sub-folders; each sub-folder must hold the images of a class", str(root)
        )
    return pairs


def read_label_list(path: Path, root: Path) -> list[tuple[Path, str, str]]:
    """(file, label, split) of a CSV with the columns file, label and, if wanted, split ("" where there is none).

    Args:
        path: the CSV, with a header line.
        root: what the files in it are relative to.

    Raises:
        DataError: with the line, for a missing column, an empty field, a missing image or a file named twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            if not {"file", "label"} <= set(columns):
                raise DataError(f"needs the columns file and label, found: {', '.join(columns) or 'none'}", f"{path}:1")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the list cannot be read ({error})", str(path)) from error
    found: list[tuple[Path, str, str]] = []
    seen: dict[Path, int] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        name, label = (row["file"] or "").strip(), (row["label"] or "").strip()
        if not name or not label:
            raise DataError("file or label is empty; fill it in or delete the line", where)
        file = root / name
        if not file.is_file():
            raise DataError(f"image {file} does not exist; correct the name or the root", where)
        if file in seen:
            raise DataError(f"'{name}' is already named in line {seen[file]}; keep one of them", where)
        seen[file] = number
        found.append((file, label, (row.get("split") or "").strip()))
    if not found:
        raise DataError("names no image", str(path))
    return found


def split_stratified(
    labels: Sequence[int], fraction: float, seed: int, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Cut every class in two: (the rest, about `fraction` of it); both parts get one image at least.

    Args:
        labels: class ids.
        fraction: size of the second part.
        seed: of the draw.
        classes: names by id, for messages.

    Raises:
        DataError: a class of one image cannot be in both parts.
    """
    rest: list[int] = []
    held: list[int] = []
    for label, members in _by_class(labels).items():
        if len(members) < 2:
            name = classes[label] if classes else label
            raise DataError(f"class {name} has a single image, which cannot be in both splits; add another or drop it")
        order = [members[i] for i in generator(seed, Purpose.MIXTURE, 1, label).permutation(len(members))]
        size = min(len(members) - 1, max(1, round(fraction * len(members))))
        held += order[:size]
        rest += order[size:]
    return sorted(rest), sorted(held)


def few_shot(labels: Sequence[int], per_class: int, seed: int, classes: Sequence[str] = ()) -> list[int]:
    """Indices of `per_class` images of every class; with the same seed a smaller draw lies inside a larger one.

    Args:
        labels: class ids.
        per_class: how many of each.
        seed: of the draw.
        classes: names by id, for messages.

    Raises:
        DataError: a class has fewer images.
    """
    chosen: list[int] = []
    for label, members in _by_class(labels).items():
        if len(members) < per_class:
            name = classes[label] if classes else label
            raise DataError(f"class {name} has {len(members)} training images, {per_class} wanted; lower the number")
        order = generator(seed, Purpose.MIXTURE, 2, label).permutation(len(members))
        chosen += [members[i] for i in order[:per_class]]
    return sorted(chosen)


def read_labelled(config: LabelledConfig) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images with common class ids.

    Raises:
        DataError: nothing found, a class missing from the training part, or an image in both parts.
    """
    train: list[tuple[Path, str]]
    test: list[tuple[Path, str]]
    if config.format == "rsicd":
        from vitp.instruction.native import labels

        train, test = labels("rsicd", config.root, "train"), labels("rsicd", config.root, "test")
    elif config.format == "csv":
        assert config.labels is not None
        rows = read_label_list(config.labels, config.root)
        splits = {split for _, _, split in rows}
        if splits == {""}:
            train, test = _halves([(file, name) for file, name, _ in rows], config)
        else:
            if strange := sorted(splits - {"train", "val", "test"}):
                raise DataError(f"split '{strange[0]}' is unknown; write train, val or test", str(config.labels))
            train = [(file, name) for file, name, split in rows if split == "train"]
            test = [(file, name) for file, name, split in rows if split == "test"]
    elif config.test_root is not None:
        train = read_class_folders(config.root, config.exclude)
        test = read_class_folders(config.test_root, config.exclude)
    else:
        train, test = _halves(read_class_folders(config.root, config.exclude), config)
    if not train or not test:
        raise DataError(f"{len(train)} training and {len(test)} test images; both are needed", str(config.root))
    if twice := {file.resolve() for file, _ in train} & {file.resolve() for file, _ in test}:
        raise DataError("is both a training and a test image; keep it in one part", str(min(twice)))
    labelled = label_images(train)
    return labelled, label_images(test, labelled.classes)


def _halves(
    pairs: list[tuple[Path, str]], config: LabelledConfig
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    images = label_images(pairs)
    rest, held = split_stratified(images.labels, config.test_fraction, config.split_seed, images.classes)
    return [pairs[i] for i in rest], [pairs[i] for i in held]


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    return dict(sorted(members.items()))
