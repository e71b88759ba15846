"""Properties of packs, whatever the samples: nothing is lost, mixed up or moved."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tinyvlm import IMAGE_ID, MODULES, SIZE, laid_out_sample

from vitp.instruction.pack import LaidOut, join, plan_packs
from vitp.instruction.plan import PlanConfig

PER_TILE = 16

SAMPLES = st.lists(
    st.builds(
        laid_out_sample,
        tiles=st.integers(0, 4),
        seed=st.integers(0, 10_000),
        r=st.sampled_from([0.0, 0.5, 0.75, 0.9]),
        answers=st.integers(1, 3),
    ),
    min_size=1,
    max_size=12,
)
BOUNDS = st.builds(
    PlanConfig,
    max_tokens_per_pack=st.integers(20, 400),
    max_tiles_per_pack=st.integers(1, 16),
    max_samples_per_pack=st.none() | st.integers(1, 5),
)


@settings(max_examples=60)
@given(samples=SAMPLES, config=BOUNDS)
def test_every_sample_is_in_one_pack_within_the_bounds(samples: list[LaidOut], config: PlanConfig) -> None:
    packs = plan_packs(samples, config)
    assert sorted(id(s) for pack in packs for s in pack) == sorted(map(id, samples))
    for pack in packs:
        tokens, tiles = sum(len(s.ids) for s in pack), sum(len(s.tiles) for s in pack)
        assert len(pack) == 1 or (tokens <= config.max_tokens_per_pack and tiles <= config.max_tiles_per_pack)
        assert len(pack) <= (config.max_samples_per_pack or len(samples))


@settings(max_examples=60)
@given(samples=SAMPLES, multiple=st.sampled_from([1, 8, 128]))
def test_a_row_holds_its_samples_one_after_another(samples: list[LaidOut], multiple: int) -> None:
    row = join(samples, PER_TILE, SIZE, MODULES, multiple)
    assert sum(row.lengths) == len(row.ids) == len(row.positions)
    least = min(multiple, 4)  # short rows are filled up less: tests/invariant/test_packing.py
    assert len(row.ids) % least == len(row.targets) % least == 0
    start = tile = supervised = 0
    seen: list[torch.Tensor] = []
    for sample, length in zip(samples, row.lengths, strict=False):
        here = slice(start, start + length)
        assert row.ids[here].tolist() == sample.ids.tolist()
        assert row.positions[here].tolist() == sample.positions.tolist()
        mine = slice(supervised, supervised + len(sample.targets))
        assert (row.predict[mine] - start).tolist() == sample.predict.tolist()
        assert row.targets[mine].tolist() == sample.targets.tolist()
        assert np.array_equal(row.weights[mine].numpy(), sample.weights)
        slots = (row.slots >= start) & (row.slots < start + length)
        assert (row.kept[slots] - tile * PER_TILE).tolist() == sample.kept.tolist()
        seen.append(row.tiles[tile : tile + len(sample.tiles)])
        assert torch.equal(seen[-1], sample.tiles)
        start, supervised, tile = start + length, supervised + len(sample.targets), tile + len(sample.tiles)
    assert bool((row.ids[row.slots] == IMAGE_ID).all())
    assert int((row.ids == IMAGE_ID).sum()) == len(row.slots) == len(row.kept)
    assert not row.weights[supervised:].any()
    assert tile == len(row.tiles) == len(row.depth)
