"""Semantic segmentation and change detection: backbone and head, masks of whole images, and the file of both.

Shape legend: B images, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from vitp.backbone.dense import DenseBackbone
from vitp.backbone.features import FeaturesConfig, PlainFeatures, merged
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone
from vitp.config import Config
from vitp.datasets.dense import DenseData
from vitp.errors import CheckpointError
from vitp.heads.head import AuxiliaryConfig, FCNConfig, HeadConfig
from vitp.heads.siamese import Fusion, fuse, fused_channels
from vitp.inference.grid import flush_starts
from vitp.inference.views import FLIPS, Flips, Scales, over_views
from vitp.metrics.segmentation import SegmentationMetric
from vitp.tasks.dense import read_described, save_described
from vitp.train.checkpoint import load_model, load_tensors

_WINDOWS_AT_ONCE = 8


class InferenceConfig(Config):
    """How a whole image is predicted; kept with the weights."""

    scale: float = Field(default=1.0, gt=0)  # zoom before the model; set it to the middle of the training crops' zoom
    window: int | None = Field(default=None, ge=8)  # side of windows whose logits are averaged; None: all at once
    overlap: float = Field(default=1 / 3, ge=0, lt=1)  # share of a window (mmsegmentation: windows of 512, 341 apart)
    scales: Scales = (1.0,)  # further zooms, their probabilities averaged
    flips: Flips = "none"  # likewise mirrored; mmsegmentation: horizontal

    @property
    def step(self) -> int | None:
        """Pixels from a window to the next; None: whole images."""
        return None if self.window is None else max(1, int(self.window * (1 - self.overlap) + 1e-6))

    @property
    def views(self) -> int:
        """How often an image is predicted."""
        return len(self.scales) * len(FLIPS[self.flips])


class SegmenterParts(Config):
    """What stands on the ViT; kept with the weights."""

    features: FeaturesConfig = PlainFeatures()
    head: HeadConfig = FCNConfig()
    auxiliary: AuxiliaryConfig | None = None
    fusion: Fusion | None = None  # of two dates (change detection); None: one image


class Segmenter(nn.Module):
    """Images [B, 3, H, W] (uint8, or float 0-1) to logits [B, K, H, W], any H and W."""

    dates = 1  # pictures of 3 channels in an input

    def __init__(
        self, backbone: DenseBackbone, head: nn.Module, classes: Sequence[str], auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.auxiliary, self.classes = backbone, head, auxiliary, tuple(classes)
        self.parts = SegmenterParts()

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the head sees: four maps [B, C, ceil(H / s), ceil(W / s)], s = 4, 8, 16, 32."""
        return cast(list[Tensor], self.backbone(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits in the pictures' own resolution."""
        logits: Tensor = self.head(self.maps(images), (images.shape[-2], images.shape[-1]))
        return logits

    def training_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, K, H, W] of the head, and those of the auxiliary head where there is one."""
        maps, size = self.maps(images), (images.shape[-2], images.shape[-1])
        return self.head(maps, size), None if self.auxiliary is None else self.auxiliary(maps, size)


class ChangeDetector(Segmenter):
    """Pairs [B, 6, H, W] (the first date's channels, then the second's) to logits [B, K, H, W]: one backbone, fused maps."""

    dates = 2

    def __init__(
        self,
        backbone: DenseBackbone,
        head: nn.Module,
        classes: Sequence[str],
        auxiliary: nn.Module | None = None,
        *,
        fusion: Fusion,
    ) -> None:
        super().__init__(backbone, head, classes, auxiliary)
        self.fusion: Fusion = fusion

    def maps(self, images: Tensor) -> list[Tensor]:
        """Four fused maps; both dates go through the backbone in one batch."""
        both = super().maps(torch.cat([images[:, :3], images[:, 3:]]))
        halves = [x.chunk(2) for x in both]
        return fuse([before for before, _ in halves], [after for _, after in halves], self.fusion)


def build_segmenter(
    backbone: ViTBackbone,
    classes: Sequence[str],
    seed: int,
    parts: SegmenterParts = SegmenterParts(),
    say: Callable[[str], None] = lambda _: None,
) -> Segmenter:
    """A segmenter (with `parts.fusion` a `ChangeDetector`) whose fresh weights are drawn from `seed`.

    Raises:
        ConfigError: the features do not fit the ViT.
        MissingExtraError: LoRA without peft.
    """
    dense = parts.features.build(backbone, seed + 2, say)
    channels = [dense.channels] * len(dense.strides)
    if parts.fusion is not None:
        channels = fused_channels(channels, parts.fusion)
    head = parts.head.build(channels, len(classes), seed)
    auxiliary = None if parts.auxiliary is None else parts.auxiliary.build(channels, len(classes), seed + 1)
    if parts.fusion is None:
        model = Segmenter(dense, head, classes, auxiliary)
    else:
        model = ChangeDetector(dense, head, classes, auxiliary, fusion=parts.fusion)
    model.parts = parts
    return model


def merge_features(model: Segmenter) -> None:
    """Make the ViT a plain one again where it learned by low-rank updates."""
    features = merged(model.parts.features, model.backbone.plain)
    model.parts = model.parts.model_copy(update={"features": features})


# ----------------------------------------------------------------------------------------------------------- prediction


@torch.no_grad()
def predict_logits(model: Segmenter, image: Tensor, inference: InferenceConfig = InferenceConfig()) -> Tensor:
    """Logits [K, H, W] of one image uint8 [3, H, W] (any device); `model` is in eval mode.

    Windows lie on each zoomed and mirrored view and their logits are averaged there; the views' probabilities are averaged
    (`over_views`), as in the released tests.
    """
    image = image.to(next(model.parameters()).device)

    def predict(view: Tensor) -> Tensor:
        logits: Tensor = model(view) if inference.window is None else _windowed_logits(model, view[0], inference)[None]
        return logits

    return over_views(predict, image[None], zoom=inference.scale, scales=inference.scales, flips=inference.flips)[0]


def _windowed_logits(model: Segmenter, image: Tensor, inference: InferenceConfig) -> Tensor:
    """Logits [K, H, W] of an image [C, H, W], the mean of all windows that hold a pixel; an image may be smaller than one."""
    window, step = inference.window, inference.step
    assert window is not None
    assert step is not None
    height, width = image.shape[-2:]
    rows, columns = flush_starts(height, window, step), flush_starts(width, window, step)
    corners = [(y, x) for y in rows for x in columns]
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
    model: Segmenter,
    data: DenseData,
    indices: Sequence[int],
    inference: InferenceConfig = InferenceConfig(),
) -> SegmentationMetric:
    """Predict the given images at their own size and count against their masks; see `SegmentationMetric.scores`."""
    metric = SegmentationMetric(data.classes, background=data.config.background)
    for index in indices:
        *dates, mask = data.read(index)
        image = torch.cat(dates)  # of pairs: the six channels a change detector takes
        metric.update(next(predict_masks(model, [image], inference)), mask)
    return metric


# -------------------------------------------------------------------------------------------------------------- on disk


def save_segmenter(path: Path, model: Segmenter, inference: InferenceConfig) -> None:
    """Write weights, classes and backbone description to one .safetensors file, atomically."""
    about = {
        "segmenter": model.backbone.plain.config.model_dump(mode="json"),
        "parts": model.parts.model_dump(mode="json"),
        "classes": list(model.classes),
        "inference": inference.model_dump(mode="json"),
    }
    save_described(path, model, about)


def load_dense(path: Path | str) -> tuple[Segmenter, InferenceConfig]:
    """A segmenter or a change detector (which has `dates` 2) in eval mode, and how it predicts.

    Args:
        path: a run's folder, or the model.safetensors in it.

    Raises:
        CheckpointError: missing, damaged, or neither of them.
    """
    return _load(path)[:2]


def load_segmenter(path: Path | str) -> tuple[Segmenter, InferenceConfig]:
    """A segmenter in eval mode and how it predicts.

    Args:
        path: a run's folder, or the model.safetensors in it.

    Raises:
        CheckpointError: missing, damaged, or no segmenter.
    """
    model, inference, file = _load(path)
    if isinstance(model, ChangeDetector):
        raise CheckpointError(f"{file}: holds a change detector, which takes pairs of images; open it with load_change")
    return model, inference


def load_change(path: Path | str) -> tuple[ChangeDetector, InferenceConfig]:
    """A change detector in eval mode and how it predicts; its input is pairs [B, 6, H, W].

    Args:
        path: a run's folder, or the model.safetensors in it.

    Raises:
        CheckpointError: missing, damaged, or no change detector.
    """
    model, inference, file = _load(path)
    if not isinstance(model, ChangeDetector):
        raise CheckpointError(f"{file}: holds a segmenter, which takes single images; open it with load_segmenter")
    return model, inference


def _load(path: Path | str) -> tuple[Segmenter, InferenceConfig, Path]:
    found = read_described(path, "segmenter", "holds no segmenter; give the folder of a `vitp finetune` run")
    config, inference = found.part("segmenter", BackboneConfig), found.part("inference", InferenceConfig)
    parts = found.part("parts", SegmenterParts) if "parts" in found.about else SegmenterParts()
    model = build_segmenter(random_backbone(config, seed=0), found.classes, 0, parts)
    load_model(model, load_tensors(found.file), found.file)
    return model.eval(), inference, found.file
