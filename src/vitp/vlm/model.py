"""The vision-language model: tower -> keep -> pixel shuffle + projector on the kept -> language model -> loss.

Shape legend: T tiles, P patches of a tile, C tower width, N visual tokens of the pack, K kept ones, L packed
positions, W language-model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitp.train.keyed_drop import KeyedDropPath
from vitp.vlm.attention import Documents, use_packed_attention
from vitp.vlm.folding import fold_layer_scale
from vitp.vlm.loss import LossKernel, supervised_loss
from vitp.vlm.products import use_tile_products
from vitp.vlm.sparse_tail import Survivors, TailBlock, cell_patches, install_tail, survivors
from vitp.vlm.stochastic_depth import install, set_uniforms
from vitp.vlm.vocabulary import Spare, embedded

_ON_HOST = ("lengths", "most_kept")  # plain numbers: the step never asks the device for them
SPARSE_BELOW = 0.8  # ours: share of kept cells from which the gathers of the sparse last block cost what they save


@dataclass(frozen=True)
class PackTensors:
    """What the model computes on: samples laid out one after another, dropped tokens already gone.

    tiles: uint8 [T, 3, S, S]; depth: float32 [T, modules] uniform numbers for stochastic depth;
    ids: int64 [L], with the placeholder id at visual positions; positions: int64 [L], as before dropping;
    lengths: samples' lengths, sum L; ends: int32 [samples + 1], their running sum from 0;
    slots: int64 [K], where the kept visual tokens stand in the row;
    kept: int64 [K], ascending, which of the pack's N visual tokens they are (tile-major);
    most_kept: the largest number of kept visual tokens in one tile;
    predict: int64 [S], positions whose next token is supervised; targets: int64 [S]; weights: float32 [S].
    """

    tiles: Tensor
    depth: Tensor
    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    ends: Tensor
    slots: Tensor
    kept: Tensor
    most_kept: int
    predict: Tensor
    targets: Tensor
    weights: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; the lengths as one of them."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ON_HOST}
        return {**named, "lengths": torch.tensor(self.lengths)}

    def to(self, device: torch.device) -> PackTensors:
        """The same pack with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PackTensors:
        """The same pack in pinned memory."""
        return self._each(Tensor.pin_memory)

    def of_step(self, weight: float, extent: tuple[int, int] | None) -> PackTensors:
        """Itself: a pack's loss does not depend on the rest of its step."""
        return self

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackTensors:
        changed: dict[str, Any] = {n: change(t) for n, t in self.tensors().items() if n not in _ON_HOST}
        return replace(self, **changed)


