"""How `vitp predict` cuts, blends and writes."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from vitp.config import Config
from vitp.images.read import ImageConfig
from vitp.inference.views import Flips, Scales


class PredictConfig(Config):
    """Settings of a prediction; none of them belongs to the model."""

    # Side in the model's pixels, of a detector in the image's; None: the run's own, else 512 (a detector's: its size).
    window: int | None = Field(default=None, ge=8)
    overlap: float = Field(default=0.25, ge=0, le=0.75)  # share of a window; ours: seams were gone from a quarter up
    batch_size: int | None = Field(default=None, ge=1)  # windows of a forward pass; None: by their size and the device
    scales: Scales = (1.0,)  # zooms whose probabilities are averaged; not given, of a detector: the run's own
    flips: Flips = "none"  # mmsegmentation flips horizontally; `all` adds the other two; of a detector as `scales`
    probabilities: bool = False  # also write a band for each class
    format: Literal["geotiff", "cog"] = "geotiff"  # of predicted GeoTIFFs; cog: cloud-optimised
    compress: Literal["deflate", "lzw", "none"] = "deflate"  # read by every GDAL build
    overviews: bool = True  # of GeoTIFFs larger than 512 pixels, so that viewers open them at once
    polygons: Literal["geojson", "gpkg"] | None = None  # outlines of objects, or of the classes but the background
    min_polygon: int = Field(default=1, ge=1)  # pixels; smaller outlines are left out
    threshold: float | None = Field(default=None, ge=0, le=1)  # score of objects; None: the run's own, or 0 with `dota`
    merge: float | None = Field(
        default=None, ge=0, le=1
    )  # IoU from which two finds are one object; None: the run's own
    dota: bool = False  # objects also as DOTA submission files (Task1_<class>.txt or Task2_, zipped), of all inputs
    preview: int = Field(default=1024, ge=0)  # longer side of the picture beside big outputs; 0: none
    colours: list[str] | None = None  # #rrggbb of each class; None: a fixed palette
    reader: ImageConfig | None = None  # bands, scaling, windows; None: as the run's recipe read its images
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the model; logits are blended in fp32

    @field_validator("colours")
    @classmethod
    def _colours(cls, colours: list[str] | None) -> list[str] | None:
        strange = [colour for colour in colours or [] if re.fullmatch(r"#[0-9a-fA-F]{6}", colour) is None]
        if strange:
            raise ValueError(f"must be written #rrggbb, got '{strange[0]}'")
        return colours
