"""A trained run as something that gives logits of windows, with its zoom and test-time augmentation.

Shape legend: B windows, C channels (3, or 6 for two dates), K classes, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from vitp.datasets.dense import DenseDataConfig
from vitp.datasets.detection import DetectionDataConfig
from vitp.datasets.volumes import VolumeFolderConfig
from vitp.errors import CheckpointError
from vitp.images.read import ImageConfig
from vitp.inference.views import Flips, over_views
from vitp.tasks.segment import load_dense
from vitp.train.loop_config import choose_device, uses_bf16

_WINDOW = 512  # ours: where the run does not say; the crops of mmsegmentation's configs


class DenseModel(Protocol):
    """What predicts: uint8 [B, C, h, w] to logits [B, K, h, w], for any h and w."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Logits in the pictures' own resolution."""
        ...


@dataclass(frozen=True)
class RunFacts:
    """What a run's recipe says about its data."""

    reader: ImageConfig
    background: int | None = 0
    volumes: VolumeFolderConfig | None = None  # where it was trained on slices of volumes


@dataclass(frozen=True)
class Predictor:
    """A model and how its windows are seen."""

    model: DenseModel
    classes: tuple[str, ...]
    device: torch.device
    bf16: bool = False
    dates: int = 1  # images an input is made of
    zoom: float = 1.0  # before the model
    scales: tuple[float, ...] = (1.0,)
    flips: Flips = "none"

    @torch.inference_mode()
    def logits(self, windows: Tensor) -> Tensor:
        """uint8 [B, C, h, w] to float32 logits [B, K, h, w] on the model's device; see `over_views` for several views."""
        windows = windows.to(self.device, non_blocking=True)
        return over_views(self._forward, windows, zoom=self.zoom, scales=self.scales, flips=self.flips)

    def _forward(self, windows: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(windows)


def load_predictor(
    run: Path, *, device: str = "auto", precision: str = "auto", scales: Sequence[float] = (1.0,), flips: Flips = "none"
) -> tuple[Predictor, int | None]:
    """The model of a run and the side of its own windows, in its zoomed pixels; None where it predicts images whole.

    Raises:
        CheckpointError: missing, damaged, or no model that maps pixels.
        TrainingError: a GPU was asked for and there is none.
    """
    place = choose_device(device)
    model, inference = load_dense(run)
    module: nn.Module = model.to(place).eval()
    predictor = Predictor(
        module,
        tuple(model.classes),
        place,
        bf16=uses_bf16(precision, place),
        dates=int(getattr(model, "dates", 1)),
        zoom=inference.scale,
        scales=tuple(scales),
        flips=flips,
    )
    return predictor, inference.window


def window_side(asked: int | None, own: int | None, zoom: float) -> int:
    """The side of windows in the file's pixels: as asked for, else the run's own, else 512, before the zoom."""
    return max(1, round((asked or own or _WINDOW) / zoom))


def windows_at_once(side: float, device: torch.device) -> int:
    """Windows of `side` zoomed pixels in a forward pass: a CPU gains nothing from more than one of 512 pixels."""
    budget = _WINDOW**2 * (16 if device.type == "cuda" else 1)
    return max(1, min(64, int(budget / side**2)))


def read_facts(run: Path) -> RunFacts:
    """How the run's recipe read its images; defaults where there is no recipe.

    Raises:
        CheckpointError: the recipe beside the weights is damaged.
    """
    file = (run if run.is_dir() else run.parent) / "recipe.yaml"
    if not file.is_file():
        return RunFacts(ImageConfig())
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        if recipe.get("task") == "detect":
            objects: DetectionDataConfig = TypeAdapter(DetectionDataConfig).validate_python(recipe["data"])
            return RunFacts(objects.reader, None)
        data: DenseDataConfig = TypeAdapter(DenseDataConfig).validate_python(recipe["data"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CheckpointError(
            f"{file}: is damaged, or no recipe of `vitp finetune`; copy the run's folder again"
        ) from error
    if isinstance(data, VolumeFolderConfig):
        return RunFacts(ImageConfig(), data.background, data)
    return RunFacts(data.reader, data.background)
