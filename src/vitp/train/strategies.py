"""How the ranks share gradients, optimiser states and parameters. Whatever is shared, the numbers are the same.

The gradient of a step is the SUM over ranks of the gradients of their weighted losses, which the loop has divided by the
step's weight already: neither a rank's number of samples nor its number of packs plays a part.

* ddp: every rank holds everything. The gradients of the last pack's backward pass are summed while it runs, in buckets.
  Own buckets instead of ``DistributedDataParallel``, which divides by the number of ranks, wants the same parameters used
  on every rank in its last backward pass (a rank's pack may be text alone, or a rank may have no sample in a step), and
  reads gradients of a partial pass as final.
* zero1: the same, but each rank receives only its rows of the summed gradients, keeps optimiser states for them alone,
  updates them, and the ranks exchange the updated rows. AdamW works number by number, so that nothing else changes; own
  rows instead of ``ZeroRedundancyOptimizer``, which deals out whole parameters (an embedding of 136 M beside blocks of 15 M)
  and whose state neither distributed checkpoints nor another number of ranks can read.
* fsdp: parameters, gradients and states in rows, gathered block by block (torch's ``fully_shard``). Ranks must then compute
  equally many packs with equal parts of the model: see `StepBuilder.on_ranks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from vitp.train.buckets import Bucket, make_buckets
from vitp.train.distributed import Ranks

StrategyName = Literal["auto", "ddp", "fsdp", "zero1"]
_TIMEOUT = timedelta(minutes=30)  # ours: of one exchange between devices; the ranks begin a step together


class Strategy:
    """One process: nothing is shared. The base of the others."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks, self.device = ranks, device
        self.group: Any = None

    def prepare(self, model: nn.Module, *, bf16: bool) -> nn.Module:
        """The model on the device, equal on all ranks and laid out; what does not train is frozen already."""
        return model.to(self.device)

    def share(self, optimizer: torch.optim.Optimizer) -> None:
        """Lay out a new optimiser's parameters."""

    def held(self, parameter: nn.Parameter) -> nn.Parameter:
        """The part of a model's parameter that this rank's optimiser keeps."""
        return parameter

    def part_of(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """An optimiser state shaped as `held(parameter)`, as the part of the whole that it is, for checkpoints."""
        return value

    def before_micro(self, *, last: bool) -> None:
        """Called before the backward pass of every pack."""

    def sum_gradients(self) -> None:
        """After the last backward pass: the gradients of the whole step, as far as this rank keeps them."""

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale the gradients so that their norm over everything is at most `limit`; returns the norm, [] on the device."""
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def updated(self) -> None:
        """After the optimiser's step: the parameters whole again, as far as the strategy keeps them so."""

    def total(self, values: Tensor) -> Tensor:
        """Numbers on the device, summed over the ranks."""
        return values


class _Shared(Strategy):
    """What all strategies for several ranks have in common."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        super().__init__(ranks, device)
        # Not the group of the control messages: checkpoints and messages may travel meanwhile.
        backend = "nccl" if device.type == "cuda" else "gloo"
        self.group = dist.new_group(backend=backend, timeout=_TIMEOUT)

    def _equal(self, model: nn.Module) -> nn.Module:
        """The model on the device, with the numbers of rank 0: drawn weights may differ between unlike CPUs."""
        model = model.to(self.device)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0, group=self.group)
        return model

    @override
    def total(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self.group)
        return values


class Replicated(_Shared):
    """Every rank holds everything; gradients are summed bucket by bucket during the last backward pass."""

    scatter = False

    @override
    def prepare(self, model: nn.Module, *, bf16: bool) -> nn.Module:
        model = self._equal(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        # Backward passes reach the last layers first; all ranks send the buckets in this one order.
        self._buckets = make_buckets(trained[::-1], self.ranks.size, self.ranks.rank, self.group, scatter=self.scatter)
        self._next = 0
        self._last = False
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                hooked: Any = parameter
                hooked.register_post_accumulate_grad_hook(lambda _, b=bucket: self._arrived(b))
        return model

    @override
    def before_micro(self, *, last: bool) -> None:
        self._last = last
        for bucket in self._buckets if last else ():
            bucket.missing = len(bucket.parameters)

    def _arrived(self, bucket: Bucket) -> None:
        """A gradient of the last pack is complete: send all buckets that are, in order."""
        if not self._last:
            return
        bucket.missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._buckets[self._next].send()
            self._next += 1

    @override
    def sum_gradients(self) -> None:
        for bucket in self._buckets[self._next :]:  # what the last pack did not reach, or all where there was no pack
            bucket.send()
        used = torch.tensor([had for bucket in self._buckets for had in bucket.had], dtype=torch.uint8)
        dist.all_reduce(used, op=dist.ReduceOp.MAX)  # between CPUs, while the devices still compute
        flags = iter(used.tolist())
        for bucket in self._buckets:
            bucket.receive([bool(next(flags)) for _ in bucket.parameters])
        self._next, self._last = 0, False


class ZeroOne(Replicated):
    """As `Replicated`, with each rank's optimiser in charge of its rows alone."""

    scatter = True

    @override
    def prepare(self, model: nn.Module, *, bf16: bool) -> nn.Module:
        from torch.distributed.device_mesh import DeviceMesh

        model = super().prepare(model, bf16=bf16)
        self._mesh = DeviceMesh.from_group(self.group, self.device.type)
        self._own = {p: row for b in self._buckets for p, row in zip(b.parameters, b.own, strict=True)}
        return model

    @override
    def share(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["params"] = [self._own[p] for p in group["params"] if self._own[p].numel()]

    @override
    def held(self, parameter: nn.Parameter) -> nn.Parameter:
        return self._own.get(parameter, parameter)  # frozen ones have no rows

    @override
    def part_of(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        from torch.distributed.tensor import DTensor, Shard

        if parameter.ndim == 0:
            return value.view(())
        part: Tensor = DTensor.from_local(
            value, self._mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
        return part

    @override
    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        rows = [row for bucket in self._buckets for row in bucket.own if row.grad is not None]
        square = torch.zeros((), device=self.device)
        if rows:
            norms = torch._foreach_norm([row.grad for row in rows if row.grad is not None])
            square = torch.stack(list(norms)).float().square().sum()
        norm = self.total(square).sqrt()
        torch.nn.utils.clip_grads_with_norm_(rows, limit, norm)
        return norm

    @torch.no_grad()
    @override
    def updated(self) -> None:
        for bucket in self._buckets:
            bucket.exchange()


class Sharded(_Shared):
    """torch's fully sharded data parallelism over the blocks of the model."""

    @override
    def prepare(self, model: nn.Module, *, bf16: bool) -> nn.Module:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        model = self._equal(model)
        mesh = DeviceMesh.from_group(self.group, self.device.type)
        # The blocks gather half the bytes; their inputs stay as the rest of the model made them.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        self._model: Any = model
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum, not a mean
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        return model

    @override
    def before_micro(self, *, last: bool) -> None:
        self._model.set_requires_gradient_sync(last)

    @override
    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        norm: Any = super().clip(parameters, limit)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a model: members of the outermost lists of at least two modules of one kind."""

    def within(module: nn.Module) -> Iterator[nn.Module]:
        children = list(module.children())
        # The tower's last block is of a kind derived from the others' (vlm/sparse_tail.py).
        alike = len(children) > 1 and all(isinstance(child, type(children[0])) for child in children)
        if isinstance(module, nn.ModuleList | nn.Sequential) and alike:
            yield from children
            return
        for child in children:
            yield from within(child)

    return within(model)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without asking the others."""
    sharded: Any = tensor
    part: Tensor = sharded.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def choose_strategy(name: StrategyName, ranks: Ranks, device: torch.device) -> Strategy:
    """`auto` is ddp; one process alone shares nothing, whatever the name."""
    if ranks.alone:
        return Strategy(ranks, device)
    kinds: dict[str, type[_Shared]] = {"auto": Replicated, "ddp": Replicated, "zero1": ZeroOne, "fsdp": Sharded}
    return kinds[name](ranks, device)
