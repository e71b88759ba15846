"""How even and how quick the plan of a step is, against padded batches of four, up to 1,024 ranks and 10^9 samples.

    python -m bench.plan --json

Lengths: the "realistic length mixture" of `reference/perf.md`, section 5 (its generator is `prototypes/planner.py`):
1 / 3 / 4 / 5 / 7 tiles with 30 / 12 / 5 / 33 / 20 %, text tokens log-normal with median 150 and sigma 0.75, clipped to
30-600, 35 % of them supervised; VRL keeps 64 of a tile's 256 visual tokens. The samples of a step are those of a
`Mixture` of 10^9 samples in four sources, whose lengths repeat a table of 10^6. 16 samples a rank: batch 128 on 8 ranks,
1,024 on 64, 16,384 on 1,024; also batch 128 on 64 ranks, where two samples a rank leave nothing to choose.

* imbalance: the dearest rank's cost over the mean of all, mean over steps (also p99 and worst), by the default `CostConfig`.
  floor: what no plan can beat, from the dearest sample and from two of the ranks + 1 dearest sharing a rank.
  lockstep: the same if ranks wait for each other after every pack and not only after every step.
* The rival, as the released code trains: each rank takes its share of the step in data order, in padded batches of 4,
  every sample of a batch costing as many language-model tokens as its longest. Tiles and supervised positions are never
  padded. padded_R = mean over steps of the dearest rank's cost in the rival over the same in the plan, same samples.
  In padded_R the rival too is spared the tokens that VRL drops and their logits; in padded_full_R it pays for the full
  length, as the released code does. Recomputation of activations and logits at unsupervised positions are not counted.
* ms_per_step: median CPU time of `plan_step` for 128 samples on 8 ranks; order_ms_per_step: of asking the `Mixture` for
  their 128 positions. seek_ms: from nothing to the plan of step 10^6, mixture, order and plan, first call of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitp.instruction.mixture import Mixture
from vitp.instruction.plan import PlanConfig, SampleSize, StepPlan, plan_step, sample_costs, step_positions

TABLE, SOURCES, SEEK_STEP, FOUR = 1_000_000, [600_000_000, 300_000_000, 80_000_000, 20_000_000], 1_000_000, 4
KEPT, VISUAL = 64, 256  # visual tokens a tile after VRL and before

Ints = NDArray[np.int64]


def realistic(n: int, seed: int) -> Ints:
    """Int64 [n, 3]: tiles, text tokens, supervised tokens of the realistic length mixture."""
    rng = np.random.default_rng(seed)
    tiles = rng.choice([1, 3, 4, 5, 7], n, p=[0.30, 0.12, 0.05, 0.33, 0.20])
    text = np.clip(rng.lognormal(np.log(150), 0.75, n), 30, 600).astype(np.int64)
    return np.stack([tiles, text, (0.35 * text).astype(np.int64)], axis=1)


def rows_of(mixture: Mixture, table: Ints, step: int, batch: int) -> dict[int, Ints]:
    """Position -> row of the length table, for one step."""
    positions = step_positions(step, batch)
    places = zip(positions, mixture.at_many(positions), strict=True)
    return {p: table[(place.source * 7919 + place.index) % len(table)] for p, place in places}


def sizes_of(rows: dict[int, Ints]) -> dict[int, SampleSize]:
    return {p: SampleSize(int(t), int(t * KEPT + x), int(s)) for p, (t, x, s) in rows.items()}


def padded_cost(rows: dict[int, Ints], ranks: int, visual: int, config: PlanConfig) -> tuple[float, float, float]:
    """Dearest rank's cost and the mean in the rival, and the share of its language-model tokens that is no padding."""
    table = np.stack([rows[p] for p in sorted(rows)])
    tokens = table[:, 0] * visual + table[:, 1]
    longest = np.repeat(tokens.reshape(-1, FOUR).max(axis=1), FOUR)
    cost = sample_costs(table[:, 0], longest, table[:, 2], config.cost).reshape(ranks, -1).sum(axis=1)
    return float(cost.max()), float(cost.mean()), float(tokens.sum() / longest.sum())


def lockstep_and_floor(plan: StepPlan, sizes: dict[int, SampleSize], config: PlanConfig) -> tuple[float, float]:
    """Sum over micro-batches of the dearest rank's pack, over the mean cost of a rank; and the floor of the imbalance."""
    table = np.array([(s.tiles, s.tokens, s.supervised) for s in sizes.values()])
    costs = sample_costs(table[:, 0], table[:, 1], table[:, 2], config.cost)
    cost = dict(zip(sizes, costs.tolist(), strict=True))
    packs = np.array([[sum(cost[p] for p in pack) for pack in rank] for rank in plan.ranks])
    mean, ranks, dearest = packs.sum(axis=1).mean(), len(packs), np.sort(costs)[::-1]
    floor = max(mean, dearest[0], dearest[ranks - 1] + dearest[ranks]) / mean
    return float(packs.max(axis=0).sum() / mean), float(floor)


