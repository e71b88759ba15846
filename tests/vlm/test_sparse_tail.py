"""The last block at the survivors alone, against the dense block followed by a choice: loss and every gradient."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tests.tinyvlm import MODULES, SIZE, VOCABULARY, laid_out_sample, tiny_model
from timm.layers import RmsNorm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitp.instruction.pack import join
from vitp.train.strategies import blocks_of
from vitp.vlm.folding import is_folded
from vitp.vlm.model import PackTensors, VisionLanguageModel
from vitp.vlm.sparse_tail import TailBlock, why_dense
from vitp.vlm.tiny import LanguageModelConfig, build_language_model

TOWERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 0.3},
    "no final norm": {"init_values": 0.3, "final_norm": False},
    "query and key norms": {"qk_norm": True, "norm_layer": RmsNorm},
    "registers": {"reg_tokens": 3},
    "no CLS token": {"class_token": False, "global_pool": "avg", "qkv_bias": False},
}


def model_with(fused: bool = True, factor: int = 2, **tower: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0, **tower
    )
    for parameter in vit.parameters():  # also biases and scales, which start at nought or one
        nn.init.normal_(parameter, std=0.2)
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    language = LanguageModelConfig(width=32, depth=1, heads=2, kv_heads=1, mlp_width=48)
    return VisionLanguageModel(
        vit,
        build_language_model(language, VOCABULARY, 0),
        image_size=SIZE,
        factor=factor,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        drop_path=0.4,
    ).train()


def pack_of(model: VisionLanguageModel, r: float) -> PackTensors:
    per_tile = model.tokens_per_tile
    samples = [laid_out_sample(t, seed, r, tokens_per_tile=per_tile) for seed, t in enumerate([2, 0, 3, 1])]
    return join(samples, per_tile, SIZE, MODULES)


def result(model: VisionLanguageModel, pack: PackTensors) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(pack)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS.keys())
def test_loss_and_every_gradient_equal_the_dense_block(tower: dict[str, Any], factor: int, fused: bool) -> None:
    """Stochastic depth on, fp64: to 1e-9."""
    model = model_with(fused, factor, **tower).double()
    model.mean, model.std = model.mean.double(), model.std.double()
    assert isinstance(model.tower.blocks[-1], TailBlock)
    pack = pack_of(model, 0.75)
    sparse = result(model, pack)
    model.tower.blocks[-1].__class__ = TailBlock.__mro__[1]  # timm's own block again
    dense = result(model, pack)
    assert sparse.keys() == dense.keys()
    for name, tensor in dense.items():
        torch.testing.assert_close(sparse[name], tensor, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_the_tail_really_saves_work_and_only_when_tokens_are_dropped() -> None:
    model = tiny_model().train()
    flops = {}
    for r in (0.0, 0.75):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(join([laid_out_sample(4, s, r) for s in range(3)], model.tokens_per_tile, SIZE, MODULES))
        counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        flops[r] = counts["VisionLanguageModel.tower.blocks.1.mlp"]
    assert flops[0.0] == flops[0.75] * 4 * 65 / 64  # three quarters of the patches, and the CLS tokens


def test_kept_whole_is_bit_identical_to_the_dense_way() -> None:
    model = model_with()
    pack = pack_of(model, 0.0)
    ours = model(pack).item()
    model.tower.blocks[-1].__class__ = TailBlock.__mro__[1]
    assert model(pack).item() == ours


def test_uneven_tiles() -> None:
    """All survivors of a sample in one of its tiles, none in another."""
    model = model_with().double()
    model.mean, model.std = model.mean.double(), model.std.double()
    sample = laid_out_sample(3, 0, 0.0)
    kept = np.array([16, 18, 19, 30, 31], np.int64)
    places = np.flatnonzero(sample.ids == 5)
    stays = np.ones(len(sample.ids), bool)
    stays[np.delete(places, kept)] = False
    after = np.cumsum(stays) - 1
    cut = replace(
        sample,
        ids=sample.ids[stays],
        positions=sample.positions[stays],
        slots=after[places[kept]],
        kept=kept,
        predict=after[sample.predict],
    )
    pack = join([cut, laid_out_sample(1, 1, 0.5)], model.tokens_per_tile, SIZE, MODULES)
    assert pack.most_kept == 8
    sparse = result(model, pack)
    model.tower.blocks[-1].__class__ = TailBlock.__mro__[1]
    for name, tensor in result(model, pack).items():
        torch.testing.assert_close(sparse[name], tensor, rtol=1e-6, atol=1e-9)


def test_unknown_kinds_stay_dense() -> None:
    class OtherBlock(timm.models.vision_transformer.Block):
        pass

    create = timm.create_model
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 0}
    assert why_dense(create("vit_tiny_patch16_224", **small)) is None
    assert "OtherBlock" in (why_dense(create("vit_tiny_patch16_224", block_fn=OtherBlock, **small)) or "")
    assert "dropout" in (why_dense(create("vit_tiny_patch16_224", proj_drop_rate=0.1, **small)) or "")
    assert why_dense(create("eva02_tiny_patch14_224", img_size=28, num_classes=0)) is not None
    assert why_dense(create("resnet18")) is not None
    dropping = create("vit_tiny_patch16_224", drop_path_rate=0.2, **{**small, "depth": 2})
    assert "DropPath" in (why_dense(dropping) or "")  # timm's own draws are per row, not keyed


def test_a_copy_of_the_model_has_a_tail_of_its_own() -> None:
    model = model_with()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.tower.parameters():
            parameter.mul_(1.1)
    pack = pack_of(model, 0.75)
    before = model(pack).item()
    assert other(pack).item() != before
    assert model(pack).item() == before
    assert list(model.state_dict()) == list(other.state_dict())


def test_sharding_still_finds_every_block() -> None:
    """`fsdp` gathers block by block; a last block of a kind of its own must not hide the others."""
    model = tiny_model()
    found = list(blocks_of(model))
    assert found == [*model.tower.blocks, *model.language_model.model.layers]


@pytest.mark.parametrize("r", [0.0, 0.75])
def test_folded_layer_scale_gives_the_same_loss_and_gradients(r: float) -> None:
    """Against timm's own modules, those of the scales included; fp64, to 1e-9."""
    model = model_with(init_values=0.3).double()
    scales = [m for b in model.tower.blocks for m in (b.ls1, b.ls2)]
    assert all(is_folded(scale) for scale in scales)
    pack = pack_of(model, r)
    folded = result(model, pack)
    for block in model.tower.blocks:
        for module in (block.ls1, block.ls2, block.attn.proj, block.mlp.fc2):
            del module.__dict__["forward"]
    plain = result(model, pack)
    assert any(name.endswith("ls1.gamma") for name in plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(folded[name], tensor, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
