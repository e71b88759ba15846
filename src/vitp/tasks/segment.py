"""Semantic segmentation: backbone and light head, the data of a step, the loss, and masks of whole images.

Shape legend: B images, K classes, H x W pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as images_functional

from vitp.backbone.vit import METADATA, BackboneConfig, ViTBackbone, random_backbone, read_metadata
from vitp.config import Config
from vitp.datasets.masks import MaskFolder
from vitp.datasets.transforms import AugmentConfig, augment
from vitp.errors import CheckpointError
from vitp.files import write_atomic
from vitp.heads.fcn import FCNHead, random_head
from vitp.metrics.segmentation import IGNORE, SegmentationMetric
from vitp.train.checkpoint import load_model, load_tensors, model_tensors
from vitp.train.draws import Purpose, generator
from vitp.train.feeding import working_on
from vitp.train.optim import ParameterGroup
from vitp.train.task import StepBatch

_WINDOWS_AT_ONCE = 8


class InferenceConfig(Config):
    """How a whole image is predicted; kept with the weights."""

    scale: float = Field(default=1.0, gt=0)  # zoom before the model; set it to the middle of the training crops' zoom
    window: int | None = Field(default=None, ge=8)  # side of windows whose logits are averaged; None: all at once


class Segmenter(nn.Module):
    """Images [B, 3, H, W] (uint8, or float 0-1) to logits [B, K, H, W], any H and W."""

    def __init__(self, backbone: ViTBackbone, head: FCNHead, classes: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.head, self.classes = backbone, head, tuple(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits in the pictures' own resolution."""
        logits: Tensor = self.head(self.backbone(images), (images.shape[-2], images.shape[-1]))
        return logits


def build_segmenter(backbone: ViTBackbone, classes: Sequence[str], seed: int) -> Segmenter:
    """A segmenter with a fresh head, drawn from `seed`."""
    channels = [backbone.channels] * len(backbone.strides)
    return Segmenter(backbone, random_head(channels, len(classes), seed), classes)


@dataclass(frozen=True)
class SegmentMicro:
    """Part of a step: images uint8 [B, 3, c, c], masks uint8 [B, c, c], and the size of the whole step."""

    images: Tensor
    masks: Tensor
    pixels: float  # labelled pixels in the step
    samples: int  # images in the step

    def to(self, device: torch.device) -> SegmentMicro:
        """Itself on `device`."""
        images, masks = self.images.to(device, non_blocking=True), self.masks.to(device, non_blocking=True)
        return SegmentMicro(images, masks, self.pixels, self.samples)

    def pin_memory(self) -> SegmentMicro:
        """Itself in pinned memory."""
        return SegmentMicro(self.images.pin_memory(), self.masks.pin_memory(), self.pixels, self.samples)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved when the loss is not finite."""
        return {"images": self.images, "masks": self.masks}


class SegmentData:
    """Lays out the steps: a pure function of (seed, step), cheap to send to a worker process."""

    def __init__(
        self,
        data: MaskFolder,
        *,
        batch_size: int,
        micro_batch: int,
        augmentation: AugmentConfig,
        seed: int,
    ) -> None:
        self.data, self.batch_size, self.micro_batch = data, batch_size, micro_batch
        self.augmentation, self.seed = augmentation, seed

    def chosen(self, step: int) -> list[int]:
        """Items of a step: every epoch is a permutation of the training images of its own."""
        train = self.data.train
        orders: dict[int, list[int]] = {}
        found = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, at = divmod(position, len(train))
            if epoch not in orders:
                orders[epoch] = generator(self.seed, Purpose.MIXTURE, 3, epoch).permutation(len(train)).tolist()
            found.append(train[orders[epoch][at]])
        return found

    def step_batch(self, step: int) -> StepBatch:
        """Read, crop and stack the images of a step.

        Raises:
            DataError: an image or a mask cannot be used.
        """
        chosen = self.chosen(step)
        crops = []
        for slot, i in enumerate(chosen):
            working_on(slot)
            crops.append(augment(*self.data.read(i), self.augmentation, self.seed, step, slot))
        images, masks = torch.stack([i for i, _ in crops]), torch.stack([m for _, m in crops])
        pixels = float(max(1, int((masks != IGNORE).sum())))
        micros = [
            SegmentMicro(i, m, pixels, len(chosen))
            for i, m in zip(torch.split(images, self.micro_batch), torch.split(masks, self.micro_batch), strict=True)
        ]
        names = [str(self.data.items[i].image) for i in chosen]
        return StepBatch(micros, weight=pixels, counts={"samples": float(len(chosen))}, samples=names)


def soft_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum over images of 1 - the mean over classes of the soft Dice (Milletari et al. 2016, without squares).

    Args:
        logits: [B, K, H, W].
        masks: class ids [B, H, W]; 255 is left out.

    A pixel is added to both sides of the fraction, so a class absent from label and prediction costs nothing.
    """
    valid = (masks != IGNORE).unsqueeze(1)
    truth = functional.one_hot(masks.long().where(masks != IGNORE, 0), logits.shape[1]).movedim(-1, 1) * valid
    guess = logits.float().softmax(1) * valid
    both = (guess * truth).sum((2, 3))
    dice = (2 * both + 1) / (guess.sum((2, 3)) + truth.sum((2, 3)) + 1)  # [B, K]
    return (1 - dice.mean(1)).sum()


