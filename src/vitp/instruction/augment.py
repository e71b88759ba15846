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


def _crop(image: Tensor, min_scale: float, rng: np.random.Generator) -> Tensor:
    height, width = image.shape[-2:]
    side = float(np.sqrt(rng.uniform(min_scale, 1.0)))
    h, w = max(1, round(height * side)), max(1, round(width * side))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
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
        images = [_crop(x, config.crop_min_scale, rng) for x in images]
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
