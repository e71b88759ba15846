"""One image learned by heart: a detector that cannot do this is broken, whatever its losses say.

    python -m bench.overfit --data data --json
    python -m bench.overfit --data data --only bccd nwpu_vhr10 --pictures out/overfit

`--data` is the folder that holds the data sets under their names (`bench.detect_sets`). Of every set the image with the
median number of objects is taken (`--image` names another by a part of its path), and the shipped small recipe is trained
on it alone, from random weights, without augmentation; AP at IoU 0.5 is of that image itself. Asked: above 0.9.
With --pictures an HTML report of each is written there. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.detect_sets import DETECT_SETS, DetectSet, cut_patches
from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.commands.finetune_detect import DetectConfig, build_detect_task
from vitp.commands.scoring_objects import score_and_show
from vitp.datasets.detection import DetectionData, open_detection
from vitp.datasets.splits import Parts
from vitp.progress import Console
from vitp.recipes import load_recipe
from vitp.tasks.detect import Shown
from vitp.train.loop import open_output, train

_VIT = BackboneConfig(
    architecture="vit_tiny_patch16_224", image_size=128, patch_size=16, width=192, depth=6, heads=3
)  # of recipes/pretrain/tiny_*.yaml
_LEAST = 3  # objects: fewer say little


def only_image(data: DetectionData, part: str | None) -> int:
    """The image with the median number of objects, of those with some; or the one whose path holds `part`."""
    if part is not None:
        found = [i for i, item in enumerate(data.items) if part in item.image.as_posix()]
        if len(found) != 1:
            raise SystemExit(f"--image {part}: {len(found)} images have that in their path; name one")
        return found[0]
    counts = {i: len(data.objects(i)) for i in range(len(data.items))}
    useful = sorted((count, i) for i, count in counts.items() if count >= _LEAST)
    return useful[len(useful) // 2][1]


def recipe(entry: DetectSet, args: argparse.Namespace, out: Path) -> DetectConfig:
    """The shipped recipe without augmentation, with anchors for small objects."""
    root = args.data / entry.folder if entry.patches is None else cut_patches(entry, args.data, args.out)
    return load_recipe(DetectConfig, f"finetune/{entry.recipe}", [
        f"data.root={root}",
        f"out={out}",
        f"steps={args.steps}",
        "warmup=10",
        "batch_size=1",
        f"checkpoint_every={args.steps}",
        "workers=0",
        "layer_decay=1.0",
        f"backbone_config={_VIT.model_dump_json()}",
        *entry.overrides,
        "detector.rpn.anchors.scales=[2,4]",  # from 8 pixels on: no anchor of 16 fits small ships
        "augment.flip=0",
        "augment.flip_vertical=0",
        "augment.flip_diagonal=0",
        "augment.rotate=0",
        "augment.photometric=0",
        f"augment.size={args.side}",
    ])  # fmt: skip


def learn(entry: DetectSet, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train on one image and score it."""
    with tempfile.TemporaryDirectory() as folder:
        config = recipe(entry, args, Path(folder) / "run")
        data = open_detection(config.data)
        chosen = only_image(data, args.image)
        data.parts = Parts([chosen], [], [chosen])
        task = build_detect_task(config, data, random_backbone(_VIT, 0))
        open_output(config.folder, overwrite=False)
        begun = time.process_time()
        with console.training(f"{entry.name}: {data.items[chosen].image.name}") as bar:
            trained = train(task, config, config.folder, progress=bar)
        shown = Shown(augment=config.augment, inference=config.inference)
        scored = score_and_show(
            task.detector,
            data,
            [chosen],
            shown,
            "taken where no validation images chose one",
            bf16=False,
            pictures=1,
            progress=lambda done, total: None,
        )
        if args.pictures is not None:
            scored.write(args.pictures / f"{entry.name}.html", f"{entry.name}, one image learned by heart")
    numbers = scored.scores.as_dict()
    found = {
        "image": data.items[chosen].image.name,
        "objects": len(data.objects(chosen)),
        "AP50": round(numbers["AP50"], 4),
        "loss": round(trained.loss, 4),
        "cpu_s": round(time.process_time() - begun, 1),
    }
    if numbers.get("mask_AP50") is not None:
        found["mask_AP50"] = round(numbers["mask_AP50"], 4)
    return found


def main() -> None:
    names = [entry.name for entry in DETECT_SETS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("out/overfit"), help="where patches of large images are kept")
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=384, help="of the image, in pixels")
    parser.add_argument("--image", help="part of the path of the image to take")
    parser.add_argument("--pictures", type=Path, help="folder for an HTML report of each")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    console = Console()
    found = {}
    for entry in DETECT_SETS:
        if entry.name in args.only:
            found[entry.name] = learn(entry, args, console)
            console.say(f"{entry.name}: {found[entry.name]}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
