"""DICOM: equal to pydicom's own rescale, windows and tables; every refusal one sentence."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.refusals import refusals_of_flipped, refused

from vitp.errors import MissingExtraError
from vitp.images.decode import ImageError
from vitp.images.levels import PercentileScaling, RangeScaling
from vitp.images.medical import DicomConfig, dicom_size, read_dicom

RAW = DicomConfig()


@pytest.fixture
def pydicom():
    return pytest.importorskip("pydicom", reason="the extra `medical` is not installed")


def refusal(code: str, path: Path, config: DicomConfig = RAW) -> str:
    return refused(code, path, lambda: read_dicom(path, config))


def shipped(pydicom, name: str) -> Path:
    """One of the real files in pydicom's wheel."""
    path = Path(pydicom.__file__).parent / "data/test_files" / name
    if not path.is_file():
        pytest.skip(f"this pydicom ships no {name}")
    return path


def write(
    pydicom, path: Path, array: np.ndarray, photometric: str = "MONOCHROME2", bits: int = 0, **tags: object
) -> Path:
    """An uncompressed DICOM file of [H, W], [F, H, W] or [H, W, 3] values."""
    colour = photometric in ("RGB", "YBR_FULL")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = array.shape[:2] if colour else array.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        dataset.PlanarConfiguration = 0
    elif array.ndim == 3:
        dataset.NumberOfFrames = len(array)
    dataset.BitsAllocated = array.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(array.dtype.kind == "i")
    dataset.PixelData = array.tobytes() + b"\0" * (array.nbytes % 2)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def ct(height: int = 31, width: int = 44) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 4096, (height, width)).astype(np.uint16)


def of_pydicom(pydicom, path: Path, index: int = 0, frame: int | None = None) -> np.ndarray:
    """pydicom's own rescale and window or table, spread over the levels: float [H, W]."""
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array if frame is None else dataset.pixel_array[frame]
    values = pydicom.pixels.apply_modality_lut(stored, dataset)
    shown = pydicom.pixels.apply_voi_lut(values, dataset, index)
    if "VOILUTSequence" in dataset:
        return shown * (255.0 / (2 ** dataset.VOILUTSequence[index].LUTDescriptor[2] - 1))
    # apply_windowing spreads over the range of the stored bits after rescale
    signed = dataset.PixelRepresentation == 1
    ends = np.array([-(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1], dtype=float)
    low, high = (ends if signed else ends - ends[0]) * float(dataset.get("RescaleSlope", 1)) + float(
        dataset.get("RescaleIntercept", 0)
    )
    return (shown - low) * (255.0 / (high - low))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("window", [(40, 400), (-600.5, 1500.25), (300, 1), (100, 2)])
def test_windows_equal_pydicoms(tmp_path: Path, pydicom, function: str | None, window: tuple[float, float]) -> None:
    tags = {"WindowCenter": window[0], "WindowWidth": window[1], "RescaleSlope": 1, "RescaleIntercept": -1024}
    path = write(
        pydicom, tmp_path / "a.dcm", ct(), bits=12, **tags, **({"VOILUTFunction": function} if function else {})
    )
    image = read_dicom(path, RAW)
    expected = of_pydicom(pydicom, path)
    assert float(np.abs(image.pixels - expected).max()) <= 0.5 + 1e-6
    assert np.array_equal(image.pixels[0], image.pixels[2])
    assert (image.window, image.invalid, image.modality) == (window, 0, "CT")
    assert dicom_size(path) == (44, 31)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_of_several_windows_the_chosen_one(tmp_path: Path, pydicom, index: int) -> None:
    tags = {"WindowCenter": [40, 1000, 2000], "WindowWidth": [400, 500, 3000]}
    path = write(pydicom, tmp_path / "a.dcm", ct(), bits=12, **tags)
    image = read_dicom(path, DicomConfig(window_index=index))
    assert float(np.abs(image.pixels - of_pydicom(pydicom, path, index)).max()) <= 0.5 + 1e-6
    assert "3 windows" in refusal("dicom-window", path, DicomConfig(window_index=3))


def test_the_recipes_window_wins(tmp_path: Path, pydicom) -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    own = write(pydicom, tmp_path / "own.dcm", ct(), bits=12, WindowCenter=40, WindowWidth=400, **tags)
    other = write(
        pydicom, tmp_path / "b.dcm", ct(), bits=12, WindowCenter=900, WindowWidth=10, VOILUTFunction="SIGMOID", **tags
    )
    assert np.array_equal(read_dicom(other, DicomConfig(window=(40, 400))).pixels, read_dicom(own, RAW).pixels)


@pytest.mark.parametrize(("first", "kind"), [(0, "OW"), (500, "OW"), (500, "US")])
def test_voi_tables_equal_pydicoms(tmp_path: Path, pydicom, first: int, kind: str) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor = [1000, first, 12]
    table = [int(4095 * (place / 999) ** 2) for place in range(1000)]
    item.add_new("LUTData", kind, np.array(table, "<u2").tobytes() if kind == "OW" else table)
    path = write(pydicom, tmp_path / "a.dcm", ct(), bits=12, VOILUTSequence=pydicom.Sequence([item]))
    assert float(np.abs(read_dicom(path, RAW).pixels - of_pydicom(pydicom, path)).max()) <= 0.5 + 1e-6


def test_modality_tables_equal_pydicoms(tmp_path: Path, pydicom) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "HU"
    item.add_new("LUTData", "US", [int(65535 * (place / 4095) ** 0.5) for place in range(4096)])
    path = write(pydicom, tmp_path / "a.dcm", ct(), bits=12, ModalityLUTSequence=pydicom.Sequence([item]))
    dataset = pydicom.dcmread(path)
    values = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset).astype(float)
    picture = read_dicom(path, DicomConfig(scaling=RangeScaling(low=(0,), high=(65535,)))).pixels
    assert np.array_equal(picture[0], np.rint(values / 257))


