"""What a pretrained backbone is worth downstream: random weights against given backbones, same steps, seeds and splits.

    python -m bench.results --data data --backbone rsicd=backbones/rsicd_{seed}.safetensors --only remote --json
    python -m bench.results --data data --backbone medical=backbones/medical_{seed}.safetensors --only medical --json
    python -m bench.results --data data --backbone rsicd=backbones/rsicd_0.safetensors --only detect --json

`--data` is the folder that holds the data sets under their names (`bench.result_sets`, `bench.detect_sets`). Every run
fine-tunes a small ViT
with a light head on the training part and is scored on the test part; the seed draws weights, order, crops and the split,
and is shared by all arms, so that gains are paired. `--modes full frozen` also learns with the ViT as it is (paper, Table
14). A backbone's file may hold {seed}. Finished runs are kept in `--out` and never repeated; backbones whose file does not
exist yet are left out. Results: results.md and results.json in `--out`; last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bench.detect_sets import DETECT_SETS, DetectSet, cut_patches
from bench.result_sets import SETS, ResultSet, prepared
from vitp.backbone.vit import BackboneConfig, load_backbone
from vitp.commands.finetune import finetune
from vitp.commands.finetune_detect import DetectConfig
from vitp.commands.finetune_recipe import FinetuneConfig
from vitp.config import dump
from vitp.datasets.dense import open_dataset
from vitp.datasets.detection import DetectionDataConfig, open_detection
from vitp.datasets.masks import MaskFolderConfig
from vitp.datasets.objects_config import CocoConfig
from vitp.datasets.pairs import PairFolderConfig
from vitp.datasets.transforms import AugmentConfig
from vitp.files import file_state, write_json, write_text
from vitp.heads.losses import LossTerms
from vitp.progress import Console
from vitp.provenance import provenance
from vitp.recipes import load_recipe
from vitp.tasks.segment import InferenceConfig
from vitp.train.checkpoint import FOLDER

RANDOM = "random"
_TITLES = {
    "miou": "mIoU",
    "mdice_foreground": "Dice",
    "f1_changed": "F1 of changes",
    "AP50": "AP50",
    "mask_AP50": "mask AP50",
    "mAP_voc07": "rotated mAP (VOC07)",
}
_PLAIN = BackboneConfig(  # of recipes/pretrain/tiny_*.yaml, where no backbone says otherwise
    architecture="vit_tiny_patch16_224", image_size=128, patch_size=16, width=192, depth=6, heads=3
)
Scores = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """Where a run's backbone comes from, and whether it learns."""

    name: str
    file: str | None  # may hold {seed}; None: random weights
    mode: str

    @property
    def title(self) -> str:
        """As the table has it."""
        return self.name if self.mode == "full" else f"{self.name}, {self.mode}"


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    data: Path
    out: Path
    steps: int
    random: BackboneConfig  # the ViT of random arms
    console: Console

    def config(self, entry: ResultSet | DetectSet, arm: Arm, seed: int) -> FinetuneConfig | DetectConfig:
        """The recipe of one run."""
        return self._detection(entry, arm, seed) if isinstance(entry, DetectSet) else self._dense(entry, arm, seed)

    def _detection(self, entry: DetectSet, arm: Arm, seed: int) -> DetectConfig:
        root = self.data / entry.folder if entry.patches is None else cut_patches(entry, self.data, self.out)
        recipe = load_recipe(DetectConfig, f"finetune/{entry.recipe}", [
            f"data.root={root}",
            f"out={self._folder(entry, arm, seed)}",
            f"seed={seed}",
            f"steps={self.steps}",
            f"warmup={self.steps // 10}",
            f"checkpoint_every={self.steps}",
            "workers=0",
            *([] if arm.file is None else [f"backbone={arm.file.format(seed=seed)}"]),
            *([f"backbone_config={self.random.model_dump_json()}"] if arm.file is None else []),
            *entry.overrides,
        ])  # fmt: skip
        data = recipe.data
        if _drawn(data):
            data = data.model_copy(update={"split_seed": seed})
        return recipe.model_copy(update={"freeze_backbone": arm.mode == "frozen", "data": data})

    def _folder(self, entry: ResultSet | DetectSet, arm: Arm, seed: int) -> Path:
        return self.out / "runs" / entry.name / f"{arm.name}_{arm.mode}_{seed}"

    def _dense(self, entry: ResultSet, arm: Arm, seed: int) -> FinetuneConfig:
        data = prepared(entry, self.data, self.out / "data" / entry.name).model_copy(update={"split_seed": seed})
        medical = entry.domain == "medical" and entry.name != "chase_db1"
        # medical pictures of 256 are seen whole; all others in windows of the side the small backbones were trained on
        augment = AugmentConfig(crop=160, scale=(0.5, 0.85)) if medical else AugmentConfig(crop=128)
        if entry.domain == "remote":
            augment = augment.model_copy(update={"rot90": True, "swap_dates": 0.5 if entry.pairs else 0.0})
        return FinetuneConfig(
            name=entry.name,
            out=self._folder(entry, arm, seed),
            task="change" if entry.pairs else "segment",
            backbone=None if arm.file is None else Path(arm.file.format(seed=seed)),
            backbone_config=self.random if arm.file is None else None,
            data=data,
            steps=self.steps,
            seed=seed,
            warmup=0.1,
            batch_size=8,
            backbone_lr=3e-4,
            head_lr=1e-3,
            freeze_backbone=arm.mode == "frozen",
            loss=LossTerms(dice=0.0 if entry.metric == "miou" else 1.0, class_weights=_weights(entry, data)),
            augment=augment,
            inference=InferenceConfig(scale=0.625) if medical else InferenceConfig(window=128),
            workers=0,
            log_every=20,
            checkpoint_every=self.steps,
        )

    def run(self, entry: ResultSet | DetectSet, arm: Arm, seed: int) -> Scores | None:
        """The scores of one run, from disk where it was done before; None where its backbone is not there."""
        config = self.config(entry, arm, seed)
        if config.backbone is not None and not config.backbone.is_file():
            self.console.say(f"{config.backbone} does not exist; left out")
            return None
        record = config.folder.with_name(f"{config.folder.name}.json")
        weights = None if config.backbone is None else list(file_state(config.backbone))
        made_by = {"recipe": dump(config), "weights": weights}
        if record.is_file():
            stored = json.loads(record.read_text(encoding="utf-8"))
            if _same(stored["made_by"], config, weights):
                kept: Scores = stored["scores"]
                return kept
        with self.console.training(f"{entry.name} {arm.title} seed {seed}") as bar:
            result = finetune(config, progress=bar, overwrite=config.folder.exists())
        divided = open_dataset(config.data) if isinstance(config, FinetuneConfig) else open_detection(config.data)
        scores = {**result.numbers, "train_images": len(divided.train), "test_images": len(divided.test)}
        shutil.rmtree(config.folder / FOLDER)  # the checkpoint: three times the weights, never resumed
        write_json(record, {"made_by": made_by, "commit": provenance()["git_commit"], "scores": scores})
        return scores


