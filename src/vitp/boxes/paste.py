"""The masks of detections, from cells inside a box to pixels of the image."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 255  # a mask's probability p is round(255 p) where it is kept as uint8


class Pasted(NamedTuple):
    """A mask in the image: its pixels, and where their top-left corner lies."""

    pixels: Tensor  # bool [h, w], of the box's part inside the image; h or w is 0 where none is
    top: int
    left: int

    def runs(self, size: tuple[int, int]) -> list[int]:
        """COCO's run lengths over the image (H, W), down its columns: off, on, off, ...; the image is not painted."""
        high, wide = self.pixels.shape
        gap = int(high < size[0])  # a row of nothing under each column, unless one goes on in the next
        padded = np.zeros((wide, high + gap), dtype=np.int8)
        padded[:, :high] = self.pixels.cpu().numpy().T
        turns = np.flatnonzero(np.diff(padded.ravel(), prepend=0, append=0))
        column, row = np.divmod(turns, max(high + gap, 1))
        places = (self.left + column) * size[0] + self.top + row
        counts: list[int] = np.diff(places, prepend=0, append=size[0] * size[1]).tolist()
        return counts if counts[-1] else counts[:-1]


@torch.no_grad()
def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Pasted:
    """The pixels whose centre has a probability of at least `threshold`, between the cells by bilinear interpolation.

    Cells lie evenly in the box and beyond them it is zero, as in the released code of Mask R-CNN (He et al. 2017). A
    box without area, or one with a number that is not finite, has no pixel. Memory is that of the box, not the image.

    Args:
        mask: probabilities [M, M]; uint8 in 255ths of them.
        box: x1, y1, x2, y2 in pixels, [4].
        size: of the image, (H, W).
        threshold: 0.5 is that of Mask R-CNN.
    """
    x1, y1, x2, y2 = map(float, box)
    none = Pasted(torch.zeros(0, 0, dtype=torch.bool, device=mask.device), 0, 0)
    if not (math.isfinite(x1 + y1 + x2 + y2) and x2 > x1 and y2 > y1):
        return none
    (top, bottom), (left, right) = (
        (max(math.floor(low), 0), min(math.ceil(high), most))
        for low, high, most in ((y1, y2, size[0]), (x1, x2, size[1]))
    )
    if bottom <= top or right <= left:
        return none
    y = (torch.arange(top, bottom, device=mask.device, dtype=torch.float32) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(left, right, device=mask.device, dtype=torch.float32) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1)[None]
    share = mask.float() / STEPS if mask.dtype == torch.uint8 else mask.float()
    values = F.grid_sample(share[None, None], grid, align_corners=False)[0, 0]
    return Pasted(values >= threshold, top, left)
