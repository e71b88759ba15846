"""Rasters: rasterio's own values, scaled by known limits; nodata black and counted; every refusal one sentence."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.refusals import refusals_of_flipped, refused

from vitp.errors import MissingExtraError
from vitp.images.decode import ImageError
from vitp.images.levels import PercentileScaling, RangeScaling
from vitp.images.raster import Raster, RasterConfig, Window, raster_size, read_raster

DATA = Path(__file__).parents[2] / "../shared/data"
RAW = RasterConfig()
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


@pytest.fixture
def rasterio():
    return pytest.importorskip("rasterio", reason="the extra `geo` is not installed")


@pytest.fixture
def no_rasterio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)


def values(dtype: str, bands: int, height: int = 33, width: int = 47) -> np.ndarray:
    """Random values over the type's range [B, H, W], without any symmetry."""
    uniform = np.random.default_rng(7).random((bands, height, width))
    if dtype.startswith("float"):
        return (uniform * 3 - 1).astype(dtype)
    info = np.iinfo(dtype)
    return (info.min + uniform * (float(info.max) - info.min)).astype(dtype)


def write(rasterio, path: Path, array: np.ndarray, **profile: object) -> Path:
    count, height, width = array.shape
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500000.0, 5400000.0, 10.0, 20.0)}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=array.dtype, **(place | profile)
    ) as file:
        file.write(array)
    return path


