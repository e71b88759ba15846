"""Small detection data sets written for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as masks
from pydantic import TypeAdapter
from torch import Tensor

from vitp.boxes.objects import Objects
from vitp.datasets.detection import DetectionData, DetectionDataConfig, open_detection

CONFIG: TypeAdapter[Any] = TypeAdapter(DetectionDataConfig)
REAL = Path(__file__).parents[2] / "../shared/data"


def opened(**data: Any) -> DetectionData:
    """The data set of a recipe's `data:`."""
    return open_detection(CONFIG.validate_python(data))


def picture(path: Path, width: int = 40, height: int = 30) -> Path:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def note(number: int, image: int, bbox: Sequence[float] | None, category: int = 7, **more: Any) -> dict[str, Any]:
    """An annotation of COCO's."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


def coco(
    root: Path,
    notes: Sequence[dict[str, Any]],
    names: Sequence[str] = ("a.png", "b.png", "c.png"),
    file: str = "labels.json",
    categories: dict[int, str] | None = None,
) -> Path:
    """Images of 40 x 30 pixels with ids 1, 2, ... and their label file, an entry a line."""
    for name in names:
        picture(root / "images" / name)
    images = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names, 1)]
    kinds = [{"id": i, "name": name} for i, name in (categories or {7: "ship", 3: "car"}).items()]
    parts = {"images": images, "annotations": list(notes), "categories": kinds}
    rows = (f'"{key}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]" for key, entries in parts.items())
    (root / file).write_text("{" + ",\n".join(rows) + "}")
    return root


def dota(root: Path, lines: Sequence[str], others: int = 2) -> Path:
    """x.png of 40 x 30 pixels with these lines, and images with a plain ship each."""
    picture(root / "images/x.png")
    (root / "labelTxt").mkdir(exist_ok=True)
    (root / "labelTxt/x.txt").write_text("\n".join(lines))
    for i in range(others):
        picture(root / f"images/other{i}.png")
        (root / f"labelTxt/other{i}.txt").write_text("2 2 12 2 12 8 2 8 ship 0\n")
    return root


DOTA = {"kind": "dota", "images": "images/*", "labels": "labelTxt/{stem}.txt", "test_images": "images/other1.*"}


def voc(root: Path, objects: str, size: str = "<size><width>40</width><height>30</height></size>") -> Path:
    """x.png and y.png of 40 x 30 pixels with the same labels."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    for name in ("x", "y"):
        picture(root / f"JPEGImages/{name}.png")
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>\n{size}\n{objects}\n</annotation>")
    return root


VOC = {"kind": "voc", "images": "JPEGImages/*", "labels": "Annotations/{stem}.xml", "test_images": "JPEGImages/y.*"}


def objects_at(quads: Tensor, *, form: str = "quads") -> Objects:
    """Objects with these corners [N, 4, 2], as quads, as outlines or as boxes alone."""
    count = len(quads)
    return Objects(
        boxes=torch.cat((quads.amin(1), quads.amax(1)), 1),
        labels=torch.arange(count),
        difficult=torch.arange(count) % 3 == 1,
        crowd=torch.arange(count) % 3 == 2,
        quads=quads.clone() if form == "quads" else None,
        outlines=tuple((quad.numpy(),) for quad in quads) if form == "outlines" else None,
    )


def drawn(data: DetectionData, index: int) -> list[np.ndarray[Any, Any]]:
    """Masks of the objects of an image that have an outline, by pycocotools' own drawing."""
    height, width = data.size(index)
    found = []
    for rings in filter(None, data.objects(index).outlines or ()):
        flat = [ring.astype(np.float64).reshape(-1).tolist() for ring in rings]
        found.append(masks.decode(masks.merge(masks.frPyObjects(flat, height, width))))
    return found
