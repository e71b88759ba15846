"""Scoring a detector: find the objects of every image of a part, compare, report."""

from __future__ import annotations

from typing import Any

from vitp.commands.finetune import DetectConfig
from vitp.commands.scoring import Asked, asked_indices, asked_recipe, read_ahead, viewed
from vitp.datasets.detection import open_detection
from vitp.errors import ConfigError
from vitp.files import write_json
from vitp.inference.views import FLIPS
from vitp.metrics.detection import detection_scores
from vitp.metrics.detection_report import class_table, text_table, write_detection_report
from vitp.tasks.detect import Shown, finder_of, load_detector
from vitp.train.loop_config import choose_device, uses_bf16


def evaluate_detect(asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Score a model of objects; returns its numbers and the table of classes.

    Raises:
        ConfigError: the recipe is of another task, or its classes are not the model's.
        DataError: the part is empty, or a file cannot be used.
        CheckpointError: the model cannot be opened.
        OutputError: the results cannot be written.
    """
    config = asked_recipe(asked)
    if not isinstance(config, DetectConfig):
        raise ConfigError(f"{asked.recipe}: has task: {config.task}, and {asked.model} finds objects (task: detect)")
    model, _ = load_detector(asked.model)
    data = open_detection(config.data)
    indices = asked_indices(asked, data, config.data.root, model.classes)
    device = choose_device(config.device)
    inference = viewed(config.inference, asked.tta)
    views = len(inference.scales) * len(FLIPS[inference.flips])
    said = f", {views} views of each" if views > 1 else ""
    asked.say(f"evaluate: {len(indices)} {asked.split} images of {config.data.root}{said}")
    metric = detection_scores(model.classes, model.form, model.masks)
    shown = Shown(augment=config.augment, inference=inference)
    finder = finder_of(model.to(device).eval(), shown, bf16=uses_bf16(config.precision, device))
    for done, (index, (image, objects)) in enumerate(read_ahead(data.read, indices), 1):
        metric.update(str(data.items[index].image), finder.find_in(image), objects, (image.shape[-2], image.shape[-1]))
        asked.progress(done, len(indices))
    scores = metric.scores()
    numbers: dict[str, Any] = {
        "model": str(asked.model),
        "data": str(config.data.root),
        "split": asked.split,
        "inference": inference.model_dump(mode="json"),
        **scores.as_dict(),
    }
    write_json(asked.metrics, numbers)
    write_detection_report(
        asked.report, f"{config.name}, {asked.split} images", f"{scores.images:,} images, {model.form} boxes", metric
    )
    name, value = scores.main
    return numbers, [*text_table(class_table(scores)), f"{name} {100 * value:.2f} %"]
