"""Any image file a recipe may name to RGB: ordinary pictures, rasters, DICOM and NIfTI, told apart by their bytes.

* NIfTI by its suffix (.nii, .nii.gz, .hdr, .img): one slice, `NiftiConfig` says which.
* DICOM by its preamble ("DICM" at byte 128, with or without a suffix) or the suffix .dcm or .dicom: one frame.
* TIFF and JPEG 2000, and PNG deeper than 8 bits, through `vitp.images.raster` where a `RasterConfig` is given; without
  one they are read as ordinary 8-bit pictures, and deeper ones are refused, since only their owner knows the scaling.
* Everything else as an ordinary picture (`vitp.images.decode`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from vitp.config import Config
from vitp.images.decode import ImageError, read_interleaved, read_size
from vitp.images.medical import DicomConfig, dicom_size, read_dicom
from vitp.images.nifti import NiftiConfig, nifti_size, read_nifti
from vitp.images.raster import GEO_MAGIC, RasterConfig, raster_size, read_raster

Kind = Literal["picture", "raster", "dicom", "nifti"]
_NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
_DICOM = (".dcm", ".dicom")


class ImageConfig(Config):
    """How files that are no ordinary pictures become ordinary pictures."""

    raster: RasterConfig | None = None  # None: 8-bit files only
    dicom: DicomConfig = DicomConfig()
    nifti: NiftiConfig = NiftiConfig()


def kind_of(path: Path, config: ImageConfig) -> Kind:
    """Which reader a file is for, by its name and first bytes; a file that cannot be opened is a picture."""
    name = path.name.lower()
    if name.endswith(_NIFTI):
        return "nifti"
    if name.endswith(_DICOM):
        return "dicom"
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except (OSError, ValueError):  # the picture reader has the sentence for it
        return "picture"
    if head[128:] == b"DICM":
        return "dicom"
    return "raster" if config.raster is not None and head.startswith(GEO_MAGIC) else "picture"


def read_image(path: Path, config: ImageConfig) -> torch.Tensor:
    """An image file as RGB, uint8 [3, H, W].

    In memory the channels of ordinary pictures lie together (strides of [H, W, 3]), which is how decoders write them and
    how resizing wants them; ask for `.contiguous()` where planes are needed.

    Raises:
        ImageError: missing, damaged, too large, or deeper than 8 bits without a scaling.
        MissingExtraError: its format needs an extra that is not installed.
    """
    kind = kind_of(path, config)
    if kind == "nifti":
        return torch.from_numpy(read_nifti(path, config.nifti).pixels)
    if kind == "dicom":
        return torch.from_numpy(read_dicom(path, config.dicom).pixels)
    if kind == "raster":
        assert config.raster is not None
        return torch.from_numpy(read_raster(path, config.raster).pixels)
    try:
        return read_interleaved(path).permute(2, 0, 1)
    except ImageError as error:
        if error.code != "image-deep" or config.raster is None:
            raise
    return torch.from_numpy(read_raster(path, config.raster).pixels)


def image_size(path: Path, config: ImageConfig) -> tuple[int, int]:
    """(width, height) of what `read_image` gives, from the header alone; raises what it raises about headers."""
    kind = kind_of(path, config)
    if kind == "nifti":
        return nifti_size(path, config.nifti)
    if kind == "dicom":
        return dicom_size(path)
    if kind == "raster":
        return raster_size(path)
    try:
        return read_size(path)
    except ImageError as error:
        if error.code != "image-deep" or config.raster is None:
            raise
    return raster_size(path)
