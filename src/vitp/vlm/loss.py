"""The pretraining loss: cross-entropy at supervised positions only (ViTP paper, Eq. 2).

Hidden states are gathered at the supervised positions before the vocabulary projection, so logits exist for
answers alone. The sum over a step divided by the step's total weight is exact whatever the micro-batches are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Weighting = Literal["token", "sample", "answer", "square"]


def answer_weights(answer_lengths: list[int], weighting: Weighting) -> np.ndarray:
    """Loss weight of every supervised token of one sample, float32 [sum(answer_lengths)].

    * ``token``: 1. Every token counts the same, long captions dominate.
    * ``sample``: 1 / n with n the sample's supervised tokens. Every sample counts the same; this is what the released
      code does in effect (micro-batch of one, mean over its tokens), hence the default of the recipes.
    * ``answer``: 1 / the answer's own tokens. Every answer counts the same, so that a one-word class name weighs as
      much as a caption beside it.
    * ``square``: 1 / sqrt(n), between ``token`` and ``sample``.
    """
    total = sum(answer_lengths)
    if weighting == "token":
        return np.ones(total, np.float32)
    if weighting == "sample":
        return np.full(total, 1.0 / total, np.float32)
    if weighting == "square":
        return np.full(total, total**-0.5, np.float32)
    return np.repeat(1.0 / np.asarray(answer_lengths, np.float32), answer_lengths).astype(np.float32)


def _chunk_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    logits = (hidden @ head.t()).float()
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


def supervised_loss(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, rows_per_chunk: int = 1024
) -> Tensor:
    """Weighted sum of the cross-entropies (not divided).

    Args:
        hidden: [N, width], last hidden states at the positions that predict a supervised token.
        head: [vocabulary, width], the output embedding.
        targets: int64 [N].
        weights: float32 [N].
        rows_per_chunk: above this many rows the logits are recomputed in the backward pass, chunk by chunk, so that
            at most ``rows_per_chunk x vocabulary`` logits exist at once.

    Returns:
        float32 scalar, sum over i of weights[i] * CE_i.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, head = hidden.to(dtype), head.to(dtype)
    rows = hidden.shape[0]
    if rows <= rows_per_chunk:
        return _chunk_loss(hidden, head, targets, weights)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, rows, rows_per_chunk):
        part = slice(start, start + rows_per_chunk)
        total = total + checkpoint(
            _chunk_loss, hidden[part], head, targets[part], weights[part], use_reentrant=False, preserve_rng_state=False
        )
    return total
