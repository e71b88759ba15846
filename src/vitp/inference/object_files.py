"""Found objects as files: COCO json, outlines on the ground, and the picture with its boxes drawn.

Shape legend: N objects, M x M cells of a mask, h x w pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_masks
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitp.boxes.objects import Detections
from vitp.boxes.paste import paste_mask
from vitp.datasets.run_lengths import rings_of
from vitp.errors import OutputError
from vitp.files import text_stream, write_atomic
from vitp.inference.finder import Finder, corners, enclosing
from vitp.inference.geopackage import Columns
from vitp.inference.polygons import write_features
from vitp.inference.sinks import Look
from vitp.inference.sources import Place
from vitp.metrics.dota_submission import is_patch, patch_place, scene_finds, scenes_of, task_of, write_submission

_NAMED = 60  # boxes whose class and score are written beside them at most; more would hide the picture


class Picture(NamedTuple):
    """An image as COCO json speaks of it."""

    name: str
    height: int
    width: int


# ----------------------------------------------------------------------------------------------------------------- COCO


def write_coco(path: Path, found: Iterable[tuple[Picture, Detections]], classes: Sequence[str]) -> None:
    """Objects as COCO json with a `score` each; categories count from 1.

    A rotated box is its enclosing `bbox`, its corners as `segmentation`, and `rotated_box`: cx, cy, w, h in pixels and the
    angle in radians, le90 (`vitp.boxes.formats`). A mask is a compressed run-length `segmentation` of the whole image.

    Raises:
        OutputError: no space left or not writable.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    images, count = [], 0
    with text_stream(path) as stream:
        stream.write('{"annotations": [')
        for number, (picture, detections) in enumerate(found, 1):
            images.append({"id": number, "file_name": picture.name, "height": picture.height, "width": picture.width})
            for record in _records(picture, detections):
                about = {"id": count + 1, "image_id": number, **record, "iscrowd": 0}
                stream.write((",\n" if count else "\n") + json.dumps(about))
                count += 1
        stream.write(f'\n],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)}}}\n')


def _records(picture: Picture, found: Detections) -> Iterator[dict[str, Any]]:
    upright = enclosing(found).double()
    rings = corners(found).double().flatten(1).tolist() if found.rotated else []
    for i, (x1, y1, x2, y2) in enumerate(upright.tolist()):
        record: dict[str, Any] = {
            "category_id": int(found.labels[i]) + 1,
            "score": round(float(found.scores[i]), 5),
            "bbox": [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)],
            "area": round((x2 - x1) * (y2 - y1), 2),
        }
        if found.rotated:
            box = found.boxes[i].double().tolist()
            record["area"] = round(box[2] * box[3], 2)
            record["segmentation"] = [[round(number, 2) for number in rings[i]]]
            record["rotated_box"] = [*(round(number, 2) for number in box[:4]), round(box[4], 5)]
        elif found.masks is not None:
            size = (picture.height, picture.width)
            runs = paste_mask(found.masks[i], found.boxes[i], size).runs(size)
            record["area"] = sum(runs[1::2])
            packed = coco_masks.frPyObjects({"size": list(size), "counts": runs}, *size)
            record["segmentation"] = {"size": list(size), "counts": packed["counts"].decode("ascii")}
        yield record


def join_coco(path: Path, parts: Sequence[tuple[str, Path]]) -> None:
    """The files of single images as one, each image under the name that is given with it.

    Raises:
        OutputError: a part is damaged; no space left or not writable.
    """
    images, count = [], 0
    categories: list[Any] = []
    with text_stream(path) as stream:
        stream.write('{"annotations": [')
        for number, (name, part) in enumerate(parts, 1):
            found = read_coco(part)
            images.append({**found["images"][0], "id": number, "file_name": name})
            categories = found["categories"]
            for record in found["annotations"]:
                count += 1
                about = {**record, "id": count, "image_id": number}
                stream.write((",\n" if count > 1 else "\n") + json.dumps(about))
        stream.write(f'\n],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)}}}\n')


