"""Scoring a detector: find the objects of every image of a part, compare, report, and write a submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitp.boxes.objects import Detections
from vitp.commands.finetune_detect import DetectConfig
from vitp.commands.scoring import Asked, asked_indices, asked_recipe, viewed
from vitp.commands.scoring_objects import Origin, score_and_show
from vitp.datasets.detection import DetectionData, open_detection
from vitp.errors import ConfigError, DataError
from vitp.files import write_json
from vitp.metrics.detection_report import best_threshold
from vitp.metrics.dota_submission import Task, is_patch, merge_patches, write_submission
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
    config = asked_recipe(asked)
    if not isinstance(config, DetectConfig):
        raise ConfigError(f"{asked.recipe}: has task: {config.task}, and {asked.model} finds objects (task: detect)")
    model, own = load_detector(asked.model)
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
    inference, origin = _inference(viewed(config.inference, asked.tta), own.inference)
    device = choose_device(config.device)
    views = f", {inference.views} views of each" if inference.views > 1 else ""
    asked.say(f"evaluate: {len(indices)} {asked.split} images of {config.data.root}{views}")
    scored = score_and_show(
        model.to(device),
        data,
        indices,
        Shown(augment=config.augment, inference=inference),
        origin,
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


def _inference(asked: ObjectInference, own: ObjectInference) -> tuple[ObjectInference, Origin]:
    """With the model's own threshold where the recipe has none."""
    if asked.threshold is not None:
        return asked, "set in the recipe"
    if own.threshold is None:
        return asked, "taken where no validation images chose one"
    return asked.model_copy(update={"threshold": own.threshold}), "chosen on the validation images"


class _Submission:
    """What is found, kept until all patches of an image are there."""

    def __init__(self, path: Path, model: Detector, data: DetectionData, indices: Sequence[int]) -> None:
        self._path, self._classes, self._form = path, model.classes, model.form
        self._names = {i: data.items[i].image.name.partition(".")[0] for i in indices}
        self._found: dict[str, Detections] = {}
        known: dict[str, int] = {}
        for index, name in self._names.items():
            image = str(data.items[index].image)
            if not name or len(name.split()) != 1:
                raise DataError("has a blank in its name, which parts the columns of a submission; rename it", image)
            if name in known:
                other = data.items[known[name]].image
                raise DataError(
                    f"has the name of {other}, and a submission tells images by their names; rename it", image
                )
            known[name] = index

    def add(self, seen: Looked) -> None:
        self._found[self._names[seen.index]] = replace(seen.found, masks=None)

    def write(self) -> str:
        """The zip; returns what is in it."""
        patches = {name: found for name, found in self._found.items() if is_patch(name)}
        whole = {name: found for name, found in self._found.items() if name not in patches}
        merged = merge_patches(patches.items(), MERGE[self._form])
        if both := sorted(whole.keys() & merged.keys()):
            raise DataError(
                "is there whole and in patches, and a submission has each image once; leave one out", both[0]
            )
        task: Task = 1 if self._form == "rotated" else 2
        written = write_submission(self._path, {**whole, **merged}.items(), self._classes, task=task)
        from_patches = f" (merged from {len(patches)} patches)" if patches else ""
        return (
            f"submission: {written.lines:,} finds in {written.images} images{from_patches}, task {task}: {self._path}"
        )
