"""Packed attention for any transformers decoder, through transformers' own attention interface.

Samples lie one after another in a single row; attention is causal and stays inside each sample. The sample
lengths travel as keyword arguments. They are never inferred from the positions: with VRL the positions of the
survivors have gaps, and transformers would take every gap for a new document.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from vitp.errors import CheckpointError

NAME = "vitp_packed"

# What transformers passes along that changes no attention: positions are in queries and keys already.
_WITHOUT_EFFECT = frozenset(
    ("position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict")
)

# Shape legend: B batch, H query heads, G key/value heads, S positions, D head width.


@dataclass(frozen=True, eq=False)
class Documents:
    """The samples of a packed row, made once a pack: its layers would otherwise copy the lengths to the device each.

    lengths: of the samples, on the host; ends: int32 [samples + 1], their running sum from 0, beside the activations.
    """

    lengths: tuple[int, ...]
    ends: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Documents:
        """Samples of these lengths, one after another in a row on `device`."""
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), ends.to(device))


def _per_document(
    q_BHSD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, lengths: Sequence[int], scale: float | None
) -> Tensor:
    sizes = list(lengths)
    parts = zip(*(torch.split(x, sizes, 2) for x in (q_BHSD, k_BGSD, v_BGSD)), strict=True)
    out = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True) for q, k, v in parts]
    return torch.cat(out, 2)


def _round_up(length: int) -> int:
    """To a multiple of 16, so that a run meets few different shapes."""
    return -(-length // 16) * 16


@lru_cache(maxsize=64)
def _padding(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Gather indices from the packed row to [documents, longest], and back."""
    longest, ends = _round_up(max(lengths)), torch.tensor(lengths).cumsum(0)
    starts = ends - torch.tensor(lengths)
    to_padded = (starts[:, None] + torch.arange(longest)).clamp(max=int(ends[-1]) - 1)
    back = torch.cat([torch.arange(n) + i * longest for i, n in enumerate(lengths)])
    return to_padded.flatten(), back


def _short_documents(
    q_BHSD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, lengths: tuple[int, ...], scale: float | None
) -> Tensor:
    """Documents side by side as one dense batch, attention written out.

    Padding stands at the end, where causal attention never looks from a real position. On CPUs in bf16, and only there,
    this is faster than the fused kernel called once a document (bench/attention.py).
    """
    to_padded, back = _padding(lengths)
    documents, longest = len(lengths), _round_up(max(lengths))

    def padded(x: Tensor) -> Tensor:
        return x[0].index_select(1, to_padded).view(x.shape[1], documents, longest, -1).transpose(0, 1)

    q, k, v = padded(q_BHSD), padded(k_BGSD), padded(v_BGSD)
    heads, groups, width = q.shape[1], k.shape[1], q.shape[3]
    q = q.reshape(documents, groups, -1, width)  # the heads of a group one after another
    scores = (q @ k.transpose(-1, -2)) * (width**-0.5 if scale is None else scale)
    future = torch.full((longest, longest), float("-inf"), dtype=scores.dtype).triu(1)
    scores = scores.view(documents, groups, -1, longest, longest) + future
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype).view(documents, groups, -1, longest)
    out = (weights @ v).view(documents, heads, longest, width)
    return out.transpose(0, 1).reshape(heads, -1, width).index_select(1, back)[None]


def _are_short(lengths: Sequence[int]) -> bool:
    """Many documents, none long, and little padding: where the dense batch wins."""
    longest = max(lengths)
    return len(lengths) >= 4 and longest <= 320 and longest * len(lengths) <= 2 * sum(lengths)


