"""GPUs as their makers describe them: dense matrix peaks and memory, by the name torch reports.

Peaks are those without structured sparsity, bf16 with fp32 accumulation on tensor cores, fp32 on the ordinary cores, since
torch multiplies fp32 matrices without TF32 unless told otherwise. Each row names the datasheet. A GPU that is not listed has no
peak here, so that no utilisation is ever reported against a guess.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch

from vitp.errors import ConfigError

_HARMLESS = re.compile(r"nvidia|tesla|\d+gb|pcie|sxm\d?|hbm\d\w?")
USABLE = 0.92  # ours: 74 of 80 GB; the rest is CUDA's context and gaps between the allocator's blocks


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    key: str  # as users write it
    names: tuple[str, ...]  # parts of torch's device name; the longest that matches wins
    bf16: float  # dense peak, TFLOP/s; 0 where bf16 is not a matrix type of it
    fp32: float  # TFLOP/s
    memory: float  # GiB, as torch reports it, ECC on
    source: str

    def peak(self, *, bf16: bool) -> float | None:
        """Dense peak in FLOP/s, None where there is none for the precision."""
        found = self.bf16 if bf16 else self.fp32
        return found * 1e12 or None


GPUS = (
    Gpu("a40", ("A40",), 149.7, 37.4, 44.4, "NVIDIA A40 datasheet, 299.4 with sparsity"),
    Gpu("a100", ("A100", "A100-SXM4-80GB"), 312.0, 19.5, 79.1, "NVIDIA A100 datasheet, 80 GB"),
    Gpu("a100-40gb", ("A100-SXM4-40GB", "A100-PCIE-40GB"), 312.0, 19.5, 39.4, "NVIDIA A100 datasheet, 40 GB"),
    Gpu("h100", ("H100",), 989.4, 66.9, 79.1, "NVIDIA H100 datasheet, SXM5 80 GB, 1,979 with sparsity"),
    Gpu("h100-pcie", ("H100 PCIe",), 756.0, 51.2, 79.1, "NVIDIA H100 PCIe product brief, 1,513 with sparsity"),
    Gpu("h100-nvl", ("H100 NVL",), 835.5, 60.0, 93.1, "NVIDIA H100 datasheet, NVL, 1,671 with sparsity"),
    Gpu("h200", ("H200",), 989.4, 66.9, 139.8, "NVIDIA H200 datasheet, SXM, 1,979 with sparsity"),
    Gpu("gh200", ("GH200",), 989.4, 66.9, 94.5, "NVIDIA GH200 datasheet, 96 GB HBM3"),
    Gpu("b200", ("B200",), 2250.0, 75.0, 178.4, "NVIDIA HGX B200 datasheet, 4,500 with sparsity"),
    Gpu("a10", ("A10",), 125.0, 31.2, 22.1, "NVIDIA A10 datasheet, 250 with sparsity"),
    Gpu("a30", ("A30",), 165.0, 10.3, 23.6, "NVIDIA A30 datasheet, 330 with sparsity"),
    Gpu("l4", ("L4",), 121.0, 30.3, 22.0, "NVIDIA L4 datasheet, 242 with sparsity"),
    Gpu("l40s", ("L40S",), 362.0, 91.6, 44.4, "NVIDIA L40S datasheet, 733 with sparsity"),
    Gpu("a6000", ("RTX A6000",), 154.8, 38.7, 47.4, "NVIDIA GA102 whitepaper, RTX A6000, 309.7 with sparsity"),
    Gpu("rtx3090", ("GeForce RTX 3090",), 71.0, 35.6, 23.6, "NVIDIA GA102 whitepaper, 142 with sparsity"),
    Gpu(
        "rtx4090",
        ("GeForce RTX 4090",),
        165.2,
        82.6,
        23.6,
        "NVIDIA Ada whitepaper, fp32 accumulation, 330.3 with sparsity",
    ),
    Gpu("v100", ("V100",), 0.0, 15.7, 31.7, "NVIDIA V100 datasheet, SXM2 32 GB; no bf16"),
)
COMPARED = ("a40", "a100", "h100", "h200")  # of which estimates tell the hours


def find_gpu(key: str) -> Gpu:
    """A GPU by its key.

    Raises:
        ConfigError: there is none of that name.
    """
    for gpu in GPUS:
        if gpu.key == key.lower():
            return gpu
    raise ConfigError(f"gpu '{key}' is not known; known are {', '.join(gpu.key for gpu in GPUS)}")


def recognise(name: str) -> Gpu | None:
    """The GPU of a CUDA device name such as ``NVIDIA H100 80GB HBM3``; None for one that is not listed.

    Words that the list does not have may only tell maker, memory or socket, so that a laptop's or a Ti's peak is not guessed.
    """
    words = name.replace("-", " ").lower().split()
    best: tuple[int, Gpu] | None = None
    for gpu in GPUS:
        for part in gpu.names:
            wanted = part.replace("-", " ").lower().split()
            rest = [word for word in words if word not in wanted]
            known = all(_HARMLESS.fullmatch(word) for word in rest) and set(wanted) <= set(words)
            if known and (best is None or len(part) > best[0]):
                best = len(part), gpu
    return best[1] if best else None


def dense_peak(device: torch.device, *, bf16: bool) -> float | None:
    """Dense peak of a device in FLOP/s; None on CPUs, unknown GPUs, and GPUs that are cut into parts (MIG)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    gpu = None if "MIG" in name else recognise(name)
    return gpu.peak(bf16=bf16) if gpu else None


def usable_memory(device: torch.device) -> int:
    """Bytes a run may plan with: a share of a GPU's whole memory, no more than is free; on CPUs what the system has left."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(min(free + torch.cuda.memory_allocated(device), USABLE * total))
    return _available_ram()


def _available_ram() -> int:
    """Free and reclaimable memory in bytes; 0 where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 0
