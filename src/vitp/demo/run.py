"""`vitp demo`: scenes -> check -> pretrain -> export -> probe, few-shot segmentation, change detection -> one HTML report.

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

from vitp.backbone.vit import random_backbone, save_backbone
from vitp.commands.export import ExportResult, backbone_config, export
from vitp.commands.finetune import FinetuneResult, finetune
from vitp.commands.pretrain import PretrainResult, pretrain
from vitp.commands.probe import ProbeResult, probe
from vitp.config import save
from vitp.demo.questions import Task
from vitp.demo.recipes import (
    DemoConfig,
    change_config,
    finetune_config,
    for_minutes,
    pretrain_config,
    probe_config,
)
from vitp.demo.scenes import SceneConfig, write_dataset, write_pairs
from vitp.files import write_json
from vitp.progress import Console
from vitp.train.loop import check_output, open_output

T_95_TWO_DEGREES = 4.303  # Student's t, two-sided 95 %, three seeds
ARMS = ("scratch", "vitp_no_vrl", "vitp")
CHANGE_ARMS = ("scratch", "vitp")  # the third would take the demo beyond its time
TITLES = {"scratch": "random weights", "vitp_no_vrl": "ViTP without VRL", "vitp": "ViTP with VRL"}


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
    changes: dict[str, list[FinetuneResult]]  # of CHANGE_ARMS
    seconds: float
    stages: dict[str, float]


def write_scenes(config: DemoConfig, folder: Path, console: Console) -> None:
    """Pretraining scenes, a labelled pool, test scenes, and pairs of dates: ranges of indices that never meet."""
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
    dates = scene.model_copy(update={"change_probability": config.pair_change})
    for name, count, first in (("pairs/train", config.pairs, 3_000_000), ("pairs/test", config.test_pairs, 4_000_000)):
        with console.bar(f"scenes ({name})", "pairs") as bar:
            write_pairs(folder / name, count, config.seed, dates, first_index=first, workers=2, progress=bar)


def interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean of three values."""
    assert len(values) == 3
    return T_95_TWO_DEGREES * statistics.stdev(values) / 3**0.5


def summary(outcome: Outcome) -> dict[str, Any]:
    """The demo's numbers: mIoU and F1 in percent points, accuracies in percent."""
    miou = {arm: [100 * r.scores.miou for r in outcome.tuned[arm]] for arm in ARMS}
    gains = [a - b for a, b in zip(miou["vitp"], miou["scratch"], strict=True)]
    rates = {arm: r.train.counts["samples"] / r.train.seconds for arm, r in outcome.pretrained.items()}
    numbers: dict[str, Any] = {f"miou_{arm}": round(statistics.fmean(values), 2) for arm, values in miou.items()}
    numbers["miou_gain"] = round(statistics.fmean(gains), 2)
    numbers["miou_gain_ci95"] = round(interval(gains), 2)
    numbers["miou_seeds"] = {arm: [round(v, 2) for v in values] for arm, values in miou.items()}
    found = {arm: [100 * (r.changed or 0.0) for r in outcome.changes[arm]] for arm in CHANGE_ARMS}
    more = [a - b for a, b in zip(found["vitp"], found["scratch"], strict=True)]
    numbers |= {f"change_f1_{arm}": round(statistics.fmean(values), 2) for arm, values in found.items()}
    numbers["change_f1_gain"] = round(statistics.fmean(more), 2)
    numbers["change_f1_gain_ci95"] = round(interval(more), 2)
    numbers["change_f1_seeds"] = {arm: [round(v, 2) for v in values] for arm, values in found.items()}
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


def _change_detectors(
    config: DemoConfig, out: Path, files: dict[str, Path], console: Console, stage: _Stages
) -> dict[str, list[FinetuneResult]]:
    found: dict[str, list[FinetuneResult]] = {arm: [] for arm in CHANGE_ARMS}
    for seed in config.finetune_seeds:
        for arm in CHANGE_ARMS:
            recipe = change_config(config, out / "scenes" / "pairs", files[arm], out / f"change_{arm}_{seed}", seed)
            with console.training(f"change ({TITLES[arm]}, seed {seed})") as bar, stage("change detection"):
                found[arm].append(finetune(recipe, progress=bar))
            score = 100 * (found[arm][-1].changed or 0.0)
            console.say(f"change detection, {TITLES[arm]}, seed {seed}: F1 of the changes {score:.1f} %")
    return found


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
    changes = _change_detectors(config, out, files, console, stage)
    seconds = time.perf_counter() - begun
    outcome = Outcome(config, out, pretrained, exported, probes, tuned, changes, seconds, stage.seconds)
    numbers = summary(outcome)
    report = write_demo_report(outcome, numbers)
    numbers["seconds"] = round(time.perf_counter() - begun, 1)  # the report's own pictures and answers included
    write_json(out / "numbers.json", numbers)
    return DemoResult(report, numbers)
