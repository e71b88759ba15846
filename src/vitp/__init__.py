"""vitp: visual instruction pretraining. Instruction data in, domain vision backbone out.

The public names are imported on first use, so that ``import vitp`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitp.backbone.vit import ViTBackbone, load_backbone
    from vitp.check import check
    from vitp.errors import VitpError
    from vitp.export import export
    from vitp.finetune import finetune
    from vitp.pretrain import load_run, pretrain
    from vitp.probe import probe

_HOMES = {
    "ViTBackbone": "vitp.backbone.vit",
    "VitpError": "vitp.errors",
    "check": "vitp.check",
    "export": "vitp.export",
    "finetune": "vitp.finetune",
    "load_backbone": "vitp.backbone.vit",
    "load_run": "vitp.pretrain",
    "pretrain": "vitp.pretrain",
    "probe": "vitp.probe",
}

__all__ = [
    "ViTBackbone",
    "VitpError",
    "__version__",
    "check",
    "export",
    "finetune",
    "load_backbone",
    "load_run",
    "pretrain",
    "probe",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vitp' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