class Projector(nn.Module):
    """LayerNorm - Linear - GELU - Linear from f x f shuffled patches to the language model's width (InternVL's mlp1)."""

    def __init__(self, tower_width: int, factor: int, width: int) -> None:
        super().__init__()
        self.factor = factor
        channels = tower_width * factor * factor
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, shuffled: Tensor) -> Tensor:
        """[K, C f^2] to [K, W]."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm(shuffled))))
        return out


def shuffle_kept(patches_TPC: Tensor, kept: Tensor, grid: int, factor: int) -> Tensor:
    """Pixel shuffle (InternVL v2 order) of the kept cells alone: a cell's channels are its patches' vectors in a row.

    Args:
        patches_TPC: [T, grid * grid, C].
        kept: int64 [K], indices into the T * (grid / f)^2 cells, tile-major then row-major.
        grid: patches on a side of a tile.
        factor: f, 1 for no shuffle, 2 for a down-sample ratio of 0.5.

    Returns:
        [K, C f^2].
    """
    flat = patches_TPC.flatten(0, 1)
    if factor == 1:
        return flat.index_select(0, kept)
    tile, patches = cell_patches(kept, grid, factor)
    rows = tile[:, None] * (grid * grid) + patches
    return flat.index_select(0, rows.flatten()).view(len(kept), -1)


class VisionLanguageModel(nn.Module):
    """A timm ViT, a projector and a transformers causal language model, trained as one."""

    def __init__(
        self,
        tower: nn.Module,
        language_model: nn.Module,
        *,
        image_size: int,
        factor: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        drop_path: float = 0.0,
    ) -> None:
        """Wire the parts together.

        Args:
            tower: timm ViT without a classifier, for square inputs of `image_size`.
            language_model: transformers causal LM with the image token in its vocabulary.
            image_size: side of a tile in pixels.
            factor: pixel-shuffle factor; must divide the tile's patch grid.
            mean: of the pixels in [0, 1], per channel.
            std: of the same.
            drop_path: stochastic depth of the last block; rates grow linearly from 0.

        Raises:
            ValueError: the factor does not divide the grid, or the tower has no place for stochastic depth.
        """
        super().__init__()
        patch = int(tower.patch_embed.patch_size[0])  # type: ignore[union-attr,index]
        self.grid = image_size // patch
        if image_size % patch or self.grid % factor:
            raise ValueError(
                f"image_size {image_size} with patch_size {patch} gives a grid of {image_size / patch:g} patches, which "
                f"pixel_shuffle {factor} does not divide"
            )
        self.image_size, self.factor = image_size, factor
        self.loss_kernel: LossKernel = "torch"
        self.spare_input, self.spare_head = Spare(), Spare()  # memory of the embeddings' gradients on CPUs
        self.tower = tower
        self.depth_modules: list[KeyedDropPath] = install(tower, drop_path)
        install_tail(tower)
        fold_layer_scale(tower)
        use_tile_products(tower)
        self.language_model = language_model
        use_packed_attention(language_model)
        width = language_model.get_input_embeddings().embedding_dim  # type: ignore[operator]
        self.projector = Projector(int(tower.num_features), factor, width)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile before dropping."""
        return (self.grid // self.factor) ** 2

    @property
    def _tail(self) -> TailBlock | None:
        """The tower's last block where it knows to compute survivors alone."""
        blocks: Any = getattr(self.tower, "blocks", None)
        return blocks[-1] if blocks and isinstance(blocks[-1], TailBlock) else None

    def encode(self, tiles: Tensor, depth: Tensor | None = None) -> Tensor:
        """Tiles uint8 [T, 3, S, S] to patch features [T, P, C], CLS and register tokens removed."""
        features = self._features(tiles, depth, None)
        return features[:, int(self.tower.num_prefix_tokens) :]  # type: ignore[arg-type]

    def encode_kept(self, pack: PackTensors) -> Tensor:
        """Shuffled features [K, C f^2] of the pack's kept cells; the last block computes them alone where it can."""
        cells = len(pack.tiles) * self.tokens_per_tile
        if self._tail is None or len(pack.kept) > SPARSE_BELOW * cells:
            return shuffle_kept(self.encode(pack.tiles, pack.depth), pack.kept, self.grid, self.factor)
        chosen = survivors(
            pack.kept,
            pack.most_kept,
            grid=self.grid,
            factor=self.factor,
            prefix=int(self.tower.num_prefix_tokens),  # type: ignore[arg-type]
        )
        return self._features(pack.tiles, pack.depth, chosen).view(len(pack.kept), -1)

    def _features(self, tiles: Tensor, depth: Tensor | None, chosen: Survivors | None) -> Tensor:
        tail = self._tail
        set_uniforms(self.depth_modules, depth if depth is not None and depth.shape[1] else None)
        if tail is not None:
            tail.survivors = chosen
        # Tiles come with their channels together; laying them apart here is free, the conversion writes anew anyway.
        planes = tiles.to(torch.float32, memory_format=torch.contiguous_format)
        pixels = planes.sub_(self.mean).div_(self.std).to(self.projector.fc1.weight.dtype)
        try:
            features: Tensor = self.tower.forward_features(pixels)  # type: ignore[operator]
        finally:
            set_uniforms(self.depth_modules, None)
            if tail is not None:
                tail.survivors = None
        return features

    def project(self, patches: Tensor, kept: Tensor) -> Tensor:
        """Patch features [T, P, C] and kept cells [K] to language-model inputs [K, W]; nothing else is projected."""
        out: Tensor = self.projector(shuffle_kept(patches, kept, self.grid, self.factor))
        return out

    def embed(self, pack: PackTensors) -> Tensor:
        """Inputs of the language model, [1, L, W]."""
        embedding = self.language_model.get_input_embeddings()  # type: ignore[operator]
        inputs = embedded(embedding, pack.ids, self.spare_input)
        if len(pack.kept):
            visual: Tensor = self.projector(self.encode_kept(pack))
            inputs = inputs.index_copy(0, pack.slots, visual.to(inputs.dtype))
        return inputs[None]

    def hidden(self, pack: PackTensors) -> Tensor:
        """Last hidden states of the language model, [L, W]."""
        out = self.language_model.model(  # type: ignore[operator]
            inputs_embeds=self.embed(pack),
            position_ids=pack.positions[None],
            use_cache=False,
            documents=Documents(pack.lengths, pack.ends),
        )
        states: Tensor = out.last_hidden_state
        return states[0]

    def forward(self, pack: PackTensors) -> Tensor:
        """The weighted sum of the losses at the supervised positions (Eq. 2), not divided."""
        head: Any = self.language_model.get_output_embeddings()  # type: ignore[operator]
        rows = self.hidden(pack).index_select(0, pack.predict)
        return supervised_loss(
            rows, head.weight, pack.targets, pack.weights, kernel=self.loss_kernel, spare=self.spare_head
        )
