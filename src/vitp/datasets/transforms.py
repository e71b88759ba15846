"""Random crops, turns, mirrors and colours of images and their mask, each a pure function of (seed, step, slot).

Geometry is drawn once and shared by the mask and all dates of a sample; all of it is one resampling of the crop, and a
second one where the crop is rotated by other than quarters.
"""

from __future__ import annotations

from math import ceil, cos, radians, sin

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
_TRIES = 10  # mmsegmentation: crops looked at for one that no class fills
_HALF = 0.5


class ColourConfig(Config):
    """How the colours of a training image are distorted."""

    photometric: float = Field(default=1.0, ge=0, le=1)  # 1: colour distortion in the ranges below, 0: none
    brightness: float = Field(default=0.125, ge=0, lt=1)  # mmsegmentation: 32 of 255 (released change configs: 10)
    contrast: float = Field(default=0.5, ge=0, lt=1)  # mmsegmentation (released change configs: 0.2)
    saturation: float = Field(default=0.5, ge=0, lt=1)  # mmsegmentation (released change configs: 0.2)
    hue: float = Field(default=0.05, ge=0, le=0.5)  # of the circle; mmsegmentation: 18 of 360 (change configs: 10)


class AugmentConfig(ColourConfig):
    """How a training crop is made."""

    crop: int = Field(default=512, ge=8)  # side of the square, pixels (mmsegmentation's ADE20K schedules)
    # first zoom to fit into (long side, short side), ratio kept (mmsegmentation's img_scale); None: as stored
    fit: tuple[int, int] | None = None
    scale: tuple[float, float] = (0.5, 2.0)  # zoom, drawn evenly in its logarithm (range: mmsegmentation)
    max_class: float = Field(default=1.0, gt=0, le=1)  # look for a crop where no class has more (released: 0.75)
    flip: bool = True  # mirror left-right half of the time (mmsegmentation)
    flip_vertical: bool = False  # mirror up-down half of the time (released LEVIR-CD and SVCD configs)
    rot90: bool = False  # turn by a random quarter and mirror up-down: for pictures taken from above
    rotate: float = Field(default=0.0, ge=0, le=180)  # degrees to either side (released: 180 for LEVIR-CD and SVCD)
    rotate_chance: float = Field(default=0.5, ge=0, le=1)  # released configs
    # degrees; half of the time rotate within them, else half of the time a quarter turn and a mirror (released: 20)
    rot_flip: float = Field(default=0.0, ge=0, le=180)
    swap_dates: float = Field(default=0.0, ge=0, le=1)  # how often a pair's dates are exchanged (released: 0.5)
    colours_by_date: bool = True  # a pair's dates are distorted independently (released change configs)

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be [smallest, largest] with 0 < smallest <= largest, got {list(self.scale)}")
        if self.fit is not None and min(self.fit) < 1:
            raise ValueError(f"fit must be two lengths in pixels, got {list(self.fit)}")
        if self.rot_flip > 0 and (self.rotate > 0 or self.rot90):
            raise ValueError("rot_flip already turns and mirrors; leave out rotate and rot90")
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
    picture, labels = _move(image, mask[None], config, rng)
    if config.photometric > 0:
        picture = distort_colours(picture, config, rng)
    return picture.contiguous(), labels[0].contiguous()


