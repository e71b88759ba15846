"""Ordinary image files to pixels: 8-bit RGB, upright.

Every file becomes the same thing, uint8 [H, W, 3] in RGB order (`read_interleaved`), by fixed rules:

* The EXIF (or XMP) orientation is applied; a damaged EXIF block counts as none.
* Transparent pixels are composited on white, because what lies under them is arbitrary, and figures and logos are
  drawn for a white page.
* Palettes, 1-bit, grey and CMYK images are converted the way Pillow does; colour profiles are ignored.
* Of several frames or pages the first is read.
* 16-bit and floating-point pixels are refused: scaling them to 8 bit needs a rule only the data's owner can give.

Ordinary JPEG goes through torchvision's decoder, which needs 10 to 25 % less time than Pillow. Where that decoder is
missing (torchvision has announced its removal) Pillow reads JPEG too, to the same pixels. PNG is left to Pillow: on
some damaged files torchvision's decoder kills the process (seen with 0.29: a wrong zlib check sum). Pixels stay
interleaved as decoders write them: laying the channels apart costs as much as resizing the whole picture.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
import torchvision.io
from PIL import Image, UnidentifiedImageError

from vitp.errors import DataError
from vitp.images.stored import ImageFile

_TAIL = 4096  # bytes at a file's end in which its end mark is looked for
MAX_PIXELS = 100_000_000  # ours: 300 MB of pixels; larger images are cut into windows first
# What may be opened at all. Pillow knows more, but some of those start other programs (EPS) or are no images.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
_ORIENTATION_TAG = 0x0112
_ORIENTATION_SOURCES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # keys of `Image.info`
_TIFF_BITS_TAG = 258
# What Pillow's and torchvision's parsers raise on damaged bytes (Pillow: "broken PNG file" is a SyntaxError).
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
           RuntimeError, ZeroDivisionError, AssertionError, struct.error)  # fmt: skip

Decoder = Callable[[torch.Tensor, torchvision.io.ImageReadMode], torch.Tensor]


class ImageError(DataError):
    """An image file cannot be used. `code` groups errors of one kind, `found` and `fix` are the sentence's halves."""

    def __init__(self, code: str, found: str, fix: str, where: str) -> None:
        self.code = code
        self.found = found
        self.fix = fix
        super().__init__(f"{found}; {fix}", where)

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str, str]]:
        return ImageError, (self.code, self.found, self.fix, self.where)


def read_size(path: ImageFile) -> tuple[int, int]:
    """(width, height) in pixels, upright, from the header alone.

    Raises:
        ImageError: the file is missing, empty, no image, or of a kind `read_rgb` refuses whatever its pixels hold.
    """
    with _opened(path) as (_, image):
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def read_rgb(path: ImageFile, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decode an image file: uint8 [3, H, W], RGB, upright, contiguous (see the rules at the top of this module).

    Args and errors are those of `read_interleaved`.
    """
    # numpy lays channels apart in less than half of torch's time (2048 x 2048: 5 against 12 ms)
    return torch.from_numpy(np.ascontiguousarray(read_interleaved(path, max_pixels).numpy().transpose(2, 0, 1)))


def read_interleaved(path: ImageFile, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decode an image file: uint8 [H, W, 3], RGB, upright, contiguous; what `read_rgb` gives, before its copy.

    Args:
        path: JPEG, PNG, TIFF, WebP, BMP, GIF, PNM or JPEG 2000.
        max_pixels: an image whose header announces more is refused before anything is decoded. Pillow's own guard
            (about 179 million pixels) holds besides.

    Raises:
        ImageError: missing, empty, no permission, no image, too large, truncated or damaged, 16-bit or float.
    """
    with _opened(path) as (stream, image):
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(f"announces {width} x {height} pixels, more than the {max_pixels:,} allowed", path)
        orientation = _orientation(image)
        try:
            pixels = _decode(stream, image)
        except (Image.DecompressionBombError, *DAMAGE) as error:
            raise damaged(error, path) from error
    return upright(pixels.permute(2, 0, 1), orientation).permute(1, 2, 0).contiguous()


def _decode(stream: BinaryIO, image: Image.Image) -> torch.Tensor:
    """Pixels as stored, uint8 [H, W, 3]; raises what decoders raise."""
    if image.format not in ("JPEG", "MPO", "PNG"):
        return _decode_with_pillow(image)
    stream.seek(0)
    data = bytearray(stream.read())
    complete = _png_is_complete(data) if image.format == "PNG" else _jpeg_is_complete(data)
    if not complete:  # decoders forgive a missing end and a tail of zeros
        raise EOFError("truncated")
    decode_jpeg = cast("Decoder | None", getattr(torchvision.io, "decode_jpeg", None))
    if decode_jpeg is not None and image.format != "PNG" and image.mode in ("RGB", "L"):
        # Where this decoder fails Pillow has the last word, and the better words for the damage.
        with suppress(RuntimeError):
            planes = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), torchvision.io.ImageReadMode.RGB)
            return planes.permute(1, 2, 0)  # contiguous: the decoder's planes are a view of interleaved pixels
    return _decode_with_pillow(image)


@contextmanager
def _opened(path: ImageFile) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """The open file and Pillow's view of its header; nothing is decoded."""
    where = str(path)
    with open_file(path) as stream:
        try:
            image = Image.open(stream, formats=_FORMATS)
        except UnidentifiedImageError as error:
            found = "is not an image in a known format (JPEG, PNG, TIFF, WebP, BMP, GIF, PNM, JPEG 2000)"
            fix = "replace the file or convert it to 8-bit RGB PNG"
            raise ImageError("image-unknown", found, fix, where) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large("announces more pixels than any image may have (about 179 million)", path) from error
        except DAMAGE as error:
            raise damaged(error, path) from error
        with image:
            if depth := _deep_pixels(image, stream):
                found = f"holds {depth} pixels, and only 8-bit images can be read as they are"
                fix = (
                    "set `images.raster` of the data (`reader.raster` for masks) with a scaling, or convert it to 8 bit"
                )
                raise ImageError("image-deep", found, fix, where)
            if min(image.size) < 1:
                raise damaged(ValueError(f"{image.width} x {image.height} pixels"), path)
            yield stream, image


