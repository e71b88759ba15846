"""The kinds of errors one by one, that they add up, what mending them gains; thresholds, curves and tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.boxes.formats import from_xyxy, to_quads
from vitp.boxes.objects import Detections, Objects
from vitp.metrics.detection import DetectionMetric, detection_scores
from vitp.metrics.detection_errors import KINDS, ErrorBreakdown, error_breakdown
from vitp.metrics.detection_report import (
    best_threshold,
    class_table,
    detection_sections,
    error_tables,
    precision_recall,
    size_table,
    text_table,
    threshold_table,
    write_detection_report,
)
from vitp.report.html import Facts

CLASSES = ("plane", "ship", "dam")
SIZE = (200, 200)
Box = tuple[float, float, float, float]


def _metric(
    found: list[tuple[Box, int, float]],
    labelled: list[tuple[Box, int]],
    difficult: tuple[int, ...] = (),
    *,
    form: str = "upright",
) -> DetectionMetric:
    """One image; boxes as corners, turned into rotated ones where asked."""
    boxes = torch.tensor([box for box, _, _ in found]).reshape(-1, 4)
    marked = torch.tensor([box for box, _ in labelled]).reshape(-1, 4)
    hard = torch.zeros(len(labelled), dtype=torch.bool)
    hard[list(difficult)] = True
    objects = Objects(
        marked,
        torch.tensor([label for _, label in labelled], dtype=torch.int64),
        hard,
        torch.zeros(len(labelled), dtype=torch.bool),
        quads=to_quads(from_xyxy(marked)),
    )
    rotated = form == "rotated"
    detections = Detections(
        from_xyxy(boxes) if rotated else boxes,
        torch.tensor([score for _, _, score in found]),
        torch.tensor([label for _, label, _ in found], dtype=torch.int64),
    )
    metric = detection_scores(CLASSES, "rotated" if rotated else "upright")
    metric.update("a", detections, objects, SIZE)
    return metric


def _counts(errors: ErrorBreakdown) -> dict[str, int]:
    shown = {kind: n for kind, n in zip(KINDS, errors.total.kinds, strict=True) if n}
    rest = {name: getattr(errors.total, name) for name in ("found", "ignored", "mistaken", "missed")}
    return shown | {name: n for name, n in rest.items() if n}


PLANE, SHIP = (10.0, 10.0, 50.0, 50.0), (100.0, 100.0, 160.0, 130.0)
NEAR = (30.0, 10.0, 70.0, 50.0)  # IoU 1/3 with PLANE
FAR = (10.0, 150.0, 40.0, 190.0)
TRUTH = [(PLANE, 0), (SHIP, 1)]


@pytest.mark.parametrize("form", ["upright", "rotated"])
@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ([(PLANE, 0, 0.9), (SHIP, 1, 0.8)], {"found": 2}),
        ([(PLANE, 0, 0.9), (PLANE, 0, 0.8)], {"found": 1, "duplicate": 1, "missed": 1}),
        ([(PLANE, 1, 0.9)], {"classification": 1, "mistaken": 1, "missed": 1}),
        ([(PLANE, 1, 0.9), (PLANE, 0, 0.2)], {"classification": 1, "found": 1, "missed": 1}),
        ([(NEAR, 0, 0.9)], {"localisation": 1, "mistaken": 1, "missed": 1}),
        ([(NEAR, 1, 0.9)], {"both": 1, "missed": 2}),
        ([(FAR, 0, 0.9)], {"background": 1, "missed": 2}),
        ([], {"missed": 2}),
    ],
)
def test_each_kind_alone(form: str, found: list[tuple[Box, int, float]], counts: dict[str, int]) -> None:
    metric = _metric(found, TRUTH, form=form)
    assert _counts(error_breakdown(CLASSES, metric.matches())) == counts


def test_a_detection_is_of_the_first_kind_that_fits() -> None:
    """It overlaps an object of its class by 1/3 and one of another class wholly: the class is what is wrong."""
    metric = _metric([(NEAR, 0, 0.9)], [(PLANE, 0), (NEAR, 1)])
    errors = error_breakdown(CLASSES, metric.matches())
    assert _counts(errors) == {"classification": 1, "mistaken": 1, "missed": 1}
    assert [(c.labelled, c.detected, c.count) for c in errors.confusions] == [("ship", "plane", 1)]


def test_difficult_objects_are_neither_found_nor_missed_nor_mistaken() -> None:
    metric = _metric([(PLANE, 0, 0.9), (PLANE, 0, 0.8), (PLANE, 1, 0.7)], TRUTH, difficult=(0,))
    errors = error_breakdown(CLASSES, metric.matches())
    assert _counts(errors) == {"ignored": 2, "background": 1, "missed": 1}
    assert errors.total.objects == 1


def test_counts_are_of_the_detections_above_the_score_and_gains_of_all() -> None:
    found = [(PLANE, 0, 0.9), (SHIP, 1, 0.4), (FAR, 2, 0.3)]
    metric = _metric(found, TRUTH)
    everything, above = (error_breakdown(CLASSES, metric.matches(), least_score=s) for s in (0.0, 0.5))
    assert _counts(everything) == {"found": 2, "background": 1}
    assert _counts(above) == {"found": 1, "missed": 1}
    assert everything.gains == above.gains


@pytest.mark.parametrize("form", ["upright", "rotated"])
def test_gains_are_the_ap_of_the_mended_detections(form: str) -> None:
    """Each kind of error once; mended by hand and scored again."""
    other = (170.0, 20.0, 190.0, 60.0)
    truth = [(PLANE, 0), (SHIP, 1), ((60.0, 10.0, 90.0, 40.0), 2), (other, 1), (FAR, 2)]
    third = truth[2][0]
    found = [
        (PLANE, 1, 0.9),
        (SHIP, 1, 0.8),
        (SHIP, 1, 0.85),
        ((75.0, 10.0, 105.0, 40.0), 2, 0.7),
        ((150.0, 150.0, 180.0, 190.0), 1, 0.95),
        (other, 1, 0.75),
    ]

    def ap(detections: list[tuple[Box, int, float]], objects: list[tuple[Box, int]]) -> float:
        return _metric(detections, objects, form=form).scores().oriented.mean.ap50

    errors = error_breakdown(CLASSES, _metric(found, truth, form=form).matches())
    assert _counts(errors) == {
        "duplicate": 1, "classification": 1, "localisation": 1, "background": 1, "found": 2, "mistaken": 2, "missed": 1
    }  # fmt: skip
    assert errors.ap == pytest.approx(ap(found, truth))
    gains = dict(errors.gains)
    mended = {
        "classification": [(PLANE, 0, 0.9), *found[1:]],
        "localisation": [*found[:3], (third, 2, 0.7), *found[4:]],
        "duplicate": [found[0], *found[2:]],
        "background": [*found[:4], found[5]],
    }
    for kind, detections in mended.items():
        assert errors.ap + gains[kind] == pytest.approx(ap(detections, truth)), kind
        assert gains[kind] > 0, kind
    assert gains["both"] == 0
    assert errors.ap + gains["missed"] == pytest.approx(ap(found, truth[:4]))


def test_a_mended_error_on_a_found_object_takes_its_place_only_if_it_scores_higher() -> None:
    truth = [(PLANE, 0), (SHIP, 1)]
    for score, expected in ((0.9, 1.0), (0.1, 1.0)):
        found = [(PLANE, 1, score), (PLANE, 0, 0.5), (SHIP, 1, 0.95)]
        errors = error_breakdown(CLASSES, _metric(found, truth).matches())
        assert errors.ap + dict(errors.gains)["classification"] == pytest.approx(expected)


def test_a_badly_placed_detection_of_a_difficult_object_is_mended_by_going() -> None:
    found = [(NEAR, 0, 0.9), (SHIP, 0, 0.8)]
    metric = _metric(found, [(PLANE, 0), (SHIP, 0)], difficult=(0,))
    errors = error_breakdown(CLASSES, metric.matches())
    assert _counts(errors) == {"localisation": 1, "found": 1}
    assert errors.ap == pytest.approx(0.5)
    assert dict(errors.gains)["localisation"] == pytest.approx(0.5)


def test_a_class_that_is_missed_altogether_has_nothing_left_to_miss() -> None:
    errors = error_breakdown(CLASSES, _metric([(PLANE, 0, 0.9)], TRUTH).matches())
    assert errors.ap == pytest.approx(0.5)
    assert dict(errors.gains)["missed"] == pytest.approx(0.5)


def _random(seed: int, *, rotated: bool, images: int = 3) -> DetectionMetric:
    rng = np.random.default_rng(seed)
    metric = detection_scores(CLASSES, "rotated" if rotated else "upright")
    for image in range(images):
        objects, detections = int(rng.integers(0, 9)), int(rng.integers(0, 25))
        corner, sides = rng.random((objects, 2)) * 120, 8 + rng.random((objects, 2)) * 60
        boxes = torch.from_numpy(np.concatenate((corner, corner + sides), 1)).float()
        flags = torch.from_numpy(rng.random((2, objects)) < 0.15)
        labelled = Objects(
            boxes, torch.from_numpy(rng.integers(0, 3, objects)), flags[0], flags[1], to_quads(from_xyxy(boxes))
        )
        near = (
            boxes[rng.integers(0, objects, detections)]
            if objects
            else torch.rand(detections, 4) + torch.tensor([0.0, 0, 9, 9])
        )
        found = near + torch.from_numpy(rng.normal(0, 9, (detections, 4))).float()
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
        scores = torch.from_numpy(rng.integers(1, 9, detections) / 9).float()
        labels = torch.from_numpy(rng.integers(0, 3, detections))
        metric.update(f"im{image}", Detections(from_xyxy(found) if rotated else found, scores, labels), labelled, SIZE)
    return metric


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rotated=st.booleans(), least=st.sampled_from([0.0, 0.3, 0.7, 2.0]))
def test_the_numbers_add_up(seed: int, rotated: bool, least: float) -> None:
    metric = _random(seed, rotated=rotated)
    matches = metric.matches()
    errors = error_breakdown(CLASSES, matches, least_score=least)
    for row in (*errors.classes, errors.total):
        assert row.detections == row.found + row.ignored + sum(row.kinds)
        assert row.objects == row.found + row.mistaken + row.missed
        assert min(row.missed, row.mistaken, row.found, row.ignored, *row.kinds) >= 0
    assert errors.total.detections == int((matches.scores >= least).sum())
    assert errors.total.objects == int(matches.counted().sum())
    assert sum(pair.count for pair in errors.confusions) == errors.total.kinds[KINDS.index("classification")]
    assert [name for name, _ in errors.gains] == [*KINDS, "missed"]
    if errors.total.objects:
        scores = metric.scores()
        assert errors.ap == pytest.approx(scores.oriented.mean.ap50, abs=1e-12)
        assert dict(errors.gains)["background"] >= -1e-12
        assert dict(errors.gains)["duplicate"] >= -1e-12
        assert all(errors.ap + gain <= 1 + 1e-12 for _, gain in errors.gains)
    json.dumps(errors.as_dict(), allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_best_threshold_is_best_among_all(seed: int) -> None:
    """Every score is tried as a threshold by dropping what is below it and counting anew."""
    metric = _random(seed, rotated=False, images=2)
    matches = metric.matches()
    found = best_threshold(CLASSES, matches)
    outcome, counted = matches.outcomes(0.5), matches.counted()
    for label, chosen in ((None, found.overall), *((k, row) for k, (_, row) in enumerate(found.classes))):
        own = np.ones(len(outcome), dtype=bool) if label is None else matches.labels == label
        objects = int((counted if label is None else counted & (matches.object_labels == label)).sum())
        best, at = 0.0, math.nan
        for score in sorted(set(matches.scores[own].tolist()), reverse=True):
            kept = outcome[own & (matches.scores >= score)]
            f1 = 2 * int((kept == 1).sum()) / (int((kept >= 0).sum()) + objects) if objects else 0.0
            if f1 > best:
                best, at = f1, score
        if chosen is None:
            assert best == 0
        else:
            assert (chosen.score, chosen.f1) == (at, pytest.approx(best))
            expected = 2 * chosen.precision * chosen.recall / (chosen.precision + chosen.recall)
            assert chosen.f1 == pytest.approx(expected)
    json.dumps(found.as_dict(), allow_nan=False)


def test_curves_start_at_the_best_precision_and_end_in_the_ap() -> None:
    metric = _random(5, rotated=True, images=6)
    charts = precision_recall(CLASSES, metric.matches())
    assert [curve.name for curve in charts[0].curves] == ["IoU 0.5", "IoU 0.75", "IoU 0.9"]
    assert [curve.name for curve in charts[1].curves] == list(CLASSES)
    for drawn, row in zip(charts[1].curves, metric.scores().oriented.per_class, strict=True):
        y = np.array(drawn.y)
        assert len(y) == 101
        assert (np.diff(y) <= 0).all()
        assert np.mean(y) == pytest.approx(row.ap50, abs=0.02)
        assert np.mean(y[::10]) == pytest.approx(row.voc07, abs=1e-12)


def test_tables_for_the_terminal() -> None:
    metric = _metric([(PLANE, 0, 0.9), (FAR, 0, 0.95), (SHIP, 1, 0.5)], TRUTH)
    scores = metric.scores()
    lines = text_table(class_table(scores))
    assert lines[0].split() == ["class", "AP", "AP50", "AP75", "AR", "voc07", "area", "objects", "detections"]
    assert lines[1].split() == ["plane", "50.00", "50.00", "50.00", "100.00", "50.00", "50.00", "1", "2"]
    assert lines[3].split() == ["dam", *["-"] * 6, "0", "0"]
    assert lines[4].split() == ["mean", *["75.00"] * 3, "100.00", "75.00", "75.00", "2", "3"]
    assert len({len(line) for line in lines}) == 1
    assert text_table(size_table(scores))[1].split() == ["plane", "-", "50.00", "-"]
    errors, objects = map(text_table, error_tables(error_breakdown(CLASSES, metric.matches())))
    assert errors[-1].split() == ["all", "3", "2", "0", "0", "0", "0", "0", "1"]
    assert objects[-1].split() == ["all", "2", "2", "0", "0"]
    chosen = text_table(threshold_table(best_threshold(CLASSES, metric.matches())))
    assert chosen[-1].split() == ["all", "0.500", "0.800", "0.667", "1.000"]


@pytest.mark.parametrize("rotated", [False, True])
def test_the_report_is_written_even_where_there_is_nothing(tmp_path: Path, rotated: bool) -> None:
    full, empty = _random(5, rotated=rotated, images=6), detection_scores(CLASSES, "rotated" if rotated else "upright")
    text = write_detection_report(tmp_path / "a.html", "Scores", "test", full).read_text(encoding="utf-8")
    for title in (
        "Scores by class",
        "AP by size",
        "Precision over recall",
        "What each kind of error costs",
        "Score thresholds",
    ):
        assert title in text
    assert "Chosen on these images themselves" in text
    for metric in (empty, _metric([(PLANE, 0, 0.9)], [])):
        assert "Scores by class" in write_detection_report(tmp_path / "b.html", "Scores", "none", metric).read_text()


def test_the_report_says_what_was_left_out_and_uses_the_thresholds_it_is_given() -> None:
    metric = _metric([(PLANE, 0, 0.9), (SHIP, 1, math.nan)], TRUTH)
    titles = [getattr(section, "title", "") for section in detection_sections(metric, metric.scores())]
    assert "Left out" in titles
    chosen = best_threshold(CLASSES, metric.matches())
    assert chosen.overall is not None
    high = replace(chosen, overall=replace(chosen.overall, score=0.95))
    sections = detection_sections(metric, metric.scores(), high)
    assert isinstance(sections[0], Facts)
    table = next(s for s in sections if getattr(s, "title", "") == "Errors by class")
    assert "at least 0.95" in table.caption  # type: ignore[union-attr]
    assert "themselves" not in sections[-1].caption  # type: ignore[union-attr]
