"""The plan of a step: everything once, within bounds, even, and the same for everybody."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.errors import DataError
from vitp.instruction.mixture import Mixture
from vitp.instruction.plan import CostConfig, PlanConfig, SampleSize, StepPlan, plan_step, sample_costs, step_positions

# The cost is the number of supervised tokens and nothing else, so that tests choose cost and bulk apart.
COUNTED = CostConfig(per_tile=0.0, per_token=0.0, per_token_pair=0.0, per_supervised_token=1.0)


def realistic(n: int, seed: int) -> dict[int, SampleSize]:
    """The length mixture of the performance study: 1-7 tiles, log-normal text, a quarter of the visual tokens kept."""
    rng = np.random.default_rng(seed)
    tiles = rng.choice([1, 3, 4, 5, 7], n, p=[0.30, 0.12, 0.05, 0.33, 0.20])
    text = np.clip(rng.lognormal(np.log(150), 0.75, n), 30, 600).astype(int)
    rows = zip(tiles.tolist(), text.tolist(), strict=True)
    return {i: SampleSize(t, 64 * t + x, int(0.35 * x)) for i, (t, x) in enumerate(rows)}


def priced(costs: list[int]) -> dict[int, SampleSize]:
    return {i: SampleSize(1, 1, c) for i, c in enumerate(costs)}


def members(plan: StepPlan) -> list[int]:
    return sorted(p for rank in plan.ranks for pack in rank for p in pack)


def check_promises(plan: StepPlan, sizes: dict[int, SampleSize], config: PlanConfig, ranks: int) -> None:
    """What holds for every plan; recomputed from the sizes, not from what the plan says of itself."""
    assert members(plan) == sorted(sizes)
    assert len(plan.ranks) == len(plan.costs) == ranks
    assert {len(rank) for rank in plan.ranks} == {plan.micros}
    packs = [pack for rank in plan.ranks for pack in rank]
    for pack in packs:
        assert sum(sizes[p].tokens for p in pack) <= config.max_tokens_per_pack
        assert sum(sizes[p].tiles for p in pack) <= config.max_tiles_per_pack
        assert config.max_samples_per_pack is None or len(pack) <= config.max_samples_per_pack
        assert list(pack) == sorted(pack)
    if len(sizes) >= len(packs):
        assert all(packs)


size = st.builds(SampleSize, tiles=st.integers(0, 12), tokens=st.integers(1, 400), supervised=st.integers(0, 80))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.dictionaries(st.integers(0, 10**12), size, min_size=1, max_size=60),
    ranks=st.integers(1, 9),
    tokens=st.integers(400, 2000),
    tiles=st.integers(12, 60),
    samples=st.none() | st.integers(1, 8),
)
def test_everything_once_within_bounds_on_equally_many_packs(
    sizes: dict[int, SampleSize], ranks: int, tokens: int, tiles: int, samples: int | None
) -> None:
    config = PlanConfig(max_tokens_per_pack=tokens, max_tiles_per_pack=tiles, max_samples_per_pack=samples)
    plan = plan_step(sizes, config, ranks)
    check_promises(plan, sizes, config, ranks)
    assert plan.micros <= -(-len(sizes) // ranks)


price = st.integers(0, 1) | st.just(7) | st.integers(0, 10**9)


@settings(max_examples=150, deadline=None)
@given(
    costs=st.lists(price, min_size=1, max_size=80) | st.lists(st.just(0), min_size=1, max_size=80),
    giant=st.none() | st.just(10**15),
    ranks=st.integers(1, 12),
    samples=st.none() | st.integers(1, 5),
)
def test_any_costs_zeros_ties_and_a_giant(costs: list[int], giant: int | None, ranks: int, samples: int | None) -> None:
    sizes = priced(costs + ([giant] if giant else []))
    config = PlanConfig(cost=COUNTED, max_samples_per_pack=samples)
    plan = plan_step(sizes, config, ranks)
    check_promises(plan, sizes, config, ranks)
    by_hand = [sum(sizes[p].supervised for pack in rank for p in pack) for rank in plan.ranks]
    assert plan.costs == pytest.approx(by_hand, rel=1e-12)
    if len(sizes) >= ranks:
        assert all(any(rank) for rank in plan.ranks)


def optimum(costs: list[int], ranks: int) -> int:
    """Least possible cost of the dearest rank, by trying every assignment."""
    return min(
        max(sum(c for c, r in zip(costs, chosen, strict=True) if r == rank) for rank in range(ranks))
        for chosen in itertools.product(range(ranks), repeat=len(costs))
    )


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.integers(0, 60), min_size=1, max_size=7), ranks=st.integers(1, 3))
def test_within_grahams_bound_of_the_optimum(costs: list[int], ranks: int) -> None:
    plan = plan_step(priced(costs), PlanConfig(cost=COUNTED), ranks)
    assert max(plan.costs) <= (4 / 3 - 1 / (3 * ranks)) * optimum(costs, ranks) + 1e-9


@pytest.mark.parametrize(
    ("costs", "ranks", "best"),
    [
        ([3, 3, 2, 2, 2], 2, 6),  # Graham's worst case: longest first gives 7
        ([10, 9, 8, 5, 4], 2, 18),  # longest first gives 19
        ([5, 5, 4, 4, 3, 3, 3], 3, 9),  # Graham's worst case for 3: 11, one swap gives 10 or better
    ],
)
def test_swaps_better_what_longest_first_leaves(costs: list[int], ranks: int, best: int) -> None:
    assert optimum(costs, ranks) == best
    assert max(plan_step(priced(costs), PlanConfig(cost=COUNTED), ranks).costs) <= best + (ranks == 3)


@pytest.mark.parametrize(
    ("ranks", "batch", "limit"), [(2, 32, 1.01), (8, 128, 1.005), (5, 128, 1.005), (64, 1024, 1.005)]
)
def test_even_on_the_realistic_mixture(ranks: int, batch: int, limit: float) -> None:
    config = PlanConfig()
    for seed in range(8):
        sizes = realistic(batch, seed)
        plan = plan_step(sizes, config, ranks)
        check_promises(plan, sizes, config, ranks)
        assert plan.imbalance <= limit
        assert plan.micros <= 2


def test_even_where_packs_are_tight() -> None:
    for seed in range(8):
        sizes, config = realistic(128, seed), PlanConfig(max_tiles_per_pack=9, max_tokens_per_pack=1300)
        plan = plan_step(sizes, config, 8)
        check_promises(plan, sizes, config, 8)
        assert plan.imbalance <= 1.01
        assert plan.micros <= 11  # 7 would be the volume alone


def test_packs_of_a_rank_come_dearest_first() -> None:
    sizes = realistic(128, 3)
    plan = plan_step(sizes, PlanConfig(max_tiles_per_pack=16, cost=COUNTED), 8)
    assert plan.micros > 2
    for rank in plan.ranks:
        costs = [sum(sizes[p].supervised for p in pack) for pack in rank]
        assert costs == sorted(costs, reverse=True)


def test_the_order_of_the_mapping_plays_no_part() -> None:
    sizes = realistic(96, 1)
    config = PlanConfig(max_tiles_per_pack=16)
    plan = plan_step(sizes, config, 8)
    for seed in range(4):
        items = list(sizes.items())
        random.Random(seed).shuffle(items)
        assert plan_step(dict(items), config, 8) == plan


def test_a_step_is_the_same_samples_on_any_number_of_ranks() -> None:
    mixture, table = Mixture([700, 300], [1.0, 2.5], seed=3), realistic(1000, 0)
    for step in (0, 5, 10**9):
        positions = step_positions(step, 128)
        places = {p: mixture.at(p) for p in positions}
        sizes = {p: table[places[p].source * 700 + places[p].index] for p in positions}
        for ranks in (1, 2, 8, 64, 200):
            assert members(plan_step(sizes, PlanConfig(), ranks)) == list(range(step * 128, step * 128 + 128))


def test_steps_follow_one_another_without_gap() -> None:
    assert [p for step in range(5) for p in step_positions(step, 7)] == list(range(35))


def test_fewer_samples_than_ranks_leave_empty_packs() -> None:
    plan = plan_step(priced([5, 5, 5]), PlanConfig(cost=COUNTED), 8)
    assert plan.micros == 1
    assert sorted(len(rank[0]) for rank in plan.ranks) == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_giant_leaves_no_rank_or_pack_empty() -> None:
    plan = plan_step(priced([10**12] + [1] * 31), PlanConfig(cost=COUNTED, max_samples_per_pack=4), 4)
    assert plan.micros == 2
    assert all(pack for rank in plan.ranks for pack in rank)


def test_many_samples_that_cost_nothing_stay_cheap_to_plan() -> None:
    sizes = priced([0] * 3000 + list(range(1, 1001)))
    config = PlanConfig(cost=COUNTED)
    plan = plan_step(sizes, config, 64)
    check_promises(plan, sizes, config, 64)
    assert plan.imbalance < 1.01


def test_samples_over_half_a_bound_never_share() -> None:
    sizes = {i: SampleSize(tiles=6, tokens=10) for i in range(16)}
    plan = plan_step(sizes, PlanConfig(max_tiles_per_pack=10), 4)
    assert [len(pack) for rank in plan.ranks for pack in rank] == [1] * 16


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            SampleSize(3, 5000, 1, "a.jsonl:17"),
            "a.jsonl:17: .*position 9 has 5000 language-model tokens.*max_tokens_per_pack 4096",
        ),
        (SampleSize(65, 50, 1, "a.jsonl:17"), "a.jsonl:17: .*position 9 has 65 tiles.*max_tiles_per_pack 64"),
        (SampleSize(1, -4, 1, "a.jsonl:17"), "a.jsonl:17: .*position 9 has a negative size.*rebuild the index"),
    ],
)
def test_an_impossible_sample_is_named(bad: SampleSize, said: str) -> None:
    with pytest.raises(DataError, match=said):
        plan_step({**realistic(9, 0), 9: bad}, PlanConfig(max_tokens_per_pack=4096), 2)


def test_a_sample_exactly_at_the_bounds_fits() -> None:
    sizes = {**realistic(9, 0), 9: SampleSize(64, 4096)}
    config = PlanConfig(max_tokens_per_pack=4096)
    check_promises(plan_step(sizes, config, 2), sizes, config, 2)


def test_default_costs_agree_with_the_counted_flops_of_the_real_model() -> None:
    # TFLOP of one step, counted per sample with 200 text and 70 supervised tokens (performance study, section 3).
    counted = {1: 2.805, 2: 5.120, 3: 7.436, 4: 9.753, 5: 12.071, 6: 14.390, 7: 16.710}
    tiles = np.array(list(counted), np.int64)
    estimate = sample_costs(tiles, 64 * tiles + 200, np.full(7, 70), CostConfig()) / 1e3
    assert estimate.tolist() == pytest.approx(list(counted.values()), rel=2e-3)


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**30])  # powers of two, so that the costs themselves are exact
def test_only_ratios_of_costs_matter(unit: float) -> None:
    sizes = realistic(64, 5)
    scaled = CostConfig(per_tile=0.0, per_token=0.0, per_token_pair=0.0, per_supervised_token=unit)
    assert plan_step(sizes, PlanConfig(cost=scaled), 4).ranks == plan_step(sizes, PlanConfig(cost=COUNTED), 4).ranks
