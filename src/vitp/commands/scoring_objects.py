"""Finding the objects of some images, counting, and showing: what `vitp finetune` and `vitp evaluate` do with a detector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vitp.datasets.detection import DetectionData
from vitp.metrics.detection import DetectionMetric, DetectionScores
from vitp.metrics.detection_errors import ErrorBreakdown, error_breakdown
from vitp.metrics.detection_report import (
    ScoreThresholds,
    at_score,
    best_threshold,
    class_table,
    detection_sections,
    error_tables,
    mask_table,
    size_table,
    text_table,
)
from vitp.report.gallery import Gallery
from vitp.report.html import Section, Table, write_report
from vitp.report.objects import ShownObjects, draw_objects, judge, object_pictures
from vitp.tasks.detect import UNCHOSEN, Detector, Looked, ObjectInference, Shown, score_objects
from vitp.train.distributed import Ranks

# Where the score from which finds are shown comes from.
Origin = Literal["chosen on the validation images", "set in the recipe", "taken where no validation images chose one"]


@dataclass(frozen=True, eq=False)
class ScoredObjects:
    """What was counted of some images, and a few of them to show."""

    metric: DetectionMetric
    scores: DetectionScores
    thresholds: ScoreThresholds  # of the errors below: the score from which finds are shown, and what it is worth
    errors: ErrorBreakdown
    shown: tuple[ShownObjects, ...]  # most mistakes first

    def class_lines(self) -> list[str]:
        """The classes alone, for people."""
        tables = [class_table(self.scores), *self._masks()]
        return [*_texts(tables), "", *self._main()]

    def lines(self) -> list[str]:
        """Every table, for people."""
        tables = [class_table(self.scores), *self._masks(), size_table(self.scores), *error_tables(self.errors)]
        return [*_texts(tables), "", *self._main()]

    def write(self, path: Path, title: str, more: Sequence[Section] = ()) -> None:
        """The HTML report; `more` stands before its tables.

        Raises:
            OutputError: it cannot be written.
        """
        facts, *tables = detection_sections(self.metric, self.scores, self.thresholds)
        sections = [facts, *more, *tables]
        if self.shown:
            assert self.thresholds.overall is not None
            sections.append(object_pictures(self.shown, self.thresholds.overall.score))
        subtitle = f"{self.scores.mean.objects:,} labelled objects, {len(self.scores.classes)} classes"
        write_report(path, title, f"{subtitle}, {self.scores.form} boxes", sections)

    def _masks(self) -> list[Table]:
        return [mask_table(self.scores)] if self.scores.coco is not None and self.scores.coco.masks is not None else []

    def _main(self) -> list[str]:
        name, value = self.scores.main
        said = "–: no labelled object" if math.isnan(value) else f"{100 * value:.2f} %"
        overall = self.thresholds.overall
        if overall is None or math.isnan(overall.precision) or math.isnan(overall.recall):
            return [f"{name} {said}"]
        return [
            f"from a score of {overall.score:.2f} on ({self.thresholds.origin}): {100 * overall.precision:.0f} % of the finds "
            f"are right, {100 * overall.recall:.0f} % of the objects are found",
            f"{name} {said}",
        ]


def score_and_show(
    model: Detector,
    data: DetectionData,
    indices: Sequence[int],
    shown: Shown,
    origin: Origin,
    *,
    bf16: bool,
    pictures: int,
    progress: Callable[[int, int], None],
    watch: Callable[[Looked], None] = lambda _: None,
    ranks: Ranks = Ranks(),
) -> ScoredObjects:
    """Find the objects of images, compare them with the labels, and keep a few images.

    Args:
        model: on its device.
        data: whose labels fit the model: quads for rotated boxes, the same classes.
        indices: the images.
        shown: how they are shown.
        origin: of `shown.inference.shown_from`.
        bf16: the precision.
        pictures: how many to keep.
        progress: told images done and how many there are.
        watch: told of every image.
        ranks: who share the work; all call this. What rank 0 gets is of all images, what another gets of its own.

    Raises:
        DataError: an image or its labels cannot be used.
    """
    part = ranks.part(len(indices))
    gallery = Gallery[ShownObjects](len(indices), pictures, part.start)
    least, rotated, done = shown.inference.shown_from, model.form == "rotated", 0

    def look(seen: Looked) -> None:
        nonlocal done
        judged = judge(seen.found, seen.objects, model.classes, rotated=rotated, least=least)
        name = data.items[seen.index].image.relative_to(data.config.root).as_posix()
        draw = partial(draw_objects, name, seen.image, seen.objects, judged, model.classes, rotated=rotated)
        gallery.add(judged.wrong, draw, judged.mistakes)
        watch(seen)
        done += 1
        progress(done * len(indices) // len(part), len(indices))

    metric = shared_scores(model, data, indices, shown, ranks, bf16=bf16, masks=data.outlined, watch=look)
    for kept in ranks.collect(gallery)[1:]:
        gallery.merge(kept)
    matches = metric.matches()
    return ScoredObjects(
        metric,
        metric.scores(),
        at_score(model.classes, matches, least, origin),
        error_breakdown(model.classes, matches, least_score=least),
        tuple(gallery.by_wrong),
    )


def shared_scores(
    model: Detector,
    data: DetectionData,
    indices: Sequence[int],
    shown: Shown,
    ranks: Ranks,
    *,
    bf16: bool,
    masks: bool,
    watch: Callable[[Looked], None],
) -> DetectionMetric:
    """`score_objects` with each rank at its part of the images: on rank 0 of all of them."""
    own = [indices[i] for i in ranks.part(len(indices))]
    metric = ranks.together(lambda: score_objects(model, data, own, shown, bf16=bf16, masks=masks, watch=watch))
    for other in ranks.collect(metric)[1:]:
        metric.merge(other)
    return metric


def choose_threshold(
    model: Detector,
    data: DetectionData,
    shown: Shown,
    *,
    bf16: bool,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
    known: DetectionMetric | None = None,
    ranks: Ranks = Ranks(),
) -> tuple[Shown, Origin]:
    """With the score whose F1 is highest on the validation images; as it was where nothing is found on them, or none are.

    All `ranks` call this, share the work and get the same. `known` is what has been counted of all validation images with
    these weights, where somebody has: on rank 0 of all, on the others not None either.
    """
    if shown.inference.threshold is not None:
        return shown, "set in the recipe"
    if not data.val:
        say(
            f"threshold: {UNCHOSEN:g} for showing finds, as there are no validation images to choose it on "
            "(data.val_images, data.val_list or data.val_fraction); scores count every find"
        )
        return shown, "taken where no validation images chose one"
    done = 0

    def count(_: Looked) -> None:
        nonlocal done
        done += 1
        progress(done * len(data.val) // len(ranks.part(len(data.val))), len(data.val))

    metric = known
    if metric is None:
        metric = shared_scores(model, data, data.val, shown, ranks, bf16=bf16, masks=False, watch=count)
    best = ranks.lead(lambda: best_threshold(model.classes, metric.matches()).overall)
    if best is None:
        say(f"threshold: nothing is found on the validation images; {UNCHOSEN:g} for showing finds")
        return shown, "taken where no validation images chose one"
    say(
        f"threshold: from a score of {best.score:.2f} on, {100 * best.precision:.0f} % of the finds on the validation images "
        f"are right and {100 * best.recall:.0f} % of their objects are found"
    )
    return with_inference(shown, shown.inference.model_copy(update={"threshold": best.score})), (
        "chosen on the validation images"
    )


def with_inference(shown: Shown, inference: ObjectInference) -> Shown:
    """The same with another inference."""
    return shown.model_copy(update={"inference": inference})


def _texts(tables: Sequence[Table]) -> list[str]:
    """The tables under their titles, the first without."""
    found: list[str] = []
    for table in tables:
        found += ["", f"{table.title}:"] if found else []
        found += text_table(table)
    return found
