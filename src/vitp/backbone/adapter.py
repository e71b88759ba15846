"""ViT-Adapter (Chen et al. 2023): a small convolutional pyramid that trades features with a plain ViT.

Per interaction: the pyramid is injected into the tokens, some blocks run, the tokens are extracted into the pyramid.
Module names follow the released checkpoints, so that their keys are ours (`vitp.backbone.released`).

Shape legend: B images, C channels, p patch size, N = h * w patch tokens, S pyramid cells of strides 8, 16 and 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from vitp.backbone.deformable import DeformableAttention, Shapes, centres
from vitp.backbone.dense import DenseBackbone, resample
from vitp.backbone.vit import ViTBackbone
from vitp.config import Config
from vitp.errors import ConfigError
from vitp.train.keyed_drop import KeyedDropout, KeyedDropPath

Variant = Literal["compiled", "fallback"]
_LEVELS = (8, 16, 32)  # strides of the pyramid that talks with the tokens
_LARGE = ((0, 7), (8, 11), (12, 15), (16, 23))  # released configs, 24 blocks
_INTERACTIONS = 4  # ViT-Adapter 4.1
_FALLBACK_DROPOUT = 0.1  # default of mmcv's layer


def interaction_indexes(depth: int) -> tuple[tuple[int, int], ...]:
    """First and last block of each interaction: the released ones for 24 blocks, else four parts as even as can be.

    Raises:
        ConfigError: fewer than four blocks.
    """
    if depth == 24:
        return _LARGE
    if depth < _INTERACTIONS:
        raise ConfigError(f"adapter: needs a ViT of at least {_INTERACTIONS} blocks; this one has {depth}")
    ends = [math.ceil((k + 1) * depth / _INTERACTIONS) for k in range(_INTERACTIONS)]
    return tuple((first, end - 1) for first, end in zip([0, *ends[:-1]], ends, strict=True))


class AdapterConfig(Config):
    """Sizes of an adapter; the defaults are those of the released configs."""

    variant: Variant = "compiled"  # which of the released code's two attentions; docs/backbones.md
    value_ratio: float = Field(default=0.25, gt=0, le=1)  # released: deform_ratio; the fallback ignores it
    heads: int | None = Field(default=None, ge=1)  # None: 16 (released), or the largest power of two that fits
    points: int = Field(default=4, ge=1)  # released configs
    ffn_ratio: float = Field(default=0.25, gt=0)  # released configs: cffn_ratio
    stem_width: int = Field(default=64, ge=1)  # released configs: conv_inplane
    interactions: tuple[tuple[int, int], ...] | None = None  # None: `interaction_indexes`
    extra_extractors: int = Field(default=2, ge=0)  # after the last interaction; released code
    gamma: float = 0.1  # start of the injectors' scale; released configs: init_values
    drop_path: float = Field(default=0.1, ge=0, lt=1)  # of every extractor; released configs
    vit_feature: bool = True  # add the last token map to all four; released code
    final_norm: bool = True  # released configs

    def attention(self, channels: int, levels: int) -> DeformableAttention:
        """The deformable attention of an injector (3 levels) or an extractor (1)."""
        ratio = 1.0 if self.variant == "fallback" else self.value_ratio
        heads = self.heads or math.gcd(16, int(channels * ratio))
        if int(channels * ratio) < 1 or int(channels * ratio) % heads:
            raise ConfigError(f"adapter: {heads} heads do not divide {int(channels * ratio)} value channels")
        return DeformableAttention(channels, heads=heads, levels=levels, points=self.points, value_ratio=ratio)


# ---------------------------------------------------------------------------------------------------------------- parts


def _convolutions(*widths: int, strides: Sequence[int]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for before, after, stride in zip(widths, widths[1:], strides, strict=False):
        found += [nn.Conv2d(before, after, 3, stride, 1, bias=False), LayerNorm2d(after, eps=1e-6), nn.ReLU()]
    return found


class SpatialPrior(nn.Module):
    """Convolutions from pixels to four maps of C channels at strides 4, 8, 16 and 32.

    Layer normalisation over channels takes the place of batch normalisation, as in the released code.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(*_convolutions(3, w, w, w, strides=(2, 1, 1)), nn.MaxPool2d(3, 2, 1))
        self.conv2 = nn.Sequential(*_convolutions(w, 2 * w, strides=(2,)))
        self.conv3 = nn.Sequential(*_convolutions(2 * w, 4 * w, strides=(2,)))
        self.conv4 = nn.Sequential(*_convolutions(4 * w, 4 * w, strides=(2,)))
        self.fc1 = nn.Conv2d(w, channels, 1)
        self.fc2 = nn.Conv2d(2 * w, channels, 1)
        self.fc3 = nn.Conv2d(4 * w, channels, 1)
        self.fc4 = nn.Conv2d(4 * w, channels, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] (multiples of 32) to [B, C, H / s, W / s]."""
        c1 = self.stem(x.contiguous(memory_format=torch.channels_last))  # as the norms and the rows of tokens want it
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return [self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)]


def _as_map(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, h * w, C] as [B, C, h, w]."""
    return rows.mT.reshape(rows.shape[0], rows.shape[2], *shape)


