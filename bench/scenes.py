"""How fast procedural scenes are drawn: scenes a second on one core, image, mask and annotations included.

    python -m bench.scenes --json
    python -m bench.scenes --sheet docs/images/scenes.png

Scenes of all themes in turn are drawn in batches; the fastest batch counts, in CPU seconds of this process, so that other
work on the machine disturbs little. Last line: {"optical_128", "sar_128", "optical_512", "sar_512", "instructions_ms", ...}.
With --sheet a contact sheet is drawn instead: scenes of every theme, their masks, the radar view, boxes, and a change pair.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitp.demo.scenes import PALETTE, THEMES, Scene, SceneConfig, draw_pair, draw_scene, instructions

_BATCH = len(THEMES)
_TILE, _GAP, _COLUMNS = 160, 3, 7
# (theme, index) of the sheet: two rows of images, the boxed ones, and the change pair.
_FIRST = (
    ("airport", 61),
    ("port", 63),
    ("residential", 65),
    ("farmland", 64),
    ("coast", 64),
    ("industrial", 64),
    ("river", 61),
)
_SECOND = (
    ("sports", 60),
    ("highway", 66),
    ("urban", 64),
    ("storage", 67),
    ("lake", 67),
    ("parking", 63),
    ("forest", 64),
)
_BOXED = (("airport", 63), ("port", 64), ("highway", 68), ("industrial", 61))
_PAIR = ("residential", 68)


def fastest(work: Callable[[int], object], batches: int) -> float:
    """Calls a CPU second in the fastest of some batches."""
    work(0)
    best = float("inf")
    for batch in range(batches):
        start = time.process_time()
        for i in range(_BATCH):
            work(_BATCH * batch + i)
        best = min(best, time.process_time() - start)
    return _BATCH / best


def measure(batches: int) -> dict[str, float]:
    """All figures."""
    figures: dict[str, float] = {}
    for size in (128, 512):
        for modality in ("optical", "sar"):
            config = SceneConfig(size=size, modality=modality)
            rate = fastest(lambda i, c=config: draw_scene(0, i, c), batches if size == 128 else max(2, batches // 4))
            figures[f"{modality}_{size}"] = round(rate, 1)
            print(f"{modality:8s} {size:4d} px: {rate:7.1f} scenes/s per core", flush=True)
    scenes = [draw_scene(0, i, SceneConfig()) for i in range(_BATCH)]
    rate = fastest(lambda i: instructions(scenes[i % _BATCH], 0, i, 6), batches)
    figures["instructions_ms"] = round(1e3 / rate, 3)
    print(f"six instructions a scene: {figures['instructions_ms']:.3f} ms")
    return figures


def boxed(scene: Scene) -> NDArray[np.uint8]:
    """The image with its oriented boxes, coloured by class."""
    image = Image.fromarray(scene.image)
    draw = ImageDraw.Draw(image)
    colours = {"building": 5, "ship": 6, "aircraft": 7, "vehicle": 8, "tank": 9, "court": 10}
    for instance in scene.instances:
        cx, cy, w, h, angle = instance.obb
        c, s = np.cos(angle), np.sin(angle)
        ends = [(a * w / 2, b * h / 2) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        corners = [(float(cx + x * c - y * s), float(cy + x * s + y * c)) for x, y in ends]
        colour = tuple(int(v) for v in PALETTE[colours[instance.category]])
        draw.line([*corners, corners[0]], fill=colour, width=1)
    return np.asarray(image)


def _palette(pixels: NDArray[np.uint8]) -> Image.Image:
    """256 colours for a palette image: the class colours and k-means centres that do not starve rare colours."""
    coarse = (pixels.reshape(-1, 3) >> 2).astype(np.int64)
    codes, counts = np.unique(coarse @ np.array([4096, 64, 1]), return_counts=True)
    colours = np.stack([codes >> 12, codes >> 6 & 63, codes & 63], axis=-1) * 4.0 + 2.0
    weights = counts**0.4
    centres = colours[np.argsort(-counts, kind="stable")[:: max(1, len(colours) // 244)][:244]]
    for _ in range(12):
        nearest = np.argmin((centres**2).sum(1)[None] - 2.0 * colours @ centres.T, axis=1)
        mass = np.bincount(nearest, weights, len(centres))
        sums = np.stack([np.bincount(nearest, weights * colours[:, k], len(centres)) for k in range(3)], axis=-1)
        centres = np.where(mass[:, None] > 0, sums / np.maximum(mass, 1e-9)[:, None], centres)
    chosen = np.concatenate([PALETTE, [(255, 255, 255)], np.rint(centres)]).astype(np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(chosen[:256].ravel().tolist())
    return image


def sheet(path: Path) -> None:
    """Draw the contact sheet."""

    def scene(entry: tuple[str, int], modality: Literal["optical", "sar"] = "optical") -> Scene:
        return draw_scene(0, entry[1], SceneConfig(size=_TILE, theme=entry[0], modality=modality))

    pair = draw_pair(0, _PAIR[1], SceneConfig(size=_TILE, theme=_PAIR[0], change_probability=0.4))
    tiles = [scene(entry).image for entry in (*_FIRST, *_SECOND)]
    tiles += [PALETTE[scene(entry).mask] for entry in _FIRST]
    tiles += [scene(entry, "sar").image for entry in _FIRST]
    tiles += [boxed(scene(entry)) for entry in _BOXED]
    change = np.repeat(pair.change[:, :, None] * np.uint8(255), 3, axis=2)
    tiles += [pair.before.image, pair.after.image, change]
    pitch = _TILE + _GAP
    rows = -(-len(tiles) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * pitch - _GAP, rows * pitch - _GAP), (255, 255, 255))
    for i, tile in enumerate(tiles):
        canvas.paste(Image.fromarray(tile), (i % _COLUMNS * pitch, i // _COLUMNS * pitch))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(palette=_palette(np.asarray(canvas)), dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always done; kept for symmetry)")
    parser.add_argument("--batches", type=int, default=16, help=f"batches of {_BATCH} scenes a figure")
    parser.add_argument("--sheet", type=Path, help="draw a contact sheet into this file instead")
    arguments = parser.parse_args()
    if arguments.sheet is not None:
        sheet(arguments.sheet)
        print(json.dumps({"sheet": str(arguments.sheet), "bytes": arguments.sheet.stat().st_size}))
        return
    print(json.dumps(measure(arguments.batches)))


if __name__ == "__main__":
    main()
