"""Pictures with masks: iSAID, LoveDA, UAVid, SSDD, ADE20K, buildings of OpenAerialMap."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.pictures import colour_label, label, picture
from vitp.datasets.catalog import ISAID, UAVID


def isaid(root: Path, sizes: tuple[tuple[int, int], ...] = ((150, 110), (90, 60))) -> Path:
    """Images of different sizes, one smaller than a crop; test images have no labels."""
    colours = [colour for _, colour in ISAID.colours]
    for part, first in (("train", 0), ("val", 3), ("test", 6)):
        for number, (width, height) in enumerate(sizes, first):
            picture(root / part / f"images/P{number:04}.png", width, height)
            if part != "test":
                mask = root / part / f"Semantic_masks/images/P{number:04}_instance_color_RGB.png"
                colour_label(mask, colours, width, height)
    return root


def loveda(root: Path) -> Path:
    """Train, Val and Test of Urban and Rural; labels 0 (no data) to 7, none in Test."""
    number = 0
    for part in ("Train", "Val", "Test"):
        for place in ("Urban", "Rural"):
            for _ in range(2 if part == "Train" else 1):
                picture(root / part / place / f"images_png/{number}.png", 96, 96)
                if part != "Test":
                    label(root / part / place / f"masks_png/{number}.png", range(8), 96, 96)
                number += 1
    return root


def uavid(root: Path) -> Path:
    """Sequences of two frame sizes, 2,160 rows and 3,840 or 4,096 columns in a sixteenth."""
    colours = [colour for _, colour in UAVID.colours]
    sequences = {"uavid_train": {"seq1": 240, "seq2": 256}, "uavid_val": {"seq16": 240}, "uavid_test": {"seq21": 240}}
    for folder, widths in sequences.items():
        for sequence, width in widths.items():
            for frame in ("000000", "000100"):
                picture(root / folder / sequence / f"Images/{frame}.png", width, 135)
                if folder != "uavid_test":
                    colour_label(root / folder / sequence / f"Labels/{frame}.png", colours, width, 135)
    return root


def ssdd(root: Path) -> Path:
    """COCO polygons of ships, two to an image and none in one."""
    for part, numbers in (("train", (2, 3, 4)), ("test", (1, 9))):
        images, annotations = [], []
        for number in numbers:
            name = f"{number:06}.jpg"
            picture(root / "images" / part / name, 100, 80)
            images.append({"id": number, "file_name": name, "width": 100, "height": 80})
            for ship in range(0 if number == 4 else 2):
                x, y = 10 + 40 * ship, 20 + 10 * ship
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 1,
                        "bbox": [x, y, 20, 12],
                        "area": 240,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + 20, y, x + 20, y + 12, x, y + 12]],
                    }
                )
        file = root / "annotations" / f"{part}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
        file.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return root


def ade20k(root: Path) -> Path:
    """Photographs of different sizes; labels 0 (unlabelled) to 150."""
    for part, short in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{short}_{number:08}"
            width, height = (128, 96) if number == 1 else (96, 128)
            picture(root / f"images/{part}/{name}.jpg", width, height)
            label(root / f"annotations/{part}/{name}.png", range(151), width, height)
    return root


def oam_buildings(root: Path) -> Path:
    """Chips and binary masks as TIFF."""
    for number in range(5):
        picture(root / f"chips/chip_{number}.tif", 64, 64)
        label(root / f"binarymasks/chip_{number}.mask.tif", (0, 1), 64, 64)
    return root
