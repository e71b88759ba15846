"""How segmenters, change detectors and detectors are scored while they are fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from vitp.backbone.vit import choose_attention
from vitp.commands.scoring_masks import predictions
from vitp.commands.scoring_objects import shared_scores
from vitp.commands.validating import ValidationConfig
from vitp.datasets.dense import DenseData
from vitp.datasets.detection import DetectionData
from vitp.datasets.volumes import VolumeFolder
from vitp.errors import ConfigError
from vitp.metrics.detection import DetectionMetric
from vitp.metrics.segmentation import SegmentationMetric
from vitp.tasks.detect import Detector, Looked, ObjectInference, Shown
from vitp.tasks.segment import InferenceConfig, Segmenter
from vitp.train.distributed import Ranks

_ANY_LENGTH = 1 << 30

I = TypeVar("I", InferenceConfig, ObjectInference)  # noqa: E741


class MaskScorer:
    """Of a segmenter or a change detector: one confusion matrix over all images, as on the test images."""

    def __init__(
        self,
        model: Segmenter,
        data: DenseData,
        inference: InferenceConfig,
        config: ValidationConfig,
        *,
        bf16: bool,
        ranks: Ranks = Ranks(),
    ) -> None:
        """`inference` is that of the test images, `bf16` the precision; the `ranks` share the images."""
        self._model, self._data, self._bf16, self._ranks = model, data, bf16, ranks
        self._inference = _viewed(inference, config)
        own = "f1_changed" if model.dates > 1 else "mdice_foreground" if isinstance(data, VolumeFolder) else "miou"
        self.metric: str = config.metric or own

    def count(self, images: Sequence[int], progress: Callable[[int, int], None]) -> SegmentationMetric:
        """Predict images and count pixels: on rank 0 of all of them.

        Raises:
            DataError: a file cannot be used.
        """
        metric = SegmentationMetric(self._data.classes, background=self._data.config.background)
        device = next(self._model.parameters()).device
        vit = self._model.backbone.plain.vit
        own = [images[i] for i in self._ranks.part(len(images))]

        def look() -> None:
            for done, seen in enumerate(predictions(self._model, self._data, own, self._inference), 1):
                metric.update(seen.predicted, seen.label)
                progress(done * len(images) // len(own), len(images))

        with _of_any_length(vit, device, bf16=self._bf16), torch.autocast(device.type, torch.bfloat16, self._bf16):
            self._ranks.together(look)
        for other in self._ranks.collect(metric)[1:]:
            metric.merge(other)
        return metric

    def numbers(self, counted: SegmentationMetric) -> dict[str, float]:
        """The means, and F1 of changes."""
        scores = counted.scores()
        names = ("miou", "mdice", "miou_foreground", "mdice_foreground", "accuracy")
        found: dict[str, float] = {name: getattr(scores, name) for name in names}
        return {**({"f1_changed": scores.f1[-1]} if self._model.dates > 1 else {}), **found}


class ObjectScorer:
    """Of a detector: every find counts, whatever its score, as on the test images."""

    def __init__(
        self,
        model: Detector,
        data: DetectionData,
        shown: Shown,
        config: ValidationConfig,
        *,
        bf16: bool,
        ranks: Ranks = Ranks(),
    ) -> None:
        """A scorer; `shown` is how test images are shown; the `ranks` share the images.

        Raises:
            ConfigError: masks are to be scored, and there are none.
        """
        self._model, self._data, self._bf16, self._ranks = model, data, bf16, ranks
        self._shown = shown.model_copy(update={"inference": _viewed(shown.inference, config)})
        self.metric: str = config.metric or ("AP" if model.form == "upright" else "mAP_voc07")
        self._masks = self.metric.startswith("mask_")
        if self._masks and not (model.masks and data.outlined):
            raise ConfigError(
                f"validation.metric: {self.metric} is of masks; take detector.kind: mask_rcnn and data.outlines: true, or "
                "another metric"
            )

    def count(self, images: Sequence[int], progress: Callable[[int, int], None]) -> DetectionMetric:
        """Find the objects of images and compare them with the labels: on rank 0 of all of them.

        Raises:
            DataError: a file cannot be used.
        """
        done = 0

        def count(_: Looked) -> None:
            nonlocal done
            done += 1
            progress(done * len(images) // len(self._ranks.part(len(images))), len(images))

        return shared_scores(
            self._model, self._data, images, self._shown, self._ranks, bf16=self._bf16, masks=self._masks, watch=count
        )

    def numbers(self, counted: DetectionMetric) -> dict[str, float]:
        """The means over the classes."""
        mean = counted.scores().mean.as_dict()
        return {name: value for name, value in mean.items() if isinstance(value, float)}


def _viewed(inference: I, config: ValidationConfig) -> I:
    """The test images' inference, or one look at each image."""
    return inference if config.views else inference.model_copy(update={"scales": (1.0,), "flips": "none"})


@contextmanager
def _of_any_length(vit: nn.Module, device: torch.device, *, bf16: bool) -> Iterator[None]:
    """For the time of a block attention that suits images of any size, and then what training had chosen."""
    chosen = [(module, module.fused_attn) for module in vit.modules() if hasattr(module, "fused_attn")]
    choose_attention(vit, _ANY_LENGTH, device, bf16=bf16)
    try:
        yield
    finally:
        for module, fused in chosen:
            setattr(module, "fused_attn", fused)  # noqa: B010 - Module declares tensors only