def test_monochrome1_is_the_negative_but_padding_stays_black(tmp_path: Path, pydicom) -> None:
    array = ct().astype(np.int16)
    array[:4] = -2000
    tags = {"WindowCenter": 2000, "WindowWidth": 3000, "PixelPaddingValue": -2000}
    light = read_dicom(write(pydicom, tmp_path / "a.dcm", array, **tags), RAW)
    dark = read_dicom(write(pydicom, tmp_path / "b.dcm", array, "MONOCHROME1", **tags), RAW)
    assert np.array_equal(dark.pixels[:, 4:], 255 - light.pixels[:, 4:])
    assert not dark.pixels[:, :4].any()
    assert dark.invalid == light.invalid == 4 * 44


def test_without_a_window_percentiles_of_what_is_no_padding(tmp_path: Path, pydicom) -> None:
    array = ct().astype(np.int16)
    array[:10, :30] = -3000
    path = write(pydicom, tmp_path / "a.dcm", array, PixelPaddingValue=-3005, PixelPaddingRangeLimit=-2990)
    image = read_dicom(path, DicomConfig(scaling=PercentileScaling(low=5, high=90)))
    assert image.limits == pytest.approx(np.percentile(array[array > -2000], (5, 90)))
    assert (image.invalid, image.window) == (300, None)


@pytest.mark.parametrize("tags", [{"WindowCenter": "", "WindowWidth": ""}, {"WindowCenter": 40, "WindowWidth": 0}])
def test_a_window_that_says_nothing_counts_as_none(tmp_path: Path, pydicom, tags: dict[str, object]) -> None:
    with_tags = read_dicom(write(pydicom, tmp_path / "a.dcm", ct(), **tags), RAW)
    assert with_tags.window is None
    assert np.array_equal(with_tags.pixels, read_dicom(write(pydicom, tmp_path / "b.dcm", ct()), RAW).pixels)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_constant_and_8_bit_images(tmp_path: Path, pydicom) -> None:
    constant = read_dicom(write(pydicom, tmp_path / "a.dcm", np.full((8, 8), 700, np.uint16)), RAW)
    assert not constant.pixels.any()
    grey = np.random.default_rng(0).integers(50, 90, (9, 13), dtype=np.uint8)
    assert np.array_equal(read_dicom(write(pydicom, tmp_path / "b.dcm", grey), RAW).pixels, np.stack([grey] * 3))


