"""What every fine-tuning recipe sets, and the recipe of segmentation and change detection."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from vitp.backbone.features import FeaturesConfig, PlainFeatures
from vitp.backbone.vit import BackboneConfig, ViTBackbone, load_backbone, random_backbone
from vitp.commands.validating import M, Scorer, Validated, Validation, ValidationConfig
from vitp.config import save
from vitp.datasets.dense import DenseDataConfig
from vitp.datasets.layout import Item
from vitp.datasets.pairs import PairFolderConfig
from vitp.datasets.splits import Parts
from vitp.datasets.transforms import AugmentConfig
from vitp.errors import ConfigError
from vitp.heads.head import AuxiliaryConfig, FCNConfig, HeadConfig
from vitp.heads.losses import LossConfig, LossTerms
from vitp.heads.siamese import Fusion
from vitp.progress import lines
from vitp.tasks.segment import InferenceConfig
from vitp.train.distributed import Ranks
from vitp.train.loop import TrainResult, check_output, in_step, open_output, recipe_fingerprint, train
from vitp.train.loop_config import LoopConfig
from vitp.train.task import Progress, Task

METRICS = "metrics.json"  # in the run's folder, once its test images are scored
REPORT = "report.html"  # likewise
PICTURES = 6  # in a report
_FREE = frozenset({"inference"})  # parts of a recipe that a resumed run may change: no step depends on them


class DownstreamConfig(LoopConfig):
    """What every fine-tuning recipe sets, whatever its task."""

    name: str
    out: Path | None = None  # out/<name>
    backbone: Path | None = None  # a file of `vitp export` or a timm folder; None: random weights
    backbone_config: BackboneConfig | None = None  # which ViT, where its weights are random
    features: FeaturesConfig = PlainFeatures()  # the maps a head gets
    batch_size: int = Field(default=16, ge=1)  # mmsegmentation's ADE20K schedules
    micro_batch: int | None = Field(default=None, ge=1)  # images of one forward pass; None: the whole batch
    weight_decay: float = Field(default=0.05, ge=0)  # released segmentation and detection configs
    backbone_lr: float = Field(default=2e-5, ge=0)  # released change-detection configs; segmentation has 1e-5 to 1.5e-5
    head_lr: float = Field(default=2e-5, gt=0)  # released configs: one rate for all, before the decay over layers
    layer_decay: float = Field(default=0.9, gt=0, le=1)  # released configs
    freeze_backbone: bool = False  # the ViT stays as it is; features and head learn
    validation: ValidationConfig | None = None  # scores of the validation images while training; released: none

    @model_validator(mode="after")
    def _one_backbone(self) -> DownstreamConfig:
        if self.backbone is None and self.backbone_config is None:
            raise ValueError("backbone is missing: give a weights file, or backbone_config for random weights")
        if self.backbone is not None and self.backbone_config is not None:
            raise ValueError("backbone and backbone_config are both given; the weights file says which ViT it holds")
        return self

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out if self.out is not None else Path("out") / self.name


class FinetuneConfig(DownstreamConfig):
    """A recipe of segmentation or change detection."""

    task: Literal["segment", "change"] = "segment"
    head: HeadConfig = FCNConfig()  # light; the released configs: upernet
    auxiliary: AuxiliaryConfig | None = None  # a second head while training (released configs: none)
    loss: LossConfig = LossTerms()
    fusion: Fusion | None = None  # of two dates' maps (change detection); None: concat, as in the released configs
    data: DenseDataConfig  # pairs where the task is change
    augment: AugmentConfig = AugmentConfig()
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
        if self.validation is not None:
            self.validation.check(self.task)
        return self


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


@dataclass(frozen=True)
class Start:
    """How a run is started, whatever its task."""

    ranks: Ranks = field(default_factory=Ranks)
    resume: bool = False
    overwrite: bool = False
    progress: Progress | None = None
    say: Callable[[str], None] = lambda _: None

    def check(self, config: DownstreamConfig) -> None:
        """See that the recipe goes with the ranks, and that its output folder can be used.

        Raises:
            ConfigError: a strategy or an average of the weights that several ranks cannot have.
            OutputError: see `check_output`.
        """
        if not self.ranks.alone:
            self.ranks.alike(partial(_check_ranks, config, self.ranks.size))
        self.ranks.lead(lambda: check_output(config.folder, resume=self.resume, overwrite=self.overwrite))

    def agreed(self, config: DownstreamConfig, data: Pictures) -> dict[str, Any]:
        """The run's fingerprint (`images_fingerprint`), which all ranks have.

        Raises:
            TrainingError: a rank has another recipe, other images or other parts of them.
        """
        same = images_fingerprint(config, data)
        parts = repr((data.parts.train, data.parts.val, data.parts.test))
        beside = {
            **in_step(config, resume=self.resume),
            **config.model_dump(mode="json", include=set(_FREE)),
            "data.parts": hashlib.sha256(parts.encode()).hexdigest(),  # lists may differ whose paths are the same
        }
        self.ranks.agree(same | beside, "start all ranks with the same recipe, overrides and data")
        return same


def _check_ranks(config: DownstreamConfig, size: int) -> None:
    if config.strategy == "fsdp":
        raise ConfigError(
            f"strategy: fsdp is for `vitp pretrain`, and {size} ranks fine-tune whole models; say strategy: ddp, or zero1 for a "
            "little more room"
        )
    if config.ema is not None:
        raise ConfigError(
            f"ema: averages the weights of one process, and this run has {size}; leave ema out (ema=null), or start one process"
        )


def begin(config: DownstreamConfig, task: Task, start: Start) -> None:
    """Say what learns how fast, make the run's folder ready and write the recipe into it.

    Raises:
        OutputError: the folder cannot be used, or is not the same place for all ranks.
    """
    say, ranks = start.say, start.ranks
    for group in task.parameter_groups():
        say(f"{group.name}: {group.size / 1e6:.2f} M parameters, {f'lr {group.lr:.3g}' if group.lr else 'frozen'}")
    out = config.folder

    def write() -> None:
        if not (
            start.resume and (out / "recipe.yaml").is_file()
        ):  # a refused resume leaves the old run's files as they are
            open_output(out, overwrite=start.overwrite)
            save(config, out / "recipe.yaml")

    ranks.lead(write)
    ranks.see_the_same_folder(out)


def validate_with(
    config: DownstreamConfig,
    task: Task,
    scorer: Callable[[ValidationConfig], Scorer[M]],
    images: Sequence[int],
    start: Start,
) -> Validation[M] | None:
    """What scores the model while it learns, if the recipe asks for it.

    Args:
        config: the recipe.
        task: whose model is scored.
        scorer: makes the scorer of the model.
        images: the validation images, see `validation_images`.
        start: how the run is started.

    Raises:
        ConfigError: the metric does not go with model and data.
    """
    if config.validation is None:
        return None
    return Validation(
        task.model,
        scorer(config.validation),
        images,
        config.validation,
        out=config.folder,
        steps=config.steps,
        say=start.say,
        ranks=start.ranks,
    )


def fit(
    config: DownstreamConfig, task: Task, start: Start, fingerprint: dict[str, Any], validation: Validation[M] | None
) -> tuple[TrainResult, Validated[M] | None]:
    """Train, score meanwhile, and put the weights that are kept into the model; errors as those of `train`."""
    trained = train(
        task,
        config,
        config.folder,
        resume=start.resume,
        progress=start.progress,
        fingerprint=fingerprint,
        after_step=validation,
        averaged=None if validation is None else validation.averaged,
        ranks=start.ranks,
    )
    return trained, None if validation is None else validation.settle()


def counted(say: Callable[[str], None], title: str, unit: str) -> Callable[[int, int], None]:
    """A receiver of (done, total) that says a line now and then."""
    show = lines(say, title, unit)
    return lambda done, total: show(done, total, "")


class _Rooted(Protocol):
    @property
    def root(self) -> Path: ...


class Pictures(Protocol):
    """A data set as its files."""

    @property
    def items(self) -> Sequence[Item]:
        """Every image's file."""

    @property
    def config(self) -> _Rooted:
        """Where they lie."""

    @property
    def parts(self) -> Parts:
        """Which are for training, validation and testing."""


def images_fingerprint(config: DownstreamConfig, data: Pictures) -> dict[str, Any]:
    """What must be equal for a resumed run to be the same run, by dotted path, with the names of the images.

    Args:
        config: the recipe.
        data: its data set.
    """
    scored = config.validation is not None and config.validation.keep == "best"  # the scores choose the weights
    flat = recipe_fingerprint(config, free=frozenset() if scored else _FREE)
    flat.pop("data.root")
    names = "\n".join(item.image.relative_to(data.config.root).as_posix() for item in data.items)
    flat["data.images"] = hashlib.sha256(names.encode()).hexdigest()
    return flat
