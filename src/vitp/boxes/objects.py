"""What detection is about: the labelled objects of an image, and those a model found.

Shape legend: N objects, H x W pixels of the image, M x M cells of a mask inside its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# COCO's: names of sizes, and the areas in square pixels from which and below which they go
SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, float("inf")))
Outline = tuple[NDArray[np.float32], ...]  # the rings of one object's mask, each [points, 2] in pixels; may be empty


@dataclass(frozen=True)
class Objects:
    """The labelled objects of one image, in its pixels (the top-left corner of the top-left pixel is 0, 0)."""

    boxes: Tensor  # float32 [N, 4]: x1, y1, x2, y2; of oriented objects what encloses the quad
    labels: Tensor  # int64 [N], into the data set's classes
    difficult: (
        Tensor  # bool [N]: not counted, found or missed; not learned as objects (background, see `ignore_overlap`)
    )
    crowd: Tensor  # bool [N]: a group under one box (COCO), which takes any number of detections
    quads: Tensor | None = None  # float32 [N, 4, 2]: the corners of oriented objects
    outlines: tuple[Outline, ...] | None = None  # of N masks

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> Objects:
        """Some of them, by indices or by a mask over N."""
        indices = torch.arange(len(self))[chosen]
        return replace(
            self,
            boxes=self.boxes[indices],
            labels=self.labels[indices],
            difficult=self.difficult[indices],
            crowd=self.crowd[indices],
            quads=None if self.quads is None else self.quads[indices],
            outlines=None if self.outlines is None else tuple(self.outlines[i] for i in indices.tolist()),
        )


def no_objects(*, quads: bool = False, outlines: bool = False) -> Objects:
    """Of an image that shows none."""
    return Objects(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        difficult=torch.zeros(0, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
        quads=torch.zeros(0, 4, 2) if quads else None,
        outlines=() if outlines else None,
    )


@dataclass(frozen=True)
class Detections:
    """What a model found in one image, by falling score, in the image's pixels."""

    boxes: Tensor  # float32 [N, 4] (x1, y1, x2, y2), or [N, 5] rotated boxes in the form le90 (vitp.boxes.formats)
    scores: Tensor  # float32 [N], 0-1
    labels: Tensor  # int64 [N]
    masks: Tensor | None = None  # [N, M, M]: probabilities inside the box, float32, or uint8 in 255ths of them

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def rotated(self) -> bool:
        """Whether the boxes have an angle."""
        return self.boxes.shape[-1] == 5

    def take(self, chosen: Tensor) -> Detections:
        """Some of them, by indices or by a mask over N."""
        masks = None if self.masks is None else self.masks[chosen]
        return Detections(self.boxes[chosen], self.scores[chosen], self.labels[chosen], masks)

    def to(self, device: torch.device | str) -> Detections:
        """Themselves on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device), masks)

    def moved(self, left: int, top: int) -> Detections:
        """Those of a window in the pixels of the picture that it was cut from at (`left`, `top`)."""
        offset = [left, top, 0, 0, 0] if self.rotated else [left, top, left, top]
        return replace(self, boxes=self.boxes + self.boxes.new_tensor(offset))


def joined(parts: Sequence[Detections]) -> Detections:
    """Several finds as one, in their order; at least one part. Masks stay where every part has them."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Detections(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat(masks) if len(masks) == len(parts) else None,
    )
