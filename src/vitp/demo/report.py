"""The demo's HTML report: what was learned, how it looks, what it is worth, and how to go on with one's own data."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp.commands.pretrain import load_run
from vitp.datasets.dense import open_dataset
from vitp.datasets.masks import MaskFolder
from vitp.datasets.pairs import PairFolder
from vitp.demo.classes import CLASSES, PALETTE
from vitp.demo.phrases import LAYOUT
from vitp.demo.recipes import change_config, finetune_config
from vitp.demo.run import ARMS, CHANGE_ARMS, TITLES, Outcome
from vitp.images.decode import read_rgb
from vitp.instruction.source import Source
from vitp.report.html import (
    BarChart,
    BarSeries,
    Commands,
    Curve,
    Dialogue,
    DialogueItem,
    Facts,
    ImageGrid,
    LineChart,
    Picture,
    Section,
    Table,
    Text,
    overlay,
    write_report,
)
from vitp.tasks.segment import load_change, load_segmenter, predict_masks
from vitp.train.trackers import read_log
from vitp.vlm.generate import Question, answer

_PICTURES = 6
_QUESTIONS = 8
_CHANGED = 0.02  # share of a pair's pixels from which its changes are worth a picture
_FOUND, _MISSED, _FALSE = (0, 158, 115), (213, 94, 0), (86, 180, 233)  # Okabe and Ito's: for all eyes


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).contiguous().numpy()


def _dialogue(outcome: Outcome) -> Dialogue:
    """Questions about test scenes, mostly for a map, answered by the model pretrained with VRL."""
    model, tokenizer, config = load_run(outcome.out / "vitp")
    root = outcome.out / "scenes" / "labelled" / "test"
    source = Source(config.data.sources[0].model_copy(update={"root": root}))
    items: list[tuple[Tensor, str, str]] = []
    for index in range(min(len(source), _QUESTIONS)):
        sample = source.sample(index)
        pairs = [(sample.turns[i].text, sample.turns[i + 1].text) for i in range(0, len(sample.turns) - 1, 2)]
        maps = [pair for pair in pairs if pair[0].removeprefix("<image>").strip() in LAYOUT]
        question, expected = (maps or pairs)[0] if index % 4 else pairs[index % len(pairs)]  # mostly what it was taught
        image = read_rgb(source.image_file(sample.images[0]))
        items.append((image, question.replace("<image>", "").strip(), expected))
    given = answer(
        model, tokenizer, [Question(i, q) for i, q, _ in items], tiling=config.data.tiling, max_new_tokens=80
    )
    rows = [
        DialogueItem(
            picture=Picture(_pixels(image), alt="overhead scene"),
            question=question,
            expected=expected,
            answer=reply,
            correct=reply == expected if len(expected) < 24 else None,
        )
        for (image, question, expected), reply in zip(items, given, strict=True)
    ]
    return Dialogue(
        "What the model answers",
        rows,
        caption="Greedy answers about scenes it never saw. Nearly all it was taught is to map a scene in words; "
        "long answers are not judged, since they have many right forms.",
    )


def _masks(outcome: Outcome) -> ImageGrid:
    """Test scenes, their masks, and what each arm's first fine-tuning seed makes of them."""
    recipe = finetune_config(
        outcome.config, outcome.out / "scenes" / "labelled", outcome.exported["vitp"].weights, outcome.out / "x", 0
    )
    data = open_dataset(recipe.data)
    assert isinstance(data, MaskFolder)
    chosen = data.test[:: max(1, len(data.test) // _PICTURES)][:_PICTURES]
    palette = [(int(r), int(g), int(b)) for r, g, b in PALETTE]
    rows = []
    images = [data.read(i) for i in chosen]
    predicted = {}
    for arm in ARMS:
        model, window = load_segmenter(outcome.tuned[arm][0].model)
        predicted[arm] = list(predict_masks(model, [image for image, _ in images], window))
    for k, (image, mask) in enumerate(images):
        pixels = _pixels(image)
        row = [Picture(pixels, alt="test scene"), Picture(overlay(pixels, mask.numpy(), palette), alt="true classes")]
        for arm in ARMS:
            painted = overlay(pixels, predicted[arm][k].numpy(), palette)
            row.append(Picture(painted, alt=f"classes predicted from {TITLES[arm]}"))
        rows.append(row)
    legend = ", ".join(CLASSES)
    return ImageGrid(
        "Few-shot segmentation, side by side",
        rows,
        column_titles=["scene", "truth", *(TITLES[arm] for arm in ARMS)],
        caption=f"Fine-tuned on {outcome.config.labelled_scenes} labelled scenes. Classes: {legend}.",
    )


def _changes(outcome: Outcome, numbers: dict[str, Any]) -> list[Section]:
    """F1 of the changes from both starts, and pairs with what the first seed of each finds in them."""
    config = outcome.config
    seeds = numbers["change_f1_seeds"]
    rows: list[list[str | float | int]] = [
        [TITLES[arm], *(f"{value:.1f}" for value in seeds[arm]), f"{statistics.fmean(seeds[arm]):.1f}"]
        for arm in CHANGE_ARMS
    ]
    table = Table(
        "Change detection",
        ["backbone", *(f"seed {seed}" for seed in config.finetune_seeds), "mean F1 of the changes, %"],
        rows,
        caption=(
            f"Two dates of one place; what was built or removed between them is to be found, not other light, seasons, cars "
            f"or crops. Learned from {config.pairs} pairs in {config.change_steps} steps, tested on {config.test_pairs}. Gain "
            f"{numbers['change_f1_gain']:+.1f} points, 95 % interval ± {numbers['change_f1_gain_ci95']:.1f} over three seeds."
        ),
        highlight_row=1,
    )
    return [table, _pairs(outcome)]


def _pairs(outcome: Outcome) -> ImageGrid:
    """Test pairs with changes: both dates, truth, and what is right and wrong from either start."""
    recipe = change_config(
        outcome.config, outcome.out / "scenes" / "pairs", outcome.exported["vitp"].weights, outcome.out / "x", 0
    )
    data = open_dataset(recipe.data)
    assert isinstance(data, PairFolder)
    changed = [i for i in data.test if float((data.read(i)[2] == 1).float().mean()) > _CHANGED]
    chosen = (changed or data.test)[:: max(1, len(changed) // _PICTURES)][:_PICTURES]
    models = {arm: load_change(outcome.changes[arm][0].model) for arm in CHANGE_ARMS}
    rows = []
    for index in chosen:
        before, after, mask = data.read(index)
        truth, second = mask.numpy() == 1, _pixels(after)
        grey = np.repeat(second.mean(2, keepdims=True), 3, 2).astype(np.uint8)
        row = [Picture(_pixels(before), alt="first date"), Picture(second, alt="second date")]
        row.append(Picture(overlay(grey, np.where(truth, 0, -1), [_FOUND], 0.75), alt="true changes"))
        found = {
            arm: next(predict_masks(model, [torch.cat([before, after])], window)).numpy() == 1
            for arm, (model, window) in models.items()
        }
        for arm in CHANGE_ARMS:
            kinds = np.where(truth, np.where(found[arm], 0, 1), np.where(found[arm], 2, -1))
            row.append(
                Picture(overlay(grey, kinds, [_FOUND, _MISSED, _FALSE], 0.75), alt=f"changes found from {TITLES[arm]}")
            )
        rows.append(row)
    return ImageGrid(
        "What changed, pair by pair",
        rows,
        ["before", "after", "truth", *(TITLES[arm] for arm in CHANGE_ARMS)],
        caption="Test pairs with changes, first seed: found changes are green, missed ones orange, false alarms blue.",
    )


def _comparison(outcome: Outcome, numbers: dict[str, Any]) -> Table:
    rows: list[list[str | float | int]] = []
    for arm in ARMS:
        miou = numbers["miou_seeds"][arm]
        probes, knn = outcome.probes[arm].linear, outcome.probes[arm].knn
        rows.append(
            [
                TITLES[arm],
                f"{statistics.fmean(miou):.1f} ± {statistics.stdev(miou):.1f}",
                f"{100 * statistics.fmean(probes):.1f} ± {100 * statistics.stdev(probes):.1f}",
                f"{100 * statistics.fmean(knn):.1f}",
            ]
        )
    return Table(
        "The comparison",
        ["backbone", "few-shot mIoU, %", "linear probe, %", "kNN, %"],
        rows,
        caption=(
            f"Mean ± standard deviation over three seeds. Gain of ViTP over random weights in mIoU: "
            f"{numbers['miou_gain']:+.1f} points, 95 % interval ± {numbers['miou_gain_ci95']:.1f} "
            f"(paired by fine-tuning seed; each pretraining was run once). "
            f"Segmentation learns from {outcome.config.labelled_scenes} labelled scenes and is tested on "
            f"{outcome.config.test_scenes}; the probe tells {len(outcome.probes['vitp'].classes)} themes apart from "
            f"{outcome.probes['vitp'].train_images} labels."
        ),
        highlight_row=2,
    )


def _curves(outcome: Outcome) -> list[Section]:
    charts: list[Section] = []
    curves, grads = [], []
    for arm in ("vitp", "vitp_no_vrl"):
        log = read_log(outcome.out / arm)
        steps = [line["step"] for line in log]
        curves.append(Curve(TITLES[arm], steps, [line["loss"] for line in log]))
        grads.append(Curve(TITLES[arm], steps, [line["grad_norm"] for line in log]))
    charts.append(
        LineChart(
            "Pretraining loss",
            "step",
            "loss per answer",
            curves,
            caption=f"The first {outcome.config.warm_steps} steps are text only: they warm up a language model that "
            "starts from nothing. With VRL the loss is higher because three quarters of the visual tokens are missing; "
            "a lower training loss does not mean better features.",
        )
    )
    charts.append(LineChart("Gradient norm", "step", "norm before clipping", grads, log_y=True))
    return charts


def _throughput(outcome: Outcome, numbers: dict[str, Any]) -> list[Section]:
    counts = {arm: r.train.counts for arm, r in outcome.pretrained.items()}
    rows: list[list[str | float | int]] = [
        [
            TITLES[arm],
            f"{counts[arm]['samples'] / outcome.pretrained[arm].train.seconds:.0f}",
            f"{counts[arm]['lm_tokens'] / counts[arm]['samples']:.0f}",
            f"{1 - counts[arm]['visual_kept'] / counts[arm]['visual_tokens']:.0%}",
            f"{outcome.pretrained[arm].train.skipped}",
        ]
        for arm in ("vitp_no_vrl", "vitp")
    ]
    spent = sorted(outcome.stages.items(), key=lambda item: -item[1])
    return [
        Table(
            "Throughput",
            ["pretraining", "samples/s", "language-model tokens a sample", "visual tokens dropped", "samples skipped"],
            rows,
            caption="On this machine, text-only warm-up included. Dropped tokens are neither projected nor attended.",
        ),
        BarChart(
            "Where the time went", "seconds", [k for k, _ in spent], [BarSeries("seconds", [v for _, v in spent])]
        ),
    ]


def write_demo_report(outcome: Outcome, numbers: dict[str, Any]) -> Path:
    """Write ``report.html`` into the demo's folder; returns its path."""
    with torch.no_grad():
        dialogue, masks, changes = _dialogue(outcome), _masks(outcome), _changes(outcome, numbers)
    gain = f"{numbers['miou_gain']:+.1f} ± {numbers['miou_gain_ci95']:.1f}"
    opened = outcome.exported["vitp"]
    sections: list[Section] = [
        Facts(
            [
                ("mIoU gained over random weights, points", gain),
                ("linear probe, random → ViTP", f"{numbers['probe_random']:.0f} → {numbers['probe_vitp']:.0f} %"),
                (
                    "F1 of changes, random → ViTP",
                    f"{numbers['change_f1_scratch']:.0f} → {numbers['change_f1_vitp']:.0f} %",
                ),
                ("pretraining", f"{numbers['samples_per_s']:.0f} samples/s"),
                ("the whole demo", f"{numbers['seconds'] / 60:.1f} min"),
            ]
        ),
        Text(
            "What happened",
            [
                f"{outcome.config.mapped_scenes + outcome.config.asked_scenes} procedural overhead scenes were drawn, "
                f"with questions and answers about each: {outcome.config.mapped_scenes} of them ask for a coarse map in "
                f"words, {outcome.config.asked_scenes} for captions, counts, comparisons, boxes and more. A small vision "
                "transformer was put inside a vision-language model and the whole was trained end to end on the answers: "
                "visual instruction pretraining. With Visual Robustness Learning (VRL) three quarters of the visual "
                "tokens of every sample are dropped before the language model.",
                "Then the transformer was taken out, opened with timm, and put to work on scenes it had never seen: "
                "frozen, with a linear classifier, fine-tuned for segmentation on a few labelled scenes, and fine-tuned to "
                "tell what changed between two dates. "
                "The same transformer with random weights is the yardstick.",
            ],
        ),
        _comparison(outcome, numbers),
        masks,
        *changes,
        dialogue,
        *_curves(outcome),
        *_throughput(outcome, numbers),
        Commands(
            "Go on with your own data",
            [
                ("vitp check my_recipe.yaml", "what is wrong with the data: file, line and the fix"),
                ("vitp pretrain my_recipe.yaml data.sources.0.root=/my/images", "instruction data in"),
                ("vitp export out/my_recipe --to timm backbone.safetensors", "domain backbone out"),
                ("vitp finetune oam_buildings data.root=/my/masks backbone=backbone.safetensors", "the task after"),
                (opened.command, "the backbone of this demo in plain timm"),
            ],
        ),
    ]
    return write_report(
        outcome.out / "report.html",
        "Visual instruction pretraining, in a few minutes",
        f"vitp demo, seed {outcome.config.seed}, procedural scenes of {outcome.config.size} pixels",
        sections,
    )
