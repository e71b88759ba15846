"""How a step is cut must not change it: packed = unpacked = any micro-batch size, in loss and in every gradient."""

from __future__ import annotations

import pytest
import torch
from tests.tinyvlm import SIZE, laid_out_sample, tiny_model

from vitp.instruction.pack import _filling, join, plan_packs
from vitp.instruction.plan import PlanConfig
from vitp.vlm.loss import Weighting


def assert_same_gradient(name: str, one: torch.Tensor, other: torch.Tensor) -> None:
    """Within 1e-5 of the gradient's own norm; gradients that are zero by theory (key biases) only have rounding."""
    assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9, name


@pytest.mark.parametrize("weighting", ["token", "sample", "answer", "square"])
def test_packed_gradient_equals_unpacked(weighting: Weighting) -> None:
    """One pack of eight, packs bounded by tokens, and one sample at a time: the same gradient within 1e-5 (fp32)."""
    samples = [laid_out_sample(t, seed, 0.75, weighting) for seed, t in enumerate([1, 0, 3, 2, 1, 5, 1, 2])]
    weight = float(sum(s.weights.sum() for s in samples))
    results = []
    for max_tokens, max_samples in ((10**6, None), (60, None), (10**6, 1)):
        model = tiny_model(drop_path=0.3).train()
        loss = 0.0
        packs = plan_packs(samples, PlanConfig(max_tokens_per_pack=max_tokens, max_samples_per_pack=max_samples))
        for pack in packs:
            part = model(join(pack, model.tokens_per_tile, SIZE, 4)) / weight
            part.backward()
            loss += part.item()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        assert all(g is not None for g in gradients.values())
        results.append((len(packs), loss, gradients))
    assert [r[0] for r in results] == [1, results[1][0], 8]
    assert 1 < results[1][0] < 8
    for _, loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][1], rel=1e-5)
        for name, gradient in gradients.items():
            assert_same_gradient(name, gradient, results[0][2][name])


def test_weightings_differ_as_they_say() -> None:
    lengths = {}
    for weighting in ("token", "sample", "answer", "square"):
        sample = laid_out_sample(1, 3, 0.0, weighting, answers=3)
        lengths[weighting] = (float(sample.weights.sum()), len(sample.targets))
    n = lengths["token"][1]
    assert lengths["token"][0] == n
    assert lengths["sample"][0] == pytest.approx(1)
    assert lengths["answer"][0] == pytest.approx(3)
    assert lengths["square"][0] == pytest.approx(n**0.5, rel=1e-6)


def test_filling_to_a_shape_changes_nothing() -> None:
    """Idle positions that round a pack's shape up weigh nothing: the same loss and gradients."""
    samples = [laid_out_sample(t, seed, 0.75) for seed, t in enumerate([1, 0, 3, 2, 1])]
    results = []
    for multiple in (1, 128):
        model = tiny_model(drop_path=0.3).train()
        pack = join(samples, model.tokens_per_tile, SIZE, 4, multiple)
        assert len(pack.ids) % min(multiple, 4) == len(pack.predict) % min(multiple, 4) == 0
        loss = model(pack)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    for name, gradient in results[0][1].items():
        assert_same_gradient(name, gradient, results[1][1][name])


def test_filling_costs_little_and_leaves_few_shapes() -> None:
    filled = {n: n + _filling(n, 128) for n in range(1, 9000)}
    assert all(shape - n <= max(3, n / 32) for n, shape in filled.items())
    assert all(shape % 128 == 0 for n, shape in filled.items() if n >= 4096)
    assert len(set(filled.values())) < 9000 / 30
    assert _filling(777, 1) == 0
