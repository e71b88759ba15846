"""Outlines as GeoJSON or GeoPackage: of a class map, a feature for each connected region of a class but the background.

GeoJSON: with a coordinate system the coordinates are longitude and latitude (RFC 7946); without one they are those of the
image's own transform, and of an ordinary picture pixels, x to the right and y down. The file says which, in its member
"coordinates". GeoPackage: coordinates in the image's own system, which the file carries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitp.files import text_stream
from vitp.images.levels import import_extra
from vitp.inference import geopackage
from vitp.inference.geopackage import Columns, Rings
from vitp.inference.sinks import Look
from vitp.inference.sources import Place
from vitp.metrics.segmentation import IGNORE

_PURPOSE = "writing polygons"
_DIGITS = 8  # of degrees: a millimetre
_OF_REGIONS: Columns = {"class": str, "id": int, "pixels": int}
Features = Iterable[tuple[Rings, dict[str, Any]]]


def check_polygons(kind: Literal["geojson", "gpkg"], *, objects: bool) -> None:
    """Before hours of work: what writes outlines of this kind, of `objects` or of a class map, is there.

    Raises:
        MissingExtraError: it is not installed.
    """
    if not objects:
        import_extra("rasterio.features", "geo", _PURPOSE)
    if kind == "gpkg":
        import_extra("pyogrio.raw", "geo", geopackage.PURPOSE)


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

    write_features(path, regions(), place, _OF_REGIONS)
    return counts["kept"], counts["left out"]


def write_features(path: Path, features: Features, place: Place | None, columns: Columns) -> None:
    """Polygons with their properties, as the file's ending says.

    Args:
        path: NAME.geojson or NAME.gpkg.
        features: rings in pixels, the first the outer one, each closed; and a value for each of `columns`.
        place: of the image.
        columns: the properties' types.

    Raises:
        OutputError: no space left or not writable.
        MissingExtraError: rasterio is not installed and the image lies on the ground; pyogrio is not, for a GeoPackage.
    """
    if path.suffix == ".gpkg":
        moved = ((_on_ground(rings, place), about) for rings, about in features)
        geopackage.write_geopackage(path, moved, columns, None if place is None else place.crs, path.stem)
    else:
        _write_geojson(path, features, place)


def _write_geojson(path: Path, features: Features, place: Place | None) -> None:
    geographic = place is not None and place.crs is not None
    stated = "EPSG:4326 (longitude, latitude)" if geographic else "of the image's transform" if place else "pixels"
    with text_stream(path) as stream:
        stream.write(f'{{"type": "FeatureCollection", "coordinates": {json.dumps(stated)}, "features": [')
        for number, (rings, about) in enumerate(features):
            feature = {"type": "Feature", "properties": about, "geometry": _placed(rings, place)}
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


def _on_ground(rings: Rings, place: Place | None) -> Rings:
    """Pixels to the coordinates of the image's own transform."""
    if place is None:
        return rings
    a, b, c, d, e, f = place.transform
    return [[(a * x + b * y + c, d * x + e * y + f) for x, y in ring] for ring in rings]


def _placed(rings: Rings, place: Place | None) -> dict[str, Any]:
    """GeoJSON's geometry."""
    moved: dict[str, Any] = {"type": "Polygon", "coordinates": _on_ground(rings, place)}
    if place is None or place.crs is None:
        return moved
    warp = import_extra("rasterio.warp", "geo", _PURPOSE)
    placed: dict[str, Any] = warp.transform_geom(place.crs, "EPSG:4326", moved, precision=_DIGITS)
    return placed
