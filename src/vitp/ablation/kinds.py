"""What is run at every point of a sweep: a pretraining or a fine-tuning."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from vitp.ablation.table import training_numbers
from vitp.commands.finetune import METRICS, DetectConfig, FinetuneConfig, finetune, load_finetune
from vitp.commands.finetune_recipe import Pictures, images_fingerprint
from vitp.commands.pretrain import pretrain
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.commands.pretrain_recipe import fingerprint as pretrain_fingerprint
from vitp.datasets.dense import open_dataset
from vitp.datasets.detection import open_detection
from vitp.errors import CheckpointError
from vitp.instruction.source import Source
from vitp.recipes import load_recipe
from vitp.train.task import Progress

KindName = Literal["pretrain", "finetune"]
Swept = PretrainConfig | FinetuneConfig | DetectConfig
# Numbers of a fine-tuning that go into the table, in percent there: name in metrics.json -> name of the column.
_SCORES = {"miou": "mIoU", "mdice_foreground": "Dice", "f1_changed": "F1 changed"}
_OBJECT_SCORES = {  # by the form of boxes, the main one first (`DetectionScores.main`)
    "upright": {"AP": "AP", "AP50": "AP50", "mask_AP": "mask AP"},
    "rotated": {"mAP_voc07": "mAP", "AP": "AP", "AP50": "AP50"},
}


def shown_scores(numbers: dict[str, Any]) -> dict[str, float]:
    """The scores of a fine-tuning that go into a table, in percent, by column; those that do not exist are left out."""
    columns = _OBJECT_SCORES.get(str(numbers.get("form")), _SCORES)
    return {
        column: 100 * numbers[name] for name, column in columns.items() if isinstance(numbers.get(name), int | float)
    }


class Kind(ABC):
    """A command that is run point by point; what it opened is kept, since points often share their data."""

    command: ClassVar[str]  # of one point
    sweeper: ClassVar[str]  # that takes the whole sweep

    @abstractmethod
    def load(self, recipe: Path | str, overrides: Sequence[str]) -> Swept:
        """A point's recipe; raises ConfigError."""

    @abstractmethod
    def steps(self, config: Swept) -> int:
        """All steps of the loop."""

    @abstractmethod
    def fingerprint(self, config: Swept) -> dict[str, Any]:
        """What may not differ between the parts of a run; opens its data and raises where that cannot be used."""

    @abstractmethod
    def train(self, config: Swept, *, resume: bool, progress: Progress | None, say: Callable[[str], None]) -> None:
        """Run one point."""

    @abstractmethod
    def numbers(self, config: Swept, seconds: float) -> dict[str, float]:
        """The table's columns of a finished point that was trained for so long."""

    def measured(self, config: Swept) -> bool:
        """Whether a point that is trained to its end is also scored."""
        return True


class Pretraining(Kind):
    """`vitp pretrain`."""

    command = sweeper = "pretrain"

    def __init__(self) -> None:
        self._opened: dict[str, list[Source]] = {}

    def load(self, recipe: Path | str, overrides: Sequence[str]) -> PretrainConfig:
        """A point's recipe."""
        return load_recipe(PretrainConfig, recipe, overrides)

    def steps(self, config: Swept) -> int:
        """Those of the loop, text-only ones included."""
        assert isinstance(config, PretrainConfig)
        return config.steps + config.warm_start.steps

    def fingerprint(self, config: Swept) -> dict[str, Any]:
        """See `Kind`."""
        assert isinstance(config, PretrainConfig)
        key = config.data.model_dump_json()
        if key not in self._opened:
            self._opened[key] = config.data.open_sources()
        return pretrain_fingerprint(config, self._opened[key])

    def train(self, config: Swept, *, resume: bool, progress: Progress | None, say: Callable[[str], None]) -> None:
        """Run one point."""
        assert isinstance(config, PretrainConfig)
        pretrain(config, resume=resume, progress=progress, say=say)

    def numbers(self, config: Swept, seconds: float) -> dict[str, float]:
        """Loss, rate and minutes."""
        assert isinstance(config, PretrainConfig)
        return training_numbers(config.folder, config.warm_start.steps, seconds)


class Finetuning(Kind):
    """`vitp finetune`; `vitp evaluate --sweep` runs it point by point."""

    command, sweeper = "finetune", "evaluate"

    def __init__(self) -> None:
        self._opened: dict[str, Pictures] = {}

    def load(self, recipe: Path | str, overrides: Sequence[str]) -> FinetuneConfig | DetectConfig:
        """A point's recipe."""
        return load_finetune(recipe, overrides)

    def steps(self, config: Swept) -> int:
        """Those of the loop."""
        return config.steps

    def fingerprint(self, config: Swept) -> dict[str, Any]:
        """See `Kind`."""
        assert isinstance(config, FinetuneConfig | DetectConfig)
        if config.backbone is not None and not config.backbone.exists():
            raise CheckpointError(f"{config.backbone}: does not exist; correct the backbone's path")
        key = config.data.model_dump_json()
        if key not in self._opened:
            self._opened[key] = _open(config)
        return images_fingerprint(config, self._opened[key])

    def train(self, config: Swept, *, resume: bool, progress: Progress | None, say: Callable[[str], None]) -> None:
        """Run one point."""
        assert isinstance(config, FinetuneConfig | DetectConfig)
        finetune(config, resume=resume, progress=progress, say=say)

    def numbers(self, config: Swept, seconds: float) -> dict[str, float]:
        """Scores on the test images in percent, then loss, rate and minutes."""
        found = read_record(config.folder / METRICS)
        return {**shown_scores(found), **training_numbers(config.folder, 0, seconds)}

    def measured(self, config: Swept) -> bool:
        """Whether its scores are there."""
        assert isinstance(config, FinetuneConfig | DetectConfig)
        return (config.folder / METRICS).is_file()


def _open(config: FinetuneConfig | DetectConfig) -> Pictures:
    return open_detection(config.data) if isinstance(config, DetectConfig) else open_dataset(config.data)


def kind_of(name: KindName) -> Kind:
    """A fresh one, which has opened nothing."""
    return Pretraining() if name == "pretrain" else Finetuning()


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that an earlier call wrote for a point.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is unreadable ({error}); delete the point's folder to run it anew") from error
    assert isinstance(value, dict)
    return value
