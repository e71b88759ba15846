"""`vitp demo`: scenes -> check -> pretrain -> export -> probe and few-shot segmentation -> one HTML report.

Three backbones are compared: random weights, pretrained without VRL, pretrained with VRL. The two pretrained ones see
the same samples in the same order for the same number of steps; every fine-tuning run of a seed sees the same few
labelled scenes; nothing is tested on a scene seen in pretraining.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vitp.backbone.vit import random_backbone, save_backbone
from vitp.commands.export import ExportResult, backbone_config, export
from vitp.commands.finetune import FinetuneConfig, FinetuneResult, finetune
from vitp.commands.pretrain import PretrainResult, pretrain
from vitp.commands.pretrain_recipe import DataConfig, PretrainConfig, WarmStartConfig
from vitp.commands.probe import ProbeConfig, ProbeResult, probe
from vitp.config import Config, save
from vitp.datasets.folder import LabelledConfig
from vitp.datasets.masks import MaskFolderConfig
from vitp.datasets.transforms import AugmentConfig as CropConfig
from vitp.demo.questions import Task
from vitp.demo.scenes import CLASSES, THEMES, SceneConfig, write_dataset
from vitp.files import write_json
from vitp.instruction.source import AugmentConfig, SourceConfig
from vitp.instruction.tiling import TilingConfig
from vitp.progress import Console
from vitp.train.loop import check_output, open_output
from vitp.vlm.build import ModelConfig, TowerConfig
from vitp.vlm.tiny import LanguageModelConfig
from vitp.vlm.token_drop import TokenDropConfig

T_95_TWO_DEGREES = 4.303  # Student's t, two-sided 95 %, three seeds
ARMS = ("scratch", "vitp_no_vrl", "vitp")
TITLES = {"scratch": "random weights", "vitp_no_vrl": "ViTP without VRL", "vitp": "ViTP with VRL"}


class DemoConfig(Config):
    """Sizes of the demo; `for_minutes` scales the pretraining to the time there is."""

    seed: int = Field(default=0, ge=0)
    size: int = 96
    gsd_m: float = 0.8  # metres a pixel, one sensor's: cars of 6 pixels, views of 77 metres
    mapped_scenes: int = 2900  # pretraining scenes with one question each, for a coarse map of the view
    asked_scenes: int = 100  # pretraining scenes with varied questions: captions, counts, boxes, ...
    turns: int = 1  # questions about each of the latter; every answer weighs the same in the loss
    probe_scenes: int = 560  # labelled with their theme, half to train the probe on
    test_scenes: int = 120
    labelled_scenes: int = 64  # few-shot segmentation
    steps: int = 400
    batch_size: int = 32
    warm_steps: int = 40
    finetune_steps: int = 120
    finetune_batch: int = 8
    finetune_seeds: tuple[int, ...] = (0, 1, 2)


def for_minutes(minutes: float, seed: int) -> DemoConfig:
    """The demo's sizes for about `minutes` on two CPU cores; five is the default and what the figures are for."""
    base = DemoConfig(seed=seed)
    share = max(0.02, (minutes - 1.5) / 3.5) if minutes < 5 else minutes / 5
    return base.model_copy(
        update={
            "steps": max(8, round(base.steps * share)),
            "warm_steps": max(4, round(base.warm_steps * min(1.0, share))),
            "mapped_scenes": max(48, round(base.mapped_scenes * min(1.0, share * 1.5))),
            "asked_scenes": max(16, round(base.asked_scenes * min(1.0, share * 1.5))),
            "finetune_steps": max(6, round(base.finetune_steps * min(1.0, share * 1.5))),
            "test_scenes": max(24, round(base.test_scenes * min(1.0, share * 2))),
            "probe_scenes": max(8 * len(THEMES), round(base.probe_scenes * min(1.0, share * 2))),
        }
    )


@dataclass(frozen=True)
class DemoResult:
    """The report, and the numbers that `--json` prints."""

    report: Path
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Everything the report shows."""

    config: DemoConfig
    out: Path
    pretrained: dict[str, PretrainResult]
    exported: dict[str, ExportResult]
    probes: dict[str, ProbeResult]
    tuned: dict[str, list[FinetuneResult]]
    seconds: float
    stages: dict[str, float]


def tower(config: DemoConfig) -> TowerConfig:
    """The demo's ViT: a bit over a million parameters, patches of 12 pixels."""
    return TowerConfig(
        architecture="vit_tiny_patch16_224",
        image_size=config.size,
        patch_size=12,
        width=128,
        depth=6,
        heads=4,
        drop_path=0.05,
    )


