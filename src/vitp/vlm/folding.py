"""Layer scale folded into the weights before it: x + g * (W y + b) = x + (g W) y + g b.

Scaling a matrix of weights is nothing beside scaling the activations of every patch, and a block then need not keep its two
branches for the gradient of g: at InternViT-300M's width 4.1 of 36.9 kB a patch and block. Gradients of W, b and g come
out of the same rule. Names, values and shapes of the weights stay.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from timm.layers import Mlp
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitp.vlm.products import tile_linear


def fold_layer_scale(tower: nn.Module) -> int:
    """Fold every layer scale of a timm ViT's blocks that stands right behind a linear layer; returns how many."""
    count = 0
    for block in getattr(tower, "blocks", []):
        if not isinstance(block, Block):
            continue
        attention, mlp = block.attn, block.mlp
        if type(attention) is Attention and attention.proj_drop.p == 0:
            count += _fold(attention.proj, block.ls1)
        if type(mlp) is Mlp and mlp.drop2.p == 0:
            count += _fold(mlp.fc2, block.ls2)
    return count


def unfold_layer_scale(block: nn.Module) -> None:
    """Let a block's linear layers and layer scales compute apart again, for linear layers of another kind."""
    for module in list(block.modules()):
        scale = module.__dict__.pop("_scale", None)
        if scale is not None:
            del module.__dict__["forward"], scale.__dict__["forward"]


def is_folded(scale: nn.Module) -> bool:
    """Whether a layer scale was folded into the weights before it."""
    return "forward" in scale.__dict__


def _fold(linear: nn.Module, scale: nn.Module) -> bool:
    if type(linear) is not nn.Linear or type(scale) is not LayerScale or is_folded(scale):
        return False
    object.__setattr__(linear, "_scale", scale)  # not as a submodule: the names of the weights stay
    object.__setattr__(linear, "forward", MethodType(_scaled_linear, linear))
    object.__setattr__(scale, "forward", MethodType(_already_scaled, scale))
    return True


def _scaled_linear(self: Any, x: Tensor) -> Tensor:
    gamma: Tensor = self._scale.gamma
    return tile_linear(x, self.weight * gamma[:, None], None if self.bias is None else self.bias * gamma)


def _already_scaled(self: Any, x: Tensor) -> Tensor:
    return x
