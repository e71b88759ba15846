"""Decoding: the same pixels as Pillow, upright, and one sentence for every file that cannot be used."""

import contextlib
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image, ImageOps

from tests.refusals import refused
from vitp.images.decode import ImageError, read_interleaved, read_rgb, read_size

DATA = Path(__file__).parents[1] / "../shared/data"


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """A smooth colour picture without any symmetry."""
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pillow(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def refusal(path: Path, code: str, *, size_too: bool = True) -> str:
    """The message of the refusal; `size_too`: the header alone is refused as well."""
    message = refused(code, path, lambda: read_rgb(path))
    if size_too:
        with pytest.raises(ImageError):
            read_size(path)
    else:
        read_size(path)
    return message


EXACT = {
    "rgb.png": picture(),
    "grey.png": picture().convert("L"),
    "palette.png": picture().quantize(16),
    "one.png": picture().convert("1"),
    "rgb.bmp": picture(),
    "rgb.tif": picture(),
    "palette.gif": picture().quantize(32),
    "rgb.ppm": picture(),
    "rgb.webp": picture(),
    "rgb.jp2": picture(),
    "cmyk.jpg": picture().convert("CMYK"),
    "cmyk.tif": picture().convert("CMYK"),
}


@pytest.mark.parametrize("name", EXACT)
def test_pixels_equal_pillows(tmp_path: Path, name: str) -> None:
    EXACT[name].save(tmp_path / name)
    pixels = read_rgb(tmp_path / name)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert pixels.shape == (3, 24, 40)
    assert read_size(tmp_path / name) == (40, 24)
    assert torch.equal(pixels, pillow(tmp_path / name))
    interleaved = read_interleaved(tmp_path / name)
    assert interleaved.is_contiguous()
    assert torch.equal(interleaved.permute(2, 0, 1), pixels)


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 60, "subsampling": 2}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("fast", [True, False])
def test_jpeg_equals_pillows(
    tmp_path: Path, mode: str, options: dict[str, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when torchvision no longer has its decoder."""
    if not fast:
        monkeypatch.delattr(torchvision.io, "decode_jpeg")
    path = tmp_path / "a.jpg"
    picture(75, 43).convert(mode).save(path, **options)
    pixels = read_rgb(path)
    assert pixels.shape == (3, 43, 75)
    assert int((pixels.int() - pillow(path).int()).abs().max()) <= 2


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {}
    picture().save(tmp_path / name, exif=exif, **options)
    expected = pillow(tmp_path / name)
    pixels = read_rgb(tmp_path / name)
    assert int((pixels.int() - expected.int()).abs().max()) <= (2 if name.endswith("jpg") else 0)
    assert read_size(tmp_path / name) == (expected.shape[2], expected.shape[1])
    assert (expected.shape[1] > expected.shape[2]) == (orientation >= 5)


def test_a_tiff_with_metadata_is_turned_once(tmp_path: Path) -> None:
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture().save(tmp_path / "a.tif", tiffinfo={274: 6, 700: packet})
    assert torch.equal(read_rgb(tmp_path / "a.tif"), pillow(tmp_path / "a.tif"))
    assert read_size(tmp_path / "a.tif") == (24, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_exif_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture().save(path, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert read_size(path) == (40, 24)
    assert read_rgb(path).shape == (3, 24, 40)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparency_is_composited_on_white(tmp_path: Path, name: str) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (24, 40), dtype=np.uint8)
    colour = np.array(picture())
    layer = Image.fromarray(np.dstack([colour, alpha]))
    layer.save(tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    share = alpha[..., None] / 255.0
    expected = colour * share + 255.0 * (1 - share)
    actual = read_rgb(tmp_path / name).permute(1, 2, 0).numpy()
    assert np.abs(actual - expected).max() <= 1.0


def test_transparent_palette_and_colour_key_become_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    keyed = Image.new("RGB", (2, 1), (0, 0, 200))
    keyed.putpixel((0, 0), (200, 0, 0))
    keyed.save(tmp_path / "k.png", transparency=(200, 0, 0))
    for name in ("p.png", "p.gif", "k.png"):
        assert read_rgb(tmp_path / name)[:, 0, :].T.tolist() == [[255, 255, 255], [0, 0, 200]], name


def test_the_first_frame_is_read(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue")
    for name in ("a.gif", "a.tif", "a.webp"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], **({"lossless": True} if "webp" in name else {}))
        assert read_rgb(tmp_path / name)[:, 1, 1].tolist() == [255, 0, 0], name


# ------------------------------------------------------------------------------------------------------ hostile files


def test_no_file_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "0 bytes" in refusal(tmp_path / "empty.jpg", "image-empty")
    assert "known format" in refusal(tmp_path / "text.png", "image-unknown")
    assert "folder" in refusal(tmp_path / "folder.png", "image-not-a-file")
    assert "does not exist" in refusal(tmp_path / "missing.png", "image-missing")
    assert "nor does its folder gone" in refusal(tmp_path / "gone" / "missing.png", "image-missing")
    refusal(tmp_path / "loop.png", "image-unreadable")
    refusal(tmp_path / "pipe.png", "image-not-a-file")
    refusal(tmp_path / ("x" * 300 + ".png"), "image-unreadable")
    with pytest.raises(ImageError, match="no file can have"):
        read_rgb(tmp_path / "a\0b.png")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    picture().save(path)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert "may not be read" in refusal(path, "image-denied")


def encoded(name: str) -> bytes:
    buffer = io.BytesIO()
    options = {"progressive": True} if name.startswith("progressive") else {}
    kinds = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}
    suffix = name.rpartition(".")[2]
    picture(120, 90).save(buffer, kinds.get(suffix, suffix), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "a.png", "a.tif", "a.bmp", "a.webp", "a.gif", "a.jp2"])
def test_truncated_files_are_refused_everywhere(tmp_path: Path, name: str) -> None:
    data, path = encoded(name), tmp_path / name
    cuts = [*range(1, len(data), max(1, len(data) // 25)), len(data) - 8, len(data) - 3]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(ImageError) as caught:
            read_rgb(path)
        assert caught.value.code in ("image-damaged", "image-unknown"), cut


def test_the_size_comes_from_the_header_alone(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        data, path = encoded(name), tmp_path / name
        path.write_bytes(data[: len(data) * 3 // 4])
        assert read_size(path) == (120, 90)
        assert "truncated" in refusal(path, "image-damaged", size_too=False)


@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_a_tail_of_zeros_is_truncation(
    tmp_path: Path, thumbnail: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As interrupted downloads leave it; decoders take zeros for pixels. A thumbnail has an end marker of its own."""
    if not fast:
        monkeypatch.delattr(torchvision.io, "decode_jpeg")
    buffer = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg", quality=95)
    data, small, path = buffer.getvalue(), encoded("a.jpg"), tmp_path / "a.jpg"
    if thumbnail:
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(small) + 2) + small + data[2:]
    path.write_bytes(data)
    assert read_rgb(path).shape == (3, 90, 120)
    path.write_bytes(data[:-5000] + bytes(5000))
    assert "truncated" in refusal(path, "image-damaged", size_too=False)


def test_a_png_without_its_end_is_truncated(tmp_path: Path) -> None:
    data, path = encoded("a.png"), tmp_path / "a.png"
    for lost in (1, 4, 8, 12):
        path.write_bytes(data[:-lost])
        assert "truncated" in refusal(path, "image-damaged", size_too=False)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, stream: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def test_a_wrong_check_sum_in_a_png_is_an_error_not_a_crash(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes(range(9)) for _ in range(3))
    good, path = zlib.compress(rows), tmp_path / "a.png"
    path.write_bytes(png(3, 3, 8, 2, good))
    assert read_rgb(path)[:, 0, 1].tolist() == [3, 4, 5]
    path.write_bytes(png(3, 3, 8, 2, good[:-1] + bytes([good[-1] ^ 1])))
    refusal(path, "image-damaged", size_too=False)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says about damaged TIFF tags
def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / "x"
    for name in ("a.jpg", "a.png", "a.tif", "a.webp", "a.gif", "a.bmp", "a.jp2"):
        data = np.frombuffer(encoded(name), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, min(len(data), 200), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            for read in (read_size, read_rgb):
                with contextlib.suppress(ImageError):  # damage may also go unnoticed, or hit nothing that matters
                    read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_too_large_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(12_000, 12_000, 8, 2, zlib.compress(b"\0")))  # 432 MB if it were decoded
    assert "12000 x 12000" in refusal(path, "image-too-large", size_too=False)
    path.write_bytes(png(60_000, 60_000, 8, 2, zlib.compress(b"\0")))
    refusal(path, "image-too-large")
    picture(20, 10).save(path)
    assert read_rgb(path, max_pixels=200).shape == (3, 10, 20)
    with pytest.raises(ImageError, match="more than the 199 allowed"):
        read_rgb(path, max_pixels=199)


def tiff_16_bit() -> bytes:
    """2 x 2 RGB, 16 bit, uncompressed; Pillow opens it as an 8-bit RGB image."""
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 300),
               (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24)]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    body = b"II*\0" + struct.pack("<I", 8) + directory
    return body.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16).ljust(100, b"\0") + bytes(range(24))