def test_frames_are_chosen_and_their_own_functional_groups_apply(tmp_path: Path, pydicom) -> None:
    array = np.stack([ct(), ct()[::-1] // 2, ct() // 3])

    def group(centre: float, slope: float):
        rescale, voi, item = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, -10, "US"
        voi.WindowCenter, voi.WindowWidth = centre, 1500
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [rescale], [voi]
        return item

    shared, measures = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [0.5, 0.75]
    shared.PixelMeasuresSequence = [measures]
    own = [group(800, 1), group(900, 2), group(400, 0.5)]
    path = write(
        pydicom, tmp_path / "a.dcm", array, bits=12,
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=own,
    )  # fmt: skip
    for frame, (centre, slope) in enumerate([(800, 1), (900, 2), (400, 0.5)]):
        tags = {"WindowCenter": centre, "WindowWidth": 1500, "RescaleSlope": slope, "RescaleIntercept": -10}
        alone = read_dicom(write(pydicom, tmp_path / "b.dcm", array[frame], bits=12, **tags), RAW)
        image = read_dicom(path, DicomConfig(frame=frame))
        assert np.array_equal(image.pixels, alone.pixels)
        assert (image.frame, image.frames, image.spacing) == (frame, 3, (0.5, 0.75))
    assert "from 0 to 2" in refusal("dicom-frame", path, DicomConfig(frame=3))


def test_colours(tmp_path: Path, pydicom) -> None:
    rgb = np.random.default_rng(4).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    plain = read_dicom(write(pydicom, tmp_path / "a.dcm", rgb, "RGB"), RAW)
    assert np.array_equal(plain.pixels, rgb.transpose(2, 0, 1))
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    turned = read_dicom(write(pydicom, tmp_path / "b.dcm", ybr, "YBR_FULL"), RAW).pixels
    assert int(np.abs(turned.astype(int) - plain.pixels).max()) <= 2  # YBR in 8 bit loses a little
    deep = read_dicom(write(pydicom, tmp_path / "c.dcm", rgb.astype(np.uint16) * 257, "RGB"), RAW)
    assert np.array_equal(deep.pixels, plain.pixels)
    refusal("dicom-photometric", write(pydicom, tmp_path / "d.dcm", rgb[..., 0], "HSV"), RAW)


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_ybr_color.dcm",
             "examples_jpeg2k.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_small_odd_big_endian.dcm"],
)  # fmt: skip
def test_real_colour_files(pydicom, name: str) -> None:
    path = shipped(pydicom, name)
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array[0] if dataset.pixel_array.ndim == 4 else dataset.pixel_array
    if "YBR" in pydicom.dcmread(path).PhotometricInterpretation and "YBR_RCT" not in dataset.PhotometricInterpretation:
        expected = pydicom.pixels.pixel_array(path, index=0)  # pydicom's own conversion to RGB
    assert np.array_equal(read_dicom(path, RAW).pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
             "MR_small_padded.dcm", "examples_overlay.dcm"],
)  # fmt: skip
def test_real_grey_files_equal_pydicom(pydicom, name: str) -> None:
    path = shipped(pydicom, name)
    assert float(np.abs(read_dicom(path, RAW).pixels - of_pydicom(pydicom, path)).max()) <= 0.5 + 1e-6


