"""One training step of an InternVL: this package's against transformers' own, same weights, data and precision.

    python -m bench.step --vocab small|real --dtype fp32|bf16 --json
    python -m bench.step --size 1b --json                              # on a GPU, see bench/step_1b.py
    python -m bench.step --size 1b --device cpu --layers 1 --vocab small --pad-to 2560 --json   # the same code, without one

The rival is transformers' InternVLForConditionalGeneration: a padded batch of 4, sdpa, logits of every position, foreach
AdamW. Ours takes the same samples: three quarters of the visual tokens dropped (and gone), samples packed, logits at
supervised positions, the tower's last block at the survivors, fused AdamW. bf16 is autocast over fp32 weights in both.
Without dropping both must give the same loss; if they do not, the bench stops. The batch has samples of 1, 3, 5 and 7
tiles; ``--mixture N`` takes N random batches of the mixture instead, which are padded less. A B A B; the ratio is the
median over the rounds of rival's time over ours. With one thread (the default) CPU time is counted, with more the clock
on the wall.
Last line: {"ratio", "rival_samples_per_s", "samples_per_s", "flops_ratio", ...}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import step_1b
from bench.internvl import (
    SIZES,
    VOCABULARY,
    Conversation,
    Padded,
    build_ours,
    build_rival,
    laid_out,
    mixture,
    pad,
    reference_batch,
)
from vitp.backbone.vit import choose_attention
from vitp.instruction.pack import join
from vitp.vlm.model import PackTensors, VisionLanguageModel

BATCH, DROPPED = 4, 0.75
Step = Callable[[int], float]  # number of a batch -> its loss


@dataclass(frozen=True)
class Contest:
    """Two models with the same weights, and batches of the same samples for each."""

    rival: Any
    ours: VisionLanguageModel
    samples: list[list[Conversation]]
    bf16: bool

    def packs(self, ratio: float) -> list[PackTensors]:
        """One pack for every batch."""
        model = self.ours
        return [join(laid_out(s, ratio), model.tokens_per_tile, model.image_size, 0, 128) for s in self.samples]

    def rival_loss(self, batch: Padded) -> Tensor:
        """Mean over the supervised tokens, as transformers computes it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss: Tensor = self.rival(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                pixel_values=batch.pixel_values,
                labels=batch.labels,
                use_cache=False,
            ).loss
        return loss

    def our_loss(self, pack: PackTensors) -> Tensor:
        """The same mean."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            total: Tensor = self.ours(pack)
        return total / pack.weights.sum()


def check_parity(contest: Contest) -> float:
    """Largest relative difference of the losses when nothing is dropped; in fp32 at most 1e-4, in bf16 1e-2."""
    worst = 0.0
    with torch.no_grad():
        for samples, pack in zip(contest.samples, contest.packs(0.0), strict=True):
            theirs, ours = contest.rival_loss(pad(samples)).item(), contest.our_loss(pack).item()
            print(f"nothing dropped: rival's loss {theirs:.6f}, ours {ours:.6f}")
            worst = max(worst, abs(theirs - ours) / theirs)
    if worst > (1e-2 if contest.bf16 else 1e-4):
        raise SystemExit(f"the losses differ by {worst:.2g}: the two models are not the same, nothing is compared")
    return worst


def training(loss_of: Callable[[Any], Tensor], batches: Sequence[Any], model: nn.Module, *, fused: bool) -> Step:
    """A whole step on batch number i: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused, foreach=not fused)

    def step(i: int) -> float:
        loss = loss_of(batches[i])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def counted(step: Step, batches: int) -> float:
    """FLOPs of all batches' steps."""
    with FlopCounterMode(display=False) as counter:
        for i in range(batches):
            step(i)
    return float(counter.get_total_flops())


def alternate(rival: Step, ours: Step, batches: int, rounds: int, clock: Callable[[], float]) -> list[list[float]]:
    """Seconds of every round, rival's and ours; who begins changes from round to round."""
    seconds: list[list[float]] = [[], []]
    for i in range(rounds):
        spent = [0.0, 0.0]
        for batch in range(batches):
            for who in (0, 1) if i % 2 == 0 else (1, 0):
                begun = clock()
                (rival, ours)[who](batch)
                spent[who] += clock() - begun
        for who in (0, 1):
            seconds[who].append(spent[who])
    return seconds


def toy(args: argparse.Namespace) -> dict[str, Any]:
    size, vocabulary = SIZES["toy"].with_layers(args.layers), VOCABULARY[args.vocab or "small"]
    rounds = args.rounds or (3 if args.vocab == "real" else 9)
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    rival = build_rival(size, vocabulary)
    ours = build_ours(size, rival)
    bf16 = args.dtype == "bf16"
    choose_attention(ours.tower, ours.grid**2, torch.device("cpu"), bf16=bf16)
    if args.mixture:
        drawn = mixture(args.mixture * BATCH, size, vocabulary)
        groups = [drawn[i :: args.mixture] for i in range(args.mixture)]
    else:
        groups = [reference_batch(size, vocabulary)]
    contest, batches = Contest(rival, ours, groups, bf16), len(groups)
    difference = check_parity(contest)
    padded, packs = [pad(s) for s in contest.samples], contest.packs(DROPPED)
    steps = (
        training(contest.rival_loss, padded, rival, fused=False),
        training(contest.our_loss, packs, ours, fused=True),
    )
    flops = [counted(step, batches) for step in steps]  # also the warm-up
    seconds = alternate(*steps, batches, rounds, clock)
    medians = [statistics.median(s) for s in seconds]
    n, tiles = batches * BATCH, sum(len(s.tiles) for group in groups for s in group)
    print(
        f"{n} samples, {tiles} tiles: {sum(p.input_ids.numel() for p in padded)} padded "
        f"positions against {sum(len(p.ids) for p in packs)} packed ones"
    )
    return {
        "ratio": round(statistics.median(a / b for a, b in zip(*seconds, strict=True)), 3),
        "rival_samples_per_s": round(n / medians[0], 3),
        "samples_per_s": round(n / medians[1], 3),
        "flops_ratio": round(flops[0] / flops[1], 3),
        "parity": float(f"{difference:.2g}"),
        "vocabulary": vocabulary,
        "dtype": args.dtype,
        "threads": args.threads,
        "clock": "cpu" if args.threads == 1 else "wall",
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="toy")
    parser.add_argument("--vocab", choices=sorted(VOCABULARY), help="default small, with --size 1b real")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--mixture", type=int, metavar="N", help="N random batches of the mixture, not the reference one"
    )
    parser.add_argument("--layers", type=int, help="of tower and decoder, in place of the size's")
    big = parser.add_argument_group("--size 1b")
    big.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    big.add_argument("--samples", type=int, help="of a step")
    big.add_argument("--pad-to", type=int, default=4096, help="positions of the released behaviour")
    big.add_argument("--compile", action="store_true", help="blocks of both models")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    print(json.dumps(toy(args) if args.size == "toy" else step_1b.run(args)))


if __name__ == "__main__":
    main()
