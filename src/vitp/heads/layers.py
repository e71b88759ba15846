"""What heads are made of: convolution with norm and ReLU, aligned enlargement, classifier.

Shape legend: B images, C channels, h x w cells.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["batch", "group"]
_GROUPS = 32  # Wu & He 2018


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Batch norm, or group norm of 32 groups; fewer where they would not divide the channels or hold fewer than 4.

    Batch norm learns from the statistics of a micro-batch, so what is learnt depends on how a step is cut, and one image
    alone is too few where a map has one cell. Group norm looks at one image at a time.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in range(max(1, min(_GROUPS, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ConvNormReLU(nn.Sequential):
    """Convolution without bias (odd kernel, same size), norm, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int, norm: Norm) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False),
            norm_layer(norm, outside),
            nn.ReLU(inplace=True),
        )


def enlarge(x: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Bilinear by exactly `factor`, then cut to `size`: cells may reach beyond the picture, and must not be squeezed into it.

    Where `size` is `factor` times that of `x` this is interpolation with align_corners False.
    """
    return functional.interpolate(x, scale_factor=float(factor), mode="bilinear")[..., : size[0], : size[1]]


def classifier(channels: int, classes: int) -> nn.Conv2d:
    """1 x 1 convolution to logits, weights drawn from Normal(0, 0.01) and no bias to start with (mmsegmentation)."""
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def has_batch_norm(module: nn.Module) -> bool:
    """Whether what `module` computes for an image depends, while it learns, on the others of a forward pass."""
    return any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def synchronise_batch_norm(model: nn.Module, group: Any) -> nn.Module:
    """Batch norms that share their statistics over processes (released: SyncBN), or the model as it is where there is one.

    Args:
        model: on its device; its parameters and buffers stay the same ones.
        group: the processes, joined over the devices' network; all of them must make equally many forward passes. None: one
            process.
    """
    if group is None or not has_batch_norm(model):
        return model
    if next(model.parameters()).device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)  # type: ignore[no-untyped-call]
        return converted
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SharedBatchNorm(child, group))
    return model


class SharedBatchNorm(nn.BatchNorm2d):
    """Synchronised batch norm for CPUs, where torch has none; equal to a batch norm that sees all processes' images."""

    def __init__(self, norm: nn.BatchNorm2d, group: Any) -> None:
        """Take over the parameters and statistics of `norm`; `group`: the processes."""
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.training = norm.weight, norm.bias, norm.training
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape; B may differ between the processes."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        numbers = x.float()
        cells = torch.tensor([numbers.numel() / x.shape[1]], dtype=torch.float64)
        totals = self._total(torch.cat([numbers.sum((0, 2, 3)).double(), cells]))
        count = totals[-1].detach()
        mean = (totals[:-1] / count).float()
        centred = numbers - mean[:, None, None]
        variance = (self._total(centred.square().sum((0, 2, 3)).double()) / count).float()
        with torch.no_grad():
            unbiased = (variance * (count / (count - 1))).float()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _total(self, numbers: Tensor) -> Tensor:
        total: Tensor = _Total.apply(numbers, self.group)
        return total


class _Total(torch.autograd.Function):
    """Numbers added up over processes; every process' loss depends on each of them, so gradients are added up alike."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _added(numbers, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _added(gradient, ctx.group), None


def _added(numbers: Tensor, group: Any) -> Tensor:
    total = numbers.clone()
    torch.distributed.all_reduce(total, group=group)
    return total
