"""Training a segmenter: the data of a step, and its loss.

Shape legend: B images, c x c pixels of a crop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vitp.datasets.layout import Item
from vitp.datasets.masks import MaskFolder
from vitp.datasets.transforms import AugmentConfig, augment
from vitp.datasets.volumes import VolumeFolder
from vitp.errors import ConfigError
from vitp.heads.losses import LossTerms, segmentation_loss
from vitp.metrics.segmentation import IGNORE
from vitp.tasks.dense import backbone_groups, check_parts, hand_uniforms, items_of_step
from vitp.tasks.segment import Segmenter
from vitp.train.distributed import Ranks
from vitp.train.feeding import working_on
from vitp.train.optim import ParameterGroup
from vitp.train.task import StepBatch


@dataclass(frozen=True)
class SegmentMicro:
    """Part of a step: images uint8 [B, 3, c, c] (pairs: 6 channels), masks uint8 [B, c, c], and its place in the whole step."""

    images: Tensor
    masks: Tensor
    pixels: float  # by which the loop divides the step's loss: labelled pixels, or all, of the whole step
    samples: int  # images in the step
    step: int
    slots: tuple[int, ...]  # of these images in the step

    def to(self, device: torch.device) -> SegmentMicro:
        """Itself on `device`."""
        images, masks = self.images.to(device, non_blocking=True), self.masks.to(device, non_blocking=True)
        return replace(self, images=images, masks=masks)

    def pin_memory(self) -> SegmentMicro:
        """Itself in pinned memory."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())

    def tensors(self) -> dict[str, Tensor]:
        """What is saved when the loss is not finite."""
        return {"images": self.images, "masks": self.masks}

    def of_step(self, weight: float, extent: tuple[int, int] | None) -> SegmentMicro:
        """Itself in a step of `weight` pixels on all ranks."""
        return replace(self, pixels=weight)


class Pictures(Protocol):
    """A data set as a step sees it, pictures with masks or pairs of them; indices point into `items`."""

    @property
    def items(self) -> Sequence[Item]:
        """Every sample's files."""

    @property
    def train(self) -> list[int]:
        """The samples to learn from."""


D = TypeVar("D", bound=Pictures)


class StepData(ABC, Generic[D]):
    """Lays out the steps: a pure function of (seed, step), cheap to send to a worker process."""

    def __init__(
        self,
        data: D,
        *,
        batch_size: int,
        micro_batch: int,
        augmentation: AugmentConfig,
        seed: int,
        average: Literal["labelled", "all"] = "labelled",
        ranks: Ranks = Ranks(),
    ) -> None:
        """Steps of `batch_size` samples, of which this one of the `ranks` lays out its part in micro-batches.

        Their loss is a mean over `average` pixels.
        """
        self.data, self.batch_size, self.micro_batch = data, batch_size, micro_batch
        self.augmentation, self.seed, self.average, self.ranks = augmentation, seed, average, ranks

    @abstractmethod
    def crop(self, index: int, step: int, slot: int) -> tuple[Tensor, Tensor]:
        """The training crop of a sample at a place of a step: uint8 [3 or 6, c, c] and class ids uint8 [c, c]."""

    def chosen(self, step: int) -> list[int]:
        """Items of a step: every epoch is a permutation of the training images of its own."""
        return items_of_step(self.data.train, self.seed, step, self.batch_size)

    def step_batch(self, step: int) -> StepBatch:
        """Read, crop and stack the images of a step, or of this rank's part of it.

        Raises:
            DataError: an image or a mask cannot be used.
        """
        chosen, part = self.chosen(step), self.ranks.part(self.batch_size)
        crops = []
        for slot in part:
            working_on(slot)
            crops.append(self.crop(chosen[slot], step, slot))
        images, masks = torch.stack([i for i, _ in crops]), torch.stack([m for _, m in crops])
        pixels = float(masks.numel() if self.average == "all" else int((masks != IGNORE).sum()))
        if self.ranks.alone:
            pixels = max(1.0, pixels)
        cuts = [torch.split(x, self.micro_batch) for x in (images, masks, torch.tensor(part))]
        micros = [
            SegmentMicro(i, m, pixels, len(chosen), step, tuple(slots.tolist()))
            for i, m, slots in zip(*cuts, strict=True)
        ]
        names = [str(self.data.items[chosen[slot]].image) for slot in part]
        return StepBatch(micros, weight=pixels, counts={"samples": float(len(part))}, samples=names)


class SegmentData(StepData[MaskFolder | VolumeFolder]):
    """The steps of images with masks."""

    def crop(self, index: int, step: int, slot: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3, c, c] and class ids uint8 [c, c]."""
        return augment(*self.data.read(index), self.augmentation, self.seed, step, slot)


class SegmentTask:
    """What the loop needs to train a segmenter, or a change detector on data that gives pairs."""

    def __init__(
        self,
        model: Segmenter,
        data: StepData[Any],
        *,
        backbone_lr: float,
        head_lr: float,
        layer_decay: float = 1.0,
        loss: LossTerms = LossTerms(),
    ) -> None:
        """A task.

        Raises:
            ConfigError: another number of class weights than of classes, or steps that cannot be learned from (`check_parts`).
        """
        self.model: nn.Module = model
        self.segmenter, self.data = model, data
        self._backbone_lr, self._head_lr, self._layer_decay = backbone_lr, head_lr, layer_decay
        self._loss = loss
        if loss.class_weights is not None and len(loss.class_weights) != len(model.classes):
            raise ConfigError(
                f"loss.class_weights holds {len(loss.class_weights)} weights for {len(model.classes)} classes "
                f"({', '.join(model.classes)}); give one a class"
            )
        check_parts(model, data.batch_size, data.micro_batch, data.ranks)

    def parameter_groups(self) -> list[ParameterGroup]:
        """ViT and features (by depth where the rate decays), and the heads."""
        model = self.segmenter
        backbone = backbone_groups(
            model.backbone, lr=self._backbone_lr, new_lr=self._head_lr, layer_decay=self._layer_decay
        )
        heads = [("head", model.head), ("auxiliary", model.auxiliary)]
        members = [(f"{part}.{n}", p) for part, m in heads if m is not None for n, p in m.named_parameters()]
        return [*backbone, ParameterGroup("head", members, self._head_lr)]

    def step_batch(self, step: int) -> StepBatch:
        """The images of one step."""
        return self.data.step_batch(step)

    def where(self, step: int, slot: int) -> str:
        """The image at a place of a step."""
        return str(self.data.data.items[self.data.chosen(step)[slot]].image)

    def loss(self, micro: SegmentMicro) -> tuple[Tensor, dict[str, float]]:
        """The configured losses, summed in units of pixels, the auxiliary head's among them."""
        hand_uniforms(self.model, self.data.seed, micro.step, micro.slots, micro.images.device)
        logits, auxiliary = self.segmenter.training_logits(micro.images)
        total, logs = segmentation_loss(logits, micro.masks, self._loss, weight=micro.pixels, samples=micro.samples)
        if auxiliary is None:
            return total, logs
        beside, _ = segmentation_loss(auxiliary, micro.masks, self._loss, weight=micro.pixels, samples=micro.samples)
        logs["auxiliary_loss"] = float(beside.detach()) / micro.pixels
        return total + self._loss.auxiliary_weight * beside, logs
