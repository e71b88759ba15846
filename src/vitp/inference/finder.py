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
from vitp.boxes.objects import Detections, joined
from vitp.datasets.object_geometry import Affine
from vitp.datasets.object_transforms import ObjectAugmentConfig, fit, padded
from vitp.datasets.transforms import FILL
from vitp.inference.grid import make_grid
from vitp.inference.views import FLIPS, Flips

FILLED = (FILL[0] / 255, FILL[1] / 255, FILL[2] / 255)
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
    augment: ObjectAugmentConfig | None = None  # the size it is shown whole pictures at; None: as they are
    window: int | None = None  # side of the windows a picture is looked at in, in its pixels; None: whole
    zoom: float = 1.0  # pixels that the model sees of each pixel of a window
    fill: tuple[float, float, float] = FILLED  # colour (0-1) beside pictures, as in training
    bf16: bool = False
    scales: tuple[float, ...] = (1.0,)
    flips: Flips = "none"
    merge: float = 0.5  # IoU above which the weaker of two finds of one object goes
    threshold: float = 0.0  # finds of a lower score are left out

    def in_windows(self, side: int) -> Finder:
        """Itself for windows of `side` pixels of larger images.

        They are shown at the scale the model was trained at, or, where it was trained on whole images and there is no such
        scale, at its size; none is stretched, and where an image is smaller than a window it is filled up.
        """
        if self.window is not None or self.augment is None:
            return replace(self, window=side)
        return replace(self, window=side, zoom=max(self.augment.sizes) / side)

    @torch.inference_mode()
    def find(self, windows: Tensor) -> list[Detections]:
        """uint8 [B, 3, H, W] to the objects of each window, in its pixels, on the CPU; views are merged like windows."""
        views: list[list[Detections]] = [[] for _ in windows]
        for scale in self.scales:
            config = self._shown_at(scale, (windows.shape[-2], windows.shape[-1]))
            fitted = [fit(window, config) for window in windows]
            images, back = torch.stack([image for image, _ in fitted]).to(self.device, non_blocking=True), fitted[0][1]
            size = (images.shape[-2], images.shape[-1])
            for dims in FLIPS[self.flips]:
                least = 0 if self.window is None else max(config.sizes)
                batch, sizes = padded((images.flip(dims) if dims else images).unbind(), self.fill, least)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    found = self.model.detect(batch, sizes)
                for own, detections in zip(views, found, strict=True):
                    own.append(_mapped(detections.to("cpu"), size, dims, back))
        return [self._merged(own) for own in views]

    def find_in(self, image: Tensor) -> Detections:
        """The objects of one image uint8 [3, H, W]: whole, or in windows where it looks at such and the image is larger."""
        height, width = image.shape[-2:]
        if self.window is None or max(height, width) <= self.window:
            return self.find(image[None])[0]
        grid = make_grid(height, width, self.window, OVERLAP)
        parts, cuts = [], []
        for row, top in enumerate(grid.rows.starts):
            for column, left in enumerate(grid.columns.starts):
                bottom, right = grid.rows.end(row), grid.columns.end(column)
                parts.append(self.find(image[None, :, top:bottom, left:right])[0].moved(left, top))
                cuts.append(cut_in(parts[-1], (left, top, right, bottom), (height, width)))
        found = joined(parts)
        return found.take(merge_windows(found.boxes, found.scores, found.labels, torch.cat(cuts), self.merge))

    def _shown_at(self, scale: float, size: tuple[int, int]) -> ObjectAugmentConfig:
        """How `fit` brings windows (H, W) to what the model is to see; `scale` is that of the view."""
        if self.window is not None:
            return ObjectAugmentConfig(size=max(8, round(self.window * self.zoom * scale)), crop=self.window)
        if self.augment is None:
            return ObjectAugmentConfig(size=max(8, round(max(size) * scale)), keep_ratio=True)
        if scale == 1.0:
            return self.augment
        longest = None if self.augment.longest is None else round(self.augment.longest * scale)
        return self.augment.model_copy(update={"size": round(max(self.augment.sizes) * scale), "longest": longest})

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


def enclosing(found: Detections) -> Tensor:
    """The upright boxes [N, 4] around what was found."""
    return to_xyxy(found.boxes) if found.rotated else found.boxes


def corners(found: Detections) -> Tensor:
    """The four corners [N, 4, 2] of what was found."""
    return to_quads(as_rotated(found.boxes))


def cut_in(found: Detections, window: tuple[int, int, int, int], picture: tuple[int, int]) -> Tensor:
    """Which finds a side of their window may have cut; see `cut_by_window`."""
    return cut_by_window(enclosing(found), window, picture)
