"""Any image file a recipe may name to RGB: ordinary pictures, rasters, DICOM and NIfTI, told apart by their bytes.

* NIfTI by its suffix (.nii, .nii.gz, .hdr, .img): one slice, `NiftiConfig` says which.
* DICOM by its preamble ("DICM" at byte 128, with or without a suffix) or the suffix .dcm or .dicom: one frame.
* TIFF and JPEG 2000, and PNG deeper than 8 bits, through `vitp.images.raster` where a `RasterConfig` is given; without
  one they are read as ordinary 8-bit pictures, and deeper ones are refused, since only their owner knows the scaling.
* Everything else as an ordinary picture (`vitp.images.decode`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

import torch

from vitp.config import Config
from vitp.errors import MissingExtraError
from vitp.files import raise_if_unwritable
from vitp.images.choice import Chosen
from vitp.images.decode import ImageError, read_interleaved, read_size
from vitp.images.medical import DicomConfig, dicom_size, read_dicom
from vitp.images.nifti import NiftiConfig, nifti_size, read_nifti
from vitp.images.raster import GEO_MAGIC, RasterConfig, Window, raster_size, read_raster
from vitp.images.stored import ImageFile, held

Kind = Literal["picture", "raster", "dicom", "nifti"]
_NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
_DICOM = (".dcm", ".dicom")


class ImageConfig(Config):
    """How files that are no ordinary pictures become ordinary pictures."""

    raster: RasterConfig | None = None  # None: 8-bit files only
    dicom: DicomConfig = DicomConfig()
    nifti: NiftiConfig = NiftiConfig()


def kind_of(path: ImageFile, config: ImageConfig) -> Kind:
    """Which reader a file is for, by its name and first bytes; a file that cannot be opened is a picture."""
    name = path.name.lower()
    if name.endswith(_NIFTI):
        return "nifti"
    if name.endswith(_DICOM):
        return "dicom"
    try:
        with path.open("rb") if isinstance(path, Path) else path.open() as stream:
            head = stream.read(132)
    except (OSError, ValueError):  # the picture reader has the sentence for it
        return "picture"
    if head[128:] == b"DICM":
        return "dicom"
    return "raster" if config.raster is not None and head.startswith(GEO_MAGIC) else "picture"


def read_image(path: ImageFile, config: ImageConfig) -> torch.Tensor:
    """An image file, or an image stored elsewhere, as RGB, uint8 [3, H, W].

    In memory the channels of ordinary pictures lie together (strides of [H, W, 3]), which is how decoders write them and
    how resizing wants them; ask for `.contiguous()` where planes are needed.

    Raises:
        ImageError: missing, damaged, too large, or deeper than 8 bits without a scaling.
        MissingExtraError: its format needs an extra that is not installed.
    """
    choice = path if isinstance(path, Chosen) else None
    path = held(path.file if isinstance(path, Chosen) else path)
    kind = kind_of(path, config)
    window = choice.window() if choice is not None and kind in ("picture", "raster") else None
    if kind == "picture":
        try:
            pixels = read_interleaved(path).permute(2, 0, 1)
        except ImageError as error:
            if error.code != "image-deep" or config.raster is None:
                raise
        else:
            return pixels if choice is None or window is None else _cut(pixels, choice, window)
    with as_path(path) as file:
        if kind == "nifti":
            nifti = config.nifti if choice is None else choice.nifti(config.nifti)
            return torch.from_numpy(read_nifti(file, nifti).pixels)
        if kind == "dicom":
            dicom = config.dicom if choice is None else choice.dicom(config.dicom)
            return torch.from_numpy(read_dicom(file, dicom).pixels)
        assert config.raster is not None
        return torch.from_numpy(read_raster(file, config.raster, window).pixels)


def _cut(pixels: torch.Tensor, choice: Chosen, window: Window) -> torch.Tensor:
    choice.inside(window, (pixels.shape[2], pixels.shape[1]))
    return pixels[:, window.row : window.row + window.height, window.column : window.column + window.width]


def image_size(path: ImageFile, config: ImageConfig) -> tuple[int, int]:
    """(width, height) of what `read_image` gives, from the header alone; raises what it raises about headers."""
    choice = path if isinstance(path, Chosen) else None
    path = held(path.file if isinstance(path, Chosen) else path)
    kind = kind_of(path, config)
    if kind == "nifti":
        with as_path(path) as file:
            return nifti_size(file, config.nifti if choice is None else choice.nifti(config.nifti))
    if kind == "dicom":
        if choice is not None:
            choice.dicom(config.dicom)
        with as_path(path) as file:
            return dicom_size(file)
    size = _picture_size(path, config) if kind == "picture" else None
    if size is None:
        with as_path(path) as file:
            size = raster_size(file)
    if choice is None:
        return size
    window = choice.window()
    choice.inside(window, size)
    return window.width, window.height


def _picture_size(path: ImageFile, config: ImageConfig) -> tuple[int, int] | None:
    """None where it is deeper than 8 bits and to be read as a raster."""
    try:
        return read_size(path)
    except ImageError as error:
        if error.code != "image-deep" or config.raster is None:
            raise
        return None


@contextmanager
def as_path(file: ImageFile) -> Iterator[Path]:
    """A path, which is all that rasterio and nibabel take: a stored image becomes a file for as long as it is read.

    Raises:
        OutputError: there is no space for temporary files.
    """
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="vitp-") as folder:
        copy = Path(folder, "image" + "".join(PurePosixPath(file.name).suffixes[-2:]))
        with file.open() as stored:
            try:
                with copy.open("wb") as target:
                    shutil.copyfileobj(stored, target)
            except OSError as error:
                raise_if_unwritable(error, copy)
                raise
        try:
            yield copy
        except ImageError as error:
            raise ImageError(error.code, error.found, error.fix, str(file)) from error
        except MissingExtraError as error:
            raise MissingExtraError(str(error).replace(str(copy), str(file))) from error
