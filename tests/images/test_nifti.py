"""NIfTI: one anatomy, however it is stored, gives one picture; every refusal one sentence."""

import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.refusals import refusals_of_flipped, refused

from vitp.errors import MissingExtraError
from vitp.images.decode import ImageError
from vitp.images.levels import RangeScaling
from vitp.images.nifti import NiftiConfig, NiftiSlice, nifti_size, read_nifti

SHAPE = (11, 14, 9)  # R, A, S
WIDE = RangeScaling(low=(0,), high=(255,))
CODES = ["".join(code) for axes in itertools.permutations(["RL", "AP", "SI"]) for code in itertools.product(*axes)]


@pytest.fixture
def nibabel():
    return pytest.importorskip("nibabel", reason="the extra `medical` is not installed")


def refusal(code: str, path: Path, config: NiftiConfig) -> str:
    return refused(code, path, lambda: read_nifti(path, config))


def body() -> np.ndarray:
    """A volume in RAS+ order without any symmetry."""
    return np.random.default_rng(8).integers(0, 256, SHAPE).astype(np.int16)


def save(nibabel, path: Path, array: np.ndarray, code: str = "RAS", zooms: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Path:
    """Write a RAS+ array with its axes stored in another order; the anatomy stays where it is."""
    image = nibabel.Nifti1Image(array, np.diag([*zooms, 1.0]) + np.eye(4, k=3) * -20)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    )
    nibabel.save(image.as_reoriented(turn), path)
    return path


def by_hand(array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """The picture of a RAS+ array, written out: first row most superior or anterior, first column right or anterior."""
    picture = {"axial": array[:, :, index], "coronal": array[:, index, :], "sagittal": array[index, :, :]}[plane]
    return picture[::-1, ::-1].T


def test_the_radiological_convention(tmp_path: Path, nibabel) -> None:
    """One bright voxel at the patient's right, front and top must stand where a radiologist looks for it."""
    array = np.zeros(SHAPE, dtype=np.int16)
    array[-1, -1, -1] = 255
    path = save(nibabel, tmp_path / "a.nii", array, "LPI")
    for plane, last in (("axial", 8), ("coronal", 13), ("sagittal", 10)):
        pixels = read_nifti(path, NiftiConfig(plane=plane, index=last, scaling=WIDE)).pixels
        assert pixels[0, 0, 0] == 255  # axial, coronal: right is left; sagittal: anterior is left; the top is up
        assert pixels[0].sum() == 255
        assert not read_nifti(path, NiftiConfig(plane=plane, index=0, scaling=WIDE)).pixels.any()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_all_48_ways_of_storing_give_one_picture(tmp_path: Path, nibabel, plane: str) -> None:
    array = body()
    for code in CODES:
        path = save(nibabel, tmp_path / "a.nii", array, code)
        assert nibabel.aff2axcodes(nibabel.load(path).affine) == tuple(code)
        canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
        image = read_nifti(path, NiftiConfig(plane=plane, index=4, scaling=WIDE))
        assert np.array_equal(image.pixels[1], by_hand(canonical, plane, 4))
        assert np.array_equal(image.pixels[0], by_hand(array, plane, 4))
        assert nifti_size(path, NiftiConfig(plane=plane)) == image.pixels.shape[:0:-1]
        spacing = {"axial": (2, 1), "coronal": (3, 1), "sagittal": (3, 2)}[plane]
        assert image.spacing == pytest.approx(spacing)
    assert len(CODES) == 48


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "SLA"])
def test_the_affine_leads_back_to_the_same_voxel(tmp_path: Path, nibabel, plane: str, code: str) -> None:
    path = save(nibabel, tmp_path / "a.nii", body(), code)
    stored = nibabel.load(path)
    voxels, inverse = np.asarray(stored.dataobj), np.linalg.inv(stored.affine)
    image = read_nifti(path, NiftiConfig(plane=plane, index=3, scaling=WIDE))
    for row, column in ((0, 0), (2, 5), (image.pixels.shape[1] - 1, image.pixels.shape[2] - 1)):
        place = inverse @ image.affine @ np.array([row, column, 0, 1])
        assert voxels[tuple(np.rint(place[:3]).astype(int))] == image.pixels[0, row, column]
    further = read_nifti(path, NiftiConfig(plane=plane, index=4))
    assert np.allclose(image.affine @ np.array([2, 3, 1, 1]), further.affine @ np.array([2, 3, 0, 1]))


