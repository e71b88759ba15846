"""What a training step needs of memory, derived from what autograd keeps of every layer for the backward pass.

Precisions: ``fp32``; ``autocast``: fp32 weights and residual stream, matrix products in bf16; ``bf16``: bf16 weights and
activations, a fp32 copy of the weights in the optimiser. Two facts decide most: a layer keeps the inputs of its products,
norms and activations once each, by storage, whatever looks at them; and autocast keeps a bf16 copy of every weight from its
first use to the end of the backward pass, which is no activation and does not grow with a pack.

Shape legend: N positions of a tile, D tower width, A attention width, H MLP width, W decoder width, K key/value width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from timm.layers import Mlp
from torch import nn

from vitp.vlm.checkpointing import Checkpointing
from vitp.vlm.flops import LastBlock, Trained, Work, attention_width, decoder_head_width
from vitp.vlm.folding import is_folded
from vitp.vlm.model import VisionLanguageModel

MemoryPrecision = Literal["fp32", "autocast", "bf16"]

LOGIT_ROWS = 1024  # rows of logits that exist at once, `vitp.vlm.loss.supervised_loss`
_LOGIT_BYTES = 12.0  # a logit: kept log-softmax, its gradient and the one before it, all fp32
_STATISTICS = 8.0  # a row of a norm: mean and inverse deviation, fp32


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of a model by what they scale with."""

    weights: float
    gradients: float
    optimizer: float  # Adam's two moments, and the fp32 copy of bf16 weights
    casts: float  # autocast's bf16 copies of the weights
    tower_per_tile: float  # kept for the backward pass
    tail_per_kept: float  # the same of a sparse last block, by visual token
    projector_per_kept: float  # by visual token
    layers_per_token: float
    logits_per_row: float  # at the peak, of at most `LOGIT_ROWS` rows
    hidden_per_row: float  # kept of a supervised position
    tower_work_per_tile: float  # gradients and recomputed activations of one block, gone after it
    layer_work_per_token: float  # the same of one decoder layer
    head_gradient: float  # of the output embedding, before it is added up
    head_kept: float  # the same kept from the forward pass on, with more rows than `LOGIT_ROWS`

    @property
    def fixed(self) -> float:
        """What every pack needs, however small."""
        return self.weights + self.gradients + self.optimizer + self.casts

    def of(self, pack: Work) -> PackMemory:
        """Peak memory of a training step whose largest pack is `pack`."""
        tower = pack.tiles * self.tower_per_tile + pack.kept * self.tail_per_kept
        layers = pack.tokens * self.layers_per_token
        rows = pack.supervised * self.hidden_per_row + min(pack.supervised, LOGIT_ROWS) * self.logits_per_row
        chunked = self.head_kept if pack.supervised > LOGIT_ROWS else 0.0
        later = pack.tiles * self.tower_work_per_tile - layers  # by then the language model's are gone
        return PackMemory(
            weights=self.weights,
            gradients=self.gradients,
            optimizer=self.optimizer,
            casts=self.casts,
            tower=tower,
            projector=pack.kept * self.projector_per_kept,
            language_model=layers,
            working=chunked + max(rows, self.head_gradient, pack.tokens * self.layer_work_per_token, later),
        )


@dataclass(frozen=True)
class PackMemory:
    """Peak bytes of a step by part; `working` are logits or one layer's gradients, whichever is more."""

    weights: float
    gradients: float
    optimizer: float
    casts: float
    tower: float
    projector: float
    language_model: float
    working: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


def largest_pack(memory: ModelMemory, sample: Work, budget: float) -> Work | None:
    """The most samples like `sample`, as a fraction too, that fit into `budget` bytes; None where not even one does."""
    if memory.of(sample).total > budget:
        return None
    low, high = 1.0, 2.0
    while memory.of(sample.times(high)).total <= budget and high < 2.0**40:
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if memory.of(sample.times(middle)).total <= budget else (low, middle)
    return sample.times(low)


@dataclass(frozen=True)
class _Bytes:
    """Sizes of a number: weights, the residual stream, and what products take."""

    weight: float
    stream: float
    product: float


