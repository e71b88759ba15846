"""Is instruction data made from labels worth pretraining on? Seven labelled data sets, and nothing else.

    python -m bench.synthesized --data data --seeds 3 --json

`--data` is the folder that holds dota_example, nwpu_vhr10, ssdd, rs_seg_samples (loveda, potsdam), levir_cd_samples,
busi and rsscn7. For every seed: half of RSSCN7 is put aside (stratified, by the seed), `vitp synthesize` asks about all
other images, the shipped recipe pretrain/tiny_synthesized learns from that, and the frozen backbone is probed on the
half put aside, its linear and kNN classifiers trained on the other half. The rival is the same network with random
weights, on the same halves. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from vitp.backbone.vit import random_backbone, save_backbone
from vitp.commands.check import check
from vitp.commands.export import backbone_config, export
from vitp.commands.pretrain import pretrain
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.commands.probe import ProbeConfig, probe
from vitp.commands.synthesize import SynthesizeConfig, synthesize
from vitp.datasets.folder import LabelledConfig, read_labelled
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


def run_seed(data: Path, out: Path, seed: int, changes: list[str], console: Console) -> dict[str, Scores]:
    """Scores in percent of random weights and of the pretrained backbone, same seed, same halves."""
    labelled = LabelledConfig(format="folder", root=data / "rsscn7", test_fraction=0.5, split_seed=seed)
    held = set(read_labelled(labelled)[1].files)
    overrides = [*write_annotations(data, out, seed, held), f"seed={seed}", f"out={out / 'run'}", *changes]
    config = load_recipe(PretrainConfig, "pretrain/tiny_synthesized", overrides)
    report = check(config)
    assert report.count("error") == 0, report.lines()
    with console.training(f"seed {seed}") as bar:
        pretrain(config, progress=bar, overwrite=(out / "run").exists())
    export(out / "run", path=out / "vitp.safetensors", overwrite=True)
    plain = backbone_config(config)
    save_backbone(out / "random.safetensors", random_backbone(plain, seed), plain, {"name": "random weights"})
    scores = {}
    for arm in ("random", "vitp"):
        probing = ProbeConfig(name="rsscn7", backbone=out / f"{arm}.safetensors", data=labelled, neighbours=5)
        result = probe(probing)
        scores[arm] = {"linear": 100 * result.linear[0], "knn": 100 * result.knn[0]}
    console.say(f"seed {seed}: {scores}")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("out/synthesized"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the pretraining recipe")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    console = Console()
    rows = [run_seed(args.data, args.out / f"seed_{s}", s, args.set, console) for s in range(args.seeds)]
    result: dict[str, Any] = {"seeds": args.seeds}
    for kind in ("linear", "knn"):
        for arm in ("random", "vitp"):
            result[f"{arm}_{kind}"] = [round(row[arm][kind], 1) for row in rows]
        gains = [row["vitp"][kind] - row["random"][kind] for row in rows]
        result[f"gain_{kind}"] = round(statistics.fmean(gains), 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
