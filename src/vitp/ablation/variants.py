"""Axes of fine-tuning sweeps that set several keys at once: backbones side by side, and seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vitp.ablation.axes import SEED
from vitp.backbone.vit import load_backbone
from vitp.errors import ConfigError
from vitp.recipes import find_recipe
from vitp.yaml_lines import read

RANDOM = "random"
BACKBONE = "backbone"  # name of the axis


def backbone_variants(texts: Sequence[str], recipe: Path | str) -> dict[str, dict[str, tuple[str, ...]]]:
    """The axis of ``random vitp=FILE other=FILE``: fine-tunings from random weights and from files, side by side.

    Args:
        texts: ``NAME=FILE``; ``random`` (or ``random=FILE``) means random weights of the recipe's backbone_config, else of the
            ViT in that file, else in the first file.
        recipe: a fine-tuning recipe, file or shipped name.

    Raises:
        ConfigError: a text is none of these, or there is no ViT to draw the random weights of.
        CheckpointError: a file cannot be opened.
    """
    named: dict[str, str | None] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not name or (not equals and name != RANDOM) or (equals and not file):
            raise ConfigError(f"--backbones {text}: write random, or NAME=FILE")
        if name in named:
            raise ConfigError(f"--backbones {text}: '{name}' is there twice; give every backbone a name of its own")
        named[name] = file or None
    found: dict[str, tuple[str, ...]] = {}
    for name, given in named.items():
        if name == RANDOM:
            found[name] = _random(given or _own(recipe) or next((f for f in named.values() if f), None))
        else:
            found[name] = (f"backbone={json.dumps(given)}", "backbone_config=null")
    return {BACKBONE: found} if found else {}


def _own(recipe: Path | str) -> dict[str, object] | None:
    """The backbone_config a recipe has itself."""
    path = Path(recipe) if Path(recipe).is_file() else find_recipe(str(recipe))
    config = read(path).data.get("backbone_config") if path is not None else None
    return config if isinstance(config, dict) else None


def _random(source: str | dict[str, object] | None) -> tuple[str, ...]:
    if source is None:
        raise ConfigError(
            "--backbones random: of which ViT? give backbone_config in the recipe, random=FILE, or a backbone beside it"
        )
    fields = source if isinstance(source, dict) else load_backbone(Path(source)).config.model_dump(mode="json")
    return "backbone=null", f"backbone_config={json.dumps(fields)}"


def seed_variants(count: int) -> dict[str, dict[str, tuple[str, ...]]]:
    """The axis of seeds 0 ... count - 1: of weights, order and crops, and of which images a `data.fraction` takes.

    The test part stays the same, since data.split_seed does.
    """
    return {SEED: {str(s): (f"seed={s}", f"data.fraction_seed={s}") for s in range(count)}}