def _weights(entry: ResultSet, data: MaskFolderConfig | PairFolderConfig) -> list[float] | None:
    count = len(data.classes or ())
    return None if entry.rare == 1.0 else [1.0, *[entry.rare] * (count - 1)]


def _drawn(data: DetectionDataConfig) -> bool:
    """Whether the test images are a share drawn by the split's seed."""
    named = [data.test_images, data.test_list, data.test_labels if isinstance(data, CocoConfig) else None]
    return all(name is None for name in named)


def _same(made_by: dict[str, Any], config: FinetuneConfig | DetectConfig, weights: list[int] | None) -> bool:
    """Whether a record is of this recipe and backbone; keys that came since have their defaults in it."""
    try:
        stored = type(config).model_validate(yaml.safe_load(made_by["recipe"]))
    except (yaml.YAMLError, ValidationError):
        return False
    return stored == config and made_by["weights"] == weights


@dataclass(frozen=True)
class Row:
    """A data set in the table: scores in percent, arm by arm and seed by seed."""

    entry: ResultSet | DetectSet
    values: dict[str, dict[int, float]]
    images: tuple[int, int]  # training and test pieces of the first seed

    def gains(self, arm: Arm) -> list[float]:
        """Of an arm over random weights in the same mode, seed by seed."""
        rival = self.values.get(Arm(RANDOM, None, arm.mode).title, {})
        own = self.values.get(arm.title, {})
        return [own[seed] - rival[seed] for seed in sorted(own) if seed in rival]


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{deviation}"