_SIZES: dict[MemoryPrecision, _Bytes] = {
    "fp32": _Bytes(4, 4, 4),
    "autocast": _Bytes(4, 4, 2),
    "bf16": _Bytes(2, 2, 2),
}


def _numbers(module: nn.Module | None, matrices: bool = False) -> int:
    """Numbers of a module's parameters, shared ones once; `matrices`: of those that products use."""
    kept = module.parameters() if module is not None else ()
    return sum(p.numel() for p in kept if not matrices or p.ndim >= 2)


def _mlp_width(mlp: nn.Module) -> tuple[int, int]:
    """Width of the MLP's inner activations, and how many of them the backward pass needs."""
    linear = [m for m in mlp.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    width = max((int(m.weight.shape[0]) for m in linear[:-1]), default=0)
    if len(linear) >= 3:
        return width, 4  # gated: both halves, the activation of one, their product
    return width, 2  # before and after the activation


def _left_out(mlp: nn.Module, checkpointing: Checkpointing) -> int:
    """Numbers of a position that ``mlp`` checkpointing does not keep of an MLP, `vitp.vlm.checkpointing`."""
    inner, copies = _mlp_width(mlp)
    if checkpointing != "mlp":
        return 0
    gated = all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
    return inner * (1 if type(mlp) is Mlp else 2 if gated else copies)


def _sparse_block(block: Any, positions: int, width: int, size: _Bytes) -> float:
    """Bytes the last block keeps of every position where all the rest is computed for survivors: norm, keys, values."""
    attended = attention_width(block.attn, width)
    return size.stream * width + _STATISTICS + size.product * (width + 2 * attended)


def tower_block(block: Any, positions: int, width: int, size: _Bytes, checkpointing: Checkpointing) -> float:
    """Bytes one timm block keeps of a position.

    Norm inputs, the inputs of the two linear stages, queries, keys, values, the attention's output (which is the input of
    its projection), both branches before their layer scale, and the MLP before and after its activation.
    """
    stream, product = size.stream * width, size.product
    if checkpointing == "full":
        return stream
    attended = attention_width(block.attn, width)
    inner, copies = _mlp_width(block.mlp)
    kept: float = 2 * (stream + _STATISTICS)  # inputs of the norms
    kept += product * 4 * attended  # queries, keys, values; output
    if getattr(block.attn, "fused_attn", True):
        kept += 4 * block.attn.num_heads  # log of the sums
    else:  # written out: scaled queries, and the weights of every pair, in fp32 first under autocast
        scores = size.stream + (size.product if size.stream != size.product else 0)
        kept += product * attended + scores * positions * block.attn.num_heads
    kept += sum(product * attended for norm in ("q_norm", "k_norm") if _numbers(getattr(block.attn, norm, None)))
    scales = [getattr(block, name) for name in ("ls1", "ls2") if _numbers(getattr(block, name, None))]
    kept += sum(product * width for scale in scales if not is_folded(scale))
    kept += product * (2 * width + copies * inner)  # inputs of the linear stages, MLP
    return kept - product * _left_out(block.mlp, checkpointing)


def decoder_layer(layer: Any, config: Any, size: _Bytes, checkpointing: Checkpointing) -> float:
    """Bytes one transformers decoder layer keeps of a token.

    RMS norms keep their input in fp32 and the normalised one; the rest as in a tower block, with rotated queries and keys.
    """
    width, product = int(config.hidden_size), size.product
    if checkpointing == "full":
        return size.stream * width
    head = decoder_head_width(config)
    attended, grouped = config.num_attention_heads * head, config.num_key_value_heads * head
    inner, copies = _mlp_width(layer.mlp)
    normed = (4.0 + size.stream) * width + 4.0
    kept: float = 2 * normed + product * width  # the norms; input of queries, keys and values
    kept += (
        product * (3 * attended + 2 * grouped) + 4 * config.num_attention_heads
    )  # attention, its output laid together
    if _numbers(getattr(layer.self_attn, "q_norm", None)):
        kept += (4.0 + product) * (attended + grouped)
    return kept + product * (width + copies * inner - _left_out(layer.mlp, checkpointing))


def count_memory(
    model: VisionLanguageModel,
    precision: MemoryPrecision,
    trained: Trained | None = None,
    checkpointing: Checkpointing = "none",
    last_block: LastBlock = "dense",
) -> ModelMemory:
    """Count a model; its weights are not looked at, only their shapes, so it may lie on the meta device.

    A frozen tower keeps nothing; behind parts that all are frozen nothing is kept either. A frozen language model counts as a
    trained one, since what a frozen layer need not keep depends on the kernel.
    """
    trained, size = trained or Trained(), _SIZES[precision]
    tower: Any = model.tower
    language: Any = model.language_model
    learned = sum(
        _numbers(getattr(model, part)) for part in ("tower", "projector", "language_model") if getattr(trained, part)
    )
    positions = model.grid**2 + int(tower.num_prefix_tokens)
    width, decoder = int(tower.num_features), int(language.config.hidden_size)
    blocks = [tower_block(block, positions, width, size, checkpointing) for block in tower.blocks]
    after = size.stream * width + _STATISTICS if _numbers(getattr(tower, "norm", None)) else 0.0
    tail = 0.0  # of a position that survives
    if last_block == "queries" and checkpointing != "full":
        everywhere = _sparse_block(tower.blocks[-1], positions, width, size)
        # Survivors are gathered before the queries and again behind their padded attention.
        gathered = size.product * (width + attention_width(tower.blocks[-1].attn, width))
        tail, blocks[-1] = blocks[-1] - everywhere + gathered + after, everywhere
    else:
        blocks.append(after)
    layers = [decoder_layer(layer, language.config, size, checkpointing) for layer in language.model.layers]
    inner, _ = _mlp_width(tower.blocks[0].mlp)
    fed, _ = _mlp_width(language.model.layers[0].mlp)
    language_trains, numbers = trained.language_model, language.get_output_embeddings().weight.numel()
    shuffled = width * model.factor**2
    backward = trained.tower or trained.projector or trained.language_model
    pixels = 3 * model.image_size**2 * (1 + size.product)  # as they came, and as the first layer takes them
    vocabulary = language.get_output_embeddings().weight.shape[0]
    # What checkpointing left out of one block comes back while its gradients are computed.
    full_block = tower_block(tower.blocks[0], positions, width, size, "none") - blocks[0]
    full_layer = decoder_layer(language.model.layers[0], language.config, size, "none") - layers[0]
    if checkpointing == "full":  # the MLP's gradients take the place of its activations, which are gone one by one
        inner = fed = 0
    return ModelMemory(
        weights=size.weight * _numbers(model),
        gradients=4.0 * learned,  # fp32 for bf16 weights too, `vitp.train.optim.to_bf16_weights`
        optimizer=(12.0 if precision == "bf16" else 8.0) * learned,
        casts=2.0 * _numbers(model, matrices=True) * (precision == "autocast"),
        tower_per_tile=(pixels + positions * sum(blocks)) * trained.tower,
        tail_per_kept=tail * model.factor**2 * trained.tower,
        projector_per_kept=(
            8.0 * model.factor**2 + (size.stream + size.product) * shuffled + 2 * size.product * decoder
        )
        * (trained.tower or trained.projector),
        layers_per_token=(sum(layers) + (4.0 + size.stream) * decoder) * backward,
        logits_per_row=(_LOGIT_BYTES + (2.0 if precision != "fp32" else 0.0)) * vocabulary,
        hidden_per_row=(size.stream + size.product) * decoder,
        tower_work_per_tile=positions * (size.product * (2 * inner + 3 * width) + full_block) * trained.tower,
        layer_work_per_token=size.product * (3 * fed + 3 * decoder) + full_layer,
        head_gradient=(size.product + (4.0 if size.product < 4 else 0.0)) * numbers * language_trains,
        head_kept=(4.0 + (size.product if size.product < 4 else 0.0)) * numbers * language_trains,
    )
