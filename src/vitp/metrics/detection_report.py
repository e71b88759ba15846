"""What is shown of a detector's scores: tables for the terminal and the HTML report, curves, and where to cut scores off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vitp.metrics.detection import SCORES, DetectionMetric, DetectionScores
from vitp.metrics.detection_errors import ErrorBreakdown, error_breakdown
from vitp.metrics.matching import HIT, IGNORED, Flags, Floats, Integers, Matches
from vitp.metrics.oriented import curve, envelope
from vitp.report.charts import STYLES, Curve, LineChart
from vitp.report.html import BarChart, BarSeries, Facts, Section, Table, Text, write_report

Row = list[str | float | int]

RECALLS = np.linspace(0, 1, 101)  # COCO's recall points
_CURVES = (0.5, 0.75, 0.9)  # IoUs of the mean curves
_SHORT = ("dupl.", "classif.", "local.", "both", "backgr.")  # KINDS, so that the table fits a page


@dataclass(frozen=True)
class ScoreThreshold:
    """Detections with a score of at least `score` are kept; NaN where none is, or no object is there."""

    score: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ScoreThresholds:
    """Of a validation set; None where no object is found, or none is there."""

    iou: float
    overall: ScoreThreshold | None  # one for all classes, detections and objects pooled
    classes: tuple[tuple[str, ScoreThreshold | None], ...]
    origin: str | None = None  # of a score that was given; None: those with the highest F1

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        rows = {name: _plain_numbers(found) for name, found in self.classes}
        return {"iou": self.iou, "overall": _plain_numbers(self.overall), "classes": rows}


def best_threshold(classes: Sequence[str], matches: Matches, iou: float = 0.5) -> ScoreThresholds:
    """The score threshold with the highest F1, for each class and for all together; of equal ones the highest.

    Choose it on images that no score is reported of: on the test set it flatters.

    Args:
        classes: names by class id.
        matches: of the validation set (`DetectionMetric.matches()`).
        iou: overlap from which an object counts as found.
    """
    outcome = matches.outcomes(iou)
    kept = outcome != IGNORED
    overall = _best(outcome[kept] == HIT, matches.scores[kept], int(matches.counted().sum()))
    rows = tuple((name, _best(*curve(matches, label, iou))) for label, name in enumerate(classes))
    return ScoreThresholds(iou, overall, rows)


def at_score(classes: Sequence[str], matches: Matches, score: float, origin: str, iou: float = 0.5) -> ScoreThresholds:
    """What one score threshold, chosen elsewhere, is worth on these images, by class and of all together.

    Args:
        classes: names by class id.
        matches: of the images (`DetectionMetric.matches()`).
        score: the threshold.
        origin: where it comes from, in words.
        iou: overlap from which an object counts as found.
    """
    outcome = matches.outcomes(iou)
    kept = outcome != IGNORED
    overall = _at(outcome[kept] == HIT, matches.scores[kept], int(matches.counted().sum()), score)
    rows = tuple((name, _at(*curve(matches, label, iou), score)) for label, name in enumerate(classes))
    return ScoreThresholds(iou, overall, rows, origin)


def class_table(scores: DetectionScores) -> Table:
    """Scores of boxes by class in per cent, the mean last."""
    upright = scores.form == "upright"
    shown = ["AP", "AP50", "AP75", "AR", "mAP_voc07", *(["mAP_area"] if upright else [])]
    if upright:
        kind = "AP, AP50, AP75 and AR: COCO; voc07 and area: mAP at IoU 0.5, VOC's 11 points and area under the curve"
    else:
        kind = "AP: area under the curve, IoU 0.50 to 0.95, exact rotated IoU; voc07: mAP at IoU 0.5, VOC's 11 points"
    return _score_table(scores, "Scores by class", shown, kind)


def mask_table(scores: DetectionScores) -> Table:
    """COCO's scores of masks by class in per cent, the mean last."""
    return _score_table(scores, "Mask scores by class", ["mask_AP", "mask_AP50", "mask_AP75"], "COCO's, of masks")


def size_table(scores: DetectionScores) -> Table:
    """AP by the size of objects in per cent, by class, the mean last."""
    rows: list[Row] = [
        [row.name, *map(_percent, (row.ap_small, row.ap_medium, row.ap_large))]
        for row in (*scores.classes, scores.mean)
    ]
    return Table(
        title="AP by size",
        columns=["class", "small", "medium", "large"],
        rows=rows,
        caption="Per cent, IoU 0.50 to 0.95; small: below 32 × 32 pixels, large: from 96 × 96. A dash: no such object.",
        highlight_row=len(rows) - 1,
    )


