"""Objects with one label file an image: DOTA's oriented text files and Pascal VOC's XML files."""

from __future__ import annotations

import math
from pathlib import Path

from vitp.datasets.objects_dota import dota_lines
from vitp.errors import DataError
from vitp.synthesis.config import SynthesizeConfig
from vitp.synthesis.labels import (
    SUFFIXES,
    Corners,
    LabelledImage,
    LabelledObject,
    LabelledSet,
    below,
    check_size,
    find_size,
    make_object,
    polygon_area,
    read_label_text,
    relative,
)  # fmt: skip
from vitp.synthesis.xml_lines import Node, read_xml, xml_number, xml_text

DOTA_FOLDERS = ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.5", "labelTxt-v2.0", "labels/labelTxt")
VOC_FOLDER, VOC_IMAGES = "Annotations", "JPEGImages"


def base_of(config: SynthesizeConfig) -> Path:
    """The folder of the split, where there is one of that name; else the root."""
    base = config.root / config.split if config.split is not None else config.root
    return base if base.is_dir() else config.root


# ---------------------------------------------------------------------------------------------------------------- DOTA


def read_dota(config: SynthesizeConfig) -> LabelledSet:
    """Images with oriented boxes: ``x1 y1 x2 y2 x3 y3 x4 y4 class difficult`` a line, after lines with a colon.

    Raises:
        DataError: with file:line: no label folder, a line of another shape, a box without area or outside the image.
    """
    base = _split_folder(config)
    folder = _folder(config, base, DOTA_FOLDERS, "DOTA's text files")
    files = sorted(folder.glob("*.txt"))
    images = _images_by_stem(config.root / config.images if config.images is not None else base)
    found = LabelledSet("dota")
    names: set[str] = set()
    for file in files:
        rows = list(dota_lines(file))
        names |= {label for _, (_, label, _) in rows}
        path = images.get(file.stem)
        if path is None:
            found.skip("missing", f"{file.stem} (no image of that name)")
        elif (size := find_size(path, found, relative(path, config.root))) is not None:
            objects = tuple(
                _oriented(corners, label, difficulty != 0, size, f"{file}:{number}", found)
                for number, (corners, label, difficulty) in rows
            )
            source = relative(file, config.root)
            found.images.append(LabelledImage((relative(path, config.root),), size, source, objects))
    found.classes = tuple(sorted(names))
    return found


def _split_folder(config: SynthesizeConfig) -> Path:
    base = base_of(config)
    if config.split is not None and base == config.root:
        raise DataError(f"has no folder '{config.split}'; leave split out, or correct it", str(config.root))
    return base


def _folder(config: SynthesizeConfig, base: Path, usual: tuple[str, ...], what: str) -> Path:
    if config.labels is not None:
        folder = config.root / config.labels
        if not folder.is_dir():
            raise DataError(f"no such folder; set labels to the folder of {what}", str(folder))
        return folder
    here = [base / name for name in usual if (base / name).is_dir()]
    if len(here) != 1:
        found = "several folders may hold" if here else "no folder holds"
        raise DataError(f"{found} {what} ({', '.join(usual)}); say which with labels: FOLDER", str(base))
    return here[0]


