"""Change detection: pairs of images through the steps, the loss and the loop of segmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from vitp.datasets.pairs import PairFolder
from vitp.datasets.transforms import augment_pair
from vitp.tasks.segment_task import SegmentTask, StepData


class ChangeData(StepData[PairFolder]):
    """The steps of pairs of images."""

    def crop(self, index: int, step: int, slot: int) -> tuple[Tensor, Tensor]:
        """Both dates uint8 [6, c, c] and class ids uint8 [c, c]."""
        before, after, mask = augment_pair(*self.data.read(index), self.augmentation, self.seed, step, slot)
        return torch.cat([before, after]), mask


class ChangeTask(SegmentTask):
    """What the loop needs to train a `vitp.tasks.segment.ChangeDetector`: a segmenter on six channels, with a step of pairs."""
