"""Boxes as regression targets: each coder writes a true box as offsets from a proposal, and reads it back.

Settings are those of the released configs (mmrotate; mmdetection 2.25.1). `decode(p, encode(p, t))` gives t
back up to rounding, wherever sizes stay within the ratio the coder clamps to.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vitp.boxes.formats import from_rectangles, from_xyxy, regularise, to_quads, to_xyxy, wrap_angle
from vitp.config import Config

Positive = Annotated[float, Field(gt=0)]
Four = tuple[Positive, Positive, Positive, Positive]
Five = tuple[Positive, Positive, Positive, Positive, Positive]
Six = tuple[Positive, Positive, Positive, Positive, Positive, Positive]

_TIE = 0.1  # pixels within which two vertices count as equally far out; released Oriented R-CNN config
_LEAST = 1e-6  # pixels: sides of what is encoded are taken as this long at least, so that logarithms stay finite


class DeltaCoder(Config):
    """Boxes (x1, y1, x2, y2) as shift over size and log of the size's ratio (Girshick et al., R-CNN, 2014, appendix C)."""

    stds: Four = (1.0, 1.0, 1.0, 1.0)  # released RPN; the cascade's stages divide by (.1, .1, .2, .2) and less
    max_ratio: Positive = 1000 / 16  # sizes change by at most this factor, up or down; released Oriented R-CNN config

    def encode(self, proposals: Tensor, truth: Tensor) -> Tensor:
        """Offsets [..., 4] of boxes `truth` [..., 4] from `proposals` [..., 4]."""
        (px, py, pw, ph), (gx, gy, gw, gh) = _centre_size(proposals), _centre_size(truth)
        pw, ph, gw, gh = (side.clamp_min(_LEAST) for side in (pw, ph, gw, gh))
        offsets = ((gx - px) / pw, (gy - py) / ph, (gw / pw).log(), (gh / ph).log())
        return torch.stack(offsets, -1) / proposals.new_tensor(self.stds)

    def decode(self, proposals: Tensor, offsets: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Boxes [..., 4] from offsets [..., 4], clipped to an image of `size` (height, width) where it is given.

        Leading shapes broadcast: proposals [N, 1, 4] go with the offsets of K classes [N, K, 4].
        """
        px, py, pw, ph = _centre_size(proposals)
        dx, dy, dw, dh = (offsets * offsets.new_tensor(self.stds)).unbind(-1)
        w, h = pw * _growth(dw, self.max_ratio), ph * _growth(dh, self.max_ratio)
        cx, cy = px + dx * pw, py + dy * ph
        boxes = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
        if size is None:
            return boxes
        return boxes.clamp_min(0).minimum(boxes.new_tensor((size[1], size[0], size[1], size[0])))


class MidpointOffsetCoder(Config):
    """Rotated boxes from horizontal anchors by the midpoint offsets of Xie et al., Oriented R-CNN, 2021, section 3.1.

    The six offsets are those of the circumscribed box, then how far along its top side the topmost corner lies and how far
    down its right side the rightmost one does, from the middle and in parts of the side. Corners that tie within 0.1
    pixels count as one place, the larger coordinate taken: so an upright box has both offsets at one half. A long box that
    leans by less than that at its short side ties there alone; it is taken as upright, too (in the released code the
    other side then names the same corner, and the box collapses to a line).
    """

    stds: Six = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)  # released Oriented R-CNN config
    max_ratio: Positive = 1000 / 16  # released Oriented R-CNN config

    def encode(self, anchors: Tensor, truth: Tensor) -> Tensor:
        """Offsets [..., 6] of rotated boxes `truth` [..., 5] from anchors (x1, y1, x2, y2) [..., 4]."""
        corners = to_quads(truth)
        around = to_xyxy(truth)
        gx, gy, gw, gh = _centre_size(around)
        x, y = corners.unbind(-1)  # [..., 4]
        above, beside = y - y.amin(-1, keepdim=True) <= _TIE, x.amax(-1, keepdim=True) - x <= _TIE
        upright = (above.sum(-1) > 1) | (beside.sum(-1) > 1)
        topmost, rightmost = (a.masked_fill(~at, -torch.inf).amax(-1) for a, at in ((x, above), (y, beside)))
        alpha = torch.where(upright, 0.5, (topmost - gx) / gw.clamp_min(_LEAST))
        beta = torch.where(upright, 0.5, (rightmost - gy) / gh.clamp_min(_LEAST))
        plain = DeltaCoder().encode(anchors, around)
        return torch.cat((plain, alpha[..., None], beta[..., None]), -1) / truth.new_tensor(self.stds)

    def decode(self, anchors: Tensor, offsets: Tensor) -> Tensor:
        """Rotated boxes [..., 5], le90, from anchors [..., 4] and offsets [..., 6]; leading shapes broadcast.

        The offsets describe a parallelogram; its shorter diagonal is drawn out to the length of the longer one, which
        makes it a rectangle (section 3.2).
        """
        offsets = offsets * offsets.new_tensor(self.stds)
        around = DeltaCoder(max_ratio=self.max_ratio).decode(anchors, offsets[..., :4])
        cx, cy, w, h = _centre_size(around)
        alpha, beta = offsets[..., 4:].clamp(-0.5, 0.5).unbind(-1)
        zero = torch.zeros_like(w)
        top = torch.stack((alpha * w + zero, -h / 2 + zero), -1)  # from the centre
        right = torch.stack((w / 2 + zero, beta * h + zero), -1)
        lengths = top.norm(dim=-1, keepdim=True), right.norm(dim=-1, keepdim=True)
        longest = torch.maximum(*lengths)
        top, right = (way * (longest / n.clamp_min(_LEAST)) for way, n in zip((top, right), lengths, strict=True))
        centre = torch.stack((cx + zero, cy + zero), -1)
        return from_rectangles(torch.stack((centre + top, centre + right, centre - top, centre - right), -2))


class RotatedDeltaCoder(Config):
    """Rotated boxes from rotated proposals: `DeltaCoder` in the proposal's own frame, and the turn between the two.

    Of the two ways to name the sides of a rectangle the one with the smaller turn is written (edge swap). In the released
    configurations this coder is called DeltaXYWHA with proj_xy and edge_swap on.
    """

    stds: Five = (0.1, 0.1, 0.2, 0.2, 0.1)  # released Oriented R-CNN config
    max_ratio: Positive = 1000 / 16  # released Oriented R-CNN config

    def encode(self, proposals: Tensor, truth: Tensor) -> Tensor:
        """Offsets [..., 5] of rotated boxes `truth` [..., 5] from rotated `proposals` [..., 5]."""
        px, py, pw, ph, pa = proposals.unbind(-1)
        gx, gy, gw, gh, ga = truth.unbind(-1)
        cos, sin = pa.cos(), pa.sin()
        pw, ph, gw, gh = (side.clamp_min(_LEAST) for side in (pw, ph, gw, gh))
        dx = ((gx - px) * cos + (gy - py) * sin) / pw
        dy = ((gy - py) * cos - (gx - px) * sin) / ph
        turn, swapped = wrap_angle(ga - pa), wrap_angle(ga - pa + math.pi / 2)
        swap = swapped.abs() <= turn.abs()
        w, h = torch.where(swap, gh, gw), torch.where(swap, gw, gh)
        offsets = (dx, dy, (w / pw).log(), (h / ph).log(), torch.where(swap, swapped, turn))
        return torch.stack(offsets, -1) / proposals.new_tensor(self.stds)

    def decode(self, proposals: Tensor, offsets: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Rotated boxes [..., 5], le90, from offsets [..., 5]; leading shapes broadcast.

        Centres are moved to the nearest pixel of an image of `size` (height, width) where it is given.
        """
        px, py, pw, ph, pa = proposals.unbind(-1)
        dx, dy, dw, dh, turn = (offsets * offsets.new_tensor(self.stds)).unbind(-1)
        along, down = dx * pw, dy * ph
        cos, sin = pa.cos(), pa.sin()
        cx, cy = px + along * cos - down * sin, py + along * sin + down * cos
        if size is not None:
            cx, cy = cx.clamp(0, size[1] - 1), cy.clamp(0, size[0] - 1)
        w, h = pw * _growth(dw, self.max_ratio), ph * _growth(dh, self.max_ratio)
        return regularise(torch.stack((cx, cy, w, h, pa + turn), -1))


def as_rotated(proposals: Tensor) -> Tensor:
    """Proposals [..., 4] or [..., 5] as rotated ones [..., 5], so that one head serves both."""
    return from_xyxy(proposals) if proposals.shape[-1] == 4 else proposals


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def _growth(log_ratio: Tensor, most: float) -> Tensor:
    return log_ratio.clamp(-math.log(most), math.log(most)).exp()
