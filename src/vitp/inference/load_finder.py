"""A detector's run as a `Finder`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitp.backbone.vit import read_metadata
from vitp.inference.config import PredictConfig
from vitp.inference.finder import Finder
from vitp.tasks.detect import finder_of, load_detector
from vitp.train.loop_config import choose_device, uses_bf16

_TWICE = 2  # an image of so many times the side a model was trained at is still seen whole


def is_detector(run: Path) -> bool:
    """Whether a run's folder, or file, holds a detector."""
    file = run / "model.safetensors" if run.is_dir() else run
    return file.is_file() and "detector" in read_metadata(file)


def load_finder(run: Path, config: PredictConfig) -> tuple[Finder, int]:
    """The detector of a run, and the side of windows in the image's pixels.

    What the settings leave open is as the run scored its test images; where DOTA's server, which needs every find, is to score
    them, no threshold is one of 0.

    Raises:
        CheckpointError: missing, damaged, or no detector.
        TrainingError: a GPU was asked for and there is none.
    """
    device = choose_device(config.device)
    model, shown = load_detector(run)
    finder = finder_of(model.to(device).eval(), shown, bf16=uses_bf16(config.precision, device))
    chosen = config.model_fields_set
    finder = replace(
        finder,
        scales=config.scales if "scales" in chosen else finder.scales,
        flips=config.flips if "flips" in chosen else finder.flips,
        merge=finder.merge if config.merge is None else config.merge,
        threshold=_threshold(config, shown.inference.shown_from),
    )
    return finder, finder.window or max(shown.augment.sizes)


def whole_up_to(finder: Finder, config: PredictConfig, side: int) -> int:
    """The longer side up to which an image is seen whole, as test images are scored; 0: in windows, whatever its size."""
    return 0 if config.window is not None or finder.window is not None else _TWICE * side


def _threshold(config: PredictConfig, own: float) -> float:
    if config.threshold is not None:
        return config.threshold
    return 0.0 if config.dota else own