def augment_pair(
    before: Tensor, after: Tensor, mask: Tensor, config: AugmentConfig, seed: int, step: int, slot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One training crop of two dates, moved together.

    Args:
        before: the first date, uint8 [3, H, W].
        after: the second date, uint8 [3, H, W].
        mask: of the changes, uint8 [H, W].
        config: what is drawn.
        seed: of the run.
        step: of the optimiser.
        slot: place of the pair in the step.

    Returns:
        both dates uint8 [3, c, c] and the mask uint8 [c, c]; what lies outside the pictures is 255 in the mask.
    """
    rng = generator(seed, Purpose.AUGMENT, step, slot)
    both, labels = _move(torch.cat([before, after]), mask[None], config, rng)
    dates = list(torch.split(both, 3))
    if config.swap_dates > 0 and rng.random() < config.swap_dates:
        dates.reverse()
    if config.photometric > 0:
        if config.colours_by_date:
            dates = [distort_colours(date, config, rng) for date in dates]
        else:  # one draw for both: the dates side by side are one picture
            dates = [distort_colours(date, config, generator(seed, Purpose.AUGMENT, step, slot, 1)) for date in dates]
    return dates[0].contiguous(), dates[1].contiguous(), labels[0].contiguous()


# ------------------------------------------------------------------------------------------------------------- geometry


def _move(image: Tensor, mask: Tensor, config: AugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Crop, turn and mirror image [3 n, H, W] and mask [1, H, W] alike."""
    quarters, upside_down, angle = 0, False, 0.0
    if config.rot_flip > 0:  # drawn before the crop, which must be larger where it is rotated
        if rng.random() < _HALF:
            angle = float(rng.uniform(-config.rot_flip, config.rot_flip))
        elif rng.random() < _HALF:
            quarters, upside_down = int(rng.integers(4)), bool(rng.random() < _HALF)
    elif config.rotate > 0 and rng.random() < config.rotate_chance:
        angle = float(rng.uniform(-config.rotate, config.rotate))
    picture, labels = _rotated_crop(image, mask, config, rng, angle)
    if config.flip and rng.random() < _HALF:
        picture, labels = functional.horizontal_flip(picture), functional.horizontal_flip(labels)
    if config.rot90:
        quarters = int(rng.integers(4))
        upside_down = bool(rng.random() < _HALF)
    elif config.flip_vertical:
        upside_down ^= bool(rng.random() < _HALF)
    if quarters:
        picture, labels = torch.rot90(picture, quarters, (-2, -1)), torch.rot90(labels, quarters, (-2, -1))
    if upside_down:
        picture, labels = functional.vertical_flip(picture), functional.vertical_flip(labels)
    return picture, labels


def _rotated_crop(
    image: Tensor, mask: Tensor, config: AugmentConfig, rng: np.random.Generator, angle: float
) -> tuple[Tensor, Tensor]:
    """Zoom, crop and rotate by `angle` degrees about the crop's centre.

    What is rotated is larger than the crop, so that its corners show the picture where there is one.
    """
    side = config.crop
    height, width = mask.shape[-2:]
    zoom = float(np.exp(rng.uniform(np.log(config.scale[0]), np.log(config.scale[1]))))
    if config.fit is not None:
        zoom *= min(max(config.fit) / max(height, width), min(config.fit) / min(height, width))
    seen = max(1, round(side / zoom))  # side of the crop in source pixels
    top, left = _corner(mask, config, rng, seen)
    if angle == 0.0:
        return _crop(image, mask, (top, left), seen, side)
    turn = radians(angle)
    more = ceil((side * (abs(cos(turn)) + abs(sin(turn))) - side) / 2)  # pixels on every side: the centre stays
    margin = ceil(more * seen / side)
    around = seen + 2 * margin
    top, left = (
        min(max(at - margin, 0), length - around) if length >= around else at - margin
        for at, length in ((top, height), (left, width))
    )
    picture, labels = _crop(image, mask, (top, left), around, side + 2 * more)
    fill = [float(level) for level in FILL] * (image.shape[0] // 3)
    picture = functional.rotate(picture, angle, interpolation=InterpolationMode.BILINEAR, fill=fill)
    labels = functional.rotate(labels, angle, interpolation=InterpolationMode.NEAREST, fill=float(IGNORE))
    return functional.center_crop(picture, [side, side]), functional.center_crop(labels, [side, side])


def _crop(image: Tensor, mask: Tensor, corner: tuple[int, int], seen: int, side: int) -> tuple[Tensor, Tensor]:
    """The square of `seen` source pixels at a corner as `side` pixels, what lies outside the picture filled.

    The mask is no tv_tensors.Mask: torchvision resizes those by plain nearest whatever is asked, which shifts them
    against the image by up to half a pixel of the coarser grid; nearest-exact has the image's pixel centres.
    """
    (y, h, above, rows, below) = overlap(corner[0], seen, mask.shape[-2], side)
    (x, w, before, columns, after) = overlap(corner[1], seen, mask.shape[-1], side)
    image = functional.resized_crop(image, y, x, h, w, [rows, columns], antialias=True)
    mask = functional.resized_crop(mask, y, x, h, w, [rows, columns], interpolation=InterpolationMode.NEAREST_EXACT)
    if above or below or before or after:
        padding = [before, above, after, below]
        image = functional.pad(image, padding, fill=list(FILL) * (image.shape[0] // 3))
        mask = functional.pad(mask, padding, fill=IGNORE)
    return image, mask


def _corner(mask: Tensor, config: AugmentConfig, rng: np.random.Generator, seen: int) -> tuple[int, int]:
    """Top and left of a crop of `seen` source pixels, for choice one in which several classes share the pixels."""
    height, width = mask.shape[-2:]
    top = left = 0
    for _ in range(_TRIES if config.max_class < 1 else 1):
        top, left = (int(rng.integers(min(0, length - seen), max(0, length - seen) + 1)) for length in (height, width))
        if config.max_class == 1:
            break
        part = mask[0, max(0, top) : top + seen, max(0, left) : left + seen]
        counts = torch.bincount(part.flatten(), minlength=256)
        counts[IGNORE] = 0
        if int((counts > 0).sum()) > 1 and float(counts.max()) < config.max_class * float(counts.sum()):
            break
    return top, left


def overlap(at: int, seen: int, length: int, side: int) -> tuple[int, int, int, int, int]:
    """Along one axis: first source pixel and their number, then pixels before, of and after the picture in the crop."""
    first, last = max(0, at), min(length, at + seen)
    before = min(side - 1, round((first - at) * side / seen))
    inside = max(1, min(side - before, round((last - first) * side / seen)))
    return first, last - first, before, inside, side - before - inside


# --------------------------------------------------------------------------------------------------------------- colour


def distort_colours(image: Tensor, config: ColourConfig, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of uint8 [3, H, W], each half of the time."""
    strength = config.photometric
    ranges = {
        functional.adjust_brightness: config.brightness,
        functional.adjust_contrast: config.contrast,
        functional.adjust_saturation: config.saturation,
    }
    for adjust, reach in ranges.items():
        factor = float(rng.uniform(1 - reach * strength, 1 + reach * strength))
        if rng.random() < _HALF:
            image = adjust(image, factor)
    shift = float(rng.uniform(-config.hue * strength, config.hue * strength))  # of the colour circle
    return functional.adjust_hue(image, shift) if rng.random() < _HALF else image
