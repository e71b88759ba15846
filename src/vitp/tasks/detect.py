"""Detection: backbone, neck and head, the objects of whole images, and the file of it all.

Shape legend: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from vitp.backbone.dense import DenseBackbone
from vitp.backbone.features import FeaturesConfig, PlainFeatures, merged
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone
from vitp.boxes.objects import Detections, Objects
from vitp.config import Config
from vitp.datasets.layout import Item
from vitp.datasets.object_transforms import ObjectAugmentConfig
from vitp.heads.detector_config import CascadeRCNNConfig, DetectorConfig
from vitp.heads.necks import NeckConfig, SimpleFPNConfig
from vitp.heads.truth import Key, Size, truth_of
from vitp.heads.two_stage import TwoStage
from vitp.inference.engine import read_ahead
from vitp.inference.finder import Finder
from vitp.inference.views import FLIPS, Flips, Scales
from vitp.metrics.detection import DetectionMetric, detection_scores
from vitp.tasks.dense import read_described, save_described
from vitp.train.checkpoint import load_model, load_tensors

BoxForm = Literal["upright", "rotated"]
MERGE: dict[BoxForm, float] = {"upright": 0.5, "rotated": 0.1}  # IoU of one object's finds; the released test NMS
UNCHOSEN = 0.3  # score from which finds are shown where no validation images chose one (ours)


class ObjectInference(Config):
    """How a detector looks at images; kept with the weights. Scoring does so, and `vitp predict` where it is not told else."""

    # Side in pixels of the image of windows that it is looked at in, as cut, none resized; None: images whole, as `augment`
    # sizes them.
    window: int | None = Field(default=None, ge=8)
    scales: Scales = (1.0,)  # zooms of `augment.size` whose finds are merged
    flips: Flips = "none"  # likewise (released: horizontal for SSDD)
    # score from which finds are shown by `vitp predict`; None: the one of the highest F1 on the validation images
    threshold: float | None = Field(default=None, ge=0, le=1)

    @property
    def views(self) -> int:
        """How often an image is looked at."""
        return len(self.scales) * len(FLIPS[self.flips])

    @property
    def shown_from(self) -> float:
        """The score from which finds are shown, chosen or not."""
        return UNCHOSEN if self.threshold is None else self.threshold


class Shown(Config):
    """How a detector is shown images; kept with the weights."""

    augment: ObjectAugmentConfig = ObjectAugmentConfig()
    inference: ObjectInference = ObjectInference()


class DetectorParts(Config):
    """What stands on the ViT; kept with the weights."""

    features: FeaturesConfig = PlainFeatures()
    neck: NeckConfig = SimpleFPNConfig()
    detector: DetectorConfig = CascadeRCNNConfig()


class Detector(nn.Module):
    """Images to losses while training, to detections after."""

    def __init__(self, backbone: DenseBackbone, neck: nn.Module, head: TwoStage, classes: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.classes = backbone, neck, head, tuple(classes)
        self.parts = DetectorParts()

    @property
    def form(self) -> BoxForm:
        """Of the boxes it finds."""
        return "rotated" if self.head.rotated else "upright"

    @property
    def masks(self) -> bool:
        """Whether it finds masks, too."""
        return self.head.masks

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the head sees: maps [B, C, ceil(H / s), ceil(W / s)], s = 4, 8, 16, 32, 64."""
        levels: list[Tensor] = self.neck(self.backbone(images))
        return levels

    def training_losses(
        self, images: Tensor, targets: Sequence[Objects], sizes: Sequence[Size], keys: Sequence[Key]
    ) -> dict[str, Tensor]:
        """Every loss by name: the sum over the images of what a batch of that image alone would have.

        Within an image a loss is a mean, over its sampled anchors or proposals, or over the masks of its positive ones. So a
        step is the sum over its micro-batches however they are cut, and divided by its number of images it is what the
        released code computes with one image a GPU.

        Args:
            images: [B, 3, H, W], uint8, padded at the right and the bottom.
            targets: the objects of each image, in pixels of the padded one.
            sizes: (h, w) of what each image shows.
            keys: (seed, step, slot) of each image, on which its sampled boxes depend.
        """
        truth = [truth_of(objects, rotated=self.head.rotated, device=images.device) for objects in targets]
        return self.head.losses(self.maps(images), truth, sizes, keys)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[Size] | None = None) -> list[Detections]:
        """What is found in each image, by falling score, in its pixels; call in eval mode.

        Args:
            images: [B, 3, H, W], uint8 or float 0-1.
            sizes: (h, w) of what each image shows, the rest being padding; None: all of it.
        """
        whole = (int(images.shape[-2]), int(images.shape[-1]))
        return self.head.detect(self.maps(images), sizes if sizes is not None else [whole] * len(images))


