"""The pretraining loss: cross-entropy at supervised positions only (ViTP paper, Eq. 2).

Hidden states are gathered at the supervised positions before the vocabulary projection, so logits exist for
answers alone. The sum over a step divided by the step's total weight is exact whatever the micro-batches are.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitp.vlm.vocabulary import BlockedLoss, LossWithGradients, Spare

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


def _torch_loss(logits: Tensor, targets: Tensor, weights: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """Weighted sum of the cross-entropies [] and its gradient by the logits, which takes the logits' memory if it can."""
    z = logits.to(_accumulator(logits))
    highest, at_target = z.amax(1, keepdim=True), z.gather(1, targets[:, None])
    total = z.sub_(highest).exp_().sum(1, keepdim=True)
    loss = ((total.log() + highest - at_target).squeeze(1) * weights).sum()
    if wants_gradient:
        of_rows = weights.to(z.dtype)[:, None]
        z.mul_(of_rows / total).scatter_add_(1, targets[:, None], -of_rows)
    return loss, z.to(logits.dtype)


def _liger_loss(logits: Tensor, targets: Tensor, weights: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """The same by Liger's kernel, which needs no fp32 copy of the logits.

    Not its product and loss in one: that takes no weight a row, or (0.8.5) computes everything twice for it.
    """
    from liger_kernel.transformers.functional import liger_cross_entropy

    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(wants_gradient)
        loss = (liger_cross_entropy(leaf, targets, reduction="none").float() * weights).sum()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0] if wants_gradient else leaf


class _LinearLoss(LossWithGradients):
    """Product, loss and both gradients, chunk by chunk: a chunk's logits are gone before the next one's are made.

    The gradients are computed in the forward pass, where the logits are, so that no product is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, rows: int, kernel: LossKernel
    ) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        loss_of = _torch_loss if kernel == "torch" else _liger_loss
        total = torch.zeros((), dtype=_accumulator(hidden), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_head: Tensor | None = None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            loss, of_logits = loss_of(hidden[part] @ head.t(), targets[part], weights[part], wants_hidden or wants_head)
            total += loss
            if of_hidden is not None:
                of_hidden[part] = of_logits @ head
            if wants_head:
                product = of_logits.t() @ hidden[part]
                if of_head is None:
                    of_head = product if len(hidden) <= rows else product.to(_accumulator(head))
                else:
                    of_head += product
        # Not `save_for_backward`: they are scaled where they lie and handed out, once.
        ctx.gradients = (of_hidden, None if of_head is None else of_head.to(head.dtype))
        return total


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def supervised_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    rows_per_chunk: int = 1024,
    kernel: LossKernel = "torch",
    spare: Spare | None = None,
) -> Tensor:
    """Weighted sum of the cross-entropies (not divided); its gradient can be taken once.

    Args:
        hidden: [N, width], last hidden states at the positions that predict a supervised token.
        head: [vocabulary, width], the output embedding.
        targets: int64 [N].
        weights: float32 [N].
        rows_per_chunk: at most ``rows_per_chunk x vocabulary`` logits exist at once. Not `F.linear_cross_entropy`: on
            CPUs its chunks take 7 (fp32) to 67 (bf16) times as long (docs/performance.md).
        kernel: who computes softmax and its gradient; ``liger`` on GPUs only, with the package liger-kernel.
        spare: memory for the gradient of the output embedding on CPUs; None for new memory every time.

    Returns:
        float32 scalar, sum over i of weights[i] * CE_i.
    """
    blocked = hidden.device.type == "cpu" and kernel == "torch"
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, head = hidden.to(dtype), head if blocked else head.to(dtype)
    if not torch.is_grad_enabled():
        hidden, head = hidden.detach(), head.detach()  # what tells the function that no gradient is wanted
    with torch.autocast(hidden.device.type, enabled=False):
        if blocked:
            loss: Tensor = BlockedLoss.apply(hidden, head, targets, weights, rows_per_chunk, spare or Spare())
        else:
            loss = _LinearLoss.apply(hidden, head, targets, weights, rows_per_chunk, kernel)
    return loss
