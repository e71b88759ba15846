"""`bench.step --size 1b`: the step at InternVL-1B's shapes, against two rivals on the same samples.

    python -m bench.step --size 1b --json
    python -m bench.step --size 1b --device cpu --layers 1 --vocab small --samples 4 --pad-to 2560 --json

Random weights, the mixture of 1 to 7 tiles, bf16 weights with fp32 copies in fused AdamW for all three, so that the
optimiser makes no difference. Rival (a), as a careful user would run it: transformers' InternVL, samples in the order of
their lengths, padded on the right without a mask (so that sdpa takes its flash kernel), the largest batch that fits.
Rival (b), the released behaviour: batches of 4 padded to 4,096 positions, checkpointing everywhere. Ours: 75 % of the
visual tokens dropped, packs as large as fit. One step takes all samples, whatever the batches; A B C A B C, medians.
``mfu`` is the work the gradient needs with dropped tokens gone, over the time and the device's dense bf16 peak; the rate
of one large matrix product, measured here, stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from bench.internvl import SIZES, VOCABULARY, Conversation, Padded, build_ours, build_rival, laid_out, mixture, pad
from vitp.instruction.pack import LaidOut, join, plan_packs
from vitp.instruction.plan import PlanConfig
from vitp.train.hardware import dense_peak
from vitp.train.optim import MasterAdamW, to_bf16_weights
from vitp.vlm.acceleration import use_compile
from vitp.vlm.cost import estimate_cost
from vitp.vlm.flops import Work, count_flops, last_block_of
from vitp.vlm.model import PackTensors, VisionLanguageModel

DROPPED = 0.75
RELEASED_BATCH = 4


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of one large bf16 matrix product."""
    n, repeats = (8192, 30) if device.type == "cuda" else (1024, 5)
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    for timed in (False, True):
        wait(device)
        begun = time.perf_counter()
        for _ in range(repeats if timed else 3):
            a @ b
        wait(device)
    return 2.0 * n**3 * repeats / (time.perf_counter() - begun)


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Trainer:
    """A model with its optimiser, which lie on the device only while it is their turn."""

    model: nn.Module
    device: torch.device

    def __post_init__(self) -> None:
        masters = to_bf16_weights(self.model)
        groups = [{"params": list(self.model.parameters())}]
        self.optimizer = MasterAdamW(groups, masters, lr=1e-5, fused=True)

    def move(self, device: torch.device) -> None:
        """Weights, copies and moments."""
        self.model.to(device)
        for state in self.optimizer.state.values():
            state.update({name: value.to(device) for name, value in state.items()})

    def step(self, losses: Iterator[Tensor]) -> float:
        """Backward passes of all parts of a step's loss, and the update; the step's loss."""
        total = torch.zeros((), device=self.device)
        for loss in losses:
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()


def on(device: torch.device, batch: Padded) -> Padded:
    """The batch on the device, its pixels in bf16."""
    moved = {name: value.to(device) for name, value in vars(batch).items()}
    return Padded(**{**moved, "pixel_values": moved["pixel_values"].to(torch.bfloat16)})


def rival_losses(rival: Any, batches: Sequence[Padded], supervised: int, device: torch.device) -> Iterator[Tensor]:
    """Parts of the mean over all supervised tokens; without a mask, since padding on the right is never looked at."""
    for batch in batches:
        moved = on(device, batch)
        yield rival(
            input_ids=moved.input_ids,
            pixel_values=moved.pixel_values,
            labels=moved.labels,
            num_items_in_batch=supervised,
            use_cache=False,
        ).loss


def our_losses(
    model: VisionLanguageModel, packs: Sequence[PackTensors], supervised: int, device: torch.device
) -> Iterator[Tensor]:
    """Parts of the mean over all supervised tokens."""
    for pack in packs:
        yield model(pack.to(device)) / supervised


def largest(sizes: Iterator[int], works: Callable[[int], None]) -> int:
    """The last of growing sizes with which `works` finds memory."""
    fits = 0
    for size in sizes:
        try:
            works(size)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        fits = size
    if not fits:
        raise SystemExit("not even the smallest batch fits into this device")
    return fits


