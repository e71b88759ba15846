"""`vitp pretrain`: instruction data in, a trained vision-language model with its domain ViT out."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

import vitp
from vitp.backbone.vit import BackboneConfig
from vitp.check import CheckReport, check
from vitp.config import Config, save
from vitp.errors import CheckpointError, DataError
from vitp.instruction.chat import ChatFormat
from vitp.instruction.pack import PackLimits, StepBuilder
from vitp.instruction.source import Source, SourceConfig
from vitp.instruction.tiling import TilingConfig
from vitp.recipes import load_recipe
from vitp.tasks.pretraining import PretrainingTask
from vitp.train.checkpoint import list_checkpoints, load_model, load_tensors, write_json
from vitp.train.loop import LoopConfig, Progress, TrainResult, choose_device, prepare_output, train, uses_bf16
from vitp.vlm.loss import Weighting
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.tiny import LanguageModelConfig, build_language_model, load_language_model
from vitp.vlm.token_drop import TokenDropConfig
from vitp.vlm.tokenizer import build_tokenizer, load_tokenizer


class DataConfig(Config):
    """The mixture and how a sample becomes tokens."""

    sources: list[SourceConfig] = Field(min_length=1)
    tiling: TilingConfig = TilingConfig()
    max_length: int = Field(default=4096, ge=16)  # released scripts; tokens of a sample before dropping
    bad_samples: Literal["stop", "skip"] = "stop"  # what to do about samples that `vitp check` calls unusable


class TowerConfig(BackboneConfig):
    """The ViT inside the model."""

    drop_path: float = Field(default=0.1, ge=0, lt=1)  # released scripts: linear from 0 to 0.1 over the blocks
    weights: Path | None = None  # safetensors written by `vitp export`; None: random initialisation


class ModelConfig(Config):
    """Tower, projector and language model."""

    tower: TowerConfig
    pixel_shuffle: int = Field(default=2, ge=1, le=4)  # released: down_sample_ratio 0.5
    language_model: LanguageModelConfig = LanguageModelConfig()


class WarmStartConfig(Config):
    """Text-only steps before the images come in, for a language model built from scratch."""

    steps: int = Field(default=0, ge=0)  # the paper's language model comes trained: none needed
    batch_size: int = Field(default=128, ge=1)


class PretrainConfig(LoopConfig):
    """A pretraining recipe."""

    name: str
    out: Path | None = None  # out/<name>
    data: DataConfig
    model: ModelConfig
    vrl: TokenDropConfig = TokenDropConfig()
    loss_weighting: Weighting = "sample"  # what the released micro-batch of one amounts to
    batch_size: int = Field(default=128, ge=1)  # released scripts, all GPUs together
    lr_tower: float = Field(default=2e-5, ge=0)  # released scripts, one rate for all parts
    lr_projector: float = Field(default=2e-5, ge=0)
    lr_language_model: float = Field(default=2e-5, ge=0)
    warm_start: WarmStartConfig = WarmStartConfig()
    max_tokens_per_pack: int = Field(default=16384, ge=16)  # language-model positions of one forward pass
    max_tiles_per_pack: int = Field(default=64, ge=1)  # about what 80 GB holds at the paper's size
    max_samples_per_pack: int | None = Field(default=None, ge=1)  # 1: no packing

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

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out if self.out is not None else Path("out") / self.name


@dataclass(frozen=True)
class PretrainResult:
    """What a finished pretraining run leaves behind."""

    out: Path
    train: TrainResult
    check: CheckReport


# Values a resumed run may change: where it is written and how it is watched, not what it computes.
_FREE = {"out", "workers", "log_every", "checkpoint_every", "keep_last", "max_skipped_share", "device"}


def fingerprint(config: PretrainConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """Everything that must be equal for a resumed run to be the same run, by dotted path."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i, inner in enumerate(value):
                walk(f"{prefix}.{i}", inner)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json", exclude=_FREE))
    for i, source in enumerate(sources):
        flat.pop(f"data.sources.{i}.root", None)
        flat[f"data.sources.{i}.content"] = source.fingerprint()
    return flat


def provenance() -> dict[str, str]:
    """Versions and the git commit of the working folder, saved with every run."""
    import timm
    import transformers

    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(vitp.__file__).parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {
        "vitp": vitp.__version__,
        "git_commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "transformers": transformers.__version__,
    }


