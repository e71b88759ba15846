"""The convolution before the enlargement against enlarging first: values and every gradient, at sizes that do not divide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vitp.heads import enlarged
from vitp.heads.enlarged import convolve_enlarged
from vitp.heads.layers import enlarge


def _inputs(height: int, width: int, levels: int, batch: int = 2) -> list[Tensor]:
    """Maps of differing channels, and a kernel, in fp64."""
    random = torch.Generator().manual_seed(height * width + levels)
    channels = [5, 3, 4, 6][:levels]
    sizes = [(-(-height // 2**k), -(-width // 2**k)) for k in range(levels)]
    shapes = [(batch, c, *size) for c, size in zip(channels, sizes, strict=True)]
    return [torch.randn(s, generator=random, dtype=torch.float64) for s in [*shapes, (7, sum(channels), 3, 3)]]


def _enlarging_first(levels: list[Tensor], weight: Tensor) -> Tensor:
    size = (levels[0].shape[-2], levels[0].shape[-1])
    return functional.conv2d(torch.cat([enlarge(x, 2**k, size) for k, x in enumerate(levels)], 1), weight, padding=1)


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(8, 8, 4), (13, 10, 4), (1, 5, 4), (9, 1, 3), (2, 3, 2), (4, 4, 1)]
)
def test_values_and_gradients_are_those_of_enlarging_first(height: int, width: int, levels: int) -> None:
    tensors = [t.requires_grad_() for t in _inputs(height, width, levels)]
    found, expected = (f(tensors[:-1], tensors[-1]) for f in (convolve_enlarged, _enlarging_first))
    assert enlarged._pays(torch.device("cpu"), (height, width), 7)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # the enlarging matrix is computed in fp32
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found, tensors, cotangent), torch.autograd.grad(expected, tensors, cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_huge_maps_exported_graphs_and_other_devices_enlarge_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it would cost more, or has not been measured; the numbers are the same."""
    tensors = _inputs(16, 40, 4, batch=1)
    wanted = convolve_enlarged(tensors[:-1], tensors[-1])  # 40 cells a side for 7 channels: enlarged first
    monkeypatch.setattr(enlarged, "_SIDE", 100)
    torch.testing.assert_close(convolve_enlarged(tensors[:-1], tensors[-1]), wanted, rtol=1e-6, atol=1e-6)
    meta = [t.to("meta") for t in tensors]
    assert convolve_enlarged(meta[:-1], meta[-1]).shape == (1, 7, 16, 40)
    assert not enlarged._pays(torch.device("cuda"), (8, 8), 512)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert not enlarged._pays(torch.device("cpu"), (8, 8), 512)


def test_bf16_autocast_stays_as_near_as_enlarging_first() -> None:
    *levels, weight = (t.float() for t in _inputs(12, 12, 4))
    exact = _enlarging_first(levels, weight)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            float((f(levels, weight) - exact).norm() / exact.norm()) for f in (convolve_enlarged, _enlarging_first)
        ]
    assert errors[0] < 2 * errors[1]
