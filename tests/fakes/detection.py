"""Pictures with boxes: DIOR, DIOR-R, DOTA, SARDet-100K, RSAR, HRSC2016, COCO, and small sets of the same formats.

Every picture shows one rotated rectangle of each class on a grid, in a colour of its class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.fakes.pictures import picture, seed_of
from vitp.commands.datasets import classes_of
from vitp.datasets.catalog import benchmark

BCCD = ("RBC", "WBC", "Platelets")
VHR10 = (
    "airplane", "ship", "storage_tank", "baseball_diamond", "tennis_court", "basketball_court", "ground_track_field",
    "harbor", "bridge", "vehicle",
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """An object."""

    name: str
    centre: tuple[float, float]
    sides: tuple[float, float]
    angle: float  # radians, clockwise as seen

    @property
    def corners(self) -> list[tuple[float, float]]:
        """Clockwise as seen, from the one that is top-left at angle zero."""
        (x, y), (w, h), cos, sin = self.centre, self.sides, math.cos(self.angle), math.sin(self.angle)
        signs = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
        return [(x + a * w * cos - b * h * sin, y + a * w * sin + b * h * cos) for a, b in signs]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def scene(file: Path, width: int, height: int, names: Sequence[str], angled: bool = True) -> list[Thing]:
    """A picture and what it shows; it depends on its path alone."""
    picture(file, width, height)
    rng = np.random.default_rng(seed_of(file))
    columns = math.ceil(math.sqrt(len(names)))
    cell_x, cell_y = width / columns, height / math.ceil(len(names) / columns)
    found = []
    with Image.open(file) as image:
        drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    for place, i in enumerate(rng.permutation(len(names)).tolist()):
        row, column = divmod(place, columns)
        long = 0.7 * min(cell_x, cell_y)
        angle = float(rng.uniform(-math.pi / 2, math.pi / 2)) if angled else 0.0
        thing = Thing(names[i], ((column + 0.5) * cell_x, (row + 0.5) * cell_y), (long, 0.5 * long), angle)
        draw.polygon(thing.corners, fill=(40 + 11 * i % 200, 255 - 37 * i % 256, 91 * i % 256))
        found.append(thing)
    drawn.save(file)
    return found


# ---------------------------------------------------------------------------------------------------------------- XML


def _tags(**values: object) -> str:
    return "".join(f"<{tag}>{value}</{tag}>" for tag, value in values.items())


def _voc(file: Path, image: str, size: tuple[int, int], objects: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = f"<filename>{image}</filename>\n<size>{_tags(width=size[0], height=size[1], depth=3)}</size>\n"
    file.write_text(f"<annotation>\n{head}{''.join(objects)}</annotation>\n", encoding="utf-8")


def _upright(thing: Thing) -> str:
    x1, y1, x2, y2 = (round(v) for v in thing.box)
    return f"<bndbox>{_tags(xmin=x1, ymin=y1, xmax=x2, ymax=y2)}</bndbox>"


def _object(thing: Thing, shape: str) -> str:
    said = _tags(name=thing.name, pose="Unspecified", truncated=0, difficult=0)
    return f"<object>{said}\n{shape}</object>\n"


def _dior(root: Path, kind: str, name: str) -> Path:
    parts = {"train": ("00001", "00002"), "val": ("00003",), "test": ("11726", "11727")}
    for part, ids in parts.items():
        folder = root / f"JPEGImages-{'test' if part == 'test' else 'trainval'}"
        for stem in ids:
            image = folder / f"{stem}.jpg"
            objects = []
            for thing in scene(image, 80, 80, classes_of(benchmark(name)), angled=kind == "Oriented"):
                shape = _upright(thing)
                if kind == "Oriented":
                    corners = ("left_top", "right_top", "right_bottom", "left_bottom")
                    numbers = {
                        f"{axis}_{corner}": round(value)
                        for corner, point in zip(corners, thing.corners, strict=True)
                        for axis, value in zip("xy", point, strict=True)
                    }
                    shape = f"<type>robndbox</type><robndbox>{_tags(**numbers)}</robndbox>"
                objects.append(_object(thing, shape))
            _voc(root / f"Annotations/{kind} Bounding Boxes/{stem}.xml", image.name, (80, 80), objects)
        listed = root / f"ImageSets/Main/{part}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{stem}\n" for stem in ids), encoding="utf-8")
    return root


def dior(root: Path) -> Path:
    """XML of upright boxes; training, validation and test lists over two folders of images."""
    return _dior(root, "Horizontal", "dior")


def dior_r(root: Path) -> Path:
    """XML of oriented boxes alone, as four named corners."""
    return _dior(root, "Oriented", "dior_r")


def bccd(root: Path) -> Path:
    """Cells: XML and nothing else, one box without area among them."""
    for number in range(6):
        image = root / f"JPEGImages/BloodImage_{number:05}.jpg"
        objects = [_object(thing, _upright(thing)) for thing in scene(image, 96, 72, BCCD, angled=False)]
        if number == 0:
            flat = "<bndbox>" + _tags(xmin=5, ymin=5, xmax=5, ymax=9) + "</bndbox>"
            objects.append(_object(Thing("RBC", (5, 7), (0, 4), 0), flat))
        _voc(root / f"Annotations/{image.stem}.xml", image.name, (96, 72), objects)
    return root


def ssdd_oriented(root: Path) -> Path:
    """Ships: XML with upright boxes, rotated boxes and outlines."""
    parts = {"train": ("000002", "000003", "000004"), "test": ("000001", "000009")}
    for part, ids in parts.items():
        for stem in ids:
            image = root / f"JPEGImages/{stem}.jpg"
            objects = []
            for thing in scene(image, 96, 64, ("ship", "ship")):
                numbers = {
                    f"{axis}{i}": round(value)
                    for i, point in enumerate(thing.corners, 1)
                    for axis, value in zip("xy", point, strict=True)
                }
                points = "".join(
                    f"<point-{i}>{round(x)},{round(y)}</point-{i}>" for i, (x, y) in enumerate(thing.corners, 1)
                )
                shape = f"<rotated_bndbox>{_tags(**numbers)}</rotated_bndbox>\n<segm>{points}</segm>\n"
                objects.append(_object(thing, f"{_upright(thing)}\n{shape}"))
            _voc(root / f"Annotations/{stem}.xml", image.name, (96, 64), objects)
        listed = root / f"ImageSets/Main/{part}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{stem}\n" for stem in ids), encoding="utf-8")
    return root


def hrsc2016(root: Path) -> Path:
    """Bitmaps and XML of rotated boxes in radians; an image without a ship, and one that no list has."""
    parts = {"train": ("100000001", "100000002"), "val": ("100000003",), "test": ("100000004",), "": ("100000099",)}
    for part, ids in parts.items():
        for stem in ids:
            image = root / f"FullDataSet/AllImages/{stem}.bmp"
            ships = scene(image, 96, 64, ("ship",) * 3)
            said = [
                "<HRSC_Object>"
                + _tags(Object_ID=f"{stem}{i}", Class_ID=100000006, truncated=0, difficult=int(i == 2))
                + _tags(mbox_cx=ship.centre[0], mbox_cy=ship.centre[1], mbox_w=ship.sides[0], mbox_h=ship.sides[1])
                + _tags(mbox_ang=ship.angle)
                + "</HRSC_Object>\n"
                for i, ship in enumerate(ships if stem != "100000002" else ())
            ]
            file = root / f"FullDataSet/Annotations/{stem}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            head = _tags(Img_ID=stem, Img_SizeWidth=96, Img_SizeHeight=64)
            text = f"<HRSC_Image>{head}\n<HRSC_Objects>\n{''.join(said)}</HRSC_Objects>\n</HRSC_Image>\n"
            file.write_text(text, encoding="utf-8")
        if part:
            listed = root / f"ImageSets/{part}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(f"{stem}\n" for stem in ids), encoding="utf-8")
    return root


# --------------------------------------------------------------------------------------------------------------- DOTA


def _dota_text(file: Path, things: Sequence[Thing], header: bool) -> None:
    lines = ["imagesource:GoogleEarth", "gsd:0.146343590398"] if header else []
    for i, thing in enumerate(things):
        numbers = " ".join(f"{value:.1f}" for corner in thing.corners for value in corner)
        lines.append(f"{numbers} {thing.name} {int(i == 1)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


_VERSIONS = {"dota_v1": "labelTxt-v1.0/labelTxt", "dota_v1_5": "labelTxt-v1.5/DOTA-v1.5_{}"}
_VERSIONS["dota_v2"] = "labelTxt-v2.0/DOTA-v2.0_{}"


def _dota(root: Path, name: str) -> Path:
    numbers = {"train": (0, 1), "val": (3,), "test": (6,)}
    for part, found in numbers.items():
        for number in found:
            width, height = (150, 110) if number != 1 else (60, 50)
            image = root / part / f"images/P{number:04}.png"
            things = scene(image, width, height, classes_of(benchmark(name)))
            if part != "test":
                _dota_text(root / part / _VERSIONS[name].format(part) / f"P{number:04}.txt", things, header=True)
    return root


def dota_v1(root: Path) -> Path:
    """Images of different sizes, one smaller than a patch; test images have no labels."""
    return _dota(root, "dota_v1")


def dota_v1_5(root: Path) -> Path:
    """Likewise, with the folders of version 1.5."""
    return _dota(root, "dota_v1_5")


def dota_v2(root: Path) -> Path:
    """Likewise, with the folders of version 2.0."""
    return _dota(root, "dota_v2")


def dota_example(root: Path) -> Path:
    """The devkit's examples: no parts, PNG and JPEG."""
    for name in ("P0706.png", "P0770.jpg", "P2709.jpg"):
        things = scene(root / "images" / name, 150, 110, classes_of(benchmark("dota_v1")))
        _dota_text(root / f"labelTxt/{Path(name).stem}.txt", things, header=True)
    return root


