"""DICOM images to pictures: PS3.3 C.11, through pydicom (extra `medical`).

Stored values, then modality rescale or table, then window or table (VOI), then 8 bit. MONOCHROME1 is inverted, as it
is on a screen; colours of any photometric interpretation become RGB. Pixels at the padding value lie outside the imaged
area: they become black, take no part in statistics, and are counted. A window that says nothing (no number, or a width
the standard does not allow) counts as absent. Presentation tables, overlays and ICC profiles are not applied.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vitp.config import Config
from vitp.images.decode import DAMAGE, MAX_PIXELS, ImageError, damaged, open_file
from vitp.images.levels import (
    Limits,
    PercentileScaling,
    RangeScaling,
    Scaling,
    import_extra,
    measured,
    percentile_limits,
    sigmoid_levels,
    to_levels,
    window_limits,
)

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # what pydicom turns to RGB
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")  # in the patient, else on the detector
_FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
# nnU-Net, explanation_normalization.md: CT is clipped to these percentiles
_NNUNET = PercentileScaling(low=0.5, high=99.5)


class GreyConfig(Config):
    """How grey values become levels."""

    window: tuple[float, float] | None = None  # centre, width (LINEAR, PS3.3 C.11.2.1.2.1); the file's own, if any
    scaling: Scaling = _NNUNET  # only where there is no window

    @model_validator(mode="after")
    def _sensible(self) -> GreyConfig:
        if self.window is not None and not (math.isfinite(self.window[0]) and 1 <= self.window[1] < math.inf):
            raise ValueError(f"`window` is centre and width, the width at least 1, not {list(self.window)}")
        if isinstance(self.scaling, RangeScaling) and len(self.scaling.low) != 1:
            raise ValueError("`scaling` must have one pair of limits, since the image is grey")
        return self


class DicomConfig(GreyConfig):
    """Which frame of a DICOM file is shown, and how."""

    window_index: int = Field(
        default=0, ge=0
    )  # PS3.3 C.11.2.1.2: several are alternative views; pydicom takes the first
    frame: int = Field(default=0, ge=0)  # counted from 0, as in pydicom


@dataclass(frozen=True, eq=False)
class DicomImage:
    """One frame of a DICOM file as a picture."""

    pixels: NDArray[np.uint8]  # [3, H, W], RGB
    invalid: int  # padding, NaN and infinity: left out of statistics and shown black
    limits: Limits | None  # of the grey values; None for colours, tables and sigmoid windows
    window: tuple[float, float] | None  # centre and width in use
    frame: int
    frames: int
    spacing: tuple[float, float] | None  # mm between rows, between columns
    modality: str
    photometric: str


def read_dicom(path: Path, config: DicomConfig, max_pixels: int = MAX_PIXELS) -> DicomImage:
    """Read one frame as uint8 [3, H, W] (numpy); other frames are not decoded.

    Raises:
        ImageError: missing, damaged, truncated, no DICOM file, without pixels, compressed in a way the installed
            packages cannot decode, too large, or without the frame or window asked for.
        MissingExtraError: pydicom is not installed.
    """
    with dicom_opened(path) as (stream, header):
        if int(header.Rows) * int(header.Columns) > max_pixels:
            raise too_large(f"announces {header.Columns} x {header.Rows} pixels", max_pixels, path)
        frames = int(header.get("NumberOfFrames") or 1)
        if config.frame >= frames:
            found = f"has {frames} frame{'s' if frames > 1 else ''}, and frame {config.frame} (from 0) is asked for"
            raise ImageError("dicom-frame", found, f"choose a frame from 0 to {frames - 1}", str(path))
        photometric = _word(header.get("PhotometricInterpretation", "MONOCHROME2"))
        if photometric not in (*_COLOURS, *_GREYS, "PALETTE COLOR"):
            found = f"has the photometric interpretation {photometric}, which is not supported"
            raise ImageError("dicom-photometric", found, "convert it to RGB or MONOCHROME2", str(path))
        _merge_frame_groups(header, config.frame)
        stored = dicom_pixels(stream, header, config.frame, path)
        limits: Limits | None = None
        window: tuple[float, float] | None = None
        if photometric in _GREYS:
            levels, valid, limits, window = _grey(stored, header, config, path)
            if photometric == "MONOCHROME1":
                levels = np.where(valid, 255 - levels, 0).astype(np.uint8)
            pixels, invalid = np.stack([levels] * 3), int(valid.size - np.count_nonzero(valid))
        else:
            pixels, invalid = _colour(stored, header, photometric), 0
        spacing = next((header.get(name) for name in _SPACINGS if header.get(name)), None)
        millimetres = (float(spacing[0]), float(spacing[1])) if spacing and len(spacing) == 2 else None
        modality = _word(header.get("Modality", ""))
    return DicomImage(pixels, invalid, limits, window, config.frame, frames, millimetres, modality, photometric)


def dicom_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels from the header alone; raises what `read_dicom` raises about headers."""
    with dicom_opened(path) as (_, header):
        return int(header.Columns), int(header.Rows)


