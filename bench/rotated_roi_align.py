"""Rotated RoIAlign of 2000 boxes, 256 channels, 7 x 7 cells of 2 x 2 points, on 2 maps of 128 x 128, A B A B.

    python -m bench.rotated_roi_align --json

`fwd` and `fwd_bwd`: against the same operator written with grid_sample, the usual way without a compiled one. `vs_torchvision`:
forward against torchvision's compiled, axis-aligned roi_align on boxes of the same centres and sizes (`vs_torchvision_fwd_bwd`:
with backward). Ratios are rival over ours: above 1, ours is faster. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from bench.attention import ratio
from vitp.boxes.roi_align import rotated_roi_align

CELLS, POINTS, SCALE = 7, 2, 1 / 8


def by_grid_sample(features: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
    """Image by image: a grid of points a box, sampled, then averaged over each cell. Zero beyond the border."""
    height, width = features.shape[2:]
    steps = (torch.arange(CELLS * POINTS, device=boxes.device) + 0.5) / (CELLS * POINTS) - 0.5
    out = features.new_empty(len(boxes), features.shape[1], CELLS, CELLS)
    cx, cy, w, h = ((boxes[:, k] * SCALE)[:, None, None] for k in range(4))
    cos, sin = boxes[:, 4].cos()[:, None, None], boxes[:, 4].sin()[:, None, None]
    u, v = steps[None, None] * w, steps[None, :, None] * h
    x, y = cx + u * cos - v * sin, cy + u * sin + v * cos
    grid = torch.stack((x * 2 / width - 1, y * 2 / height - 1), -1)  # [R, points, points, 2]
    for n in range(len(features)):
        own = (image == n).nonzero().squeeze(1)
        if len(own):
            flat = grid[own].view(1, -1, CELLS * POINTS, 2)
            read = F.grid_sample(features[n : n + 1], flat, align_corners=False)
            mean = read.view(-1, len(own), CELLS, POINTS, CELLS, POINTS).mean((3, 5))
            out = out.index_copy(0, own, mean.transpose(0, 1))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=2000)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    g, device = torch.Generator().manual_seed(0), torch.device(args.device)
    features = torch.randn(2, args.channels, 128, 128, generator=g).to(device)
    u = torch.rand(args.boxes, 5, generator=g)
    boxes = torch.cat((u[:, :2] * 1024, 16 + u[:, 2:4] * 120, (u[:, 4:] - 0.5) * math.pi), 1).to(device)
    image = torch.randint(0, 2, (args.boxes,), generator=g).to(device)
    flat = torch.cat((image[:, None], boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2), 1)
    trained = features.clone().requires_grad_()
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda m: rotated_roi_align(m, boxes, image, CELLS, SCALE, POINTS),
        "grid_sample": lambda m: by_grid_sample(m, boxes, image),
        "torchvision": lambda m: torchvision.ops.roi_align(m, flat, CELLS, SCALE, POINTS, aligned=True),
    }

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def forward(name: str) -> Callable[[], None]:
        def work() -> None:
            with torch.no_grad():
                forms[name](features)
            wait()

        return work

    def both(name: str) -> Callable[[], None]:
        def work() -> None:
            trained.grad = None
            forms[name](trained).sum().backward()  # type: ignore[no-untyped-call]
            wait()

        return work

    result: dict[str, object] = {"device": device.type, "threads": torch.get_num_threads(), "boxes": args.boxes}
    result["fwd"] = round(ratio(forward("grid_sample"), forward("ours"), args.rounds), 2)
    result["fwd_bwd"] = round(ratio(both("grid_sample"), both("ours"), args.rounds), 2)
    result["vs_torchvision"] = round(ratio(forward("torchvision"), forward("ours"), args.rounds), 2)
    result["vs_torchvision_fwd_bwd"] = round(ratio(both("torchvision"), both("ours"), args.rounds), 2)
    inside = ((boxes[:, :2] > 100) & (boxes[:, :2] < 924)).all(1)  # grid_sample's border rule is another
    error = (forms["ours"](features) - forms["grid_sample"](features))[inside].abs().max()
    result["max_err"] = float(error)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
