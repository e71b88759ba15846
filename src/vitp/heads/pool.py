"""Features inside boxes, each box on the level of its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vitp.boxes.roi_align import multilevel_rotated_roi_align
from vitp.config import Config


class PoolConfig(Config):
    """RoIAlign."""

    size: int = Field(default=7, ge=1)  # cells a side; released configs
    sampling: int = Field(
        default=0, ge=0
    )  # points a side of a cell; 0: as many as cover it; released Cascade R-CNN config (oriented: 2)
    finest: Annotated[float, Field(gt=0)] = 56.0  # boxes of twice this size leave the finest level; released configs


def pool(maps: Sequence[Tensor], boxes: Tensor, image: Tensor, strides: Sequence[int], config: PoolConfig) -> Tensor:
    """Features [R, C, size, size] of upright [R, 4] or rotated [R, 5] boxes on the images `image` [R].

    Args:
        maps: [B, C, h, w] of each level, finest first.
        boxes: in pixels of the images.
        image: integers in [0, B).
        strides: pixels a cell of each map.
        config: settings.
    """
    if boxes.shape[1] == 4:  # as written, w along x: the form le90 would turn the cells of tall boxes
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        boxes = torch.cat((centre, size, torch.zeros_like(size[:, :1])), 1)
    return multilevel_rotated_roi_align(maps, boxes, image, config.size, strides, config.sampling, config.finest)
