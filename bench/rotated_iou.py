"""Rotated IoU of 2000 x 2000 boxes against shapely (STRtree, arrays) and torchvision's operator, A B A B.

    python -m bench.rotated_iou --json [--pairs 1000000]

Ratios are rival over ours: above 1, ours is faster. `max_err` is the largest difference from shapely over `--pairs` random
near pairs in float32. Pairs that share edges are left out of it: there shapely itself errs (see docs/boxes.md); the tests
hold them to their known answers. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import shapely
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from bench.attention import ratio
from vitp.boxes.formats import to_quads, to_torchvision
from vitp.boxes.iou import rotated_iou, rotated_iou_pairs


def scene(count: int, seed: int) -> Tensor:
    """Boxes with sides of 8 to 68 on 1024 x 1024 pixels."""
    u = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))
    return torch.cat((u[:, :2] * 1024, 8 + u[:, 2:4] * 60, (u[:, 4:] - 0.5) * math.pi), 1)


def shapely_matrix(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """IoU [N, M] by polygons, those that meet found in a tree."""
    p, q = (shapely.polygons(to_quads(boxes.double()).numpy()) for boxes in (a, b))
    i, j = shapely.STRtree(q).query(p)
    shared = shapely.area(shapely.intersection(p[i], q[j]))
    out = np.zeros((len(a), len(b)))
    out[i, j] = shared / (shapely.area(p)[i] + shapely.area(q)[j] - shared)
    return out


def largest_error(pairs: int) -> float:
    """Over near pairs, in chunks: the largest difference from shapely."""
    worst = 0.0
    for seed, start in enumerate(range(0, pairs, 50_000)):
        a = scene(min(50_000, pairs - start), seed)
        g = torch.Generator().manual_seed(10_000 + seed)
        b = a + torch.randn(a.shape, generator=g) * torch.tensor([12.0, 12.0, 2.0, 2.0, 0.5])
        b[:, 2:4] = b[:, 2:4].abs() + 0.1
        p, q = (shapely.polygons(to_quads(boxes.double()).numpy()) for boxes in (a, b))
        shared = shapely.area(shapely.intersection(p, q))
        expected = shared / (shapely.area(p) + shapely.area(q) - shared)
        worst = max(worst, float(np.abs(rotated_iou_pairs(a, b).numpy() - expected).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    a, b = scene(args.boxes, 1), scene(args.boxes, 2)
    p, q = to_torchvision(a), to_torchvision(b)

    def ours() -> None:
        rotated_iou(a, b)

    result: dict[str, float | None] = {"threads": torch.get_num_threads(), "boxes": args.boxes}
    result["vs_shapely"] = round(ratio(lambda: shapely_matrix(a, b), ours, args.rounds), 2)
    result["vs_torchvision"] = None
    if hasattr(torch.ops.torchvision, "box_iou_rotated"):  # torchvision 0.29 and later
        rival = torchvision.ops.box_iou
        result["vs_torchvision"] = round(ratio(lambda: rival(p, q, fmt="cxcywhr"), ours, args.rounds), 2)
    result["max_err"] = max(
        largest_error(args.pairs), float(np.abs(rotated_iou(a, b).numpy() - shapely_matrix(a, b)).max())
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