def rsar(root: Path) -> Path:
    """DOTA's lines without headers, pictures with different suffixes and shapes."""
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for number in range(count):
            stem, suffix = f"{number:07}", "jpg" if number % 2 else "png"
            things = scene(root / part / f"images/{stem}.{suffix}", 96, 64 + 16 * number, classes_of(benchmark("rsar")))
            _dota_text(root / part / f"annfiles/{stem}.txt", things, header=False)
    return root


# --------------------------------------------------------------------------------------------------------------- COCO


def _coco(
    file: Path, folder: Path, names: Sequence[str], classes: Sequence[str], ids: Sequence[int], side: int = 96
) -> dict[str, Any]:
    """A COCO file and its pictures, as a document that callers may add to before it is written."""
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for number, name in enumerate(names, 1):
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        for thing in scene(folder / name, side, side, classes):
            x1, y1, x2, y2 = thing.box
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": number,
                    "category_id": ids[classes.index(thing.name)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": thing.sides[0] * thing.sides[1],
                    "iscrowd": 0,
                    "segmentation": [[value for corner in thing.corners for value in corner]],
                }
            )
    categories = [{"id": i, "name": name} for i, name in zip(ids, classes, strict=True)]
    document = {"images": images, "annotations": notes, "categories": categories}
    _write(file, document)
    return document


