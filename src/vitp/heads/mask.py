"""Masks inside found boxes (He et al., Mask R-CNN, 2017, section 3).

Shape legend: B images, C channels, K classes, P boxes, M x M cells of a mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vitp.boxes.objects import Detections
from vitp.config import Config
from vitp.heads.outlines import filled
from vitp.heads.pool import PoolConfig, pool
from vitp.heads.proposals import Sampled, image_of
from vitp.heads.truth import Truth


class MaskPool(PoolConfig):
    """RoIAlign of the mask head."""

    size: int = Field(default=14, ge=1)  # released Mask R-CNN config


class MaskConfig(Config):
    """Settings of the mask head."""

    pool: MaskPool = MaskPool()
    convolutions: int = Field(default=4, ge=0)  # released Mask R-CNN config
    channels: int = Field(default=256, ge=1)  # released Mask R-CNN config


class MaskHead(nn.Module):
    """Convolutions, one enlargement by two, and a mask a class."""

    def __init__(self, config: MaskConfig, channels: int, classes: int, strides: Sequence[int]) -> None:
        """Weights come from torch's global generator (Kaiming normal, as in mmdetection)."""
        super().__init__()
        self.config, self.strides = config, tuple(strides)
        widths = [channels, *[config.channels] * config.convolutions]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.enlarge = nn.ConvTranspose2d(widths[-1], config.channels, 2, 2)
        self.predict = nn.Conv2d(config.channels, classes, 1)
        for layer in (*self.convs, self.enlarge, self.predict):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """Logits [P, M, M] of the masks of boxes [P, 4] of the classes `labels` [P]."""
        hidden = pool(maps[: len(self.strides)], boxes, image, self.strides, self.config.pool)
        for conv in self.convs:
            hidden = functional.relu(conv(hidden))
        logits: Tensor = self.predict(functional.relu(self.enlarge(hidden)))
        return logits[torch.arange(len(labels), device=labels.device), labels].float()

    def losses(self, maps: Sequence[Tensor], sampled: Sampled, truth: Sequence[Truth]) -> Tensor:
        """Sum over the images of the mean binary cross-entropy over the cells of their positive proposals.

        Those of objects that have a box alone are left out, and not counted: nobody knows their masks.
        """
        rows = sampled.positive.nonzero().squeeze(1)
        rings, known = [], []
        for number, (own, taker) in enumerate(zip(sampled.image[rows].tolist(), sampled.taker.tolist(), strict=True)):
            outlines = truth[own].outlines
            assert outlines is not None, "masks are learned from outlines"
            if outlines[taker]:
                rings.append(outlines[taker])
                known.append(number)
        rows = rows[torch.tensor(known, dtype=torch.int64, device=rows.device)]
        boxes, image, labels = sampled.boxes[rows], sampled.image[rows], sampled.labels[rows]
        logits = self(maps, boxes, image, labels)
        target = filled(rings, boxes, logits.shape[-1])
        apart = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
        counts = torch.bincount(image, minlength=len(truth)).clamp_min(1)
        return (apart / counts[image]).sum()

    @torch.no_grad()
    def add(self, maps: Sequence[Tensor], found: Sequence[Detections]) -> list[Detections]:
        """Detections with their masks."""
        image = image_of([d.boxes for d in found])
        boxes, labels = torch.cat([d.boxes for d in found]), torch.cat([d.labels for d in found])
        masks = self(maps, boxes, image, labels).sigmoid()
        parts = torch.split(masks, [len(d) for d in found])
        return [replace(d, masks=part) for d, part in zip(found, parts, strict=True)]