class SegmentTask:
    """What the loop needs to train a segmenter."""

    def __init__(
        self,
        model: Segmenter,
        data: SegmentData,
        *,
        backbone_lr: float,
        head_lr: float,
        layer_decay: float = 1.0,
        dice_weight: float = 0.0,
    ) -> None:
        self.model: nn.Module = model
        self.segmenter, self.data = model, data
        self._backbone_lr, self._head_lr = backbone_lr, head_lr
        self._layer_decay, self._dice_weight = layer_decay, dice_weight

    def parameter_groups(self) -> list[ParameterGroup]:
        """Backbone (by depth where the rate decays) and head."""
        backbone = self.segmenter.backbone
        head = ParameterGroup("head", list(self.segmenter.head.named_parameters()), self._head_lr)
        if self._layer_decay == 1.0 or self._backbone_lr == 0.0:
            return [ParameterGroup("backbone", list(backbone.named_parameters()), self._backbone_lr), head]
        layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in backbone.named_parameters():
            layers.setdefault(layer_of(name, backbone.depth), []).append((name, parameter))
        groups = [
            ParameterGroup(
                f"backbone_{i:02d}", members, self._backbone_lr * self._layer_decay ** (backbone.depth + 1 - i)
            )
            for i, members in sorted(layers.items())
        ]
        return [*groups, head]

    def step_batch(self, step: int) -> StepBatch:
        """The images of one step."""
        return self.data.step_batch(step)

    def where(self, step: int, slot: int) -> str:
        """The image at a place of a step."""
        return str(self.data.data.items[self.data.chosen(step)[slot]].image)

    def loss(self, micro: SegmentMicro) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy summed over labelled pixels, plus the weighted Dice loss in the same unit."""
        logits = self.model(micro.images).float()
        entropy = functional.cross_entropy(logits, micro.masks.long(), ignore_index=IGNORE, reduction="sum")
        if self._dice_weight == 0.0:
            return entropy, {}
        # the loop divides by the step's pixels: the mean over its images becomes a sum in units of pixels an image
        dice = soft_dice_loss(logits, micro.masks) * (micro.pixels / micro.samples)
        logs = {
            "cross_entropy": float(entropy.detach()) / micro.pixels,
            "dice_loss": float(dice.detach()) / micro.pixels,
        }
        return entropy + self._dice_weight * dice, logs


def layer_of(name: str, depth: int) -> int:
    """Depth of a backbone parameter: 0 the embeddings, i + 1 block i, depth + 1 the final norm (BEiT's numbering)."""
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if block is not None:
        return int(block.group(1)) + 1
    return depth + 1 if re.search(r"(?:^|\.)(?:norm|fc_norm)\.", name) else 0


# ----------------------------------------------------------------------------------------------------------- prediction


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin so that they cover `length`, a third of each shared with the next; the last ends flush."""
    if length <= window:
        return [0]
    step = max(1, window * 2 // 3)  # mmsegmentation: windows of 512, 341 apart
    return [*range(0, length - window, step), length - window]


@torch.no_grad()
def predict_logits(model: Segmenter, image: Tensor, inference: InferenceConfig = InferenceConfig()) -> Tensor:
    """Logits [K, H, W] of one image uint8 [3, H, W] (any device); `model` is in eval mode."""
    image = image.to(next(model.parameters()).device)
    height, width = image.shape[-2:]
    if inference.scale != 1.0:
        size = [max(1, round(height * inference.scale)), max(1, round(width * inference.scale))]
        image = images_functional.resize(image, size, antialias=True)
    if inference.window is None:
        logits = model(image[None])[0].float()
    else:
        logits = _windowed_logits(model, image, inference.window)
    if logits.shape[-2:] != (height, width):
        logits = functional.interpolate(logits[None], (height, width), mode="bilinear", antialias=True)[0]
    return cast(Tensor, logits)


def _windowed_logits(model: Segmenter, image: Tensor, window: int) -> Tensor:
    height, width = image.shape[-2:]
    corners = [(y, x) for y in _starts(height, window) for x in _starts(width, window)]
    total = torch.zeros(len(model.classes), height, width, device=image.device)
    count = torch.zeros(height, width, device=image.device)
    for first in range(0, len(corners), _WINDOWS_AT_ONCE):
        some = corners[first : first + _WINDOWS_AT_ONCE]
        batch = torch.stack([image[:, y : y + window, x : x + window] for y, x in some])
        for (y, x), logits in zip(some, model(batch).float(), strict=True):
            total[:, y : y + window, x : x + window] += logits
            count[y : y + window, x : x + window] += 1
    return total / count


def predict_masks(
    model: Segmenter, images: Iterable[Tensor], inference: InferenceConfig = InferenceConfig()
) -> Iterator[Tensor]:
    """Class ids uint8 [H, W], on the CPU, of each image uint8 [3, H, W]; the model is put into eval mode."""
    model.eval()
    for image in images:
        yield predict_logits(model, image, inference).argmax(0).to(torch.uint8).cpu()


def score_masks(
    model: Segmenter, data: MaskFolder, indices: Sequence[int], inference: InferenceConfig = InferenceConfig()
) -> SegmentationMetric:
    """Predict the given images at their own size and count against their masks; see `SegmentationMetric.scores`."""
    metric = SegmentationMetric(data.classes, background=data.config.background)
    for index in indices:
        image, mask = data.read(index)
        metric.update(next(predict_masks(model, [image], inference)), mask)
    return metric


# -------------------------------------------------------------------------------------------------------------- on disk


def save_segmenter(path: Path, model: Segmenter, inference: InferenceConfig) -> None:
    """Write weights, classes and backbone description to one .safetensors file, atomically."""
    about = {
        "segmenter": model.backbone.config.model_dump(mode="json"),
        "classes": list(model.classes),
        "inference": inference.model_dump(mode="json"),
    }
    tensors = {name: t.contiguous().cpu() for name, t in model_tensors(model).items()}
    metadata = {METADATA: json.dumps(about), "format": "pt"}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_segmenter(path: Path | str) -> tuple[Segmenter, InferenceConfig]:
    """A segmenter in eval mode and how it predicts.

    Args:
        path: a run's folder, or the model.safetensors in it.

    Raises:
        CheckpointError: missing, damaged, or no segmenter.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file}: does not exist; `vitp finetune` writes it when its last step is done")
    about = read_metadata(file)
    if "segmenter" not in about:
        raise CheckpointError(f"{file}: holds no segmenter; give the folder of a `vitp finetune` run")
    config = BackboneConfig.model_validate(about["segmenter"])
    model = build_segmenter(random_backbone(config, seed=0), about["classes"], seed=0)
    load_model(model, load_tensors(file), file)
    return model.eval(), InferenceConfig.model_validate(about["inference"])
