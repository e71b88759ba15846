"""Which proposals a second stage learns from, and what each should have been.

Shape legend: R sampled proposals of all images together, P positive ones among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from vitp.boxes.assign import IGNORED, NEGATIVE, MaxIoUAssigner, RandomSampler
from vitp.boxes.iou import overlapping, plain_ioa, plain_overlapping
from vitp.heads.truth import Key, Truth, upright


class RoIAssigner(MaxIoUAssigner):
    """From which overlap on a proposal counts as an object."""

    positive: float = Field(default=0.5, gt=0, le=1)  # released configs (of the cascade: first stage)
    negative: float = Field(default=0.5, ge=0, le=1)  # released configs
    min_positive: float = Field(default=0.5, ge=0, le=1)  # released configs
    low_quality: bool = False  # released configs


class RoISampler(RandomSampler):
    """How many proposals of an image are learned from."""

    count: int = Field(default=512, ge=1)  # released configs
    positive_share: float = Field(default=0.25, ge=0, le=1)  # released configs


@dataclass(frozen=True)
class Sampled:
    """Proposals of all images, image after image."""

    boxes: Tensor  # float32 [R, 4 or 5]
    image: Tensor  # int64 [R]
    labels: Tensor  # int64 [R]: the class, or background (the number of classes)
    weight: Tensor  # float32 [R]: one over the number of proposals of the same image
    given: Tensor  # bool [R]: a true box that was put among the proposals
    taker: Tensor  # int64 [P]: the object, among its image's
    target: Tensor  # float32 [P, 4 or 5]: its box
    positive: Tensor  # bool [R]


def image_of(boxes: Sequence[Tensor]) -> Tensor:
    """Which image each of all images' boxes lies on [R], from the boxes of each."""
    counts = torch.tensor([len(b) for b in boxes], device=boxes[0].device)
    return torch.arange(len(boxes), device=counts.device).repeat_interleave(counts)


@torch.no_grad()
def sample_proposals(
    proposals: Sequence[Tensor],
    truth: Sequence[Truth],
    keys: Sequence[Key],
    stage: int,
    assigner: MaxIoUAssigner,
    sampler: RandomSampler,
    background: int,
    ignore_overlap: float | None = None,
) -> Sampled:
    """Assign and sample, the true boxes being among the proposals.

    Args:
        proposals: of each image [n, 4 or 5].
        truth: of each image, in the same form.
        keys: what the samples of each image depend on.
        stage: likewise.
        assigner: which proposal is an object.
        sampler: which of them are taken.
        background: its label.
        ignore_overlap: share in a region to ignore from which a proposal is no background.
    """
    boxes, labels, weight, given, taker, target, positives = [], [], [], [], [], [], []
    for own, aim, key in zip(proposals, truth, keys, strict=True):
        every = torch.cat((own, aim.boxes))
        if every.shape[1] == 5:
            pairs = overlapping(aim.boxes, every)
        else:
            pairs = plain_overlapping(aim.boxes, every, assigner.lowest)
        assigned = assigner.assign_pairs(pairs, len(aim), every)
        if ignore_overlap is not None and len(aim.ignored):
            covered = plain_ioa(upright(every), aim.ignored).amax(1) >= ignore_overlap
            assigned = assigned.masked_fill(covered & (assigned == NEGATIVE), IGNORED)
        positive, negative = sampler.sample(assigned, *key, stage)
        chosen = torch.cat((positive, negative))
        boxes.append(every[chosen])
        taker.append(assigned[positive])
        target.append(aim.boxes[taker[-1]])
        labels.append(torch.cat((aim.labels[taker[-1]], torch.full_like(negative, background))))
        weight.append(every.new_full((len(chosen),), 1 / max(1, len(chosen))))
        given.append(chosen >= len(own))
        positives.append(torch.arange(len(chosen), device=chosen.device) < len(positive))
    return Sampled(
        torch.cat(boxes),
        image_of(boxes),
        torch.cat(labels),
        torch.cat(weight),
        torch.cat(given),
        torch.cat(taker),
        torch.cat(target),
        torch.cat(positives),
    )
