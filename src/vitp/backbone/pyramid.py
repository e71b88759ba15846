"""Pyramids from one token map: ViTDet's simple feature pyramid, the released neck, and one map at four strides.

Shape legend: B images, C channels of the ViT, K channels out, s stride.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from vitp.backbone.dense import DenseBackbone, resample
from vitp.backbone.vit import ViTBackbone

_MIDDLE = 16  # stride the pyramid grows from (ViTDet)


def last_map(backbone: ViTBackbone, x: Tensor, stride: int) -> Tensor:
    """Token map of the last block, [B, C, ceil(H / stride), ceil(W / stride)], without the final norm."""
    tokens = backbone.features(x, norm=False)
    return resample(tokens, backbone.patch_size, stride, x.shape[-2], x.shape[-1])


class SingleScale(DenseBackbone):
    """The last block's map at all four strides, without parameters of its own."""

    def __init__(self, backbone: ViTBackbone) -> None:
        super().__init__()
        self.backbone, self.channels, self.depth = backbone, backbone.channels, backbone.depth

    @property
    def plain(self) -> ViTBackbone:
        """The ViT inside."""
        return self.backbone

    def layer_of(self, name: str) -> int:
        """See `DenseBackbone.layer_of`."""
        return self.backbone.layer_of(name.removeprefix("backbone."))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to four maps [B, C, ceil(H / s), ceil(W / s)]."""
        tokens = self.backbone.features(x, norm=False)
        return [resample(tokens, self.backbone.patch_size, s, x.shape[-2], x.shape[-1]) for s in self.strides]


class NormedConv(nn.Module):
    """A convolution without bias, then layer normalisation over the channels."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        self.ln = LayerNorm2d(after, eps=1e-5)  # released neck
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, h, w] to [B, after, h, w]."""
        normed: Tensor = self.ln(self.conv(x))
        return normed


class SimpleFPN(nn.Module):
    """The released detectors' neck: 1 x 1 and 3 x 3 convolutions with layer norms a level, no top-down path.

    Levels beyond the inputs are the last one at every second cell. Keys are those of the released checkpoints
    (``lateral_convs.i.conv``, ``lateral_convs.i.ln``, ``fpn_convs.i.conv``, ``fpn_convs.i.ln``).
    """

    def __init__(self, channels: Sequence[int], out_channels: int = 256, levels: int = 5) -> None:
        """A neck over maps of `channels` each, giving `levels` maps of `out_channels`."""
        super().__init__()
        assert levels >= len(channels), f"{levels} levels from {len(channels)} maps"
        self.levels, self.out_channels = levels, out_channels
        self.lateral_convs = nn.ModuleList(NormedConv(c, out_channels, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(NormedConv(out_channels, out_channels, 3) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_i, h_i, w_i] to `levels` maps [B, K, h_i, w_i], each further one half the size, rounded up."""
        pairs = zip(maps, self.lateral_convs, self.fpn_convs, strict=True)
        found = [conv(lateral(x)) for x, lateral, conv in pairs]
        while len(found) < self.levels:
            found.append(found[-1][..., ::2, ::2])
        return found


class SimpleFeaturePyramid(DenseBackbone):
    """ViTDet's pyramid (Li et al. 2022, 3 and A.2) from the last map alone.

    Strides 4 and 8 by deconvolutions of stride 2 (two with layer norm and GELU between, and one), 16 as it is, 32 by
    2 x 2 max-pooling; then 1 x 1 and 3 x 3 convolutions with layer norms. Each deconvolution halves the channels.
    """

    def __init__(self, backbone: ViTBackbone, out_channels: int = 256) -> None:
        """Wrap `backbone`; initial weights come from torch's global generator (`FeaturesConfig.build` takes a seed)."""
        super().__init__()
        width = backbone.channels
        self.backbone, self.depth, self.channels = backbone, backbone.depth, out_channels
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            LayerNorm2d(width // 2, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        )
        self.up8 = nn.ConvTranspose2d(width, width // 2, 2, 2)
        self.neck = SimpleFPN([width // 4, width // 2, width, width], out_channels, levels=4)

    @property
    def plain(self) -> ViTBackbone:
        """The ViT inside."""
        return self.backbone

    def layer_of(self, name: str) -> int:
        """See `DenseBackbone.layer_of`; the pyramid's own parameters come last."""
        inside = name.startswith("backbone.")
        return self.backbone.layer_of(name.removeprefix("backbone.")) if inside else self.depth + 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to four maps [B, K, ceil(H / s), ceil(W / s)]."""
        middle = last_map(self.backbone, x, _MIDDLE)
        low = functional.max_pool2d(middle, 2, ceil_mode=True)
        maps = self.neck([self.up4(middle), self.up8(middle), middle, low])
        sizes = [(-(-x.shape[-2] // s), -(-x.shape[-1] // s)) for s in self.strides]
        return [m[..., :h, :w] for m, (h, w) in zip(maps, sizes, strict=True)]
