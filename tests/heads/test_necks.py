"""Necks: torchvision's FPN, the levels of each kind, and every kind of features under them."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from vitp.backbone.features import FeaturesConfig
from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.heads.necks import FPN, NeckConfig

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=64, patch_size=16, width=32, depth=4, heads=2)
SIDES = (97, 130)  # no multiple of anything


def _maps(channels: list[int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, c, *(-(-side // s) for side in SIDES), generator=g)
        for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_fpn_is_torchvisions() -> None:
    channels = [3, 5, 7, 9]
    torch.manual_seed(0)
    ours, theirs = FPN(channels, 8), FeaturePyramidNetwork(channels, 8, LastLevelMaxPool())
    for mine, block in zip((*ours.lateral, *ours.smooth), (*theirs.inner_blocks, *theirs.layer_blocks), strict=True):
        torch.nn.init.normal_(mine.bias)
        block[0].load_state_dict(mine.state_dict())
    maps = _maps(channels)
    expected = theirs({str(i): m for i, m in enumerate(maps)})
    for mine, other in zip(ours(maps), expected.values(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    "neck", [{"kind": "simple_fpn"}, {"kind": "fpn"}, {"kind": "none"}, {"kind": "fpn", "levels": 6}]
)
@pytest.mark.parametrize(
    "features",
    [
        {"kind": "plain"},
        {"kind": "plain", "maps": "last"},
        {"kind": "pyramid", "channels": 16},
        {"kind": "adapter", "stem_width": 8},
    ],
)
def test_every_neck_stands_on_every_kind_of_features(neck: dict[str, object], features: dict[str, object]) -> None:
    config = TypeAdapter(NeckConfig).validate_python({**neck, **({} if neck["kind"] == "none" else {"channels": 24})})
    dense = TypeAdapter(FeaturesConfig).validate_python(features).build(random_backbone(TINY, 0), 0)
    module = config.build([dense.channels] * 4)
    levels = module(dense(torch.zeros(1, 3, *SIDES)))
    assert len(levels) == config.levels
    for k, level in enumerate(levels):
        stride = 4 * 2**k
        assert level.shape == (1, module.out_channels, -(-SIDES[0] // stride), -(-SIDES[1] // stride))


def test_the_released_neck_is_the_default_of_a_detector() -> None:
    from vitp.tasks.detect import DetectorParts

    neck = DetectorParts().neck
    assert (neck.kind, neck.channels, neck.levels) == ("simple_fpn", 256, 5)
