"""Heads against transformers' own, their shapes at any size, and what batch norm and dropout may depend on."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead
from transformers.models.upernet.modeling_upernet import UperNetHead as TransformersHead

from vitp.heads.head import AuxiliaryConfig, FCNConfig, HeadConfig, LinearConfig, UPerNetConfig
from vitp.heads.layers import SharedBatchNorm, norm_layer, synchronise_batch_norm
from vitp.heads.siamese import fuse, fused_channels
from vitp.heads.upernet import AuxiliaryHead, UPerNetHead
from vitp.train.keyed_drop import KeyedDropout2d

CHANNELS = [20, 24, 28, 36]
CONFIGS = [FCNConfig(width=32), UPerNetConfig(width=16), UPerNetConfig(width=16, norm="group"), LinearConfig()]


def _maps(height: int, width: int, channels: list[int] | None = None, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator, requires_grad=True)
        for c, s in zip(channels or CHANNELS, (4, 8, 16, 32), strict=True)
    ]


def _copy_in_order(ours: list[nn.Module], theirs: list[nn.Module]) -> None:
    """Weights and statistics of convolutions and norms, pairwise; theirs get random affine parts first."""
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, nn.BatchNorm2d):
            nn.init.uniform_(b.weight, 0.5, 1.5)
            nn.init.normal_(b.bias)
        nn.init.normal_(b.running_mean) if isinstance(b, nn.BatchNorm2d) else None
        assert type(a) is type(b)
        a.load_state_dict(b.state_dict())


def _layers(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]


def _same(
    ours: nn.Module, theirs: nn.Module, pairs: list[tuple[nn.Module, nn.Module]], height: int, width: int
) -> None:
    """Logits, gradients of the maps and of every weight agree to 1e-5, in eval mode and in training."""
    for training in (False, True):
        ours.train(training)
        theirs.train(training)
        mine, other = _maps(height, width), _maps(height, width)
        got = ours(mine, (height, width))
        expected = functional.interpolate(theirs(other), (height, width), mode="bilinear", align_corners=False)
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
        loss = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
        ours.zero_grad()
        theirs.zero_grad()
        (got * loss).mean().backward()
        (expected * loss).mean().backward()
        for a, b in zip(mine, other, strict=True):
            if b.grad is None:
                assert a.grad is None
            else:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
        for a_module, b_module in pairs:
            for (name, a_weight), b_weight in zip(a_module.named_parameters(), b_module.parameters(), strict=True):
                torch.testing.assert_close(a_weight.grad, b_weight.grad, rtol=1e-4, atol=1e-6, msg=name)
            for a_buffer, b_buffer in zip(a_module.buffers(), b_module.buffers(), strict=True):
                torch.testing.assert_close(a_buffer, b_buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
def test_upernet_head_equals_transformers(height: int, width: int) -> None:
    torch.manual_seed(0)
    config = UperNetConfig(hidden_size=16, pool_scales=[1, 2, 3, 6], num_labels=5)
    theirs = TransformersHead(config, CHANNELS)
    ours = UPerNetHead(CHANNELS, 5, width=16, dropout=0.0)
    pairs = list(zip(
        [*ours.pooling.project, ours.pooling.bottleneck, *ours.lateral, *ours.smooth, ours.fuse, ours.classify],
        [*theirs.psp_modules.blocks, theirs.bottleneck, *theirs.lateral_convs, *theirs.fpn_convs, theirs.fpn_bottleneck,
         theirs.classifier],
        strict=True,
    ))  # fmt: skip
    assert sum(len(_layers(a)) for a, _ in pairs) == len(_layers(ours)) == len(_layers(theirs))
    for a, b in pairs:
        _copy_in_order(_layers(a), _layers(b))
    _same(ours, theirs, pairs, height, width)


@pytest.mark.parametrize(("level", "convolutions"), [(2, 1), (1, 2)])
def test_auxiliary_head_equals_transformers(level: int, convolutions: int) -> None:
    torch.manual_seed(0)
    config = UperNetConfig(auxiliary_channels=12, auxiliary_num_convs=convolutions, num_labels=5)
    theirs = UperNetFCNHead(config, CHANNELS, in_index=level)
    ours = AuxiliaryHead(CHANNELS, 5, width=12, level=level, convolutions=convolutions, dropout=0.0)
    pairs = [*zip(ours.mix, theirs.convs, strict=True), (ours.classify, theirs.classifier)]
    for a, b in pairs:
        _copy_in_order(_layers(a), _layers(b))
    _same(ours, theirs, pairs, 64, 96)


def test_linear_head_is_one_classifier_on_all_maps_side_by_side() -> None:
    head = LinearConfig().build(CHANNELS, 3, seed=0).eval()
    maps = _maps(64, 96)
    fine = [functional.interpolate(x, (16, 24), mode="bilinear", align_corners=False) for x in maps]
    normed = torch.cat([block[0](x) for block, x in zip(head.classify, fine, strict=True)], 1)  # type: ignore[arg-type]
    weight = torch.cat([block[1].weight for block in head.classify], 1)  # type: ignore[union-attr]
    bias = sum(block[1].bias for block in head.classify)  # type: ignore[union-attr]
    expected = functional.interpolate(
        functional.conv2d(normed, weight, bias), (64, 96), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(head(maps, (64, 96)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [*CONFIGS, AuxiliaryConfig(width=16), AuxiliaryConfig(width=16, level=0)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (33, 31), (1, 5)])
def test_any_size_gives_one_logit_a_pixel(config: FCNConfig, height: int, width: int) -> None:
    head = config.build(CHANNELS, 3, seed=0)
    logits = head(_maps(height, width), (height, width))
    assert logits.shape == (2, 3, height, width)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()


def test_an_odd_picture_is_the_corner_of_a_padded_one() -> None:
    """The part of UPerNet without pooling sees positions only through strides, so cutting maps must not move anything."""
    head = UPerNetConfig(width=16, pools=(1,)).build(CHANNELS, 3, seed=0).eval()
    with torch.no_grad():
        head.pooling.project[0][0].weight.zero_()  # type: ignore[union-attr,operator,index]
    whole = _maps(128, 128, batch=1)
    cut = [x[..., : -(-100 // s), : -(-92 // s)] for x, s in zip(whole, (4, 8, 16, 32), strict=True)]
    a, b = head(whole, (128, 128)), head(cut, (100, 92))
    torch.testing.assert_close(a[..., :20, :20], b[..., :20, :20], rtol=1e-5, atol=1e-5)


def test_weights_depend_on_the_seed_alone() -> None:
    for config in CONFIGS:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first, again, other = (config.build(CHANNELS, 3, seed=s).state_dict() for s in (1, 1, 2))
        assert torch.equal(torch.rand(3), expected)
        assert all(torch.equal(first[k], again[k]) for k in first)
        assert any(not torch.equal(first[k], other[k]) for k in first)


def test_configs_name_their_kind_and_refuse_what_makes_no_head() -> None:
    adapter: TypeAdapter[HeadConfig] = TypeAdapter(HeadConfig)
    assert adapter.validate_python({"kind": "upernet"}) == UPerNetConfig()
    mistakes: list[dict[str, object]] = [
        {"kind": "upernet", "pools": [0]},
        {"kind": "fcn", "width": 40},
        {"kind": "segformer"},
        {"kind": "linear", "width": 3},
    ]
    for bad in mistakes:
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


# ------------------------------------------------------------------------------------------------------ norm and dropout


def test_group_norm_sees_one_image_at_a_time() -> None:
    head = UPerNetConfig(width=16, norm="group").build(CHANNELS, 3, seed=0).train()
    maps = _maps(64, 64, batch=3)
    together = head(maps, (64, 64))
    alone = torch.cat([head([m[i : i + 1] for m in maps], (64, 64)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert norm_layer("group", 48).num_groups == 12


def test_dropout_takes_the_numbers_it_is_given() -> None:
    dropout = KeyedDropout2d(0.25, 4).train()
    x = torch.ones(2, 4, 3, 3)
    assert torch.equal(dropout(x), x)  # nobody handed any
    dropout.decide(torch.tensor([[0.0, 0.2, 0.25, 0.9], [0.9, 0.9, 0.9, 0.1]]))
    kept = dropout(x)[:, :, 0, 0] * 0.75
    torch.testing.assert_close(kept, torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]]))
    assert torch.equal(dropout.eval()(x), x)


def _tensors(module: nn.Module) -> dict[str, int]:
    return {name: id(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}


@pytest.mark.parametrize(("device", "kind"), [("cpu", SharedBatchNorm), ("meta", nn.SyncBatchNorm)])
def test_batch_norm_is_synchronised_only_among_processes(device: str, kind: type[nn.Module]) -> None:
    """With the group of the devices' own network, and the same parameters and statistics."""
    head, group = UPerNetConfig(width=16).build(CHANNELS, 3, seed=0).to(device), object()
    before = _tensors(head)
    assert synchronise_batch_norm(head, None) is head
    assert not any(isinstance(m, kind) for m in head.modules())
    converted = synchronise_batch_norm(head, group)
    norms = [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)]
    assert len(norms) == 12
    assert all(type(m) is kind and (m.group if device == "cpu" else m.process_group) is group for m in norms)
    assert _tensors(converted) == before