def stretched(band: np.ndarray, low: float, high: float) -> np.ndarray:
    """The scaling of one band, in its plainest form."""
    return np.rint(np.clip((band.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def refusal(code: str, path: Path, config: RasterConfig = RAW, window: Window | None = None, **limit: int) -> str:
    return refused(code, path, lambda: read_raster(path, config, window, **limit))


def same(one: Raster, two: Raster) -> bool:
    return np.array_equal(one.pixels, two.pixels) and (one.invalid, one.limits) == (two.invalid, two.limits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_every_depth_by_percentiles(tmp_path: Path, rasterio, dtype: str, count: int) -> None:
    array = values(dtype, count)
    picture = read_raster(write(rasterio, tmp_path / "a.tif", array), RasterConfig(scaling=PercentileScaling()))
    shown = array[:3] if count >= 3 else array[[0, 0, 0]]
    for channel, band in zip(picture.pixels, shown, strict=True):
        low, high = np.percentile(band.astype(np.float64), (2, 98))
        assert np.array_equal(channel, stretched(band, low, high))
    assert picture.pixels.dtype == np.uint8
    assert (picture.invalid, picture.bands) == (0, (1, 2, 3) if count >= 3 else (1,))
    assert raster_size(tmp_path / "a.tif") == (47, 33)


def test_bands_and_fixed_ranges_by_band(tmp_path: Path, rasterio) -> None:
    array = values("uint16", 6)
    config = RasterConfig(bands=(6, 1, 2), scaling=RangeScaling(low=(0, 100, 5000), high=(3000, 60000, 65535)))
    picture = read_raster(write(rasterio, tmp_path / "a.tif", array), config)
    assert np.array_equal(picture.pixels[0], stretched(array[5], 0, 3000))
    assert np.array_equal(picture.pixels[1], stretched(array[0], 100, 60000))
    assert np.array_equal(picture.pixels[2], stretched(array[1], 5000, 65535))
    assert picture.limits == ((0, 3000), (100, 60000), (5000, 65535))
    grey = write(rasterio, tmp_path / "b.tif", array[:1])
    refusal("image-bands", grey, RasterConfig(scaling=config.scaling))


def test_8_bit_values_stay_as_stored(tmp_path: Path, rasterio) -> None:
    array = values("uint8", 3)
    assert np.array_equal(read_raster(write(rasterio, tmp_path / "a.tif", array), RAW).pixels, array)


@pytest.mark.parametrize(("unit", "factor"), [("amplitude", 20), ("power", 10)])
def test_sar_in_decibels(tmp_path: Path, rasterio, unit: str, factor: int) -> None:
    array = np.random.default_rng(3).rayleigh(0.2, (1, 40, 50)).astype(np.float32)
    array[0, :2, :5] = 0  # no signal has no logarithm
    array[0, 5, 5] = -1
    path = write(rasterio, tmp_path / "a.tif", array)
    scaling = RangeScaling(low=(-25,), high=(0,))
    picture = read_raster(path, RasterConfig(decibel=unit, scaling=scaling))
    good = array[0] > 0
    levels = np.where(good, stretched(factor * np.log10(np.where(good, array[0], 1)), -25, 0), 0)
    assert picture.invalid == 11
    assert int(np.abs(picture.pixels.astype(int) - levels).max()) <= 1  # float32 against float64 logarithm
    by_percentile = read_raster(path, RasterConfig(decibel=unit, scaling=PercentileScaling(low=1, high=99)))
    expected = np.percentile(factor * np.log10(array[0][good].astype(np.float64)), (1, 99))
    assert by_percentile.limits[0] == pytest.approx(expected, abs=1e-4)


def test_what_is_no_measurement_is_black_counted_and_left_out_of_statistics(tmp_path: Path, rasterio) -> None:
    array = values("float32", 3)
    clean = array.copy()
    array[0, 0, :4] = [np.nan, np.inf, -np.inf, -9999]  # -9999 is the declared nodata
    array[1, 1, 1] = np.finfo(np.float32).min  # an undeclared fill value
    array[2, 2, 2] = 77777  # named by the recipe
    path = write(rasterio, tmp_path / "a.tif", array, nodata=-9999)
    picture = read_raster(path, RasterConfig(nodata=77777))
    bad = (array != clean).any(axis=0)
    assert picture.invalid == bad.sum() == 6
    assert not picture.pixels[:, bad].any()
    for band, limits in zip(clean, picture.limits, strict=True):
        assert limits == pytest.approx(np.percentile(band[~bad].astype(np.float64), (2, 98)))


def test_mask_and_alpha_bands_hide_pixels_unless_shown_or_switched_off(tmp_path: Path, rasterio) -> None:
    array = values("uint8", 4)
    array[3] = 255
    array[3, :5] = 0
    path = write(rasterio, tmp_path / "a.tif", array)  # GDAL takes the fourth of four 8-bit bands for alpha
    picture = read_raster(path, RAW)
    assert picture.invalid == 5 * 47
    assert not picture.pixels[:, :5].any()
    assert np.array_equal(picture.pixels[:, 5:], array[:3, 5:])
    assert np.array_equal(read_raster(path, RasterConfig(mask=False)).pixels, array[:3])
    assert np.array_equal(read_raster(path, RasterConfig(bands=(4, 3, 2))).pixels, array[[3, 2, 1]])


@pytest.mark.parametrize("fill", ["nodata", "nan"])
def test_nothing_valid_is_a_black_picture_and_no_crash(tmp_path: Path, rasterio, fill: str) -> None:
    array = np.full((1, 8, 9), -1 if fill == "nodata" else np.nan, dtype=np.float32)
    picture = read_raster(write(rasterio, tmp_path / "a.tif", array, nodata=-1), RAW)
    assert not picture.pixels.any()
    assert (picture.invalid, picture.limits) == (72, (None,))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", [0, 5, 65535])
def test_a_constant_image_divides_nothing_by_zero(tmp_path: Path, rasterio, value: int) -> None:
    array = np.full((1, 8, 9), value, dtype=np.uint16)
    picture = read_raster(write(rasterio, tmp_path / "a.tif", array), RAW)
    assert picture.limits == ((value, value),)
    assert not picture.pixels.any()
    assert picture.invalid == 0


# -------------------------------------------------------------------------------------------------------------- windows


def test_a_window_equals_rasterios_and_keeps_its_place(tmp_path: Path, rasterio) -> None:
    array = values("uint16", 4, 300, 200)
    path = write(rasterio, tmp_path / "a.tif", array, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    config = RasterConfig(bands=(4, 2, 1), scaling=RangeScaling(low=(0,), high=(65535,)))
    window = Window(row=37, column=110, height=100, width=61)
    picture = read_raster(path, config, window)
    with rasterio.open(path) as file:
        area = rasterio.windows.Window(110, 37, 61, 100)
        expected = file.read([4, 2, 1], window=area)
        transform, crs, whole = file.window_transform(area), file.crs, file.transform
    assert picture.pixels.shape == (3, 100, 61)
    assert np.array_equal(picture.pixels, stretched(expected, 0, 65535))
    assert picture.transform == tuple(transform)[:6]
    assert picture.transform == (10.0, 0.0, 500000.0 + 1100, 0.0, -20.0, 5400000.0 - 740)
    assert rasterio.crs.CRS.from_wkt(picture.crs) == crs
    assert (picture.size, picture.window) == ((300, 200), window)
    full = read_raster(path, config)
    assert full.transform == tuple(whole)[:6]
    assert np.array_equal(full.pixels[:, 37:137, 110:171], picture.pixels)


def test_windows_with_the_limits_of_another_read_match(tmp_path: Path, rasterio) -> None:
    path = write(rasterio, tmp_path / "a.tif", values("float32", 3, 64, 64))
    full = read_raster(path, RAW)
    low, high = zip(*full.limits, strict=True)
    part = read_raster(path, RasterConfig(scaling=RangeScaling(low=low, high=high)), Window(10, 20, 30, 40))
    assert np.array_equal(part.pixels, full.pixels[:, 10:40, 20:60])


@pytest.mark.parametrize(
    "window",
    [(0, 0, 34, 10), (0, 0, 10, 48), (-1, 0, 5, 5), (0, -3, 5, 5), (33, 0, 1, 1), (5, 5, 0, 3), (2**40, 0, 9, 9)],
)
@pytest.mark.parametrize("engine", ["rasterio", "no_rasterio"])
def test_a_window_outside_is_refused(tmp_path: Path, window: tuple[int, ...], engine: str, request) -> None:
    Image.fromarray(values("uint16", 1)[0]).save(tmp_path / "a.tif")
    request.getfixturevalue(engine)
    message = refusal("image-window", tmp_path / "a.tif", RAW, Window(*window))
    assert "33 rows and 47 columns" in message


def test_a_header_of_ten_billion_pixels_is_refused_and_read_by_window(tmp_path: Path, rasterio) -> None:
    path = tmp_path / "huge.tif"
    block = values("uint16", 1, 512, 512)
    shape = {"driver": "GTiff", "width": 100_000, "height": 100_000, "count": 1, "dtype": "uint16"}
    with rasterio.open(path, "w", **shape, tiled=True, blockxsize=512, blockysize=512, sparse_ok=True) as file:
        file.write(block, window=rasterio.windows.Window(51200, 61440, 512, 512))
    assert path.stat().st_size < 5_000_000
    assert "window" in refusal("image-too-large", path)
    assert "smaller windows" in refusal("image-too-large", path, RAW, Window(0, 0, 50_000, 50_000))
    assert raster_size(path) == (100_000, 100_000)
    config = RasterConfig(scaling=RangeScaling(low=(0,), high=(65535,)))
    picture = read_raster(path, config, Window(61440 + 10, 51200 + 20, 100, 200))
    assert np.array_equal(picture.pixels[0], stretched(block[0, 10:110, 20:220], 0, 65535))


def test_a_window_that_would_decode_one_giant_block_is_refused(tmp_path: Path, rasterio) -> None:
    array = np.zeros((1, 600, 600), dtype=np.uint16)
    path = write(rasterio, tmp_path / "a.tif", array, compress="deflate", blockysize=600)
    assert "TILED=YES" in refusal("image-too-large", path, RAW, Window(0, 0, 5, 5), max_pixels=100_000)


def test_a_huge_header_without_rasterio_names_the_extra(tmp_path: Path, no_rasterio: None) -> None:
    tags = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 100_000), (279, 4, 1, 64)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path = tmp_path / "huge.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))
    with pytest.raises(MissingExtraError, match=r"windows.*pip install 'vitp\[geo\]'"):
        read_raster(path, RAW, Window(0, 0, 10, 10))


# --------------------------------------------------------------------------------------------------- with Pillow alone


@pytest.mark.parametrize("name", ["u8", "u16", "i16", "i32", "f32", "rgb", "rgba", "palette", "png16", "png8"])
def test_pillow_and_rasterio_read_the_same(
    tmp_path: Path, rasterio, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("a.png" if name.startswith("png") else "a.tif")
    layers = np.random.default_rng(5).integers(0, 256, (33, 47, 4), dtype=np.uint8)
    if name in ("i16", "i32", "f32"):
        dtype = {"i16": "int16", "i32": "int32", "f32": "float32"}[name]
        array = values(dtype, 1)
        array[0, 3, 4] = -9
        write(rasterio, path, array, nodata=-9)
    elif name.endswith("16"):
        Image.fromarray(values("uint16", 1)[0]).save(path)
    elif name == "palette":
        Image.fromarray(layers[..., :3]).quantize(16).save(path)
    else:
        picture = {"u8": layers[..., 0], "png8": layers[..., 0], "rgb": layers[..., :3], "rgba": layers}[name]
        Image.fromarray(picture).save(path)
    with_rasterio, size = read_raster(path, RAW), raster_size(path)
    window = read_raster(path, RAW, Window(3, 5, 20, 30))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert same(read_raster(path, RAW), with_rasterio)
    assert same(read_raster(path, RAW, Window(3, 5, 20, 30)), window)
    assert raster_size(path) == size == (47, 33)
    assert with_rasterio.pixels.std() > 10


@pytest.mark.parametrize("engine", ["rasterio", "no_rasterio"])
def test_16_bit_png_keeps_its_depth(tmp_path: Path, engine: str, request) -> None:
    request.getfixturevalue(engine)
    array = (30000 + np.arange(256, dtype=np.uint16)).reshape(16, 16)  # two high bytes only
    Image.fromarray(array).save(tmp_path / "a.png")
    config = RasterConfig(scaling=RangeScaling(low=(30000,), high=(30255,)))
    assert np.array_equal(read_raster(tmp_path / "a.png", config).pixels[1].ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("dtype", "count"), [("uint16", 3), ("float32", 4), ("float64", 1), ("int8", 1), ("uint32", 1)]
)
def test_what_pillow_would_change_needs_the_extra(
    tmp_path: Path, rasterio, dtype: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(rasterio, tmp_path / "a.tif", values(dtype, count))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitp\[geo\]'"):
        read_raster(path, RAW)


@pytest.mark.parametrize("engine", ["rasterio", "no_rasterio"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_plain_tiff_stands_upright(tmp_path: Path, engine: str, orientation: int, request) -> None:
    request.getfixturevalue(engine)
    path = tmp_path / "a.tif"
    stored = values("uint8", 1)[0]
    Image.fromarray(stored).save(path, tiffinfo={274: orientation})
    half = stored[::-1, ::-1]
    expected = {  # TIFF 6.0, tag Orientation: where row 0 and column 0 are seen
        1: stored, 2: stored[:, ::-1], 3: half, 4: stored[::-1],
        5: stored.T, 6: np.rot90(stored, -1), 7: half.T, 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    assert np.array_equal(read_raster(path, RAW).pixels[0], expected)
    assert raster_size(path) == expected.shape[::-1]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bands", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("engine", ["rasterio", "no_rasterio"])
def test_a_band_out_of_range_is_refused(tmp_path: Path, bands: tuple[int, ...], engine: str, request) -> None:
    request.getfixturevalue(engine)
    Image.fromarray(values("uint16", 1)[0]).save(tmp_path / "a.tif")
    assert f"band {max(bands)}" in refusal("image-bands", tmp_path / "a.tif", RasterConfig(bands=bands))


def test_unusable_files_are_one_sentence(tmp_path: Path, rasterio) -> None:
    write(rasterio, tmp_path / "complex.tif", np.ones((1, 4, 4), dtype=np.complex64))
    refusal("image-complex", tmp_path / "complex.tif")
    Image.fromarray(values("uint8", 4).transpose(1, 2, 0), "CMYK").save(tmp_path / "inks.tif")
    refusal("image-inks", tmp_path / "inks.tif")
    (tmp_path / "junk.tif").write_bytes(b"junk" * 100)
    refusal("image-unknown", tmp_path / "junk.tif")
    (tmp_path / "empty.tif").touch()
    refusal("image-empty", tmp_path / "empty.tif")
    refusal("image-missing", tmp_path / "none.tif")
    (tmp_path / "a.vrt").write_bytes(b"<VRTDataset><SourceFilename>other.tif</SourceFilename></VRTDataset>")
    refusal("image-unknown", tmp_path / "a.vrt")


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw"])
@pytest.mark.parametrize("engine", ["rasterio", "pillow"])
def test_half_written_files_never_give_a_picture(
    tmp_path: Path, rasterio, compress: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(rasterio, tmp_path / "a.tif", values("uint16", 1, 200, 200), compress=compress)
    data = path.read_bytes()
    if engine == "pillow":
        monkeypatch.setitem(sys.modules, "rasterio", None)
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises((ImageError, MissingExtraError)) as caught:
            read_raster(path, RAW)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["rasterio", "pillow"])
def test_flipped_bytes_give_a_picture_or_a_sentence(
    tmp_path: Path, rasterio, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(rasterio, tmp_path / "a.tif", values("uint16", 1, 24, 24), compress="deflate", nodata=3)
    data = path.read_bytes()
    if engine == "pillow":
        monkeypatch.setitem(sys.modules, "rasterio", None)

    def read() -> bool:
        return read_raster(path, RAW, max_pixels=1_000_000).pixels.shape[0] == 3

    refusals = refusals_of_flipped(
        data, path, read, seed=11, rounds=150, within=(0, min(len(data), 400)), refusal=(ImageError, MissingExtraError)
    )
    assert len(refusals) > 20


@pytest.mark.parametrize(
    "wrong",
    [{"bands": (0,)}, {"bands": (1, 2)}, {"bands": ()}, {"nodata": float("nan")}, {"decibel": "db"}, {"band": (1,)},
     {"scaling": {"kind": "range", "low": (1,), "high": (1,)}}, {"scaling": {"kind": "percentile", "low": 50, "high": 2}},
     {"scaling": {"kind": "range", "low": (1, 2), "high": (3, 4)}}, {"scaling": {"kind": "range", "low": (1,), "high": (3, 4)}},
     {"scaling": {"kind": "range", "low": (0,), "high": (float("inf"),)}}],
)  # fmt: skip
def test_a_wrong_recipe_fails_before_any_file(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bands?|nodata|decibel|scaling"):
        RasterConfig.model_validate(wrong)


def test_real_sentinel_2_patches_by_band(rasterio) -> None:
    files = sorted((DATA / "s2_landcover/images").glob("*.tif"))
    if not files:
        pytest.skip("the Sentinel-2 patches are not on this disk")
    with rasterio.open(files[0]) as file:
        stored = file.read([3, 2, 1])
        masked = file.read_masks(1) == 0
    picture = read_raster(files[0], RasterConfig(bands=(3, 2, 1)))
    assert picture.invalid == masked.sum()
    assert np.array_equal(picture.pixels, np.where(masked, 0, stored))
