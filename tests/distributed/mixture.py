"""A mixture of two sources with pictures of many sizes, text alone, boxes and two unusable records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.minidata import write_data, write_recipe


def write_mixture(folder: Path) -> Path:
    """Data below `folder` and the recipe for it; returns the recipe."""
    write_data(folder / "colours", 20)
    draw = np.random.default_rng(5)
    root = folder / "shapes"
    (root / "images").mkdir(parents=True)
    lines = []
    for i in range(30):
        width, height = (int(32 * k) for k in draw.integers(1, 4, 2))
        Image.fromarray(draw.integers(0, 255, (height, width, 3), np.uint8)).save(root / "images" / f"{i}.png")
        answer = "noise " * int(draw.integers(1, 20))
        boxed = i % 5 == 0
        question = "Where is <ref>it</ref>?" if boxed else "What is shown?"
        answer = "<ref>it</ref><box>[[10, 20, 500, 900]]</box>" if boxed else answer.strip()
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"image": f"images/{i}.png", "conversations": turns}))
    for i in range(8):
        turns = [
            {"from": "human", "value": f"Count to {i}."},
            {"from": "gpt", "value": " ".join(map(str, range(i + 1)))},
        ]
        lines.append(json.dumps({"conversations": turns}))
    lines[3] = "{"  # known to be unusable from the index
    path = root / "images" / "7.png"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # found out only when it is decoded
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    moves = {"flip": True, "rot90": True, "crop_min_scale": 0.6}
    sources = [
        {"name": "colours", "root": str(folder / "colours"), "annotations": "train.jsonl", "augment": moves},
        {"name": "shapes", "root": str(root), "annotations": "train.jsonl", "augment": moves, "weight": 0.7},
    ]
    return write_recipe(
        folder, folder / "colours", folder / "unused", steps=8, batch_size=7, warm_start={"steps": 2, "batch_size": 3},
        max_tiles_per_pack=6, max_skipped_share=0.5, checkpoint_every=4,
        data={"max_length": 256, "bad_samples": "skip", "tiling": {"max_tiles": 4}, "sources": sources},
    )  # fmt: skip