def _images_by_stem(folder: Path) -> dict[str, Path]:
    """Every image below a folder by its name without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in found:
                text = f"and {found[path.stem]} belong to the same label; say where the images are with images: FOLDER"
                raise DataError(text, str(path))
            found[path.stem] = path
    return found


def _oriented(
    corners: Corners, label: str, difficult: bool, size: tuple[int, int], where: str, found: LabelledSet
) -> LabelledObject:
    xs, ys = corners[0::2], corners[1::2]
    box = (min(xs), min(ys), max(xs), max(ys))
    area = abs(polygon_area(corners)) if all(map(math.isfinite, corners)) else None
    thing, note = make_object(label, box, size, where, doubtful=difficult, area=area, quad=corners)
    if note:
        found.noted[note] += 1
    return thing


# ----------------------------------------------------------------------------------------------------------------- VOC


def read_voc(config: SynthesizeConfig) -> LabelledSet:
    """Images with boxes from VOC's XML; ``rotated_bndbox`` with x1 ... y4 (as SSDD writes it) gives oriented ones.

    xmin and xmax are taken as the box's edges; the format's inclusive counting from 1 makes at most a pixel's difference.

    Raises:
        DataError: with file:line: no XML, XML with a document type, missing or wrong numbers, an unknown split.
    """
    folder = _folder(config, config.root, (VOC_FOLDER,), "VOC's XML files")
    files = sorted(folder.glob("*.xml"))
    if config.split is not None:
        files = _listed(config, files)
    images = config.root / (config.images if config.images is not None else VOC_IMAGES)
    if not images.is_dir():
        raise DataError("no such folder; say where the images are with images: FOLDER", str(images))
    found = LabelledSet("voc")
    names: set[str] = set()
    for file in files:
        root = read_xml(file)
        if root.tag != "annotation":
            raise DataError(f"begins with <{root.tag}>; VOC's files begin with <annotation>", f"{file}:{root.line}")
        names |= {xml_text(node, "name", file) for node in root.all("object")}
        image = _voc_image(config, root, images, file, found)
        if image is not None:
            found.images.append(image)
    found.classes = tuple(sorted(names))
    return found


def _listed(config: SynthesizeConfig, files: list[Path]) -> list[Path]:
    path = config.root / "ImageSets" / "Main" / f"{config.split}.txt"
    if not path.is_file():
        raise DataError(f"does not exist, and split is '{config.split}'; correct it or leave it out", str(path))
    by_stem = {file.stem: file for file in files}
    chosen = []
    for number, line in enumerate(read_label_text(path).splitlines(), 1):
        if line.strip():
            stem = line.split()[0]
            if stem not in by_stem:
                raise DataError(f"'{stem}' has no XML file; add it, or remove the line", f"{path}:{number}")
            chosen.append(by_stem[stem])
    return sorted(set(chosen))


def _voc_image(
    config: SynthesizeConfig, root: Node, folder: Path, file: Path, found: LabelledSet
) -> LabelledImage | None:
    named = root.find("filename")
    name = named.text.strip() if named is not None and named.text.strip() else file.stem
    where = f"{file}:{named.line if named is not None else root.line}"
    path = below(folder, name, where)
    if not path.is_file():  # some sets write the name without its suffix
        path = next((p for s in sorted(SUFFIXES) if (p := folder / f"{name}{s}").is_file()), path)
    size = find_size(path, found, name)
    if size is None:
        return None
    node = root.find("size")
    if node is not None:
        stated = (round(xml_number(node, "width", file)), round(xml_number(node, "height", file)))
        if stated != (0, 0):  # some tools leave the size out this way
            check_size(stated, size, f"{file}:{node.line}")
    objects = tuple(_voc_object(thing, size, file, found) for thing in root.all("object"))
    return LabelledImage((relative(path, config.root),), size, relative(file, config.root), objects)


def _voc_object(node: Node, size: tuple[int, int], file: Path, found: LabelledSet) -> LabelledObject:
    box = node.find("bndbox")
    if box is None:
        raise DataError("an <object> has no <bndbox>; add it, or remove the object", f"{file}:{node.line}")
    x1, y1, x2, y2 = (xml_number(box, tag, file) for tag in ("xmin", "ymin", "xmax", "ymax"))
    rotated = node.find("rotated_bndbox")
    quad: Corners | None = None
    if rotated is not None and rotated.find("x1") is not None:
        a, b, c, d, e, f, g, h = (xml_number(rotated, f"{axis}{i}", file) for i in range(1, 5) for axis in "xy")
        quad = (a, b, c, d, e, f, g, h)
    flags = [node.find(tag) for tag in ("difficult", "truncated")]
    doubtful = any(flag is not None and flag.text.strip() not in ("", "0") for flag in flags)
    thing, note = make_object(
        xml_text(node, "name", file), (x1, y1, x2, y2), size, f"{file}:{box.line}", doubtful=doubtful,
        area=abs(polygon_area(quad)) if quad is not None and all(map(math.isfinite, quad)) else None, quad=quad,
    )  # fmt: skip
    if note:
        found.noted[note] += 1
    return thing