def build_detector(
    backbone: ViTBackbone,
    classes: Sequence[str],
    seed: int,
    parts: DetectorParts = DetectorParts(),
    say: Callable[[str], None] = lambda _: None,
) -> Detector:
    """A detector whose fresh weights are drawn from `seed`.

    Raises:
        ConfigError: the features do not fit the ViT.
        MissingExtraError: LoRA without peft.
    """
    dense = parts.features.build(backbone, seed + 2, say)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        neck = parts.neck.build([dense.channels] * len(dense.strides))
        strides = [*dense.strides]
        while len(strides) < parts.neck.levels:
            strides.append(strides[-1] * 2)
        head = parts.detector.build(cast(int, neck.out_channels), len(classes), strides)
    model = Detector(dense, neck, head, classes)
    model.parts = parts
    return model


def merge_features(model: Detector) -> None:
    """Make the ViT a plain one again where it learned by low-rank updates."""
    features = merged(model.parts.features, model.backbone.plain)
    model.parts = model.parts.model_copy(update={"features": features})


def finder_of(model: Detector, shown: Shown, *, bf16: bool = False) -> Finder:
    """The model as `vitp finetune` scores it: every find counts, whatever its score."""
    seen = shown.augment.crop or shown.inference.window
    return Finder(
        model,
        model.classes,
        next(model.parameters()).device,
        model.form == "rotated",
        shown.augment,
        window=shown.inference.window or seen,
        zoom=1.0 if seen is None else max(shown.augment.sizes) / seen,
        fill=model.backbone.plain.config.mean,
        bf16=bf16,
        scales=shown.inference.scales,
        flips=shown.inference.flips,
        merge=MERGE[model.form],
    )


class Labelled(Protocol):
    """A data set as scoring sees it."""

    @property
    def items(self) -> Sequence[Item]:
        """Every image's file."""

    def read(self, index: int) -> tuple[Tensor, Objects]:
        """An image uint8 [3, H, W] and its objects."""


@dataclass(frozen=True, eq=False)
class Looked:
    """An image that was looked at."""

    index: int  # into the data set's items
    image: Tensor  # uint8 [3, H, W]
    objects: Objects  # labelled
    found: Detections  # whatever their score


def score_objects(
    model: Detector,
    data: Labelled,
    indices: Sequence[int],
    shown: Shown,
    *,
    bf16: bool = False,
    masks: bool = True,
    watch: Callable[[Looked], None] = lambda _: None,
) -> DetectionMetric:
    """Find the objects of the given images and compare them with the labels; see `DetectionMetric.scores`.

    Args:
        model: put into eval mode.
        data: the images.
        indices: which of them.
        shown: how they are shown.
        bf16: the precision.
        masks: score masks, too, where the model finds any; the labels then need outlines.
        watch: told of every image.

    Raises:
        DataError: an image or its labels cannot be used.
    """
    metric = detection_scores(model.classes, model.form, masks and model.masks)
    finder = finder_of(model.eval(), shown, bf16=bf16)
    for index, (image, objects) in read_ahead(data.read, indices):
        found = finder.find_in(image)
        metric.update(str(data.items[index].image), found, objects, (image.shape[-2], image.shape[-1]))
        watch(Looked(index, image, objects, found))
    return metric


# -------------------------------------------------------------------------------------------------------------- on disk


def save_detector(path: Path, model: Detector, shown: Shown) -> None:
    """Write weights, classes and description to one .safetensors file, atomically."""
    about = {
        "detector": model.backbone.plain.config.model_dump(mode="json"),
        "parts": model.parts.model_dump(mode="json"),
        "classes": list(model.classes),
        "shown": shown.model_dump(mode="json"),
    }
    save_described(path, model, about)


def load_detector(path: Path | str) -> tuple[Detector, Shown]:
    """A detector in eval mode, and how it is shown images.

    Args:
        path: a run's folder, or the model.safetensors in it.

    Raises:
        CheckpointError: missing, damaged, or no detector.
    """
    found = read_described(
        path, "detector", "holds no detector; give the folder of a `vitp finetune` run with task: detect"
    )
    config, parts, shown = (
        found.part("detector", BackboneConfig),
        found.part("parts", DetectorParts),
        found.part("shown", Shown),
    )
    model = build_detector(random_backbone(config, seed=0), found.classes, 0, parts)
    load_model(model, load_tensors(found.file), found.file)
    return model.eval(), shown
