"""Cascade R-CNN (Cai and Vasconcelos 2018): second stages one after another, each on the boxes of the one before.

Shape legend: B images, C channels, K classes, R proposals of all images together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from vitp.boxes.coders import Four
from vitp.boxes.objects import Detections
from vitp.config import Config
from vitp.heads.box_loss import Beta
from vitp.heads.pool import PoolConfig
from vitp.heads.proposals import RoIAssigner, RoISampler, Sampled, image_of
from vitp.heads.roi import KeepConfig, RoICoder, RoIConfig, RoIHead
from vitp.heads.truth import Key, Size, Truth, within


class StageConfig(Config):
    """One stage."""

    iou: float = Field(gt=0, le=1)  # from which a proposal is an object
    stds: Four  # of the coder
    weight: float = Field(default=1.0, ge=0)  # of its losses


_STAGES = (  # released Cascade R-CNN config
    StageConfig(iou=0.5, stds=(0.1, 0.1, 0.2, 0.2), weight=1.0),
    StageConfig(iou=0.6, stds=(0.05, 0.05, 0.1, 0.1), weight=0.5),
    StageConfig(iou=0.7, stds=(0.033, 0.033, 0.067, 0.067), weight=0.25),
)


class CascadeConfig(Config):
    """Settings of the second stages."""

    stages: tuple[StageConfig, ...] = Field(default=_STAGES, min_length=1)
    pool: PoolConfig = PoolConfig()
    sampler: RoISampler = RoISampler()
    ignore_overlap: float | None = Field(default=None, gt=0, le=1)  # see `RoIConfig`
    width: int = Field(default=1024, ge=1)  # released Cascade R-CNN config
    beta: Beta = 1.0  # released Cascade R-CNN config
    keep: KeepConfig = KeepConfig()

    def stage(self, number: int) -> RoIConfig:
        """Settings of one of them."""
        stage = self.stages[number]
        return RoIConfig(
            pool=self.pool,
            assigner=RoIAssigner(positive=stage.iou, negative=stage.iou, min_positive=stage.iou),
            sampler=self.sampler,
            ignore_overlap=self.ignore_overlap,
            coder=RoICoder(stds=stage.stds),
            width=self.width,
            beta=self.beta,
            keep=self.keep,
        )


class CascadeHead(nn.Module):
    """Several `RoIHead`s; of a test image the last one's boxes, scored by the mean of all their logits."""

    def __init__(self, config: CascadeConfig, channels: int, classes: int, strides: Sequence[int]) -> None:
        """Arguments as those of `RoIHead`."""
        super().__init__()
        self.config = config
        heads = [RoIHead(config.stage(i), channels, classes, strides) for i in range(len(config.stages))]
        self.stages = nn.ModuleList(heads)

    @property
    def heads(self) -> list[RoIHead]:
        """The stages by their type."""
        return list(self.stages)  # type: ignore[arg-type]

    def learn(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        truth: Sequence[Truth],
        sizes: Sequence[Size],
        keys: Sequence[Key],
    ) -> tuple[dict[str, Tensor], Sampled]:
        """`class_1`, `box_1`, `class_2`, ... with their weights, and the proposals of the first stage.

        A stage gets what the one before sampled, its boxes corrected; true boxes among them leave, to be put in anew.
        """
        losses: dict[str, Tensor] = {}
        first: Sampled | None = None
        for number, (head, stage) in enumerate(zip(self.heads, self.config.stages, strict=True), 1):
            sampled = head.sample(proposals, truth, keys, number)
            first = first or sampled
            scored = head(maps, sampled.boxes, sampled.image)
            for name, value in head.losses(scored, sampled).items():
                losses[f"{name}_{number}"] = value * stage.weight
            better = refined(head, sampled.boxes, scored.offsets, sizes, sampled.image)
            alive = ~sampled.given & (better[:, 2:] > better[:, :2]).all(1)
            proposals = [better[alive & (sampled.image == i)] for i in range(len(truth))]
        assert first is not None
        return losses, first

    def detect(self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """What is found in each image."""
        image, counts = image_of(proposals), [len(p) for p in proposals]
        boxes, logits = torch.cat(list(proposals)), []
        for head in self.heads[:-1]:
            scored = head(maps, boxes, image)
            logits.append(scored.logits)
            boxes = refined(head, boxes, scored.offsets, sizes, image)
        last = self.heads[-1]
        scored = last(maps, boxes, image)
        logits.append(scored.logits)
        return last.read(torch.stack(logits).mean(0), scored.offsets, torch.split(boxes, counts), sizes)


@torch.no_grad()
def refined(head: RoIHead, boxes: Tensor, offsets: Tensor, sizes: Sequence[Size], image: Tensor) -> Tensor:
    """Proposals [R, 4] moved by the offsets [R, 1, 4] a stage found, and clipped to their images."""
    return within(head.config.coder.decode(boxes, offsets[:, 0]), sizes, image)
