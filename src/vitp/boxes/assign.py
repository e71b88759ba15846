"""Which true box each proposal answers for, and which proposals are looked at."""

from __future__ import annotations

from collections.abc import Iterable
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

    positive: float = Field(default=0.7, gt=0, le=1)  # released configs, RPN
    negative: float = Field(default=0.3, ge=0, le=1)  # released configs, RPN
    min_positive: float = Field(default=0.3, ge=0, le=1)  # released configs, RPN
    low_quality: bool = True  # released configs: on in the RPN, off in the RoI heads

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.negative > self.positive:
            raise ValueError(f"negative ({self.negative}) must be at most positive ({self.positive})")
        return self

    @torch.no_grad()
    def assign(self, iou: Tensor) -> Tensor:
        """Index of the true box, `NEGATIVE` or `IGNORED`, for each of N boxes [N], from their IoU [G, N]."""
        i, j = (iou > 0).nonzero(as_tuple=True)
        return self.assign_pairs([(i, j, iou[i, j])], len(iou), iou.T)

    @torch.no_grad()
    def assign_pairs(self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]], truths: int, like: Tensor) -> Tensor:
        """As `assign`, from the overlapping pairs alone, in memory of those above the lowest threshold.

        Args:
            pairs: index of the true box, index of the box, IoU, in chunks: `vitp.boxes.iou.overlapping` or `plain_overlapping`
                (which may leave out what overlaps by less than `lowest`). A pair comes once.
            truths: number of true boxes.
            like: the boxes [N, .], for their number and device.
        """
        if not truths:
            return torch.full((len(like),), NEGATIVE, dtype=torch.long, device=like.device)
        none = torch.zeros(0, dtype=torch.long, device=like.device)
        parts = [(none, none, torch.zeros(0, dtype=torch.float64, device=like.device))]
        for rows, columns, overlap in pairs:
            enough = overlap >= self.lowest
            parts.append((rows[enough], columns[enough], overlap[enough]))
        i, j, iou = (torch.cat(column) for column in zip(*parts, strict=True))
        best = iou.new_zeros(len(like)).scatter_reduce(0, j, iou, "amax")
        taker = torch.full_like(best, truths, dtype=torch.long)
        first = iou == best[j]  # of equal overlaps the first true box
        taker = taker.scatter_reduce(0, j[first], i[first], "amin")
        assigned = torch.where(best < self.negative, NEGATIVE, IGNORED)
        assigned = torch.where(best >= self.positive, taker, assigned)
        if self.low_quality:
            highest = iou.new_zeros(truths).scatter_reduce(0, i, iou, "amax")
            asks = (iou == highest[i]) & (iou >= self.min_positive)  # a pair shares something
            last = torch.full_like(assigned, -1).scatter_reduce(0, j[asks], i[asks], "amax")
            assigned = torch.where(last >= 0, last, assigned)
        return assigned

    @property
    def lowest(self) -> float:
        """The IoU below which a pair decides nothing."""
        return min(self.positive, self.negative, self.min_positive if self.low_quality else 1.0)


class Sampled(NamedTuple):
    """Indices of the boxes that enter the loss, each in ascending order."""

    positive: Tensor
    negative: Tensor


class RandomSampler(Config):
    """A fixed number of boxes an image, positives up to a share; negatives fill the rest (Faster R-CNN, section 3.1.3)."""

    count: int = Field(default=256, ge=1)  # released configs, RPN (512 in the RoI heads)
    positive_share: float = Field(default=0.5, ge=0, le=1)  # released configs, RPN (0.25 in the RoI heads)

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