def error_tables(errors: ErrorBreakdown) -> list[Table]:
    """Detections by kind of error, and what became of the objects; by class, all classes last."""
    every = (*errors.classes, errors.total)
    detections: list[Row] = [[row.name, row.detections, row.found, row.ignored, *row.kinds] for row in every]
    objects: list[Row] = [[row.name, row.objects, row.found, row.mistaken, row.missed] for row in every]
    last = len(every) - 1
    above = f"Of detections with a score of at least {errors.least_score:.3g}"
    return [
        Table(
            title="Errors by class",
            columns=["class", "detections", "found", "ignored", *_SHORT],
            rows=detections,
            caption=f"{above}, in order: duplicate, classification, localisation, both, background. Detections = found +"
            f" ignored + the five kinds. Right place: IoU at least {errors.found_iou:g}; localisation and both: at least"
            f" {errors.near_iou:g}.",
            highlight_row=last,
        ),
        Table(
            title="Objects found and missed",
            columns=["class", "objects", "found", "mistaken", "missed"],
            rows=objects,
            caption=f"{above}. Objects = found + mistaken + missed; mistaken: not found, but a detection of another class"
            " or in a wrong place points at it.",
            highlight_row=last,
        ),
    ]


def threshold_table(thresholds: ScoreThresholds) -> Table:
    """The thresholds with the highest F1, all classes together last."""
    rows: list[Row] = [
        [name, *((math.nan,) * 4 if found is None else (found.score, found.f1, found.precision, found.recall))]
        for name, found in (*thresholds.classes, ("all", thresholds.overall))
    ]
    worth = "Where F1 is highest"
    if thresholds.origin is not None and thresholds.overall is not None:
        worth = f"A score of {thresholds.overall.score:.3g}, {thresholds.origin}: what it is worth on these images"
    return Table(
        title="Score thresholds",
        columns=["class", "score", "F1", "precision", "recall"],
        rows=rows,
        caption=f"{worth} at IoU {thresholds.iou:g}: detections with at least this score are kept.",
        highlight_row=len(rows) - 1,
    )


