"""Where a run's initial weights came from and what those places state about their terms; nothing is guessed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitp.backbone.vit import read_metadata
from vitp.errors import CheckpointError

if TYPE_CHECKING:
    from vitp.vlm.build import ModelConfig

_FRONT = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Origin:
    """Weights that a run started from.

    part: which of the model's; name: a hub id, or the last part of a path; hub: whether it is a hub id;
    licence: as the place's own card states it, or None; run: name and hash of the vitp run it was exported from.
    """

    part: str
    name: str
    hub: bool
    licence: str | None = None
    run: str | None = None

    def sentence(self) -> str:
        """For the model card."""
        from_run = f", exported from the run {self.run}" if self.run else ""
        terms = f"licence stated there: {self.licence}" if self.licence else "licence not stated there"
        return f"{self.part}: `{self.name}`{from_run} ({terms})"


def read_origins(model: ModelConfig) -> list[Origin]:
    """The recipe's initial weights; what is on this disk is asked for its licence and its own origin."""
    places = (
        ("whole model", model.vlm),
        ("tower", model.tower.weights),
        ("language model", model.language_model.path),
    )
    return [_origin(part, str(place)) for part, place in places if place is not None]


def _origin(part: str, place: str) -> Origin:
    path = Path(place)
    if not path.exists():
        return Origin(part, place if _HUB_ID.fullmatch(place) else path.name, bool(_HUB_ID.fullmatch(place)))
    folder = path if path.is_dir() else path.parent
    return Origin(part, path.name, False, _licence(path, folder), _run(path))


def _licence(path: Path, folder: Path) -> str | None:
    """What a model card or timm's config.json beside the weights says."""
    cards = [folder / "README.md"] if path.is_dir() else [path.with_suffix(".md"), folder / "README.md"]
    for card in cards:
        found = _FRONT.match(_text(card))
        try:
            said = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:
            continue
        if isinstance(said, dict) and isinstance(said.get("license"), str):
            return str(said.get("license_name") or said["license"])
    try:
        said = json.loads(_text(folder / "config.json") or "{}")
    except ValueError:
        return None
    preset: Any = said.get("pretrained_cfg") if isinstance(said, dict) else None
    return preset["license"] if isinstance(preset, dict) and isinstance(preset.get("license"), str) else None


def _run(path: Path) -> str | None:
    """Name and hash of the run a file or folder was exported from, as its metadata says."""
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        about = read_metadata(file) if file.suffix == ".safetensors" else {}
    except CheckpointError:
        return None
    return f"{about['name']} ({about['run'][:12]})" if {"name", "run"} <= about.keys() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