def _write(file: Path, document: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document), encoding="utf-8")


def sardet_100k(root: Path) -> Path:
    """COCO files a part, pictures with different suffixes."""
    classes = classes_of(benchmark("sardet_100k"))
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        names = [f"{i:07}.{'png' if i % 2 else 'jpg'}" for i in range(count)]
        _coco(root / f"Annotations/{part}.json", root / "JPEGImages" / part, names, classes, range(len(classes)))
    return root


def coco(root: Path) -> Path:
    """Category ids with gaps, up to 90; a crowd as run lengths, and an image without objects."""
    classes = classes_of(benchmark("coco"))
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    for part, names in (("train", ("000000000009.jpg", "000000000025.jpg")), ("val", ("000000000139.jpg",))):
        file, folder = root / f"annotations/instances_{part}2017.json", root / f"{part}2017"
        document = _coco(file, folder, names, classes, ids, side=128)
        crowd = {"counts": [128 * 10, 128 * 20, 128 * 98], "size": [128, 128]}
        number = len(document["annotations"]) + 1
        note = {"id": number, "image_id": 1, "category_id": 1, "bbox": [10, 0, 20, 128], "area": 2560, "iscrowd": 1}
        document["annotations"].append({**note, "segmentation": crowd})
        picture(folder / "000000000042.jpg", 64, 48)
        document["images"].append({"id": 42, "file_name": "000000000042.jpg", "width": 64, "height": 48})
        _write(file, document)
    return root


def nwpu_vhr10(root: Path) -> Path:
    """One COCO file without parts, pictures in a folder whose name has spaces."""
    names = [f"{i:03}.jpg" for i in range(1, 7)]
    _coco(root / "annotations.json", root / "positive image set", names, VHR10, range(1, 11))
    return root


OBJECTS = {
    "dior": dior, "dior_r": dior_r, "dota_v1": dota_v1, "dota_v1_5": dota_v1_5, "dota_v2": dota_v2,
    "sardet_100k": sardet_100k, "rsar": rsar, "hrsc2016": hrsc2016, "coco": coco, "bccd": bccd,
    "nwpu_vhr10": nwpu_vhr10, "ssdd_oriented": ssdd_oriented, "dota_example": dota_example,
}  # fmt: skip
