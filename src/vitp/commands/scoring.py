"""What `vitp evaluate` asks of whoever scores a kind of model, and what all of them do alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from vitp.commands.finetune import DetectConfig, FinetuneConfig, load_finetune
from vitp.config import Config
from vitp.datasets.splits import Split
from vitp.errors import ConfigError, DataError
from vitp.tasks.detect import ObjectInference
from vitp.tasks.segment import InferenceConfig

Tta = Literal["own", "none", "flip", "multiscale"]
_SCALES = (0.75, 1.0, 1.25)  # declared by the released change configs

I = TypeVar("I", InferenceConfig, ObjectInference)  # noqa: E741


@dataclass(frozen=True)
class Asked:
    """An evaluation, whatever its task; see `vitp.commands.evaluate.evaluate`."""

    model: Path  # the file
    recipe: Path  # whose data count, and whose inference where the model holds none
    overrides: tuple[str, ...]
    split: Split
    tta: Tta
    metrics: Path  # to write
    report: Path  # to write
    submission: Path | None  # to write
    pictures: int  # in the report
    progress: Callable[[int, int], None]  # images done, of how many
    say: Callable[[str], None]


class Parted(Protocol):
    """A data set as an evaluation sees it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """By class id."""

    def indices(self, split: Split) -> list[int]:
        """The images of a part."""


def asked_recipe(asked: Asked, kept: Mapping[str, Config] | None = None) -> FinetuneConfig | DetectConfig:
    """The recipe that counts; raises ConfigError where it is wrong.

    The recipe's own backbone need not be there any more: the model, which holds its weights, stands in for it.

    Args:
        asked: the recipe and the overrides.
        kept: parts of the recipe that the model holds itself, by their names; overrides change those, not the recipe's.
    """
    stands_in = [f"backbone={json.dumps(str(asked.model))}", "backbone_config=null"]
    held = [f"{name}={json.dumps(part.model_dump(mode='json'))}" for name, part in (kept or {}).items()]
    return load_finetune(asked.recipe, [*stands_in, *held, *asked.overrides])


def asked_indices(asked: Asked, data: Parted, root: Path, classes: Sequence[str]) -> list[int]:
    """The images to score.

    Args:
        asked: the part.
        data: opened.
        root: where it lies.
        classes: of the model.

    Raises:
        ConfigError: the data's classes are others.
        DataError: the part has no image.
    """
    if tuple(data.classes) != tuple(classes):
        raise ConfigError(
            f"{asked.recipe}: its classes ({', '.join(data.classes)}) are not those of {asked.model} "
            f"({', '.join(classes)}); name the model's, in their order (data.classes), and map the labels to them"
        )
    indices = data.indices(asked.split)
    if not indices:
        raise DataError(
            f"has no {asked.split} images; name them in data.{asked.split}_images or data.{asked.split}_list, or score another "
            "--split",
            str(root),
        )
    return indices


def viewed(inference: I, tta: Tta) -> I:
    """The inference with other views, where others are asked for."""
    if tta == "own":
        return inference
    scales = _SCALES if tta == "multiscale" else (1.0,)
    return inference.model_copy(update={"scales": scales, "flips": "none" if tta == "none" else "horizontal"})
