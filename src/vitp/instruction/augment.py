"""Augmentation of one sample's images, with the boxes and quads in its text moved along."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitp.instruction.grammar import (
    SCALE,
    Box,
    flip_horizontal,
    flip_vertical,
    into_window,
    map_boxes,
    parse_boxes,
    rotate90,
)
from vitp.instruction.quads import map_quads, parse_quads
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.source import AugmentConfig


def recompress(tiles: Tensor, rng: np.random.Generator) -> Tensor:
    """JPEG and back, each tile at a quality of its own, 75-100 (released script: data_augment).

    Args:
        tiles: uint8 [t, 3, S, S]; the released pipeline compresses tiles and thumbnail, not the picture they are cut from.
        rng: the sample's own generator.

    Returns:
        uint8 [t, 3, S, S], in channels_last memory format.
    """
    out = torch.empty(tiles.permute(0, 2, 3, 1).shape, dtype=torch.uint8)  # [t, S, S, 3]
    for place, tile in zip(out, tiles.permute(0, 2, 3, 1), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(tile.contiguous().numpy()).save(buffer, "JPEG", quality=int(rng.integers(75, 101)))
        place.copy_(torch.from_numpy(np.array(Image.open(buffer))))
    return out.permute(0, 3, 1, 2)


def _located(sample: Sample) -> Box | None:
    """The smallest box around everything the text locates; raises GrammarError for notation that cannot be read."""
    boxes: list[Box] = []
    for turn in sample.turns:
        boxes += [box for grounding in parse_boxes(turn.text) for box in grounding.boxes]
        boxes += [(min(q[0::2]), min(q[1::2]), max(q[0::2]), max(q[1::2])) for q in parse_quads(turn.text)]
    if not boxes:
        return None
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _stretch(length: int, side: float, share: float, low: int, high: int) -> tuple[int, int]:
    """First and last + 1 pixel of a window on one axis: relative size `side`, free space split by `share`.

    It is widened where it would cut what lies between `low` and `high` (0-1000).
    """
    pixels = max(1, round(length * side))
    first = round(share * (length - pixels))
    return min(first, low * length // SCALE), max(first + pixels, -(-high * length // SCALE))


def augmented_size(
    width: int, height: int, has_boxes: bool, config: AugmentConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """(width, height) that `augment` will give an image, from the same generator and without the image.

    A crop that boxes may widen is not foreseen: the size is then that of the whole image, the most it can be.
    """
    _, _, turns = rng.integers(2), rng.integers(2), int(rng.integers(4))  # drawn as `augment` draws; mirrors keep sizes
    if config.rot90 and turns % 2:
        width, height = height, width
    if config.crop_min_scale < 1.0 and not has_boxes:
        side = float(np.sqrt(rng.uniform(config.crop_min_scale, 1.0)))
        width, height = max(1, round(width * side)), max(1, round(height * side))
    return width, height


def augment(
    images: list[Tensor], sample: Sample, config: AugmentConfig, rng: np.random.Generator
) -> tuple[list[Tensor], Sample]:
    """Flip, turn and crop the images of one sample alike; boxes and quads in the text move along.

    A crop is widened until it holds all boxes and quads. Words such as "left" or "top" are not rewritten: switch flips
    and turns on only where the text does not speak of directions. `recompress` is for the tiles, once they are cut.

    Args:
        images: uint8 [3, H, W] each, at least one.
        sample: the sample they belong to.
        config: which augmentations are on.
        rng: the sample's own generator.

    Returns:
        the new images, which may be views of the old, and the sample with rewritten boxes.

    Raises:
        GrammarError: something moves the images, and a box or quad in the text cannot be read.
    """
    located = _located(sample) if config.moves else None
    mirror, upside, turns = (bool(rng.integers(2)), bool(rng.integers(2)), int(rng.integers(4)))
    moves: list[Callable[[Box], Box]] = []
    if config.flip and mirror:
        images = [x.flip(-1) for x in images]
        moves.append(flip_horizontal)
    if config.flip and upside:
        images = [x.flip(-2) for x in images]
        moves.append(flip_vertical)
    if config.rot90 and turns:
        images = [torch.rot90(x, turns, (-2, -1)) for x in images]
        moves.append(rotate90(turns))
    if config.crop_min_scale < 1.0:
        side, down, across = float(np.sqrt(rng.uniform(config.crop_min_scale, 1.0))), rng.random(), rng.random()
        if located is not None:
            for move in moves:
                located = move(located)
        x1, y1, x2, y2 = located or (SCALE, SCALE, 0, 0)  # nothing located widens no window
        windows = [
            (_stretch(x.shape[-1], side, across, x1, x2), _stretch(x.shape[-2], side, down, y1, y2)) for x in images
        ]
        height, width = images[0].shape[-2:]
        (left, right), (top, bottom) = windows[0]  # one window for all, so that pairs stay aligned
        moves.append(into_window((left, top), (right - left, bottom - top), (width, height)))
        images = [x[:, y[0] : y[1], z[0] : z[1]] for x, (z, y) in zip(images, windows, strict=True)]
    if located is not None and moves:
        sample = dataclasses.replace(sample, turns=tuple(Turn(t.role, _moved(t.text, moves)) for t in sample.turns))
    return images, sample


def _moved(text: str, moves: list[Callable[[Box], Box]]) -> str:
    for move in moves:
        text = map_quads(map_boxes(text, move), move)
    return text
