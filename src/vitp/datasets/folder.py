"""Labelled images: one folder a class, or a list of files with their labels; seeded splits and few-shot draws."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitp.errors import DataError
from vitp.train.draws import Purpose, generator

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".jp2"})


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
        if file.suffix.lower() in SUFFIXES and file not in excluded and file.is_file()
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


def split_stratified(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Cut every class in two: (the larger rest, about `fraction` of it); both parts get one image at least.

    Raises:
        DataError: a class of one image cannot be in both parts.
    """
    rest: list[int] = []
    held: list[int] = []
    for label, members in _by_class(labels).items():
        if len(members) < 2:
            raise DataError(f"class {label} has a single image, which cannot be in both splits; add another or drop it")
        order = [members[i] for i in generator(seed, Purpose.MIXTURE, 1, label).permutation(len(members))]
        size = min(len(members) - 1, max(1, round(fraction * len(members))))
        held += order[:size]
        rest += order[size:]
    return sorted(rest), sorted(held)


def few_shot(labels: Sequence[int], per_class: int, seed: int) -> list[int]:
    """Indices of `per_class` images of every class; with the same seed a smaller draw lies inside a larger one.

    Raises:
        DataError: a class has fewer images.
    """
    chosen: list[int] = []
    for label, members in _by_class(labels).items():
        if len(members) < per_class:
            raise DataError(f"class {label} has {len(members)} training images, {per_class} wanted; lower the number")
        order = generator(seed, Purpose.MIXTURE, 2, label).permutation(len(members))
        chosen += [members[i] for i in order[:per_class]]
    return sorted(chosen)


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    return dict(sorted(members.items()))
