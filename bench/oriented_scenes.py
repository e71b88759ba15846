"""Oriented detection on procedural scenes: random weights against ViTP, with enough images for the gain to mean something.

    python -m bench.oriented_scenes --out out/oriented_scenes --seeds 3 --json

A small ViT is pretrained on the demo's scenes and questions (with VRL; `--arms` may add the run without), exported, and
fine-tuned as Oriented R-CNN (recipe finetune/ssdd_oriented) on scenes it has never seen, whose rotated boxes are known
exactly. Every seed draws the weights of the heads, the order and which of the labelled scenes are learned from; both
arms share it, so gains are paired. Scored with exact rotated IoU on scenes that no run learns from. The same backbone
serves all seeds. Finished parts are kept in `--out` and not repeated; other ones are refused.
Last line: one JSON object, rotated mAP in percent.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

from vitp.backbone.vit import random_backbone, save_backbone
from vitp.commands.export import backbone_config, export
from vitp.commands.finetune import finetune
from vitp.commands.finetune_detect import DetectConfig
from vitp.commands.pretrain import pretrain
from vitp.demo.classes import CATEGORIES
from vitp.demo.recipes import DemoConfig, pretrain_config
from vitp.demo.scenes import SceneConfig, write_dataset
from vitp.files import write_json
from vitp.progress import Console
from vitp.recipes import load_recipe
from vitp.train.checkpoint import FOLDER

ARMS = ("random", "vitp_no_vrl", "vitp")
METRICS = ("mAP_voc07", "AP50", "AP")  # VOC's 11 points and area at IoU 0.5; area from 0.5 to 0.95
_TOO_SMALL = ("vehicle",)  # 7 pixels long: four of five objects, and nothing a map of stride 16 could show
_MAY_DIFFER = {"out", "seeds", "arms", "json"}  # from one call to the next on the same folder
_FIRST = {"pretrain/mapped": 0, "pretrain/asked": 500_000, "labelled/pool": 1_000_000, "labelled/test": 2_000_000}


def remember(args: argparse.Namespace) -> None:
    """Note what the parts in `--out` are made with; those of other settings would pass for what is asked for now."""
    asked = {name: value for name, value in vars(args).items() if name not in _MAY_DIFFER}
    file: Path = args.out / "asked.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := sorted(name for name in asked if before.get(name) != asked[name]):
            said = ", ".join(f"--{name.replace('_', '-')} {before.get(name)}" for name in changed)
            raise SystemExit(f"{args.out} holds parts made with {said}; say the same, or choose another --out")
    write_json(file, asked)


def draw(args: argparse.Namespace, config: DemoConfig, console: Console) -> None:
    """Scenes to pretrain on (as the demo's) and labelled ones, `--side` pixels wide; ranges of indices never meet."""
    counts = {
        "pretrain/mapped": (config.mapped_scenes, config.size),
        "pretrain/asked": (config.asked_scenes, config.size),
        "labelled/pool": (args.pool, args.side),
        "labelled/test": (args.test, args.side),
    }
    for name, (count, size) in counts.items():
        folder = args.out / "scenes" / name
        if (folder / "instructions.jsonl").is_file():
            continue
        with console.bar(f"scenes ({name})", "scenes") as bar:
            write_dataset(
                folder,
                count,
                config.seed,
                SceneConfig(size=size, gsd_m=args.gsd),
                first_index=_FIRST[name],
                turns_per_image=1,
                progress=bar,
                always=("layout",) if name == "pretrain/mapped" else (),
            )


def backbone(args: argparse.Namespace, config: DemoConfig, arm: str, console: Console) -> Path:
    """The arm's backbone, pretrained unless it is there; random weights have the same shape."""
    file: Path = args.out / f"{arm}.safetensors"
    if file.is_file():
        return file
    recipe = pretrain_config(config, args.out / "scenes" / "pretrain", args.out / f"run_{arm}", vrl=arm == "vitp")
    if arm == "random":
        plain = backbone_config(recipe)
        save_backbone(file, random_backbone(plain, config.seed), plain, {"name": "random weights"})
        return file
    with console.training(f"pretrain ({arm})") as bar:
        pretrain(recipe, progress=bar, overwrite=recipe.folder.exists())
    export(recipe.folder, path=file, overwrite=True)
    return file


def detector(args: argparse.Namespace, arm: str, file: Path, seed: int) -> DetectConfig:
    """The recipe of one fine-tuning run."""
    data = {
        "kind": "coco",
        "root": str(args.out / "scenes" / "labelled"),
        "images": "*/images/*.png",
        "train_labels": "pool/coco.json",
        "test_labels": "test/coco.json",
        "train_images": "pool/images/*.png",
        "test_images": "test/images/*.png",
        "rotated": True,
        "classes": [name for name in CATEGORIES if name not in _TOO_SMALL],
        "leave_out": list(_TOO_SMALL),
        "train": args.labelled,
        "split_seed": seed,
    }
    return load_recipe(DetectConfig, "finetune/ssdd_oriented", [
        f"name=scenes_{arm}_{seed}",
        f"out={args.out / 'runs' / f'{arm}_{seed}'}",
        f"data={json.dumps(data)}",
        f"backbone={file}",
        f"seed={seed}",
        f"steps={args.steps}",
        f"warmup={max(1, args.steps // 10)}",
        f"checkpoint_every={args.steps}",
        f"augment.size=[{args.side}]",
        "backbone_lr=5e-4",  # as the demo's segmentation
        "head_lr=2e-3",
        "detector.rpn.anchors.scales=[2,4]",  # from 8 pixels on
        "workers=0",
    ])  # fmt: skip


def tune(args: argparse.Namespace, arm: str, file: Path, seed: int, console: Console) -> dict[str, float]:
    """Scores of one run in percent, from disk where it was done before."""
    recipe = detector(args, arm, file, seed)
    record = recipe.folder.with_name(f"{recipe.folder.name}.json")
    if record.is_file():
        kept: dict[str, float] = json.loads(record.read_text(encoding="utf-8"))
        return kept
    with console.training(f"{arm} seed {seed}") as bar:
        result = finetune(recipe, progress=bar, overwrite=recipe.folder.exists())
    shutil.rmtree(recipe.folder / FOLDER)  # the checkpoint, never resumed
    scores = {name: round(100 * result.numbers[name], 2) for name in METRICS}
    write_json(record, scores)
    console.say(f"{arm} seed {seed}: {scores}")
    return scores


def interval(values: list[float]) -> float | None:
    """Half the 95 % confidence interval of the mean (Student's t)."""
    if len(values) < 2:
        return None
    return round(float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/oriented_scenes"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=["random", "vitp"], choices=ARMS)
    parser.add_argument("--pretrain-scenes", type=int, default=4000)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--gsd", type=float, default=0.4, help="metres a pixel, of all scenes")
    parser.add_argument("--side", type=int, default=192, help="pixels of the labelled scenes")
    parser.add_argument("--pool", type=int, default=400, help="labelled scenes, of which a seed draws --labelled")
    parser.add_argument("--labelled", type=int, default=200)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--steps", type=int, default=600, help="of fine-tuning, four scenes each")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    remember(args)
    console = Console()
    config = DemoConfig().model_copy(
        update={"mapped_scenes": args.pretrain_scenes, "steps": args.pretrain_steps, "asked_scenes": 200}
    )
    draw(args, config, console)
    files = {arm: backbone(args, config, arm, console) for arm in args.arms}
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    for seed in range(args.seeds):
        for arm in args.arms:
            found[arm].append(tune(args, arm, files[arm], seed, console))
    numbers: dict[str, Any] = {"seeds": args.seeds, "steps": args.steps, "labelled": args.labelled, "test": args.test}
    for metric in METRICS:
        values = {arm: [scores[metric] for scores in runs] for arm, runs in found.items()}
        numbers[metric] = values
        for arm in args.arms:
            if arm == "random" or "random" not in values:
                continue
            gains = [a - b for a, b in zip(values[arm], values["random"], strict=True)]
            numbers[f"{metric}_gain_{arm}"] = round(statistics.fmean(gains), 2)
            numbers[f"{metric}_gain_{arm}_ci95"] = interval(gains)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
