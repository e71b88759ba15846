"""DOTA cut into patches against a slow reference; patches put together are the image; HRSC2016 translated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import Polygon, box
from tests.fakes import FAKES
from tests.fakes.pictures import picture
from typer.testing import CliRunner

from vitp.boxes.formats import from_dota, to_quads
from vitp.cli import app
from vitp.commands.prepare import prepare
from vitp.datasets import prepare_dota
from vitp.datasets.benchmark_check import check_folder
from vitp.datasets.catalog import benchmark
from vitp.datasets.prepare_dota import _strips
from vitp.errors import ConfigError, DataError, OutputError
from vitp.images.read import ImageConfig
from vitp.inference import sources
from vitp.inference.sources import Source, opened

Line = tuple[tuple[float, ...], str, int]


def pixels(file: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(file))


def lines(file: Path) -> list[Line]:
    found = []
    for text in file.read_text(encoding="utf-8").splitlines():
        *numbers, name, difficulty = text.split()
        found.append((tuple(map(float, numbers)), name, int(difficulty)))
    return found


def write(root: Path, size: tuple[int, int], objects: list[Line], stem: str = "P0001") -> Path:
    """A sample without parts: one image and its label, with the headers of DOTA."""
    picture(root / f"images/{stem}.png", *size)
    file = root / f"labelTxt/{stem}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{' '.join(f'{v:.1f}' for v in corners)} {name} {hard}\n" for corners, name, hard in objects]
    file.write_text("imagesource:GoogleEarth\ngsd:0.15\n" + "".join(rows), encoding="utf-8")
    return root


def quads(count: int, size: tuple[int, int], seed: int) -> list[Line]:
    """Objects of all kinds: rectangles, concave and crossed quads, flat ones, some outside the image."""
    rng = np.random.default_rng(seed)
    found: list[Line] = []
    for i in range(count):
        centre = rng.uniform((-10, -10), (size[0] + 10, size[1] + 10))
        w, h = rng.uniform(2, 90, 2) if i % 7 else rng.uniform(100, 200, 2)
        turn = rng.uniform(0, math.pi)
        corners = np.array([(-w, -h), (w, -h), (w, h), (-w, h)]) / 2
        corners = corners @ np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))]) + centre
        if i % 5 == 1:
            corners[2] = corners.mean(0) * 0.9 + corners[0] * 0.1  # concave
        if i % 5 == 2:
            corners = corners[[0, 2, 1, 3]]  # crossed
        if i % 11 == 3:
            corners[2:] = corners[[1, 0]]  # flat
        found.append((tuple(corners.round(1).ravel().tolist()), f"class-{i}", int(i % 3 == 0)))
    return found


def reference(size: tuple[int, int], objects: list[Line], *cuts: tuple[int, int]) -> dict[str, list[Line]]:
    """The rules said slowly, that of windows that the image fills too little among them."""
    width, height = size
    places = []
    for tile, overlap in cuts:
        step = tile - overlap
        windows = []
        for length in (height, width):
            count = 1 if length <= tile else math.ceil((length - tile) / step) + 1
            starts = [step * i for i in range(count)]
            if count > 1 and starts[-1] + tile > length:
                starts[-1] = length - tile
            windows.append(starts)
        places += [(x, y, tile) for y in windows[0] for x in windows[1]]
    filled = {p: max(0, min(width - p[0], p[2])) * max(0, min(height - p[1], p[2])) / p[2] ** 2 for p in places}
    enough = {p for p, share in filled.items() if share > 0.6}
    fullest = max(filled.values())
    enough = enough or {p for p, share in filled.items() if share == fullest}
    found: dict[str, list[Line]] = {}
    for x, y, tile in places:
        if (x, y, tile) not in enough:
            continue
        name = f"{tile}__{x}___{y}"
        found[name] = []
        for corners, label, hard in objects:
            polygon = Polygon(np.array(corners).reshape(4, 2))
            outline = polygon if polygon.is_valid else polygon.convex_hull
            if outline.area == 0:
                continue
            share = shapely.intersection(outline, box(x, y, x + tile, y + tile)).area / outline.area
            if share >= 0.7:
                moved = tuple(v - (x, y)[i % 2] for i, v in enumerate(corners))
                found[name].append((moved, label, hard if share > 1 - 1e-12 else 2))
    return found


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((300, 210), 64, 13), ((257, 64), 64, 12), ((40, 300), 64, 0), ((50, 30), 64, 12)]
)
def test_patches_are_those_of_a_slow_reference(size: tuple[int, int], tile: int, overlap: int, tmp_path: Path) -> None:
    objects = quads(150, size, seed=size[0])
    prepare("dota_v1", write(tmp_path / "in", size, objects), tmp_path / "out", tile=tile, overlap=overlap)
    expected = reference(size, objects, (tile, overlap))
    assert {f.stem for f in (tmp_path / "out/images").iterdir()} == {f"P0001__{name}" for name in expected}
    assert sum(map(len, expected.values())) > 20
    kinds = set()
    for name, wanted in expected.items():
        found = lines(tmp_path / f"out/labelTxt/P0001__{name}.txt")
        assert [(label, hard) for _, label, hard in found] == [(label, hard) for _, label, hard in wanted]
        np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], atol=1e-4)
        kinds |= {hard for *_, hard in found}
    assert kinds == {0, 1, 2}


def test_labels_merged_back_are_those_of_the_image(tmp_path: Path) -> None:
    """What lies in a window as a whole comes back exactly, with its own difficulty; nothing else does."""
    size, tile, overlap = (300, 210), 64, 20
    objects = [o for o in quads(200, size, seed=1) if Polygon(np.array(o[0]).reshape(4, 2)).convex_hull.area]
    result = prepare("dota_v1", write(tmp_path / "in", size, objects), tmp_path / "out", tile=tile, overlap=overlap)
    merged = set()
    for file in (tmp_path / "out/labelTxt").iterdir():
        side, _, place = file.stem.removeprefix("P0001__").partition("__")
        assert int(side) == tile
        x, y = map(int, place.split("___"))
        for corners, name, hard in lines(file):
            if hard != 2:
                assert all(0 <= v <= tile for v in corners)
                merged.add((tuple(round(v + (x, y)[i % 2], 4) for i, v in enumerate(corners)), name, hard))

    def fits(corners: tuple[float, ...]) -> bool:
        spans = [(min(axis), max(axis)) for axis in (corners[0::2], corners[1::2])]
        starts = [[*range(0, length - tile, tile - overlap), length - tile] for length in size]
        return all(
            any(s <= low and high <= s + tile for s in at) for (low, high), at in zip(spans, starts, strict=True)
        )

    assert merged == {o for o in objects if fits(o[0])}
    assert len(merged) > 15
    (note,) = result.notes
    lost = {o[1] for o in objects} - {
        line[1] for found in reference(size, objects, (tile, overlap)).values() for line in found
    }
    assert note == f"{len(lost)} objects are in no patch: no window holds 0.7 of their area"


def test_pixels_are_the_image_s_and_the_rest_is_imagenet_s_mean(tmp_path: Path) -> None:
    source = FAKES["dota_v2"](tmp_path / "DOTA")
    prepare("dota_v2", source, tmp_path / "out", tile=64, overlap=12, threads=1)
    for part, stem in (("train", "P0000"), ("train", "P0001"), ("val", "P0003")):
        image = pixels(source / part / f"images/{stem}.png")
        seen = np.zeros_like(image)
        for file in (tmp_path / "out" / part / "images").glob(f"{stem}__*.png"):
            x, y = map(int, file.stem.split("__64__")[1].split("___"))
            patch = pixels(file)
            assert patch.shape == (64, 64, 3)
            inner = image[y : y + 64, x : x + 64]
            np.testing.assert_array_equal(patch[: inner.shape[0], : inner.shape[1]], inner)
            beyond = np.concatenate([patch[inner.shape[0] :].reshape(-1, 3), patch[:, inner.shape[1] :].reshape(-1, 3)])
            assert (beyond == (124, 116, 104)).all()
            seen[y : y + 64, x : x + 64] = inner
        np.testing.assert_array_equal(seen, image)
    assert not (tmp_path / "out/test").exists()


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((300, 210), {42, 64, 128}),
        ((75, 75), {42, 64}),  # fills a window of 128 to 0.34
        ((64, 30), {42}),  # and one of 64 to 0.47
        ((30, 20), {42}),  # fills all too little: the fullest stays
    ],
)
def test_several_rates_cut_windows_of_several_sizes(size: tuple[int, int], sides: set[int], tmp_path: Path) -> None:
    objects = quads(80, size, seed=3)
    source = write(tmp_path / "in", size, objects)
    arguments = ["prepare", "dota_v1.5", str(source), str(tmp_path / "out"), "--tile", "64", "--overlap", "20"]
    shown = CliRunner().invoke(app, [*arguments, "--rate", "0.5", "--rate", "1", "--rate", "1.5"])
    assert shown.exit_code == 0
    expected = reference(size, objects, (128, 40), (64, 20), (42, 13))
    assert {int(name.split("__")[0]) for name in expected} == sides
    for name, wanted in expected.items():
        found = lines(tmp_path / f"out/labelTxt/P0001__{name}.txt")
        assert [line[1:] for line in found] == [line[1:] for line in wanted]
        assert pixels(tmp_path / f"out/images/P0001__{name}.png").shape[0] == int(name.split("__")[0])
    assert len(list((tmp_path / "out/images").iterdir())) == len(expected)
    with pytest.raises(OutputError, match="another preparation"):
        prepare("dota_v1_5", source, tmp_path / "out", tile=64, overlap=20)


def test_a_large_image_is_read_once_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    source = FAKES["dota_v1"](tmp_path / "DOTA")
    prepare("dota_v1", source, tmp_path / "whole", tile=32, overlap=7)
    read: list[tuple[int, int]] = []

    class Counted(sources.RasterSource):
        def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            read.append((top, count))
            return super().rows(top, count)

    monkeypatch.setattr(sources, "_WHOLE_PIXELS", 150 * 110 - 1)
    monkeypatch.setattr(sources, "RasterSource", Counted)
    with monkeypatch.context() as limited:  # Pillow refuses what has more than twice as many: even its header
        limited.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 110 // 2 - 1)
        prepare("dota_v1", source, tmp_path / "rows", tile=32, overlap=7, threads=1)
    for file in (tmp_path / "whole").rglob("*.png"):
        other = tmp_path / "rows" / file.relative_to(tmp_path / "whole")
        np.testing.assert_array_equal(pixels(other), pixels(file))
    assert read == 2 * [
        (0, 32),
        (32, 25),
        (57, 25),
        (82, 25),
        (107, 3),
    ]  # the two large images, never more than 32 rows
    with opened(source / "train/images/P0000.png", None, ImageConfig()) as found:
        assert (found.raster, found.place) == (False, None)  # a picture as before, not a GeoTIFF


class Counting(Source):
    def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        values = np.arange(top, top + count, dtype=np.uint8)
        return np.broadcast_to(values[None, :, None], (3, count, self.width)), np.ones((count, self.width), np.bool_)


@pytest.mark.parametrize("starts", [[0], [0, 20, 40], [40], [0, 60], [5, 10, 69]])
def test_strips_begin_where_they_should_whatever_is_left_out(starts: list[int]) -> None:
    source = Counting(Path("x"), height=100, width=4, channels=3, place=None, raster=False)
    for start, strip in _strips(source, starts, 31):
        assert strip.shape == (3, min(31, 100 - start), 4)
        assert strip[0, :, 0].tolist() == list(range(start, min(start + 31, 100)))


def test_an_interrupted_cut_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    source = FAKES["dota_v1"](tmp_path / "DOTA")
    whole = prepare("dota_v1", source, tmp_path / "out", tile=64, overlap=12)
    files = sorted(f for f in (tmp_path / "out").rglob("*") if f.is_file() and f.suffix != ".json")
    before = {f: f.read_bytes() for f in files}
    for file in files[::3]:
        file.unlink()
    kept = {f: f.stat().st_mtime_ns for f in files if f.is_file()}
    again = prepare("dota_v1", source, tmp_path / "out", tile=64, overlap=12)
    assert (again.written, again.kept) == (len(files) - len(kept), len(kept))
    assert whole.written == len(files)
    assert {f: f.read_bytes() for f in files} == before
    assert {f: f.stat().st_mtime_ns for f in kept} == kept


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("dota_v1", "labelTxt-v1.0/labelTxt"),
        ("dota_v1", "labelTxt-v1.0"),
        ("dota_v1", "labelTxt"),
        ("dota_v1_5", "labelTxt-v1.5/DOTA-v1.5_train"),
        ("dota_v2", "DOTA-v2.0_train"),
        ("dota_v2", "labelTxt-v2.0/DOTA-v2.0_train"),
    ],
)
def test_labels_are_found_where_archives_put_them(name: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "P0000.txt").touch()
    (tmp_path / "labelTxt-v9.9").mkdir()
    assert prepare_dota.label_folder(benchmark(name), tmp_path, "train") == tmp_path / folder


def test_another_version_s_labels_are_never_taken(tmp_path: Path) -> None:
    source = FAKES["dota_v1"](tmp_path / "DOTA")
    with pytest.raises(DataError, match=r"no folder holds its labels \(labelTxt-v2\.0/DOTA-v2\.0_train"):
        prepare("dota_v2", source, tmp_path / "out", tile=64, overlap=12)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


LABEL = "train/labelTxt-v1.0/labelTxt/P0000.txt"
SHIPS = "FullDataSet/Annotations/100000001.xml"
MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "label": ("dota_v1", lambda s: (s / LABEL).unlink(), r"P0000\.png: has no label: .*P0000\.txt does not exist"),
    "nan": ("dota_v1", lambda s: edit(s / LABEL, "\n", "\nnan 1 2 3 4 5 6 7 x 0\n"), r"P0000\.txt:2: .*not finite"),
    "fields": ("dota_v1", lambda s: edit(s / LABEL, "\n", "\n1 2 3 plane\n"), r"P0000\.txt:2: has 4 fields"),
    "image": ("dota_v1", lambda s: (s / "val/images/P0003.png").write_bytes(b"no picture"), r"P0003\.png"),
    "list": ("hrsc2016", lambda s: (s / "ImageSets/val.txt").unlink(), r"val\.txt: the list does not exist"),
    "bmp": ("hrsc2016", lambda s: (s / "FullDataSet/AllImages/100000003.bmp").unlink(), r"val\.txt:1: lists"),
    "number": ("hrsc2016", lambda s: edit(s / SHIPS, "<mbox_w>", "<mbox_w>x"), r"100000001\.xml:3: <mbox_w> is 'x"),
    "root": ("hrsc2016", lambda s: (s / SHIPS).write_text("<annotation/>"), r"100000001\.xml:1: begins with <annot"),
    "way out": ("hrsc2016", lambda s: (s / "ImageSets/val.txt").write_text("../x"), r"val\.txt:1: lists '\.\./x'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_source_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    name, harm, expected = MISTAKES[mistake]
    source = FAKES[name](tmp_path / "source")
    harm(source)
    sizes = {"tile": 64, "overlap": 12} if name == "dota_v1" else {}
    with pytest.raises(DataError, match=expected) as caught:
        prepare(name, source, tmp_path / "out", **sizes)
    assert "\n" not in str(caught.value)


def test_rates_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    source = FAKES["dota_v1"](tmp_path / "DOTA")
    for rates, expected in (((0.0,), "rate: 0 makes no tiles"), ((200.0,), "rate: 200"), ((1.0, 1.0), "same size")):
        with pytest.raises(ConfigError, match=expected):
            prepare("dota_v1", source, tmp_path / "out", rates=rates)
    with pytest.raises(ConfigError, match="rates are given, but only DOTA"):
        prepare("hrsc2016", source, tmp_path / "out", rates=(1.0,))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- HRSC2016


def test_ships_of_hrsc_keep_their_boxes_pictures_and_parts(tmp_path: Path) -> None:
    source = FAKES["hrsc2016"](tmp_path / "HRSC2016")
    result = prepare("hrsc2016", source, tmp_path / "out")
    assert result.written == 8
    assert not list((tmp_path / "out").rglob("100000099.*"))  # in no list
    assert lines(tmp_path / "out/train/labelTxt/100000002.txt") == []
    bitmap = source / "FullDataSet/AllImages/100000001.bmp"
    np.testing.assert_array_equal(pixels(tmp_path / "out/train/images/100000001.png"), pixels(bitmap))
    text = (source / "FullDataSet/Annotations/100000001.xml").read_text()
    ships = lines(tmp_path / "out/train/labelTxt/100000001.txt")
    assert [ship[1:] for ship in ships] == [("ship", 0), ("ship", 0), ("ship", 1)]
    for i, (corners, *_) in enumerate(ships):
        cx, cy, w, h, angle = (
            float(text.split(f"<mbox_{tag}>")[i + 1].split("<")[0]) for tag in ("cx", "cy", "w", "h", "ang")
        )
        along = np.array((math.cos(angle), math.sin(angle))) * w / 2
        across = np.array((-math.sin(angle), math.cos(angle))) * h / 2
        centre = np.array((cx, cy))
        expected = [centre - along - across, centre + along - across, centre + along + across, centre - along + across]
        np.testing.assert_allclose(np.array(corners).reshape(4, 2), expected, atol=6e-3)
        again = to_quads(from_dota(" ".join(map(str, corners)))).numpy()
        assert Polygon(again).symmetric_difference(Polygon(expected)).area < 0.02 * w * h
    assert check_folder(benchmark("hrsc2016"), tmp_path / "out").counts == {"train": 3, "test": 1}
