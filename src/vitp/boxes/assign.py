"""Which true box each proposal answers for, and which proposals are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from vitp.config import Config
from vitp.train.draws import Purpose, generator

NEGATIVE = -1  # background
IGNORED = -2  # neither: no loss


class MaxIoUAssigner(Config):
    """Each box goes to the true box it overlaps most, if by enough (Ren et al., Faster R-CNN, 2015, section 3.1.2).

    A box is positive from `positive` on, negative below `negative`, ignored between. With `low_quality`, every true box
    also takes the boxes that overlap it most, all of them where they tie, if by `min_positive` at least, even from
    another true box; of several that ask for the same box the last one gets it, as in the released code.
    """

    positive: float = Field(default=0.7, gt=0, le=1)  # reference 7.1, RPN
    negative: float = Field(default=0.3, ge=0, le=1)  # reference 7.1, RPN
    min_positive: float = Field(default=0.3, ge=0, le=1)  # reference 7.1, RPN
    low_quality: bool = True  # reference 7.1: on in the RPN, off in the RoI heads

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.negative > self.positive:
            raise ValueError(f"negative ({self.negative}) must be at most positive ({self.positive})")
        return self

    @torch.no_grad()
    def assign(self, iou: Tensor) -> Tensor:
        """Index of the true box, `NEGATIVE` or `IGNORED`, for each of N boxes [N], from their IoU [G, N]."""
        count, boxes = iou.shape
        if not count:
            return torch.full((boxes,), NEGATIVE, dtype=torch.long, device=iou.device)
        best, taker = iou.max(0)
        return self._decide(iou, best, taker, iou.amax(1) if boxes else iou.new_zeros(count))

    @torch.no_grad()
    def assign_boxes(
        self, truth: Tensor, boxes: Tensor, overlap: Callable[[Tensor, Tensor], Tensor], block: int = 1 << 16
    ) -> Tensor:
        """As `assign`, in memory of G x `block`: the overlaps are computed in blocks of boxes, and twice for low quality.

        Args:
            truth: true boxes [G, 4 or 5].
            boxes: anchors or proposals [N, 4 or 5].
            overlap: (truth [G, .], boxes [n, .]) -> IoU [G, n], such as the functions of `vitp.boxes.iou`.
            block: boxes at a time.
        """
        if not len(truth) or len(boxes) <= block:
            return self.assign(overlap(truth, boxes) if len(truth) else boxes.new_zeros(0, len(boxes)))
        parts = torch.split(boxes, block)
        highest = torch.stack([overlap(truth, part).amax(1) for part in parts]).amax(0) if self.low_quality else None
        done = []
        for part in parts:
            iou = overlap(truth, part)
            best, taker = iou.max(0)
            done.append(self._decide(iou, best, taker, highest))
        return torch.cat(done)

    def _decide(self, iou: Tensor, best: Tensor, taker: Tensor, highest: Tensor | None) -> Tensor:
        """`highest` [G]: the largest overlap each true box has with any box at all."""
        assigned = torch.where(best < self.negative, NEGATIVE, IGNORED)
        assigned = torch.where(best >= self.positive, taker, assigned)
        if self.low_quality and highest is not None:
            asks = (iou == highest[:, None]) & (highest >= max(self.min_positive, torch.finfo(iou.dtype).tiny))[:, None]
            rank = torch.arange(1, len(iou) + 1, device=iou.device)[:, None]
            last = (asks * rank).amax(0)  # 0: nobody asks
            assigned = torch.where(last > 0, last - 1, assigned)
        return assigned


class Sampled(NamedTuple):
    """Indices of the boxes that enter the loss, each in ascending order."""

    positive: Tensor
    negative: Tensor


class RandomSampler(Config):
    """A fixed number of boxes an image, positives up to a share; negatives fill the rest (Faster R-CNN, section 3.1.3)."""

    count: int = Field(default=256, ge=1)  # reference 7.1, RPN (512 in the RoI heads)
    positive_share: float = Field(default=0.5, ge=0, le=1)  # reference 7.1, RPN (0.25 in the RoI heads)

    def sample(self, assigned: Tensor, seed: int, *position: int) -> Sampled:
        """Choose among assigned boxes [N]: a pure function of what is assigned, the seed and the position.

        Args:
            assigned: what `MaxIoUAssigner.assign` returns.
            seed: the run's seed.
            position: step, slot of the sample in the step, and what else tells two draws apart (the cascade's stage).
        """
        keys = generator(seed, Purpose.BOX_SAMPLE, *position).random(len(assigned))
        order = torch.from_numpy(keys).to(assigned.device)
        positive = _smallest(assigned >= 0, order, int(self.count * self.positive_share))
        return Sampled(positive, _smallest(assigned == NEGATIVE, order, self.count - len(positive)))


def _smallest(allowed: Tensor, keys: Tensor, most: int) -> Tensor:
    """Indices of the allowed boxes with the smallest keys, `most` at most, ascending."""
    index = allowed.nonzero().squeeze(1)
    if len(index) > most:
        index = index[keys[index].topk(most, largest=False).indices].sort().values
    return index
