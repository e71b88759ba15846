"""Device names and their peaks."""

from __future__ import annotations

import pytest
import torch

from vitp.errors import ConfigError
from vitp.train.hardware import COMPARED, GPUS, dense_peak, find_gpu, recognise, usable_memory


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"),
    ],
)
def test_torchs_names_are_recognised(name: str, key: str) -> None:
    found = recognise(name)
    assert found is not None
    assert found.key == key


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 MIG 1g.10gb",
        "Graphics Device",
        "NVIDIA L40",
        "",
    ],
)
def test_names_that_only_look_alike_have_no_peak(name: str) -> None:
    found = recognise(name)
    assert found is None


def test_peaks_are_dense_and_the_compared_ones_known() -> None:
    assert [find_gpu(key).bf16 for key in COMPARED] == [149.7, 312.0, 989.4, 989.4]
    assert all(gpu.source and gpu.fp32 > 0 and gpu.memory > 10 for gpu in GPUS)
    assert find_gpu("v100").peak(bf16=True) is None
    with pytest.raises(ConfigError, match="gpu 'h300' is not known; known are a40"):
        find_gpu("h300")


def test_a_cpu_has_memory_and_no_peak() -> None:
    assert dense_peak(torch.device("cpu"), bf16=True) is None
    assert usable_memory(torch.device("cpu")) > 0
