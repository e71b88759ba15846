"""The second stage: features inside each proposal, its class, and a better box (Ren et al. 2015; Lin et al., FPN, 2017).

One class serves upright and rotated boxes: the coder decides (`DeltaCoder`: 4 numbers, `RotatedDeltaCoder`: 5).

Shape legend: B images, C channels, K classes (label K is background), R proposals of all images together, P positive ones
among them, D numbers a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vitp.boxes.coders import DeltaCoder, Four, RotatedDeltaCoder
from vitp.boxes.nms import nms, rotated_nms
from vitp.boxes.objects import Detections
from vitp.config import Config
from vitp.heads.box_loss import Beta, offset_loss
from vitp.heads.pool import PoolConfig, pool
from vitp.heads.proposals import RoIAssigner, RoISampler, Sampled, image_of, sample_proposals
from vitp.heads.truth import Key, Size, Truth

LOOKED_AT = 4  # levels of a second stage, strides 4 to 32; released configs
Share = Annotated[float, Field(ge=0, le=1)]


class RoICoder(DeltaCoder):
    """How the second stage writes a box."""

    stds: Four = (0.1, 0.1, 0.2, 0.2)  # released Cascade R-CNN config, first stage; released Mask R-CNN config


class KeepConfig(Config):
    """Which of the scored boxes are given out."""

    score: Share = 0.05  # least; released Cascade R-CNN config
    nms: Share = 0.5  # of the same class; released Cascade R-CNN config
    limit: int = Field(default=100, ge=1)  # an image; released Cascade R-CNN config


class RoIConfig(Config):
    """Settings of a second stage."""

    pool: PoolConfig = PoolConfig()
    assigner: RoIAssigner = RoIAssigner()
    sampler: RoISampler = RoISampler()
    ignore_overlap: float | None = Field(
        default=None, gt=0, le=1
    )  # share in a difficult object or crowd from which a proposal is no background; released: off
    coder: RoICoder | RotatedDeltaCoder = RoICoder()
    width: int = Field(default=1024, ge=1)  # of both layers; released configs
    class_agnostic: bool = True  # one box a proposal, not one a class; released configs (Mask R-CNN: one a class)
    beta: Beta = 1.0  # of smooth L1; released configs
    keep: KeepConfig = KeepConfig()

    @property
    def rotated(self) -> bool:
        """Whether boxes have an angle."""
        return len(self.coder.stds) == 5


@dataclass(frozen=True)
class Scored:
    """What the second stage says of R proposals."""

    logits: Tensor  # float32 [R, K + 1], background last
    offsets: Tensor  # float32 [R, 1 or K, D]


class RoIHead(nn.Module):
    """Two shared layers, then class and box of each proposal."""

    def __init__(self, config: RoIConfig, channels: int, classes: int, strides: Sequence[int]) -> None:
        """Weights come from torch's global generator, drawn as in mmdetection.

        Args:
            config: settings.
            channels: C, of every map.
            classes: K.
            strides: of the maps that are looked at; further maps are not.
        """
        super().__init__()
        self.config, self.classes, self.strides = config, classes, tuple(strides)
        self.first = nn.Linear(channels * config.pool.size**2, config.width)
        self.second = nn.Linear(config.width, config.width)
        self.classify = nn.Linear(config.width, classes + 1)
        boxes = 1 if config.class_agnostic else classes
        self.regress = nn.Linear(config.width, boxes * len(config.coder.stds))
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.classify, 0.01), (self.regress, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Scored:
        """Class and box of proposals [R, 4 or 5], `image` [R] telling which of the B images each lies on."""
        cells = pool(maps[: len(self.strides)], boxes, image, self.strides, self.config.pool)
        hidden = functional.relu(self.first(cells.flatten(1)))
        hidden = functional.relu(self.second(hidden))
        offsets = self.regress(hidden).float().unflatten(1, (-1, len(self.config.coder.stds)))
        return Scored(self.classify(hidden).float(), offsets)

    def sample(
        self, proposals: Sequence[Tensor], truth: Sequence[Truth], keys: Sequence[Key], stage: int = 1
    ) -> Sampled:
        """The proposals that enter the loss; `stage` tells the draws of several second stages apart."""
        config = self.config
        return sample_proposals(
            proposals, truth, keys, stage, config.assigner, config.sampler, self.classes, config.ignore_overlap
        )

    def losses(self, scored: Scored, sampled: Sampled) -> dict[str, Tensor]:
        """`class` and `box`: sums over the images of their means over the sampled proposals."""
        apart = functional.cross_entropy(scored.logits, sampled.labels, reduction="none")
        positive = sampled.positive
        rows = positive.nonzero().squeeze(1)
        column = torch.zeros_like(rows) if self.config.class_agnostic else sampled.labels[rows]
        target = self.config.coder.encode(sampled.boxes[rows], sampled.target)
        box = offset_loss(scored.offsets[rows, column], target, sampled.weight[rows], self.config.beta)
        return {"class": (apart * sampled.weight).sum(), "box": box}

    def learn(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        truth: Sequence[Truth],
        sizes: Sequence[Size],
        keys: Sequence[Key],
    ) -> tuple[dict[str, Tensor], Sampled]:
        """The losses, and the proposals they were taken on.

        Args:
            maps: [B, C, h, w] of each level.
            proposals: of each image [n, 4 or 5].
            truth: of each image.
            sizes: of each image; only a cascade needs them.
            keys: what the samples of each image depend on.
        """
        sampled = self.sample(proposals, truth, keys)
        return self.losses(self(maps, sampled.boxes, sampled.image), sampled), sampled

    def detect(self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """What is found in each image."""
        image = image_of(proposals)
        scored = self(maps, torch.cat(list(proposals)), image)
        return self.read(scored.logits, scored.offsets, proposals, sizes)

    def read(
        self, logits: Tensor, offsets: Tensor, proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[Detections]:
        """Detections of each image from logits [R, K + 1] and offsets [R, 1 or K, D] of its proposals."""
        counts, found = [len(p) for p in proposals], []
        scores = logits.softmax(1)[:, :-1]
        for own, score, offset, size in zip(
            proposals, torch.split(scores, counts), torch.split(offsets, counts), sizes, strict=True
        ):
            rows, labels = (score > self.config.keep.score).nonzero(as_tuple=True)
            column = torch.zeros_like(labels) if self.config.class_agnostic else labels
            boxes = self.config.coder.decode(own[rows], offset[rows, column], size)
            found.append(kept(boxes, score[rows, labels], labels, self.config.keep))
        return found


def kept(boxes: Tensor, scores: Tensor, labels: Tensor, config: KeepConfig) -> Detections:
    """Of scored boxes [N, 4 or 5], those that have an area and are not suppressed by a better one of the same class."""
    sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
    some = (boxes.isfinite().all(1) & (sides > 0).all(1)).nonzero().squeeze(1)
    boxes, scores, labels = boxes[some], scores[some], labels[some]
    suppress = rotated_nms if boxes.shape[1] == 5 else nms
    best = suppress(boxes, scores, config.nms, labels, config.limit)
    return Detections(boxes[best], scores[best], labels[best])
