"""The pretraining loss: cross-entropy at supervised positions only (ViTP paper, Eq. 2).

Hidden states are gathered at the supervised positions before the vocabulary projection, so logits exist for
answers alone. The sum over a step divided by the step's total weight is exact whatever the micro-batches are.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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


LossKernel = Literal["torch", "liger"]


def _row_losses(logits: Tensor, targets: Tensor, kernel: LossKernel) -> Tensor:
    """Cross-entropy of every row, float32 [N]."""
    if kernel == "torch":
        return F.cross_entropy(logits.float(), targets, reduction="none")
    from liger_kernel.transformers.functional import liger_cross_entropy

    # Liger writes the gradient over the logits and needs no fp32 copy of them. Its product-and-loss in one takes no weight
    # a row: older releases drop them from the gradient, newer ones compute everything twice.
    losses: Tensor = liger_cross_entropy(logits, targets, reduction="none")
    return losses.float()


class _ChunkedLoss(torch.autograd.Function):
    """The loss and both gradients, chunk by chunk: a chunk's logits are gone before the next one's are made.

    The gradients are computed in the forward pass, where the logits are, so that no product is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, rows: int, kernel: LossKernel
    ) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=_accumulator(hidden), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_head = torch.zeros_like(head, dtype=_accumulator(head)) if wants_head else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ head.t()).detach().requires_grad_(wants_hidden or wants_head)
            with torch.enable_grad():
                loss = (_row_losses(logits, targets[part], kernel) * weights[part]).sum()
            total += loss.detach()
            if not logits.requires_grad:
                continue
            (of_logits,) = torch.autograd.grad(loss, logits)
            if of_hidden is not None:
                of_hidden[part] = of_logits @ head
            if of_head is not None:
                of_head += of_logits.t() @ hidden[part]
        ctx.save_for_backward(of_hidden, None if of_head is None else of_head.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_head = ctx.saved_tensors
        hidden = None if of_hidden is None else of_hidden * scale.to(of_hidden.dtype)
        return hidden, None if of_head is None else of_head * scale.to(of_head.dtype), None, None, None, None


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def supervised_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    rows_per_chunk: int = 1024,
    kernel: LossKernel = "torch",
) -> Tensor:
    """Weighted sum of the cross-entropies (not divided).

    Args:
        hidden: [N, width], last hidden states at the positions that predict a supervised token.
        head: [vocabulary, width], the output embedding.
        targets: int64 [N].
        weights: float32 [N].
        rows_per_chunk: at most ``rows_per_chunk x vocabulary`` logits exist at once; above this many rows the gradients
            are computed with the loss, chunk by chunk. Not `F.linear_cross_entropy`: on CPUs its chunks take 7 (fp32) to
            67 (bf16) times as long (docs/performance.md).
        kernel: who computes softmax and its gradient; ``liger`` on GPUs only, with the package liger-kernel.

    Returns:
        float32 scalar, sum over i of weights[i] * CE_i.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, head = hidden.to(dtype), head.to(dtype)
    if hidden.shape[0] <= rows_per_chunk:
        return (_row_losses(hidden @ head.t(), targets, kernel) * weights).sum()
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _ChunkedLoss.apply(hidden, head, targets, weights, rows_per_chunk, kernel)
    return loss
