"""`vitp finetune`: a backbone and a labelled data set in, a trained model and its test scores out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from vitp.backbone.vit import ViTBackbone, choose_attention
from vitp.commands.finetune_detect import DetectConfig, DetectResult, finetune_detect
from vitp.commands.finetune_recipe import (
    METRICS,
    PICTURES,
    REPORT,
    DownstreamConfig,
    FinetuneConfig,
    Start,
    begin,
    counted,
    fit,
    start_backbone,
    validate_with,
)
from vitp.commands.ranks import OtherRank
from vitp.commands.scoring_masks import score_and_show, table_lines
from vitp.commands.validating import Validated, ValidationConfig, validation_images
from vitp.commands.validating_tasks import MaskScorer
from vitp.datasets.dense import DenseData, open_dataset
from vitp.datasets.pairs import PairFolder
from vitp.datasets.report import MaskReport
from vitp.files import write_json
from vitp.heads.layers import has_batch_norm
from vitp.heads.siamese import Fusion
from vitp.metrics.segmentation import SegmentationMetric, SegmentationScores
from vitp.recipes import find_recipe, load_recipe
from vitp.tasks.change import ChangeData, ChangeTask
from vitp.tasks.segment import SegmenterParts, build_segmenter, merge_features, save_segmenter
from vitp.tasks.segment_task import SegmentData, SegmentTask, StepData
from vitp.train.distributed import Ranks, joined
from vitp.train.loop import TrainResult
from vitp.train.loop_config import choose_device, uses_bf16
from vitp.train.task import Progress
from vitp.yaml_lines import read

__all__ = ["METRICS", "DetectConfig", "FinetuneConfig", "FinetuneResult", "finetune", "load_finetune", "start_backbone"]

_ANY_LENGTH = 1 << 30


@dataclass(frozen=True)
class FinetuneResult:
    """What a finished fine-tuning run leaves behind."""

    out: Path
    model: Path  # read it with vitp.tasks.segment.load_segmenter
    train: TrainResult
    scores: SegmentationScores  # on the test images
    masks: MaskReport
    change: bool = False  # whether the task was change detection
    validated: Validated[SegmentationMetric] | None = None

    @property
    def changed(self) -> float | None:
        """F1 of the last class, "changed", of change detection (what its papers report); None: no such class was seen."""
        return self.scores.changed if self.change else None

    @property
    def report(self) -> Path:
        """Table, confusion matrix and pictures of the test images."""
        return self.out / REPORT

    def lines(self) -> list[str]:
        """For people."""
        return table_lines(self.scores, change=self.change)

    @property
    def numbers(self) -> dict[str, Any]:
        """JSON-ready results."""
        return {
            "out": str(self.out),
            "loss": self.train.loss,
            "seconds": self.train.seconds,
            **self.scores.as_dict(),
            **({} if self.changed is None else {"f1_changed": self.changed}),
            **({} if self.validated is None else {"validation": self.validated.as_dict()}),
        }


def _say_data(data: DenseData, report: MaskReport, crop: int, say: Callable[[str], None]) -> None:
    say(f"data: {len(data.train)} training and {len(data.test)} test images, classes: {', '.join(data.classes)}")
    if (share := data.config.fraction) < 1:
        groups = len({data.items[i].group for i in data.train})
        say(
            f"data: fraction {share:g} of the training images: {len(data.train)}, of {groups} images, patients or scenes"
        )
    unused = len(data) - len({*data.train, *data.val, *data.test})
    if unused:
        say(
            f"data: {unused} images are in no part (data.train, data.fraction, empty_slices, or lists that leave them out)"
        )
    if absent := report.missing("train"):
        say(f"data: no training pixel of {', '.join(absent)}; such a class cannot be learned")
    if absent := report.missing("test"):
        say(f"data: no test pixel of {', '.join(absent)}")
    for remark in report.remarks(crop):
        say(f"data: {remark}")


def recipe_kind(recipe: Path | str, overrides: Sequence[str] = ()) -> type[FinetuneConfig] | type[DetectConfig]:
    """Which kind of recipe a file or shipped name holds, by its `task`."""
    given = [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "task"]
    path = Path(recipe) if Path(recipe).is_file() else find_recipe(str(recipe))
    if given or path is None:
        return DetectConfig if "detect" in given[-1:] else FinetuneConfig
    found = read(path).data
    return DetectConfig if isinstance(found, dict) and found.get("task") == "detect" else FinetuneConfig


def load_finetune(
    recipe: FinetuneConfig | DetectConfig | Path | str, overrides: Sequence[str] = ()
) -> FinetuneConfig | DetectConfig:
    """A fine-tuning recipe of any task, see `load_recipe`.

    Raises:
        ConfigError: the recipe is wrong.
    """
    kind = type(recipe) if isinstance(recipe, DownstreamConfig) else recipe_kind(recipe, overrides)
    return load_recipe(kind, recipe, overrides)


@overload
def finetune(
    recipe: FinetuneConfig,
    overrides: Sequence[str] = ...,
    *,
    resume: bool = ...,
    overwrite: bool = ...,
    progress: Progress | None = ...,
    say: Callable[[str], None] = ...,
) -> FinetuneResult: ...


@overload
def finetune(
    recipe: DetectConfig,
    overrides: Sequence[str] = ...,
    *,
    resume: bool = ...,
    overwrite: bool = ...,
    progress: Progress | None = ...,
    say: Callable[[str], None] = ...,
) -> DetectResult: ...


@overload
def finetune(
    recipe: FinetuneConfig | DetectConfig | Path | str,
    overrides: Sequence[str] = ...,
    *,
    resume: bool = ...,
    overwrite: bool = ...,
    progress: Progress | None = ...,
    say: Callable[[str], None] = ...,
) -> FinetuneResult | DetectResult: ...


def finetune(
    recipe: FinetuneConfig | DetectConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> FinetuneResult | DetectResult:
    """Fine-tune a backbone on a downstream task and score it on the test images.

    Args:
        recipe: a FinetuneConfig or DetectConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        resume: continue the run in the output folder.
        overwrite: start anew in a folder that holds another run.
        progress: told after every step.
        say: receives lines worth reading (which weights, how the data is split, what is frozen).

    Returns:
        the run's folder, the saved model and the scores (also in metrics.json).

    Raises:
        VitpError: any mistake the user can mend; every mask (or label file) is read once before training starts.

    On many ranks (torchrun) each computes its part of every step, rank 0 says and writes, and all return the same.
    """
    with joined() as ranks:
        config = ranks.together(lambda: load_finetune(recipe, overrides))
        ranks.use_devices(config.device)
        if not ranks.first:
            progress, say = OtherRank(ranks.rank, say), lambda _: None
        start = Start(ranks, resume, overwrite, progress, say)
        return finetune_detect(config, start) if isinstance(config, DetectConfig) else _finetune(config, start)


def _finetune(config: FinetuneConfig, start: Start) -> FinetuneResult:
    """One rank's part of `finetune`, of segmentation or change detection."""
    out, ranks, say = config.folder, start.ranks, start.say
    start.check(config)
    data = ranks.together(lambda: open_dataset(config.data))
    same = start.agreed(config, data)
    held = ranks.alike(lambda: validation_images(config.validation, data, config.data.root))
    report = ranks.lead(data.check)
    _say_data(data, report, config.augment.crop, say)
    backbone = ranks.together(lambda: start_backbone(config.backbone, config.backbone_config, config.seed, say))
    task = ranks.together(lambda: build_task(config, data, backbone, say, ranks))
    _say_norm(config, task, start)
    device = choose_device(config.device)
    bf16 = uses_bf16(config.precision, device)

    def scorer(asked: ValidationConfig) -> MaskScorer:
        return MaskScorer(task.segmenter, data, config.inference, asked, bf16=bf16, ranks=ranks)

    validation = ranks.alike(lambda: validate_with(config, task, scorer, held, start))
    begin(config, task, start)
    choose_attention(backbone.vit, math.ceil(config.augment.crop / backbone.patch_size) ** 2, device, bf16=bf16)
    trained, validated = fit(config, task, start, same, validation)
    choose_attention(backbone.vit, _ANY_LENGTH, device, bf16=bf16)  # test images may be far larger than the crops
    merge_features(task.segmenter)
    file = out / "model.safetensors"
    ranks.lead(lambda: save_segmenter(file, task.segmenter, config.inference))
    told = counted(say, "scores", "test images")
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        scored = score_and_show(
            task.segmenter, data, data.test, config.inference, pictures=PICTURES, progress=told, ranks=ranks
        )

    def write() -> FinetuneResult:
        scores = scored.scores
        if scores.absent:
            say(
                f"scores: {', '.join(scores.absent)} occur in neither test labels nor predictions; left out of the means"
            )
        curve = [] if validated is None else validated.sections()
        result = FinetuneResult(out, file, trained, scores, report, config.task == "change", validated)
        scored.write(out / REPORT, f"{config.name}, test images", config.data.background, curve)
        write_json(out / METRICS, result.numbers)
        return result

    return ranks.lead(write)


def _say_norm(config: FinetuneConfig, task: SegmentTask, start: Start) -> None:
    seen = min(config.batch_size, (config.micro_batch or config.batch_size) * start.ranks.size)
    if seen < config.batch_size and has_batch_norm(task.model):
        start.say(
            f"norm: batch norm sees {seen} images at a time, not the batch of {config.batch_size}; norm: group in the head does "
            "not depend on that"
        )


def build_task(
    config: FinetuneConfig,
    data: DenseData,
    backbone: ViTBackbone,
    say: Callable[[str], None] = lambda _: None,
    ranks: Ranks = Ranks(),
) -> SegmentTask:
    """Model, data and learning rates of a recipe, for one of the `ranks`; `say` receives what is worth reading about them.

    Raises:
        ConfigError: the sizes of batch and micro-batches, the ranks, class weights or features do not fit.
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
        ranks=ranks,
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