def read_coco(path: Path) -> dict[str, Any]:
    """What `write_coco` wrote.

    Raises:
        OutputError: it is gone or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not {"annotations", "images", "categories"} <= found.keys() or not found["images"]:
            raise ValueError("keys")
        return dict(found)
    except (OSError, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise OutputError(f"{path} is gone or damaged; run the command again with --overwrite") from error


def write_dota(
    path: Path, parts: Sequence[tuple[str, Path]], finder: Finder, scene: Callable[[Picture, Detections], None]
) -> None:
    """The files of single images as a DOTA submission: task 1 for rotated boxes, task 2 for upright ones.

    Images whose names are those of patches (``P0006__1024__824___0``) are merged to the image they were cut from, one such
    image at a time.

    Args:
        path: the zip.
        parts: each image's name in the submission (`vitp.metrics.dota_submission.image_names`), and its file.
        finder: what found them.
        scene: given every image that was merged from patches, and what is found in it.

    Raises:
        DataError: a name cannot stand in a submission, or an image is there whole and in patches.
        OutputError: a part is damaged; no space left or not writable.
    """
    files = dict(parts)

    def found() -> Iterator[tuple[str, Detections]]:
        for name, members in scenes_of(files).items():
            stored = [(member, read_coco(files[member])) for member in members]
            seen = [(member, _detections(own["annotations"], rotated=finder.rotated)) for member, own in stored]
            merged = scene_finds(name, seen, finder.merge)
            if is_patch(members[0]):
                scene(_scene_picture(name, [(member, own["images"][0]) for member, own in stored]), merged)
            yield name, merged

    write_submission(path, found(), finder.classes, task=task_of(rotated=finder.rotated))


def _scene_picture(name: str, patches: Sequence[tuple[str, dict[str, Any]]]) -> Picture:
    """The image that patches were cut from, as far as they reach."""
    places = [(*patch_place(patch), about["width"], about["height"]) for patch, about in patches]
    suffix = Path(patches[0][1]["file_name"]).suffix
    return Picture(
        f"{name}{suffix}",
        max(top + height for _, top, _, height in places),
        max(left + width for left, _, width, _ in places),
    )


def _detections(records: Sequence[dict[str, Any]], *, rotated: bool) -> Detections:
    """What `write_coco` wrote of an image, without masks."""
    if rotated:
        boxes = torch.tensor([record["rotated_box"] for record in records]).reshape(-1, 5)
    else:
        x, y, w, h = torch.tensor([record["bbox"] for record in records]).reshape(-1, 4).unbind(1)
        boxes = torch.stack((x, y, x + w, y + h), 1)
    scores = torch.tensor([record["score"] for record in records], dtype=torch.float32)
    labels = torch.tensor([record["category_id"] for record in records], dtype=torch.int64) - 1
    return Detections(boxes, scores, labels)


# ------------------------------------------------------------------------------------------------------------- outlines


def write_object_polygons(
    path: Path, found: Detections, picture: Picture, classes: Sequence[str], place: Place | None
) -> None:
    """Outlines with class and score: of boxes their corners, of masks the borders of their pixels, each piece by itself.

    Raises:
        OutputError: no space left or not writable.
        MissingExtraError: rasterio or, for a GeoPackage, pyogrio is not installed.
    """
    columns: Columns = {"class": str, "id": int, "score": float, **({"angle": float} if found.rotated else {})}
    write_features(path, _features(found, picture, classes), place, columns)


def _features(
    found: Detections, picture: Picture, classes: Sequence[str]
) -> Iterator[tuple[list[list[tuple[float, float]]], dict[str, Any]]]:
    for i, four in enumerate(corners(found).double().tolist()):
        label = int(found.labels[i])
        about: dict[str, Any] = {"class": classes[label], "id": label, "score": round(float(found.scores[i]), 5)}
        if found.rotated:
            about["angle"] = round(float(found.boxes[i, 4]), 5)
        if found.masks is None:
            yield [[(x, y) for x, y in [*four, four[0]]]], about
            continue
        pasted = paste_mask(found.masks[i], found.boxes[i], (picture.height, picture.width))
        for piece in rings_of(pasted.pixels.numpy()):
            moved = (piece + np.array([pasted.left, pasted.top])).tolist()
            yield [[(x, y) for x, y in [*moved, moved[0]]]], about


# -------------------------------------------------------------------------------------------------------------- preview


def write_object_preview(path: Path, pixels: NDArray[np.uint8], found: Detections, step: int, look: Look) -> None:
    """The image with what was found drawn in the colour of its class, and below it how many of each.

    Args:
        path: a PNG.
        pixels: [h, w, 3], every `step`-th pixel of the image.
        found: in the image's own pixels.
        step: see `pixels`.
        look: classes and colours.

    Raises:
        OutputError: no space left or not writable.
    """
    image = Image.fromarray(_with_masks(pixels, found, step, look))
    enlarge = max(1, 512 // max(image.size))  # so that boxes of small pictures can be told apart
    image = image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.NEAREST)
    pen, factor = ImageDraw.Draw(image), enlarge / step
    font = ImageFont.load_default(12)
    width = 2 if max(image.size) > 300 else 1
    rings = (corners(found).double() * factor).tolist()
    for i in reversed(range(len(found))):  # the surest on top
        colour = look.colours[int(found.labels[i])]
        points = [(x, y) for x, y in rings[i]]
        pen.line([*points, points[0]], fill=colour, width=width)
        if len(found) <= _NAMED:
            text = f"{look.classes[int(found.labels[i])]} {float(found.scores[i]):.2f}"
            right = image.width - font.getlength(text) - 2
            at = (max(2.0, min(right, min(x for x, _ in points))), max(0.0, min(y for _, y in points) - 14))
            pen.text(at, text, fill=colour, font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    shown = _with_legend(image, found, look)
    write_atomic(path, lambda temporary: shown.save(temporary, format="PNG"))


def _with_masks(pixels: NDArray[np.uint8], found: Detections, step: int, look: Look) -> NDArray[np.uint8]:
    if found.masks is None:
        return pixels
    mixed = pixels.astype(np.float32)
    for i in reversed(range(len(found))):
        pasted, top, left = paste_mask(found.masks[i], found.boxes[i] / step, (pixels.shape[0], pixels.shape[1]))
        mask = pasted.numpy()
        part = mixed[top : top + mask.shape[0], left : left + mask.shape[1]]
        part[mask] = 0.5 * part[mask] + 0.5 * np.array(look.colours[int(found.labels[i])], dtype=np.float32)
    return mixed.astype(np.uint8)


def _with_legend(image: Image.Image, found: Detections, look: Look) -> Image.Image:
    """The picture, and under it a square of each class that was found with its name and number."""
    counts = torch.bincount(found.labels, minlength=len(look.classes)).tolist()
    entries = [(f"{look.classes[i]} {count}", look.colours[i]) for i, count in enumerate(counts) if count]
    font, line = ImageFont.load_default(13), 20
    places, x, y = [], 8, 4
    for text, _ in entries or [("nothing found", (0, 0, 0))]:
        wide = 18 + math.ceil(font.getlength(text)) + 14
        if x > 8 and x + wide > image.width:
            x, y = 8, y + line
        places.append((x, y))
        x += wide
    shown = Image.new("RGB", (image.width, image.height + y + line + 4), (255, 255, 255))
    shown.paste(image, (0, 0))
    pen = ImageDraw.Draw(shown)
    for (left, top), (text, colour) in zip(places, entries or [("nothing found", (255, 255, 255))], strict=True):
        top += image.height
        pen.rectangle([left, top + 2, left + 12, top + 14], fill=colour)
        pen.text((left + 18, top), text, fill=(0, 0, 0), font=font)
    return shown
