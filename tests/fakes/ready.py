"""Miniatures as their recipes read them, and how a recipe of fine-tuning is made small."""

from __future__ import annotations

from pathlib import Path

from tests.fakes import FAKES
from vitp.commands.prepare import prepare
from vitp.datasets.catalog import BENCHMARKS, benchmark

TINY = (
    "backbone_config={architecture: vit_tiny_patch16_224, image_size: 32, patch_size: 16, width: 16, depth: 4, heads: 2}",
    "steps=2",
    "warmup=1",
    "batch_size=2",
    "micro_batch=2",
    "workers=0",
    "device=cpu",
    "precision=fp32",
    "log_every=1",
    "checkpoint_every=2",
)
_TILES = {  # sixteenths and so on
    "isaid": (64, 28), "uavid": (64, 0), "levir_cd": (32, 0), "whu_cd": (32, 0),
    "dota_v1": (64, 12), "dota_v1_5": (64, 12), "dota_v2": (64, 12), "dota_example": (64, 12),
}  # fmt: skip


def ready(name: str, folder: Path) -> Path:
    """The miniature of a data set, prepared where its recipe wants that."""
    source = FAKES[name](folder / "source" / name)
    entry = "dota_v1" if name == "dota_example" else name
    if entry not in BENCHMARKS or not benchmark(entry).needs_preparation:
        return source
    tile, overlap = _TILES.get(name, (None, None))
    prepare(entry, source, folder / name, tile=tile, overlap=overlap, threads=1)
    return folder / name
