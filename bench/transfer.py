"""What pretraining on real data is worth: random weights, ViTP without VRL, ViTP with VRL; same steps, same seeds.

    python -m bench.transfer rsicd --data data --seeds 3 --json
    python -m bench.transfer medical --data data --seeds 3 --json

`--data` is the folder that holds the data sets under their names (rsicd_128, rsscn7, oam_buildings; vqa_rad,
rocov2_sample, busi). Every arm is pretrained with the shipped recipe of the suite, exported, and then
  * probed frozen: linear and kNN, on images never seen in pretraining,
  * fine-tuned for segmentation with the shipped recipe, few images,
  * asked: questions about test images, and the same questions with the images shuffled among them.
The rival of every row is the same network with random weights. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitp.backbone.vit import BackboneConfig, random_backbone, save_backbone
from vitp.commands.export import backbone_config, export
from vitp.commands.finetune import finetune
from vitp.commands.pretrain import load_run, pretrain
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.commands.probe import ProbeConfig, probe
from vitp.config import dump
from vitp.datasets.folder import LabelledConfig
from vitp.files import write_json
from vitp.images.decode import read_rgb
from vitp.instruction.native import labels
from vitp.instruction.source import Source
from vitp.progress import Console
from vitp.provenance import provenance
from vitp.recipes import load_recipe
from vitp.vlm.generate import Question, answer

ARMS = {"random": None, "vitp_no_vrl": "none", "vitp": "paper"}
Scores = dict[str, float]


def ask(run: Path, questions: list[tuple[Path, str, str]], batch: int = 64) -> Scores:
    """Share of exact answers with the right images and with the images shuffled among the questions, in percent."""
    model, tokenizer, config = load_run(run)
    images = [read_rgb(path) for path, _, _ in questions]
    truth = [expected.strip().lower() for _, _, expected in questions]
    order = np.random.default_rng(0).permutation(len(questions))
    scores = {}
    for name, chosen in (("asked", range(len(questions))), ("asked_shuffled", order)):
        asked = [Question(images[i], text) for i, (_, text, _) in zip(chosen, questions, strict=True)]
        given = answer(model, tokenizer, asked, tiling=config.data.tiling, max_new_tokens=16, batch_size=batch)
        scores[name] = 100 * statistics.fmean(a.strip().lower() == t for a, t in zip(given, truth, strict=True))
    return scores


def scene_questions(data: Path) -> list[tuple[Path, str, str]]:
    """RSICD's scene question for every test image."""
    records = json.loads((data / "rsicd_128" / "captions.json").read_text())["images"]
    wording = next(q for r in records for q, _ in r["questions"])
    return [(path, wording, name) for path, name in labels("rsicd", data / "rsicd_128", "test")]


def medical_questions(data: Path) -> list[tuple[Path, str, str]]:
    """Yes/no questions of VQA-RAD about images held out from pretraining."""
    recipe = load_recipe(PretrainConfig, "pretrain/tiny_medical", [f"data.sources.0.root={data / 'vqa_rad'}"])
    source = Source(recipe.data.sources[0].model_copy(update={"split": "test", "turns": 1}))
    found = []
    for i in range(len(source)):
        sample = source.sample(i)
        expected = sample.turns[-1].text
        if expected.strip().lower() in ("yes", "no"):
            text = sample.turns[-2].text.replace("<image>", "").strip()
            found.append((source.image_path(sample.images[0]), text, expected))
    return found


def rsicd_scores(backbone: Path, data: Path, out: Path, seed: int) -> Scores:
    """Probes on RSICD's and RSSCN7's classes, building segmentation on OpenAerialMap chips."""
    scores = {}
    sets = {
        "rsicd": (LabelledConfig(format="rsicd", root=data / "rsicd_128"), 20),
        "rsscn7": (LabelledConfig(format="folder", root=data / "rsscn7", test_fraction=0.5), None),
    }
    for name, (where, per_class) in sets.items():
        config = ProbeConfig(
            name=name, backbone=backbone, data=where, labels_per_class=per_class, label_seeds=(0, 1, 2)
        )
        result = probe(config)
        scores[f"{name}_linear"] = 100 * statistics.fmean(result.linear)
        scores[f"{name}_knn"] = 100 * statistics.fmean(result.knn)
    scores["oam_miou"] = segment("finetune/oam_buildings", data / "oam_buildings", backbone, out, seed)
    return scores


