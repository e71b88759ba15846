"""The tower's last block, computed only where a patch survives the token drop.

After the last block nothing mixes patches any more: pixel shuffle, projector and norms look at one cell or one patch.
So of the last block only its keys and values are needed everywhere; queries, output projection and MLP are needed at
the survivors' patches alone. Same numbers up to the order of additions. At InternViT-300M with three quarters of the
tokens dropped this is 2.7 % of the tower's work.

Shape legend: T tiles, N tokens of a tile (prefix tokens first), C width, H heads, D head width, K kept cells,
R = K f^2 surviving patches, Q padded queries of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GluMlp, Mlp, RmsNorm, SwiGLU
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vitp.train.keyed_drop import KeyedDropPath
from vitp.vlm.products import tile_linear

_TOKENWISE_NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm, nn.Identity)
_TOKENWISE_MLPS = (Mlp, GluMlp, SwiGLU)
_SCALES = (LayerScale, nn.Identity)
_DROP_PATHS = (KeyedDropPath, nn.Identity)


@dataclass(frozen=True, eq=False)
class Survivors:
    """The patches the last block has to compute.

    rows: int64 [R], their places among the T * N tokens, in the order of the pixel shuffle; tiles: int64 [R], whose
    they are; places: int64 [R], where their queries stand in the padded [T, longest]; longest: Q.
    """

    rows: Tensor
    tiles: Tensor
    places: Tensor
    longest: int


def cell_patches(kept: Tensor, grid: int, factor: int) -> tuple[Tensor, Tensor]:
    """Tile [K] and patches within the tile [K, f^2] of cells `kept` [K], in InternVL's v2 channel order.

    A cell is f x f patches, row by row: (2a, 2b), (2a, 2b+1), (2a+1, 2b), (2a+1, 2b+1) for f = 2.
    """
    side = grid // factor
    cell = kept % (side * side)
    first = (cell // side) * factor * grid + (cell % side) * factor
    step = torch.arange(factor, device=kept.device)
    return kept // (side * side), first[:, None] + (step[:, None] * grid + step[None, :]).flatten()


def survivors(kept: Tensor, most_kept: int, *, grid: int, factor: int, prefix: int) -> Survivors:
    """Lay out the queries of the last block; nothing here waits for the device.

    Args:
        kept: int64 [K], ascending indices of the kept cells, tile-major.
        most_kept: the largest number of kept cells in one tile.
        grid: patches on a side of a tile.
        factor: f, the pixel-shuffle factor.
        prefix: tokens before a tile's patches (CLS, registers).
    """
    tile, patches = cell_patches(kept, grid, factor)
    cells, each = (grid // factor) ** 2, factor * factor
    longest = -(-most_kept * each // 16) * 16  # few different shapes a run
    rank = torch.arange(len(kept), device=kept.device) - torch.searchsorted(kept, tile * cells)
    within = rank[:, None] * each + torch.arange(each, device=kept.device)
    return Survivors(
        rows=(tile[:, None] * (prefix + grid * grid) + prefix + patches).flatten(),
        tiles=tile.repeat_interleave(each),
        places=(tile[:, None] * longest + within).flatten(),
        longest=longest,
    )


class TailBlock(Block):  # type: ignore[misc]
    """A timm block that computes `survivors` alone when they are set; its weights and its dense forward are timm's."""

    survivors: Survivors | None = None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[T, N, C] to the same, or with survivors to [1, R, C]."""
        if self.survivors is not None:
            assert attn_mask is None, "the tower's attention is over all patches"
            return _survivors_alone(self, x, self.survivors)
        if attn_mask is None and not is_causal:
            return super().forward(x)  # type: ignore[no-any-return]
        return super().forward(x, attn_mask, is_causal)  # type: ignore[no-any-return]


def _drop_path(module: nn.Module, branch_RC: Tensor, tiles_R: Tensor) -> Tensor:
    return module.of_rows(branch_RC, tiles_R) if isinstance(module, KeyedDropPath) else branch_RC


def _attend(attn: Any, q_THQD: Tensor, k_THND: Tensor, v_THND: Tensor) -> Tensor:
    if attn.fused_attn:
        return F.scaled_dot_product_attention(q_THQD, k_THND, v_THND)
    scores: Tensor = (q_THQD * attn.scale) @ k_THND.transpose(-2, -1)
    return scores.softmax(-1) @ v_THND


def _survivors_alone(block: Any, x_TNC: Tensor, chosen: Survivors) -> Tensor:
    attn, tiles, tokens = block.attn, x_TNC.shape[0], x_TNC.shape[1]
    heads, width = attn.num_heads, attn.num_heads * attn.head_dim
    h_TNC = block.norm1(x_TNC)
    h_RC = h_TNC.flatten(0, 1).index_select(0, chosen.rows)
    bias = attn.qkv.bias
    split = (None, None) if bias is None else (bias[:width], bias[width:])
    q_RHD = attn.q_norm(F.linear(h_RC, attn.qkv.weight[:width], split[0]).view(-1, heads, attn.head_dim))
    kv = tile_linear(h_TNC, attn.qkv.weight[width:], split[1]).view(tiles, tokens, 2, heads, attn.head_dim)
    k_THND, v_THND = kv.permute(2, 0, 3, 1, 4).unbind(0)
    # The places that no survivor fills hold zeros; what they attend to is never looked at.
    q_padded = q_RHD.new_zeros(tiles * chosen.longest, heads, attn.head_dim).index_copy(0, chosen.places, q_RHD)
    q_THQD = q_padded.view(tiles, chosen.longest, heads, attn.head_dim).transpose(1, 2)
    out_THQD = _attend(attn, q_THQD, attn.k_norm(k_THND), v_THND)
    out_RC = out_THQD.transpose(1, 2).reshape(-1, width).index_select(0, chosen.places)
    if getattr(attn, "norm", None) is not None:
        out_RC = attn.norm(out_RC)
    if getattr(attn, "gate", None) is not None:
        out_RC = out_RC * attn.gate(h_RC).sigmoid()
    out_RC = attn.proj(out_RC)
    x_RC = x_TNC.flatten(0, 1).index_select(0, chosen.rows)
    x_RC = x_RC + _drop_path(block.drop_path1, block.ls1(out_RC), chosen.tiles)
    x_RC = x_RC + _drop_path(block.drop_path2, block.ls2(block.mlp(block.norm2(x_RC))), chosen.tiles)
    return x_RC[None]


def why_dense(tower: nn.Module) -> str | None:
    """What about a tower is not known well enough to compute its last block sparsely; None when it can be."""
    if not isinstance(tower, VisionTransformer) or (
        type(tower).forward_features is not VisionTransformer.forward_features
    ):
        return f"{type(tower).__name__} does not pass its features on as timm's VisionTransformer does"
    last = tower.blocks[-1]
    if type(last) not in (Block, TailBlock) or type(last.attn) is not Attention:
        return f"its last block is a {type(last).__name__} with {type(last.attn).__name__}"
    attn = last.attn
    if type(attn.qkv) is not nn.Linear:
        return f"its last block's qkv is a {type(attn.qkv).__name__}"
    for module in (tower.norm, last.norm1, last.norm2):
        if not isinstance(module, _TOKENWISE_NORMS):
            return f"a {type(module).__name__} may mix tokens"
    parts: list[tuple[nn.Module, tuple[type, ...]]] = [
        (last.mlp, _TOKENWISE_MLPS),
        (last.ls1, _SCALES),
        (last.ls2, _SCALES),
    ]
    parts += [(last.drop_path1, _DROP_PATHS), (last.drop_path2, _DROP_PATHS), (tower.patch_drop, (nn.Identity,))]
    for module, known in parts:
        if type(module) not in known:
            return f"its {type(module).__name__} is of an unknown kind"
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in last.modules()):
        return "its last block has dropout"
    if any(isinstance(m, nn.Conv2d) for m in last.mlp.modules()):
        return "its last block's MLP is a convolution"
    return None


def install_tail(tower: nn.Module) -> TailBlock | None:
    """Make the tower's last block able to compute survivors alone; None where `why_dense` has a reason."""
    if why_dense(tower) is not None:
        return None
    last = tower.blocks[-1]  # type: ignore[index]
    last.__class__ = TailBlock  # weights, names and dense results stay; only `forward` learns a second way
    assert isinstance(last, TailBlock)
    return last