def test_shared_batch_norm_of_one_process_is_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output, gradients and statistics, also in evaluation; what several processes make of it: tests/distributed."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: None)
    x = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 7
    found = []
    for shared in (False, True):
        norm = nn.BatchNorm2d(5)
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
        if shared:
            norm = SharedBatchNorm(norm, None)
        given = x.clone().requires_grad_()
        trained = norm(given)
        (trained.sin() * x).sum().backward()
        assert given.grad is not None
        grads = [given.grad, norm.weight.grad, norm.bias.grad]
        found.append([trained, *grads, norm.running_mean, norm.running_var, norm.eval()(x)])
        assert int(norm.num_batches_tracked) == 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- fusion


def test_fusion_of_two_dates() -> None:
    before, after = _maps(64, 64), [x + 1 for x in _maps(32, 128)]
    after = [torch.randn_like(x) for x in before]
    assert fused_channels(CHANNELS, "concat") == [40, 48, 56, 72]
    assert fused_channels(CHANNELS, "difference") == CHANNELS
    for x, a, b in zip(fuse(before, after, "concat"), before, after, strict=True):
        assert torch.equal(x[:, : a.shape[1]], a)
        assert torch.equal(x[:, a.shape[1] :], b)
    swapped = zip(fuse(before, after, "difference"), fuse(after, before, "difference"), strict=True)
    assert all(torch.equal(x, y) and math.isfinite(float(x.detach().sum())) for x, y in swapped)
    assert all(float(x.detach().abs().max()) == 0.0 for x in fuse(before, before, "difference"))