def markdown(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    """The table; the last columns are the gains of the pretrained arms over random weights."""
    trained = [arm for arm in arms if arm.name != RANDOM]
    titles = ["data set", "score", "images", *(a.title for a in arms)]
    titles += [f"gain of {a.title}" for a in trained]
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---|" + "---:|" * (len(titles) - 3)]
    for row in rows:
        cells = [row.entry.name, _TITLES[row.entry.metric], f"{row.images[0]} + {row.images[1]}"]
        cells += [spread(list(row.values.get(arm.title, {}).values())) for arm in arms]
        for arm in trained:
            gains = row.gains(arm)
            won = f" ({sum(g > 0 for g in gains)} of {len(gains)})" if gains else ""
            cells.append(spread(gains, "+") + won)
        lines.append("| " + " | ".join(cells) + " |")
    mean = ["mean", "", "", *[""] * len(arms)]
    for arm in trained:
        means = [statistics.fmean(gains) for row in rows if (gains := row.gains(arm))]
        mean.append(f"{statistics.fmean(means):+.1f}" if means else "")
    return "\n".join([*lines, "| " + " | ".join(mean) + " |"]) + "\n"


def to_json(rows: Sequence[Row], arms: Sequence[Arm]) -> dict[str, Any]:
    """Every seed's scores, and the paired gains."""
    found: dict[str, Any] = {}
    for row in rows:
        scores = {title: {str(k): round(v, 2) for k, v in by_seed.items()} for title, by_seed in row.values.items()}
        gains = {a.title: [round(g, 2) for g in row.gains(a)] for a in arms if a.name != RANDOM}
        found[row.entry.name] = {
            "metric": row.entry.metric,
            "scores": scores,
            "gains": gains,
            "images": list(row.images),
        }
    return found


def measure(bench: Bench, entries: Sequence[ResultSet | DetectSet], arms: Sequence[Arm], seeds: int) -> list[Row]:
    """All runs, seed by seed, the tables written after each: what is stopped leaves what it found."""
    rows = [Row(entry, {}, (0, 0)) for entry in entries]
    for seed in range(seeds):
        for at, entry in enumerate(entries):
            for arm in arms:
                scores = bench.run(entry, arm, seed)
                if scores is None or scores.get(entry.metric) is None:
                    continue
                rows[at].values.setdefault(arm.title, {})[seed] = 100 * scores[entry.metric]
                if rows[at].images == (0, 0):
                    rows[at] = Row(entry, rows[at].values, (scores["train_images"], scores["test_images"]))
                write_text(bench.out / "results.md", markdown(rows, arms))
                write_json(bench.out / "results.json", to_json(rows, arms))
            bench.console.say(f"seed {seed} {entry.name}: {to_json([rows[at]], arms)[entry.name]['scores']}")
    return rows


def chosen(names: Sequence[str]) -> list[ResultSet | DetectSet]:
    """The data sets of --only: names, or a whole domain."""
    everything: list[ResultSet | DetectSet] = [*SETS, *DETECT_SETS]
    known = {entry.name for entry in everything} | {entry.domain for entry in everything}
    for name in names:
        if name not in known:
            raise SystemExit(f"--only {name}: known are {', '.join(sorted(known))}")
    return [entry for entry in everything if not names or entry.name in names or entry.domain in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--backbone", action="append", default=[], metavar="NAME=FILE", help="FILE may hold {seed}")
    parser.add_argument("--out", type=Path, default=Path("out/results"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", help="names of data sets, or remote, medical, detect; with commas")
    parser.add_argument("--modes", nargs="*", default=["full"], choices=["full", "frozen"])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    given = [text.partition("=") for text in args.backbone]
    if unfit := [name for name, equals, _ in given if not equals or not name or name == RANDOM]:
        raise SystemExit(f"--backbone {unfit[0]}: write NAME=FILE, with another name than {RANDOM}")
    files = [Path(file.format(seed=seed)) for _, _, file in given for seed in range(args.seeds)]
    there = next((file for file in files if file.is_file()), None)
    console = Console()
    bench = Bench(args.data, args.out, args.steps, load_backbone(there).config if there else _PLAIN, console)
    arms = [Arm(n, f, mode) for mode in args.modes for n, f in [(RANDOM, None), *((n, f) for n, _, f in given)]]
    rows = measure(bench, chosen([name for name in args.only.split(",") if name]), arms, args.seeds)
    print(markdown(rows, arms))
    print(json.dumps({"seeds": args.seeds, "steps": args.steps, **to_json(rows, arms)}))


if __name__ == "__main__":
    main()
