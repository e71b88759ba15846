"""The vocabulary's matrices on CPUs: loss and gradients a block of rows at a time, and memory that is kept.

With a real vocabulary (151,674 rows) the input and the output embedding are most of a small model's numbers, and moving
them through memory costs as much as computing with them. A block's logits stay in a core's cache from the product to
their softmax. And a gradient of 100 MB in fresh memory means 28,000 page faults a step, which take longer than writing it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LOGITS = 1 << 17  # of a block, 512 kB: half of a core's cache of the second level
_ALIGNMENT = 64  # bytes, of torch's own memory


class Spare:
    """The memory of a gradient that nobody holds any more, for the next step's."""

    def __init__(self) -> None:
        self._memory: np.ndarray = np.empty(0)

    def __reduce__(self) -> tuple[type[Spare], tuple[()]]:
        return Spare, ()  # a copy of a model has memory of its own

    def tensor(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU whose numbers are still to be written.

        It is new memory as long as a tensor of the last call is in use: of several micro-batches, say.
        """
        size, spare = shape.numel(), _ALIGNMENT // dtype.itemsize
        kind = np.dtype(f"i{dtype.itemsize}")  # numpy knows no bfloat16
        in_use = sys.getrefcount(self._memory) > 2  # ours and the call's
        if in_use or self._memory.dtype != kind or len(self._memory) != size + spare:
            self._memory = np.empty(size + spare, kind)
        start = -self._memory.ctypes.data % _ALIGNMENT // dtype.itemsize
        return torch.from_numpy(self._memory[start : start + size]).view(dtype).view(shape)


def embedded(embedding: nn.Module, ids: Tensor, spare: Spare) -> Tensor:
    """What ``embedding(ids)`` returns; the gradient of a plain embedding on the CPU takes spare memory.

    Args:
        embedding: the input embedding of a language model.
        ids: int64 [L].
        spare: of the embedding's gradient.
    """
    if not isinstance(embedding, nn.Embedding) or not _is_plain(embedding) or ids.device.type != "cpu":
        out: Tensor = embedding(ids)
        return out
    rows: Tensor = _Rows.apply(embedding.weight, ids, embedding.padding_idx, spare)
    return rows


def _is_plain(embedding: nn.Embedding) -> bool:
    """Whether it does nothing but choose rows."""
    more = embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse
    changed = type(embedding) is not nn.Embedding or "forward" in embedding.__dict__
    return not (more or changed or embedding._forward_hooks or embedding._forward_pre_hooks)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, spare: Spare) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.like, ctx.padding, ctx.spare = (weight.shape, weight.dtype), padding, spare
        return weight.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            gradient = gradient.masked_fill((ids == ctx.padding)[:, None], 0)
        of_weight: Tensor = ctx.spare.tensor(*ctx.like).zero_()
        return of_weight.index_add_(0, ids, gradient), None, None, None


@dataclass
class _Block:
    """Some rows of the vocabulary, and the positions whose target is among them.

    place: the rows; positions: int64 [k]; columns: int64 [k], their targets within the block;
    powers: [n, rows], exponentials of the logits over the highest so far, nought at the targets; highest: [n, 1].
    """

    place: slice
    positions: Tensor
    columns: Tensor
    powers: Tensor
    highest: Tensor


class _Softmax:
    """Normaliser, target's logit and mean row of the head of some positions, after one look at every row.

    The mean of the rows, weighted by their probabilities, is what the gradient by the hidden states is made of; sums and
    means so far are rescaled when a higher logit comes (Milakov and Gimelshein 2018, "Online normalizer calculation").
    """

    def __init__(self, hidden_nW: Tensor, head_VW: Tensor, targets_n: Tensor, keep: bool) -> None:
        self.exact = torch.promote_types(hidden_nW.dtype, torch.float32)
        self.blocks: list[_Block] = []
        n = len(hidden_nW)
        self.highest = torch.full((n, 1), -torch.inf, dtype=self.exact)
        self.total, self.at_target = (torch.zeros(n, 1, dtype=self.exact) for _ in range(2))
        self.mean = torch.zeros_like(hidden_nW, dtype=self.exact)
        order, size = targets_n.argsort(), max(256, _LOGITS // n // 64 * 64)
        edges = np.searchsorted(targets_n[order].numpy(), np.arange(0, len(head_VW) + size, size))
        for i, start in enumerate(range(0, len(head_VW), size)):
            positions = order[edges[i] : edges[i + 1]]
            part = head_VW[start : start + size].to(hidden_nW.dtype)
            z = (hidden_nW @ part.t()).to(self.exact)
            highest = torch.maximum(self.highest, z.amax(1, keepdim=True))
            columns = targets_n[positions] - start
            if len(positions):
                self.at_target[positions, 0] = z[positions, columns]
            decay = (self.highest - highest).exp_()
            z.sub_(highest).exp_()
            self.total.mul_(decay).add_(z.sum(1, keepdim=True))
            self.highest = highest
            if keep:
                if len(positions):
                    z[positions, columns] = 0  # its share is added exactly, at last
                self.mean.mul_(decay)
                _add_product(self.mean, z, part)
                self.blocks.append(_Block(slice(start, start + len(part)), positions, columns, z, highest))
        self.normaliser = self.highest + self.total.log()


class LossWithGradients(torch.autograd.Function):
    """A loss of hidden states, head and four further arguments, whose forward pass leaves both gradients in `ctx`."""

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Both gradients, scaled; once."""
        assert ctx.gradients is not None, "the gradient of the loss can be taken once"
        of_hidden, of_head = ctx.gradients
        ctx.gradients = None
        for gradient in (of_hidden, of_head):
            if gradient is not None:
                gradient.mul_(scale)
        return of_hidden, of_head, None, None, None, None


class BlockedLoss(LossWithGradients):
    """`vitp.vlm.loss.supervised_loss` with its gradients, computed in the forward pass, where the logits are."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, rows: int, spare: Spare
    ) -> Tensor:
        """Weighted sum of the losses [] of hidden [N, W], at most `rows` of them at once; head [V, W] in any type."""
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_head = None
        if wants_head and len(hidden):
            of_head = spare.tensor(head.shape, torch.promote_types(head.dtype, torch.float32))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            h_nW, t_n, w_n1 = hidden[part], targets[part], weights[part, None].to(exact)
            found = _Softmax(h_nW, head, t_n, wants_hidden or wants_head)
            losses_n1 = found.normaliser - found.at_target
            total += (losses_n1 * w_n1).sum()
            at_target_n1 = torch.expm1(-losses_n1) * w_n1  # gradient by the target's logit
            if of_hidden is not None:
                of_hidden[part] = found.mean * (w_n1 / found.total) + at_target_n1 * head[t_n]
            if of_head is not None:
                for block in found.blocks:
                    p = block.powers.mul_((block.highest - found.normaliser).exp_() * w_n1)
                    if len(block.positions):
                        p[block.positions, block.columns] = at_target_n1[block.positions, 0]
                    _put_product(of_head[block.place], p.to(h_nW.dtype).t(), h_nW, anew=start == 0)
        # Not `save_for_backward`: they are scaled where they lie and handed out, once.
        ctx.gradients = (of_hidden, None if of_head is None else of_head.to(head.dtype))
        return total


def _add_product(place: Tensor, a: Tensor, b: Tensor) -> None:
    if place.dtype == b.dtype:
        torch.addmm(place, a, b, out=place)  # not `addmm_`: torch's counter of FLOPs does not know it
    else:
        place.add_(a.to(b.dtype) @ b)


def _put_product(place: Tensor, a: Tensor, b: Tensor, *, anew: bool) -> None:
    if not anew:
        _add_product(place, a, b)
    elif place.dtype == b.dtype:
        torch.mm(a, b, out=place)
    else:
        place.copy_(a @ b)
