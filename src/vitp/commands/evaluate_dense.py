"""Scoring a segmenter or a change detector: predict every image of a part, count, report."""

from __future__ import annotations

from typing import Any

import torch

from vitp.commands.finetune import FinetuneConfig
from vitp.commands.scoring import Asked, asked_indices, asked_recipe, viewed
from vitp.commands.scoring_masks import score_and_show
from vitp.datasets.dense import open_dataset
from vitp.errors import ConfigError, OutputError
from vitp.files import write_json
from vitp.tasks.segment import load_dense
from vitp.train.loop_config import choose_device, uses_bf16


def evaluate_dense(asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Score a model of masks; returns its numbers and the table of classes.

    Raises:
        ConfigError: the recipe is of another task, or its classes are not the model's.
        DataError: the part is empty, or a file cannot be used.
        CheckpointError: the model cannot be opened.
        OutputError: the results cannot be written.
    """
    if asked.submission is not None:
        raise OutputError("--submission is what DOTA's server takes of a detector; `vitp predict` writes masks")
    config = asked_recipe(asked)
    if not isinstance(config, FinetuneConfig):
        raise ConfigError(f"{asked.recipe}: has task: {config.task}, and {asked.model} maps pixels (segment, change)")
    model, _ = load_dense(asked.model)
    data = open_dataset(config.data)
    pairs = data.config.kind == "pairs"
    if pairs != (model.dates > 1):
        found = ("pairs", "single images") if pairs else ("single images", "pairs")
        raise ConfigError(f"{asked.recipe}: its data are {found[0]}, and {asked.model} takes {found[1]}")
    indices = asked_indices(asked, data, config.data.root, model.classes)
    device = choose_device(config.device)
    inference = viewed(config.inference, asked.tta)
    asked.say(
        f"evaluate: {len(indices)} {asked.split} images of {config.data.root}, "
        + (f"{inference.views} views of each, " if inference.views > 1 else "")
        + (f"windows of {inference.window}" if inference.window else "each at once")
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(config.precision, device)):
        scored = score_and_show(
            model.to(device), data, indices, inference, pictures=asked.pictures, progress=asked.progress
        )
    scores = scored.scores
    if scores.absent:
        asked.say(f"scores: {', '.join(scores.absent)} occur in neither labels nor predictions; left out of the means")
    numbers: dict[str, Any] = {
        "model": str(asked.model),
        "data": str(config.data.root),
        "split": asked.split,
        "images": len(indices),
        "inference": inference.model_dump(mode="json"),
        **scores.as_dict(),
        **({"f1_changed": scores.changed} if model.dates > 1 and scores.changed is not None else {}),
        "confusion": scored.metric.matrix.tolist(),
    }
    write_json(asked.metrics, numbers)
    scored.write(asked.report, f"{config.name}, {asked.split} images", config.data.background)
    return numbers, scored.lines()