def sizes(start: int, most: int) -> Iterator[int]:
    """`start`, half as much more, twice as much, and so on, up to `most`."""
    for i in count():
        base = start << i
        for size in (base, base * 3 // 2):
            if size > most:
                return
            yield size


def packed(model: VisionLanguageModel, samples: list[LaidOut], tiles: int) -> list[PackTensors]:
    """The samples in packs of at most so many tiles."""
    plan = PlanConfig(max_tiles_per_pack=tiles, max_tokens_per_pack=1 << 20, cost=estimate_cost(model))
    packs = plan_packs(samples, plan)
    joined = [join(p, model.tokens_per_tile, model.image_size, 0, 128) for p in packs]
    return [p.pin_memory() if torch.cuda.is_available() else p for p in joined]


def check_parity(rival: Any, ours: VisionLanguageModel, samples: list[Conversation], device: torch.device) -> float:
    """Relative difference of the fp32 losses with nothing dropped; more than 1e-4 ends the bench."""
    with torch.no_grad():
        batch, pack = pad(samples), join(laid_out(samples, 0.0), ours.tokens_per_tile, ours.image_size, 0)
        moved = {name: value.to(device) for name, value in vars(batch).items()}
        theirs = rival.to(device)(**moved, use_cache=False).loss.item()
        rival.cpu()
        own = (ours.to(device)(pack.to(device)) / pack.weights.sum().item()).item()
        ours.cpu()
    print(f"nothing dropped: rival's loss {theirs:.6f}, ours {own:.6f}")
    if abs(theirs - own) > 1e-4 * theirs:
        raise SystemExit("the two models are not the same, nothing is compared")
    return abs(theirs - own) / theirs


def work_of(samples: Sequence[LaidOut]) -> Work:
    """What our step asks for."""
    return Work.total(Work.of(len(s.tiles), len(s.kept), len(s.ids), len(s.targets)) for s in samples)


def padded_work(batches: Sequence[Padded], cells: int) -> Work:
    """What a padded step asks for: all positions, all logits."""
    works = []
    for batch in batches:
        rows, length = batch.input_ids.shape
        tiles = len(batch.pixel_values)
        works.append(Work(rows, tiles, tiles * cells, rows * length, rows * length**2, rows * length))
    return Work.total(works)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build, check, fit, measure."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no GPU here; --device cpu --layers 1 --vocab small --samples 4 --pad-to 2560 runs the same code"
        )
    on_gpu = device.type == "cuda"
    size, vocabulary = SIZES["1b"].with_layers(args.layers), VOCABULARY[args.vocab or "real"]
    rival = build_rival(size, vocabulary)
    ours = build_ours(size, rival)
    samples = mixture(args.samples or (64 if on_gpu else 4), size, vocabulary)
    difference = check_parity(rival, ours, sorted(samples, key=lambda s: len(s.ids))[:2], device)
    if args.compile:
        use_compile(ours)
        for layer in (*rival.model.vision_tower.encoder.layer, *rival.model.language_model.layers):
            layer.compile()
    trainers = {"rival": Trainer(rival, device), "ours": Trainer(ours, device)}
    supervised = sum(s.answer for s in samples)
    by_length = sorted(samples, key=lambda s: len(s.ids), reverse=True)
    laid = laid_out(samples, DROPPED)

    def try_rival(batch: int) -> None:
        trainers["rival"].step(rival_losses(rival, [pad(by_length[:batch])], supervised, device))

    def try_ours(tiles: int) -> None:
        trainers["ours"].step(our_losses(ours, packed(ours, laid, tiles)[:1], supervised, device))

    trainers["rival"].move(device)
    batch = largest(sizes(4, len(samples)), try_rival) if on_gpu else 2
    trainers["rival"].move(torch.device("cpu"))
    trainers["ours"].move(device)
    tiles = largest(sizes(8, sum(len(s.tiles) for s in samples)), try_ours) if on_gpu else 8
    trainers["ours"].move(torch.device("cpu"))
    packs = packed(ours, laid, tiles)
    tuned = [pad(by_length[i : i + batch]) for i in range(0, len(samples), batch)]
    every = range(0, len(samples), RELEASED_BATCH)
    released = [pad(samples[i : i + RELEASED_BATCH], args.pad_to) for i in every]
    print(f"rival (a): batches of {batch}; ours: {len(packs)} packs of at most {tiles} tiles")
    contest: dict[str, Callable[[], float]] = {
        "tuned": lambda: trainers["rival"].step(rival_losses(rival, tuned, supervised, device)),
        "released": lambda: trainers["rival"].step(rival_losses(rival, released, supervised, device)),
        "ours": lambda: trainers["ours"].step(our_losses(ours, packs, supervised, device)),
    }
    seconds = measure(contest, trainers, rival, device, args.rounds or (5 if on_gpu else 2))
    counts, last = count_flops(ours), last_block_of(ours, 1.0 - DROPPED)
    useful = counts.of(work_of(laid), last_block=last).useful.total
    rival_flops = counts.of(padded_work(tuned, ours.tokens_per_tile)).useful.total
    return report(seconds, len(samples), useful, rival_flops, device) | {
        "parity": float(f"{difference:.2g}"),
        "vocabulary": vocabulary,
        "layers": size.tower[0],
        "rival_batch": batch,
        "tiles_per_pack": tiles,
        "compiled": args.compile,
    }


def measure(
    contest: dict[str, Callable[[], float]],
    trainers: dict[str, Trainer],
    rival: Any,
    device: torch.device,
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of every round after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contest}
    for round_ in range(rounds + 1):
        for name in contest if round_ % 2 else reversed(contest):
            trainer = trainers["ours" if name == "ours" else "rival"]
            if name == "released":
                rival.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            trainer.move(device)
            wait(device)
            begun = time.perf_counter()
            contest[name]()
            wait(device)
            if round_:
                seconds[name].append(time.perf_counter() - begun)
            trainer.move(torch.device("cpu"))
            if name == "released":
                rival.gradient_checkpointing_disable()
    return seconds


def report(
    seconds: dict[str, list[float]], samples: int, useful: float, rival_flops: float, device: torch.device
) -> dict[str, Any]:
    """Ratios, rates and utilisation."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    paired = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
        for name in ("tuned", "released")
    }
    peak, ceiling = dense_peak(device, bf16=True), matmul_rate(device)
    return {
        "ratio": round(paired["tuned"], 3),
        "rival_samples_per_s": round(samples / median["tuned"], 3),
        "samples_per_s": round(samples / median["ours"], 3),
        "flops_ratio": round(rival_flops / useful, 3),
        "ratio_released": round(paired["released"], 3),
        "released_samples_per_s": round(samples / median["released"], 3),
        "useful_tflops": round(useful / median["ours"] * 1e-12, 3),
        "mfu": round(useful / median["ours"] / peak, 4) if peak else None,
        "matmul_ceiling_tflops": round(ceiling * 1e-12, 3),
        "share_of_ceiling": round(useful / median["ours"] / ceiling, 4),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
