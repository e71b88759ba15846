"""Images and their objects for training and testing: sized, cropped, mirrored, turned, coloured.

Each training image is a pure function of (seed, step, slot). Objects are moved as points: the corners of a quad and the
points of an outline, never a width, a height and an angle, which an uneven stretch would not keep.

Shape legend: N objects, H x W pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from math import ceil, cos, radians, sin

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vitp.boxes.objects import Objects
from vitp.datasets.object_geometry import Affine, rotation, scaling, shift
from vitp.datasets.object_place import moved_objects
from vitp.datasets.transforms import FILL, ColourConfig, distort_colours, overlap
from vitp.errors import ConfigError
from vitp.train.draws import Purpose, generator

MULTIPLE = 32  # to which sides are padded: the coarsest map of the backbone; the released detection configs do the same
_QUARTERS = 4
_TURNS = (1, 2, 3, 2)  # quarters; mmrotate draws from 90, 180, -90 and -180 degrees, so half of the turns are half ones
_INSET = 0.15  # of a square's side: points farther from its border stay in it however it is rotated
Size = tuple[int, int]  # H, W
Window = tuple[int, int, int]  # top, left, side of a square in source pixels; it may reach over the picture


class ObjectAugmentConfig(ColourConfig):
    """How a detector sees images: their size in training and testing, and what is drawn in training."""

    # Sides in pixels, of several one is drawn an image; testing takes the largest (released: 608 to 1024, one size).
    size: int | tuple[int, ...] = 800
    keep_ratio: bool = False  # false: stretched to a square (released configs); true: the longer side becomes `size`
    longest: int | None = Field(default=None, ge=8)  # then `size` is the shorter side, and the longer at most this
    pad_square: bool = False  # with keep_ratio: filled up to a square at the bottom or right (RSAR's own loader)
    pad_multiple: int = Field(default=1, ge=1)  # filled up so that both sides are multiples of it
    crop: int | None = Field(default=None, ge=8)  # train on squares of so many source pixels, resized to `size`
    crop_on_object: float = Field(
        default=0.75, ge=0, le=1
    )  # share of crops that show the centre of a drawn object (ours)
    flip: float = Field(default=0.5, ge=0, le=1)  # how often left-right (released; its oriented configs: 0.25 each)
    flip_vertical: float = Field(default=0.0, ge=0, le=1)  # how often up-down, instead (released oriented: 0.25)
    flip_diagonal: float = Field(default=0.0, ge=0, le=1)  # how often both, instead (released oriented: 0.25)
    rot90: bool = False  # turn by a random quarter
    rotate: float = Field(default=0.0, ge=0, le=180)  # degrees to either side (released oriented configs: 180)
    rotate_chance: float = Field(default=0.5, ge=0, le=1)  # released oriented configs
    rectangular: tuple[
        str, ...
    ] = ()  # images with one of these classes turn by quarters only, a half turn twice as often (released: round classes)
    visible: float = Field(
        default=0.5, ge=0, le=1
    )  # share of an object that must stay in the picture (ours; released: sides of 5 px or less, or the centre outside, go)
    photometric: float = Field(default=0.0, ge=0, le=1)  # colour distortion (released detection configs: none)

    @model_validator(mode="after")
    def _consistent(self) -> ObjectAugmentConfig:
        if not self.sizes or min(self.sizes) < 8:
            raise ValueError(f"size must be one or more sides of 8 pixels or more, got {list(self.sizes)}")
        if self.flip + self.flip_vertical + self.flip_diagonal > 1 + 1e-9:
            raise ValueError("flip, flip_vertical and flip_diagonal exclude each other; together they may be at most 1")
        if not self.keep_ratio and (self.longest is not None or self.pad_square):
            raise ValueError("longest and pad_square need keep_ratio: true")
        if self.crop is not None and self.keep_ratio:
            raise ValueError("crop makes squares, so keep_ratio has no meaning; leave one of them out")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sides that may be drawn."""
        return (self.size,) if isinstance(self.size, int) else self.size

    def check_classes(self, classes: Sequence[str]) -> frozenset[int]:
        """The labels of `rectangular` among the classes of a data set.

        Raises:
            ConfigError: the data set has no such class.
        """
        for name in self.rectangular:
            if name not in classes:
                near = difflib.get_close_matches(name, classes, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f" ({', '.join(classes)})"
                raise ConfigError(f"augment.rectangular: '{name}' is no class of the data set{hint}")
        return frozenset(classes.index(name) for name in self.rectangular)


def augment_objects(
    image: Tensor,
    objects: Objects,
    config: ObjectAugmentConfig,
    seed: int,
    step: int,
    slot: int,
    *,
    classes: Sequence[str] = (),
) -> tuple[Tensor, Objects]:
    """One training image and what it shows.

    Args:
        image: uint8 [3, H, W].
        objects: in the image's pixels.
        config: what is drawn.
        seed: of the run.
        step: of the optimiser.
        slot: place of the image in the step.
        classes: of the data set; needed where `config.rectangular` names some.

    Returns:
        image uint8 [3, h, w], and the objects of which `config.visible` of what the image showed is still there. Their
        quads may reach over the border, their boxes and outlines do not.

    Raises:
        ConfigError: `rectangular` names an unknown class.
    """
    rng = generator(seed, Purpose.AUGMENT, step, slot)
    source: Size = (image.shape[1], image.shape[2])
    side = config.sizes[int(rng.integers(len(config.sizes)))]
    degrees, quarters = 0.0, 0
    if config.rotate > 0 and rng.random() < config.rotate_chance:
        degrees = float(rng.uniform(-config.rotate, config.rotate))
    window = _window(objects, config, source, rng, inset=_INSET if degrees else 0.0)
    if degrees and config.check_classes(classes) & _labels_in(objects, window):
        degrees, quarters = 0.0, _TURNS[int(rng.integers(len(_TURNS)))]
    rim = [0, 0, 0, 0]  # to be filled: left, above, right, below
    if window is None:
        image, move = _resize(image, fitted_size(source, config, side))
    else:
        image, move, rim = _cut(image, window, side, degrees)
    if config.photometric > 0:
        image = distort_colours(image, config, rng)
    if any(rim):
        image, move = functional.pad(image, rim, fill=list(FILL)), move.then(shift(rim[0], rim[1]))
    image, move = _flip(image, move, config, rng)
    if config.rot90:
        quarters += int(rng.integers(_QUARTERS))
    image, move = _quarters(image, move, quarters % _QUARTERS)
    if degrees:
        image, move = _rotate(image, move, degrees, None if window is None else side)
    picture: Size = (image.shape[1], image.shape[2])
    image = _pad(image, config)
    return image.contiguous(), moved_objects(objects, move, source, picture, config.visible)


def fit(image: Tensor, config: ObjectAugmentConfig) -> tuple[Tensor, Affine]:
    """A test image at the size a detector was trained for.

    Args:
        image: uint8 [3, H, W].
        config: as in training; of several sizes the largest. With `crop` the image is scaled like the crops, whole.

    Returns:
        image uint8 [3, h, w], and the map from its pixels back to those of the image given.
    """
    source: Size = (image.shape[1], image.shape[2])
    resized, move = _resize(image, fitted_size(source, config, max(config.sizes)))
    return _pad(resized, config).contiguous(), move.inverse()


def fitted_size(source: Size, config: ObjectAugmentConfig, side: int) -> Size:
    """(h, w) of an image of (H, W) at a size, before padding."""
    if config.crop is None and not config.keep_ratio:
        return side, side
    if config.crop is not None:
        scale = side / config.crop
    elif config.longest is None:
        scale = side / max(source)
    else:
        scale = min(side / min(source), config.longest / max(source))
    return max(1, round(source[0] * scale)), max(1, round(source[1] * scale))


def padded(images: Sequence[Tensor], fill: Sequence[float], least: int = 0) -> tuple[Tensor, list[Size]]:
    """Images uint8 [3, h, w] in one batch [B, 3, H, W], as large as the largest and a multiple of 32, and their sizes.

    Args:
        images: of any sizes.
        fill: the colour at their right and bottom, 0-1 (the mean colour, which the ViT sees as zero).
        least: pixels that the batch's sides have at least.
    """
    sizes: list[Size] = [(int(i.shape[-2]), int(i.shape[-1])) for i in images]
    height, width = (-(-max(least, *side) // MULTIPLE) * MULTIPLE for side in zip(*sizes, strict=True))
    batch = _blank(len(images), (height, width), fill, images[0].device)
    for place, image, (h, w) in zip(batch, images, sizes, strict=True):
        place[:, :h, :w] = image
    return batch, sizes


def padded_to(batch: Tensor, size: Size, fill: Sequence[float]) -> Tensor:
    """A batch of `padded` [B, 3, h, w] as it would be beside larger images: [B, 3, H, W], `size` being what they need."""
    if (batch.shape[-2], batch.shape[-1]) == size:
        return batch
    whole = _blank(len(batch), size, fill, batch.device)
    whole[..., : batch.shape[-2], : batch.shape[-1]] = batch
    return whole


def _blank(count: int, size: Size, fill: Sequence[float], device: torch.device) -> Tensor:
    colour = torch.tensor([round(255 * channel) for channel in fill], dtype=torch.uint8, device=device)
    return colour.view(1, 3, 1, 1).repeat(count, 1, *size)


# --------------------------------------------------------------------------------------------- the steps, each with its map


def _resize(image: Tensor, size: Size) -> tuple[Tensor, Affine]:
    height, width = image.shape[1:]
    if (height, width) == size:
        return image, Affine()
    return functional.resize(image, list(size), antialias=True), scaling(size[1] / width, size[0] / height)


def _window(
    objects: Objects, config: ObjectAugmentConfig, source: Size, rng: np.random.Generator, *, inset: float
) -> Window | None:
    """A crop: anywhere, or where it shows the centre of an object drawn, no nearer to its border than a share `inset`."""
    if config.crop is None:
        return None
    aimed = rng.random() < config.crop_on_object and len(objects) > 0
    box = objects.boxes[int(rng.integers(len(objects)))].tolist() if aimed else None
    seen, found = config.crop, []
    for axis, length in ((1, source[0]), (0, source[1])):
        low, high = min(0, length - seen), max(0, length - seen)
        if box is not None and length > seen:
            centre = (box[axis] + box[axis + 2]) / 2
            low = min(high, max(low, ceil(centre - (1 - inset) * seen)))
            high = max(low, min(high, int(centre - inset * seen)))
        found.append(int(rng.integers(low, high + 1)))
    return found[0], found[1], seen


def _labels_in(objects: Objects, window: Window | None) -> set[int]:
    """Classes of the objects of which a crop shows something; without a crop all."""
    if window is None:
        return set(objects.labels.tolist())
    top, left, seen = window
    near, far = torch.tensor([left, top]), torch.tensor([left + seen, top + seen])
    inside = (objects.boxes[:, 2:] > near).all(1) & (objects.boxes[:, :2] < far).all(1)
    return set(objects.labels[inside].tolist())


def _cut(image: Tensor, window: Window, side: int, degrees: float) -> tuple[Tensor, Affine, list[int]]:
    """The picture's part of a crop at `side` pixels, and what is to be filled around it: left, above, right, below.

    What is to be rotated is larger, so that its corners show the picture where there is one.
    """
    top, left, seen = window
    turn = radians(degrees)
    more = ceil(side * (abs(cos(turn)) + abs(sin(turn)) - 1) / 2) if degrees else 0  # on every side: the centre stays
    margin = ceil(more * seen / side)
    seen, side = seen + 2 * margin, side + 2 * more
    y, h, above, rows, below = overlap(top - margin, seen, image.shape[1], side)
    x, w, before, columns, after = overlap(left - margin, seen, image.shape[2], side)
    part, scale = _resize(image[:, y : y + h, x : x + w], (rows, columns))
    return part, shift(-x, -y).then(scale), [before, above, after, below]


def _flip(image: Tensor, move: Affine, config: ObjectAugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Affine]:
    height, width = image.shape[1:]
    drawn = rng.random()
    across = Affine(a=-1.0, c=float(width))
    down = Affine(e=-1.0, f=float(height))
    if drawn < config.flip:
        return functional.horizontal_flip(image), move.then(across)
    if drawn < config.flip + config.flip_vertical:
        return functional.vertical_flip(image), move.then(down)
    if drawn < config.flip + config.flip_vertical + config.flip_diagonal:
        return image.flip(-2, -1), move.then(across).then(down)
    return image, move


def _quarters(image: Tensor, move: Affine, quarters: int) -> tuple[Tensor, Affine]:
    """Turned anticlockwise by quarters."""
    for _ in range(quarters):
        move = move.then(Affine(0.0, 1.0, 0.0, -1.0, 0.0, float(image.shape[2])))
        image = torch.rot90(image, 1, (-2, -1))
    return image, move


def _rotate(image: Tensor, move: Affine, degrees: float, kept: int | None) -> tuple[Tensor, Affine]:
    """Turned about the centre, of which the middle square of `kept` pixels stays; corners that appear are filled."""
    height, width = image.shape[1:]
    turned = functional.rotate(image, degrees, interpolation=InterpolationMode.BILINEAR, fill=[float(v) for v in FILL])
    move = move.then(rotation(degrees, (height, width)))
    if kept is None:
        return turned, move
    top, left = (height - kept) // 2, (width - kept) // 2
    return turned[:, top : top + kept, left : left + kept], move.then(shift(-left, -top))


def _pad(image: Tensor, config: ObjectAugmentConfig) -> Tensor:
    """Filled at the bottom and right, where no coordinate changes."""
    height, width = image.shape[1:]
    multiple = config.pad_multiple
    longer = max(height, width)
    tall, wide = ((longer if config.pad_square else length) for length in (height, width))
    below, right = (ceil(wanted / multiple) * multiple - has for wanted, has in ((tall, height), (wide, width)))
    return functional.pad(image, [0, 0, right, below], fill=list(FILL)) if below or right else image
