"""Computing again changes what is kept, and no number."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tinyvlm import MODULES, SIZE, laid_out_sample, tiny_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitp.instruction.pack import join
from vitp.vlm.checkpointing import Checkpointing, use_checkpointing
from vitp.vlm.model import PackTensors, VisionLanguageModel

MODES: tuple[Checkpointing, ...] = ("none", "mlp", "full")


def two_packs(model: VisionLanguageModel) -> list[PackTensors]:
    return [
        join([laid_out_sample(t, s, 0.75) for s, t in enumerate(tiles, start)], model.tokens_per_tile, SIZE, MODULES)
        for start, tiles in ((0, [2, 1]), (9, [1, 0, 3]))
    ]


def gradients(mode: Checkpointing, *, autocast: bool = False) -> tuple[dict[str, Tensor], float]:
    """Loss and gradients of two packs, both forward passes before either backward pass; bytes kept by the first."""
    model = tiny_model(drop_path=0.5).train()
    use_checkpointing(model, mode)
    packs, kept = two_packs(model), {}
    weights = {p.data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            first = model(packs[0])
        second = model(packs[1])
    (first + 2 * second).backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": (first + 2 * second).detach(), **named}, sum(kept.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", ["mlp", "full"])
def test_gradients_are_bit_identical(mode: Checkpointing, autocast: bool) -> None:
    """With stochastic depth, a sparse last block and another forward pass in between."""
    plain, kept = gradients("none", autocast=autocast)
    again, less = gradients(mode, autocast=autocast)
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, again[name]), name
    assert less < (0.9 if mode == "mlp" else 0.5) * kept


def test_mlp_mode_repeats_no_matrix_product() -> None:
    counts = {}
    for mode in MODES:
        model = tiny_model().train()
        use_checkpointing(model, mode)
        with FlopCounterMode(display=False) as counter:
            model(two_packs(model)[0]).backward()
        counts[mode] = counter.get_total_flops()
    assert counts["mlp"] == counts["none"]
    assert 1.2 < counts["full"] / counts["none"] < 1.34


def test_a_copy_computes_again_with_its_own_weights() -> None:
    for mode in MODES:
        model = tiny_model().train()
        use_checkpointing(model, mode)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        pack = two_packs(other)[0]
        plain = tiny_model().train()
        assert torch.equal(other(pack), plain(pack))