class DepthwiseConv(nn.Module):
    """A depthwise 3 x 3 convolution on every level of the pyramid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)

    def forward(self, x: Tensor, shapes: Shapes) -> Tensor:
        """[B, S, C] to the same shape."""
        levels = torch.split(x, [h * w for h, w in shapes], dim=1)
        maps = [self.dwconv(_as_map(level, shape)) for level, shape in zip(levels, shapes, strict=True)]
        return torch.cat([m.flatten(2).mT for m in maps], dim=1)


class ConvFFN(nn.Module):
    """Linear, depthwise convolution, GELU, linear."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        inner = int(channels * ratio)
        self.fc1 = nn.Linear(channels, inner)
        self.dwconv = DepthwiseConv(inner)
        self.fc2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor, shapes: Shapes) -> Tensor:
        """[B, S, C] to the same shape."""
        return cast(Tensor, self.fc2(functional.gelu(self.dwconv(self.fc1(x), shapes))))


class Injector(nn.Module):
    """Patch tokens read the pyramid: ``x + gamma * attention``."""

    def __init__(self, channels: int, config: AdapterConfig) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = config.attention(channels, len(_LEVELS))
        self.drop = KeyedDropout(_FALLBACK_DROPOUT if config.variant == "fallback" else 0.0)
        self.gamma = nn.Parameter(torch.full((channels,), config.gamma))

    def forward(self, x: Tensor, references: Tensor, pyramid: Tensor, shapes: Shapes) -> Tensor:
        """Tokens [B, N, C] and pyramid [B, S, C] to tokens."""
        read = self.attn(self.query_norm(x), references, self.feat_norm(pyramid), shapes)
        return x + self.gamma * cast(Tensor, self.drop(read))


class Extractor(nn.Module):
    """The pyramid reads the patch tokens, then a `ConvFFN`.

    Variant `fallback`: the residual is the normalised query, so that the pyramid itself is replaced (mmcv's layer adds
    the query it was given, and the released code adds nothing more).
    """

    def __init__(self, channels: int, config: AdapterConfig) -> None:
        super().__init__()
        self.normed_residual = config.variant == "fallback"
        self.query_norm, self.feat_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = config.attention(channels, 1)
        self.drop = KeyedDropout(_FALLBACK_DROPOUT if config.variant == "fallback" else 0.0)
        self.ffn = ConvFFN(channels, config.ffn_ratio)
        self.ffn_norm = nn.LayerNorm(channels)
        self.drop_path = KeyedDropPath(config.drop_path)

    def forward(self, c: Tensor, references: Tensor, tokens: Tensor, grid: tuple[int, int], shapes: Shapes) -> Tensor:
        """Pyramid [B, S, C] with levels of `shapes` and tokens [B, N, C] of a `grid` to pyramid."""
        query = self.query_norm(c)
        read = self.drop(self.attn(query, references, self.feat_norm(tokens), [grid]))
        c = (query if self.normed_residual else c) + read
        return c + cast(Tensor, self.drop_path(self.ffn(self.ffn_norm(c), shapes)))


