"""`vitp finetune`: a backbone and a labelled data set in, a trained model and its test scores out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from vitp.backbone.features import FeaturesConfig, PlainFeatures
from vitp.backbone.vit import BackboneConfig, ViTBackbone, choose_attention, load_backbone, random_backbone
from vitp.config import save
from vitp.datasets.dense import DenseData, DenseDataConfig, open_dataset
from vitp.datasets.pairs import PairFolder, PairFolderConfig
from vitp.datasets.report import MaskReport
from vitp.datasets.transforms import AugmentConfig
from vitp.files import write_json
from vitp.heads.head import AuxiliaryConfig, FCNConfig, HeadConfig
from vitp.heads.losses import LossConfig, LossTerms
from vitp.heads.siamese import Fusion
from vitp.metrics.segmentation import SegmentationScores
from vitp.recipes import load_recipe
from vitp.tasks.change import ChangeData, ChangeTask
from vitp.tasks.segment import (
    InferenceConfig,
    SegmenterParts,
    build_segmenter,
    merge_features,
    save_segmenter,
    score_masks,
)
from vitp.tasks.segment_task import SegmentData, SegmentTask, StepData
from vitp.train.distributed import refuse_ranks
from vitp.train.loop import TrainResult, check_output, open_output, recipe_fingerprint, train
from vitp.train.loop_config import LoopConfig, choose_device, uses_bf16
from vitp.train.task import Progress

_ANY_LENGTH = 1 << 30


class FinetuneConfig(LoopConfig):
    """A fine-tuning recipe."""

    name: str
    out: Path | None = None  # out/<name>
    task: Literal["segment", "change"] = "segment"
    backbone: Path | None = None  # a file of `vitp export` or a timm folder; None: random weights
    backbone_config: BackboneConfig | None = None  # which ViT, where its weights are random
    features: FeaturesConfig = PlainFeatures()  # the maps a head gets
    head: HeadConfig = FCNConfig()  # light; the released configs: upernet
    auxiliary: AuxiliaryConfig | None = None  # a second head while training (released configs: none)
    loss: LossConfig = LossTerms()
    fusion: Fusion | None = None  # of two dates' maps (change detection); None: concat, as in the released configs
    data: DenseDataConfig  # pairs where the task is change
    augment: AugmentConfig = AugmentConfig()
    batch_size: int = Field(default=16, ge=1)  # mmsegmentation's ADE20K schedules
    micro_batch: int | None = Field(default=None, ge=1)  # images of one forward pass; None: the whole batch
    weight_decay: float = Field(default=0.05, ge=0)  # released segmentation configs
    backbone_lr: float = Field(default=2e-5, ge=0)  # released change-detection configs; segmentation has 1e-5 to 1.5e-5
    head_lr: float = Field(default=2e-5, gt=0)  # released configs: one rate for all, before the decay over layers
    layer_decay: float = Field(default=0.9, gt=0, le=1)  # released configs
    freeze_backbone: bool = False  # the ViT stays as it is; features and head learn
    inference: InferenceConfig = InferenceConfig()

    @model_validator(mode="before")
    @classmethod
    def _pairs_of_change(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("task") == "change" and isinstance(fields.get("data"), dict):
            return {**fields, "data": {"kind": "pairs", **fields["data"]}}
        return fields

    @model_validator(mode="after")
    def _data_of_the_task(self) -> FinetuneConfig:
        pairs = isinstance(self.data, PairFolderConfig)
        if pairs != (self.task == "change"):
            raise ValueError(
                f"task: {self.task} does not go with data.kind: {self.data.kind}; pairs are for task: change"
            )
        if self.fusion is not None and not pairs:
            raise ValueError("fusion is given, but only task: change has two dates to fuse")
        return self

    @model_validator(mode="after")
    def _one_backbone(self) -> FinetuneConfig:
        if self.backbone is None and self.backbone_config is None:
            raise ValueError("backbone is missing: give a weights file, or backbone_config for random weights")
        if self.backbone is not None and self.backbone_config is not None:
            raise ValueError("backbone and backbone_config are both given; the weights file says which ViT it holds")
        return self

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out if self.out is not None else Path("out") / self.name


@dataclass(frozen=True)
class FinetuneResult:
    """What a finished fine-tuning run leaves behind."""

    out: Path
    model: Path  # read it with vitp.tasks.segment.load_segmenter
    train: TrainResult
    scores: SegmentationScores  # on the test images
    masks: MaskReport
    change: bool = False  # whether the task was change detection

    @property
    def changed(self) -> float | None:
        """F1 of the last class, "changed", of change detection (what its papers report); None: no such class was seen."""
        score = self.scores.f1[-1] if self.change else math.nan
        return None if math.isnan(score) else score

    @property
    def numbers(self) -> dict[str, Any]:
        """JSON-ready results."""
        return {
            "out": str(self.out),
            "loss": self.train.loss,
            "seconds": self.train.seconds,
            **self.scores.as_dict(),
            **({} if self.changed is None else {"f1_changed": self.changed}),
        }


def _fingerprint(config: FinetuneConfig, data: DenseData) -> dict[str, Any]:
    """What must be equal for a resumed run to be the same run, by dotted path, with the names of the images."""
    flat = recipe_fingerprint(config, free={"inference"})
    flat.pop("data.root")
    names = "\n".join(item.image.relative_to(data.config.root).as_posix() for item in data.items)
    flat["data.images"] = hashlib.sha256(names.encode()).hexdigest()
    return flat


def start_backbone(
    path: Path | None, config: BackboneConfig | None, seed: int, say: Callable[[str], None]
) -> ViTBackbone:
    """The backbone a recipe asks for; that its weights are random is said aloud.

    Raises:
        CheckpointError: the weights cannot be used.
    """
    if path is not None:
        backbone = load_backbone(path)
        size = sum(p.numel() for p in backbone.parameters())
        say(f"backbone: {backbone.config.architecture}, {size / 1e6:.2f} M parameters, from {path}")
        return backbone
    assert config is not None
    say(f"backbone: {config.architecture} with RANDOM weights (seed {seed}); backbone=FILE starts from trained ones")
    return random_backbone(config, seed)


def _say_data(data: DenseData, report: MaskReport, crop: int, say: Callable[[str], None]) -> None:
    say(f"data: {len(data.train)} training and {len(data.test)} test images, classes: {', '.join(data.classes)}")
    unused = len(data) - len({*data.train, *data.val, *data.test})
    if unused:
        say(f"data: {unused} images are in no part (data.train, empty_slices, or lists that leave them out)")
    if absent := report.missing("train"):
        say(f"data: no training pixel of {', '.join(absent)}; such a class cannot be learned")
    if absent := report.missing("test"):
        say(f"data: no test pixel of {', '.join(absent)}")
    for remark in report.remarks(crop):
        say(f"data: {remark}")


def finetune(
    recipe: FinetuneConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> FinetuneResult:
    """Fine-tune a backbone on a downstream task and score it on the test images.

    Args:
        recipe: a FinetuneConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        resume: continue the run in the output folder.
        overwrite: start anew in a folder that holds another run.
        progress: told after every step.
        say: receives lines worth reading (which weights, how the data is split, what is frozen).

    Returns:
        the run's folder, the saved model and the scores (also in metrics.json).

    Raises:
        VitpError: any mistake the user can mend; every mask is read once before training starts.
    """
    refuse_ranks("finetune")
    config = load_recipe(FinetuneConfig, recipe, overrides)
    out = config.folder
    check_output(out, resume=resume, overwrite=overwrite)
    data = open_dataset(config.data)
    report = data.check()
    _say_data(data, report, config.augment.crop, say)
    backbone = start_backbone(config.backbone, config.backbone_config, config.seed, say)
    task = build_task(config, data, backbone, say)
    seen = config.micro_batch or config.batch_size
    if seen < config.batch_size and any(isinstance(m, nn.BatchNorm2d) for m in task.model.modules()):
        say(
            f"norm: batch norm sees {seen} images at a time, not the batch of {config.batch_size}; norm: group in the head does "
            "not depend on that"
        )
    for group in task.parameter_groups():
        say(f"{group.name}: {group.size / 1e6:.2f} M parameters, {f'lr {group.lr:.3g}' if group.lr else 'frozen'}")
    if not (resume and (out / "recipe.yaml").is_file()):  # a refused resume leaves the old run's files as they are
        open_output(out, overwrite=overwrite)
        save(config, out / "recipe.yaml")
    device = choose_device(config.device)
    bf16 = uses_bf16(config.precision, device)
    choose_attention(backbone.vit, math.ceil(config.augment.crop / backbone.patch_size) ** 2, device, bf16=bf16)
    trained = train(task, config, out, resume=resume, progress=progress, fingerprint=_fingerprint(config, data))
    choose_attention(backbone.vit, _ANY_LENGTH, device, bf16=bf16)  # test images may be far larger than the crops
    merge_features(task.segmenter)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        scores = score_masks(task.segmenter, data, data.test, config.inference).scores()
    if scores.absent:
        say(f"scores: {', '.join(scores.absent)} occur in neither test labels nor predictions; left out of the means")
    file = out / "model.safetensors"
    save_segmenter(file, task.segmenter, config.inference)
    result = FinetuneResult(out, file, trained, scores, report, change=config.task == "change")
    write_json(out / "metrics.json", result.numbers)
    return result


def build_task(
    config: FinetuneConfig, data: DenseData, backbone: ViTBackbone, say: Callable[[str], None] = lambda _: None
) -> SegmentTask:
    """Model, data and learning rates of a recipe; `say` receives what is worth reading about them.

    Raises:
        ConfigError: the sizes of micro-batches, class weights or features do not fit.
    """
    pairs = isinstance(data, PairFolder)
    layout: type[StepData[Any]] = ChangeData if pairs else SegmentData
    steps = layout(
        data,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch or config.batch_size,
        augmentation=config.augment,
        seed=config.seed,
        average=config.loss.average,
    )
    fusion: Fusion | None = (config.fusion or "concat") if pairs else None
    parts = SegmenterParts(features=config.features, head=config.head, auxiliary=config.auxiliary, fusion=fusion)
    return (ChangeTask if pairs else SegmentTask)(
        build_segmenter(backbone, data.classes, config.seed, parts, say),
        steps,
        backbone_lr=0.0 if config.freeze_backbone else config.backbone_lr,
        head_lr=config.head_lr,
        layer_decay=config.layer_decay,
        loss=config.loss,
    )