def medical_scores(backbone: Path, data: Path, out: Path, seed: int) -> Scores:
    """Lesion segmentation on BUSI."""
    return {"busi_miou": segment("finetune/busi", data / "busi", backbone, out, seed)}


def segment(recipe: str, root: Path, backbone: Path, out: Path, seed: int) -> float:
    """MIoU in percent on the recipe's test images; the seed also draws the split."""
    overrides = [f"data.root={root}", f"backbone={backbone}", f"out={out}", f"seed={seed}", f"data.split_seed={seed}"]
    return 100 * finetune(recipe, [*overrides, "workers=0"], overwrite=out.exists()).scores.miou


def recipe_of(suite: str, data: Path) -> tuple[str, list[str]]:
    """The suite's pretraining recipe and where its data lies."""
    if suite == "rsicd":
        return "pretrain/tiny_rsicd", [f"data.sources.0.root={data / 'rsicd_128'}"]
    roots = [f"data.sources.0.root={data / 'vqa_rad'}", f"data.sources.1.root={data / 'rocov2_sample'}"]
    return "pretrain/tiny_medical", roots


def run_arm(args: argparse.Namespace, arm: str, seed: int, console: Console) -> Scores:
    """Pretrain (or draw) one backbone and score it."""
    out = args.out / args.suite / f"{arm}_{seed}"
    done = args.out / args.suite / f"{arm}_{seed}.json"
    name, roots = recipe_of(args.suite, args.data)
    overrides = [*roots, *args.set, f"seed={seed}", f"out={out}"]
    scores: Scores = {}
    file = args.out / args.suite / f"{arm}_{seed}.safetensors"
    config = load_recipe(PretrainConfig, name, overrides)
    made_by = {"recipe": dump(config), "commit": provenance()["git_commit"]}
    if done.is_file():  # an interrupted bench goes on where it stopped, if nothing has changed since
        stored = json.loads(done.read_text())
        if stored["made_by"] == made_by:
            kept: Scores = stored["scores"]
            return kept
    if ARMS[arm] is None:
        plain: BackboneConfig = backbone_config(config)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_backbone(file, random_backbone(plain, seed), plain, {"name": "random weights"})
    else:
        begun = time.perf_counter()
        with console.training(f"{arm} seed {seed}") as bar:
            overrides.append(f"vrl.preset={ARMS[arm]}")
            pretrain(name, overrides, progress=bar, overwrite=out.exists())
        scores["pretrain_seconds"] = time.perf_counter() - begun
        export(out, path=file, overwrite=True)
        questions = scene_questions if args.suite == "rsicd" else medical_questions
        scores |= ask(out, questions(args.data))
    measure: Callable[[Path, Path, Path, int], Scores] = rsicd_scores if args.suite == "rsicd" else medical_scores
    scores |= measure(file, args.data, args.out / args.suite / f"{arm}_{seed}_segment", seed)
    write_json(done, {"made_by": made_by, "scores": scores})
    console.say(f"{arm} seed {seed}: " + ", ".join(f"{k} {v:.1f}" for k, v in scores.items()))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["rsicd", "medical"])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("out/transfer"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the pretraining recipe")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    console = Console()
    table: dict[str, list[Scores]] = {a: [] for a in args.arms}
    for seed in range(args.seeds):
        for arm in args.arms:
            table[arm].append(run_arm(args, arm, seed, console))
    result: dict[str, Any] = {"suite": args.suite, "seeds": args.seeds}
    for arm, rows in table.items():
        for key in rows[0]:
            values = [row[key] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            result[f"{arm}.{key}"] = [round(statistics.fmean(values), 2), round(spread, 2)]
    keys = dict.fromkeys(key for rows in table.values() for key in rows[0])
    print("| | " + " | ".join(table) + " |\n|---|" + "---|" * len(table))
    for key in keys:
        cells = [result.get(f"{arm}.{key}") for arm in table]
        print(f"| {key} | " + " | ".join(f"{c[0]:.1f} ± {c[1]:.1f}" if c else "" for c in cells) + " |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