class Interaction(nn.Module):
    """Injector and extractor around some blocks of the ViT."""

    def __init__(self, channels: int, config: AdapterConfig, extra: int) -> None:
        super().__init__()
        self.injector = Injector(channels, config)
        self.extractor = Extractor(channels, config)
        self.extra_extractors = nn.ModuleList(Extractor(channels, config) for _ in range(extra))

    def extractors(self) -> list[Extractor]:
        """The extractors in the order they run."""
        return [self.extractor, *(cast(Extractor, e) for e in self.extra_extractors)]


# ---------------------------------------------------------------------------------------------------------- the backbone


@dataclass(frozen=True)
class _Geometry:
    """Where tokens and pyramid cells lie on one another."""

    grid: tuple[int, int]  # tokens down and across
    shapes: Shapes  # of the three levels
    of_tokens: Tensor  # [N, 3, 2]: centres of tokens as shares of each level
    of_cells: Tensor  # [S, 1, 2]: centres of cells as shares of the token map


def _geometry(height: int, width: int, patch: int, device: torch.device) -> _Geometry:
    """For a picture of `height` x `width` pixels.

    Tokens cover multiples of the patch size and the pyramid multiples of 32, so a place is a share of another number of
    pixels in each; they coincide where both divide the picture, as in the released code. Cells beyond the tokens look
    at the border.
    """
    grid = (-(-height // patch), -(-width // patch))
    full = (-(-height // 32) * 32, -(-width // 32) * 32)
    shapes = [(full[0] // s, full[1] // s) for s in _LEVELS]
    levels = torch.tensor([full[1], full[0]], device=device, dtype=torch.float32)
    tokens = torch.tensor([grid[1] * patch, grid[0] * patch], device=device, dtype=torch.float32)
    cells = [centres(shape, (s, s), device) for shape, s in zip(shapes, _LEVELS, strict=True)]
    of_tokens = (centres(grid, (patch, patch), device) / levels).clamp(max=1.0)
    of_cells = (torch.cat(cells) / tokens).clamp(max=1.0)
    return _Geometry(grid, shapes, of_tokens[:, None].expand(-1, len(_LEVELS), -1), of_cells[:, None])


class ViTAdapter(DenseBackbone):
    """A `ViTBackbone` with an adapter: four maps of the ViT's width; prefix tokens run along through the blocks."""

    def __init__(self, backbone: ViTBackbone, config: AdapterConfig = AdapterConfig()) -> None:
        """Wrap `backbone`; initial weights come from torch's global generator (`FeaturesConfig.build` takes a seed).

        Raises:
            ConfigError: the ViT cannot be run block by block, or the sizes do not fit together.
        """
        super().__init__()
        _check_blocks(backbone)
        self.backbone, self.config = backbone, config
        self.channels, self.depth = backbone.channels, backbone.depth
        self.interactions_at = config.interactions or interaction_indexes(self.depth)
        _check_interactions(self.interactions_at, self.depth)
        channels, last = self.channels, len(self.interactions_at) - 1
        self.level_embed = nn.Parameter(torch.empty(len(_LEVELS), channels))
        self.spm = SpatialPrior(channels, config.stem_width)
        self.interactions = nn.ModuleList(
            Interaction(channels, config, config.extra_extractors if i == last else 0) for i in range(last + 1)
        )
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        norms = [LayerNorm2d(channels, eps=1e-6) if config.final_norm else nn.Identity() for _ in self.strides]
        self.norm1, self.norm2, self.norm3, self.norm4 = norms
        self._initialise()

    def _initialise(self) -> None:
        """Weights of the released code; the ViT's are left alone."""
        nn.init.normal_(self.level_embed)
        own = [module for name, module in self.named_modules() if not name.startswith("backbone")]
        for module in own:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in own:
            if isinstance(module, DeformableAttention):
                module.reset()

    @property
    def plain(self) -> ViTBackbone:
        """The ViT inside."""
        return self.backbone

    def layer_of(self, name: str) -> int:
        """See `DenseBackbone.layer_of`: adapter parts come last, `level_embed` first (released optimiser)."""
        if name.startswith("backbone."):
            return self.backbone.layer_of(name.removeprefix("backbone."))
        return 0 if name == "level_embed" else self.depth + 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to four maps [B, C, ceil(H / s), ceil(W / s)], s = 4, 8, 16, 32."""
        height, width = x.shape[-2:]
        there = _geometry(height, width, self.backbone.patch_size, x.device)
        pixels = self.backbone.prepare(x)
        prior = pixels[..., :height, :width]
        c1, *levels = self.spm(functional.pad(prior, (0, -width % 32, 0, -height % 32)))
        c = torch.cat([m.flatten(2).mT + e for m, e in zip(levels, self.level_embed, strict=True)], dim=1)
        tokens, rotary = _embed(self.backbone, pixels)
        count = math.prod(there.grid)
        prefix, tokens = tokens[:, :-count], tokens[:, -count:]
        for (first, last), module in zip(self.interactions_at, self.interactions, strict=True):
            step = cast(Interaction, module)
            tokens = step.injector(tokens, there.of_tokens, c, there.shapes)
            both = _run(self.backbone, torch.cat([prefix, tokens], dim=1), rotary, first, last)
            prefix, tokens = both[:, :-count], both[:, -count:]
            for extractor in step.extractors():
                c = extractor(c, there.of_cells, tokens, there.grid, there.shapes)
        return self._maps(c1, c, tokens, there, height, width)

    def _maps(self, c1: Tensor, c: Tensor, tokens: Tensor, there: _Geometry, height: int, width: int) -> list[Tensor]:
        parts = torch.split(c, [h * w for h, w in there.shapes], dim=1)
        c2, c3, c4 = (_as_map(m, shape) for m, shape in zip(parts, there.shapes, strict=True))
        maps = [self.up(c2) + c1, c2, c3, c4]
        maps = [m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, self.strides, strict=True)]
        if self.config.vit_feature:
            grid, patch = _as_map(tokens, there.grid), self.backbone.patch_size
            maps = [
                m + resample(grid, patch, s, height, width, antialias=False)  # as released
                for m, s in zip(maps, self.strides, strict=True)
            ]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return [norm(m) for m, norm in zip(maps, norms, strict=True)]


# -------------------------------------------------------------------------------------------------- a ViT block by block


def _check_blocks(backbone: ViTBackbone) -> None:
    vit = cast(Any, backbone.vit)
    if (
        not hasattr(vit, "_pos_embed")
        or getattr(vit, "shared_rel_pos", None) is not None
        or getattr(vit, "rel_pos_bias", None) is not None
    ):
        raise ConfigError(
            f"adapter: the blocks of '{backbone.config.architecture}' cannot be run one by one; take a timm vit_* with "
            "absolute or rotary positions, or features.kind=pyramid"
        )


def _check_interactions(indexes: Sequence[tuple[int, int]], depth: int) -> None:
    expected = 0
    for first, last in indexes:
        if first != expected or last < first:
            raise ConfigError(f"adapter: interactions must cover blocks 0 to {depth - 1} in order, found {indexes}")
        expected = last + 1
    if expected != depth:
        raise ConfigError(f"adapter: interactions end at block {expected - 1}, but the ViT's last one is {depth - 1}")


def _embed(backbone: ViTBackbone, pixels: Tensor) -> tuple[Tensor, Any]:
    """Prepared pixels to the first block's tokens [B, prefix + N, C], and the rotary embedding the blocks want, if any."""
    vit = cast(Any, backbone.vit)
    found = vit._pos_embed(vit.patch_embed(pixels))
    tokens, rotary = found if isinstance(found, tuple) else (found, None)
    return vit.norm_pre(tokens), rotary


def _run(backbone: ViTBackbone, tokens: Tensor, rotary: Any, first: int, last: int) -> Tensor:
    """Tokens through blocks `first` to `last` (0-based, inclusive)."""
    vit = cast(Any, backbone.vit)
    for i in range(first, last + 1):
        if rotary is None:
            tokens = vit.blocks[i](tokens)
        else:
            tokens = vit.blocks[i](tokens, rope=rotary[i] if getattr(vit, "rope_mixed", False) else rotary)
    return tokens
