"""Objects in COCO's JSON: boxes, polygons and run lengths, crowds, any category ids."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitp.boxes.formats import from_polygon, to_quads
from vitp.datasets.layout import find_images, group_of
from vitp.datasets.objects_config import CocoConfig
from vitp.datasets.objects_report import Findings, first_of
from vitp.datasets.objects_table import ObjectItem, Size, TableBuilder
from vitp.datasets.run_lengths import RunLengthError, decode, rings_of
from vitp.datasets.splits import Split
from vitp.errors import DataError
from vitp.synthesis.json_lines import Entries, read_json

MISSING = "images that the labels list are not there, their objects left out"
STRAY = "objects of images that the labels do not list, left out"
TWICE = "images are listed twice, their objects put together"
NO_QUAD = "objects without outline, their upright boxes taken for quads"
_LONGEST = 2**31  # pixels: no image has such a side
_Rings = list[NDArray[np.float32]]


@dataclass
class CocoLabels:
    """What the label files say."""

    items: list[ObjectItem] = field(default_factory=list)
    table: TableBuilder = field(default_factory=lambda: TableBuilder(quads=False, outlined=False))
    categories: list[str] = field(default_factory=list)  # of all files, by id
    known: dict[Split, set[int]] = field(default_factory=dict)  # parts, where each has a file of its own
    unused: int = 0  # images under root that no file lists


def read_coco_objects(config: CocoConfig, findings: Findings) -> CocoLabels:
    """The images that one or more label files list, with their objects.

    Raises:
        DataError: with file:line: no JSON, a broken entry, an image that could be several files, an image in two parts,
            an unlisted category, or none of the listed images is there.
    """
    found = CocoLabels(table=TableBuilder(quads=config.rotated, outlined=config.outlines))
    images = find_images(config)
    if config.labels is not None:
        _read(config, config.labels, images, found, findings)
    else:
        done: dict[str, set[int]] = {}
        for split, name in (("train", config.train_labels), ("val", config.val_labels), ("test", config.test_labels)):
            if name is None:
                continue
            if name not in done:
                first = len(found.items)
                _read(config, name, _of_part(images, config, split), found, findings)
                done[name] = set(range(first, len(found.items)))
            found.known[split] = done[name]  # type: ignore[index]
    listed = {item.image for item in found.items}
    found.unused = sum(image not in listed for image in images)
    return found


def _of_part(images: list[Path], config: CocoConfig, split: str) -> list[Path]:
    """The images among which those of a part are looked for."""
    pattern = getattr(config, f"{split}_images")
    if pattern is None:
        return images
    wanted = set(config.root.glob(pattern))
    return [image for image in images if image in wanted]


def _read(config: CocoConfig, name: str, images: list[Path], found: CocoLabels, findings: Findings) -> None:
    """Add the images and objects of one file."""
    file = config.root / name
    document = read_json(file)
    listed, notes = Entries(file, document, "images"), Entries(file, document, "annotations")
    categories = _categories(Entries(file, document, "categories"))
    found.categories += [text for _, text in sorted(categories.items()) if text not in found.categories]
    files = _files(listed, images, config.root, findings)
    of_image: dict[int, list[int]] = defaultdict(list)
    known = {listed.whole(i, "id") for i in range(len(listed.items))}
    for n in range(len(notes.items)):
        if (owner := notes.whole(n, "image_id")) not in known:
            findings.add(STRAY, partial(notes.where, n), dropped=True)
        elif (kind := notes.whole(n, "category_id")) not in categories:
            ids = first_of(f"{number}: {text}" for number, text in sorted(categories.items()))
            raise notes.mistake(n, f"has the category {kind}, which 'categories' ({ids}) does not list", "correct one")
        else:
            of_image[owner].append(n)
    taken = {item.image for item in found.items}
    for image, entries in sorted(files.items()):  # so that parts do not depend on the order of the file
        if image in taken:
            other = next(item.labels for item in found.items if item.image == image)
            raise DataError(
                f"lists {image.name}, which {other} lists too; keep it in one of them", listed.where(entries[0])
            )
        numbers = dict.fromkeys(n for i in entries for n in of_image[listed.whole(i, "id")])
        found.items.append(ObjectItem(image, group_of(image, config), file, _stated(listed, entries[0])))
        found.table.begin(file)
        for n in numbers:
            _add(notes, n, categories, config, found, findings)
    if not files:
        raise DataError(
            f"lists {len(listed.items)} images, of which none is among the {len(images)} that match '{config.images}'; "
            f"it names {first_of(repr(listed.text(i, 'file_name')) for i in range(min(4, len(listed.items))))}",
            str(file),
        )


def _categories(entries: Entries) -> dict[int, str]:
    found: dict[int, str] = {}
    for i in range(len(entries.items)):
        number = entries.whole(i, "id")
        if number in found:
            raise entries.mistake(i, f"has the id {number}, as '{found[number]}' has", "give each its own")
        found[number] = entries.text(i, "name").strip()
    return found


def _files(listed: Entries, images: list[Path], root: Path, findings: Findings) -> dict[Path, list[int]]:
    """The files of the images listed, each with its entries (several where it is listed twice)."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_name[image.name].append(image)
    ids: set[int] = set()
    found: dict[Path, list[int]] = {}
    for i in range(len(listed.items)):
        number = listed.whole(i, "id")
        if number in ids:
            raise listed.mistake(i, f"has the id {number}, as another image has", "give each its own")
        ids.add(number)
        name = listed.text(i, "file_name").strip().replace("\\", "/").removeprefix("./")
        ends = [
            p for p in by_name.get(name.rpartition("/")[2], []) if p == root / name or p.as_posix().endswith(f"/{name}")
        ]
        exact = [p for p in ends if p == root / name]
        if not ends:
            findings.add(MISSING, partial(_named, listed, i))
        elif len(ends) > 1 and not exact:
            text = f"names '{name}', which could be {first_of(p.relative_to(root) for p in ends)}"
            fix = "write the path under root, or narrow data.images (or train_images, test_images)"
            raise listed.mistake(i, text, fix)
        else:
            entries = found.setdefault((exact or ends)[0], [])
            if entries:
                findings.add(TWICE, partial(_named, listed, i))
            entries.append(i)
    return found


