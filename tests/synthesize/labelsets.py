"""Small labelled data sets on disk, and reading back what was asked about them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp.commands.synthesize import SynthesizeConfig, SynthesizeResult, synthesize

DATA = Path(__file__).parents[2] / "../shared/data"
CLASSES = ("ship", "storage_tank", "harbor", "vehicle")


def real(name: str) -> Path:
    """A real data set; the test is skipped where it is not on this disk."""
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"the data set {name} is not at hand")
    return root


def picture(path: Path, width: int = 96, height: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 60)).save(path)


def coco_document(count: int, seed: int = 0) -> dict[str, Any]:
    """Random boxes of four classes on 96 x 80 images; every eighth object is a crowd."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for i in range(count):
        images.append({"id": i + 1, "file_name": f"{i:03}.png", "width": 96, "height": 80})
        for kind in rng.choice(4, size=rng.integers(1, 4), replace=False).tolist():
            for _ in range(int(rng.integers(1, 5))):
                w, h = rng.integers(4, 24, 2).tolist()
                x, y = int(rng.integers(2, 96 - w - 2)), int(rng.integers(2, 80 - h - 2))
                crowd = int(rng.random() < 0.125)
                note = {"id": len(notes) + 1, "image_id": i + 1, "category_id": kind + 1, "bbox": [x, y, w, h],
                        "area": w * h, "iscrowd": crowd}  # fmt: skip
                notes.append(note)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    return {"images": images, "annotations": notes, "categories": categories}


def write_coco(root: Path, document: dict[str, Any], indent: int | None = 1) -> Path:
    for image in document["images"]:
        picture(root / "images" / image["file_name"])
    path = root / "labels.json"
    path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    return root


def run(root: Path, out: Path, **keys: Any) -> tuple[SynthesizeResult, list[dict[str, Any]]]:
    """Synthesize, and the records that were written."""
    result = synthesize(SynthesizeConfig(root=root, out=out, **keys))
    return result, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def questions(records: Iterable[dict[str, Any]], task: str) -> list[tuple[dict[str, Any], str, str]]:
    """(record, question without image marks, answer) of one task."""
    found = []
    for record in records:
        turns = record["conversations"]
        assert len(turns) == 2 * len(record["tasks"])
        for name, asked, answer in zip(record["tasks"], turns[::2], turns[1::2], strict=True):
            assert (asked["from"], answer["from"]) == ("human", "gpt")
            if name == task:
                found.append((record, asked["value"].replace("<image>\n", ""), answer["value"]))
    return found


def match(question: str, forms: Iterable[str]) -> dict[str, str] | None:
    """What stands in the gaps of the first form that a question has."""
    for form in forms:
        pattern, seen = "", set()
        for piece in re.split(r"({\w+})", form):
            name = piece[1:-1] if piece.startswith("{") else None
            if name is None:
                pattern += re.escape(piece)
            else:
                pattern += f"(?P={name})" if name in seen else f"(?P<{name}>.+?)"
                seen.add(name)
        if (hit := re.fullmatch(pattern, question)) is not None:
            return hit.groupdict()
    return None
