"""A detector as something that finds the objects of windows, and of whole images, with test-time augmentation.

Shape legend: B windows, H x W pixels, N objects, M x M cells of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vitp.boxes.coders import as_rotated
from vitp.boxes.formats import to_quads, to_xyxy
from vitp.boxes.merge import cut_by_window, merge_windows
from vitp.boxes.objects import Detections
from vitp.datasets.object_geometry import Affine
from vitp.datasets.object_transforms import ObjectAugmentConfig, fit
from vitp.inference.grid import make_grid
from vitp.inference.views import FLIPS, Flips

OVERLAP = 0.25  # share of a window; DOTA's own split has 200 of 1,024 pixels


class ObjectModel(Protocol):
    """What finds objects: uint8 [B, 3, h, w], and the part (height, width) of each that is picture, to a list of B."""

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Objects in the pixels of their image."""
        ...


@dataclass(frozen=True)
class Finder:
    """A model and how it is shown pictures."""

    model: ObjectModel
    classes: tuple[str, ...]
    device: torch.device
    rotated: bool
    augment: ObjectAugmentConfig | None = None  # the size it is shown pictures at; None: as they are
    bf16: bool = False
    scales: tuple[float, ...] = (1.0,)
    flips: Flips = "none"
    merge: float = 0.5  # IoU above which the weaker of two finds of one object goes
    threshold: float = 0.0  # finds of a lower score are left out
    multiple: int = 32  # sides are padded to multiples of it

    @property
    def side(self) -> int | None:
        """Of the squares of an image that the model was trained on; None: on whole images, or nothing is known."""
        return None if self.augment is None else self.augment.crop

    def of_windows(self) -> Finder:
        """Itself for windows of larger images, which are not stretched to squares where the image is a narrow strip."""
        if self.augment is None or self.augment.crop is not None:
            return self
        return replace(self, augment=self.augment.model_copy(update={"keep_ratio": True, "longest": None}))

    @torch.inference_mode()
    def find(self, windows: Tensor) -> list[Detections]:
        """uint8 [B, 3, H, W] to the objects of each window, in its pixels, on the CPU; views are merged like windows."""
        views: list[list[Detections]] = [[] for _ in windows]
        for scale in self.scales:
            fitted = [self._fitted(window, scale) for window in windows]
            images, back = torch.stack([image for image, _ in fitted]).to(self.device, non_blocking=True), fitted[0][1]
            size = (images.shape[-2], images.shape[-1])
            for dims in FLIPS[self.flips]:
                mirrored = self._padded(images.flip(dims) if dims else images)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    found = self.model.detect(mirrored, [size] * len(images))
                for own, detections in zip(views, found, strict=True):
                    own.append(_mapped(detections.to("cpu"), size, dims, back))
        return [self._merged(own) for own in views]

    def find_in(self, image: Tensor) -> Detections:
        """The objects of one image uint8 [3, H, W]: in windows where it was trained on squares and the image is larger."""
        height, width = image.shape[-2:]
        if self.side is None or max(height, width) <= self.side:
            return self.find(image[None])[0]
        grid = make_grid(height, width, self.side, OVERLAP)
        parts, cuts = [], []
        for row, top in enumerate(grid.rows.starts):
            for column, left in enumerate(grid.columns.starts):
                bottom, right = grid.rows.end(row), grid.columns.end(column)
                parts.append(shifted(self.find(image[None, :, top:bottom, left:right])[0], left, top))
                cuts.append(cut_in(parts[-1], (left, top, right, bottom), (height, width)))
        found = joined(parts)
        return found.take(merge_windows(found.boxes, found.scores, found.labels, torch.cat(cuts), self.merge))

    def _fitted(self, window: Tensor, scale: float) -> tuple[Tensor, Affine]:
        """A window at the size the model is to see, and the way back to its own pixels."""
        if self.augment is None:
            config = ObjectAugmentConfig(size=round(max(window.shape[-2:]) * scale), keep_ratio=True)
        elif scale == 1.0:
            config = self.augment
        else:
            longest = None if self.augment.longest is None else round(self.augment.longest * scale)
            size = round(max(self.augment.sizes) * scale)
            config = self.augment.model_copy(update={"size": size, "longest": longest})
        return fit(window, config)

    def _padded(self, images: Tensor) -> Tensor:
        """With zeros at the bottom and right, which the model is told are no picture."""
        below, right = (-length % self.multiple for length in images.shape[-2:])
        return torch.nn.functional.pad(images, [0, right, 0, below]) if below or right else images

    def _merged(self, views: list[Detections]) -> Detections:
        found = joined(views)
        found = found.take(found.scores >= self.threshold)
        if len(views) == 1:
            return found
        whole = torch.zeros(len(found), dtype=torch.bool)
        return found.take(merge_windows(found.boxes, found.scores, found.labels, whole, self.merge))


def _mapped(found: Detections, size: tuple[int, int], dims: tuple[int, ...], back: Affine) -> Detections:
    """What was found in a mirrored picture of `size`, mirrored again and then moved by `back`."""
    move = Affine()
    if -1 in dims:
        move = move.then(Affine(a=-1.0, c=float(size[1])))
    if -2 in dims:
        move = move.then(Affine(e=-1.0, f=float(size[0])))
    masks = found.masks if found.masks is None or not dims else found.masks.flip(dims)
    return replace(found, boxes=move.then(back).boxes(found.boxes), masks=masks)


def joined(parts: Sequence[Detections]) -> Detections:
    """Several finds as one; at least one part."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Detections(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat(masks) if len(masks) == len(parts) else None,
    )


def shifted(found: Detections, left: int, top: int) -> Detections:
    """Objects of a window in the pixels of the picture it was cut from."""
    offset = torch.tensor([left, top, left, top] if not found.rotated else [left, top, 0, 0, 0])
    return replace(found, boxes=found.boxes + offset)


def enclosing(found: Detections) -> Tensor:
    """The upright boxes [N, 4] around what was found."""
    return to_xyxy(found.boxes) if found.rotated else found.boxes


def corners(found: Detections) -> Tensor:
    """The four corners [N, 4, 2] of what was found."""
    return to_quads(as_rotated(found.boxes))


def cut_in(found: Detections, window: tuple[int, int, int, int], picture: tuple[int, int]) -> Tensor:
    """Which finds a side of their window may have cut; see `cut_by_window`."""
    return cut_by_window(enclosing(found), window, picture)
