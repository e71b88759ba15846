"""How evenly the ranks of a run share a step's work, counted on what they really lay out, and the time of a real run.

    python -m bench.scaling --ranks 2 4 --json

* work_R: the dearest rank's counted work over 1/R of the step's, mean over steps (worst_R: the worst step). Every rank's
  `StepBuilder` lays out its part of each step, images read, cut, templated and dropped, exactly as `vitp pretrain` on R
  ranks does; then its packs' tiles, tokens and supervised positions are counted in FLOPs with the plan's coefficients, here
  those of InternViT-300M with Qwen2.5-0.5B. One rank is the rival: 1/R of its work is what is promised within 3 %.
* same_R: the samples of all ranks together are those of one rank.
* seconds_R, for information: a step of the run itself, R gloo processes with a miniature model on this machine, whose cores
  they share: on C cores R > C ranks cannot be faster than C.

The mixture: 600 pictures of 1 to 7 tiles with conversations of 1 to 4 turns and text alone in two sources, drawn from a
seed; 128 samples a step, VRL as in the paper.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.commands.pretrain import recipe_tokenizer, size_rules
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.instruction.index_build import build_index
from vitp.instruction.pack import StepBuilder
from vitp.instruction.plan import CostConfig, PlanConfig, sample_costs
from vitp.recipes import load_recipe
from vitp.train.task import StepBatch
from vitp.train.trackers import read_log

SIDE, BATCH = 28, 128  # pixels of a tile, kept small: the counted work is that of 448-pixel tiles
TILES = [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (1, 2), (1, 3)]  # grids of the pictures


def write_data(folder: Path, count: int, seed: int) -> None:
    """Two sources of pictures and conversations; about a tenth is text alone."""
    draw = np.random.default_rng(seed)
    words = ["ship", "harbour", "field", "road", "roof", "cloud", "river", "bridge"]
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        lines = []
        for i in range(count // 2):
            across, down = TILES[int(draw.integers(len(TILES)))]
            turns = []
            for _ in range(int(draw.integers(1, 5))):
                answer = " ".join(draw.choice(words, int(draw.integers(1, 60))))
                turns += [{"from": "human", "value": "What is shown?"}, {"from": "gpt", "value": answer}]
            record: dict[str, object] = {"conversations": turns}
            if draw.random() > 0.1:
                pixels = draw.integers(0, 255, (SIDE * down, SIDE * across, 3), np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{i}.png")
                record["image"] = f"{i}.png"
                turns[0]["value"] = "<image>\n" + turns[0]["value"]
            lines.append(json.dumps(record))
        (folder / name / "train.jsonl").write_text("\n".join(lines) + "\n")


def write_recipe(folder: Path, steps: int) -> Path:
    """A miniature model on the mixture."""
    augment = {"flip": True, "rot90": True, "crop_min_scale": 0.8}
    recipe = {
        "name": "scaling", "steps": steps, "batch_size": BATCH, "workers": 0, "device": "cpu", "precision": "fp32",
        "log_every": steps, "checkpoint_every": steps, "lr_tower": 1e-4, "lr_projector": 1e-4, "lr_language_model": 1e-4,
        "model": {
            "tower": {"architecture": "vit_tiny_patch16_224", "image_size": SIDE, "patch_size": 7, "width": 96, "depth": 4,
                      "heads": 3},
            "pixel_shuffle": 1,
            "language_model": {"width": 96, "depth": 3, "heads": 4, "kv_heads": 2, "mlp_width": 256, "vocabulary": 400},
        },
        "data": {"tiling": {"max_tiles": 6}, "max_length": 1024, "index": {"folder": str(folder / "index"), "workers": 1},
                 "sources": [{"name": n, "root": str(folder / n), "annotations": "train.jsonl", "augment": augment}
                             for n in ("a", "b")]},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def counted(batch: StepBatch, cost: CostConfig) -> float:
    """FLOPs (1e9) of what a rank computes in a step: tokens attend within their sample, so samples are counted one by one."""
    total = 0.0
    for pack in batch.micros:
        lengths = np.array(pack.lengths, np.int64)
        zeros = np.zeros_like(lengths)
        total += float(sample_costs(zeros, lengths, zeros, cost).sum())
        total += len(pack.tiles) * cost.per_tile + int((pack.weights > 0).sum()) * cost.per_supervised_token
    return total


def builders(config: PretrainConfig, ranks: int, strategy: str) -> list[StepBuilder]:
    """One for each rank, or the one of a process by itself."""
    sources = config.data.open_sources()
    rules = size_rules(config, recipe_tokenizer(config, sources))
    indexes = [build_index(source, rules, config.data.index) for source in sources]
    found = []
    for rank in range(ranks):
        builder = StepBuilder(
            sources, rules.chat, seed=config.seed, batch_size=config.batch_size, tile_size=rules.tile_size,
            tokens_per_tile=rules.tokens_per_tile, depth_modules=1, tiling=rules.tiling, vrl=config.vrl,
            weighting=config.loss_weighting, max_length=rules.max_length, plan=PlanConfig(),
        )  # fmt: skip
        if ranks > 1:
            builder.on_ranks(rank, ranks, indexes, lockstep=strategy == "fsdp")
        found.append(builder)
    return found


def work(config: PretrainConfig, ranks: int, steps: int, strategy: str) -> dict[str, float]:
    """Shares of the counted work."""
    (alone,), shared, cost = builders(config, 1, strategy), builders(config, ranks, strategy), CostConfig()
    shares, same = [], True
    for step in range(steps):
        whole, parts = alone.step_batch(step), [builder.step_batch(step) for builder in shared]
        fair = counted(whole, cost) / ranks
        shares.append(max(counted(part, cost) for part in parts) / fair)
        same = same and sorted(s for part in parts for s in part.samples) == sorted(whole.samples)
    return {
        f"work_{ranks}": statistics.fmean(shares),
        f"worst_{ranks}": max(shares),
        f"same_{ranks}": float(same),
    }


def seconds(recipe: Path, ranks: int, steps: int) -> float:
    """Seconds of a step in a run on this machine."""
    out = recipe.parent / f"run-{ranks}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}  # fmt: skip
    command = [sys.executable, "-m", "vitp", "pretrain", str(recipe), f"out={out}"]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.DEVNULL)
        for rank in range(ranks)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the run on {ranks} ranks failed")
    return BATCH / read_log(out)[-1]["samples_per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=6, help="steps whose work is counted, and of the timed run")
    parser.add_argument("--strategy", choices=["ddp", "fsdp", "zero1"], default="ddp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-run", action="store_true", help="only count, start no ranks")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder, 600, args.seed)
        recipe = write_recipe(folder, args.steps)
        config = load_recipe(PretrainConfig, recipe, [f"strategy={args.strategy}"])
        for ranks in args.ranks:
            figures = work(config, ranks, args.steps, args.strategy)
            print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()), flush=True)
            result |= figures
        for ranks in [] if args.no_run else [1, *args.ranks]:
            result[f"seconds_{ranks}"] = seconds(recipe, ranks, args.steps)
            print(f"seconds_{ranks} {result[f'seconds_{ranks}']:.3f}", flush=True)
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
