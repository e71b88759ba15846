"""Scoring a detector: find the objects of every image of a part, compare, report, and write a submission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitp.boxes.objects import Detections
from vitp.commands.finetune_detect import DetectConfig
from vitp.commands.scoring import Asked, asked_indices, asked_recipe, viewed
from vitp.commands.scoring_objects import Origin, score_and_show
from vitp.config import Config
from vitp.datasets.detection import DetectionData, open_detection
from vitp.errors import ConfigError
from vitp.files import write_json
from vitp.metrics.detection_report import best_threshold
from vitp.metrics.dota_submission import image_names, is_patch, scene_finds, scenes_of, task_of, write_submission
from vitp.tasks.detect import MERGE, Detector, Looked, ObjectInference, Shown, load_detector
from vitp.train.loop_config import choose_device, uses_bf16


def evaluate_detect(asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Score a detector; returns its numbers and its tables.

    Raises:
        ConfigError: the recipe is of another task, or its data are not what the model finds.
        DataError: the part is empty, or a file cannot be used; the headers of all images are read before any is looked at.
        CheckpointError: the model cannot be opened.
        OutputError: the results cannot be written.
    """
    model, own = load_detector(asked.model)
    recipe = _recipe(asked)
    # It counts for its data alone: how images are shown lies with the weights.
    config = _recipe(asked, {"augment": own.augment, "inference": own.inference})
    data = open_detection(config.data)
    if model.form == "rotated" and not data.rotated:
        raise ConfigError(
            f"{asked.model} finds rotated boxes, which are scored by quads, and {config.data.root} has upright boxes alone; "
            "take data with quads"
        )
    indices = asked_indices(asked, data, config.data.root, model.classes)
    submission = None if asked.submission is None else _Submission(asked.submission, model, data, indices)
    for line in data.check(parts=(asked.split,)).lines():
        asked.say(f"data: {line}")
    if model.masks and not data.outlined:
        asked.say(f"scores: of boxes alone, as {config.data.root} has no outlines to score masks by")
    inference = viewed(config.inference, asked.tta)
    device = choose_device(config.device)
    views = f", {inference.views} views of each" if inference.views > 1 else ""
    asked.say(f"evaluate: {len(indices)} {asked.split} images of {config.data.root}{views}")
    scored = score_and_show(
        model.to(device),
        data,
        indices,
        Shown(augment=config.augment, inference=inference),
        _origin(inference, own.inference, recipe),
        bf16=uses_bf16(config.precision, device),
        pictures=asked.pictures,
        progress=asked.progress,
        watch=(lambda _: None) if submission is None else submission.add,
    )
    if submission is not None:
        asked.say(submission.write())
    numbers: dict[str, Any] = {
        "model": str(asked.model),
        "data": str(config.data.root),
        "split": asked.split,
        "inference": inference.model_dump(mode="json"),
        **scored.scores.as_dict(),
        "threshold": {"origin": scored.thresholds.origin, **scored.thresholds.as_dict()},
        "best_thresholds": best_threshold(model.classes, scored.metric.matches()).as_dict(),  # on these very images
        "errors": scored.errors.as_dict(),
    }
    write_json(asked.metrics, numbers)
    scored.write(asked.report, f"{config.name}, {asked.split} images")
    return numbers, scored.lines()


def _recipe(asked: Asked, kept: Mapping[str, Config] | None = None) -> DetectConfig:
    config = asked_recipe(asked, kept)
    if not isinstance(config, DetectConfig):
        raise ConfigError(f"{asked.recipe}: has task: {config.task}, and {asked.model} finds objects (task: detect)")
    return config


def _origin(inference: ObjectInference, own: ObjectInference, recipe: DetectConfig) -> Origin:
    """Where the score from which finds are shown comes from."""
    if inference.threshold is None:
        return "taken where no validation images chose one"
    given = recipe.inference.threshold == inference.threshold  # the run's recipe, or an override
    return "set in the recipe" if given or own.threshold is None else "chosen on the validation images"


class _Submission:
    """What is found, kept until all patches of an image are there."""

    def __init__(self, path: Path, model: Detector, data: DetectionData, indices: Sequence[int]) -> None:
        self._path, self._classes, self._form = path, model.classes, model.form
        names = image_names([data.items[i].image for i in indices], model.classes)
        self._names = dict(zip(indices, names, strict=True))
        self._found: dict[str, Detections] = {}

    def add(self, seen: Looked) -> None:
        self._found[self._names[seen.index]] = replace(seen.found, masks=None)

    def write(self) -> str:
        """The zip; returns what is in it."""
        found = (
            (scene, scene_finds(scene, [(name, self._found[name]) for name in names], MERGE[self._form]))
            for scene, names in scenes_of(self._found).items()
        )
        task = task_of(rotated=self._form == "rotated")
        written = write_submission(self._path, found, self._classes, task=task)
        patches = sum(map(is_patch, self._found))
        from_patches = f" (merged from {patches} patches)" if patches else ""
        return (
            f"submission: {written.lines:,} finds in {written.images} images{from_patches}, task {task}: {self._path}"
        )
