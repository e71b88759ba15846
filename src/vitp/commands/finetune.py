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

from vitp.backbone.vit import BackboneConfig, ViTBackbone, choose_attention, load_backbone, random_backbone
from vitp.config import save
from vitp.datasets.masks import MaskFolder, MaskFolderConfig, MaskReport
from vitp.datasets.transforms import AugmentConfig
from vitp.files import write_json
from vitp.metrics.segmentation import SegmentationScores
from vitp.recipes import load_recipe
from vitp.tasks.segment import InferenceConfig, SegmentData, SegmentTask, build_segmenter, save_segmenter, score_masks
from vitp.train.distributed import refuse_ranks
from vitp.train.loop import (
    LoopConfig,
    TrainResult,
    check_output,
    choose_device,
    open_output,
    recipe_fingerprint,
    train,
    uses_bf16,
)
from vitp.train.task import Progress

_ANY_LENGTH = 1 << 30


class FinetuneConfig(LoopConfig):
    """A fine-tuning recipe."""

    name: str
    out: Path | None = None  # out/<name>
    task: Literal["segment"] = "segment"
    backbone: Path | None = None  # a file of `vitp export` or a timm folder; None: random weights
    backbone_config: BackboneConfig | None = None  # which ViT, where its weights are random
    data: MaskFolderConfig
    augment: AugmentConfig = AugmentConfig()
    batch_size: int = Field(default=16, ge=1)  # mmsegmentation's ADE20K schedules
    micro_batch: int | None = Field(default=None, ge=1)  # images of one forward pass; None: the whole batch
    weight_decay: float = Field(default=0.05, ge=0)  # released segmentation configs
    backbone_lr: float = Field(default=2e-5, ge=0)  # released change-detection configs; segmentation has 1e-5 to 1.5e-5
    head_lr: float = Field(default=2e-5, gt=0)  # released configs: one rate for all, before the decay over layers
    layer_decay: float = Field(default=0.9, gt=0, le=1)  # released configs
    freeze_backbone: bool = False  # only the head learns
    loss: Literal["cross_entropy", "cross_entropy+dice"] = "cross_entropy"  # released configs
    dice_weight: float = Field(default=1.0, gt=0)  # nnU-Net: the sum of both
    inference: InferenceConfig = InferenceConfig()

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

    @property
    def numbers(self) -> dict[str, Any]:
        """JSON-ready results."""
        return {
            "out": str(self.out),
            "loss": self.train.loss,
            "seconds": self.train.seconds,
            **self.scores.as_dict(),
        }


def _fingerprint(config: FinetuneConfig, data: MaskFolder) -> dict[str, Any]:
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


def _say_data(data: MaskFolder, report: MaskReport, say: Callable[[str], None]) -> None:
    say(f"data: {len(data.train)} training and {len(data.test)} test images, classes: {', '.join(data.classes)}")
    unused = len(data) - len(data.train) - len(data.test)
    if unused:
        say(f"data: {unused} images are in neither split (data.train, or lists that leave them out)")
    if absent := report.missing("train"):
        say(f"data: no training pixel of {', '.join(absent)}; such a class cannot be learned")
    if absent := report.missing("test"):
        say(f"data: no test pixel of {', '.join(absent)}")


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
    data = MaskFolder(config.data)
    report = data.check()
    _say_data(data, report, say)
    backbone = start_backbone(config.backbone, config.backbone_config, config.seed, say)
    task = build_task(config, data, backbone)
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
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        scores = score_masks(task.segmenter, data, data.test, config.inference).scores()
    if scores.absent:
        say(f"scores: {', '.join(scores.absent)} occur in neither test labels nor predictions; left out of the means")
    file = out / "model.safetensors"
    save_segmenter(file, task.segmenter, config.inference)
    result = FinetuneResult(out, file, trained, scores, report)
    write_json(out / "metrics.json", result.numbers)
    return result


def build_task(config: FinetuneConfig, data: MaskFolder, backbone: ViTBackbone) -> SegmentTask:
    """Model, data and learning rates of a recipe."""
    steps = SegmentData(
        data,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch or config.batch_size,
        augmentation=config.augment,
        seed=config.seed,
    )
    return SegmentTask(
        build_segmenter(backbone, data.classes, config.seed),
        steps,
        backbone_lr=0.0 if config.freeze_backbone else config.backbone_lr,
        head_lr=config.head_lr,
        layer_decay=config.layer_decay,
        dice_weight=config.dice_weight if config.loss == "cross_entropy+dice" else 0.0,
    )
