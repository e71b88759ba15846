"""Cost coefficients agree with counted operations."""

from __future__ import annotations

import pytest
import torch
from tests.tinyvlm import SIZE, VOCABULARY, laid_out_sample, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from vitp.instruction.pack import join, plan_packs
from vitp.instruction.plan import PlanConfig
from vitp.vlm.cost import estimate_cost
from vitp.vlm.flops import Trained, last_block_of


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("tiles", [1, 3])
def test_tower_and_language_model_cost_what_is_counted(tiles: int, drop: float) -> None:
    """Forward operations; attention of the language model apart, whose masked half some kernels compute as well."""
    model = tiny_model(drop_path=0.0).eval()
    sample = laid_out_sample(tiles, 0, drop)
    pack = join([sample], model.tokens_per_tile, SIZE, 4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pack)
    counted = {name: sum(ops.values()) * 1e-9 for name, ops in counter.get_flop_counts().items()}
    kept, forward = 1.0 - drop, Trained(False, False, False)
    cost = estimate_cost(model, forward, kept_share=kept, last_block=last_block_of(model, kept))
    tower = sum(counted[f"VisionLanguageModel.{part}"] for part in ("tower.patch_embed", "tower.blocks", "projector"))
    idle = tiles * -(-pack.most_kept * 4 // 16) * 16 - len(pack.kept) * 4 if drop else 0  # padded queries
    assert tiles * cost.per_tile == pytest.approx(tower - 4e-9 * idle * 65 * 24, rel=0.01)
    attention = sum(counted[f"VisionLanguageModel.language_model.model.layers.{i}.self_attn"] for i in range(2))
    projections = sum(
        counted[f"VisionLanguageModel.language_model.model.layers.{i}.self_attn.{name}_proj"]
        for i in range(2)
        for name in "qkvo"
    )
    layers = counted["VisionLanguageModel.language_model.model"] - attention + projections
    tokens = len(sample.ids)
    assert tokens * cost.per_token == pytest.approx(layers, rel=0.01)
    pairs = tokens * tokens * cost.per_token_pair
    assert pairs <= attention - projections <= 2.001 * pairs
    supervised = len(sample.targets) * 2 * model.language_model.config.hidden_size * VOCABULARY * 1e-9
    assert len(sample.targets) * cost.per_supervised_token == pytest.approx(supervised)


def test_a_frozen_tower_costs_its_forward_pass() -> None:
    model = tiny_model()
    forward, both = (estimate_cost(model, Trained(tower=t), kept_share=0.0).per_tile for t in (False, True))
    assert 2.9 * forward < both < 3 * forward  # pixels take no gradient


def test_packs_are_few_balanced_and_within_bounds() -> None:
    samples = [laid_out_sample(1 + seed % 4, seed, 0.75) for seed in range(40)]
    config = PlanConfig(max_tokens_per_pack=220, max_tiles_per_pack=20, cost=estimate_cost(tiny_model()))
    packs = plan_packs(samples, config)
    placed = [id(sample) for pack in packs for sample in pack]
    assert sorted(placed) == sorted(map(id, samples))
    tokens = [sum(len(s.ids) for s in pack) for pack in packs]
    tiles = [sum(len(s.tiles) for s in pack) for pack in packs]
    assert max(tokens) <= 220
    assert max(tiles) <= 20
    fewest = max(-(-sum(tokens) // 220), -(-sum(tiles) // 20))
    assert len(packs) <= fewest + 1
    assert max(tiles) - min(tiles) <= 2


def test_a_sample_larger_than_a_bound_has_a_pack_of_its_own() -> None:
    samples = [laid_out_sample(t, seed, 0.0) for seed, t in enumerate([1, 6, 1, 1])]
    packs = plan_packs(samples, PlanConfig(max_tokens_per_pack=90, max_tiles_per_pack=4))
    assert [len(s.tiles) for s in packs[0]] == [6]
    assert sum(map(len, packs)) == 4
    assert all(len(s.tiles) == 1 for pack in packs[1:] for s in pack)