@lru_cache(maxsize=1)
def _varlen_shares_heads() -> bool:
    """Whether this torch's kernel takes grouped key/value heads as they are (from 2.12 on)."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _varlen(q_BHSD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, documents: Documents, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    groups = q_BHSD.shape[1] // k_BGSD.shape[1]
    attend: Callable[..., Any] = varlen_attn
    if groups > 1 and _varlen_shares_heads():
        attend = partial(varlen_attn, enable_gqa=True)
    elif groups > 1:
        k_BGSD, v_BGSD = k_BGSD.repeat_interleave(groups, 1), v_BGSD.repeat_interleave(groups, 1)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q_BHSD, k_BGSD, v_BGSD))
    ends, longest = documents.ends, max(documents.lengths)
    out = attend(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(-1, 0))
    assert isinstance(out, Tensor)
    return out.transpose(0, 1)[None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    key_mask: Tensor | None = None,
    **others: Any,  # transformers hands every attention function the keywords of the whole model
) -> tuple[Tensor, None]:
    """Causal attention inside each document of a packed row.

    Args:
        module: the calling attention layer (unused; the interface passes it).
        query: [B, H, S, D]; B must be 1 when `documents` are given.
        key: [B, G, S, D], value: the same.
        value: see `key`.
        attention_mask: unused; transformers makes none for this function.
        scaling: softmax scale, None for 1 / sqrt(D).
        dropout: must be 0.
        documents: their lengths sum to S; None means every row is one document, new queries at its end (generation).
        key_mask: bool [B, S], without `documents` and for one new query a row: the keys it attends; None for all.
        others: keywords that say nothing about who attends whom (`_WITHOUT_EFFECT`), and any that are None.

    Returns:
        ([B, S, H, D], None).

    Raises:
        TypeError: a keyword that might ask for another attention, or is misspelt; ignored, it would give wrong numbers.
    """
    strange = sorted(name for name, value in others.items() if value is not None and name not in _WITHOUT_EFFECT)
    if strange:
        raise TypeError(
            f"packed attention does not know the keyword '{strange[0]}'; samples are told apart by 'documents'"
        )
    assert dropout == 0.0, "packed attention has no dropout"
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings leave autocast in fp32
    if documents is None:
        aligned = query.shape[2] == key.shape[2]
        assert aligned or query.shape[2] == 1, "cached decoding takes one new token at a time"
        mask = None if key_mask is None else key_mask[:, None, None]
        out = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=aligned and mask is None, scale=scaling, enable_gqa=True
        )
    elif query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        out = _varlen(query, key, value, documents, scaling)
    elif not query.is_cuda and query.dtype == torch.bfloat16 and _are_short(documents.lengths):
        out = _short_documents(query, key, value, documents.lengths, scaling)
    else:
        out = _per_document(query, key, value, documents.lengths, scaling)
    return out.transpose(1, 2).contiguous(), None


def use_packed_attention(language_model: nn.Module) -> None:
    """Switch a transformers decoder to packed attention.

    Raises:
        CheckpointError: the model does not use transformers' attention interface, or uses sliding windows.
    """
    # No mask function is registered beside: transformers then makes no mask, and does not look at the positions, which
    # would wait for the device and find a new document behind every gap.
    AttentionInterface.register(NAME, packed_attention)
    config = language_model.config
    name = type(language_model).__name__
    head = language_model.get_output_embeddings()  # type: ignore[operator]
    scaled = [k for k in ("logit_scale", "logits_scaling", "final_logit_softcapping") if getattr(config, k, None)]
    if not hasattr(language_model, "model") or head is None or getattr(head, "bias", None) is not None or scaled:
        raise CheckpointError(
            f"{name} does more than multiply hidden states by its output embedding ({', '.join(scaled) or 'head or layout'}): "
            "choose a decoder such as Qwen2, Qwen3 or Llama"
        )
    kinds = getattr(config, "layer_types", None) or []
    if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds = ["sliding_attention"]  # Mistral says it for all layers at once
    if any(kind != "full_attention" for kind in kinds):
        raise CheckpointError(f"{name} has layers of kind {sorted(set(kinds))}: only full attention can be packed")
    try:
        language_model.set_attn_implementation(NAME)  # type: ignore[operator]
    except (AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{name} does not take its attention from transformers' interface ({error}): choose a decoder that does, "
            "such as Qwen2, Qwen3 or Llama"
        ) from error
