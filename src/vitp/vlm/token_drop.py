"""Visual Robustness Learning (VRL): which visual tokens a sample keeps (ViTP paper, Eq. 3-4).

The choice is one pure function, taken once while a sample is laid out. A dropped token is then never
projected, never attended to and never padded back; the survivors keep their order and their positions.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from vitp.config import Config

Preset = Literal["paper", "released", "none", "custom"]

# (drop_ratio, apply_prob). "paper": Eq. 3-4 and section 4.3, every sample loses 75 %.
# "released": the published code compares the wrong way round, so only 25 % of the forwards drop anything.
PRESETS: dict[str, tuple[float, float]] = {"paper": (0.75, 1.0), "released": (0.75, 0.25), "none": (0.0, 1.0)}


class TokenDropConfig(Config):
    """How visual tokens are dropped; `preset` names the two published settings, `custom` takes the two numbers."""

    preset: Preset = "paper"
    drop_ratio: float | None = Field(default=None, ge=0.0, lt=1.0)  # C_r's r in Eq. 3; only with preset: custom
    apply_prob: float | None = Field(default=None, ge=0.0, le=1.0)  # share of samples that drop; only with custom

    @model_validator(mode="after")
    def _numbers_only_with_custom(self) -> TokenDropConfig:
        given = self.drop_ratio is not None or self.apply_prob is not None
        if given and self.preset != "custom":
            raise ValueError("drop_ratio and apply_prob need 'preset: custom'")
        if self.preset == "custom" and self.drop_ratio is None:
            raise ValueError("'preset: custom' needs drop_ratio (and optionally apply_prob)")
        return self

    @property
    def ratio(self) -> float:
        """The share of visual tokens a dropping sample loses."""
        if self.preset == "custom":
            assert self.drop_ratio is not None
            return self.drop_ratio
        return PRESETS[self.preset][0]

    @property
    def probability(self) -> float:
        """The probability that a sample drops at all."""
        if self.preset == "custom":
            return 1.0 if self.apply_prob is None else self.apply_prob
        return PRESETS[self.preset][1]

    @property
    def kept_share(self) -> float:
        """The share of all visual tokens that survives on average."""
        return 1.0 - self.ratio * self.probability


def kept_count(n: int, drop_ratio: float) -> int:
    """How many of `n` tokens survive: ceil((1 - r) n), Eq. 4.

    Computed as n - floor(r n) with a guard against binary rounding, so that r = 0.9 of 10 keeps 1 and not 2.
    """
    return n - math.floor(drop_ratio * n + 1e-9)


def keep(n: int, drop_ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Choose the surviving tokens of one sample, uniformly without replacement (Eq. 4).

    Args:
        n: number of visual tokens of the sample, over all its tiles and images.
        drop_ratio: r in [0, 1).
        rng: the sample's own generator; nothing else is random here.

    Returns:
        int64 [ceil((1 - r) n)], ascending indices of the survivors.

    Raises:
        ValueError: `drop_ratio` outside [0, 1).
    """
    if not 0.0 <= drop_ratio < 1.0:
        raise ValueError(f"drop_ratio must be in [0, 1), got {drop_ratio}")
    kept = kept_count(n, drop_ratio)
    if kept == n:
        return np.arange(n, dtype=np.int64)
    return np.sort(rng.permutation(n)[:kept]).astype(np.int64)


def applies(config: TokenDropConfig, rng: np.random.Generator) -> bool:
    """Whether the sample of this generator drops at all: the first decision `draw` takes."""
    return config.probability >= 1.0 or bool(rng.random() < config.probability)


def draw(n: int, config: TokenDropConfig, rng: np.random.Generator) -> np.ndarray:
    """Decide whether the sample drops at all, then choose its survivors: int64, ascending."""
    return keep(n, config.ratio if applies(config, rng) else 0.0, rng)
