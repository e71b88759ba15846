"""Fine-tuning a detector: its recipe, and `vitp finetune` with `task: detect`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vitp.backbone.vit import ViTBackbone, choose_attention
from vitp.commands.finetune_recipe import (
    METRICS,
    PICTURES,
    REPORT,
    DownstreamConfig,
    Start,
    begin,
    counted,
    fit,
    start_backbone,
    validate_with,
)
from vitp.commands.scoring_objects import choose_threshold, score_and_show
from vitp.commands.validating import Validated, ValidationConfig, validation_images
from vitp.commands.validating_tasks import ObjectScorer
from vitp.datasets.detection import DetectionData, DetectionDataConfig, open_detection
from vitp.datasets.object_transforms import ObjectAugmentConfig
from vitp.errors import ConfigError
from vitp.files import write_json
from vitp.heads.detector_config import CascadeRCNNConfig, DetectorConfig
from vitp.heads.necks import NeckConfig, SimpleFPNConfig
from vitp.metrics.detection import DetectionMetric, DetectionScores
from vitp.tasks.detect import (
    BoxForm,
    DetectorParts,
    ObjectInference,
    Shown,
    build_detector,
    merge_features,
    save_detector,
)
from vitp.tasks.detect_task import DetectData, DetectTask
from vitp.train.distributed import Ranks
from vitp.train.loop import TrainResult
from vitp.train.loop_config import choose_device, uses_bf16
from vitp.train.optim import ScheduleConfig, StepSchedule


class DetectConfig(DownstreamConfig):
    """A recipe of detection. Where a default differs from segmentation's, it is that of the released detection configs."""

    task: Literal["detect"]
    boxes: BoxForm = "upright"  # which form is learned; rotated boxes come from quads
    detector: DetectorConfig = CascadeRCNNConfig()  # released: DIOR, SARDet-100K
    neck: NeckConfig = SimpleFPNConfig()  # released
    data: DetectionDataConfig
    augment: ObjectAugmentConfig = ObjectAugmentConfig()
    inference: ObjectInference = ObjectInference()
    batch_size: int = Field(default=8, ge=1)  # released: one image on each of 8 GPUs
    warmup: float = Field(default=500, ge=0)  # released: steps
    warmup_from: float | None = Field(default=1 / 3, ge=0, le=1)  # released
    schedule: ScheduleConfig = StepSchedule(under_warmup=True)  # released: x 0.1 at epochs 8 and 11 of 12
    clip_norm: float = Field(default=35.0, ge=0)  # released

    @model_validator(mode="after")
    def _boxes_of_the_detector(self) -> DetectConfig:
        rotated = self.detector.kind.startswith("oriented")
        if rotated != (self.boxes == "rotated"):
            kinds, other = "oriented_rcnn", "upright"
            if rotated:
                kinds, other = "faster_rcnn, cascade_rcnn or mask_rcnn", "rotated"
            raise ValueError(
                f"detector.kind: {self.detector.kind} does not find {self.boxes} boxes; say boxes: {other}, or take {kinds}"
            )
        if self.validation is not None:
            self.validation.check(self.task)
        return self


@dataclass(frozen=True)
class DetectResult:
    """What a finished fine-tuning run leaves behind."""

    out: Path
    model: Path  # read it with vitp.tasks.detect.load_detector
    train: TrainResult
    scores: DetectionScores  # on the test images
    threshold: float | None  # score from which finds are shown; None: no validation images chose one
    table: tuple[str, ...]  # of classes, for people
    validated: Validated[DetectionMetric] | None = None

    @property
    def report(self) -> Path:
        """Tables, curves, errors and pictures of the test images."""
        return self.out / REPORT

    def lines(self) -> list[str]:
        """For people."""
        return [*self.table]

    @property
    def numbers(self) -> dict[str, Any]:
        """JSON-ready results."""
        return {
            "out": str(self.out),
            "loss": self.train.loss,
            "seconds": self.train.seconds,
            "threshold": self.threshold,
            **self.scores.as_dict(),
            **({} if self.validated is None else {"validation": self.validated.as_dict()}),
        }


