"""Physical values (reflectance, backscatter, Hounsfield units) to the 256 levels of an ordinary picture.

One rule everywhere: `low` and what lies below becomes 0, `high` and what lies above becomes 255, linear and rounded
between. What is no measurement (NaN, infinity, fill values, nodata) takes no part in statistics and becomes 0.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vitp.config import Config
from vitp.errors import MissingExtraError

Limits = tuple[float, float]  # (low, high), in the unit of the values

# Ours: no physical quantity is that large, undeclared fill values are (float32 and float64 minimum, 1e36, 1e38).
FILL_VALUE = 1e30
_STRIP = 1 << 22  # ours: values scaled at once, 32 MB as float64


class RangeScaling(Config):
    """Fixed limits, in the unit of the values: the same for every image, so that levels can be compared."""

    kind: Literal["range"] = "range"
    low: tuple[float, ...] = Field(min_length=1)  # one for all bands, or one for each chosen band
    high: tuple[float, ...] = Field(min_length=1)  # as many as `low`

    @model_validator(mode="after")
    def _ordered(self) -> RangeScaling:
        if len(self.low) != len(self.high):
            raise ValueError(f"`low` has {len(self.low)} numbers and `high` {len(self.high)}; give as many to each")
        if not all(math.isfinite(number) for number in self.low + self.high):
            raise ValueError("`low` and `high` must be finite numbers")
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("every `low` must lie below its `high`")
        return self

    def limits(self, band: int) -> Limits:
        """Low and high of the band-th chosen band, counted from 0."""
        place = band if len(self.low) > 1 else 0
        return self.low[place], self.high[place]


class PercentileScaling(Config):
    """Limits at two percentiles of the valid values that are read, each band by itself."""

    kind: Literal["percentile"] = "percentile"
    low: float = Field(default=2.0, ge=0, le=100)  # QGIS, QgsRasterMinMaxOrigin: cumulative cut from 2 %
    high: float = Field(default=98.0, ge=0, le=100)  # QGIS, the same: to 98 %

    @model_validator(mode="after")
    def _ordered(self) -> PercentileScaling:
        if self.low >= self.high:
            raise ValueError(f"`low` ({self.low:g}) must lie below `high` ({self.high:g})")
        return self


Scaling = Annotated[RangeScaling | PercentileScaling, Field(discriminator="kind")]


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingExtraError(f"{purpose} needs {name}; install it with: pip install 'vitp[{extra}]'") from error


def measured(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where an array of any shape holds measurements: finite and below any fill value."""
    if values.dtype.kind in "biu":
        return np.ones(values.shape, dtype=np.bool_)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(values) < FILL_VALUE)  # false for NaN too


def percentile_limits(values: NDArray[Any], scaling: PercentileScaling) -> Limits | None:
    """The two percentiles (linear interpolation) of valid `values` of any shape; None where there are none."""
    if values.size == 0:
        return None
    low, high = np.percentile(values.astype(np.float64).ravel(), (scaling.low, scaling.high), overwrite_input=True)
    return float(low), float(high)


def to_levels(values: NDArray[Any], limits: Limits | None, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scale values [H, W] to uint8 [H, W] by the rule at the top of this module.

    Args:
        values: of any real type.
        limits: where `low` equals `high` (a constant image) nothing is divided: values above become 255, others 0.
            None only where nothing is valid.
        valid: bool [H, W]; false pixels become 0.
    """
    levels = np.zeros(values.shape, dtype=np.uint8)
    if limits is None:
        return levels
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2 and values.size > 1 << 16:  # a table is faster
        info = np.iinfo(values.dtype)
        table = _spread(np.arange(info.min, info.max + 1, dtype=np.float64), limits)
        np.take(table, values.astype(np.int32) - info.min, out=levels)
    else:
        rows = max(1, _STRIP // max(1, values.shape[1]))
        for top in range(0, values.shape[0], rows):  # in strips, so that the float copy stays small
            strip = slice(top, top + rows)
            levels[strip] = _spread(np.where(valid[strip], values[strip], limits[0]).astype(np.float64), limits)
    levels[~valid] = 0
    return levels


def _spread(values: NDArray[np.float64], limits: Limits) -> NDArray[np.uint8]:
    """The rule itself, for finite values of any shape."""
    low, high = limits
    levels = (values - low) * (255.0 / (high - low)) if high > low else np.where(values > high, 255.0, 0.0)
    rounded: NDArray[np.uint8] = np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8)
    return rounded


def decibels(values: NDArray[Any], valid: NDArray[np.bool_], factor: float) -> NDArray[np.float64]:
    """`factor` log10(values): 20 for amplitude, 10 for power. Values of zero or less are set invalid in `valid`."""
    with np.errstate(invalid="ignore"):
        valid &= values > 0
    out = np.zeros(values.shape, dtype=np.float64)
    np.log10(values, out=out, where=valid)
    return out * factor


def window_limits(centre: float, width: float, function: str) -> Limits:
    """Limits of a DICOM window: PS3.3 C.11.2.1.2.1 (LINEAR) and C.11.2.1.3.2 (LINEAR_EXACT)."""
    if function == "LINEAR":  # the half and the one of the standard: integer values, counted inclusively
        centre, width = centre - 0.5, width - 1.0
    return centre - width / 2, centre + width / 2


def sigmoid_levels(values: NDArray[Any], centre: float, width: float, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The sigmoid window of DICOM, PS3.3 C.11.2.1.3.1: values [H, W] to uint8 [H, W], invalid pixels 0."""
    exponent = np.clip(np.where(valid, -4.0 * (values.astype(np.float64) - centre) / width, 0.0), -700.0, 700.0)
    levels: NDArray[np.uint8] = np.rint(255.0 / (1.0 + np.exp(exponent))).astype(np.uint8)
    levels[~valid] = 0
    return levels
