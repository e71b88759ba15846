"""GeoPackages read again without the library that wrote them: SQLite, and shapely for the geometry."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine

from vitp.boxes.objects import Detections
from vitp.errors import MissingExtraError, OutputError
from vitp.inference import geopackage
from vitp.inference.geopackage import polygon_wkb, write_geopackage
from vitp.inference.object_files import Picture, write_object_polygons
from vitp.inference.polygons import check_polygons, write_polygons
from vitp.inference.sinks import Look
from vitp.inference.sources import Place

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
UTM = Place(CRS.from_epsg(32633).to_wkt(), tuple(PLACE)[:6])
SQUARE = [
    [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0), (0.0, 0.0)],
    [(1.0, 1.0), (1.0, 2.0), (2.0, 2.0), (1.0, 1.0)],
]


def _read(path: Path) -> tuple[list[dict[str, object]], CRS | None]:
    """Rows with their geometry as shapely's, and the coordinate system, by the standard's own tables."""
    with closing(sqlite3.connect(path)) as file:
        file.row_factory = sqlite3.Row
        table, column, system = next(file.execute("select table_name, column_name, srs_id from gpkg_geometry_columns"))
        srs = next(file.execute("select * from gpkg_spatial_ref_sys where srs_id = ?", (system,)))
        rows = [dict(row) for row in file.execute(f'select * from "{table}"')]
    for row in rows:
        blob = row.pop(column)
        envelope = (0, 32, 48, 48, 64)[blob[3] >> 1 & 7]  # OGC 12-128, 2.1.3: magic, version, flags, srs, envelope
        assert blob[:2] == b"GP"
        row["geometry"] = shapely.from_wkb(blob[8 + envelope :])
    known = srs["organization"].upper() == "EPSG"
    return rows, CRS.from_epsg(srs["organization_coordsys_id"]) if known else None


def test_polygons_with_holes_and_typed_columns_come_back(tmp_path: Path) -> None:
    columns: geopackage.Columns = {"name": str, "number": int, "share": float}
    features = [
        (SQUARE, {"name": 'Bö\'se "x"', "number": 2**40, "share": 0.25}),
        (SQUARE[:1], {"name": "", "number": -1, "share": 1e-9}),
    ]
    write_geopackage(tmp_path / "a.gpkg", features, columns, "EPSG:32633", "ships")
    rows, crs = _read(tmp_path / "a.gpkg")
    assert crs == CRS.from_epsg(32633)
    assert [{name: row[name] for name in columns} for row in rows] == [about for _, about in features]
    assert rows[0]["geometry"].equals(shapely.Polygon(SQUARE[0], SQUARE[1:]))
    assert shapely.from_wkb(polygon_wkb(SQUARE)).equals(rows[0]["geometry"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.gpkg"]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_any_number_of_features_in_any_number_of_chunks(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geopackage, "_AT_ONCE", 3)
    features = ((SQUARE[:1], {"number": i}) for i in range(count))
    write_geopackage(tmp_path / "a.gpkg", features, {"number": int}, None, "a")
    rows, crs = _read(tmp_path / "a.gpkg")
    assert [row["number"] for row in rows] == list(range(count))
    assert crs is None


def test_a_class_map_keeps_its_coordinate_system(tmp_path: Path) -> None:
    ids = np.zeros((60, 80), dtype=np.uint8)
    ids[10:20, 30:50] = 1
    ids[14:16, 34:36] = 0  # a hole
    ids[50, 70] = 1
    ids.tofile(tmp_path / "ids")
    look = Look(("dark", "bright"), ((0, 0, 0), (255, 0, 0)))
    assert write_polygons(tmp_path / "map.gpkg", tmp_path / "ids", ids.shape, UTM, look, 2) == (1, 1)
    ((row,), crs) = _read(tmp_path / "map.gpkg")
    assert crs == CRS.from_epsg(32633)
    assert (row["class"], row["id"], row["pixels"]) == ("bright", 1, 196)
    shape = row["geometry"]
    assert shape.area == pytest.approx(196 * 100)
    assert shape.bounds == (*(PLACE @ (30, 20)), *(PLACE @ (50, 10)))
    painted = rasterize([(shape, 1)], ids.shape, transform=PLACE)  # the picture of the outlines is the class map again
    ids[50, 70] = 0
    assert np.array_equal(painted, ids)


def test_oriented_objects_with_class_and_score(tmp_path: Path) -> None:
    found = Detections(torch.tensor([[20.0, 30.0, 10.0, 4.0, 0.5]]), torch.tensor([0.75]), torch.tensor([1]))
    for name, place in (("ground", UTM), ("picture", None)):
        write_object_polygons(tmp_path / f"{name}.gpkg", found, Picture("a", 60, 80), ("car", "ship"), place)
        ((row,), crs) = _read(tmp_path / f"{name}.gpkg")
        assert (row["class"], row["id"], row["score"], row["angle"]) == ("ship", 1, 0.75, 0.5)
        side = 10 if place else 1
        assert row["geometry"].area == pytest.approx(40 * side**2, rel=1e-5)
        x, y = row["geometry"].centroid.coords[0]
        assert (x, y) == pytest.approx(PLACE @ (20, 30) if place else (20, 30))
        assert (crs is None) == (place is None)


def test_a_missing_library_is_said_before_the_work_and_a_bad_place_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_geopackage(tmp_path / "file" / "a.gpkg", [], {}, None, "a")
    monkeypatch.setitem(__import__("sys").modules, "pyogrio.raw", None)
    check_polygons("geojson", objects=False)
    with pytest.raises(MissingExtraError, match=r"pyogrio.*vitp\[geo\]"):
        check_polygons("gpkg", objects=True)
