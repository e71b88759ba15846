"""The whole demo at miniature size: every stage runs, the numbers are there, the report stands alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from vitp.backbone.vit import load_backbone
from vitp.demo.recipes import DemoConfig, for_minutes
from vitp.demo.run import interval, run_demo
from vitp.demo.scenes import THEMES
from vitp.errors import OutputError

SMALL = DemoConfig(
    size=48,
    mapped_scenes=20,
    asked_scenes=4,
    probe_scenes=8 * len(THEMES),
    test_scenes=8,
    labelled_scenes=6,
    steps=3,
    batch_size=6,
    warm_steps=2,
    finetune_steps=2,
    pairs=8,
    test_pairs=8,
    change_steps=2,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    run_demo(folder, config=SMALL)
    return folder


def test_numbers_hold_what_json_promises(out: Path) -> None:
    numbers = json.loads((out / "numbers.json").read_text())
    for key in (
        "miou_scratch",
        "miou_vitp_no_vrl",
        "miou_vitp",
        "probe_random",
        "probe_vitp",
        "change_f1_scratch",
        "change_f1_vitp",
        "change_f1_gain_ci95",
        "seconds",
        "samples_per_s",
    ):
        assert math.isfinite(numbers[key]), key
    seeds = numbers["miou_seeds"]
    assert all(len(values) == 3 for values in seeds.values())
    gains = [a - b for a, b in zip(seeds["vitp"], seeds["scratch"], strict=True)]
    assert numbers["miou_gain"] == pytest.approx(sum(gains) / 3, abs=0.02)


def test_report_is_one_file_with_everything_in_it(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']https?:""", text)
    for title in (
        "The comparison",
        "Few-shot segmentation",
        "Change detection",
        "What changed, pair by pair",
        "What the model answers",
        "Pretraining loss",
        "Throughput",
    ):
        assert title in text
    assert text.count("data:image/png") >= 6 * 5 + 3 * 6
    assert "vitp export" in text


def test_arms_share_everything_but_what_is_compared(out: Path) -> None:
    logs = {arm: (out / arm / "log.jsonl").read_text().splitlines() for arm in ("vitp", "vitp_no_vrl")}
    first = {arm: json.loads(lines[0]) for arm, lines in logs.items()}
    assert first["vitp"]["loss"] == first["vitp_no_vrl"]["loss"]  # text-only steps are the same steps
    assert json.loads(logs["vitp"][-1])["dropped_share"] == 0.75
    assert json.loads(logs["vitp_no_vrl"][-1])["dropped_share"] == 0.0
    sizes = {arm: sum(p.numel() for p in load_backbone(out / f"{arm}.safetensors").parameters()) for arm in logs}
    assert sizes["vitp"] == sizes["vitp_no_vrl"]


def test_a_second_demo_does_not_overwrite_the_first(out: Path) -> None:
    with pytest.raises(OutputError, match="--overwrite"):
        run_demo(out, config=SMALL)


def test_time_scales_the_work() -> None:
    assert for_minutes(1, 0).steps < for_minutes(5, 0).steps < for_minutes(20, 0).steps
    assert for_minutes(5, 0) == DemoConfig(seed=0)


def test_interval_is_students() -> None:
    """Three values 1, 2, 3: mean 2, deviation 1, half-width 4.303 / sqrt(3)."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(2.4841, abs=1e-3)
