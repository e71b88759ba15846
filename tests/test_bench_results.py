"""The runs of `bench.results`: records are found again, whichever version of the bench wrote them, and splits follow the seed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from bench import results
from bench.detect_sets import DETECT_SETS, DetectSet, cut_patches
from bench.results import Arm, Bench

from tests.fakes import FAKES
from vitp.config import dump
from vitp.files import write_json
from vitp.progress import Console

RANDOM = Arm("random", None, "full")


def entry_of(name: str) -> DetectSet:
    return next(entry for entry in DETECT_SETS if entry.name == name)


def bench_in(folder: Path) -> Bench:
    return Bench(folder / "data", folder / "out.v1", 10, results._PLAIN, Console())


@dataclass
class Forbidden:
    """Stands for what must not run."""

    calls: list[Any] = field(default_factory=list)

    def __call__(self, *args: object, **more: object) -> None:
        raise AssertionError("a finished run was repeated")


def test_a_finished_detection_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, entry = bench_in(tmp_path), entry_of("ssdd_rotated")
    config = bench.config(entry, RANDOM, 1)
    record = tmp_path / "out.v1/runs/ssdd_rotated/random_full_1.json"
    record.parent.mkdir(parents=True)
    write_json(record, {"made_by": {"recipe": dump(config), "weights": None}, "scores": {"mAP_voc07": 0.5}})
    monkeypatch.setattr(results, "finetune", Forbidden())
    assert bench.run(entry, RANDOM, 1) == {"mAP_voc07": 0.5}
    with pytest.raises(AssertionError, match="repeated"):
        replace(bench, steps=11).run(entry, RANDOM, 1)


def test_arms_whose_names_have_dots_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, entry = bench_in(tmp_path), entry_of("ssdd_rotated")
    weights = tmp_path / "w.safetensors"
    weights.touch()
    arm = Arm("v1.2", str(weights), "full")
    config = bench.config(entry, arm, 0)
    made_by = {"recipe": dump(config), "weights": list(results.file_state(weights))}
    record = tmp_path / "out.v1/runs/ssdd_rotated/v1.2_full_0.json"
    record.parent.mkdir(parents=True)
    write_json(record, {"made_by": made_by, "scores": {"mAP_voc07": 0.25}})
    monkeypatch.setattr(results, "finetune", Forbidden())
    assert bench.run(entry, arm, 0) == {"mAP_voc07": 0.25}


def test_the_seed_draws_the_split_where_one_is_drawn(tmp_path: Path) -> None:
    bench = bench_in(tmp_path)
    seeds = {name: bench.config(entry_of(name), RANDOM, 2).data.split_seed for name in ("bccd", "ssdd_masks")}
    assert seeds == {"bccd": 2, "ssdd_masks": 0}  # SSDD's own test images are named


def test_an_interrupted_cut_is_continued(tmp_path: Path) -> None:
    FAKES["dota_v1"](tmp_path / "data/dota")
    entry = DetectSet("cut", "dota", "dota_example", "mAP_voc07", (), (64, 12))
    folder = cut_patches(entry, tmp_path / "data", tmp_path / "out")
    whole = sorted(folder.rglob("*"))
    shutil.rmtree(folder / "val")
    assert cut_patches(entry, tmp_path / "data", tmp_path / "out") == folder
    assert sorted(folder.rglob("*")) == whole
