"""What a pretraining recipe says, and what of it must be the same when a run is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitp.config import Config
from vitp.instruction.chat_template import ChatConfig
from vitp.instruction.index import IndexConfig, open_source
from vitp.instruction.leave_out import leave_out
from vitp.instruction.meta import expand_document, resolve_sources
from vitp.instruction.principles import Downstream, Modality
from vitp.instruction.source import DESCRIPTIVE, Source, SourceConfig
from vitp.instruction.tiling import TilingConfig
from vitp.tasks.answering import EvaluationConfig
from vitp.train.loop import recipe_fingerprint
from vitp.train.loop_config import LoopConfig
from vitp.vlm.acceleration import StepConfig
from vitp.vlm.build import ModelConfig
from vitp.vlm.flops import Trained
from vitp.vlm.loss import Weighting
from vitp.vlm.token_drop import TokenDropConfig
from vitp.yaml_lines import Document


class DataConfig(Config):
    """The mixture and how a sample becomes tokens."""

    sources: list[SourceConfig] = Field(min_length=1)
    meta: Path | None = None  # a released mixture JSON instead of sources; read at once, and None from then on
    base: Path | None = None  # joined to relative roots (and a meta file's paths) at once, and None from then on
    # Sources left out, by name, modality, task or domain: at once, and () from then on
    without: tuple[str, ...] = ()
    tiling: TilingConfig = TilingConfig()
    chat: ChatConfig = ChatConfig()
    max_length: int = Field(default=4096, ge=16)  # released scripts; tokens of a sample before dropping
    bad_samples: Literal["stop", "skip"] = "stop"  # what to do about samples that `vitp check` calls unusable
    downstream: tuple[Downstream, ...] = ()  # tasks the backbone is for; `vitp check` says what the mixture lacks
    downstream_modalities: tuple[Modality, ...] = ()  # and their modalities
    index: IndexConfig = IndexConfig()  # where the sizes of all samples are remembered

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        return leave_out(resolve_sources(data)) if isinstance(data, dict) else data

    def open_sources(self) -> list[Source]:
        """All sources, by their indexes where there are any.

        Raises:
            DataError: a source cannot be opened at all.
        """
        return [open_source(source, self.index) for source in self.sources]


class WarmStartConfig(Config):
    """Text-only steps before the images come in, for a language model built from scratch."""

    steps: int = Field(default=0, ge=0)  # the paper's language model comes trained: none needed
    batch_size: int = Field(default=128, ge=1)


class PretrainConfig(LoopConfig, StepConfig):
    """A pretraining recipe."""

    name: str
    out: Path | None = None  # out/<name>
    data: DataConfig
    model: ModelConfig
    vrl: TokenDropConfig = TokenDropConfig()
    loss_weighting: Weighting = "sample"  # what the released micro-batch of one amounts to
    batch_size: int = Field(default=128, ge=1)  # released scripts, all GPUs together
    lr_tower: float = Field(default=2e-5, ge=0, allow_inf_nan=False)  # released scripts, one rate for all parts
    lr_projector: float = Field(default=2e-5, ge=0, allow_inf_nan=False)
    lr_language_model: float = Field(default=2e-5, ge=0, allow_inf_nan=False)
    warm_start: WarmStartConfig = WarmStartConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    max_tokens_per_pack: int = Field(default=16384, ge=16)  # language-model positions of one forward pass
    max_tiles_per_pack: int = Field(default=64, ge=1)  # about what 80 GB holds at the paper's size
    max_samples_per_pack: int | None = Field(default=None, ge=1)  # 1: no packing

    early_keys: ClassVar[tuple[str, ...]] = ("data.meta", "data.base")

    @classmethod
    def expand(cls, document: Document) -> None:
        """Put the sources of ``data.meta`` in its place, so that overrides reach them by number."""
        expand_document(document)

    @model_validator(mode="after")
    def _grid_fits(self) -> PretrainConfig:
        tower = self.model.tower
        if tower.image_size and tower.patch_size:
            side, rest = divmod(tower.image_size, tower.patch_size)
            if rest or side % self.model.pixel_shuffle:
                raise ValueError(
                    f"tower: image_size {tower.image_size} over patch_size {tower.patch_size} must be a whole multiple "
                    f"of pixel_shuffle {self.model.pixel_shuffle}"
                )
        return self

    @model_validator(mode="after")
    def _warm_start_trains(self) -> PretrainConfig:
        if self.warm_start.steps and self.lr_language_model == 0:
            raise ValueError(
                "warm_start trains the language model on text, but lr_language_model is 0: set one of them"
            )
        return self

    @model_validator(mode="after")
    def _asked_about_once(self) -> PretrainConfig:
        self.evaluation.check_names(self.data.sources)
        return self

    @property
    def trained(self) -> Trained:
        """Which parts have a learning rate above 0."""
        return Trained(self.lr_tower > 0, self.lr_projector > 0, self.lr_language_model > 0)

    @property
    def sets_pack_bounds(self) -> bool:
        """Whether the recipe names bounds of a pack, which are then kept to; those it leaves out may be lowered."""
        return bool({"max_tiles_per_pack", "max_tokens_per_pack"} & self.model_fields_set)

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out if self.out is not None else Path("out") / self.name


_SAME_NUMBERS = frozenset({"checkpointing"})  # a resumed run may have another: it changes no number


def fingerprint(config: PretrainConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """Everything that must be equal for a resumed run to be the same run, by dotted path."""
    values, free = recipe_fingerprint(config, _SAME_NUMBERS), ("data.index.", "evaluation.")
    flat = {key: value for key, value in values.items() if not key.startswith(free)}
    for key in ("downstream", "downstream_modalities"):  # for the report only, as some keys of a source
        flat.pop(f"data.{key}", None)
    for i, source in enumerate(sources):
        for name in DESCRIPTIVE:
            flat.pop(f"data.sources.{i}.{name}", None)
        flat[f"data.sources.{i}.content"] = source.fingerprint()
        flat.pop(f"data.sources.{i}.hold_out")
        if number := config.evaluation.numbers(config.data.sources)[i]:
            flat[f"data.sources.{i}.hold_out"] = number
    return flat
