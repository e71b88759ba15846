"""Objects in XML, one file an image: Pascal VOC's, SSDD's with its rotated boxes and outlines, DIOR-R's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitp.datasets.objects_config import XmlConfig
from vitp.datasets.objects_table import ObjectItem, Size, TableBuilder
from vitp.errors import DataError
from vitp.synthesis.xml_lines import Node, read_xml, xml_number, xml_text

_UPRIGHT = ("xmin", "ymin", "xmax", "ymax")
_CORNERS = {
    "rotated_bndbox": tuple(f"{axis}{i}" for i in range(1, 5) for axis in "xy"),
    "robndbox": tuple(
        f"{axis}_{corner}" for corner in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy"
    ),
}
_SHIFTS = {"edges": (0.0, 0.0), "from_1": (-1.0, 0.0), "from_0": (0.0, 1.0)}  # of the near and of the far side


def read_xml_objects(items: list[ObjectItem], config: XmlConfig) -> tuple[list[ObjectItem], TableBuilder]:
    """The objects of all images, and the images with the sizes that their labels state.

    Raises:
        DataError: with file:line: no XML, another root, a missing element, or text where a number must be.
    """
    table = TableBuilder(quads=config.quads is not None, outlined=config.outlines)
    sized = []
    for item in items:
        table.begin(item.labels)
        if item.labels is None:
            sized.append(item)
            continue
        root = read_xml(item.labels)
        if root.tag != "annotation":
            raise DataError(f"begins with <{root.tag}>, not with <annotation>", f"{item.labels}:{root.line}")
        for node in root.all("object"):
            _add(node, item.labels, config, table)
        sized.append(replace(item, stated=_stated(root, item.labels)))
    return sized, table


def _add(node: Node, file: Path, config: XmlConfig, table: TableBuilder) -> None:
    place, tags = ("bndbox", _UPRIGHT) if config.quads is None else (config.quads, _CORNERS[config.quads])
    box = node.find(place)
    if box is None:
        others = [tag for tag in ("bndbox", *_CORNERS) if node.find(tag) is not None]
        there = f" but <{others[0]}>" if others else ""
        fix = "data.quads says which is read" if others else "add it, or remove the object"
        raise DataError(f"an <object> has no <{place}>{there}; {fix}", f"{file}:{node.line}")
    numbers = [xml_number(box, tag, file, finite=False) for tag in tags]
    if config.quads is None:
        near, far = _SHIFTS[config.counting]
        numbers = [numbers[0] + near, numbers[1] + near, numbers[2] + far, numbers[3] + far]
    flags = (("difficult", config.difficult), ("truncated", config.truncated))
    ignored = any(rule == "ignore" and _is_set(node.find(tag)) for tag, rule in flags)
    outline = [_ring(segm, file) for segm in node.all("segm")] if config.outlines else []
    table.add(xml_text(node, "name", file), numbers, node.line, difficult=ignored, outline=outline)


def _stated(root: Node, file: Path) -> Size | None:
    """(H, W) from <size>; None where it is missing, or zero as some tools leave it."""
    node = root.find("size")
    if node is None:
        return None
    height, width = (xml_number(node, tag, file, finite=False) for tag in ("height", "width"))
    if not (np.isfinite(height) and np.isfinite(width)) or height < 1 or width < 1:
        return None
    return round(height), round(width)


def _ring(segm: Node, file: Path) -> NDArray[np.float32]:
    """The points of an outline, ``<point-1>226,72</point-1> ...``."""
    points = []
    for point in segm.children:
        try:
            x, y = map(float, point.text.split(","))
        except ValueError as error:
            raise DataError(f"<{point.tag}> is '{point.text[:40]}'; write x,y", f"{file}:{point.line}") from error
        points.append((x, y))
    return np.array(points, dtype=np.float32).reshape(-1, 2)


def _is_set(flag: Node | None) -> bool:
    return flag is not None and flag.text.strip().lower() not in ("", "0", "unspecified", "false")
