"""Multi-scale deformable attention: sampling by weighted bags of rows against ``grid_sample``, A B A B.

    python -m bench.deformable --json

The sizes are those of a ViT-Adapter at 512 pixels with 16 heads of 32 channels and 4 points: the injector (1,024
queries, three levels of 64, 32 and 16 cells a side) and the extractor (5,376 queries, one level of 32). Ratios are
grid over bag, of processor time with one thread and of wall time with more: above 1, the bags are faster. Last line:
one JSON object, `fwd` and `fwd_bwd` being the smaller of both sizes. ``--width 16`` measures the released ViT-L, whose
values are narrower; `choose_form` takes grids below 8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vitp.backbone.deformable import Shapes, sample_bag, sample_grid

CASES: dict[str, tuple[int, Shapes]] = {
    "injector": (1024, ((64, 64), (32, 32), (16, 16))),
    "extractor": (5376, ((32, 32),)),
}


def ratio(rival: Callable[[], None], ours: Callable[[], None], rounds: int) -> float:
    """Median over the rounds of the rival's time over ours."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for work in (rival, ours):
        work()
    values = []
    for i in range(rounds):
        seconds = {}
        for work in (rival, ours) if i % 2 == 0 else (ours, rival):
            begun = clock()
            work()
            seconds[work] = clock() - begun
        values.append(seconds[rival] / seconds[ours])
    return statistics.median(values)


def inputs(queries: int, shapes: Shapes, heads: int = 16, width: int = 32, points: int = 4) -> list[Tensor]:
    """Value, locations (a few outside) and weights, from a fixed seed."""
    random = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(1, cells, heads, width, generator=random)
    locations = torch.rand(1, queries, heads, len(shapes), points, 2, generator=random) * 1.1 - 0.05
    weights = torch.rand(1, queries, heads, len(shapes) * points, generator=random).softmax(-1)
    return [t.requires_grad_() for t in (value, locations, weights.view(locations.shape[:-1]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=32, help="channels a head")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, float] = {}
    for name, (queries, shapes) in CASES.items():
        value, locations, weights = inputs(queries, shapes, width=args.width)

        def forward(form: Callable[..., Tensor], data: tuple[Tensor, Shapes, Tensor, Tensor]) -> Callable[[], None]:
            def work() -> None:
                with torch.no_grad():
                    form(*data)

            return work

        def both(form: Callable[..., Tensor], data: tuple[Tensor, Shapes, Tensor, Tensor]) -> Callable[[], None]:
            def work() -> None:
                for tensor in (data[0], data[2], data[3]):
                    tensor.grad = None
                form(*data).sum().backward()  # type: ignore[no-untyped-call]

            return work

        data = (value, shapes, locations, weights)
        result[f"{name}_fwd"] = round(ratio(forward(sample_grid, data), forward(sample_bag, data), args.rounds), 2)
        result[f"{name}_fwd_bwd"] = round(ratio(both(sample_grid, data), both(sample_bag, data), args.rounds), 2)
        print(f"{name}: fwd x{result[f'{name}_fwd']}, fwd + bwd x{result[f'{name}_fwd_bwd']}")
    for key in ("fwd", "fwd_bwd"):
        result[key] = min(result[f"{name}_{key}"] for name in CASES)
    print(
        json.dumps(
            {
                "fwd": result.pop("fwd"),
                "fwd_bwd": result.pop("fwd_bwd"),
                **result,
                "width": args.width,
                "threads": args.threads,
            }
        )
    )


if __name__ == "__main__":
    main()
