"""What the DOTA evaluation server takes, and the way there from the patches a model saw.

A submission is a zip of one text file a class at its top: ``Task1_<class>.txt`` with a line ``image score x1 y1 x2 y2 x3
y3 x4 y4`` for each rotated box, or ``Task2_<class>.txt`` with ``image score x1 y1 x2 y2`` for each upright one, coordinates
with two decimals, files of classes without detections empty (captain-whu.github.io/DOTA/tasks.html). Patches are
named as by the splitting tools, ``P0006__1024__824___0``: the image, the window's side, its left and its top.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from vitp.boxes.formats import from_quads, from_xyxy, to_dota, to_xyxy
from vitp.boxes.nms import nms, rotated_nms
from vitp.boxes.objects import Detections, joined
from vitp.errors import DataError
from vitp.files import write_atomic

Task = Literal[1, 2]

MERGE_IOU = 0.1  # rotated NMS over the patches of an image: released configs of the DOTA benchmarks
_PATCH = re.compile(r"(?P<image>.+)__\d+__(?P<left>-?\d+)___(?P<top>-?\d+)")
_NUMBERS = {1: 8, 2: 4}
_DATE = (1980, 1, 1, 0, 0, 0)  # of files in the zip, so that the same detections give the same bytes


class Written(NamedTuple):
    """What a submission holds."""

    images: int
    lines: int
    dropped: int  # detections left out as a number of theirs is not finite


def task_of(*, rotated: bool) -> Task:
    """The task of a model's boxes: 1 of rotated ones, 2 of upright ones."""
    return 1 if rotated else 2


def image_names(images: Sequence[Path], classes: Sequence[str]) -> list[str]:
    """What images are called in a submission: their file's name without its last suffix.

    Raises:
        DataError: two have one name, a name has a blank, or a class's cannot name a file.
    """
    _check_classes(classes)
    known: dict[str, Path] = {}
    for image in images:
        _check_name(image.stem, str(image))
        other = known.setdefault(image.stem, image)
        if other is not image:
            raise DataError(
                f"has the name of {other}, and a submission tells images by their names; rename it", str(image)
            )
    return list(known)


def write_submission(
    path: Path, found: Iterable[tuple[str, Detections]], classes: Sequence[str], *, task: Task = 1
) -> Written:
    """Write the zip, atomically; the same detections give the same bytes.

    Args:
        path: the zip.
        found: each image's name, and what was found in all of it (of patches: `merge_patches` first).
        classes: names by class id, as the server spells them.
        task: 1: rotated boxes (upright ones are written by their corners); 2: upright boxes (of rotated ones what
            encloses them).

    Raises:
        DataError: an image comes twice or has a blank in its name, a label lies outside the classes, or a class name
            cannot name a file.
        OutputError: no space left, or the place is not writable.
    """
    _check_classes(classes)
    texts, seen, dropped = [bytearray() for _ in classes], set[str](), 0
    for image, detections in found:
        if image in seen:
            raise DataError("came before; merge the patches of an image first, and give each image once", image)
        _check_name(image, image)
        seen.add(image)
        finite = detections.scores.isfinite() & detections.boxes.isfinite().all(-1)
        dropped += len(finite) - int(finite.sum())
        _append(texts, image, detections.take(finite), task)
    write_atomic(path, lambda temporary: _zip(temporary, [f"Task{task}_{name}.txt" for name in classes], texts))
    return Written(len(seen), sum(text.count(b"\n") for text in texts), dropped)


def read_submission(path: Path, classes: Sequence[str], *, task: Task = 1) -> dict[str, Detections]:
    """The detections of a zip by image, each image's by falling score; rotated boxes in the form le90 for task 1.

    Raises:
        DataError: no zip, a file missing, in a folder or of an unknown class, or a line that cannot be read
            (``zip:file:line``).
    """
    numbers: dict[str, list[list[float]]] = {}
    labels: dict[str, list[int]] = {}
    wanted = {f"Task{task}_{name}.txt": label for label, name in enumerate(classes)}
    try:
        with zipfile.ZipFile(path) as archive:
            held = set(archive.namelist())
            for name in sorted(held - wanted.keys()):
                raise DataError(
                    f"holds '{name}'; a submission holds Task{task}_<class>.txt of known classes alone", str(path)
                )
            for name, label in wanted.items():
                if name not in held:
                    raise DataError(f"holds no {name}; write one file a class, empty where nothing is found", str(path))
                text = archive.read(name).decode("utf-8")
                for number, line in enumerate(text.splitlines(), 1):
                    if line.strip():
                        image, *values = _line(line, _NUMBERS[task], f"{path}:{name}:{number}")
                        numbers.setdefault(str(image), []).append([float(value) for value in values])
                        labels.setdefault(str(image), []).append(label)
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as a submission ({error}); give a zip of text files", str(path)) from error
    return {image: _detections(numbers[image], labels[image], task) for image in sorted(numbers)}