def _named(listed: Entries, i: int) -> str:
    return f"{listed.where(i)}: {listed.text(i, 'file_name')}"


def _stated(listed: Entries, i: int) -> Size | None:
    """(H, W) that the labels state; None where they do not.

    Raises:
        DataError: with file:line: a size that no image has.
    """
    sides = [listed.items[i].get(key) for key in ("height", "width")]
    if all(isinstance(side, int | float) and not isinstance(side, bool) and side >= 1 for side in sides):
        if max(sides) >= _LONGEST:
            height, width = (f"{side!r:.20}" for side in sides)
            raise listed.mistake(i, f"has the size {width} x {height}", "write the image's width and height in pixels")
        return round(sides[0]), round(sides[1])
    return None


def _add(
    notes: Entries, n: int, categories: dict[int, str], config: CocoConfig, found: CocoLabels, findings: Findings
) -> None:
    """One object."""
    entry = notes.mapping(n)
    crowd = entry.get("iscrowd", 0) in (1, True)
    wanted = config.outlines or config.rotated
    rings = _outline(notes, n, entry.get("segmentation"), found.items[-1].stated) if wanted else []
    bbox = entry.get("bbox")
    if bbox is None and rings:
        numbers = _around(rings)
    else:
        x, y, w, h = _four(notes, n, bbox)
        numbers = [x, y, x + w, y + h]
    if config.rotated:
        if not rings:
            findings.add(NO_QUAD, partial(notes.where, n))
        numbers = _quad(rings, numbers)
    found.table.add(categories[entry["category_id"]], numbers, n, crowd=crowd, outline=rings if config.outlines else ())


def _four(notes: Entries, n: int, bbox: object) -> list[float]:
    numbers = notes.numbers(n, "bbox", bbox)
    if len(numbers) != 4:
        raise notes.mistake(n, f"has a bbox of {len(numbers)} numbers", "write [x, y, width, height]")
    return numbers


def _around(rings: _Rings) -> list[float]:
    points = np.concatenate(rings)
    return [*points.min(0).tolist(), *points.max(0).tolist()] if len(points) else [0.0] * 4


def _quad(rings: _Rings, box: list[float]) -> list[float]:
    """Eight numbers: the four points of an outline, the rectangle of least area around other outlines, or the box."""
    if len(rings) == 1 and len(rings[0]) == 4:
        return [float(v) for v in rings[0].reshape(-1)]
    flat = [float(v) for ring in rings for v in ring.reshape(-1)]
    if len(flat) >= 6 and np.isfinite(flat).all():
        return [float(v) for v in to_quads(from_polygon(flat)).reshape(-1)]
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _outline(notes: Entries, n: int, outline: Any, size: Size | None) -> _Rings:
    """The rings of a segmentation; none where there is none."""
    if outline is None or outline == []:
        return []
    if isinstance(outline, dict):
        try:
            return rings_of(decode(outline.get("size"), outline.get("counts"), size))
        except RunLengthError as error:
            raise notes.mistake(n, f"has run lengths that {error}", "write them anew") from error
    if not isinstance(outline, list):
        raise notes.mistake(n, f"has {outline!r:.40} as 'segmentation'", "write polygons or run lengths")
    rings = []
    for polygon in outline if isinstance(outline[0], list) else [outline]:
        numbers = notes.numbers(n, "segmentation", polygon)
        if len(numbers) % 2:
            raise notes.mistake(n, f"has a polygon of {len(numbers)} numbers", "write x1, y1, x2, y2, x3, y3, ...")
        rings.append(np.array(numbers, dtype=np.float32).reshape(-1, 2))
    return rings