def test_an_oblique_volume_takes_the_nearest_axes(tmp_path: Path, nibabel) -> None:
    cos, sin = np.cos(0.3), np.sin(0.3)
    affine = np.array([[-cos, sin, 0, 5], [sin, cos, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(body(), affine), tmp_path / "a.nii.gz")
    canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(tmp_path / "a.nii.gz")).dataobj)
    image = read_nifti(tmp_path / "a.nii.gz", NiftiConfig(plane="coronal", index=6, scaling=WIDE))
    assert np.array_equal(image.pixels[2], by_hand(canonical, "coronal", 6))
    assert image.oriented


def test_choosing_slices_and_volumes(tmp_path: Path, nibabel) -> None:
    array = np.stack([body(), body()[::-1], body() // 2], axis=-1)
    path = save(nibabel, tmp_path / "a.nii.gz", array, "LAS")

    def shown(**choice: object) -> NiftiSlice:
        return read_nifti(path, NiftiConfig(scaling=WIDE, **choice))

    assert (shown().index, shown().slices) == (4, 9)
    assert [shown(fraction=part).index for part in (0, 0.25, 1)] == [0, 2, 8]
    for volume in range(3):
        assert np.array_equal(shown(index=7, volume=volume).pixels[0], by_hand(array[..., volume], "axial", 7))
    assert "from 0 to 8" in refusal("nifti-slice", path, NiftiConfig(index=9))
    assert "from 0 to 2" in refusal("nifti-volume", path, NiftiConfig(volume=3))


def test_rescaled_values_are_windowed_as_in_dicom(tmp_path: Path, nibabel) -> None:
    """Slope and intercept first, then PS3.3 C.11.2.1.2.1 as the standard writes it."""
    raw = np.random.default_rng(2).integers(-700, 2000, SHAPE).astype(np.int16)
    image = nibabel.Nifti1Image(raw, np.eye(4))
    image.header.set_slope_inter(1.5, -200)
    nibabel.save(image, tmp_path / "a.nii.gz")
    hounsfield = by_hand(raw * 1.5 - 200, "axial", 5)
    expected = np.clip(((hounsfield - (40 - 0.5)) / (400 - 1) + 0.5) * 255, 0, 255)
    pixels = read_nifti(tmp_path / "a.nii.gz", NiftiConfig(index=5, window=(40, 400))).pixels
    assert float(np.abs(pixels[0] - expected).max()) <= 0.5 + 1e-6


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_nan_is_black_counted_and_left_out(tmp_path: Path, nibabel) -> None:
    array = body().astype(np.float32)
    array[0, 0, 4], array[1, 2, 4], array[3, 3, 4], array[5, 5, 4] = np.nan, np.inf, -np.inf, np.finfo(np.float32).max
    path = save(nibabel, tmp_path / "a.nii", array)
    image = read_nifti(path, NiftiConfig(index=4))
    good = np.abs(array[..., 4]) < 1e30
    assert image.invalid == 4
    assert image.limits == pytest.approx(np.percentile(array[..., 4][good].astype(float), (0.5, 99.5)))
    assert not image.pixels[0][by_hand(~good[..., None], "axial", 0)].any()
    nothing = read_nifti(save(nibabel, tmp_path / "b.nii", np.full(SHAPE, np.nan, np.float32)), NiftiConfig())
    assert (nothing.invalid, nothing.limits, int(nothing.pixels.max())) == (11 * 14, None, 0)
    constant = read_nifti(save(nibabel, tmp_path / "c.nii", np.full(SHAPE, 7, np.int16)), NiftiConfig())
    assert (constant.limits, int(constant.pixels.max())) == ((7, 7), 0)


def test_percentiles_of_the_volume_are_the_same_for_every_slice(tmp_path: Path, nibabel) -> None:
    array = (body() * np.arange(1, 10)).astype(np.float32)
    path = save(nibabel, tmp_path / "a.nii.gz", array, "PIR")
    limits = {read_nifti(path, NiftiConfig(index=index, statistics="volume")).limits for index in range(9)}
    assert len(limits) == 1
    assert limits.pop() == pytest.approx(np.percentile(array.astype(float), (0.5, 99.5)))


def test_colour_volumes(tmp_path: Path, nibabel) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    structured = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(structured, np.eye(4)), tmp_path / "a.nii")
    pixels = read_nifti(tmp_path / "a.nii", NiftiConfig(index=2)).pixels
    for channel in range(3):
        assert np.array_equal(pixels[channel], by_hand(colours[..., channel], "axial", 2))


def test_only_the_slice_is_read(tmp_path: Path, nibabel) -> None:
    """A sparse file of 8.6 GB opens and shows its slice: no machine of this project reads it whole in a test."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((2048, 2048, 1024))
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    row = np.arange(2048, dtype=np.int16)
    with (tmp_path / "a.nii").open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.seek(352 + 2 * 2048 * 2048 * 700)
        file.write(row.tobytes())
        file.truncate(352 + 2 * 2048 * 2048 * 1024)
    if os.stat(tmp_path / "a.nii").st_blocks * 512 > 10**8:
        pytest.skip("this file system keeps no sparse files")
    image = read_nifti(tmp_path / "a.nii", NiftiConfig(index=700, scaling=RangeScaling(low=(0,), high=(2047,))))
    assert np.array_equal(image.pixels[0, -1, ::-1], np.rint(row * (255 / 2047)))
    assert not image.pixels[0, :-1].any()


def test_a_file_that_states_no_orientation_says_so(tmp_path: Path, nibabel) -> None:
    nibabel.save(nibabel.Nifti1Image(body(), None), tmp_path / "a.nii")
    assert not read_nifti(tmp_path / "a.nii", NiftiConfig()).oriented


def test_unusable_volumes_are_one_sentence(tmp_path: Path, nibabel) -> None:
    good = NiftiConfig()
    save(nibabel, tmp_path / "flat.nii", body())
    data = bytearray((tmp_path / "flat.nii").read_bytes())
    data[280:328] = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, np.nan, 0]], "<f4").tobytes()
    (tmp_path / "flat.nii").write_bytes(bytes(data))
    refusal("nifti-affine", tmp_path / "flat.nii", good)
    nibabel.save(nibabel.Nifti1Image(body()[..., 0], np.eye(4)), tmp_path / "two.nii")
    refusal("nifti-shape", tmp_path / "two.nii", good)
    nibabel.save(nibabel.Nifti1Image(body()[..., None, None].repeat(2, 4), np.eye(4)), tmp_path / "five.nii")
    refusal("nifti-shape", tmp_path / "five.nii", good)
    nibabel.save(nibabel.Nifti1Image(body().astype(np.complex64), np.eye(4)), tmp_path / "complex.nii")
    refusal("image-complex", tmp_path / "complex.nii", good)
    (tmp_path / "junk.nii").write_bytes(b"junk" * 500)
    refusal("image-unknown", tmp_path / "junk.nii", good)
    (tmp_path / "empty.nii").touch()
    refusal("image-empty", tmp_path / "empty.nii", good)
    refusal("image-missing", tmp_path / "none.nii", good)
    huge = bytearray((tmp_path / "two.nii").read_bytes())
    huge[40:48] = np.array([3, 32767, 32767, 32767], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(bytes(huge))
    refusal("image-damaged", tmp_path / "huge.nii", good)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_half_written_nifti_is_one_sentence(tmp_path: Path, nibabel, name: str) -> None:
    random = np.random.default_rng(0).integers(0, 4000, (30, 30, 30)).astype(np.int16)
    data = save(nibabel, tmp_path / name, random).read_bytes()
    for share in (0.001, 0.01, 0.2, 0.5, 0.95):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError) as caught:
            read_nifti(tmp_path / name, NiftiConfig(index=29))
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_flipped_bytes_of_a_volume_give_a_picture_or_a_sentence(tmp_path: Path, nibabel, name: str) -> None:
    data = save(nibabel, tmp_path / name, body()).read_bytes()

    def read() -> bool:
        return read_nifti(tmp_path / name, NiftiConfig(), max_pixels=1_000_000).pixels.dtype == np.uint8

    refusals = refusals_of_flipped(data, tmp_path / name, read, seed=17, rounds=150, within=(0, min(len(data), 352)))
    assert len(refusals) > 10


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match=r"nibabel.*pip install 'vitp\[medical\]'"):
        read_nifti(tmp_path / "a.nii", NiftiConfig())