def is_patch(name: str) -> bool:
    """Whether a name is that of a patch: P0006__1024__824___0."""
    return _PATCH.fullmatch(name) is not None


def patch_place(name: str) -> tuple[int, int]:
    """(left, top) of a patch in its image, pixels; (0, 0) of a whole image."""
    match = _PATCH.fullmatch(name)
    return (0, 0) if match is None else (int(match["left"]), int(match["top"]))


def scenes_of(names: Iterable[str]) -> dict[str, list[str]]:
    """The images that names are of, in the names' order: each with the names of its patches, or with its own.

    Raises:
        DataError: an image is there whole and in patches.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        match = _PATCH.fullmatch(name)
        found.setdefault(name if match is None else match["image"], []).append(name)
    for scene, members in found.items():
        if scene in members and len(members) > 1:
            raise DataError("is there whole and in patches, and a submission has each image once; leave one out", scene)
    return found


def scene_finds(scene: str, found: Sequence[tuple[str, Detections]], threshold: float = MERGE_IOU) -> Detections:
    """What was found in an image that `scenes_of` names: in its patches, see `merge_patches`, or in all of it."""
    if [name for name, _ in found] == [scene]:
        return found[0][1]
    return merge_patches(found, threshold)[scene]


def merge_patches(found: Iterable[tuple[str, Detections]], threshold: float = MERGE_IOU) -> dict[str, Detections]:
    """The detections of patches in the pixels of their images, each object once: NMS class by class over all patches.

    Args:
        found: names of patches (``P0006__1024__824___0``), and what was found in each, in its pixels; images whose
            patches show nothing are kept.
        threshold: IoU above which the lower score is dropped; rotated IoU of rotated boxes.

    Raises:
        DataError: a name is not that of a patch, or comes twice.
    """
    parts: dict[str, list[Detections]] = {}
    seen = set[str]()
    for name, detections in found:
        match = _PATCH.fullmatch(name)
        if match is None:
            raise DataError("is no name of a patch; write image__side__left___top, as in P0006__1024__824___0", name)
        if name in seen:
            raise DataError("came before; give each patch once", name)
        seen.add(name)
        parts.setdefault(match["image"], []).append(detections.moved(int(match["left"]), int(match["top"])))
    return {image: _merged(parts[image], threshold) for image in sorted(parts)}


def _check_classes(classes: Sequence[str]) -> None:
    for name in classes:
        if not name or set(name) & set("/\\\n\r\0"):
            raise DataError(f"the class {name!r} cannot name a file of a submission; rename it")


def _check_name(name: str, image: str) -> None:
    if not name or len(name.split()) != 1 or name != name.strip():
        raise DataError("has a blank in its name, which parts the columns of a submission; rename the image", image)


def _append(texts: Sequence[bytearray], image: str, found: Detections, task: Task) -> None:
    boxes = found.boxes.double()
    if task == 1:
        corners = to_dota(boxes if found.rotated else from_xyxy(boxes))
    else:
        upright = to_xyxy(boxes) if found.rotated else boxes
        corners = [" ".join(f"{value:.2f}" for value in box) for box in upright.tolist()]
    scores = found.scores.float().numpy()  # written with as few figures as give the same number back
    for label, score, numbers in zip(found.labels.tolist(), scores, corners, strict=True):
        if not 0 <= label < len(texts):
            raise DataError(f"has a detection of the class {label}, known are 0 ... {len(texts) - 1}", image)
        texts[label].extend(f"{image} {score!s} {numbers}\n".encode())


def _zip(path: Path, names: Sequence[str], texts: Sequence[bytearray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in zip(names, texts, strict=True):
            archive.writestr(zipfile.ZipInfo(name, _DATE), bytes(text), zipfile.ZIP_DEFLATED)


def _line(line: str, count: int, where: str) -> tuple[str | float, ...]:
    """(image, score, coordinates ...)."""
    image, *texts = line.split()
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = []
    if len(values) != count + 1 or not bool(torch.tensor(values).isfinite().all()):
        raise DataError(f"'{line[:60]}' is not an image, a score and {count} finite coordinates; mend the line", where)
    return image, *values


def _detections(numbers: list[list[float]], labels: list[int], task: Task) -> Detections:
    rows = torch.tensor(numbers, dtype=torch.float64)
    order = rows[:, 0].argsort(descending=True, stable=True)
    boxes = from_quads(rows[:, 1:]) if task == 1 else rows[:, 1:]
    return Detections(boxes[order].float(), rows[order, 0].float(), torch.tensor(labels)[order])


def _merged(parts: Sequence[Detections], threshold: float) -> Detections:
    together = joined(parts)
    suppress = rotated_nms if together.rotated else nms
    return together.take(suppress(together.boxes, together.scores, threshold, together.labels))
