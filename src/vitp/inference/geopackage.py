"""Polygons as a GeoPackage (OGC 12-128), the format of QGIS and ArcGIS: one layer, typed columns, any coordinate system.

pyogrio (MIT, wheels with GDAL) writes it from plain arrays: no geopandas, no pandas.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitp.files import write_atomic
from vitp.images.levels import import_extra

Rings = Sequence[Sequence[tuple[float, float]]]
Columns = Mapping[str, type[str] | type[int] | type[float]]
PURPOSE = "writing a GeoPackage"
_AT_ONCE = 10_000  # features held in memory
_LITTLE_ENDIAN, _POLYGON = 1, 3  # OGC 06-103r4, 8.2
_DTYPES: dict[type, Any] = {str: object, int: np.int64, float: np.float64}


def write_geopackage(
    path: Path,
    features: Iterable[tuple[Rings, Mapping[str, Any]]],
    columns: Columns,
    crs: str | None,
    layer: str,
) -> None:
    """Write polygons with attributes; their coordinates are stored as they are.

    Args:
        path: ends in .gpkg; written atomically, and streamed: a few thousand features are held.
        features: rings (x, y), the first the outer one, each closed; and a value for every column.
        columns: name -> type of each attribute, there even when nothing is.
        crs: the coordinates' system, WKT or ``EPSG:32633``; None: none is known.
        layer: its name in the file.

    Raises:
        MissingExtraError: pyogrio is not installed.
        OutputError: no space left or not writable.
    """
    write_atomic(path, lambda temporary: _write(temporary, iter(features), columns, crs, layer))


def polygon_wkb(rings: Rings) -> bytes:
    """Well-known binary (OGC 06-103r4, 8.2) of a polygon."""
    parts = [struct.pack("<BII", _LITTLE_ENDIAN, _POLYGON, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, dtype="<f8").tobytes()]
    return b"".join(parts)


def _write(
    path: Path, features: Iterable[tuple[Rings, Mapping[str, Any]]], columns: Columns, crs: str | None, layer: str
) -> None:
    raw = import_extra("pyogrio.raw", "geo", PURPOSE)
    errors = import_extra("pyogrio.errors", "geo", PURPOSE)
    made = path.with_name(f"{path.name}.gpkg")  # GDAL wants the ending
    append = False
    try:
        while (chunk := list(islice(features, _AT_ONCE))) or not append:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="'crs' was not provided")
                raw.write(
                    made,
                    _array([polygon_wkb(rings) for rings, _ in chunk], object),
                    [_array([about[name] for _, about in chunk], _DTYPES[kind]) for name, kind in columns.items()],
                    list(columns),
                    layer=layer,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=crs,
                    append=append,
                )
            append = True
        made.replace(path)
    except (errors.DataSourceError, errors.FeatureError, errors.GeometryError) as error:
        raise OSError(str(error)) from error
    finally:
        made.unlink(missing_ok=True)


def _array(values: Sequence[Any], dtype: Any) -> NDArray[Any]:
    found = np.empty(len(values), dtype=dtype)
    found[:] = values
    return found
