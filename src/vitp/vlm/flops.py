"""What a training step computes, counted from the model's layers: matrix products, 1 multiply-add = 2 FLOP.

Norms, activations, softmax and the optimiser are not counted (below 1 % at the paper's size). The language model's causal
attention counts half of the L x L products of a sample of L tokens, whatever a kernel computes; positions that fill a pack up
and the scores a fused kernel computes again in its backward pass are no useful work either. Everything is linear in the sums
a `Work` holds, so a sample, a step and a whole run are counted by the same function. The model may lie on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from vitp.vlm.checkpointing import Checkpointing
from vitp.vlm.model import SPARSE_BELOW, VisionLanguageModel
from vitp.vlm.sparse_tail import TailBlock

# How the tower's last block is computed where visual tokens were dropped: at all positions; its MLP at the patches of
# kept tokens alone; or its queries, output projection and MLP there alone (keys and values of all are always needed).
LastBlock = Literal["dense", "mlp", "queries"]


@dataclass(frozen=True)
class Work:
    """What samples ask for, summed over them."""

    samples: float = 0.0
    tiles: float = 0.0
    kept: float = 0.0  # visual tokens after the drop
    tokens: float = 0.0  # of the language model: text and kept visual tokens
    squares: float = 0.0  # of the samples' tokens, summed
    supervised: float = 0.0  # positions with a target

    @classmethod
    def of(cls, tiles: float, kept: float, tokens: float, supervised: float) -> Work:
        """One sample."""
        return cls(1.0, tiles, kept, tokens, float(tokens) ** 2, supervised)

    @classmethod
    def total(cls, works: Iterable[Work]) -> Work:
        """The sum of several."""
        rows = [[getattr(work, f.name) for f in fields(cls)] for work in works]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls()

    def times(self, factor: float) -> Work:
        """So many times as much."""
        return Work(*(factor * getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Trained:
    """Which parts learn; a part that does not is passed backwards only where one before it learns."""

    tower: bool = True
    projector: bool = True
    language_model: bool = True


@dataclass(frozen=True)
class PartFlops:
    """FLOPs by part of the model."""

    tower: float
    projector: float
    language_model: float
    head: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.tower + self.projector + self.language_model + self.head

    def __add__(self, other: PartFlops) -> PartFlops:
        return PartFlops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a piece of work, in both directions."""

    forward: PartFlops
    backward: PartFlops
    recompute: PartFlops  # forward passes done again for the sake of memory

    @property
    def useful(self) -> PartFlops:
        """What the gradient needs: the numerator of the model FLOPs utilisation."""
        return self.forward + self.backward

    @property
    def executed(self) -> PartFlops:
        """All that is computed."""
        return self.useful + self.recompute


@dataclass(frozen=True)
class ModelFlops:
    """Forward FLOPs of a model by the unit they scale with."""

    patch_embedding: float  # a tile
    blocks: float  # a tile, all positions of all blocks
    last_mlp: float  # a position of the last block
    last_queries: float  # a position of the last block: query and output projections, and its attention
    patches: int  # of a tile, without class and register tokens
    cells: int  # patches of one visual token
    prefix: int  # class and register tokens, which the sparse last block leaves out
    projector: float  # a kept visual token
    layers: float  # a token of the language model, without attention
    attention: float  # a token squared, causal
    head: float  # a supervised position

    def of(
        self,
        work: Work,
        trained: Trained | None = None,
        *,
        last_block: LastBlock = "dense",
        checkpointing: Checkpointing = "none",
        head_recomputed: bool = False,
    ) -> StepFlops:
        """Count a piece of work.

        Args:
            work: of a sample or of many.
            trained: which parts learn; None: all.
            last_block: how the tower's last block is computed.
            checkpointing: what the backward pass computes again.
            head_recomputed: logits are computed again too, as in steps with more supervised rows than one chunk holds.
        """
        trained = trained or Trained()
        skipped = self.last_mlp + (self.last_queries if last_block == "queries" else 0.0)
        left_out = 0.0 if last_block == "dense" else work.tiles * (self.patches + self.prefix) - work.kept * self.cells
        blocks = work.tiles * self.blocks - left_out * skipped
        embedding = work.tiles * self.patch_embedding
        projector = work.kept * self.projector
        layers, attention = work.tokens * self.layers, work.squares * self.attention
        head = work.supervised * self.head
        before = trained.tower or trained.projector  # parts in front of the language model
        through = (
            2.0 if trained.language_model else float(before)
        )  # gradients of weights and inputs, or of inputs alone
        again = checkpointing == "full"
        return StepFlops(
            forward=PartFlops(embedding + blocks, projector, layers + attention, head),
            backward=PartFlops(
                (embedding + 2.0 * blocks) * trained.tower,  # pixels take no gradient
                projector * (2.0 if trained.projector else float(trained.tower)),
                through * layers + 2.0 * attention * (trained.language_model or before),
                through * head,
            ),
            recompute=PartFlops(
                blocks * (again and trained.tower),
                0.0,
                (layers + attention) * (again and (trained.language_model or before)),
                head * head_recomputed,
            ),
        )


def _weights(*modules: nn.Module | None) -> int:
    """Numbers in the weight matrices of all linear layers and convolutions, each used once a position."""
    inside = (m for module in modules if module is not None for m in module.modules())
    return sum(m.weight.numel() for m in inside if isinstance(m, nn.Linear | nn.Conv2d))


def attention_width(attention: nn.Module, otherwise: int) -> int:
    """Heads times head width of a timm attention."""
    heads, width = getattr(attention, "num_heads", None), getattr(attention, "head_dim", None)
    return int(heads) * int(width) if isinstance(heads, int) and isinstance(width, int) else otherwise


def decoder_head_width(config: Any) -> int:
    """Width of one attention head of a transformers decoder."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def last_block_of(model: VisionLanguageModel, kept_share: float) -> LastBlock:
    """How a model computes its tower's last block where `kept_share` of the visual tokens survive."""
    blocks: Any = model.tower.blocks
    return "queries" if kept_share <= SPARSE_BELOW and isinstance(blocks[-1], TailBlock) else "dense"


def count_flops(model: VisionLanguageModel) -> ModelFlops:
    """Count a model; its weights are not looked at, only their shapes.

    Every linear layer of a block or a decoder layer counts once a position: layers that are used otherwise (mixtures of
    experts, convolutions inside blocks) are not told apart.
    """
    tower: Any = model.tower
    config: Any = model.language_model.config
    decoder: Any = model.language_model.model
    patches, prefix = model.grid**2, int(tower.num_prefix_tokens)
    positions, last = patches + prefix, tower.blocks[-1]
    widths = [attention_width(block.attn, int(tower.num_features)) for block in tower.blocks]
    per_position = 2.0 * _weights(*tower.blocks)
    queries = 2.0 * (_weights(last.attn.qkv) / 3 if hasattr(last.attn, "qkv") else 0) + 2.0 * _weights(last.attn.proj)
    attended = 2.0 * config.num_hidden_layers * config.num_attention_heads * decoder_head_width(config)
    return ModelFlops(
        patch_embedding=2.0 * _weights(tower.patch_embed) * patches,
        blocks=per_position * positions + 4.0 * positions * positions * sum(widths),
        last_mlp=2.0 * _weights(last.mlp),
        last_queries=queries + 4.0 * positions * widths[-1],
        patches=patches,
        cells=model.factor**2,
        prefix=prefix,
        projector=2.0 * _weights(model.projector),
        layers=2.0 * _weights(decoder),
        attention=attended,
        head=2.0 * model.language_model.get_output_embeddings().weight.numel(),  # type: ignore[operator]
    )
