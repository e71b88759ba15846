"""A miniature instruction data set on disk and a recipe for it: seconds, not minutes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "white": (235, 235, 235)}


def write_data(root: Path, count: int = 24, size: int = 32) -> Path:
    """Coloured noise pictures, one to three turns each, plus one text-only sample; returns the JSONL."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    lines = []
    for i in range(count):
        name = list(COLOURS)[i % 4]
        pixels = np.clip(rng.normal(0, 25, (size, size + 8 * (i % 2), 3)) + COLOURS[name], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:03}.png")
        turns = [("<image>\nWhich colour is it?", f"It is {name}."), ("Is it red?", "yes" if name == "red" else "no")]
        conversation = []
        for question, answer in turns[: 1 + i % 2]:
            conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"image": f"images/{i:03}.png", "conversations": conversation}))
    text_only = [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "blue"}]
    lines.append(json.dumps({"conversations": text_only}))
    path = root / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_recipe(folder: Path, root: Path, out: Path, **changes: object) -> Path:
    """A recipe that trains in a few seconds; `changes` replace top-level lines."""
    values: dict[str, object] = {
        "name": "mini",
        "out": str(out),
        "steps": 6,
        "batch_size": 4,
        "seed": 1,
        "warmup": 2,
        "lr_tower": 1e-3,
        "lr_projector": 1e-3,
        "lr_language_model": 1e-3,
        "loss_weighting": "answer",
        "log_every": 1,
        "checkpoint_every": 2,
        "keep_last": 2,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "warm_start": {"steps": 2, "batch_size": 4},
        "model": {
            "tower": {
                "architecture": "vit_tiny_patch16_224",
                "image_size": 32,
                "patch_size": 8,
                "width": 24,
                "depth": 2,
                "heads": 3,
                "drop_path": 0.1,
            },
            "pixel_shuffle": 1,
            "language_model": {
                "width": 32,
                "depth": 1,
                "heads": 4,
                "kv_heads": 2,
                "mlp_width": 48,
                "vocabulary": 320,
            },
        },
        "data": {
            "max_length": 256,
            "sources": [
                {
                    "name": "mini",
                    "root": str(root),
                    "annotations": "train.jsonl",
                    "augment": {"flip": True, "rot90": True, "crop_min_scale": 0.6, "jpeg": True},
                }
            ],
        },
    }
    values.update(changes)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML
    return path
