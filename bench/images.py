"""How many tiles a second one core makes of image files, against the released pipeline, A B A B.

    python -m bench.images --json

Released: Pillow opens and converts, `Image.resize` (bicubic) stretches the picture to its grid of 448-pixel tiles, each
tile is cropped out and goes through torchvision's Resize, ToTensor and Normalize, a thumbnail follows, all are stacked in
fp32. Ours: `read_image` and `cut_tiles`, uint8 tiles; the model normalises them on its device. `normalised` adds that
step to ours on this core, where it does not belong, for those who compare like with like. `bound` is released over
decoding alone: what no resizing could exceed, however fast.

The pictures are noise with the statistics of aerial photographs: amplitude falling with the 1.2nd power of the frequency,
brightness with a standard deviation of 36 levels, weak colours. As JPEG of Pillow's default quality they take 1.4 to 1.8
bits a pixel; aerial photographs in public data sets (NWPU VHR-10, DOTA) have a median of 1.4 to 1.5. The more bits, the
smaller the ratio, since both pipelines decode them alike. Times are CPU times of one thread with files in the page cache, medians
over the rounds; a ratio is the median of the rounds' ratios, above 1 where ours is faster. Levels are of 255.
Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from vitp.images.decode import read_interleaved
from vitp.images.read import ImageConfig, read_image
from vitp.instruction.tiling import TilingConfig, choose_grid, cut_tiles

SIDE = 448
SIZES = (512, 800, 1024, 2048)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TILING = {most: TilingConfig(max_tiles=most) for most in (6, 12)}  # released scripts; most of their sources
READING = ImageConfig()
PICTURES = 3  # of each size, so that no picture stays in the caches
AS_RELEASED = transforms.Compose(
    [
        transforms.Lambda(lambda tile: tile if tile.mode == "RGB" else tile.convert("RGB")),
        transforms.Resize((SIDE, SIDE), interpolation=InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def photograph(size: int, seed: int) -> Image.Image:
    """Noise with the spectrum of an aerial photograph."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    falls = np.maximum(frequency, 1 / size) ** -1.2
    planes = []
    for deviation in (36.0, 9.0, 9.0):  # brightness, two colour axes
        plane = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * falls, s=(size, size))
        planes.append(plane / plane.std() * deviation)
    light, red, blue = planes
    pixels = 127 + np.stack([light + red, light - (red + blue) / 2, light + blue], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def released(file: Path, max_tiles: int) -> Tensor:
    """The released pipeline's tiles, fp32 [t, 3, 448, 448], normalised."""
    image = Image.open(file).convert("RGB")
    width, height = image.size
    columns, rows = choose_grid(width, height, 1, max_tiles, SIDE)
    whole = image.resize((columns * SIDE, rows * SIDE))
    tiles = []
    for place in range(columns * rows):
        left, top = place % columns * SIDE, place // columns * SIDE
        tiles.append(whole.crop((left, top, left + SIDE, top + SIDE)))
    if len(tiles) > 1:
        tiles.append(image.resize((SIDE, SIDE)))
    return torch.stack([AS_RELEASED(tile) for tile in tiles])


def ours(file: Path, max_tiles: int) -> Tensor:
    """Tiles uint8 [t, 3, 448, 448]."""
    return cut_tiles(read_image(file, READING), TILING[max_tiles], SIDE)


def normalised(file: Path, max_tiles: int) -> Tensor:
    """Our tiles as the released pipeline hands them over, fp32 [t, 3, 448, 448]."""
    planes = ours(file, max_tiles).to(torch.float32, memory_format=torch.contiguous_format)
    mean, deviation = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return planes.sub_(mean).div_(deviation)


def decoded(file: Path, max_tiles: int) -> Tensor:
    """Pixels alone."""
    return read_interleaved(file)


WORKS: dict[str, Callable[[Path, int], Tensor]] = {
    "released": released, "ours": ours, "normalised": normalised, "decoded": decoded,
}  # fmt: skip


def timed(files: list[Path], max_tiles: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds a picture of each work in each round; every other round in reversed order."""
    seconds: dict[str, list[float]] = {name: [] for name in WORKS}
    for i in range(rounds + 1):
        for name in list(WORKS)[:: 1 if i % 2 else -1]:
            begun = time.process_time()
            for file in files:
                WORKS[name](file, max_tiles)
            if i:  # the first round warms up
                seconds[name].append((time.process_time() - begun) / len(files))
    return seconds


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Released over that work, median of the rounds' ratios."""
    pairs = zip(seconds["released"], seconds[name], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 2)


def levels(files: list[Path], max_tiles: int) -> tuple[int, float]:
    """Largest and mean difference of our tiles from the released pipeline's, in levels of 255."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    largest, means = 0, []
    for file in files:
        theirs = ((released(file, max_tiles) * deviation + mean) * 255).round().int()
        difference = (ours(file, max_tiles).int() - theirs).abs()
        largest = max(largest, int(difference.max()))
        means.append(float(difference.float().mean()))
    return largest, statistics.fmean(means)


def measure(folder: Path, kind: str, size: int, max_tiles: int, rounds: int) -> dict[str, float]:
    """All figures of one size and file format, by their names in the result."""
    files = []
    for seed in range(PICTURES):
        file = folder / f"{size}_{seed}.{kind}"
        if not file.exists():
            photograph(size, seed).save(file, quality=75)
        files.append(file)
    name = f"{size}" if kind == "jpg" else f"{kind}_{size}"
    if max_tiles != TilingConfig().max_tiles:
        name += f"_max{max_tiles}"
    seconds = timed(files, max_tiles, rounds)
    tiles = len(ours(files[0], max_tiles))
    largest, mean = levels(files, max_tiles)
    figures: dict[str, float] = {
        f"ratio_{name}": ratio(seconds, "ours"),
        f"ratio_{name}_normalised": ratio(seconds, "normalised"),
        f"bound_{name}": ratio(seconds, "decoded"),
        f"tiles_{name}": tiles,
        f"tiles_per_second_{name}": round(tiles / statistics.median(seconds["ours"])),
        f"tiles_per_second_{name}_released": round(tiles / statistics.median(seconds["released"])),
        "max_level_diff": largest,
        "mean_level_diff": round(mean, 4),
    }
    if kind == "jpg":
        bits = statistics.fmean(8 * file.stat().st_size / size**2 for file in files)
        figures[f"bits_per_pixel_{size}"] = round(bits, 2)
    print(f"{kind} {size}, at most {max_tiles} tiles: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, float] = {"max_level_diff": 0, "mean_level_diff": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for kind, max_tiles, sizes in (("jpg", 6, SIZES), ("jpg", 12, (1024, 2048)), ("png", 6, (512, 1024, 2048))):
            for size in sizes:
                figures = measure(Path(folder), kind, size, max_tiles, args.rounds)
                worst = {k: max(result[k], figures[k]) for k in ("max_level_diff", "mean_level_diff")}
                result |= figures | worst
    print(json.dumps(result))


if __name__ == "__main__":
    main()
