"""ViT-Adapter: against the released forward written out, every size and prefix, gradients, draws, and learning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from vitp.backbone import deformable
from vitp.backbone.adapter import AdapterConfig, ViTAdapter, interaction_indexes
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone
from vitp.errors import ConfigError
from vitp.heads.head import FCNConfig
from vitp.train.keyed_drop import KeyedDrop, KeyedDropout

SMALL = AdapterConfig(stem_width=8, heads=4)


def _backbone(patch: int = 16, **changes: object) -> ViTBackbone:
    fields = {"architecture": "vit_tiny_patch16_224", "image_size": 4 * patch, "patch_size": patch, "width": 32}
    return random_backbone(BackboneConfig.model_validate({**fields, "depth": 5, "heads": 2, **changes}), seed=0)


def _adapter(config: AdapterConfig = SMALL, patch: int = 16, **changes: object) -> ViTAdapter:
    torch.manual_seed(0)
    adapter = ViTAdapter(_backbone(patch, **changes), config)
    with torch.no_grad():  # a fresh one looks at fixed places with even weights: nothing to tell mistakes by
        for name, parameter in adapter.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.2)
            if "norm" in name or "gamma" in name:
                parameter.add_(torch.rand_like(parameter))
    return adapter


def _images(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


# --------------------------------------------------------------------------------------------------------------- parity


def _channel_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)


def _attend(
    attn: nn.Module, query: Tensor, feature: Tensor, grid: tuple[int, int], shapes: list[tuple[int, int]]
) -> Tensor:
    """Cells of `grid` levels look at their own centres; transformers' kernel samples."""
    levels, heads, points = len(shapes), attn.heads, attn.points
    batch, count, _ = query.shape
    offsets = attn.sampling_offsets(query).view(batch, count, heads, levels, points, 2)
    weights = attn.attention_weights(query).view(batch, count, heads, levels * points).softmax(-1)
    sizes = torch.tensor([[w, h] for h, w in shapes])
    at = grid[None, :, None, None, None, :] + offsets / sizes[None, None, None, :, None, :]
    value = attn.value_proj(feature).view(batch, feature.shape[1], heads, -1)
    kernel = MultiScaleDeformableAttention()
    read = kernel(value, sizes, shapes, None, at, weights.view(batch, count, heads, levels, points), 64)
    return attn.output_proj(read)


def _centres(shape: tuple[int, int]) -> Tensor:
    h, w = shape
    return torch.tensor([[(x + 0.5) / w, (y + 0.5) / h] for y in range(h) for x in range(w)])


