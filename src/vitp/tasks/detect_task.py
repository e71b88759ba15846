"""Training a detector: the data of a step, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from vitp.boxes.objects import Objects
from vitp.datasets.layout import Item
from vitp.datasets.object_transforms import ObjectAugmentConfig, Size, augment_objects, padded, padded_to
from vitp.tasks.dense import backbone_groups, check_parts, hand_uniforms, items_of_step
from vitp.tasks.detect import Detector
from vitp.train.distributed import Ranks
from vitp.train.feeding import working_on
from vitp.train.optim import ParameterGroup
from vitp.train.task import StepBatch


@dataclass(frozen=True)
class DetectMicro:
    """Part of a step: images uint8 [B, 3, H, W], what they show, and their place in the whole step."""

    images: Tensor
    objects: tuple[Objects, ...]
    sizes: tuple[tuple[int, int], ...]  # (h, w) of each image; the rest is padding
    samples: int  # images in the step
    step: int
    slots: tuple[int, ...]  # of these images in the step
    fill: tuple[float, float, float]  # colour (0-1) of the padding
    extent: Size  # (H, W) of the whole step's images

    def to(self, device: torch.device) -> DetectMicro:
        """Itself with its images on `device`, padded there to the whole step's size; boxes follow when their targets are made."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=padded_to(images, self.extent, self.fill))

    def pin_memory(self) -> DetectMicro:
        """Itself with its images in pinned memory."""
        return replace(self, images=self.images.pin_memory())

    def tensors(self) -> dict[str, Tensor]:
        """What is saved when the loss is not finite."""
        found = {"images": self.images, "sizes": torch.tensor(self.sizes)}
        for number, objects in enumerate(self.objects):
            found |= {f"boxes_{number}": objects.boxes, f"labels_{number}": objects.labels}
        return found

    def of_step(self, weight: float, extent: tuple[int, int] | None) -> DetectMicro:
        """Itself in a step whose largest image, of all ranks, needs `extent`."""
        assert extent is not None
        return replace(self, extent=extent)


class Scenes(Protocol):
    """A data set as a step sees it."""

    @property
    def items(self) -> Sequence[Item]:
        """Every image's file."""

    @property
    def train(self) -> list[int]:
        """The images to learn from."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""

    def read(self, index: int) -> tuple[Tensor, Objects]:
        """An image uint8 [3, H, W] and its objects."""


class DetectData:
    """Lays out the steps: a pure function of (seed, step), cheap to send to a worker process."""

    def __init__(
        self,
        data: Scenes,
        *,
        batch_size: int,
        micro_batch: int,
        augmentation: ObjectAugmentConfig,
        seed: int,
        fill: tuple[float, float, float],
        ranks: Ranks = Ranks(),
    ) -> None:
        """Steps of `batch_size` images, of which this one of the `ranks` lays out its part in micro-batches.

        `fill` is the colour (0-1) of what pads them.
        """
        self.data, self.batch_size, self.micro_batch = data, batch_size, micro_batch
        self.augmentation, self.seed, self.fill, self.ranks = augmentation, seed, fill, ranks

    def chosen(self, step: int) -> list[int]:
        """Items of a step: every epoch is a permutation of the training images of its own."""
        return items_of_step(self.data.train, self.seed, step, self.batch_size)

    def step_batch(self, step: int) -> StepBatch:
        """Read, augment and pad the images of a step, or of this rank's part of it; all to one size, so that it does not matter
        how the step is cut.

        Raises:
            DataError: an image cannot be used.
        """
        chosen, part = self.chosen(step), self.ranks.part(self.batch_size)
        images, objects = [], []
        for slot in part:
            working_on(slot)
            image, shown = self.data.read(chosen[slot])
            image, found = augment_objects(
                image, shown, self.augmentation, self.seed, step, slot, classes=self.data.classes
            )
            images.append(image)
            objects.append(found)
        batch, sizes = padded(images, self.fill)
        extent = (batch.shape[-2], batch.shape[-1])
        micros = [
            DetectMicro(
                batch[cut],
                tuple(objects[cut]),
                tuple(sizes[cut]),
                len(chosen),
                step,
                tuple(part[cut]),
                self.fill,
                extent,
            )
            for cut in (slice(first, first + self.micro_batch) for first in range(0, len(part), self.micro_batch))
        ]
        counts = {"samples": float(len(part)), "objects": float(sum(len(o) for o in objects))}
        names = [str(self.data.items[chosen[slot]].image) for slot in part]
        return StepBatch(micros, weight=float(len(part)), counts=counts, samples=names, extent=extent)


class DetectTask:
    """What the loop needs to train a detector."""

    def __init__(
        self, model: Detector, data: DetectData, *, backbone_lr: float, head_lr: float, layer_decay: float = 1.0
    ) -> None:
        """A task.

        Raises:
            ConfigError: more ranks than images in a step.
        """
        check_parts(model, data.batch_size, data.micro_batch, data.ranks)
        self.model: nn.Module = model
        self.detector, self.data = model, data
        self._backbone_lr, self._head_lr, self._layer_decay = backbone_lr, head_lr, layer_decay

    def parameter_groups(self) -> list[ParameterGroup]:
        """ViT and features (by depth where the rate decays), neck and head."""
        model = self.detector
        backbone = backbone_groups(
            model.backbone, lr=self._backbone_lr, new_lr=self._head_lr, layer_decay=self._layer_decay
        )
        parts = {"neck": model.neck, "head": model.head}
        members = {name: [(f"{name}.{n}", p) for n, p in m.named_parameters()] for name, m in parts.items()}
        return [*backbone, *(ParameterGroup(name, own, self._head_lr) for name, own in members.items() if own)]

    def step_batch(self, step: int) -> StepBatch:
        """The images of one step."""
        return self.data.step_batch(step)

    def where(self, step: int, slot: int) -> str:
        """The image at a place of a step."""
        return str(self.data.data.items[self.data.chosen(step)[slot]].image)

    def loss(self, micro: DetectMicro) -> tuple[Tensor, dict[str, float]]:
        """All losses, summed over the images, and each by itself as its share of the step's mean."""
        hand_uniforms(self.model, self.data.seed, micro.step, micro.slots, micro.images.device)
        keys = [(self.data.seed, micro.step, slot) for slot in micro.slots]
        losses = self.detector.training_losses(micro.images, micro.objects, micro.sizes, keys)
        every = torch.stack(list(losses.values()))
        shares = (every.detach() / micro.samples).tolist()
        return every.sum(), {f"{name}_loss": share for name, share in zip(losses, shares, strict=True)}
