"""Pyramids from the last map: shapes, what they are made of, and the released neck's keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vitp.backbone.pyramid import SimpleFeaturePyramid, SimpleFPN, SingleScale
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone


def _backbone(patch: int = 16) -> ViTBackbone:
    fields = {"architecture": "vit_tiny_patch16_224", "image_size": 4 * patch, "patch_size": patch}
    config = BackboneConfig.model_validate({**fields, "width": 32, "depth": 2, "heads": 2})
    return random_backbone(config, seed=0).eval()


def _images(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("size", [(64, 64), (50, 90), (15, 33)])
def test_maps_cover_pictures_of_any_size(patch: int, size: tuple[int, int]) -> None:
    for dense, channels in ((SimpleFeaturePyramid(_backbone(patch), 24), 24), (SingleScale(_backbone(patch)), 32)):
        with torch.no_grad():
            maps = dense(_images(*size))
        assert dense.channels == channels
        expected = [(2, channels, -(-size[0] // s), -(-size[1] // s)) for s in dense.strides]
        assert [tuple(m.shape) for m in maps] == expected


def test_every_level_of_the_single_scale_is_the_last_map() -> None:
    backbone = _backbone()
    with torch.no_grad():
        maps = SingleScale(backbone)(_images(64, 64))
        last = backbone.features(_images(64, 64), norm=False)
    torch.testing.assert_close(maps[2], last)
    torch.testing.assert_close(maps[1], functional.interpolate(last, scale_factor=2.0, mode="bilinear"))


def test_the_pyramid_is_vitdets_written_out() -> None:
    torch.manual_seed(0)
    dense = SimpleFeaturePyramid(_backbone(), 24)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        last = dense.backbone.features(_images(64, 96), norm=False)
        first = functional.conv_transpose2d(last, dense.up4[0].weight, dense.up4[0].bias, stride=2)
        first = functional.layer_norm(first.movedim(1, -1), (16,), dense.up4[1].weight, dense.up4[1].bias, 1e-6)
        first = functional.conv_transpose2d(
            functional.gelu(first).movedim(-1, 1), dense.up4[3].weight, dense.up4[3].bias, stride=2
        )
        second = functional.conv_transpose2d(last, dense.up8.weight, dense.up8.bias, stride=2)
        expected = dense.neck([first, second, last, functional.max_pool2d(last, 2)])
        for mine, theirs in zip(dense(_images(64, 96)), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_the_neck_is_the_released_one_written_out() -> None:
    torch.manual_seed(0)
    neck = SimpleFPN([8, 8, 12, 12], 16)
    names = {f"{part}.{i}.{leaf}" for part in ("lateral_convs", "fpn_convs") for i in range(4)
             for leaf in ("conv.weight", "ln.weight", "ln.bias")}  # fmt: skip
    assert set(neck.state_dict()) == names
    maps = [torch.randn(1, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate((8, 8, 12, 12))]
    found = neck(maps)
    assert [tuple(m.shape[-2:]) for m in found] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    for x, mine, one, two in zip(maps, found, neck.lateral_convs, neck.fpn_convs, strict=False):
        for part, padding in ((one, 0), (two, 1)):
            x = functional.conv2d(x, part.conv.weight, padding=padding)
            x = functional.layer_norm(x.movedim(1, -1), (16,), part.ln.weight, part.ln.bias, 1e-5).movedim(-1, 1)
        torch.testing.assert_close(mine, x)
    torch.testing.assert_close(found[4], functional.max_pool2d(found[3], 1, stride=2))


def test_the_pyramids_own_parameters_are_the_last_layer() -> None:
    dense = SimpleFeaturePyramid(_backbone(), 24)
    layers = {name: dense.layer_of(name) for name, _ in dense.named_parameters()}
    assert layers["backbone.vit.pos_embed"] == 0
    assert layers["backbone.vit.blocks.1.mlp.fc1.weight"] == 2
    assert {v for k, v in layers.items() if not k.startswith("backbone.")} == {3}
    sum(m.square().sum() for m in dense(_images(32, 48))).backward()
    assert [n for n, p in dense.named_parameters() if p.grad is None] == [
        "backbone.vit.norm.weight",
        "backbone.vit.norm.bias",
    ]
