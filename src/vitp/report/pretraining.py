"""The HTML report of a pretraining run, made of the files in its folder alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitp.report.answers import load_picture
from vitp.report.html import (
    Commands,
    Curve,
    Dialogue,
    DialogueItem,
    Facts,
    LineChart,
    Picture,
    Section,
    Table,
    Text,
    write_report,
)
from vitp.tasks.questions import ANSWERS, FOLDER, PREFIX
from vitp.train.trackers import read_evaluations, read_log

Line = Mapping[str, Any]

# Shares: key, its name for people, and a short one for a column. Captions: key, name, and the scale.
_SHARES = (
    ("vqa_exact", "answers right", "right"),
    ("vqa_relaxed", "right within 5 %", "± 5 %"),
    ("grounding_accuracy", "boxes at IoU 0.5", "IoU 0.5"),
    ("grounding_iou", "mean IoU", "IoU"),
    ("grounding_unreadable", "no readable box", "no box"),
)
_CAPTIONS = (("caption_cider", "CIDEr-D", "0 to 10"), ("caption_bleu", "BLEU-4", "0 to 100"))


def write_run_report(out: Path, name: str) -> Path:
    """Write ``report.html`` into a run's folder: losses, scores, sources, answered pictures, warnings.

    Args:
        out: the run's folder.
        name: of the recipe.

    Raises:
        OutputError: the file cannot be written.
    """
    log, evaluations = read_log(out), read_evaluations(out)
    sections: list[Section] = [_facts(log, evaluations), *_warnings(evaluations), *_losses(log, evaluations)]
    if evaluations:
        sections += [*_scores(evaluations), _sources(evaluations), *_answers(out, int(evaluations[-1]["step"]))]
    sections += [_throughput(log), _commands(out)] if log else [_commands(out)]
    steps = int(log[-1]["step"]) if log else 0
    return write_report(out / "report.html", name, f"vitp pretrain, {steps:,} steps done", sections)


def _facts(log: Sequence[Line], evaluations: Sequence[Line]) -> Facts:
    items = []
    if log:
        items.append(("training loss", f"{log[-1]['loss']:.3f}"))
        items.append(("samples a second", f"{log[-1].get('samples_per_s', math.nan):.3g}"))
    if evaluations:
        newest = evaluations[-1]
        items.append(("held-out loss", f"{newest[PREFIX + 'loss']:.3f}"))
        for key, title, _ in _SHARES[:1] + _SHARES[2:3]:
            if PREFIX + key in newest:
                items.append((title, f"{newest[PREFIX + key]:.0%}"))
        if f"{PREFIX}caption_cider" in newest:
            items.append(("caption CIDEr-D", f"{newest[PREFIX + 'caption_cider']:.2f}"))
    return Facts(items)


def _warnings(evaluations: Sequence[Line]) -> Iterator[Section]:
    found = [text for line in evaluations for text in line.get("warnings", [])]
    if found:
        yield Text("Warnings", [text[:1].upper() + text[1:] + "." for text in found])


def _names(evaluations: Sequence[Line]) -> list[str]:
    """The sources asked about, in order."""
    keys = dict.fromkeys(key for line in evaluations for key in line)
    return [key[len(PREFIX) : -len("/loss")] for key in keys if key.endswith("/loss") and key != PREFIX + "loss"]


def _curve(title: str, lines: Sequence[Line], key: str, factor: float = 1.0) -> Curve:
    there = [line for line in lines if key in line]
    return Curve(title, [line["step"] for line in there], [factor * line[key] for line in there])


def _losses(log: Sequence[Line], evaluations: Sequence[Line]) -> Iterator[Section]:
    curves = [_curve("training", log, "loss")] if log else []
    if evaluations:
        curves.append(_curve("held out", evaluations, PREFIX + "loss"))
    if curves:
        yield LineChart("Loss", "step", "loss", curves, caption=_about_losses(evaluations))
    names = _names(evaluations)
    if len(names) > 1:
        by_source = [_curve(name, evaluations, f"{PREFIX}{name}/loss") for name in names]
        yield LineChart("Held-out loss by source", "step", "loss", by_source)


def _about_losses(evaluations: Sequence[Line]) -> str:
    if not evaluations:
        return ""
    return (
        "Held out: the mean over the sources asked about, without augmentation. Training drops visual tokens, the evaluation "
        "usually does not, so that the second may be lower."
    )


def _scores(evaluations: Sequence[Line]) -> Iterator[Section]:
    curves = [_curve(title, evaluations, PREFIX + key, 100.0) for key, title, _ in _SHARES]
    if list(curves[0].y) == list(curves[1].y):  # no numbers among the answers
        del curves[1]
    shown = [curve for curve in curves if curve.x]
    if shown:
        yield LineChart("Answers", "step", "% of the questions", shown)
    for key, title, scale in _CAPTIONS:
        curve = _curve(title, evaluations, PREFIX + key)
        if curve.x:
            yield LineChart(f"Captions: {title}", "step", f"{title}, {scale}", [curve])


def _sources(evaluations: Sequence[Line]) -> Table:
    """One row a source: its newest figures and its best loss."""
    newest = evaluations[-1]
    kinds = [(key, short, 100.0) for key, _, short in _SHARES] + [(key, title, 1.0) for key, title, _ in _CAPTIONS]
    kinds = [kind for kind in kinds if PREFIX + kind[0] in newest]
    rows: list[list[str | float | int]] = []
    for name in _names(evaluations):
        own = f"{PREFIX}{name}/"
        losses = [(float(line[own + "loss"]), int(line["step"])) for line in evaluations if own + "loss" in line]
        row: list[str | float | int] = [name, int(newest.get(own + "questions", 0)), losses[-1][0], *min(losses)]
        row += [factor * newest[own + key] if own + key in newest else "–" for key, _, factor in kinds]
        rows.append(row)
    return Table(
        "Sources",
        ["source", "asked", "loss", "best", "at step", *(title for _, title, _ in kinds)],
        rows,
        caption=f"Greedy answers at step {int(newest['step']):,} to questions that are not trained on. In %: right, the same "
        "or a number within 5 %; boxes with an IoU of 0.5, mean IoU, answers without a box that can be read.",
    )


def _answers(out: Path, step: int) -> Iterator[Section]:
    """The answers chosen to be shown, of one evaluation."""
    folder = out / FOLDER / f"step_{step:08d}"
    file = folder / ANSWERS
    if not file.is_file():
        return
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    several = len({record["source"] for record in records}) > 1
    items = [_item(folder, record, several) for record in records if "shown" in record]
    if items:
        about = "Boxes: green the reference's, orange the answer's. " if any("<" in i.expected for i in items) else ""
        yield Dialogue(
            "What the model answers",
            items,
            caption=f"{about}All {len(records):,} answers are in {FOLDER}/{folder.name}/{ANSWERS}.",
        )


def _item(folder: Path, record: dict[str, Any], several: bool) -> DialogueItem:
    """An answer to show; with the name of its source where there are several."""
    file, references = folder / f"{record['shown']}.png", record["references"]
    label, alt = record["source"] if several else "", ", ".join(record["images"])
    picture = Picture(load_picture(file), alt, label) if file.is_file() else None
    expected = references[0] + (f"  (and {len(references) - 1} further)" if len(references) > 1 else "")
    return DialogueItem(picture, record["question"], expected, record["answer"], record["correct"])


def _throughput(log: Sequence[Line]) -> Section:
    rates = [_curve("samples", log, "samples_per_s")]
    return LineChart(
        "Throughput", "step", "samples a second", rates, caption="Evaluations and checkpoints not counted."
    )


def _commands(out: Path) -> Commands:
    return Commands(
        "Go on",
        [
            (f'vitp ask {out} picture.png "What is in the image?"', "ask this model"),
            (f"vitp export {out} --to timm {out / 'backbone.safetensors'}", "take its backbone out"),
            (f"tensorboard --logdir {out / 'tensorboard'}", "every number of the log"),
        ],
    )
