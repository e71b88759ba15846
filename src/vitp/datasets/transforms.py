"""Random crops, mirrors and colours of an image and its mask, each a pure function of (seed, step, slot)."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vitp.config import Config
from vitp.metrics.segmentation import IGNORE
from vitp.train.draws import Purpose, generator

FILL = (124, 116, 104)  # ImageNet's mean colour: what lies outside the picture is about 0 once normalised


class AugmentConfig(Config):
    """How a training crop is made."""

    crop: int = Field(default=512, ge=8)  # side of the square, pixels (mmsegmentation's ADE20K schedules)
    scale: tuple[float, float] = (0.5, 2.0)  # zoom, drawn evenly in its logarithm (range: mmsegmentation)
    flip: bool = True  # mirror left-right half of the time (mmsegmentation)
    rot90: bool = False  # turn by a random quarter and mirror up-down: for pictures taken from above
    photometric: float = Field(default=1.0, ge=0, le=1)  # 1: mmsegmentation's colour distortion, 0: none

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be [smallest, largest] with 0 < smallest <= largest, got {list(self.scale)}")
        return self


def augment(
    image: Tensor, mask: Tensor, config: AugmentConfig, seed: int, step: int, slot: int
) -> tuple[Tensor, Tensor]:
    """One training crop.

    Args:
        image: uint8 [3, H, W].
        mask: uint8 [H, W], class ids.
        config: what is drawn.
        seed: of the run.
        step: of the optimiser.
        slot: place of the sample in the step.

    Returns:
        image uint8 [3, c, c] and mask uint8 [c, c]; what lies outside the picture is 255 (ignored) in the mask.
    """
    rng = generator(seed, Purpose.AUGMENT, step, slot)
    picture, labels = _random_crop(image, mask[None], config, rng)
    if config.flip and rng.random() < 0.5:
        picture, labels = functional.horizontal_flip(picture), functional.horizontal_flip(labels)
    if config.rot90:
        turns = int(rng.integers(4))
        picture, labels = torch.rot90(picture, turns, (-2, -1)), torch.rot90(labels, turns, (-2, -1))
        if rng.random() < 0.5:
            picture, labels = functional.vertical_flip(picture), functional.vertical_flip(labels)
    if config.photometric > 0:
        picture = _distort_colours(picture, config.photometric, rng)
    return picture.contiguous(), labels[0].contiguous()


def _random_crop(image: Tensor, mask: Tensor, config: AugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Zoom and crop in one resampling of the part that is seen, then fill what lies outside the picture.

    The mask is no tv_tensors.Mask: torchvision resizes those by plain nearest whatever is asked, which shifts them
    against the image by up to half a pixel of the coarser grid; nearest-exact has the image's pixel centres.
    """
    height, width = mask.shape[-2:]
    zoom = float(np.exp(rng.uniform(np.log(config.scale[0]), np.log(config.scale[1]))))
    seen = max(1, round(config.crop / zoom))  # side of the crop in source pixels
    taken, placed = [], []
    for length in (height, width):
        at = int(rng.integers(min(0, length - seen), max(0, length - seen) + 1))
        first, last = max(0, at), min(length, at + seen)
        taken.append((first, last - first))
        left = min(config.crop - 1, round((first - at) * config.crop / seen))
        side = max(1, min(config.crop - left, round((last - first) * config.crop / seen)))
        placed.append((left, side, config.crop - left - side))
    (y, h), (x, w) = taken
    (above, rows, below), (before, columns, after) = placed
    image = functional.resized_crop(image, y, x, h, w, [rows, columns], antialias=True)
    mask = functional.resized_crop(mask, y, x, h, w, [rows, columns], interpolation=InterpolationMode.NEAREST_EXACT)
    if above or below or before or after:
        padding = [before, above, after, below]
        image = functional.pad(image, padding, fill=list(FILL))
        mask = functional.pad(mask, padding, fill=IGNORE)
    return image, mask


def _distort_colours(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue, each half of the time, in the ranges of mmsegmentation."""
    ranges = {
        functional.adjust_brightness: 0.125,
        functional.adjust_contrast: 0.5,
        functional.adjust_saturation: 0.5,
    }
    for adjust, reach in ranges.items():
        factor = float(rng.uniform(1 - reach * strength, 1 + reach * strength))
        if rng.random() < 0.5:
            image = adjust(image, factor)
    shift = float(rng.uniform(-0.05 * strength, 0.05 * strength))  # of the colour circle
    return functional.adjust_hue(image, shift) if rng.random() < 0.5 else image