def pretrain_config(config: DemoConfig, data: Path, out: Path, *, vrl: bool) -> PretrainConfig:
    """The recipe of one pretraining arm."""
    sources = [
        SourceConfig(
            name=name,
            root=data / name,
            annotations=Path("instructions.jsonl"),
            modality="optical",
            licence="none: generated by vitp",
            augment=AugmentConfig(),
        )
        for name in ("mapped", "asked")
    ]
    return PretrainConfig(
        name="demo_vitp" if vrl else "demo_vitp_no_vrl",
        out=out,
        steps=config.steps,
        seed=config.seed,
        batch_size=config.batch_size,
        warmup=0.1,
        weight_decay=0.05,
        lr_tower=7e-4,
        lr_projector=7e-4,
        lr_language_model=7e-4,
        loss_weighting="answer",
        log_every=10,
        checkpoint_every=200,
        keep_last=1,
        warm_start=WarmStartConfig(steps=config.warm_steps, batch_size=48),
        vrl=TokenDropConfig(preset="paper" if vrl else "none"),
        data=DataConfig(sources=sources, tiling=TilingConfig(max_tiles=1), max_length=768),
        model=ModelConfig(
            tower=tower(config),
            pixel_shuffle=1,
            language_model=LanguageModelConfig(width=128, depth=2, heads=2, kv_heads=1, mlp_width=384, vocabulary=1024),
        ),
    )


def finetune_config(config: DemoConfig, labelled: Path, backbone: Path, out: Path, seed: int) -> FinetuneConfig:
    """The recipe of one few-shot segmentation run; the seed also chooses the labelled scenes."""
    return FinetuneConfig(
        name=out.name,
        out=out,
        backbone=backbone,
        steps=config.finetune_steps,
        seed=seed,
        warmup=0.1,
        batch_size=config.finetune_batch,
        backbone_lr=5e-4,
        head_lr=2e-3,
        layer_decay=0.9,
        log_every=10,
        checkpoint_every=10_000,
        keep_last=1,
        augment=CropConfig(crop=config.size, scale=(0.8, 1.25), rot90=True, photometric=0.5),
        data=MaskFolderConfig(
            root=labelled,
            images="*/images/*.png",
            masks="{above}/masks/{stem}.png",
            classes=list(CLASSES),
            test_images="test/images/*.png",
            train=config.labelled_scenes,
            split_seed=seed,
        ),
    )


