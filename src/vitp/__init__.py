"""vitp: visual instruction pretraining. Instruction data in, domain vision backbone out.

The public names are imported on first use, so that ``import vitp`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitp.backbone.vit import ViTBackbone, load_backbone
    from vitp.commands.ask import ask
    from vitp.commands.check import check
    from vitp.commands.estimate import estimate
    from vitp.commands.evaluate import evaluate
    from vitp.commands.export import export
    from vitp.commands.finetune import finetune
    from vitp.commands.index import index
    from vitp.commands.paste import paste
    from vitp.commands.predict import predict
    from vitp.commands.prepare import prepare
    from vitp.commands.pretrain import load_run, pretrain
    from vitp.commands.probe import probe
    from vitp.commands.sweep import sweep
    from vitp.commands.synthesize import synthesize
    from vitp.errors import VitpError

_HOMES = {
    "ViTBackbone": "vitp.backbone.vit",
    "VitpError": "vitp.errors",
    "ask": "vitp.commands.ask",
    "check": "vitp.commands.check",
    "estimate": "vitp.commands.estimate",
    "evaluate": "vitp.commands.evaluate",
    "export": "vitp.commands.export",
    "finetune": "vitp.commands.finetune",
    "index": "vitp.commands.index",
    "load_backbone": "vitp.backbone.vit",
    "load_run": "vitp.commands.pretrain",
    "predict": "vitp.commands.predict",
    "paste": "vitp.commands.paste",
    "prepare": "vitp.commands.prepare",
    "pretrain": "vitp.commands.pretrain",
    "probe": "vitp.commands.probe",
    "sweep": "vitp.commands.sweep",
    "synthesize": "vitp.commands.synthesize",
}

__all__ = [
    "ViTBackbone",
    "VitpError",
    "__version__",
    "ask",
    "check",
    "estimate",
    "evaluate",
    "export",
    "finetune",
    "index",
    "load_backbone",
    "load_run",
    "paste",
    "predict",
    "prepare",
    "pretrain",
    "probe",
    "sweep",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vitp' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
