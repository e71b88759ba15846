"""The timm backbone: parity with timm itself, maps that lie on the picture, and files that must not be believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch.nn import functional

from vitp.backbone.dense import resample_matrix
from vitp.backbone.vit import (
    BackboneConfig,
    ViTBackbone,
    load_backbone,
    random_backbone,
    read_metadata,
    save_backbone,
)
from vitp.config import load
from vitp.errors import CheckpointError, ConfigError

TINY = {"architecture": "vit_tiny_patch16_224", "width": 48, "depth": 4, "heads": 3}
INTERN = BackboneConfig(
    architecture="vit_intern300m_patch14_448", image_size=56, patch_size=14, width=48, depth=5, heads=3
)


def _config(**changes: object) -> BackboneConfig:
    return BackboneConfig.model_validate({**TINY, "image_size": 64, "patch_size": 16, **changes})


@pytest.fixture(scope="module")
def backbone() -> ViTBackbone:
    return random_backbone(_config(), seed=0).eval()


def _images(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


# --------------------------------------------------------------------------------------------------------------- parity


def test_equals_timm_on_normalised_pixels(backbone: ViTBackbone) -> None:
    x = _images(64, 64)
    data = timm.data.resolve_data_config({}, model=backbone.vit)
    config = _config(mean=data["mean"], std=data["std"])  # this architecture is fed 0.5 / 0.5
    same = ViTBackbone(backbone.vit, config)
    pixels = (x / 255.0 - torch.tensor(data["mean"]).view(3, 1, 1)) / torch.tensor(data["std"]).view(3, 1, 1)
    tokens = backbone.vit.forward_features(pixels)[:, 1:]
    torch.testing.assert_close(same.features(x).flatten(2).mT, tokens)
    torch.testing.assert_close(same.pooled(x), tokens.mean(1))
    torch.testing.assert_close(same.features(x), same.features(x.float() / 255.0))


def test_other_sizes_equal_a_timm_model_resized_to_that_size(backbone: ViTBackbone) -> None:
    other = timm.create_model(
        TINY["architecture"], num_classes=0, global_pool="", img_size=64, embed_dim=48, depth=4, num_heads=3
    ).eval()
    other.load_state_dict(backbone.vit.state_dict())
    other.set_input_size(img_size=(96, 48))
    x = _images(96, 48)
    expected = other.forward_features(backbone.prepare(x))[:, 1:]
    torch.testing.assert_close(backbone.features(x).flatten(2).mT, expected)


def test_the_saved_file_loads_strictly_into_timm(tmp_path: Path) -> None:
    for config in (_config(class_token=False), INTERN):
        file = tmp_path / "backbone.safetensors"
        ours = random_backbone(config, seed=3).eval()
        save_backbone(file, ours, config, {"licence": "Apache-2.0"})
        theirs = timm.create_model(
            config.architecture, checkpoint_path=str(file), num_classes=0, **config.timm_kwargs()
        ).eval()
        x = _images(config.image_size, config.image_size)
        tokens = theirs.forward_features(ours.prepare(x))[:, theirs.num_prefix_tokens :]
        torch.testing.assert_close(ours.features(x).flatten(2).mT, tokens)
        again = load_backbone(file).eval()
        assert again.config == config
        assert read_metadata(file)["licence"] == "Apache-2.0"
        torch.testing.assert_close(again.features(x), ours.features(x), rtol=0, atol=0)


def test_a_folder_that_timm_wrote_loads_without_its_classifier(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32, embed_dim=48, depth=2, num_heads=3)
    args = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
    save_for_hf(model.eval(), str(tmp_path), model_args=args, safe_serialization=True)
    ours = load_backbone(tmp_path, trainable=False)
    assert (ours.config.image_size, ours.config.patch_size, ours.config.mean) == (32, 16, (0.5, 0.5, 0.5))
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    x = _images(32, 32)
    torch.testing.assert_close(ours.features(x).flatten(2).mT, model.forward_features(ours.prepare(x))[:, 1:])


# ----------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 32), (50, 90), (15, 33)])
@pytest.mark.parametrize("intern", [False, True])
def test_maps_cover_the_picture_at_the_four_strides(
    backbone: ViTBackbone, intern: bool, height: int, width: int
) -> None:
    model = random_backbone(INTERN, seed=1).eval() if intern else backbone
    with torch.no_grad():
        maps = model(_images(height, width))
        assert [tuple(m.shape) for m in maps] == [(2, 48, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
        p = model.patch_size
        assert model.features(_images(height, width)).shape == (2, 48, -(-height // p), -(-width // p))


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("pixels", [224, 200])
def test_resampled_cells_lie_on_the_pixels_they_stand_for(patch: int, stride: int, pixels: int) -> None:
    tokens = -(-pixels // patch)
    weights = resample_matrix(tokens, patch, stride, pixels, torch.device("cpu"))
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    centres = (torch.arange(tokens) + 0.5) * patch  # tokens carry their own position in pixels
    cells = (torch.arange(len(weights)) + 0.5) * stride
    inside = (cells > max(patch, stride)) & (cells < tokens * patch - max(patch, stride))
    exact = stride <= patch or stride % patch == 0  # elsewhere a sampled triangle is off by a twentieth of a token
    torch.testing.assert_close((weights @ centres)[inside], cells[inside], rtol=0, atol=1e-3 if exact else 0.07 * patch)


@pytest.mark.parametrize("stride", [4, 8, 32])
def test_resampling_is_torchs_antialiased_bilinear_where_sizes_divide(stride: int) -> None:
    tokens = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = resample_matrix(8, 16, stride, 128, torch.device("cpu"))
    side = 128 // stride
    expected = functional.interpolate(tokens, (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(weights @ tokens @ weights.T, expected)


def test_padding_is_the_mean_colour_and_leaves_the_picture_in_place(backbone: ViTBackbone) -> None:
    mean = torch.tensor(backbone.config.mean).view(1, 3, 1, 1)
    x = _images(40, 56).float() / 255.0
    padded = mean.expand(2, 3, 48, 64).clone()
    padded[:, :, :40, :56] = x
    torch.testing.assert_close(backbone.features(x), backbone.features(padded))


def test_every_weight_that_the_maps_use_gets_a_gradient() -> None:
    model = random_backbone(_config(class_token=False), seed=0)
    sum(m.square().mean() for m in model(_images(64, 64))).backward()
    silent = [name for name, p in model.vit.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["norm.weight", "norm.bias"]  # the maps are taken before the final norm


def test_shallow_towers_repeat_blocks_and_layers_stand_side_by_side() -> None:
    model = random_backbone(_config(depth=2), seed=0).eval()
    x = _images(64, 64)
    assert len(model(x)) == 4
    both = model.pooled(x, layers=2)
    torch.testing.assert_close(both[:, 48:], model.pooled(x))
    assert not torch.allclose(both[:, :48], both[:, 48:])
    with pytest.raises(ValueError, match=r"1 \.\.\. 2"):
        model.pooled(x, layers=3)


def test_pixels_of_a_wrong_type_are_refused(backbone: ViTBackbone) -> None:
    with pytest.raises(ValueError, match="uint8"):
        backbone(_images(64, 64).int())
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        backbone(_images(64, 64)[:, :1])


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (random_backbone(_config(), seed).vit.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def saved(tmp_path: Path, backbone: ViTBackbone) -> Path:
    file = tmp_path / "vit.safetensors"
    save_backbone(file, backbone, backbone.config)
    return file


def test_a_file_cut_short_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="not a complete safetensors file"):
            load_backbone(saved)


def _rewrite(file: Path, tensors: dict[str, torch.Tensor], about: object) -> None:
    save_file(tensors, file, metadata={"vitp": json.dumps(about)})


def test_a_config_that_disagrees_with_the_weights_names_the_first_tensor(saved: Path, backbone: ViTBackbone) -> None:
    tensors = load_file(saved)
    _rewrite(saved, tensors, {"backbone": _config(width=96).model_dump(mode="json")})
    with pytest.raises(CheckpointError, match=r"'cls_token' is \[1, 1, 48\] in the file and \[1, 1, 96\]"):
        load_backbone(saved)


def test_missing_and_left_over_tensors_are_errors(saved: Path, backbone: ViTBackbone) -> None:
    about = {"backbone": backbone.config.model_dump(mode="json")}
    tensors = load_file(saved)
    _rewrite(saved, {k: v for k, v in tensors.items() if k != "blocks.3.mlp.fc2.bias"}, about)
    with pytest.raises(CheckpointError, match=r"'blocks\.3\.mlp\.fc2\.bias' is missing"):
        load_backbone(saved)
    _rewrite(saved, {**tensors, "mlp1.0.weight": torch.zeros(2)}, about)
    with pytest.raises(CheckpointError, match=r"'mlp1\.0\.weight' is left over"):
        load_backbone(saved)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, "vitp export"),
        ({"backbone": {"architecture": "vit_tiny_patch16_224"}}, "image_size"),
        ({"backbone": {"architecture": "vit_tinny_patch16_224", "image_size": 64, "patch_size": 16}}, "has no model"),
        ({"backbone": {"architecture": "resnet18", "image_size": 64, "patch_size": 16}}, "resnet18"),
    ],
)
def test_metadata_that_describes_no_vit_is_refused(saved: Path, about: object, said: str) -> None:
    _rewrite(saved, load_file(saved), about)
    with pytest.raises(CheckpointError, match=said):
        load_backbone(saved)


@pytest.mark.parametrize("name", ["backbone.pth", "model.bin", "last.ckpt"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(CheckpointError, match="pickle"):
        load_backbone(tmp_path / name)


def test_folders_that_are_no_backbone_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone(tmp_path / "nowhere")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="run `vitp export"):
        load_backbone(run)
    (run / "backbone.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"not a backbone; give .*run/backbone\.safetensors$"):
        load_backbone(run)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_backbone(other)
    (other / "config.json").write_text('{"model_type": "intern_vit_6b"}')
    save_file({"x": torch.zeros(1)}, other / "model.safetensors")
    with pytest.raises(CheckpointError, match="another library"):
        load_backbone(other)
    card = {"architecture": "vit_tiny_patch16_224", "model_args": {"qk_norm": True}}
    (other / "config.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="qk_norm"):
        load_backbone(other)


def test_a_recipe_with_an_unknown_or_impossible_vit_fails_with_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "vit.yaml"
    recipe.write_text("image_size: 64\npatch_size: 16\narchitecture: vit_tiny_patch16_225\n")
    with pytest.raises(ConfigError, match=r"vit\.yaml:3: architecture: .*vit_tiny_patch16_224"):
        load(BackboneConfig, recipe)
    with pytest.raises(ConfigError, match="multiple of patch_size"):
        load(BackboneConfig, recipe, ["architecture=vit_tiny_patch16_224", "image_size=60"])
    with pytest.raises(ConfigError, match="timm cannot build"):
        _config(width=50, heads=None).create()
