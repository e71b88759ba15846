"""Pictures of many sizes with red and blue rectangles: their masks, a first date without them, COCO labels; tiny recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

COLOURS = ((230, 60, 60), (60, 90, 230))
SIZES = ((64, 64), (48, 64), (64, 40), (56, 56), (40, 96))  # H, W of the pictures in turn
IGNORED = 9  # in masks
_RPN = {"channels": 16, "anchors": {"scales": [4.0]}, "train_proposals": 40, "test_proposals": 40, "per_level": 40,
        "test_per_level": 40}  # fmt: skip
_ROI = {"width": 32, "sampler": {"count": 32}}
_RUN: dict[str, Any] = {
    "steps": 4, "checkpoint_every": 2, "keep_last": 9, "log_every": 1, "seed": 1, "device": "cpu", "precision": "fp32",
    "workers": 0, "warmup": 1.0, "eps": 1e-6, "backbone_lr": 1e-3, "head_lr": 2e-3, "layer_decay": 0.8,
    "backbone_config": {"architecture": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 32, "depth": 2,
                        "heads": 2},
}  # fmt: skip
_PICTURES: dict[str, Any] = {"images": "images/*.png", "test_list": "test.txt"}
_MASKS = {
    **_PICTURES,
    "masks": "masks/{stem}.png",
    "classes": ["ground", "red", "blue"],
    "ignore": IGNORED,
    "val_list": "val.txt",
}
_PAIRS = {**_PICTURES, "images": "before/*.png", "after": "images/{name}", "masks": "masks/{name}",
          "classes": ["same", "changed"], "labels": {0: 0, 1: 1, 2: 1}, "ignore": IGNORED}  # fmt: skip
_BOXES = {
    **_PICTURES,
    "kind": "coco",
    "labels": "labels.json",
    "outlines": True,
    "rotated": True,
    "val_list": "val.txt",
}
_CROPS = {"augment": {"crop": 32, "scale": [0.8, 1.25], "photometric": 0.2}, "inference": {"window": 32}}
_UPERNET = {"kind": "upernet", "width": 16, "dropout": 0.2}
_DETECT: dict[str, Any] = {
    "seed": 2,  # by which parts of 2 and 3 images need other padding than the step
    "task": "detect", "data": _BOXES, "neck": {"kind": "simple_fpn", "channels": 16}, "batch_size": 5,
    "augment": {"size": [32, 64], "keep_ratio": True, "flip": 0.5},
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "dice": {
        **_CROPS, "data": _MASKS, "batch_size": 5, "micro_batch": 2, "loss": "cross_entropy+dice+lovasz",
        "auxiliary": {"width": 16, "norm": "group"}, "validation": {"every": 1, "keep": "best"},
    },
    "batch_norm": {
        **_CROPS, "data": _MASKS, "batch_size": 7, "head": {**_UPERNET, "norm": "batch"}, "auxiliary": {"width": 16},
    },
    "change": {
        **_CROPS, "task": "change", "data": _PAIRS, "batch_size": 4, "head": {**_UPERNET, "norm": "group"},
    },
    "oriented": {**_DETECT, "boxes": "rotated", "detector": {"kind": "oriented_rcnn", "rpn": _RPN, "roi": _ROI}},
    "mask": {
        **_DETECT,
        "detector": {"kind": "mask_rcnn", "rpn": _RPN, "roi": _ROI, "mask": {"channels": 8, "convolutions": 1}},
        "validation": {"every": 2, "keep": "best", "metric": "AR"},
    },
    "cascade": {**_DETECT, "micro_batch": 2, "detector": {"kind": "cascade_rcnn", "rpn": _RPN, "roi": _ROI}},
}  # fmt: skip


def write_pictures(root: Path) -> None:
    """Eleven pictures, one of them of nothing, one with a mask that is ignored as a whole."""
    for name in ("images", "before", "masks"):
        (root / name).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for i in range(11):
        rng = np.random.default_rng(i)
        h, w = SIZES[i % len(SIZES)]
        pixels = rng.integers(0, 60, (h, w, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"before/{i}.png")
        mask = np.zeros((h, w), np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        for k, colour in enumerate(COLOURS if i != 4 else ()):
            width, height = (int(n) for n in rng.integers(12, 17, 2))
            x, y = int(rng.integers(0, w // 2 - width + 1)) + k * w // 2, int(rng.integers(0, h - height + 1))
            pixels[y : y + height, x : x + width], mask[y : y + height, x : x + width] = colour, k + 1
            ring = [x, y, x + width, y, x + width, y + height, x, y + height]
            notes.append(
                {"id": len(notes) + 1, "image_id": i, "category_id": k, "bbox": [x, y, width, height],
                 "area": width * height, "iscrowd": 0, "segmentation": [ring]}
            )  # fmt: skip
        mask[: i * 4] = IGNORED  # of every picture another share
        mask[:] = IGNORED if i == 3 else mask
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    kinds = [{"id": k, "name": name} for k, name in enumerate(("red", "blue"))]
    (root / "labels.json").write_text(json.dumps({"images": images, "annotations": notes, "categories": kinds}))
    for part, numbers in (("test", (6, 7, 8)), ("val", (9, 10))):
        (root / f"{part}.txt").write_text("\n".join(f"{i}.png" for i in numbers))


def write_recipes(folder: Path) -> dict[str, Path]:
    """The pictures and a recipe of each kind, by its name in `RECIPES`."""
    write_pictures(folder / "data")
    found = {}
    for name, recipe in RECIPES.items():
        found[name] = folder / f"{name}.yaml"
        data = {**recipe["data"], "root": str(folder / "data")}
        found[name].write_text(yaml.safe_dump({**_RUN, **recipe, "name": name, "data": data}))
    return found