def _texts(sources: Sequence[Source], limit: int = 200_000) -> Iterator[str]:
    """Questions and answers, evenly from all sources, for building a tokenizer."""
    share = max(1, limit // len(sources))
    for source in sources:
        stride = max(1, len(source) // share)
        for i in range(0, len(source), stride):
            try:
                sample = source.sample(i)
            except DataError:
                continue
            for turn in sample.turns:
                yield turn.text.replace("<image>", "")


def build_model(config: PretrainConfig, tokenizer: Any) -> VisionLanguageModel:
    """The model of a recipe with its initial weights, drawn from the recipe's seed.

    Raises:
        CheckpointError: given weights do not fit.
    """
    tower_config, language = config.model.tower, config.model.language_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tower = tower_config.create()
        if language.path is None:
            language_model = build_language_model(language, len(tokenizer), config.seed)
        else:
            language_model = load_language_model(language.path, len(tokenizer))
        model = VisionLanguageModel(
            tower,
            language_model,
            image_size=tower_config.image_size,
            factor=config.model.pixel_shuffle,
            mean=tower_config.mean,
            std=tower_config.std,
            drop_path=tower_config.drop_path,
        )
    if tower_config.weights is not None:
        load_model(model.tower, load_tensors(tower_config.weights), tower_config.weights)
    return model


def prefer_plain_attention(model: VisionLanguageModel, config: PretrainConfig) -> None:
    """On CPUs in bf16 use timm's unfused attention for short sequences: it is the faster one (bench/attention.py)."""
    device = choose_device(config.device)
    if device.type == "cpu" and uses_bf16(config.precision, device) and model.grid**2 <= 400:
        for module in model.tower.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", False)  # noqa: B010 - Module declares tensors only


def build_task(config: PretrainConfig, sources: Sequence[Source], tokenizer: Any) -> PretrainingTask:
    """Model, data and learning rates of a recipe."""
    model = build_model(config, tokenizer)
    builder = StepBuilder(
        sources,
        ChatFormat(tokenizer),
        seed=config.seed,
        batch_size=config.batch_size,
        tile_size=config.model.tower.image_size,
        tokens_per_tile=model.tokens_per_tile,
        depth_modules=len(model.depth_modules),
        tiling=config.data.tiling,
        vrl=config.vrl,
        weighting=config.loss_weighting,
        limits=PackLimits(
            max_length=config.data.max_length,
            max_tokens=config.max_tokens_per_pack,
            max_tiles=config.max_tiles_per_pack,
            max_samples=config.max_samples_per_pack,
        ),
        text_steps=config.warm_start.steps,
        text_batch_size=config.warm_start.batch_size,
    )
    return PretrainingTask(
        model,
        builder,
        lr_tower=config.lr_tower,
        lr_projector=config.lr_projector,
        lr_language_model=config.lr_language_model,
    )


def _checked(sources: Sequence[Source], config: PretrainConfig, say: Callable[[str], None]) -> CheckReport:
    report = check(sources)
    found = report.count("error")
    if found:
        first = report.errors[0]
        if config.data.bad_samples == "stop":
            raise DataError(
                f"{first.message}; {first.fix} ({found} finding{'s' if found > 1 else ''} in all: `vitp check` lists them; "
                "data.bad_samples=skip trains without these samples)",
                first.where,
            )
        say(f"{len(report.bad)} unusable samples will be replaced by others of their source (listed in skipped.jsonl)")
    return report


def _say_parts(task: PretrainingTask, say: Callable[[str], None]) -> None:
    for group in task.parameter_groups():
        state = f"lr {group.lr:g}" if group.lr > 0 else "frozen (lr 0)"
        say(f"{group.name.replace('_', ' ')}: {group.size / 1e6:.2f} M parameters, {state}")


def pretrain(
    recipe: PretrainConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> PretrainResult:
    """Pretrain a vision-language model on instruction data.

    Args:
        recipe: a PretrainConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        resume: continue the run in the output folder.
        overwrite: start anew in a folder that holds another run.
        progress: told after every step.
        say: receives lines worth reading (which parts train, what is replaced).

    Returns:
        the run's folder, the training result and the check's report.

    Raises:
        VitpError: any mistake the user can mend, before training where it can be seen before.
    """
    config = recipe if isinstance(recipe, PretrainConfig) else load_recipe(PretrainConfig, recipe, overrides)
    out = config.folder
    sources = [Source(s) for s in config.data.sources]
    report = _checked(sources, config, say)
    prepare_output(out, resume=resume, overwrite=overwrite)
    if resume and (out / "recipe.yaml").is_file():
        tokenizer = load_tokenizer(str(out / "tokenizer"))
    elif config.model.language_model.path is not None:
        tokenizer = load_tokenizer(config.model.language_model.path)
    else:
        tokenizer = build_tokenizer(_texts(sources), config.model.language_model.vocabulary)
    task = build_task(config, sources, tokenizer)
    prefer_plain_attention(task.model, config)
    _say_parts(task, say)
    if not (resume and (out / "recipe.yaml").is_file()):  # a refused resume leaves the old run's files as they are
        tokenizer.save_pretrained(out / "tokenizer")
        write_json(out / "provenance.json", provenance())
        write_json(out / "check.json", report.to_json())
        save(config, out / "recipe.yaml")  # last: where it stands, the others are complete
    total = config.model_copy(update={"steps": config.steps + config.warm_start.steps})
    result = train(
        task,
        total,
        out,
        resume=resume,
        progress=progress,
        schedule_starts=(0, config.warm_start.steps) if config.warm_start.steps else (0,),
        fingerprint=fingerprint(config, sources),
    )
    return PretrainResult(out, result, report)


def load_run(run: Path | str) -> tuple[VisionLanguageModel, Any, PretrainConfig]:
    """The model (eval mode), tokenizer and recipe of a pretraining run, from its newest checkpoint.

    Raises:
        CheckpointError: not a run's folder, or no complete checkpoint in it.
    """
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder} is not a pretraining run: it holds no recipe.yaml")
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(f"{folder} holds no complete checkpoint yet; let the run reach its first one")
    config = load_recipe(PretrainConfig, folder / "recipe.yaml")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    model = build_model(config, tokenizer)
    weights = checkpoints[-1] / "model.safetensors"
    load_model(model, load_tensors(weights), weights)
    return model.eval(), tokenizer, config