def test_deep_pixels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    ramp = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(ramp).save(tmp_path / "grey16.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "int32.tif")
    (tmp_path / "rgb16.png").write_bytes(png(1, 1, 16, 2, zlib.compress(bytes(7))))
    (tmp_path / "rgb16.tif").write_bytes(tiff_16_bit())
    assert Image.open(tmp_path / "rgb16.png").mode == "RGB"  # what makes the explicit look at the depth necessary
    assert Image.open(tmp_path / "rgb16.tif").mode == "RGB"
    for name in ("grey16.png", "float.tif", "int32.tif", "rgb16.png", "rgb16.tif"):
        assert "convert it to 8 bit" in refusal(tmp_path / name, "image-deep"), name


def test_the_error_survives_a_worker_process(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_rgb(tmp_path / "missing.png")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.code, copy.where) == (str(caught.value), "image-missing", str(tmp_path / "missing.png"))


@pytest.mark.parametrize("pattern", ["rsicd_128/images/*_10.jpg", "rsvqa_lr/Images_LR/*.tif", "vqa_rad/*/*1.jpg"])
def test_real_images_equal_pillows(pattern: str) -> None:
    paths = sorted(DATA.glob(pattern))[:12]
    if not paths:
        pytest.skip(f"no real data {pattern}")
    for path in paths:
        pixels, expected = read_rgb(path), pillow(path)
        assert pixels.shape == expected.shape
        assert int((pixels.int() - expected.int()).abs().max()) <= 2
