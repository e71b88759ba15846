"""Where the samples of a step are computed: on which rank, and there in which pack.

A step is a fixed set of samples, the positions step * batch .. (step + 1) * batch of the `Mixture`. The plan only says
where each of them is computed, so it changes nothing but rounding, and a run resumes from a step number alone on any
number of ranks. It is a pure function of the samples' sizes, the bounds and the number of ranks: no state, no random
numbers, and integer arithmetic throughout, so that ranks on unlike machines come to the same plan without talking.

Three moves: longest processing time first (Graham 1969) over the ranks; swaps and moves between a heavy and a light
rank while they narrow the gap; the same longest-first rule inside each rank over its packs. All ranks get the same
number of packs, the smallest for which this finds a layout within the bounds.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vitp.config import Config
from vitp.errors import DataError

Coefficient = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Ints = NDArray[np.int64]
_ROUNDS = 24  # of swaps; few are needed, the cap bounds the time of hopeless steps
_GOAL = 1000  # stop at max/mean 1 + 1/_GOAL: no cost estimate is better than that
_CANDIDATES = 48  # samples of a rank looked at for a swap, so that memory stays bounded
_BITS = 40  # the dearest sample of a step costs 2^39 to 2^40 internal units; sums of 2^22 of them fit int64


class CostConfig(Config):
    """Cost of a sample in GFLOP, forward and backward; only ratios matter to the plan.

    The defaults are InternViT-300M at 448 px with Qwen2.5-0.5B; counted once, 1 multiply-add = 2 FLOP, backward = twice
    the forward. The projector (0.1 % of a step) is left out.
    """

    per_tile: Coefficient = 2170.8  # tower, 3 x 723.6 GFLOP a tile (torch.utils.flop_counter; formula agrees)
    per_token: Coefficient = 2.147  # language model, 6 x 357.9 M parameters of the layers
    per_token_pair: Coefficient = 1.29e-4  # causal attention, 3 x 24 layers x 2 x 14 heads x 64, times tokens squared
    per_supervised_token: Coefficient = 0.815  # logits at supervised positions, 6 x 896 x 151,674


class PlanConfig(Config):
    """Bounds of a pack, which is one forward pass, and the cost model that balances them."""

    max_tokens_per_pack: int = Field(default=16384, ge=1, le=2**31)  # as in pretraining recipes
    max_tiles_per_pack: int = Field(default=64, ge=1, le=2**31)  # as in pretraining recipes; bf16 takes 0.91 GB a tile
    max_samples_per_pack: int | None = Field(default=None, ge=1, le=2**31)  # None: no bound, packs have no padding
    cost: CostConfig = CostConfig()


@dataclass(frozen=True, slots=True)
class SampleSize:
    """What a sample asks of the machine."""

    tiles: int  # images of the tower's input size
    tokens: int  # positions in the language model after VRL's drop, text and kept visual tokens
    supervised: int = 0  # of them, positions with a target
    where: str = ""  # file:line, for messages


@dataclass(frozen=True)
class StepPlan:
    """The layout of one step.

    Attributes:
        ranks: ``ranks[rank][micro]`` are the positions of one pack, ascending; every rank has the same number of packs.
            Packs of a rank come dearest first, so that the packs computed at the same time cost about the same. A pack
            is empty only where the step has fewer samples than ranks x packs.
        costs: estimated cost of each rank in GFLOP.
    """

    ranks: tuple[tuple[tuple[int, ...], ...], ...]
    costs: tuple[float, ...]

    @property
    def micros(self) -> int:
        """Packs of a rank, equal on all ranks."""
        return len(self.ranks[0])

    @property
    def imbalance(self) -> float:
        """Cost of the dearest rank over the mean of all; 1 is perfect, and a step that costs nothing is perfect."""
        total = sum(self.costs)
        return max(self.costs) * len(self.costs) / total if total else 1.0


@dataclass(frozen=True)
class _Load:
    """The n samples of a step, dearest first, and last a null sample of no size that stands for an empty place."""

    cost: Ints  # [n + 1], internal units
    bulk: Ints  # [n + 1, 4]: tokens, tiles, samples, -samples; each has an upper limit, the last one as a lower limit

    def limits(self, config: PlanConfig, packs: int, samples: int, least: int) -> Ints:
        """Int64 [4]: upper limits of `packs` packs of at most `samples` samples; at least `least` samples in all."""
        return np.array(
            [packs * config.max_tokens_per_pack, packs * config.max_tiles_per_pack, packs * samples, -least], np.int64
        )


def step_positions(step: int, batch_size: int) -> range:
    """The positions of the stream that make up `step` >= 0, whatever the number of ranks."""
    return range(step * batch_size, (step + 1) * batch_size)


def sample_costs(tiles: Ints, tokens: Ints, supervised: Ints, config: CostConfig) -> NDArray[np.float64]:
    """Estimated cost in GFLOP of samples given by their sizes, all arrays [n]."""
    length = tokens.astype(np.float64)
    return (
        tiles * config.per_tile
        + length * config.per_token
        + length * length * config.per_token_pair
        + supervised * config.per_supervised_token
    )


def plan_step(sizes: Mapping[int, SampleSize], config: PlanConfig, ranks: int) -> StepPlan:
    """Lay the samples of one step out over ranks and packs.

    Args:
        sizes: position of the stream -> size, at least one; the order of the mapping plays no part.
        config: bounds of a pack and cost coefficients.
        ranks: number of processes that share the step, at least 1.

    Returns:
        Every position exactly once, packs within the bounds, equally many packs on every rank. Where bounds do not
        bind, the dearest rank costs at most 4/3 - 1/(3 ranks) of the best possible (Graham 1969).

    Raises:
        DataError: a sample alone exceeds a bound, or has a negative size; the message names it.
    """
    assert ranks >= 1
    assert sizes
    positions = sorted(sizes)
    rows = [sizes[p] for p in positions]
    table = np.array([(s.tokens, s.tiles, s.supervised) for s in rows], np.int64)
    _check(table, rows, positions, config)
    costs = sample_costs(table[:, 1], table[:, 0], table[:, 2], config.cost)
    order = np.argsort(-costs, kind="stable")
    layout = _layout(_measure(costs[order], table[order]), config, ranks)
    names = [positions[i] for i in order]
    return StepPlan(
        tuple(tuple(tuple(sorted(names[i] for i in pack)) for pack in packs) for packs in layout),
        tuple(float(costs[order[[i for pack in packs for i in pack]]].sum()) for packs in layout),
    )


def _check(table: Ints, rows: Sequence[SampleSize], positions: Sequence[int], config: PlanConfig) -> None:
    """Refuse samples that fit no pack at all."""
    if (table < 0).any():
        i = int((table < 0).any(axis=1).argmax())
        raise DataError(
            f"the sample at position {positions[i]} has a negative size ({table[i, 1]} tiles, {table[i, 0]} tokens, "
            f"{table[i, 2]} supervised): rebuild the index of its source",
            rows[i].where,
        )
    for column, unit, bound, key, remedy in (
        (0, "language-model tokens", config.max_tokens_per_pack, "max_tokens_per_pack", "lower max_length"),
        (1, "tiles", config.max_tiles_per_pack, "max_tiles_per_pack", "lower max_tiles of its source"),
    ):
        over = np.flatnonzero(table[:, column] > bound)
        if len(over):
            i = int(over[0])
            more = f" (and {len(over) - 1} more of this step)" if len(over) > 1 else ""
            raise DataError(
                f"the sample at position {positions[i]}{more} has {table[i, column]} {unit}, more than {key} {bound} "
                f"allows for a whole pack: raise {key} or {remedy}",
                rows[i].where,
            )


def _measure(costs: NDArray[np.float64], table: Ints) -> _Load:
    """Costs as integers, scaled by a power of two: sums are exact, so no machine's order of summation matters."""
    n = len(costs)
    assert n <= 2**22
    cost = np.zeros(n + 1, np.int64)
    bulk = np.zeros((n + 1, 4), np.int64)
    _, exponent = np.frexp(costs.max())
    cost[:n] = np.ldexp(costs, _BITS - int(exponent))
    bulk[:n, :2] = table[:, :2]
    bulk[:n, 2], bulk[:n, 3] = 1, -1
    return _Load(cost, bulk)


