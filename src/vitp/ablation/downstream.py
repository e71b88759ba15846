"""What a sweep's points are worth: probes and fine-tunings run on the backbone that each point leaves behind."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.ablation.kinds import shown_scores
from vitp.commands.finetune import DetectConfig, FinetuneConfig, finetune, recipe_kind
from vitp.commands.finetune_detect import check_labels
from vitp.commands.probe import ProbeConfig, probe
from vitp.config import Config, dump
from vitp.datasets.dense import open_dataset
from vitp.datasets.detection import open_detection
from vitp.datasets.folder import read_labelled
from vitp.errors import ConfigError
from vitp.recipes import find_recipe, load_recipe
from vitp.train.loop import MARKER
from vitp.yaml_lines import read

# Numbers of a probe that go into the table, in percent there: name in the result -> name of the column.
_PROBED = {"linear_mean": "linear", "knn_mean": "kNN"}


@dataclass(frozen=True)
class Downstream:
    """A probing or fine-tuning recipe with its overrides; `label` is unique in the sweep."""

    label: str
    recipe: str
    overrides: tuple[str, ...]
    kind: type[ProbeConfig] | type[FinetuneConfig] | type[DetectConfig]

    def config(self, backbone: Path, out: Path) -> ProbeConfig | FinetuneConfig | DetectConfig:
        """The recipe for one point's backbone.

        Raises:
            ConfigError: a mistake in it.
        """
        texts = [*self.overrides, f"backbone={json.dumps(str(backbone))}"]
        if self.kind is not ProbeConfig:
            texts.append(f"out={json.dumps(str(out / self.label))}")
        return load_recipe(self.kind, self.recipe, texts)

    def check(self, out: Path) -> None:
        """Open the data, so that what is missing is told before hours of pretraining.

        Raises:
            VitpError: the recipe or its data cannot be used.
        """
        config = self.config(out / "backbone.safetensors", out)
        if isinstance(config, ProbeConfig):
            read_labelled(config.data)
        elif isinstance(config, DetectConfig):
            objects = open_detection(config.data)
            check_labels(config, objects)
            config.augment.check_classes(objects.classes)
        else:
            open_dataset(config.data)

    def run(self, backbone: Path, out: Path, say: Callable[[str], None]) -> tuple[str, dict[str, Any]]:
        """(the recipe as it ran, its numbers); an interrupted fine-tuning is continued, one of another recipe replaced.

        Raises:
            VitpError: it could not be run.
        """
        config = self.config(backbone, out)
        if isinstance(config, ProbeConfig):
            return dump(config), probe(config, say=say).numbers
        saved = config.folder / "recipe.yaml"
        resume = saved.is_file() and saved.read_text(encoding="utf-8") == dump(config)
        overwrite = not resume and (config.folder / MARKER).is_file()
        return dump(config), finetune(config, resume=resume, overwrite=overwrite, say=say).numbers

    def made_by(self, backbone: Path, out: Path) -> str:
        """The recipe as it would run."""
        return dump(self.config(backbone, out))

    def shown(self, numbers: dict[str, Any]) -> dict[str, float]:
        """The table's columns, in percent."""
        probed = {column: 100 * numbers[name] for name, column in _PROBED.items() if name in numbers}
        return {f"{self.label} {column}": value for column, value in (probed or shown_scores(numbers)).items()}


def parse_then(texts: Sequence[str]) -> tuple[Downstream, ...]:
    """Downstream recipes from texts such as ``probe/rsscn7 data.root=/data/rsscn7``; ``none`` stands for none.

    Raises:
        ConfigError: no such recipe, or one that is neither a probe nor a fine-tuning.
    """
    found: list[Downstream] = []
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"--then {text}: {error}; put quotes around values with blanks") from error
        if not words:
            raise ConfigError("--then: name a probing or fine-tuning recipe, such as probe/rsscn7")
        if words == ["none"]:
            continue
        recipe, overrides = words[0], tuple(words[1:])
        stem = Path(recipe).stem
        label = stem if all(stem != other.label for other in found) else f"{stem}_{len(found) + 1}"
        found.append(Downstream(label, recipe, overrides, _kind(recipe)))
    return tuple(found)


def _kind(recipe: str) -> type[ProbeConfig] | type[FinetuneConfig] | type[DetectConfig]:
    """Whose keys a recipe has."""
    path = Path(recipe) if Path(recipe).is_file() else find_recipe(recipe) or Path(recipe)
    keys = set(read(path).data)
    if (kind := recipe_kind(path)) is DetectConfig:
        return kind
    unknown: dict[type[Config], int] = {
        kind: len(keys - set(kind.model_fields)) for kind in (ProbeConfig, FinetuneConfig)
    }
    if min(unknown.values()) > len(keys) // 2:
        raise ConfigError(
            f"--then {recipe}: is neither a probing nor a fine-tuning recipe; name one such as probe/rsscn7"
        )
    if "steps" in keys or "task" in keys or unknown[FinetuneConfig] < unknown[ProbeConfig]:
        return FinetuneConfig
    return ProbeConfig
