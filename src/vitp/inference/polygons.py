"""Outlines of a class map as GeoJSON: a feature for each connected region of a class but the background.

With a coordinate system the coordinates are longitude and latitude (RFC 7946); without one they are those of the image's own
transform, and of an ordinary picture pixels, x to the right and y down. The file says which, in its member "coordinates".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp.files import text_stream
from vitp.images.levels import import_extra
from vitp.inference.sinks import Look
from vitp.inference.sources import Place
from vitp.metrics.segmentation import IGNORE

_PURPOSE = "writing polygons"
Rings = Sequence[Sequence[tuple[float, float]]]
_DIGITS = 8  # of degrees: a millimetre


def write_polygons(
    path: Path, raw: Path, size: tuple[int, int], place: Place | None, look: Look, smallest: int
) -> tuple[int, int]:
    """Write the outlines; how many there are, and how many of fewer than `smallest` pixels were left out.

    Raises:
        OutputError: no space left or not writable.
        MissingExtraError: rasterio is not installed.
    """
    counts = {"kept": 0, "left out": 0}

    def regions() -> Iterator[tuple[Rings, dict[str, Any]]]:
        for kind, pixels, outline in _outlines(raw, size, look):
            counts["left out" if pixels < smallest else "kept"] += 1
            if pixels >= smallest:
                yield outline["coordinates"], {"class": look.classes[kind], "id": kind, "pixels": pixels}

    write_features(path, regions(), place)
    return counts["kept"], counts["left out"]


def write_features(path: Path, features: Iterable[tuple[Rings, dict[str, Any]]], place: Place | None) -> None:
    """Polygons (rings in pixels, the first the outer one, each closed) with their properties.

    Raises:
        OutputError: no space left or not writable.
        MissingExtraError: rasterio is not installed and the image lies on the ground.
    """
    geographic = place is not None and place.crs is not None
    stated = "EPSG:4326 (longitude, latitude)" if geographic else "of the image's transform" if place else "pixels"
    with text_stream(path) as stream:
        stream.write(f'{{"type": "FeatureCollection", "coordinates": {json.dumps(stated)}, "features": [')
        for number, (rings, about) in enumerate(features):
            outline = {"type": "Polygon", "coordinates": rings}
            feature = {"type": "Feature", "properties": about, "geometry": _placed(outline, place)}
            stream.write((",\n" if number else "\n") + json.dumps(feature))
        stream.write("\n]}\n")


def _outlines(raw: Path, size: tuple[int, int], look: Look) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(class id, pixels, polygon in pixel coordinates) of every region of 4-connected pixels."""
    features = import_extra("rasterio.features", "geo", _PURPOSE)
    ids = np.memmap(raw, dtype=np.uint8, mode="r", shape=size)
    wanted = ids != IGNORE
    if look.background is not None:
        wanted &= ids != look.background
    for outline, value in features.shapes(ids, mask=wanted, connectivity=4):
        yield int(value), round(_area(outline)), outline


def _area(outline: dict[str, Any]) -> float:
    """Area within the first ring less that of the holes, by the shoelace formula."""
    areas = []
    for ring in outline["coordinates"]:
        x, y = np.asarray(ring, dtype=np.float64).T
        areas.append(abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2)
    return areas[0] - sum(areas[1:])


def _placed(outline: dict[str, Any], place: Place | None) -> dict[str, Any]:
    if place is None:
        return outline
    a, b, c, d, e, f = place.transform
    rings = [[(a * x + b * y + c, d * x + e * y + f) for x, y in ring] for ring in outline["coordinates"]]
    moved: dict[str, Any] = {"type": "Polygon", "coordinates": rings}
    if place.crs is None:
        return moved
    warp = import_extra("rasterio.warp", "geo", _PURPOSE)
    placed: dict[str, Any] = warp.transform_geom(place.crs, "EPSG:4326", moved, precision=_DIGITS)
    return placed
