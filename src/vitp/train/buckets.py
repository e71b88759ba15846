"""Gradients in buckets: many small tensors travel as one, and each rank's rows of them lie side by side.

Legend: R ranks, F numbers of one rank's share of a bucket. A parameter's rows (its first dimension) are dealt out as
`torch.chunk` deals them, which is also how torch's sharded tensors lie, so that checkpoints can be read by any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET = 32 << 20  # numbers' bytes; ours: large enough for full bandwidth, small enough to start early


def rows_of(tensor: Tensor, size: int, rank: int) -> Tensor:
    """A rank's rows of a contiguous tensor, a view of it; the last ranks have fewer or none. A scalar has one row."""
    whole = tensor.view(1) if tensor.ndim == 0 else tensor
    each = -(-whole.shape[0] // size)
    first = min(rank * each, whole.shape[0])
    return whole[first : min(first + each, whole.shape[0])]


class Bucket:
    """Some parameters of one precision, whose gradients are summed over the ranks together."""

    def __init__(self, parameters: Sequence[nn.Parameter], size: int, rank: int, group: Any, *, scatter: bool) -> None:
        """Set up.

        Args:
            parameters: on one device, contiguous.
            size: R.
            rank: this one.
            group: the ranks, joined over the device's network.
            scatter: each rank receives its own rows of the sum, not all of it.
        """
        self.parameters, self.missing = list(parameters), -1
        self._size, self._rank, self._group, self._scatter = size, rank, group, scatter
        self._shares = [math.prod(rows_of(p.data, size, 0).shape) for p in self.parameters]  # the largest ones
        self.own = [nn.Parameter(rows_of(p.data, size, rank)) for p in self.parameters] if scatter else []
        self.had: list[bool] = []  # for each parameter, whether this rank sent a gradient of it
        self._sent: Tensor | None = None  # [R F], or all gradients where nothing is scattered
        self._received: Tensor | None = None
        self._work: Any = None

    def _lay(self) -> Tensor:
        """[R, F]: row r holds rank r's rows of all gradients, filled up to the largest share with zeros."""
        table = torch.zeros(self._size, sum(self._shares), device=self.parameters[0].device)
        at = 0
        for parameter, share in zip(self.parameters, self._shares, strict=True):
            if parameter.grad is not None:
                gradient = parameter.grad.contiguous()
                for rank, row in enumerate(table):
                    rows = rows_of(gradient, self._size, rank)
                    row[at : at + rows.numel()].copy_(rows.reshape(-1))
            at += share
        return table

    @torch.no_grad()
    def send(self) -> None:
        """Begin to sum the gradients over the ranks, in fp32; a missing one counts as zeros."""
        self.had = [p.grad is not None for p in self.parameters]
        if self._scatter:
            self._sent = self._lay().view(-1)
            self._received = self._sent.new_empty(sum(self._shares))
            self._work = dist.reduce_scatter_tensor(self._received, self._sent, group=self._group, async_op=True)
        else:
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            self._sent = torch.cat([part.reshape(-1).float() for part in parts])
            self._work = dist.all_reduce(self._sent, group=self._group, async_op=True)
        for parameter in self.parameters:
            parameter.grad = None  # what was sent need not be kept

    @torch.no_grad()
    def receive(self, used: Sequence[bool]) -> None:
        """Wait for the sums and put them in place.

        Args:
            used: for each parameter whether any rank has a gradient of it; the others keep none, so that the optimiser
                leaves them alone as it does in one process.
        """
        self._work.wait()
        assert self._sent is not None
        if self._scatter:
            assert self._received is not None
            parts = torch.split(self._received, self._shares)
            for row, part, wanted in zip(self.own, parts, used, strict=True):
                if wanted and row.numel():
                    row.grad = part[: row.numel()].view_as(row).to(row.dtype)
        else:
            parts = torch.split(self._sent, [p.numel() for p in self.parameters])
            for parameter, part, wanted in zip(self.parameters, parts, used, strict=True):
                if wanted:
                    parameter.grad = part.view_as(parameter).to(parameter.dtype)
        self._sent = self._received = self._work = None

    @torch.no_grad()
    def exchange(self) -> None:
        """Give every rank all rows, after each rank has updated its own."""
        share, first = sum(self._shares), self.parameters[0]
        mine = torch.zeros(share, device=first.device, dtype=first.dtype)
        at = 0
        for row, room in zip(self.own, self._shares, strict=True):
            mine[at : at + row.numel()].copy_(row.reshape(-1))
            row.grad = None
            at += room
        table = torch.empty(self._size * share, device=first.device, dtype=first.dtype)
        dist.all_gather_into_tensor(table, mine, group=self._group)
        at = 0
        for parameter, room in zip(self.parameters, self._shares, strict=True):
            for rank, row in enumerate(table.view(self._size, share)):
                rows = rows_of(parameter.data, self._size, rank)
                rows.copy_(row[at : at + rows.numel()].view_as(rows))
            at += room


def make_buckets(
    parameters: Sequence[nn.Parameter], size: int, rank: int, group: Any, *, scatter: bool
) -> list[Bucket]:
    """Buckets of about 32 MiB in the given order, the precisions apart."""
    buckets: list[Bucket] = []
    filling: dict[torch.dtype, list[nn.Parameter]] = {}

    def close(dtype: torch.dtype) -> None:
        buckets.append(Bucket(filling.pop(dtype), size, rank, group, scatter=scatter))

    for parameter in parameters:
        held = filling.setdefault(parameter.dtype, [])
        held.append(parameter)
        if sum(p.numel() * p.element_size() for p in held) >= _BUCKET:
            close(parameter.dtype)
    for dtype in list(filling):
        close(dtype)
    return buckets
