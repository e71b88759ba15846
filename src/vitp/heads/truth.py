"""What a detector learns from an image: boxes of one form, their classes, and what need not count as background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitp.boxes.formats import from_quads, to_xyxy
from vitp.boxes.objects import Objects, Outline

Key = tuple[int, int, int]  # seed, step, slot of an image in the step: what its draws depend on
Size = tuple[int, int]  # height and width in pixels of the part of a padded image that shows something

_LEAST = 1e-3  # pixels: a box with a shorter side has no logarithm worth learning


@dataclass(frozen=True)
class Truth:
    """Of one image, G objects to find and I regions that are none (background, unless `ignore_overlap` is set)."""

    boxes: Tensor  # float32 [G, 4] (x1, y1, x2, y2), or [G, 5] rotated, le90
    labels: Tensor  # int64 [G]
    ignored: Tensor  # float32 [I, 4], upright: difficult objects and crowds
    outlines: tuple[Outline, ...] | None = None  # of the G objects

    def __len__(self) -> int:
        return len(self.labels)


def truth_of(objects: Objects, *, rotated: bool, device: torch.device | str = "cpu") -> Truth:
    """What is learned of an image's objects: all but the difficult ones, the crowds, and those without an area."""
    assert not rotated or objects.quads is not None, "rotated boxes come from quads"
    boxes = from_quads(objects.quads) if rotated and objects.quads is not None else objects.boxes
    sides = boxes[:, 2:4] if rotated else boxes[:, 2:] - boxes[:, :2]
    aside = objects.difficult | objects.crowd
    learned = (~aside & boxes.isfinite().all(1) & (sides >= _LEAST).all(1)).nonzero().squeeze(1)
    outlines = None if objects.outlines is None else tuple(objects.outlines[i] for i in learned.tolist())
    return Truth(
        boxes[learned].float().to(device),
        objects.labels[learned].to(device),
        objects.boxes[aside].float().to(device),
        outlines,
    )


def upright(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) [..., 4] of boxes [..., 4], or around rotated ones [..., 5]."""
    return to_xyxy(boxes) if boxes.shape[-1] == 5 else boxes


def within(boxes: Tensor, sizes: Sequence[Size], image: Tensor) -> Tensor:
    """Boxes (x1, y1, x2, y2) [R, 4] clipped to their images, `image` [R] telling which of `sizes` each lies on."""
    limits = boxes.new_tensor([(w, h, w, h) for h, w in sizes])[image]
    return boxes.clamp_min(0).minimum(limits)