@contextmanager
def dicom_opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The open file and its header up to the pixels."""
    pydicom = import_extra("pydicom", "medical", "reading DICOM")
    with open_file(path) as stream:
        try:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
            if not header.get("Rows") or not header.get("Columns"):
                raise _no_pixels(header, path)
            yield stream, header
        except pydicom.errors.InvalidDicomError as error:
            found = "is no DICOM file (the DICM mark after the first 128 bytes is missing)"
            raise ImageError("image-unknown", found, "name a DICOM file, or convert it", str(path)) from error
        except ImageError:
            raise
        except (*DAMAGE, pydicom.errors.BytesLengthException, zlib.error, MemoryError) as error:
            raise damaged(error, path) from error


def dicom_pixels(stream: Any, header: Any, frame: int, path: Path) -> NDArray[Any]:
    """Stored values of one frame, [H, W] or [H, W, 3]; YBR is RGB already."""
    pydicom = import_extra("pydicom", "medical", "reading DICOM")
    pixels = import_extra("pydicom.pixels", "medical", "reading DICOM")
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("dicom-syntax", "does not name its transfer syntax", "export it again", str(path))
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise _undecodable(_word(syntax.name), path) from error
    if not decoder.is_available:
        raise _undecodable(_word(syntax.name), path)
    # A deflated file has no pixels to seek to
    source = stream
    if syntax == _DEFLATED:
        stream.seek(0)
        source = pydicom.dcmread(stream)
    try:
        return np.asarray(pixels.pixel_array(source, index=frame))
    except (*DAMAGE, zlib.error) as error:
        text = str(error).lower()
        if "no pixel data" in text:
            raise _no_pixels(header, path) from error
        if "not support" in text:
            raise _undecodable(_word(syntax.name), path) from error
        raise damaged(error if syntax.is_compressed else EOFError("truncated"), path) from error


def _merge_frame_groups(header: Any, frame: int) -> None:
    """Lift what an enhanced multi-frame file says of this frame (rescale, window, spacing) to the top of its header."""
    shared, own = header.get("SharedFunctionalGroupsSequence"), header.get("PerFrameFunctionalGroupsSequence")
    groups = ([shared[0]] if shared else []) + ([own[frame]] if own and frame < len(own) else [])
    for group in groups:
        for name in _FRAME_GROUPS:
            for element in (group.get(name) or [()])[0]:
                header.add(element)


def _grey(
    stored: NDArray[Any], header: Any, config: DicomConfig, path: Path
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], Limits | None, tuple[float, float] | None]:
    """Levels [H, W], where they are valid, and the limits and window in use."""
    valid = measured(stored)
    padding = header.get("PixelPaddingValue")
    if isinstance(padding, int):
        other = header.get("PixelPaddingRangeLimit", padding)
        valid &= (stored < min(padding, other)) | (stored > max(padding, other))
    values = import_extra("pydicom.pixels", "medical", "reading DICOM").apply_modality_lut(stored, header)
    window, function = config.window, "LINEAR"
    if window is None:
        if header.get("VOILUTSequence"):
            return _looked_up(values, header, config.window_index, valid, path), valid, None, None
        window = _stated_window(header, config.window_index, path)
        function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if window is not None and function == "SIGMOID":
        return sigmoid_levels(values, *window, valid), valid, None, window
    bits = int(header.get("BitsStored", 16))
    if window is not None:
        limits: Limits | None = window_limits(*window, function)
    elif bits <= 8 and values.dtype.kind == "u":  # neither rescaled nor windowed: made for the screen
        limits = (0.0, float(2**bits - 1))
    else:
        limits = scaled_limits(config.scaling, values[valid])
    return to_levels(values, limits, valid), valid, limits, window


def _stated_window(header: Any, index: int, path: Path) -> tuple[float, float] | None:
    """Centre and width of the index-th window of the file, if it has any that says something."""
    pairs = []
    for name in ("WindowCenter", "WindowWidth"):
        value = header.get(name)
        pairs.append([] if value in (None, "") else list(value) if hasattr(value, "__iter__") else [value])
    windows = [(float(centre), float(width)) for centre, width in zip(*pairs, strict=False)]
    if windows and index >= len(windows):
        found = f"has {len(windows)} window{'s' if len(windows) > 1 else ''}, and window {index} (from 0) is asked for"
        raise ImageError("dicom-window", found, f"choose a window from 0 to {len(windows) - 1}", str(path))
    exact = str(header.get("VOILUTFunction") or "LINEAR").upper() != "LINEAR"
    usable = windows and (windows[index][1] > 0 if exact else windows[index][1] >= 1)
    return windows[index] if usable else None


def _looked_up(
    values: NDArray[Any], header: Any, index: int, valid: NDArray[np.bool_], path: Path
) -> NDArray[np.uint8]:
    """Levels by the index-th VOI table, PS3.3 C.11.2.1.1: values below and above it take its first and last entry."""
    tables = header.VOILUTSequence
    if index >= len(tables):
        found = f"has {len(tables)} VOI table{'s' if len(tables) > 1 else ''}, and table {index} (from 0) is asked for"
        raise ImageError("dicom-window", found, f"choose a table from 0 to {len(tables) - 1}", str(path))
    entries, first, bits = tables[index].LUTDescriptor
    data = tables[index].LUTData
    if isinstance(data, bytes):
        order = "<" if header.original_encoding[1] else ">"
        data = np.frombuffer(data, dtype=f"{order}u2")
    table = np.asarray(data)[: entries or 65536]
    place = np.clip(np.rint(np.where(valid, values, first)) - first, 0, len(table) - 1).astype(np.intp)
    return to_levels(table[place], (0.0, float(2**bits - 1)), valid)


def _colour(stored: NDArray[Any], header: Any, photometric: str) -> NDArray[np.uint8]:
    """uint8 [3, H, W] of colours of any depth."""
    top = 2 ** int(header.get("BitsStored", 8)) - 1
    if photometric == "PALETTE COLOR":
        lut = import_extra("pydicom.pixels", "medical", "reading DICOM").apply_color_lut
        stored = lut(stored, header)[..., :3]
        top = 255 if stored.max() <= 255 else 65535  # 8-bit entries may stand in 16-bit cells
    everywhere = np.ones(stored.shape[:2], dtype=np.bool_)
    return np.stack([to_levels(stored[..., channel], (0.0, float(top)), everywhere) for channel in range(3)])


def scaled_limits(scaling: PercentileScaling | RangeScaling, values: NDArray[Any]) -> Limits | None:
    """The fixed limits, or the percentiles of valid `values`; None where there are none."""
    return scaling.limits(0) if isinstance(scaling, RangeScaling) else percentile_limits(values, scaling)


def _word(value: object) -> str:
    """A code from a header, fit for a message whatever bytes a damaged file holds."""
    return "".join(letter for letter in str(value or "") if letter.isprintable()).strip()[:60]


def _no_pixels(header: Any, path: Path) -> ImageError:
    found = f"is a DICOM file without pixels (modality {_word(header.get('Modality')) or 'not stated'})"
    return ImageError("dicom-no-pixels", found, "name an image, or copy the file again if it was cut", str(path))


def _undecodable(syntax: str, path: Path) -> ImageError:
    # Permissive licences only: python-gdcm BSD, pyjpegls MIT, pylibjpeg-openjpeg MIT (pydicom's plugin table)
    package = "python-gdcm"
    if "JPEG-LS" in syntax:
        package = "pyjpegls"
    elif "2000" in syntax:
        package = "pylibjpeg pylibjpeg-openjpeg"
    found = f"is compressed as {syntax}, which the installed packages cannot decode"
    fix = f"pip install {package}, or decompress it with gdcmconv --raw"
    return ImageError("dicom-compressed", found, fix, str(path))


def too_large(found: str, max_pixels: int, path: Path) -> ImageError:
    """The refusal of an image or slice of too many pixels."""
    fix = "cut it into smaller images, or allow more if it really is that large"
    return ImageError("image-too-large", f"{found}, more than the {max_pixels:,} allowed", fix, str(path))