def _fewest(load: _Load, config: PlanConfig, samples: int, ranks: int) -> int:
    """Packs a rank below which no layout can exist: by volume, and since two samples over half a bound never meet."""
    bounds = np.array([config.max_tokens_per_pack, config.max_tiles_per_pack, samples], np.int64)
    bulk = load.bulk[:, :3]
    packs = np.maximum(-(-bulk.sum(axis=0) // bounds), (2 * bulk > bounds).sum(axis=0))
    return max(1, -(-int(packs.max()) // ranks))


def _layout(load: _Load, config: PlanConfig, ranks: int) -> list[list[list[int]]]:
    """Sample indices by rank and pack, with the fewest packs a rank for which a layout is found."""
    n = len(load.cost) - 1
    samples = config.max_samples_per_pack or n
    most = -(-n // ranks)
    for micros in range(_fewest(load, config, samples, ranks), most + 1):
        found = _attempt(load, config, ranks, micros, samples)
        if found is not None:
            return found
    alone = _attempt(load, config, ranks, most, 1)
    assert alone is not None, "a pack for each sample is always within the bounds"
    return alone


def _attempt(load: _Load, config: PlanConfig, ranks: int, micros: int, samples: int) -> list[list[list[int]]] | None:
    """One try with `micros` packs a rank, or None."""
    n = len(load.cost) - 1
    limits = load.limits(config, micros, samples, min(micros, n // ranks))
    shares = _longest_first(load, range(n), ranks, limits)
    if shares is None:
        return None
    if ranks > 1:
        _even_out(shares, load, limits)
    if micros == 1:
        return [[share] for share in shares]
    layout = []
    for share in shares:
        share.sort()
        bound = load.limits(config, 1, samples, 1 if len(share) >= micros else 0)
        packs = _longest_first(load, share, micros, bound) or _first_fit(load, share, micros, bound)
        if packs is None:
            return None
        packs.sort(key=lambda pack: -int(load.cost[pack].sum()))
        layout.append(packs)
    return layout


def _longest_first(load: _Load, samples: Sequence[int], bins: int, limits: Ints) -> list[list[int]] | None:
    """Each sample in turn, dearest first, to the cheapest bin with room for it; None where one finds no room.

    At the end every bin has its least number of samples: once as many samples are left as bins still miss, bins that
    have theirs are closed.
    """
    cost, bulk = load.cost[samples].tolist(), load.bulk[samples, :2]
    tails = np.minimum.accumulate(bulk[::-1], axis=0)[::-1].tolist()  # smallest tokens and tiles still to come
    max_tokens, max_tiles, max_samples, least = limits.tolist()
    least, missing, left = -least, bins * -least, len(cost)
    heap = [(0, 0, b, 0, 0) for b in range(bins)]  # cost, samples, bin, tokens, tiles: ties go to the emptier bin
    found: list[list[int]] = [[] for _ in range(bins)]
    for sample, price, (tokens, tiles), (fewest_tokens, fewest_tiles) in zip(
        samples, cost, bulk.tolist(), tails, strict=True
    ):
        passed = []
        while heap:
            entry = heapq.heappop(heap)
            spent, count, b, used_tokens, used_tiles = entry
            if count >= max_samples or (left <= missing and count >= least):
                continue  # closed for good
            if used_tokens + tokens <= max_tokens and used_tiles + tiles <= max_tiles:
                break
            if used_tokens + fewest_tokens <= max_tokens and used_tiles + fewest_tiles <= max_tiles:
                passed.append(entry)
        else:
            return None
        for other in passed:
            heapq.heappush(heap, other)
        heapq.heappush(heap, (spent + price, count + 1, b, used_tokens + tokens, used_tiles + tiles))
        found[b].append(sample)
        missing -= count < least
        left -= 1
    return found


def _first_fit(load: _Load, samples: Sequence[int], bins: int, limits: Ints) -> list[list[int]] | None:
    """First fit, bulkiest first: packs tighter than by cost. Bins left over take a sample from the fullest ones."""
    share = (load.bulk[samples, :2] * (1.0 / limits[:2])).max(axis=1)
    room = np.tile(limits[:3], (bins, 1))
    found: list[list[int]] = [[] for _ in range(bins)]
    for k in np.argsort(-share, kind="stable").tolist():
        fits: NDArray[np.bool_] = np.all(room >= load.bulk[samples[k], :3], axis=1)
        b = int(fits.argmax())
        if not fits[b]:
            return None
        room[b] -= load.bulk[samples[k], :3]
        found[b].append(samples[k])
    for pack in found:
        fullest = max(found, key=len)
        if not pack and len(fullest) > 1:
            pack.append(fullest.pop())
    return found


def _even_out(shares: list[list[int]], load: _Load, limits: Ints) -> None:
    """Swap samples between heavy and light ranks, in place, until all cost about the mean.

    Every round pairs the heavier half of the ranks with the lighter half, another pairing each time, and makes in
    each pair the one swap within the limits that brings the two nearest to each other. A swap with the null sample is
    a move. The dearest rank never gets dearer, so what longest-first guarantees still holds.
    """
    ranks, null = len(shares), len(load.cost) - 1
    width = max(map(len, shares)) + 2  # two empty places to move into
    member = np.array([share + [null] * (width - len(share)) for share in shares], np.int64)
    price, cost, bulk = load.cost[member], load.cost[member].sum(axis=1), load.bulk[member].sum(axis=1)
    columns = np.arange(width) if width <= _CANDIDATES else np.linspace(0, width - 1, _CANDIDATES).astype(np.int64)
    total, half, idle = int(cost.sum()), ranks // 2, 0
    every = np.arange(half)
    for turn in range(_ROUNDS):
        if int(cost.max()) * ranks * _GOAL <= total * (_GOAL + 1):
            break
        order = cost.argsort(kind="stable")
        heavy, light = order[::-1][:half], np.roll(order[:half], turn)
        gap = cost[heavy] - cost[light]
        a, b = price[heavy[:, None], columns], price[light[:, None], columns]  # [P, K]: cost of the candidates
        after = np.abs((gap[:, None] - 2 * a)[:, :, None] + 2 * b[:, None, :]).reshape(half, -1)  # [P, K K]
        best = after.argmin(axis=1)
        chosen = member[heavy, columns[best // len(columns)]], member[light, columns[best % len(columns)]]
        change, spare = load.bulk[chosen[0]] - load.bulk[chosen[1]], limits - bulk
        if (change > spare[light]).any() or (-change > spare[heavy]).any():  # the limits bind: only now look closer
            change = (  # [P, K, K, 4]
                load.bulk[member[heavy[:, None], columns]][:, :, None]
                - load.bulk[member[light[:, None], columns]][:, None]
            )
            allowed = (change <= spare[light][:, None, None]) & (-change <= spare[heavy][:, None, None])
            after = np.where(allowed.all(axis=3).reshape(half, -1), after, gap[:, None])
            best = after.argmin(axis=1)
        pairs = np.flatnonzero(after[every, best] < gap)
        idle = 0 if len(pairs) else idle + 1
        if idle >= half:
            break
        h, low, best = heavy[pairs], light[pairs], best[pairs]
        i, j = columns[best // len(columns)], columns[best % len(columns)]
        for table, sums, values in ((price, cost, load.cost), (member, bulk, load.bulk)):
            shifted = values[member[h, i]] - values[member[low, j]]
            sums[h], sums[low] = sums[h] - shifted, sums[low] + shifted
            table[h, i], table[low, j] = table[low, j], table[h, i]
    for share, row in zip(shares, member.tolist(), strict=True):
        share[:] = [i for i in row if i != null]
