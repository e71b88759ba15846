"""COCO's object labels: one JSON file with images, annotations and categories."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from vitp.errors import DataError
from vitp.synthesis.config import SynthesizeConfig
from vitp.synthesis.json_lines import Entries, read_json
from vitp.synthesis.labels import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    below,
    check_size,
    find_size,
    make_object,
    relative,
)  # fmt: skip


def find_coco(config: SynthesizeConfig) -> list[Path]:
    """JSON files that may hold COCO labels: in the root and in annotations/; those whose name holds `split`."""
    if config.labels is not None:
        return [config.root / config.labels]
    places = [*sorted(config.root.glob("*.json")), *sorted(config.root.glob("annotations/*.json"))]
    named = [path for path in places if path.name not in ("classes.json", "captions.json")]
    return [path for path in named if config.split is None or config.split in path.stem]


def read_coco(config: SynthesizeConfig) -> LabelledSet:
    """Images with boxes from a COCO file; the classes are the categories that it annotates at least once.

    A crowd (iscrowd) is there but not counted. The box is what COCO writes, [x, y, width, height] in pixels.

    Raises:
        DataError: with file:line: no or several label files, a broken entry, a box without area or outside the image.
    """
    files = find_coco(config)
    if len(files) != 1:
        found = f"{len(files)} JSON files may hold the labels" if files else "there is no JSON file with labels"
        raise DataError(f"{found}; say which with labels: annotations/instances_train.json", str(config.root))
    path = files[0]
    document = read_json(path)
    images, notes = Entries(path, document, "images"), Entries(path, document, "annotations")
    names = _categories(Entries(path, document, "categories"))
    of_image: dict[int, list[int]] = defaultdict(list)
    known: set[int] = set()
    for i in range(len(images.items)):
        if images.whole(i, "id") in known:
            raise images.mistake(i, f"has the id {images.whole(i, 'id')}, as another image has", "give each its own")
        known.add(images.whole(i, "id"))
    used: set[int] = set()
    for i in range(len(notes.items)):
        owner, kind = notes.whole(i, "image_id"), notes.whole(i, "category_id")
        if kind not in names:
            raise notes.mistake(i, f"has the category {kind}, which is not listed", "add it under 'categories'")
        if owner not in known:
            raise notes.mistake(i, f"belongs to the image {owner}, which is not listed", "add it under 'images'")
        of_image[owner].append(i)
        used.add(kind)
    found_set = LabelledSet("coco", classes=tuple(names[kind] for kind in sorted(used)))
    folder = _image_folder(config, images)
    for i in range(len(images.items)):
        image = _image(config, images, i, folder, found_set)
        if image is not None:
            objects = tuple(_object(notes, n, names, image.size, found_set) for n in of_image[images.whole(i, "id")])
            found_set.images.append(LabelledImage(image.images, image.size, image.source, objects))
    return found_set


def _categories(entries: Entries) -> dict[int, str]:
    return {entries.whole(i, "id"): entries.text(i, "name") for i in range(len(entries.items))}


def _image_folder(config: SynthesizeConfig, images: Entries) -> Path:
    """Where the images lie: the folder given, or the first folder below the root that holds one of the first names."""
    if config.images is not None:
        return config.root / config.images
    places = [config.root, *sorted(p for p in config.root.rglob("*") if p.is_dir())]
    for i in range(min(100, len(images.items))):
        name = images.text(i, "file_name")
        below(config.root, name, images.where(i) if ".." in name or name.startswith("/") else "")
        for place in places:
            if (place / name).is_file():
                return place
    return config.root


def _image(config: SynthesizeConfig, images: Entries, i: int, folder: Path, found: LabelledSet) -> LabelledImage | None:
    """An image without its objects; None where it is skipped."""
    name = images.text(i, "file_name")
    if ".." in name or name.startswith("/") or not name.isprintable():
        below(config.root, (folder / name).as_posix(), images.where(i))
    path = folder / name
    size = find_size(path, found, name)
    if size is None:
        return None
    stated = (images.whole(i, "width"), images.whole(i, "height"))
    if stated != size:
        check_size(stated, size, images.where(i))
    return LabelledImage((relative(path, config.root),), size, relative(images.path, config.root))


def _object(notes: Entries, i: int, names: dict[int, str], size: tuple[int, int], found: LabelledSet) -> LabelledObject:
    entry = notes.mapping(i)
    bbox = notes.numbers(i, "bbox", entry.get("bbox"))
    if len(bbox) != 4:
        raise notes.mistake(i, f"has a bbox of {len(bbox)} numbers", "write [x, y, width, height]")
    outline = entry.get("segmentation")
    for polygon in outline if isinstance(outline, list) else []:
        count = len(notes.numbers(i, "segmentation", polygon))
        if count < 6 or count % 2:
            fix = "write x1, y1, x2, y2, x3, y3, ... of three points at least"
            raise notes.mistake(i, f"has a polygon of {count} numbers", fix)
    area = entry.get("area")
    if area is not None:
        (area,) = notes.numbers(i, "area", [area])
    x, y, w, h = bbox
    crowd = bool(entry.get("iscrowd"))
    try:
        thing, note = make_object(
            names[notes.whole(i, "category_id")], (x, y, x + w, y + h), size, "", doubtful=crowd, area=area
        )
    except DataError as error:  # the line is looked up only now: it takes a pass over the file
        raise DataError(f"entry {i + 1} of 'annotations': {error.reason}", notes.where(i)) from error
    if note:
        found.noted[note] += 1
    return thing
