"""`features:` of a recipe: the three kinds, seeds, and what learns."""

from __future__ import annotations

import sys

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from vitp.backbone.adapter import ViTAdapter
from vitp.backbone.features import FeaturesConfig, LoraConfig, add_lora, merge_lora
from vitp.backbone.pyramid import SimpleFeaturePyramid, SingleScale
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone
from vitp.config import Config, load
from vitp.errors import ConfigError, MissingExtraError

CONFIG = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=16, width=32, depth=4, heads=2)
KINDS = {"plain": ViTBackbone, "pyramid": SimpleFeaturePyramid, "adapter": ViTAdapter}
ADAPTER = {"kind": "adapter", "stem_width": 8}


def _features(**fields: object) -> FeaturesConfig:
    return TypeAdapter(FeaturesConfig).validate_python(fields)


def _images() -> Tensor:
    return torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


class Recipe(Config):
    features: FeaturesConfig


def test_a_recipe_chooses_the_kind_and_its_mistakes_are_named() -> None:
    for kind, form in KINDS.items():
        recipe = load(Recipe, None, [f"features.kind={kind}"])
        assert type(recipe.features.build(random_backbone(CONFIG, 0), 0)) is form
    last = load(Recipe, None, ["features.kind=plain", "features.maps=last"]).features
    assert type(last.build(random_backbone(CONFIG, 0))) is SingleScale
    for overrides, message in (
        (["features.kind=adaptor"], "adapter"),
        (["features.kind=pyramid", "features.points=4"], "unknown key"),
        (["features.kind=plain", "features.train=last_n"], "needs last_n"),
        (["features.kind=plain", "features.last_n=2"], "train: last_n"),
        (["features.kind=plain", "features.lora.rank=4"], "train is not lora"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(Recipe, None, overrides)


def test_new_weights_are_drawn_from_the_seed_alone() -> None:
    config = _features(**ADAPTER)
    state = torch.random.get_rng_state()
    one, same, other = (config.build(random_backbone(CONFIG, 0), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["spm.fc1.weight"], other["spm.fc1.weight"])
    assert torch.equal(one["backbone.vit.pos_embed"], other["backbone.vit.pos_embed"])


@pytest.mark.parametrize("fields", [{"kind": "plain"}, {"kind": "pyramid"}, ADAPTER], ids=lambda f: str(f["kind"]))
def test_a_frozen_vit_stays_and_what_is_built_on_it_learns(fields: dict[str, object]) -> None:
    said: list[str] = []
    dense = _features(**fields, train="frozen").build(random_backbone(CONFIG, 0), 0, said.append)
    dense.train()
    assert not dense.plain.vit.training
    assert any("the ViT: frozen (0.00 of" in line for line in said)
    total = sum(m.square().sum() for m in dense(_images()))
    if dense is dense.plain:
        assert not total.requires_grad
        return
    total.backward()
    for name, parameter in dense.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("backbone.")), name


def test_only_the_last_blocks_learn() -> None:
    dense = _features(kind="plain", train="last_n", last_n=1).build(random_backbone(CONFIG, 0), 0)
    dense.train()
    assert [block.training for block in dense.plain.vit.blocks] == [False, False, False, True]
    sum(m.square().sum() for m in dense(_images())).backward()
    learnt = {name for name, p in dense.named_parameters() if p.grad is not None}
    assert learnt
    assert all(name.startswith("vit.blocks.3.") for name in learnt)
    with pytest.raises(ConfigError, match="is 5, but the ViT has 4 blocks"):
        _features(kind="plain", train="last_n", last_n=5).build(random_backbone(CONFIG, 0), 0)


def test_low_rank_updates_learn_alone_and_merge_into_a_plain_vit() -> None:
    pytest.importorskip("peft", reason="extra 'lora' is not installed")
    backbone = random_backbone(CONFIG, 0)
    names = set(backbone.state_dict())
    with torch.no_grad():
        before = backbone(_images())
    dense = _features(kind="plain", train="lora").build(backbone, 0)
    with torch.no_grad():
        for a, b in zip(dense(_images()), before, strict=True):
            torch.testing.assert_close(a, b)
        learning = {n: p for n, p in dense.named_parameters() if p.requires_grad}
        assert learning
        assert all("lora_" in name for name in learning)
        assert {dense.layer_of(name) for name in learning} == {1, 2, 3, 4}
        for parameter in learning.values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        changed = dense(_images())
        assert float((changed[3] - before[3]).abs().max()) > 1e-3
        merge_lora(backbone)
        assert set(backbone.state_dict()) == names
        for a, b in zip(dense(_images()), changed, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_lora_without_a_layer_to_adapt_or_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitp\[lora\]'"):
        _features(kind="plain", train="lora").build(random_backbone(CONFIG, 0), 0)
    monkeypatch.undo()
    pytest.importorskip("peft", reason="extra 'lora' is not installed")
    with pytest.raises(ConfigError, match="no linear layer named attn.query"):
        add_lora(random_backbone(CONFIG, 0), LoraConfig(layers=("attn.query",)))
