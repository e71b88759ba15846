"""Packs against a device's memory, before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.tinyvlm import paper_model

from vitp.errors import ConfigError
from vitp.train.hardware import USABLE, find_gpu
from vitp.vlm.checkpointing import Checkpointing
from vitp.vlm.fit import GIB, Bounds, fit_bounds, full_pack, memory_precision
from vitp.vlm.flops import Work
from vitp.vlm.memory import ModelMemory, count_memory

SAMPLE = Work.of(3.9, 250, 440, 70)
MODES: tuple[Checkpointing, ...] = ("none", "mlp", "full")


@pytest.fixture(scope="module")
def memories() -> Mapping[Checkpointing, ModelMemory]:
    model = paper_model()
    return {mode: count_memory(model, "bf16", checkpointing=mode) for mode in MODES}


def usable(key: str) -> float:
    return USABLE * find_gpu(key).memory * GIB


def test_the_recipes_bounds_fit_a_large_gpu_and_stay(memories: Mapping[Checkpointing, ModelMemory]) -> None:
    fitted = fit_bounds(memories, SAMPLE, Bounds(64, 16384, 128, chosen=True), usable("h200"), "an H200")
    assert (fitted.tiles, fitted.tokens, fitted.checkpointing, fitted.lowered) == (64, 16384, "none", False)
    assert fitted.need == memories["none"].of(full_pack(SAMPLE, 64, 16384, 128)).total <= usable("h200")


def test_bounds_nobody_set_are_lowered_until_a_pack_at_both_fits(
    memories: Mapping[Checkpointing, ModelMemory],
) -> None:
    plain = {"none": memories["none"]}
    for key in ("a40", "l40s", "h100"):
        fitted = fit_bounds(plain, SAMPLE, Bounds(64, 16384, 128, chosen=False), usable(key), key)  # type: ignore[arg-type]
        assert fitted.lowered
        assert 8 < fitted.tiles < 64
        corner = Work.of(fitted.tiles, fitted.tokens / 2, fitted.tokens, fitted.tokens / 6)
        assert memories["none"].of(corner).total <= 1.02 * usable(key)
        assert fitted.need <= usable(key)


def test_checkpointing_comes_only_when_packs_become_too_small(memories: Mapping[Checkpointing, ModelMemory]) -> None:
    chosen = {
        key: fit_bounds(memories, SAMPLE, Bounds(64, 16384, 128, chosen=False), usable(key), key).checkpointing
        for key in ("h100", "a40", "l4")
    }
    assert chosen["h100"] == chosen["a40"] == "none"
    assert chosen["l4"] != "none"


def test_bounds_somebody_set_are_refused_with_those_that_fit(memories: Mapping[Checkpointing, ModelMemory]) -> None:
    plain = {"none": memories["none"]}
    with pytest.raises(ConfigError, match=r"max_tiles_per_pack 64 and .* needs .* GiB, an A40 has 40.8 GiB") as refused:
        fit_bounds(plain, SAMPLE, Bounds(64, 16384, 128, chosen=True), usable("a40"), "an A40")  # type: ignore[arg-type]
    values = dict(pair.split("=") for pair in str(refused.value).rsplit("set ", 1)[1].split())
    again = Bounds(int(values["max_tiles_per_pack"]), int(values["max_tokens_per_pack"]), 128, chosen=True)
    assert not fit_bounds(plain, SAMPLE, again, usable("a40"), "an A40").lowered  # type: ignore[arg-type]
    allowed = fit_bounds(memories, SAMPLE, Bounds(64, 16384, 128, chosen=True), usable("a40"), "an A40")
    assert allowed.checkpointing == "full"  # what was asked for fits when more is computed again


def test_a_model_that_fits_with_no_pack_at_all_is_refused(memories: Mapping[Checkpointing, ModelMemory]) -> None:
    with pytest.raises(
        ConfigError, match="13.4 of them for weights, gradients and optimiser; a small GPU has 11.2 GiB"
    ):
        fit_bounds(memories, SAMPLE, Bounds(64, 16384, 128, chosen=False), 12e9, "a small GPU")


def test_a_step_with_few_samples_bounds_its_packs() -> None:
    assert full_pack(SAMPLE, 64, 16384, 4).tiles == pytest.approx(4 * 3.9)
    assert full_pack(SAMPLE, 1, 16, 4).samples == 1  # a sample is never cut
    assert full_pack(Work.of(0, 0, 100, 10), 64, 1000, 128).tokens == pytest.approx(1000)


@pytest.mark.parametrize(
    ("precision", "weights", "ranks", "gpu", "found"),
    [
        ("auto", "auto", 1, None, "bf16"),
        ("auto", "auto", 8, None, "autocast"),
        ("bf16", "fp32", 1, None, "autocast"),
        ("fp32", "auto", 1, "h100", "fp32"),
        ("auto", "auto", 1, "v100", "fp32"),
    ],
)
def test_the_precision_in_memory(precision: str, weights: str, ranks: int, gpu: str | None, found: str) -> None:
    assert memory_precision(precision, weights, ranks, find_gpu(gpu) if gpu else None) == found
