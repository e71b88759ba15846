"""Geometric and compression augmentation of one sample's images, with the boxes in its text moved along."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitp.instruction.grammar import Box, flip_horizontal, flip_vertical, map_boxes, rotate90
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.source import AugmentConfig


def _recompress(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).contiguous()


def _crop(image: Tensor, side: float, down: float, across: float) -> Tensor:
    """The window of relative size `side` whose free space is split by `down` and `across`, all in [0, 1]."""
    height, width = image.shape[-2:]
    h, w = max(1, round(height * side)), max(1, round(width * side))
    top, left = round(down * (height - h)), round(across * (width - w))
    return image[:, top : top + h, left : left + w]


def augment(
    images: list[Tensor], sample: Sample, config: AugmentConfig, rng: np.random.Generator
) -> tuple[list[Tensor], Sample]:
    """Augment the images of one sample alike; boxes in the text follow flips and quarter turns.

    Crops are left out for samples with boxes in their text, since a box could leave the crop. Words such as
    "left" or "top" are not rewritten: switch flips and turns on only where the text does not speak of directions.

    Args:
        images: uint8 [3, H, W] each.
        sample: the sample they belong to.
        config: which augmentations are on.
        rng: the sample's own generator.

    Returns:
        the new images and the sample with rewritten boxes.
    """
    has_boxes = any("<box>" in turn.text for turn in sample.turns)
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
    if config.crop_min_scale < 1.0 and not has_boxes:
        side, down, across = float(np.sqrt(rng.uniform(config.crop_min_scale, 1.0))), rng.random(), rng.random()
        images = [_crop(x, side, down, across) for x in images]  # one window for all, so that pairs stay aligned
    if config.jpeg:  # released: quality 75-100
        images = [_recompress(x.contiguous(), int(rng.integers(75, 101))) for x in images]
    if has_boxes and moves:
        turns_out = []
        for turn in sample.turns:
            text = turn.text
            for move in moves:
                text = map_boxes(text, move)
            turns_out.append(Turn(turn.role, text))
        sample = dataclasses.replace(sample, turns=tuple(turns_out))
    return [x.contiguous() for x in images], sample
