"""Anchors: the boxes of set sizes and shapes at every cell of every level, from which a detector starts.

Shape legend: A anchors a cell, N anchors of an image over all levels (level after level, row by row, A side by side).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vitp.config import Config

Positive = Annotated[float, Field(gt=0)]


class AnchorConfig(Config):
    """Which anchors; the centre of a cell's anchors is its top-left corner, as in the released code and in torchvision."""

    scales: tuple[Positive, ...] = Field(default=(8.0,), min_length=1)  # released configs: sides of 32 to 512 pixels
    ratios: tuple[Positive, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)  # height over width; released configs
    offset: float = Field(default=0.0, ge=0, le=1)  # of the centres in a cell; released: 0, though 0.5 is its middle

    @property
    def per_cell(self) -> int:
        """A."""
        return len(self.scales) * len(self.ratios)

    def cell(self, stride: int) -> Tensor:
        """The anchors [A, 4] of a cell of `stride` pixels around its centre; all of one scale have the same area."""
        side = stride * torch.tensor(self.scales)[None]
        stretch = torch.tensor(self.ratios).sqrt()[:, None]
        w, h = (side / stretch).flatten(), (side * stretch).flatten()
        return torch.stack((-w, -h, w, h), 1) / 2

    def grid(self, shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> list[Tensor]:
        """The anchors [h * w * A, 4] of each level.

        Args:
            shapes: (h, w) of the levels' maps.
            strides: pixels a cell of each level.
            device: where they are made.
        """
        levels = []
        for (h, w), stride in zip(shapes, strides, strict=True):
            down, along = ((torch.arange(n, device=device) + self.offset) * stride for n in (h, w))
            y, x = torch.meshgrid(down, along, indexing="ij")
            centres = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
            levels.append((centres + self.cell(stride).to(device)).view(-1, 4))
        return levels
