"""HRSC2016's ships: rotated boxes in XML into DOTA's text files, pictures into PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vitp.boxes.formats import to_dota
from vitp.datasets.catalog_detection import HRSC2016
from vitp.datasets.prepare import Piece, Preparation, require_folders, save_lines, save_png
from vitp.errors import DataError
from vitp.images.read import ImageConfig, read_image
from vitp.synthesis.labels import read_label_text
from vitp.synthesis.xml_lines import read_xml, xml_number

_BOX = ("mbox_cx", "mbox_cy", "mbox_w", "mbox_h", "mbox_ang")  # radians, clockwise as seen: our own convention


def plan_hrsc(source: Path, out: Path) -> Preparation:
    """{train,val,test}/images/100000001.png and labelTxt/100000001.txt, all of one class, ship.

    Raises:
        DataError: with file:line: a list, an image or an XML file is missing or unfit.
    """
    require_folders(source, ["FullDataSet"], "expected FullDataSet/AllImages, FullDataSet/Annotations and ImageSets")
    pieces = []
    for part in ("train", "val", "test"):
        file = source / "ImageSets" / f"{part}.txt"
        if not file.is_file():
            raise DataError("the list does not exist; copy it from the archive, all images are never meant", str(file))
        for number, line in enumerate(read_label_text(file).splitlines(), 1):
            if name := line.strip():
                pieces.append(_ships(source / "FullDataSet", name, f"{file}:{number}", out / part))
    return Preparation({"name": HRSC2016.name}, pieces)


def _ships(folder: Path, name: str, where: str, out: Path) -> Piece:
    """The picture and the label of one image."""
    image, label = folder / "AllImages" / f"{name}.bmp", folder / "Annotations" / f"{name}.xml"
    for file in (image, label):
        if Path(name).name != name or not file.is_file():
            raise DataError(f"lists '{name}', but {file} does not exist; unpack the archive whole", where)
    lines = read_ships(label)

    def make(files: Sequence[Path]) -> None:
        for file in files:
            if file.suffix == ".txt":
                save_lines(lines, file)
            else:
                save_png(read_image(image, ImageConfig()).permute(1, 2, 0).numpy(), file)

    return Piece((out / "images" / f"{name}.png", out / "labelTxt" / f"{name}.txt"), make)


def read_ships(file: Path) -> list[str]:
    """The lines of a DOTA text file that say what an XML file of HRSC2016 does.

    Raises:
        DataError: with file:line: it is no such file, or a number is missing.
    """
    root = read_xml(file)
    if root.tag != "HRSC_Image":
        raise DataError(f"begins with <{root.tag}>; files of HRSC2016 begin with <HRSC_Image>", f"{file}:{root.line}")
    boxes, difficult = [], []
    for group in root.all("HRSC_Objects"):
        for ship in group.all("HRSC_Object"):
            boxes.append([xml_number(ship, tag, file) for tag in _BOX])
            difficult.append(int(ship.find("difficult") is not None and xml_number(ship, "difficult", file) != 0))
    corners = to_dota(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 5))
    return [f"{eight} ship {hard}" for eight, hard in zip(corners, difficult, strict=True)]