def verify(plan: StepPlan, sizes: dict[int, SampleSize], config: PlanConfig) -> None:
    """The promises of the plan, on every step of the bench."""
    packs = [pack for rank in plan.ranks for pack in rank]
    assert sorted(p for pack in packs for p in pack) == sorted(sizes)
    assert len({len(rank) for rank in plan.ranks}) == 1
    assert all(packs)
    assert max(sum(sizes[p].tiles for p in pack) for pack in packs) <= config.max_tiles_per_pack
    assert max(sum(sizes[p].tokens for p in pack) for pack in packs) <= config.max_tokens_per_pack


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds of one call."""
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e3


def simulate(mixture: Mixture, table: Ints, config: PlanConfig, ranks: int, batch: int, steps: int) -> dict[str, float]:
    """Figures of one cluster, over `steps` steps spread over the first epoch."""
    plans, rivals, full, apart, milliseconds, order = [], [], [], [], [], []
    for k in range(steps):
        step = k * (mixture.epoch_length // batch // steps)
        begun = time.process_time()
        rows = rows_of(mixture, table, step, batch)
        order.append((time.process_time() - begun) * 1e3)
        sizes = sizes_of(rows)
        begun = time.process_time()
        plan = plan_step(sizes, config, ranks)
        milliseconds.append((time.process_time() - begun) * 1e3)
        verify(plan, sizes, config)
        plans.append(plan)
        apart.append(lockstep_and_floor(plan, sizes, config))
        if batch % (ranks * FOUR) == 0:
            rivals.append(padded_cost(rows, ranks, KEPT, config))
            full.append(padded_cost(rows, ranks, VISUAL, config)[0])
    values = [plan.imbalance for plan in plans]
    dearest = statistics.fmean(max(plan.costs) for plan in plans)
    figures = {
        "imbalance": statistics.fmean(values),
        "imbalance_p99": float(np.quantile(values, 0.99)),
        "imbalance_worst": max(values),
        "imbalance_floor": statistics.fmean(a[1] for a in apart),
        "lockstep": statistics.fmean(a[0] for a in apart),
        "micros": statistics.fmean(plan.micros for plan in plans),
        "ms_per_step": statistics.median(milliseconds),
        "order_ms_per_step": statistics.median(order),
    }
    if rivals:
        figures |= {
            "padded": statistics.fmean(r[0] for r in rivals) / dearest,
            "padded_full": statistics.fmean(full) / dearest,
            "padded_imbalance": statistics.fmean(r[0] / r[1] for r in rivals),
            "padded_useful_tokens": statistics.fmean(r[2] for r in rivals),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    parser.add_argument("--steps", type=int, default=400, help="steps on 8 ranks; a tenth of it on 64")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table, config = realistic(TABLE, args.seed), PlanConfig()
    weights = [1.0] * len(SOURCES)

    def seek() -> None:
        mixture = Mixture(SOURCES, weights, args.seed)
        plan_step(sizes_of(rows_of(mixture, table, SEEK_STEP, 128)), config, 8)

    result: dict[str, float] = {"seek_ms": timed(seek)}
    mixture = Mixture(SOURCES, weights, args.seed)
    small = PlanConfig(max_tiles_per_pack=9)
    for suffix, bounds, ranks, batch, steps in (
        ("8", config, 8, 128, args.steps),
        ("64", config, 64, 1024, max(2, args.steps // 10)),
        ("1024", config, 1024, 16384, 2),
        ("64_batch128", config, 64, 128, max(2, args.steps // 4)),
        ("8_tiles9", small, 8, 128, max(2, args.steps // 4)),
    ):
        figures = simulate(mixture, table, bounds, ranks, batch, steps)
        print(f"{ranks} ranks, batch {batch}, {bounds.max_tiles_per_pack} tiles a pack, {steps} steps: ", end="")
        print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()), flush=True)
        if suffix == "8":
            result |= {name: figures.pop(name) for name in ("ms_per_step", "order_ms_per_step")}
        result |= {f"{name}_{suffix}": value for name, value in figures.items()}
    print(json.dumps({name: round(value, 4) for name, value in sorted(result.items())}))


if __name__ == "__main__":
    main()
