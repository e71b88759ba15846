"""The region proposal network (Ren et al., Faster R-CNN, 2015, section 3.1): which anchors hold an object, and its box.

One class serves upright and oriented detectors: the coder decides how many numbers a box has (`DeltaCoder`: 4,
`MidpointOffsetCoder`: 6), and overlaps are those of the boxes around whatever is learned.

The loss looks at 256 anchors an image; of hundreds of thousands, nearly all get no gradient. So the maps are scored once
without recording, for the proposals, and the cells that were sampled once more with gradients. The gradient is the same
as through the whole maps, at a small part of its cost.

Shape legend: B images, C channels, A anchors a cell, D numbers a box, S sampled anchors, k anchors before NMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vitp.boxes.assign import IGNORED, NEGATIVE, MaxIoUAssigner, RandomSampler
from vitp.boxes.coders import DeltaCoder, MidpointOffsetCoder
from vitp.boxes.iou import plain_ioa, plain_overlapping
from vitp.boxes.nms import nms
from vitp.config import Config
from vitp.heads.anchors import AnchorConfig
from vitp.heads.box_loss import Beta, offset_loss
from vitp.heads.truth import Key, Size, Truth, upright


class RPNConfig(Config):
    """Settings of the region proposal network."""

    anchors: AnchorConfig = AnchorConfig()
    coder: DeltaCoder | MidpointOffsetCoder = DeltaCoder()  # released Cascade R-CNN config
    channels: int = Field(default=256, ge=1)  # released configs
    assigner: MaxIoUAssigner = MaxIoUAssigner()
    sampler: RandomSampler = RandomSampler()
    border: float = 0.0  # pixels by which learned anchors may leave the image; below 0: any anchor; released configs
    ignore_overlap: float | None = Field(
        default=None, gt=0, le=1
    )  # share in a difficult object or crowd from which an anchor is no background; released: off
    beta: Beta = 1 / 9  # of smooth L1; released configs
    nms: float = Field(default=0.7, ge=0, le=1)  # released Cascade R-CNN config
    per_level: int = Field(default=2000, ge=1)  # before NMS, in training; released configs
    test_per_level: int = Field(default=1000, ge=1)  # likewise, in testing; released Cascade R-CNN config
    train_proposals: int = Field(default=2000, ge=1)  # an image, after NMS; released Cascade R-CNN config
    test_proposals: int = Field(default=1000, ge=1)  # released Cascade R-CNN config


class RPN(nn.Module):
    """Maps of all levels to proposals, and its own losses."""

    def __init__(self, config: RPNConfig, channels: int, strides: Sequence[int]) -> None:
        """Weights come from torch's global generator, Normal(0, 0.01) (released configs).

        Args:
            config: settings.
            channels: C, of every map.
            strides: pixels a cell of each map.
        """
        super().__init__()
        self.config, self.strides = config, tuple(strides)
        self.numbers = len(config.coder.stds)
        self.conv = nn.Conv2d(channels, config.channels, 3, padding=1)
        self.objectness = nn.Conv2d(config.channels, config.anchors.per_cell, 1)
        self.offsets = nn.Conv2d(config.channels, config.anchors.per_cell * self.numbers, 1)
        for layer in (self.conv, self.objectness, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors [h * w * A, 4] of each level."""
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        return self.config.anchors.grid(shapes, self.strides, maps[0].device)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits [B, h * w * A] and offsets [B, h * w * A, D] of every anchor of each level."""
        logits, offsets = [], []
        for m in maps:
            hidden = functional.relu(self.conv(m), inplace=True)
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            rows = self.offsets(hidden).permute(0, 2, 3, 1)
            offsets.append(rows.reshape(len(m), -1, self.numbers))
        return logits, offsets

    @torch.no_grad()
    def propose(self, maps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
        """Proposals of each image by falling score: [P, 4] clipped to the image, or rotated [P, 5].

        The best anchors of each level are read out, suppressed level by level, and the best of all levels are kept.
        """
        config, found = self.config, []
        most = config.per_level if self.training else config.test_per_level
        for m, anchors in zip(maps, self.anchors(maps), strict=True):
            hidden = functional.relu(self.conv(m), inplace=True)
            logits = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float()
            scores, best = logits.topk(min(most, logits.shape[1]), dim=1)  # [B, k]
            cells, anchor = best // config.anchors.per_cell, best % config.anchors.per_cell
            table = self.offsets(hidden).view(len(m), -1, self.numbers, m.shape[2] * m.shape[3])  # [B, A, D, cells]
            image = torch.arange(len(m), device=m.device)[:, None]
            offsets = table[image, anchor, :, cells].float()  # [B, k, D]
            found.append((scores.sigmoid(), config.coder.decode(anchors[best], offsets)))
        limit = config.train_proposals if self.training else config.test_proposals
        return [self._choose([(s[i], b[i]) for s, b in found], size, limit) for i, size in enumerate(sizes)]

    def _choose(self, levels: Sequence[tuple[Tensor, Tensor]], size: Size, limit: int) -> Tensor:
        """The proposals of one image, from the scores [k] and boxes [k, 4 or 5] of each level."""
        kept_scores, kept_boxes = [], []
        for scores, boxes in levels:
            if boxes.shape[1] == 4:
                boxes = boxes.clamp_min(0).minimum(boxes.new_tensor((size[1], size[0], size[1], size[0])))
            around = upright(boxes)
            some = ((around[:, 2:] > around[:, :2]).all(1) & boxes.isfinite().all(1)).nonzero().squeeze(1)
            some = some[nms(around[some], scores[some], self.config.nms, limit=limit)]
            kept_scores.append(scores[some])
            kept_boxes.append(boxes[some])
        order = torch.cat(kept_scores).argsort(descending=True, stable=True)[:limit]
        return torch.cat(kept_boxes)[order]

    def losses(
        self, maps: Sequence[Tensor], truth: Sequence[Truth], sizes: Sequence[Size], keys: Sequence[Key]
    ) -> dict[str, Tensor]:
        """`rpn_class` and `rpn_box`: sums over the images of their means over the sampled anchors.

        Args:
            maps: [B, C, h, w] of each level.
            truth: of each image.
            sizes: of each image.
            keys: what the samples of each image depend on.
        """
        levels = self.anchors(maps)
        anchors = torch.cat(levels)
        chosen, hit, target, weight = [], [], [], []
        for i, (aim, size, key) in enumerate(zip(truth, sizes, keys, strict=True)):
            positive, negative, taker = self.sample(anchors, aim, size, key)
            chosen.append(torch.cat((positive, negative)) + i * len(anchors))
            hit.append(torch.arange(len(chosen[-1]), device=anchors.device) < len(positive))
            target.append(self.config.coder.encode(anchors[positive], aim.boxes[taker]))
            weight.append(torch.full_like(hit[-1], 1 / max(1, len(chosen[-1])), dtype=torch.float32))
        positive, weights = torch.cat(hit), torch.cat(weight)
        logits, offsets = self.at(maps, torch.cat(chosen), [len(a) for a in levels])
        loss = functional.binary_cross_entropy_with_logits(logits, positive.float(), weights, reduction="sum")
        box = offset_loss(offsets[positive], torch.cat(target), weights[positive], self.config.beta)
        return {"rpn_class": loss, "rpn_box": box}

    @torch.no_grad()
    def sample(self, anchors: Tensor, truth: Truth, size: Size, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors of one image that enter the loss: positive ones, negative ones, and the object of each positive one."""
        config = self.config
        among = _learned(anchors, size, config.border)
        candidates, around = anchors[among], upright(truth.boxes)
        pairs = plain_overlapping(around, candidates, config.assigner.lowest)
        assigned = config.assigner.assign_pairs(pairs, len(around), candidates)
        if config.ignore_overlap is not None and len(truth.ignored):
            covered = plain_ioa(candidates, truth.ignored).amax(1) >= config.ignore_overlap
            assigned = assigned.masked_fill(covered & (assigned == NEGATIVE), IGNORED)
        positive, negative = config.sampler.sample(assigned, *key, 0)
        return among[positive], among[negative], assigned[positive]

    def at(self, maps: Sequence[Tensor], index: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits [S] and offsets [S, D] of single anchors, as `forward` has them, in the order of `index`.

        Args:
            maps: [B, C, h, w] of each level.
            index: [S], of the anchors of the first image, then those of the second, ...
            counts: anchors of each level.
        """
        total, per_cell = sum(counts), self.config.anchors.per_cell
        image, place = index // total, index % total
        starts = torch.tensor([0, *accumulate(counts)], device=index.device)
        level = torch.searchsorted(starts, place, right=True) - 1
        cell, anchor = (place - starts[level]) // per_cell, (place - starts[level]) % per_cell
        rows, order = [], []
        for number, m in enumerate(maps):
            here = (level == number).nonzero().squeeze(1)
            rows.append(_neighbourhoods(m, image[here], cell[here] // m.shape[3], cell[here] % m.shape[3]))
            order.append(here)
        patches = torch.cat(rows)[torch.cat(order).argsort()].flatten(1)  # [S, 9 * C]
        kernel = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = functional.relu(functional.linear(patches, kernel, self.conv.bias))
        logits = functional.linear(hidden, self.objectness.weight.flatten(1), self.objectness.bias)
        offsets = functional.linear(hidden, self.offsets.weight.flatten(1), self.offsets.bias)
        mine = torch.arange(len(index), device=index.device)
        return logits[mine, anchor].float(), offsets.view(len(index), per_cell, -1)[mine, anchor].float()


def _learned(anchors: Tensor, size: Size, border: float) -> Tensor:
    """Indices of the anchors that may be learned: those within the image, of an image too small for any all that start in it."""
    h, w = size
    centre_x, centre_y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    starting = ((centre_x < w) & (centre_y < h)).nonzero().squeeze(1)
    if border < 0:
        return starting
    x1, y1, x2, y2 = anchors.unbind(1)
    inside = (x1 >= -border) & (y1 >= -border) & (x2 < w + border) & (y2 < h + border)
    chosen = inside.nonzero().squeeze(1)
    return chosen if len(chosen) else starting


def _neighbourhoods(m: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The 3 x 3 cells [S, 9, C] around cells (y, x) [S] of maps [B, C, h, w]; zero outside."""
    step = torch.arange(-1, 2, device=m.device)
    ys = (y[:, None] + step.repeat_interleave(3)[None]).long()  # [S, 9]
    xs = (x[:, None] + step.repeat(3)[None]).long()
    inside = (ys >= 0) & (ys < m.shape[2]) & (xs >= 0) & (xs < m.shape[3])
    ys, xs = ys.clamp(0, m.shape[2] - 1), xs.clamp(0, m.shape[3] - 1)
    cells = m.permute(0, 2, 3, 1)[image[:, None], ys, xs]
    return cells * inside[..., None].to(cells.dtype)
