"""Other patch and image sizes: timm's own path, the equation behind it, and the released procedure written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch.nn.functional import interpolate

from vitp import load_backbone
from vitp.backbone.resample import new_sizes, resample_kernel, resample_positions
from vitp.backbone.vit import BackboneConfig, random_backbone, save_backbone
from vitp.errors import ConfigError

CONFIG = BackboneConfig(
    architecture="vit_intern300m_patch14_448", image_size=56, patch_size=14, width=128, depth=2, heads=2
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_backbone(path, random_backbone(CONFIG, 3), CONFIG)
    return path


@pytest.mark.parametrize(("image", "patch"), [(64, 16), (112, 14), (96, 8)])
def test_pinv_is_what_timm_does_when_it_loads_the_file_itself(saved: Path, image: int, patch: int) -> None:
    kwargs = {**CONFIG.timm_kwargs(), "img_size": image, "patch_size": patch}
    overlay = {"file": str(saved), "num_classes": 0}
    theirs = timm.create_model(
        CONFIG.architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **kwargs
    )
    ours = load_backbone(saved, image_size=image, patch_size=patch, trainable=False)
    assert (ours.config.image_size, ours.config.patch_size) == (image, patch)
    assert not ours.training
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.vit.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_pinv_gives_an_enlarged_patch_the_same_token() -> None:
    """FlexiViT, equation 4: for enlarging, <resize(x), kernel'> = <x, kernel>; the released way is off by its sum."""
    torch.manual_seed(0)
    kernel, patch = torch.randn(5, 3, 14, 14), torch.randn(1, 3, 14, 14)
    enlarged = interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    before = (kernel * patch).sum((1, 2, 3))
    after = (resample_kernel(kernel, 16, "pinv") * enlarged).sum((1, 2, 3))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)
    constant = torch.ones(1, 1, 14, 14)
    assert float(resample_kernel(constant, 16, "bicubic").sum()) == pytest.approx(14 * 14 * (16 / 14) ** 2, rel=1e-5)
    assert float(resample_kernel(constant, 16, "pinv").sum()) == pytest.approx(14 * 14, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bicubic_is_the_released_procedure(saved: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Kernel by plain bicubic interpolation; positions as a grid in fp32, align_corners off; the class token stays."""
    path = tmp_path / "vit.safetensors"
    save_backbone(path, load_backbone(saved), CONFIG, dtype=dtype)
    old = {name: t.to(dtype).float() for name, t in load_backbone(saved).vit.state_dict().items()}
    ours = load_backbone(path, image_size=96, patch_size=16, resample="bicubic").vit.state_dict()
    kernel = interpolate(old["patch_embed.proj.weight"], size=(16, 16), mode="bicubic", align_corners=False)
    grid = old["pos_embed"][:, 1:].reshape(1, 4, 4, 128).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    positions = torch.cat([old["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, 36, 128)], 1)
    atol = 1e-6 if dtype == torch.float32 else 4e-3  # the file's own precision, once more
    torch.testing.assert_close(ours["patch_embed.proj.weight"], kernel, rtol=0, atol=atol)
    torch.testing.assert_close(ours["pos_embed"], positions, rtol=0, atol=atol)
    torch.testing.assert_close(ours["blocks.1.mlp.fc2.weight"], old["blocks.1.mlp.fc2.weight"], rtol=0, atol=0)


def test_a_patch_size_alone_keeps_the_grid_and_every_position(saved: Path) -> None:
    assert new_sizes(448, 14, None, 16) == (512, 16)
    assert new_sizes(448, 14, 896, None) == (896, 14)
    assert new_sizes(448, 14, None, None) == (448, 14)
    changed, own = load_backbone(saved, patch_size=16), load_backbone(saved)
    assert changed.config.image_size == 64
    assert torch.equal(changed.vit.state_dict()["pos_embed"], own.vit.state_dict()["pos_embed"])
    maps = changed(torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8))
    assert [tuple(m.shape[-2:]) for m in maps] == [(18, 23), (9, 12), (5, 6), (3, 3)]


def test_positions_without_a_class_token_and_with_registers() -> None:
    for prefix in (0, 1, 5):
        positions = torch.randn(1, prefix + 9, 8)
        moved = resample_positions(positions, 3, 6, "pinv")
        assert moved.shape == (1, prefix + 36, 8)
        assert torch.equal(moved[:, :prefix], positions[:, :prefix])


def test_impossible_sizes_are_one_sentence(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_size 100 is not a multiple of patch_size 16; the nearest is 96"):
        load_backbone(saved, image_size=100, patch_size=16)
    with pytest.raises(ConfigError, match="at least 1"):
        load_backbone(saved, patch_size=0)
    with pytest.raises(ConfigError, match="choose pinv or bicubic"):
        load_backbone(saved, patch_size=16, resample="nearest")  # type: ignore[arg-type]