def test_real_palette_deflated_and_one_bit_files(pydicom) -> None:
    path = shipped(pydicom, "examples_palette.dcm")
    dataset = pydicom.dcmread(path)
    colours = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset)
    expected = np.rint(colours / 257).astype(int) if colours.dtype == np.uint16 else colours
    assert int(np.abs(read_dicom(path, RAW).pixels.transpose(1, 2, 0) - expected.astype(int)).max()) <= 1
    path = shipped(pydicom, "image_dfl.dcm")
    assert np.array_equal(read_dicom(path, RAW).pixels[0], pydicom.dcmread(path).pixel_array)
    path = shipped(pydicom, "liver_1frame.dcm")
    assert np.array_equal(read_dicom(path, RAW).pixels[0], pydicom.dcmread(path).pixel_array * 255)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("reportsi.dcm", "dicom-no-pixels", "modality SR"),
        ("rtplan.dcm", "dicom-no-pixels", "RTPLAN"),
        ("waveform_ecg.dcm", "dicom-no-pixels", "ECG"),
        ("MR_truncated.dcm", "image-damaged", "truncated"),
        ("badVR.dcm", "image-damaged", "damaged"),
        ("SC_rgb_jpeg.dcm", "image-damaged", "damaged"),
        ("no_meta.dcm", "image-unknown", "DICM"),
    ],
)
def test_real_unusable_files(pydicom, name: str, code: str, words: str) -> None:
    assert words in refusal(code, shipped(pydicom, name), RAW)


def test_pixels_announced_but_absent(tmp_path: Path, pydicom) -> None:
    dataset = pydicom.dcmread(write(pydicom, tmp_path / "a.dcm", ct()))
    del dataset.PixelData
    dataset.save_as(tmp_path / "b.dcm")
    refusal("dicom-no-pixels", tmp_path / "b.dcm", RAW)


@pytest.mark.parametrize(
    ("syntax", "fix"),
    [("1.2.840.10008.1.2.4.80", "pyjpegls"), ("1.2.840.10008.1.2.4.70", "python-gdcm"),
     ("1.2.840.10008.1.2.4.203", "pylibjpeg-openjpeg"),
     ("1.2.840.10008.1.2.4.100", "gdcmconv")],
)  # fmt: skip
def test_an_undecodable_compression_names_a_package(tmp_path: Path, pydicom, syntax: str, fix: str) -> None:
    dataset = pydicom.dcmread(write(pydicom, tmp_path / "a.dcm", ct()))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.PixelData = pydicom.encaps.encapsulate([b"no such stream"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "b.dcm")
    try:
        available = pydicom.pixels.get_decoder(pydicom.uid.UID(syntax)).is_available
    except NotImplementedError:
        available = False
    if available:
        pytest.skip("a decoder for this compression is installed")
    assert fix in refusal("dicom-compressed", tmp_path / "b.dcm", RAW)


@pytest.mark.parametrize("name", ["uncompressed", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_jpeg2k.dcm"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_half_written_dicom_is_one_sentence(tmp_path: Path, pydicom, name: str) -> None:
    whole = write(pydicom, tmp_path / "a.dcm", ct()) if name == "uncompressed" else shipped(pydicom, name)
    data = whole.read_bytes()
    path = tmp_path / "half.dcm"
    for share in (0.0005, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        path.write_bytes(data[: max(1, int(len(data) * share))])
        with pytest.raises(ImageError) as caught:
            read_dicom(path, RAW)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_give_a_picture_or_a_sentence(tmp_path: Path, pydicom) -> None:
    data = write(pydicom, tmp_path / "a.dcm", ct(8, 8), WindowCenter=40, WindowWidth=400).read_bytes()

    def read() -> bool:
        return read_dicom(tmp_path / "b.dcm", RAW, max_pixels=1_000_000).pixels.dtype == np.uint8

    refusals = refusals_of_flipped(data, tmp_path / "b.dcm", read, seed=13, rounds=200, within=(132, len(data)))
    assert len(refusals) > 10


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pydicom.*pip install 'vitp\[medical\]'"):
        read_dicom(tmp_path / "a.dcm", RAW)


@pytest.mark.parametrize("wrong", [{"window": (40, 0)}, {"window": (40,)}, {"window": (float("nan"), 5)}, {"frame": -1},
                                   {"scaling": {"kind": "range", "low": (0, 1), "high": (2, 3)}}, {"windows": 1}])  # fmt: skip
def test_a_wrong_recipe_fails_before_any_file(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"window|frame|scaling"):
        DicomConfig.model_validate(wrong)