def _released_forward(m: ViTAdapter, images: Tensor, fallback: bool) -> list[Tensor]:
    """The released model on a picture whose sides 32 divides, from its description alone."""
    vit = m.backbone.vit
    pixels = m.backbone.prepare(images)
    batch, _, height, width = pixels.shape
    h, w = height // 16, width // 16
    shapes = [(2 * h, 2 * w), (h, w), (h // 2, w // 2)]
    x = pixels
    for i in (0, 3, 6):
        x = functional.conv2d(x, m.spm.stem[i].weight, None, 2 if i == 0 else 1, 1)
        x = _channel_norm(m.spm.stem[i + 1], x).relu()
    maps = [functional.max_pool2d(x, 3, 2, 1)]
    for conv in (m.spm.conv2, m.spm.conv3, m.spm.conv4):
        maps.append(_channel_norm(conv[1], functional.conv2d(maps[-1], conv[0].weight, None, 2, 1)).relu())
    c1, *rest = (fc(x) for fc, x in zip((m.spm.fc1, m.spm.fc2, m.spm.fc3, m.spm.fc4), maps, strict=True))
    c = torch.cat([r.flatten(2).transpose(1, 2) + m.level_embed[i] for i, r in enumerate(rest)], 1)
    x = vit.pos_drop(vit._pos_embed(vit.patch_embed(pixels)))
    prefix, x = x[:, : vit.num_prefix_tokens], x[:, vit.num_prefix_tokens :]
    cells = torch.cat([_centres(shape) for shape in shapes])
    for (first, last), block in zip(m.interactions_at, m.interactions, strict=True):
        inject = block.injector
        read = _attend(inject.attn, inject.query_norm(x), inject.feat_norm(c), _centres((h, w)), shapes)
        x = x + inject.gamma * read
        both = torch.cat([prefix, x], 1)
        for i in range(first, last + 1):
            both = vit.blocks[i](both)
        prefix, x = both[:, : vit.num_prefix_tokens], both[:, vit.num_prefix_tokens :]
        for e in (block.extractor, *block.extra_extractors):
            normed = e.query_norm(c)
            c = (normed if fallback else c) + _attend(e.attn, normed, e.feat_norm(x), cells, [(h, w)])
            inner = e.ffn.fc1(e.ffn_norm(c)).transpose(1, 2).split([a * b for a, b in shapes], 2)
            conv = e.ffn.dwconv.dwconv
            inner = [conv(p.reshape(batch, -1, *s)).flatten(2) for p, s in zip(inner, shapes, strict=True)]
            c = c + e.ffn.fc2(functional.gelu(torch.cat(inner, 2).transpose(1, 2)))
    c2, c3, c4 = (
        p.transpose(1, 2).reshape(batch, -1, *s)
        for p, s in zip(c.split([a * b for a, b in shapes], 1), shapes, strict=True)
    )
    grid = x.transpose(1, 2).reshape(batch, -1, h, w)
    found = []
    for map_, factor, norm in zip(
        (m.up(c2) + c1, c2, c3, c4), (4, 2, 1, 0.5), (m.norm1, m.norm2, m.norm3, m.norm4), strict=True
    ):
        resized = functional.interpolate(grid, scale_factor=factor, mode="bilinear", align_corners=False)
        found.append(_channel_norm(norm, map_ + resized))
    return found


@pytest.mark.parametrize("variant", ["compiled", "fallback"])
@pytest.mark.parametrize(("size", "form"), [((64, 64), "grid"), ((32, 96), "grid"), ((32, 96), "bag")])
def test_equals_the_released_forward_written_out(
    variant: str, size: tuple[int, int], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deformable, "choose_form", lambda *_: form)
    config = SMALL.model_copy(update={"variant": variant})
    adapter = _adapter(config).eval()
    with torch.no_grad():
        expected = _released_forward(adapter, _images(*size), variant == "fallback")
        for mine, theirs in zip(adapter(_images(*size)), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "count"), [("compiled", 17_991_360), ("fallback", 33_727_680)])
def test_the_large_adapter_has_the_released_number_of_parameters(variant: str, count: int) -> None:
    config = BackboneConfig(architecture="vit_intern300m_patch14_448", image_size=512, patch_size=16, class_token=False)
    with torch.device("meta"):
        adapter = ViTAdapter(ViTBackbone(config.create(), config), AdapterConfig.model_validate({"variant": variant}))
    assert adapter.interactions_at == ((0, 7), (8, 11), (12, 15), (16, 23))
    assert sum(p.numel() for n, p in adapter.named_parameters() if not n.startswith("backbone.")) == count


ARCHITECTURES = [
    {"architecture": "vit_tiny_patch16_224"},
    {"architecture": "vit_tiny_patch16_224", "class_token": False},
    {"architecture": "vit_small_patch14_reg4_dinov2", "patch": 14},
    {"architecture": "vit_small_patch16_dinov3"},
    {"architecture": "vit_base_patch16_rope_mixed_224"},
]


@pytest.mark.parametrize("fields", ARCHITECTURES, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_blocks_see_what_timm_would_show_them(fields: dict[str, object]) -> None:
    adapter = _adapter(**fields).eval()  # type: ignore[arg-type]
    for step in adapter.interactions:
        nn.init.zeros_(step.injector.gamma)
    seen: list[Tensor] = []
    handle = adapter.backbone.vit.blocks[-1].register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        adapter(_images(50, 90))
        adapter.backbone.features(_images(50, 90))
    handle.remove()
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("size", [(64, 64), (50, 90), (15, 33), (224, 32)])
def test_maps_cover_pictures_of_any_size(patch: int, size: tuple[int, int]) -> None:
    adapter = _adapter(patch=patch).eval()
    with torch.no_grad():
        maps = adapter(_images(*size))
    assert [tuple(m.shape) for m in maps] == [(2, 32, -(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize("patch", [14, 16])
def test_a_bright_spot_lights_up_where_it_is_in_every_map(patch: int) -> None:
    adapter = _adapter(SMALL.model_copy(update={"final_norm": False}), patch=patch).eval()
    dark = torch.zeros(1, 3, 200, 328)
    lit = dark.clone()
    lit[..., 128:160, 224:256] = 1.0
    with torch.no_grad():
        for before, after, stride in zip(adapter(dark), adapter(lit), adapter.strides, strict=True):
            change = (after - before).norm(dim=1)[0]
            weight = change.square() / change.square().sum()
            rows = (torch.arange(weight.shape[0]) + 0.5) * stride
            columns = (torch.arange(weight.shape[1]) + 0.5) * stride
            assert abs(float((weight.sum(1) * rows).sum()) - 144) < 24
            assert abs(float((weight.sum(0) * columns).sum()) - 240) < 24


def test_interactions_are_even_quarters_that_cover_every_block() -> None:
    assert interaction_indexes(12) == ((0, 2), (3, 5), (6, 8), (9, 11))
    for depth in range(4, 50):
        blocks = [i for first, last in interaction_indexes(depth) for i in range(first, last + 1)]
        assert blocks == list(range(depth))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SMALL, {"depth": 3}, "at least 4 blocks; this one has 3"),
        (AdapterConfig(interactions=((0, 2), (4, 4))), {}, "in order"),
        (AdapterConfig(interactions=((0, 2), (3, 3))), {}, "end at block 3, but the ViT's last one is 4"),
        (AdapterConfig(heads=5), {}, "5 heads do not divide 8"),
    ],
)
def test_what_does_not_fit_is_said(config: AdapterConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViTAdapter(_backbone(**changes), config)  # type: ignore[arg-type]


def test_a_vit_that_cannot_be_run_in_parts_is_refused() -> None:
    backbone = _backbone()
    backbone.vit.shared_rel_pos = nn.Identity()  # relative positions, shared by all blocks
    with pytest.raises(ConfigError, match=r"cannot be run one by one; take a timm vit_\*"):
        ViTAdapter(backbone, SMALL)


# -------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("variant", "form"), [("compiled", "grid"), ("fallback", "bag")])
def test_every_weight_gets_a_finite_gradient(variant: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "choose_form", lambda *_: form)
    adapter = _adapter(SMALL.model_copy(update={"variant": variant}))
    sum(m.square().sum() for m in adapter(_images(48, 80))).backward()
    without = [n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == ["backbone.vit.norm.weight", "backbone.vit.norm.bias"]  # the maps come before the final norm


def test_bf16_autocast_stays_near_fp32_and_gives_fp32_maps() -> None:
    adapter = _adapter().eval()
    with torch.no_grad():
        expected = adapter(_images(64, 96))
        with torch.autocast("cpu", torch.bfloat16):
            found = adapter(_images(64, 96))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 0.03


def test_draws_belong_to_the_sample_and_not_to_the_batch() -> None:
    config = SMALL.model_copy(update={"variant": "fallback", "drop_path": 0.5})
    adapter = _adapter(config).train()
    random = [m for m in adapter.modules() if isinstance(m, KeyedDrop) and m.rate > 0]
    assert sum(isinstance(m, KeyedDropout) for m in random) == 10  # four injectors, six extractors
    numbers = torch.rand(2, len(random), generator=torch.Generator().manual_seed(5))

    def run(rows: slice) -> list[Tensor]:
        for i, module in enumerate(random):
            module.decide(numbers[rows, i : i + 1])
        with torch.no_grad():
            return adapter(_images(64, 64)[rows])

    both, second, again = run(slice(0, 2)), run(slice(1, 2)), run(slice(0, 2))
    for module in random:
        module.decide(None)
    with torch.no_grad():
        still = adapter(_images(64, 64))
    for a, b, c, d in zip(both, second, again, still, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-4)
        assert torch.equal(a, c)
        assert float((a - d).abs().max()) > 1e-2


def test_a_tiny_model_learns_one_image_by_heart() -> None:
    adapter = _adapter(depth=4)
    head = FCNConfig(width=32).build([32] * 4, 2, seed=0)
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8, generator=random)
    mask = functional.interpolate(torch.rand(1, 1, 6, 8, generator=random), scale_factor=8.0)[:, 0].gt(0.5).long()
    optimizer = torch.optim.AdamW([*adapter.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(40):
        loss = functional.cross_entropy(head(adapter(image), (48, 64)), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 0.5 < losses[0]


def test_layers_for_the_decay_of_learning_rates() -> None:
    adapter = _adapter()
    layers = {name: adapter.layer_of(name) for name, _ in adapter.named_parameters()}
    assert layers["level_embed"] == layers["backbone.vit.pos_embed"] == layers["backbone.vit.cls_token"] == 0
    assert layers["backbone.vit.blocks.3.attn.qkv.weight"] == 4
    own = {layer for name, layer in layers.items() if not name.startswith("backbone.") and name != "level_embed"}
    assert own == {6}
