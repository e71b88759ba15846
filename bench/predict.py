"""Predicting a big GeoTIFF against a plain loop over its windows: time and memory, and the memory of a huge one.

    python -m bench.predict --json
    python -m bench.predict --side 30000 --only ours --rounds 1 --json     (--height 3000: a tenth of it, the same memory)

The plain loop reads one window at a time, keeps the sum of weighted logits of the whole image in memory, takes the highest
and writes the class map: the same model, windows, overlap, weights and precision, and the same file in the end. Each side runs
in processes of its own, alternately (A B A B); time counts from the opened model to the closed output, memory is the highest
resident size of the process. Last line: {"speed_ratio", "memory_ratio", "rss_mb"}, the latter of ours.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.commands.predict import predict
from vitp.inference.config import PredictConfig
from vitp.inference.grid import make_grid
from vitp.inference.model import load_predictor
from vitp.tasks.segment import InferenceConfig, SegmenterParts, build_segmenter, save_segmenter

CLASSES = tuple(f"class {i}" for i in range(16))  # as many as iSAID has
WINDOW, OVERLAP, BLOCK = 512, 0.25, 512
SIDES = ("plain", "ours")


def make_run(folder: Path, head: str) -> None:
    """A segmenter with random weights, small enough for the work around it to show."""
    config = BackboneConfig(
        architecture="vit_tiny_patch16_224", image_size=WINDOW, patch_size=32, width=32, depth=2, heads=2
    )
    folder.mkdir(parents=True, exist_ok=True)
    parts = SegmenterParts.model_validate({"head": {"kind": head}})
    model = build_segmenter(random_backbone(config, 0), CLASSES, 0, parts)
    save_segmenter(folder / "model.safetensors", model, InferenceConfig(window=WINDOW))


def make_scene(path: Path, side: int, height: int) -> None:
    """Smooth coloured noise in tiles, written row by row of tiles."""
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": height, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    profile |= {"transform": rasterio.Affine(0.3, 0, 5e5, 0, -0.3, 5e6), "tiled": True, "compress": "deflate"}
    profile |= {"blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel", "bigtiff": "IF_SAFER"}
    with rasterio.open(path, "w", **profile) as dataset:
        for top in range(0, height, BLOCK):
            rows = min(BLOCK, height - top)
            coarse = rng.integers(0, 240, (3, -(-rows // 16), -(-side // 16)), dtype=np.uint8)
            fine = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :rows, :side]
            fine += rng.integers(0, 15, fine.shape, dtype=np.uint8)
            dataset.write(fine, window=((top, top + rows), (0, side)))


def plain(run: Path, scene: Path, out: Path) -> None:
    """One window after the other; everything is stitched in memory."""
    predictor, _ = load_predictor(run, device="cpu")
    with rasterio.open(scene) as dataset:
        height, width, profile = dataset.height, dataset.width, dict(dataset.profile)
        grid = make_grid(height, width, WINDOW, OVERLAP)
        total: NDArray[np.float32] = np.zeros((len(CLASSES), height, width), dtype=np.float32)
        for row, top in enumerate(grid.rows.starts):
            for column, left in enumerate(grid.columns.starts):
                part = (slice(top, top + WINDOW), slice(left, left + WINDOW))
                pixels = dataset.read(window=((top, top + WINDOW), (left, left + WINDOW)))
                logits = predictor.logits(torch.from_numpy(pixels)[None])[0].numpy()
                weight = grid.rows.weights[row].numpy()[:, None] * grid.columns.weights[column].numpy()
                total[:, part[0], part[1]] += logits * weight
    ids = total.argmax(0).astype(np.uint8)
    profile |= {"count": 1, "nodata": 255, "interleave": "band"}
    with rasterio.open(out / "scene.tif", "w", **profile) as dataset:
        dataset.write(ids, 1)


def one(side: str, run: Path, scene: Path, out: Path) -> dict[str, float]:
    """Run one side in this process."""
    begun = time.perf_counter()
    if side == "plain":
        out.mkdir(parents=True, exist_ok=True)
        plain(run, scene, out)
    else:
        # no overviews and no preview: the plain loop writes none either
        config = PredictConfig(window=WINDOW, overlap=OVERLAP, overviews=False, preview=0, device="cpu")
        predict(run, scene, out, config=config, overwrite=True)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def other_process(side: str, run: Path, scene: Path, out: Path) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "bench.predict", "--one", side, str(run), str(scene), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {found['seconds']:.1f} s, {found['rss_mb']:.0f} MB", flush=True)
    return found


def measure(side: int, height: int, rounds: int, only: str | None, head: str) -> dict[str, float]:
    """Both sides in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "run", head)
        make_scene(folder / "scene.tif", side, height)
        for _ in range(rounds):
            for name in [only] if only else SIDES:
                found[name].append(other_process(name, folder / "run", folder / "scene.tif", folder / name))
        if not only:
            maps = [rasterio.open(folder / name / "scene.tif").read(1) for name in SIDES]
            print(f"pixels of another class: {np.mean(maps[0] != maps[1]):.2e}")
    result = {"side": float(side), "height": float(height)}
    for name, runs in found.items():
        if runs:
            result[f"seconds_{name}"] = round(statistics.median(r["seconds"] for r in runs), 1)
            result[f"rss_mb_{name}"] = round(max(r["rss_mb"] for r in runs))
    if found["ours"]:
        result["rss_mb"] = result["rss_mb_ours"]
    if not only:
        pairs = zip(found["plain"], found["ours"], strict=True)
        result["speed_ratio"] = round(statistics.median(a["seconds"] / b["seconds"] for a, b in pairs), 2)
        result["memory_ratio"] = round(result["rss_mb_plain"] / result["rss_mb_ours"], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="pixels of the image's side")
    parser.add_argument("--height", type=int, help="rows, where it is no square: memory grows with the width alone")
    parser.add_argument(
        "--head", choices=("linear", "fcn"), default="linear", help="fcn: the model itself takes most time"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=SIDES, help="run one side alone")
    parser.add_argument("--one", nargs=4, metavar=("SIDE", "RUN", "SCENE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    if args.one is not None:
        side, run, scene, out = args.one
        print(json.dumps(one(side, Path(run), Path(scene), Path(out))))
        return
    print(json.dumps(measure(args.side, args.height or args.side, args.rounds, args.only, args.head)))


if __name__ == "__main__":
    main()