def open_file(path: ImageFile) -> BinaryIO:
    """Open a regular, non-empty file; every way this can fail is one sentence."""
    where = str(path)
    restore = "correct the path or put the file there"
    empty = ImageError("image-empty", "is empty (0 bytes)", "copy the image again or remove its record", where)
    if not isinstance(path, Path):
        held = path.open()
        if not held.read(1):
            held.close()
            raise empty
        held.seek(0)
        return held
    try:
        status = os.stat(path)
        regular = stat.S_ISREG(status.st_mode)  # opening a pipe would wait for its writer
        stream = path.open("rb") if regular and status.st_size else None
    except FileNotFoundError as error:
        missing = (
            "does not exist" if path.parent.is_dir() else f"does not exist, nor does its folder {path.parent.name}"
        )
        raise ImageError("image-missing", missing, restore, where) from error
    except PermissionError as error:
        raise ImageError("image-denied", "may not be read", "give yourself read permission", where) from error
    except OSError as error:
        raise ImageError("image-unreadable", f"cannot be opened ({error.strerror})", restore, where) from error
    except ValueError as error:  # a NUL character in the name
        raise ImageError("image-missing", "has a name no file can have", restore, ascii(where)) from error
    if stream is not None:
        return stream
    if regular:
        raise empty
    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
    raise ImageError("image-not-a-file", f"is {kind}, not an image", "name an image file", where)


def _deep_pixels(image: Image.Image, stream: BinaryIO) -> str | None:
    """How the pixels are deeper than 8 bit, if they are. Pillow halves some 16-bit files silently to mode RGB."""
    if image.mode.startswith("I"):
        return "16- or 32-bit integer"
    if image.mode == "F":
        return "floating-point"
    if image.format == "PNG":
        stream.seek(24)  # signature 8, IHDR length and name 8, width 4, height 4, then the bit depth
        return "16-bit" if stream.read(1) == b"\x10" else None
    if image.format == "TIFF":
        tags: dict[int, object] = image.tag_v2  # type: ignore[attr-defined, unused-ignore]
        bits = tags.get(_TIFF_BITS_TAG)
        deepest = max((bit for bit in bits if isinstance(bit, int)), default=1) if isinstance(bits, tuple) else 1
        return f"{deepest}-bit" if deepest > 8 else None
    return None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; 1 (upright) where there is none."""
    if image.format == "TIFF":  # Pillow reports a TIFF's upright size and turns it while loading
        return 1
    if not any(key in image.info for key in _ORIENTATION_SOURCES):
        return 1
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)  # PNG's own getexif would decode the pixels
    except DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Undo an EXIF orientation: [3, H, W] as stored -> [3, H', W'] as meant to be seen."""
    if orientation in (5, 7):
        pixels = pixels.transpose(1, 2)
    if orientation in (2, 4):
        return pixels.flip(2 if orientation == 2 else 1)
    turns = {3: 2, 6: -1, 7: 2, 8: 1}.get(orientation, 0)
    return torch.rot90(pixels, turns, (1, 2)) if turns else pixels


def _decode_with_pillow(image: Image.Image) -> torch.Tensor:
    """uint8 [H, W, 3] of any 8-bit mode, transparency over white."""
    image.load()
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    # a copy, since Pillow's memory is read-only
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB")))


def _png_is_complete(data: bytearray) -> bool:
    """Whether the closing chunk is there, with its 4-byte check sum."""
    end = data.rfind(b"IEND")
    return 0 < end <= len(data) - 8


def _jpeg_is_complete(data: bytearray) -> bool:
    """Whether an end-of-image marker follows the first scan; decoders accept files whose tail was filled with zeros.

    The segments before the scan are walked by their lengths, since a thumbnail in them has an end marker of its own.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xDA:  # start of scan
            return data.rfind(b"\xff\xd9", position) >= 0  # from the back, where it should be
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def require_whole(path: Path) -> None:
    """Raise what `read_rgb` would raise of a JPEG or PNG whose end is missing; its last bytes are read, no pixel.

    Raises:
        ImageError: truncated. Other formats are not looked at.
    """
    with open_file(path) as stream:
        start = stream.read(8)
        png, jpeg = start == b"\x89PNG\r\n\x1a\n", start[:2] == b"\xff\xd8"
        if not (png or jpeg):
            return
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
        if (b"IEND" if png else b"\xff\xd9") in stream.read():
            return
        stream.seek(0)  # something else may follow the picture
        data = bytearray(stream.read())
    if not (_png_is_complete(data) if png else _jpeg_is_complete(data)):
        raise damaged(EOFError("truncated"), path)


def _too_large(found: str, path: ImageFile) -> ImageError:
    return ImageError("image-too-large", found, "cut it into smaller images", str(path))


def damaged(error: BaseException, path: ImageFile) -> ImageError:
    """The decoder's complaint as one sentence; its words are kept where they are short."""
    text = " ".join(str(error).split())
    if any(word in text.lower() for word in ("truncated", "incomplete", "premature", "not enough")):
        found = "is truncated"
    else:
        found = f"is damaged ({text[:80].rstrip('. ')})" if text else "is damaged"
    return ImageError("image-damaged", found, "copy the image again or remove its record", str(path))
