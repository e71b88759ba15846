"""Which attention is the fast one on this CPU, forward and backward, A B A B.

    python -m bench.attention --json

Two questions decide defaults in the code. (1) Many short samples packed in one row: one dense batch with the attention
written out (`vitp.vlm.attention`), against the rival, the fused kernel called once a sample. (2) The tower on short
sequences: timm's written-out attention against the rival, its fused one. Ratios are rival over ours: above 1, ours is
faster. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from vitp.vlm.attention import _per_document, _short_documents


def ratio(rival: Callable[[], object], ours: Callable[[], object], rounds: int) -> float:
    """Median over the rounds of rival's time over ours."""

    def timed(work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    rival(), ours()
    values = []
    for i in range(rounds):
        order = (rival, ours) if i % 2 == 0 else (ours, rival)
        seconds = {work: timed(work) for work in order}
        values.append(seconds[rival] / seconds[ours])
    return statistics.median(values)


def packed(dtype: torch.dtype, rounds: int) -> float:
    """32 samples of 70 to 125 positions, 3 query heads over 1 key head of width 64."""
    torch.manual_seed(0)
    lengths = tuple(int(n) for n in torch.randint(70, 126, (32,)))
    q, k, v = (torch.randn(1, h, sum(lengths), 64, dtype=dtype, requires_grad=True) for h in (3, 1, 1))

    def run(attend: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: attend(q, k, v, lengths, None).sum().backward()  # type: ignore[no-untyped-call]

    return ratio(run(_per_document), run(_short_documents), rounds)


def tower(dtype: torch.dtype, rounds: int) -> float:
    """32 tiles of 64 patches, width 192, 6 blocks."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=128, depth=6, num_classes=0)
    x = torch.randn(32, 3, 128, 128)

    def run(fused: bool) -> Callable[[], None]:
        def work() -> None:
            for block in model.blocks:
                block.attn.fused_attn = fused
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = model.forward_features(x)
            out.float().square().mean().backward()

        return work

    return ratio(run(True), run(False), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    result = {"threads": torch.get_num_threads()}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        result[f"packed_{name}"] = round(packed(dtype, args.rounds), 2)
        result[f"tower_{name}"] = round(tower(dtype, args.rounds), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