def finetune_detect(config: DetectConfig, start: Start = Start()) -> DetectResult:
    """One rank's part of `vitp.commands.finetune.finetune` with a detector."""
    out, ranks, say = config.folder, start.ranks, start.say
    start.check(config)
    data = ranks.together(lambda: _open(config))
    same = start.agreed(config, data)
    if not ranks.alone:
        ranks.agree({"labels": data.table.checksum}, "give all nodes the same label files")
    held = ranks.alike(lambda: validation_images(config.validation, data, config.data.root))
    report = ranks.lead(data.check)
    for line in report.lines():
        say(f"data: {line}")
    backbone = ranks.together(lambda: start_backbone(config.backbone, config.backbone_config, config.seed, say))
    task = ranks.together(lambda: build_detect_task(config, data, backbone, say, ranks))
    device = choose_device(config.device)
    bf16 = uses_bf16(config.precision, device)
    shown = Shown(augment=config.augment, inference=config.inference)

    def scorer(asked: ValidationConfig) -> ObjectScorer:
        return ObjectScorer(task.detector, data, shown, asked, bf16=bf16, ranks=ranks)

    validation = ranks.alike(lambda: validate_with(config, task, scorer, held, start))
    begin(config, task, start)
    patches = math.ceil(max(config.augment.sizes) / backbone.patch_size) ** 2
    choose_attention(backbone.vit, patches, device, bf16=bf16)
    trained, validated = fit(config, task, start, same, validation)
    merge_features(task.detector)
    known = None if validated is None else known_finds(config, validated, data)
    told = counted(say, "threshold", "validation images")
    shown, origin = choose_threshold(
        task.detector, data, shown, bf16=bf16, progress=told, say=say, known=known, ranks=ranks
    )
    file = out / "model.safetensors"
    ranks.lead(lambda: save_detector(file, task.detector, shown))
    told = counted(say, "scores", "test images")
    scored = score_and_show(
        task.detector, data, data.test, shown, origin, bf16=bf16, pictures=PICTURES, progress=told, ranks=ranks
    )

    def write() -> DetectResult:
        scored.write(out / REPORT, f"{config.name}, test images", [] if validated is None else validated.sections())
        table = tuple(scored.class_lines())
        sent = None if validated is None else replace(validated, counted=None)  # every find: too much for all ranks
        result = DetectResult(out, file, trained, scored.scores, shown.inference.threshold, table, sent)
        write_json(out / METRICS, result.numbers)
        return result

    return ranks.lead(write)


def _open(config: DetectConfig) -> DetectionData:
    """The data set, whose labels and classes are what the recipe wants."""
    data = open_detection(config.data)
    check_labels(config, data)
    config.augment.check_classes(data.classes)
    return data


def known_finds(
    config: DetectConfig, validated: Validated[DetectionMetric], data: DetectionData
) -> DetectionMetric | None:
    """What the kept weights find in all validation images, where the validation looked at them as the test images are."""
    assert config.validation is not None
    once = config.validation.views or config.inference.views == 1
    merged = config.features.train == "lora"  # counted before the updates were merged, which rounds
    return validated.counted if once and not merged and validated.images == len(data.val) else None


def check_labels(config: DetectConfig, data: DetectionData) -> None:
    """See that the data's labels are what the recipe wants learned.

    Raises:
        ConfigError: rotated boxes without quads, or masks without outlines.
    """
    if config.boxes == "rotated" and not data.rotated:
        raise ConfigError(
            f"boxes: rotated boxes come from quads, and {config.data.root} has upright boxes alone; say boxes: upright "
            "(with detector.kind: cascade_rcnn), or take data with quads"
        )
    if config.detector.kind == "mask_rcnn" and not data.outlined:
        raise ConfigError(
            f"detector.kind: mask_rcnn learns from outlines, and {config.data.root} has boxes alone; take faster_rcnn or "
            "cascade_rcnn, or data with outlines"
        )


def build_detect_task(
    config: DetectConfig,
    data: DetectionData,
    backbone: ViTBackbone,
    say: Callable[[str], None] = lambda _: None,
    ranks: Ranks = Ranks(),
) -> DetectTask:
    """Model, data and learning rates of a recipe, for one of the `ranks`; `say` receives what is worth reading about them.

    Raises:
        ConfigError: the features do not fit the ViT, or the batch not the ranks.
    """
    steps = DetectData(
        data,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch or config.batch_size,
        augmentation=config.augment,
        seed=config.seed,
        fill=backbone.config.mean,
        ranks=ranks,
    )
    parts = DetectorParts(features=config.features, neck=config.neck, detector=config.detector)
    return DetectTask(
        build_detector(backbone, data.classes, config.seed, parts, say),
        steps,
        backbone_lr=0.0 if config.freeze_backbone else config.backbone_lr,
        head_lr=config.head_lr,
        layer_decay=config.layer_decay,
    )
