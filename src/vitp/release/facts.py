"""What is known about a run, for the model card and the metadata; what nobody stated stays unstated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitp.errors import CheckpointError
from vitp.release.origins import Origin, read_origins
from vitp.train.checkpoint import list_checkpoints, model_tensors

if TYPE_CHECKING:
    from vitp.commands.pretrain_recipe import PretrainConfig

_SPEED = (
    "_per_s",
    "wait_share",
    "lr_",
    "truncated",
    "text_only",
    "dropped_share",
    "grad_norm",
    "mfu",
)  # of a log line: how, not how well


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder tells it.

    `recipe_hash` is SHA-256 of recipe.yaml, `weights_hash` of the model's tensors (`tensors_hash`); `hash` is over both.
    `metrics` are the last values of each measure in the log, with their steps; `samples` the records of each source;
    `origins` the weights that the run started from.
    """

    config: PretrainConfig
    recipe: str
    provenance: dict[str, Any]
    step: int
    recipe_hash: str
    weights_hash: str
    metrics: dict[str, tuple[float, int]]
    samples: dict[str, int]
    origins: tuple[Origin, ...]

    @property
    def hash(self) -> str:
        """One name for recipe and weights together."""
        return hashlib.sha256(f"{self.recipe_hash}{self.weights_hash}".encode()).hexdigest()

    def metadata(self) -> dict[str, str]:
        """For a weights file's header, all texts."""
        return {
            "recipe": self.recipe,
            "provenance": json.dumps(self.provenance),
            "name": self.config.name,
            "run": self.hash,
            "step": str(self.step),
        }


def read_facts(folder: Path, config: PretrainConfig, model: nn.Module) -> RunFacts:
    """Collect the facts of a run with at least one checkpoint; `model` is the one in its newest.

    Raises:
        CheckpointError: a file of the run vanished or cannot be read.
    """
    checkpoint = list_checkpoints(folder)[-1]
    try:
        recipe = (folder / "recipe.yaml").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder}: the run cannot be read ({error.strerror or error})") from error
    return RunFacts(
        config=config,
        recipe=recipe.decode("utf-8"),
        provenance=_read_json(folder / "provenance.json"),
        step=int(_read_json(checkpoint / "state.json").get("step", 0)),
        recipe_hash=hashlib.sha256(recipe).hexdigest(),
        weights_hash=tensors_hash(model_tensors(model)),
        metrics=_metrics(folder),
        samples=_samples(folder),
        origins=tuple(read_origins(config.model)),
    )


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor by name: the same however a checkpoint is cut into files."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metrics(folder: Path) -> dict[str, tuple[float, int]]:
    """The newest value of every measure in log.jsonl, evaluations included, and the step it was taken at."""
    try:
        text = (folder / "log.jsonl").read_text(encoding="utf-8")
        log = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError):
        return {}
    newest: dict[str, tuple[float, int]] = {}
    for line in log:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float) and not any(word in key for word in _SPEED):
                newest[key] = (float(value), int(line.get("step", 0)))
    return newest


def _samples(folder: Path) -> dict[str, int]:
    """Records of each source, as the check before the run counted them."""
    sources = _read_json(folder / "check.json").get("sources") or []
    return {
        str(s["name"]): int(s["samples"]) for s in sources if isinstance(s, dict) and {"name", "samples"} <= s.keys()
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
