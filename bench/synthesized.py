"""Is instruction data made from labels worth pretraining on? Seven labelled data sets, and nothing else.

    python -m bench.synthesized --data data --seeds 3 --json

`--data` is the folder that holds dota_example, nwpu_vhr10, ssdd, rs_seg_samples (loveda, potsdam), levir_cd_samples,
busi and rsscn7. RSSCN7 is halved (stratified, by the seed), and each half is put aside in turn: `vitp synthesize` asks
about all other images, the shipped recipe pretrain/tiny_synthesized learns from that, and the frozen backbone is probed
on the half put aside, its linear and kNN classifiers trained on the other half, 20 times on four fifths of it. So every
image is tested once a seed, and the draw of labels weighs little. The rival is the same network with the random weights
of the same seed, on the same halves and draws. Last line: one JSON object; a gain is a mean over halves and seeds, and
`gains_*` are all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitp.backbone.vit import ViTBackbone, load_backbone, random_backbone
from vitp.commands.check import check
from vitp.commands.export import backbone_config, export
from vitp.commands.pretrain import pretrain
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.commands.probe import (
    ProbeConfig,
    choose_strength,
    extract_features,
    fit_linear,
    nearest,
    standardise,
)
from vitp.commands.synthesize import SynthesizeConfig, synthesize
from vitp.datasets.folder import LabelledConfig, LabelledImages, read_labelled
from vitp.files import write_text
from vitp.progress import Console
from vitp.recipes import load_recipe

_LOVEDA = {1: "background", 2: "building", 3: "road", 4: "water", 5: "barren", 6: "forest", 7: "agriculture"}
_POTSDAM = {1: "impervious ground", 2: "building", 3: "low vegetation", 4: "tree", 5: "car", 6: "clutter"}
_RSSCN7 = {"aGrass": "grass", "bField": "field", "cIndustry": "industry", "dRiverLake": "river or lake",
           "eForest": "forest", "fResident": "residential area", "gParking": "parking lot"}  # fmt: skip
# Questions that stay true, or whose boxes move along, when images are flipped, turned and cropped.
_BOXES = ("region", "oriented")
_COVERS = ("region",)
_DRAWS = 20  # of labels, for each half
_ROUNDS = 16  # of one question each, so that a crop need hold no more than one box; what is asked again is left out
# Source of the recipe -> its folder under --data and what `vitp synthesize` must be told about it.
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "nwpu_vhr10": ("nwpu_vhr10", {"tasks": _BOXES}),
    "dota": ("dota_example", {"tasks": _BOXES}),
    "ssdd": ("ssdd", {"tasks": _BOXES, "view": "SAR image"}),
    "loveda": ("rs_seg_samples/loveda", {"tasks": _COVERS, "classes": _LOVEDA, "ignore": (0,)}),
    "potsdam": ("rs_seg_samples/potsdam", {"tasks": _COVERS, "classes": _POTSDAM, "ignore": (0,)}),
    "levir_cd": ("levir_cd_samples", {"tasks": ("change_area",), "subject": "building"}),
    "busi": ("busi", {"format": "masks", "tasks": _COVERS, "images": "*/*.png", "masks": "{folder}/{stem}_mask*.png",
                      "exclude": "*/*_mask*", "classes": {0: "background", 255: "lesion"},
                      "view": "ultrasound image"}),
    "busi_classes": ("busi", {"format": "folders", "exclude": "*/*_mask*"}),
    "rsscn7": ("rsscn7", {"rename": _RSSCN7}),
}  # fmt: skip
Scores = dict[str, float]


def write_annotations(data: Path, out: Path, seed: int, held: set[Path]) -> list[str]:
    """Ask about every set; records about the images in `held` are taken out. Returns overrides of the recipe."""
    overrides = []
    for i, (name, (folder, keys)) in enumerate(SETS.items()):
        root, file = data / folder, (out / f"{name}.jsonl").resolve()
        asked: dict[str, str] = {}  # image, question and answer -> record
        for round_number in range(_ROUNDS):
            config = SynthesizeConfig(
                root=root, out=file, seed=seed * _ROUNDS + round_number, turns=1, overwrite=True, **keys
            )
            synthesize(config)
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
                record = json.loads(line)
                if root / str(record["image"]) not in held:
                    asked[json.dumps([record["image"], record["conversations"]])] = line
        write_text(file, "".join(asked.values()))
        overrides += [f"data.sources.{i}.root={root}", f"data.sources.{i}.annotations={file}"]
    return overrides


def score(backbone: ViTBackbone, data: Path, known: LabelledImages, test: LabelledImages) -> Scores:
    """Accuracies in percent, means over draws of four fifths of the labelled images of every class."""
    config = ProbeConfig(
        name="rsscn7", backbone=Path("given"), data=LabelledConfig(format="folder", root=data), neighbours=5
    )
    features, unseen = (extract_features(backbone, list(part.files), config) for part in (known, test))
    labels, truth, classes = torch.tensor(known.labels), torch.tensor(test.labels), len(known.classes)
    linear, knn = [], []
    for draw in range(_DRAWS):
        rng = np.random.default_rng(draw)
        members = [np.flatnonzero(labels.numpy() == c) for c in range(classes)]
        chosen = np.concatenate([rng.permutation(some)[: max(2, len(some) * 4 // 5)] for some in members])
        own = labels[chosen]
        seen, asked = standardise(features[chosen], unseen)
        fitted = fit_linear(seen, own, classes, choose_strength(seen, own, classes, draw))
        linear.append(float((fitted.predict(asked) == truth).double().mean()))
        voted = nearest(seen, own, asked, classes, config.neighbours, config.temperature)
        knn.append(float((voted == truth).double().mean()))
    return {"linear": 100 * statistics.fmean(linear), "knn": 100 * statistics.fmean(knn)}


def run_half(
    data: Path, out: Path, seed: int, known: LabelledImages, test: LabelledImages, changes: list[str], console: Console
) -> dict[str, Scores]:
    """Scores of random weights and of the backbone pretrained without the images of `test`."""
    overrides = [
        *write_annotations(data, out, seed, set(test.files)),
        f"seed={seed}",
        f"out={out / 'run'}",
        *changes,
    ]
    config = load_recipe(PretrainConfig, "pretrain/tiny_synthesized", overrides)
    report = check(config)
    assert report.count("error") == 0, report.lines()
    with console.training(out.name) as bar:
        pretrain(config, progress=bar, overwrite=(out / "run").exists())
    export(out / "run", path=out / "vitp.safetensors", overwrite=True)
    backbones = {
        "random": random_backbone(backbone_config(config), seed),
        "vitp": load_backbone(out / "vitp.safetensors"),
    }
    scores = {arm: score(backbone, data / "rsscn7", known, test) for arm, backbone in backbones.items()}
    console.say(f"{out.name}: {scores}")
    return scores


def run_seed(data: Path, out: Path, seed: int, changes: list[str], console: Console) -> list[dict[str, Scores]]:
    """Both halves of a seed."""
    labelled = LabelledConfig(format="folder", root=data / "rsscn7", test_fraction=0.5, split_seed=seed)
    one, other = read_labelled(labelled)
    pairs = enumerate(((one, other), (other, one)))
    return [run_half(data, out / f"half_{i}", seed, known, test, changes, console) for i, (known, test) in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("out/synthesized"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the pretraining recipe")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    console = Console()
    seeds = [run_seed(args.data, args.out / f"seed_{s}", s, args.set, console) for s in range(args.seeds)]
    halves = [half for seed in seeds for half in seed]
    result: dict[str, Any] = {"seeds": args.seeds}
    for kind in ("linear", "knn"):
        for arm in ("random", "vitp"):
            result[f"{arm}_{kind}"] = [round(half[arm][kind], 1) for half in halves]
        gains = [half["vitp"][kind] - half["random"][kind] for half in halves]
        result[f"gains_{kind}"] = [round(gain, 1) for gain in gains]
        result[f"gain_{kind}"] = round(statistics.fmean(gains), 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
