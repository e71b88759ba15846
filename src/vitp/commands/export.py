"""`vitp export`: the ViT out of a run, in a format other tools read, with its parity proved and its card written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import vitp
from vitp.backbone.vit import BackboneConfig, save_backbone
from vitp.commands.pretrain import PretrainConfig, load_run
from vitp.errors import CheckpointError, VitpError
from vitp.files import write_json, write_text
from vitp.train.checkpoint import list_checkpoints

FORMATS = ("timm",)


@dataclass(frozen=True)
class ExportResult:
    """What was written and how close it is to the run's own tower."""

    weights: Path
    config: Path
    card: Path
    max_abs_difference: float
    command: str


def backbone_config(config: PretrainConfig) -> BackboneConfig:
    """The tower of a recipe as a backbone's description, without what only pretraining needs."""
    names = BackboneConfig.model_fields.keys()
    return BackboneConfig(**{name: getattr(config.model.tower, name) for name in names})


def timm_call(config: BackboneConfig, path: Path) -> str:
    """The Python expression that opens the exported file with timm alone."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in config.timm_kwargs().items())
    return f"timm.create_model({config.architecture!r}, checkpoint_path={str(path)!r}, num_classes=0, {arguments})"


def fixed_input(size: int) -> Tensor:
    """A normalised test picture [2, 3, size, size], the same on every machine."""
    at = torch.linspace(-1, 1, size)
    waves = torch.stack([torch.sin(7 * at[:, None] + 3 * at), torch.cos(5 * at[:, None] * at), at[:, None] - at])
    return torch.stack([waves, -waves.flip(-1) * 0.5])


@torch.no_grad()
def timm_parity(tower: nn.Module, config: BackboneConfig, path: Path) -> float:
    """Max abs difference of the patch features between `tower` and the file re-opened through public timm (fp32)."""
    again = timm.create_model(
        config.architecture, checkpoint_path=str(path), num_classes=0, **config.timm_kwargs()
    ).eval()
    x = fixed_input(config.image_size)
    ours = tower.eval().float().forward_features(x)  # type: ignore[operator]
    return float((ours - again.forward_features(x)).abs().max())


def model_card(
    config: PretrainConfig, backbone: BackboneConfig, provenance: dict[str, Any], call: str, file: str, done: int
) -> str:
    """Markdown: what it is, from which data and licences, how to open it, how it was made."""
    sources = "\n".join(
        f"| {s.name} | {s.modality or 'not stated'} | {s.weight:g} | {s.licence or 'not stated: ask the data owner'} |"
        for s in config.data.sources
    )
    vrl = config.vrl
    start = "random initialisation" if config.model.tower.weights is None else f"`{config.model.tower.weights.name}`"
    language = config.model.language_model.path or "a small Qwen2-architecture model built from the recipe"
    return f"""---
library_name: timm
tags: [vision-transformer, visual-instruction-pretraining, vitp]
---
# {config.name}

A vision transformer pretrained by visual instruction (ViTP, arXiv 2509.17562) with `vitp` {vitp.__version__}.

## Open it

```python
import timm, vitp
model = {call}
backbone = vitp.load_backbone({file!r})  # any image size, four feature maps
```

`{backbone.architecture}`, {backbone.image_size} px, patch {backbone.patch_size}; pixels in [0, 1] normalised with
mean {backbone.mean} and std {backbone.std}.

## Pretraining

{done} of {config.steps + config.warm_start.steps} steps ({config.warm_start.steps} of them text only), {config.batch_size}
samples a step with images, from {start}; language model: {language}; visual tokens dropped (VRL):
{vrl.ratio:.0%} on {vrl.probability:.0%} of the samples; seed {config.seed}. The full recipe is in the weights' metadata.

## Data and licences

| source | modality | weight | licence |
|---|---|---|---|
{sources}

The weights carry whatever terms these sources and the initial weights carry. `vitp` itself is Apache-2.0.

## Provenance

{chr(10).join(f"- {key}: {value}" for key, value in provenance.items())}
"""


def export(run: Path | str, *, to: str = "timm", path: Path | None = None) -> ExportResult:
    """Write the ViT of a pretraining run, re-load it through the public library, and compare.

    Args:
        run: folder of a pretraining run.
        to: "timm".
        path: the weights file to write, ending in .safetensors; default RUN/backbone.safetensors. A JSON beside it is
            timm's config, a Markdown file is the model card.

    Raises:
        CheckpointError: not a run, or no checkpoint yet.
        VitpError: unknown format, a path of another suffix, or the re-loaded weights differ.
    """
    if to not in FORMATS:
        raise VitpError(f"--to {to}: unknown format; formats here: {', '.join(FORMATS)}")
    folder = Path(run)
    path = folder / "backbone.safetensors" if path is None else Path(path)
    if path.suffix != ".safetensors":
        raise VitpError(f"{path}: the weights are written as safetensors; give a name that ends in .safetensors")
    model, _, config = load_run(folder)
    done = _read_json(list_checkpoints(folder)[-1] / "state.json")
    backbone = backbone_config(config)
    provenance = _read_json(folder / "provenance.json")
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    trial = path.with_name(f".{path.stem}.trial.safetensors")  # an earlier export stays until the new one is proved
    about = {"recipe": recipe, "provenance": json.dumps(provenance), "name": config.name}
    try:
        save_backbone(trial, model.tower, backbone, about)
        difference = timm_parity(model.tower, backbone, trial)
        if not difference <= 1e-4:
            raise CheckpointError(f"{path}: re-loaded through timm the weights differ by {difference:.3g}; not written")
        trial.replace(path)
    finally:
        trial.unlink(missing_ok=True)
    call = timm_call(backbone, path)
    described = path.with_suffix(".json")
    write_json(described, timm_config(backbone, int(model.tower.num_features)))  # type: ignore[arg-type]
    card = path.with_suffix(".md")
    write_text(card, model_card(config, backbone, provenance, call, path.name, int(done["step"])))
    return ExportResult(path, described, card, difference, call)


def timm_config(backbone: BackboneConfig, width: int) -> dict[str, Any]:
    """The config.json that timm's local-dir and hub loading read."""
    return {
        "architecture": backbone.architecture,
        "num_classes": 0,
        "num_features": width,
        "model_args": backbone.timm_kwargs(),
        "pretrained_cfg": {
            "input_size": [3, backbone.image_size, backbone.image_size],
            "interpolation": "bicubic",
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
        },
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