def probe_config(config: DemoConfig, labelled: Path, backbone: Path) -> ProbeConfig:
    """Theme classification on frozen features; a quarter of the pool is labelled, half of it is for testing."""
    return ProbeConfig(
        name="themes",
        backbone=backbone,
        data=LabelledConfig(format="csv", root=labelled / "pool", labels=labelled / "pool" / "labels.csv"),
        label_seeds=(0, 1, 2),
        labels_per_class=max(1, config.probe_scenes // (4 * len(THEMES))),
    )


def write_scenes(config: DemoConfig, folder: Path, console: Console) -> None:
    """Pretraining scenes, a labelled pool and test scenes: ranges of indices that never meet."""
    scene = SceneConfig(size=config.size, gsd_m=config.gsd_m)
    parts: tuple[tuple[str, int, int, int, tuple[Task, ...]], ...] = (
        ("pretrain/mapped", config.mapped_scenes, 0, 1, ("layout",)),
        ("pretrain/asked", config.asked_scenes, 500_000, config.turns, ()),
        ("labelled/pool", config.probe_scenes, 1_000_000, config.turns, ()),
        ("labelled/test", config.test_scenes, 2_000_000, 3, ("layout",)),
    )
    for name, count, first, turns, always in parts:
        with console.bar(f"scenes ({name})", "scenes") as bar:
            write_dataset(
                folder / name,
                count,
                config.seed,
                scene,
                first_index=first,
                turns_per_image=turns,
                workers=2,
                progress=bar,
                always=always,
            )


def interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean of three values."""
    assert len(values) == 3
    return T_95_TWO_DEGREES * statistics.stdev(values) / 3**0.5


def summary(outcome: Outcome) -> dict[str, Any]:
    """The demo's numbers: mIoU in percent points, accuracies in percent."""
    miou = {arm: [100 * r.scores.miou for r in outcome.tuned[arm]] for arm in ARMS}
    gains = [a - b for a, b in zip(miou["vitp"], miou["scratch"], strict=True)]
    rates = {arm: r.train.counts["samples"] / r.train.seconds for arm, r in outcome.pretrained.items()}
    numbers: dict[str, Any] = {f"miou_{arm}": round(statistics.fmean(values), 2) for arm, values in miou.items()}
    numbers["miou_gain"] = round(statistics.fmean(gains), 2)
    numbers["miou_gain_ci95"] = round(interval(gains), 2)
    numbers["miou_seeds"] = {arm: [round(v, 2) for v in values] for arm, values in miou.items()}
    numbers["probe_random"] = round(100 * statistics.fmean(outcome.probes["scratch"].linear), 2)
    numbers["probe_vitp_no_vrl"] = round(100 * statistics.fmean(outcome.probes["vitp_no_vrl"].linear), 2)
    numbers["probe_vitp"] = round(100 * statistics.fmean(outcome.probes["vitp"].linear), 2)
    numbers["seconds"] = round(outcome.seconds, 1)
    numbers["samples_per_s"] = round(rates["vitp"], 1)
    numbers["samples_per_s_no_vrl"] = round(rates["vitp_no_vrl"], 1)
    return numbers


class _Stages:
    """Seconds spent in each part of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def _backbones(
    config: DemoConfig, out: Path, console: Console, stage: _Stages
) -> tuple[dict[str, PretrainResult], dict[str, ExportResult], dict[str, Path]]:
    """Pretrain and export both arms, and write the random yardstick beside them."""
    pretrained, exported, files = {}, {}, {}
    for arm in ("vitp", "vitp_no_vrl"):
        recipe = pretrain_config(config, out / "scenes" / "pretrain", out / arm, vrl=arm == "vitp")
        with console.training(f"pretrain ({TITLES[arm]})") as bar, stage("pretraining"):
            pretrained[arm] = pretrain(recipe, progress=bar, say=console.say if arm == "vitp" else lambda _: None)
        with stage("export"):
            exported[arm] = export(out / arm, path=out / f"{arm}.safetensors", overwrite=True)
        files[arm] = exported[arm].weights
        console.say(f"exported {files[arm]} (max abs difference through timm {exported[arm].max_abs_difference:.2g})")
    plain = backbone_config(recipe)
    files["scratch"] = out / "random.safetensors"
    save_backbone(files["scratch"], random_backbone(plain, config.seed), plain, {"name": "random weights"})
    return pretrained, exported, files


def _probes(
    config: DemoConfig, labelled: Path, files: dict[str, Path], console: Console, stage: _Stages
) -> dict[str, ProbeResult]:
    found = {}
    for arm in ARMS:
        with stage("probe"):
            found[arm] = probe(probe_config(config, labelled, files[arm]))
        console.say(f"linear probe, {TITLES[arm]}: {100 * statistics.fmean(found[arm].linear):.1f} %")
    return found


def _segmenters(
    config: DemoConfig, out: Path, files: dict[str, Path], console: Console, stage: _Stages
) -> dict[str, list[FinetuneResult]]:
    tuned: dict[str, list[FinetuneResult]] = {arm: [] for arm in ARMS}
    for seed in config.finetune_seeds:
        for arm in ARMS:
            recipe = finetune_config(
                config, out / "scenes" / "labelled", files[arm], out / f"segment_{arm}_{seed}", seed
            )
            with console.training(f"segment ({TITLES[arm]}, seed {seed})") as bar, stage("segmentation"):
                result = finetune(recipe, progress=bar)
            tuned[arm].append(result)
            console.say(f"segmentation, {TITLES[arm]}, seed {seed}: mIoU {100 * result.scores.miou:.1f} %")
    return tuned


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    minutes: float = 5.0,
    overwrite: bool = False,
    console: Console | None = None,
    config: DemoConfig | None = None,
) -> DemoResult:
    """Run everything and write ``report.html``.

    Args:
        out: folder for data, runs and report; must be empty unless `overwrite`.
        seed: of scenes and training.
        minutes: rough time on two CPU cores.
        overwrite: start anew in a folder that holds an earlier demo.
        console: where progress is shown.
        config: sizes, instead of those for `minutes`.

    Raises:
        OutputError: `out` is not empty, or the disk is full.
    """
    from vitp.demo.report import write_demo_report  # it needs this module's names

    console = console or Console()
    config = config or for_minutes(minutes, seed)
    begun, stage = time.perf_counter(), _Stages()
    check_output(out, resume=False, overwrite=overwrite)
    open_output(out, overwrite=overwrite)
    save(config, out / "recipe.yaml")
    with stage("scenes"):
        write_scenes(config, out / "scenes", console)
    pretrained, exported, files = _backbones(config, out, console, stage)
    probes = _probes(config, out / "scenes" / "labelled", files, console, stage)
    tuned = _segmenters(config, out, files, console, stage)
    seconds = time.perf_counter() - begun
    outcome = Outcome(config, out, pretrained, exported, probes, tuned, seconds, stage.seconds)
    numbers = summary(outcome)
    report = write_demo_report(outcome, numbers)
    numbers["seconds"] = round(time.perf_counter() - begun, 1)  # the report's own pictures and answers included
    write_json(out / "numbers.json", numbers)
    return DemoResult(report, numbers)