def text_table(table: Table) -> list[str]:
    """A table as lines for a terminal, numbers to the right."""
    cells = list(zip(*(_column(column) for column in zip(*table.rows, strict=True)), strict=True))
    widths = [max(map(len, column)) for column in zip(table.columns, *cells, strict=True)]
    right = [any(isinstance(row[i], int | float) for row in table.rows) for i in range(len(widths))]
    return [
        "  ".join(
            text.rjust(width) if aside else text.ljust(width)
            for text, width, aside in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in ([str(name) for name in table.columns], *cells)
    ]


def precision_recall(classes: Sequence[str], matches: Matches) -> list[LineChart]:
    """Precision over recall: the mean over classes at three IoUs, then the classes at IoU 0.5, six a chart.

    Precision is the highest at that recall or any higher one, at COCO's 101 recalls; 0 where recall is not reached.
    """
    asked = [k for k in range(len(classes)) if ((matches.object_labels == k) & matches.counted()).any()]
    if not asked:
        return []
    means = [
        Curve(f"IoU {iou:g}", RECALLS.tolist(), np.mean([_interpolated(matches, k, iou) for k in asked], 0).tolist())
        for iou in _CURVES
    ]
    charts = [
        LineChart("Precision over recall, mean over classes", "recall", "precision", means, caption=_CURVE_CAPTION)
    ]
    groups = [asked[k : k + STYLES] for k in range(0, len(asked), STYLES)] if len(asked) > 1 else []
    for number, group in enumerate(groups, 1):
        part = f" ({number} of {len(groups)})" if len(groups) > 1 else ""
        curves = [Curve(classes[k], RECALLS.tolist(), _interpolated(matches, k, 0.5).tolist()) for k in group]
        charts.append(LineChart(f"Precision over recall by class, IoU 0.5{part}", "recall", "precision", curves))
    return charts


def detection_sections(
    metric: DetectionMetric, scores: DetectionScores, thresholds: ScoreThresholds | None = None
) -> list[Section]:
    """All of it for an HTML report.

    Args:
        metric: what was gathered.
        scores: `metric.scores()`.
        thresholds: chosen on a validation set (`at_score`), or None: of these images themselves, and the report says so.
    """
    matches = metric.matches()
    used = best_threshold(metric.classes, matches) if thresholds is None else thresholds
    least = 0.0 if used.overall is None else used.overall.score
    errors = error_breakdown(metric.classes, matches, least_score=least)
    name, value = scores.main
    facts = [(name, _plain(value)), ("AP50", _plain(scores.mean.ap50)), ("AP75", _plain(scores.mean.ap75))]
    if _has_masks(scores):
        facts.append(("mask AP", _plain(scores.mean.mask_ap)))
    counts = [("images", scores.images), ("objects", scores.mean.objects), ("detections", scores.mean.detections)]
    sections: list[Section] = [Facts([*facts, *((what, f"{count:,}") for what, count in counts)])]
    if scores.dropped:
        note = f"{scores.dropped:,} detections hold a number that is not finite and were left out."
        sections.append(Text("Left out", [note]))
    sections.append(class_table(scores))
    if _has_masks(scores):
        sections.append(mask_table(scores))
    sections += [size_table(scores), *precision_recall(metric.classes, matches)]
    if not math.isnan(errors.ap):
        sections += [_gain_chart(errors), *error_tables(errors)]
    if errors.confusions:
        sections.append(_confusion_table(errors))
    chosen = threshold_table(used)
    if thresholds is None:
        note = " Chosen on these images themselves: for use, choose it on a validation set."
        chosen = replace(chosen, caption=chosen.caption + note)
    return [*sections, chosen]


def write_detection_report(path: Path, title: str, subtitle: str, metric: DetectionMetric) -> Path:
    """Write the HTML report of what a metric gathered; returns its path.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_report(path, title, subtitle, detection_sections(metric, metric.scores()))


_CURVE_CAPTION = (
    "Highest precision at that recall or any higher one, at 101 recalls; 0 where the recall is not reached."
)


def _best(hits: Flags, scores: Floats, objects: int) -> ScoreThreshold | None:
    if not objects or not hits.any():
        return None
    found: Integers = np.cumsum(hits, dtype=np.int64)
    kept = np.arange(1, len(hits) + 1)
    f1 = 2 * found / (kept + objects)
    ends = np.append(scores[1:] != scores[:-1], True)  # equal scores are kept or dropped together
    at = int(np.where(ends, f1, -1.0).argmax())
    return ScoreThreshold(float(scores[at]), float(f1[at]), float(found[at] / kept[at]), float(found[at] / objects))


def _at(hits: Flags, scores: Floats, objects: int, score: float) -> ScoreThreshold:
    kept = scores >= score
    found, count = int(hits[kept].sum()), int(kept.sum())
    return ScoreThreshold(
        score,
        f1=2 * found / (count + objects) if objects else math.nan,
        precision=found / count if count else math.nan,
        recall=found / objects if objects else math.nan,
    )


def _plain_numbers(found: ScoreThreshold | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    return {name: None if math.isnan(value) else value for name, value in asdict(found).items()}


def _interpolated(matches: Matches, label: int, iou: float) -> Floats:
    hits, _, objects = curve(matches, label, iou)
    found: Integers = np.cumsum(hits, dtype=np.int64)
    at = np.searchsorted(found * 100, np.arange(101) * objects)
    return np.append(envelope(found), 0.0)[at]


def _gain_chart(errors: ErrorBreakdown) -> BarChart:
    names, values = zip(*errors.gains, strict=True)
    return BarChart(
        title="What each kind of error costs",
        y_label="points of AP",
        groups=names,
        series=[BarSeries("gain", [100 * value for value in values])],
        caption=f"Rise of AP at IoU {errors.found_iou:g} (now {_plain(errors.ap)}) if this kind alone were mended; the"
        " gains do not add up, as kinds hide one another.",
    )


def _confusion_table(errors: ErrorBreakdown) -> Table:
    rows: list[Row] = [[pair.labelled, pair.detected, pair.count] for pair in errors.confusions[:12]]
    return Table("Classes taken for others", ["labelled", "detected as", "detections"], rows, "The most frequent ones.")


def _has_masks(scores: DetectionScores) -> bool:
    return scores.coco is not None and scores.coco.masks is not None


def _score_table(scores: DetectionScores, title: str, shown: Sequence[str], kind: str) -> Table:
    rows: list[Row] = [
        [row.name, *(_percent(getattr(row, SCORES[name])) for name in shown), row.objects, row.detections]
        for row in (*scores.classes, scores.mean)
    ]
    return Table(
        title=title,
        columns=[
            "class",
            *(name.removeprefix("mask_").removeprefix("mAP_") for name in shown),
            "objects",
            "detections",
        ],
        rows=rows,
        caption=f"Per cent. {kind}. The mean is over the classes that have objects; a dash: no such object.",
        highlight_row=len(rows) - 1,
    )


def _percent(value: float) -> float:
    return round(100 * value, 2)


def _plain(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _column(values: Sequence[str | float | int]) -> list[str]:
    """Texts of a column: two decimals of what is in per cent, three of shares."""
    real = [abs(value) for value in values if isinstance(value, float) and not math.isnan(value)]
    digits = 2 if max(real, default=0.0) > 1 else 3
    return [_cell(value, digits) for value in values]


def _cell(value: str | float | int, digits: int) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else value
