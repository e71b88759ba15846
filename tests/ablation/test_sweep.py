"""A sweep on miniature data: its points are the runs they stand for, nothing is lost, and the tables say what was found."""

from __future__ import annotations

import csv
import json
import shlex
import statistics
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.datasets.objectsets import coco, note
from tests.minidata import write_data, write_recipe

import vitp
from vitp.ablation.downstream import parse_then
from vitp.ablation.plan import SweepConfig
from vitp.cli import main
from vitp.commands.pretrain import pretrain
from vitp.commands.sweep import SweepResult, commands
from vitp.errors import CheckpointError, ConfigError, DataError, OutputError, VitpError
from vitp.recipes import load_recipe
from vitp.train.checkpoint import list_checkpoints, load_tensors
from vitp.train.trackers import read_log

GRID = ("drop_ratio=0,0.5", "seed=3,4")


def write_classes(root: Path) -> Path:
    """Two classes of plain pictures, for a probe."""
    for name, colour in (("dark", 20), ("light", 220)):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (colour + i, colour, colour - i)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a pretraining recipe, labelled images, a probing and a fine-tuning recipe."""
    folder = tmp_path_factory.mktemp("sweep")
    write_data(folder / "data", 8)
    write_recipe(folder, folder / "data", folder / "base", steps=2, warm_start={"steps": 1, "batch_size": 4})
    classes = write_classes(folder / "classes")
    probing = {"name": "plain", "data": {"format": "folder", "root": str(classes)}, "threads": 1}
    (folder / "plain.yaml").write_text(json.dumps(probing))
    masks = folder / "masks"
    masks.mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 90, 30)).save(masks / f"{i}.png")
        label = Image.new("L", (32, 32), 0)
        label.paste(1, (0, 0, 16, 32))
        label.save(masks / f"{i}_mask.png")
    tuning = {
        "name": "halves", "task": "segment", "steps": 1, "batch_size": 2, "workers": 0, "augment": {"crop": 32},
        "data": {"root": str(masks), "images": "?.png", "masks": "{stem}_mask.png", "classes": ["right", "left"],
                 "test_fraction": 0.5},
    }  # fmt: skip
    (folder / "halves.yaml").write_text(json.dumps(tuning))
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> SweepResult:
    """The grid, with a probe and a fine-tuning at each point."""
    then = [str(place / "plain.yaml"), f"{place / 'halves.yaml'} head_lr=0.002"]
    return vitp.sweep(place / "recipe.yaml", GRID, [f"out={place / 'whole'}"], then=then)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(list_checkpoints(run)[-1] / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())


def test_a_point_is_the_run_that_its_command_makes(place: Path, done: SweepResult) -> None:
    point = place / "whole" / "drop_ratio=0.5,seed=4"
    listed = commands(place / "recipe.yaml", GRID, [f"out={place / 'whole'}"])
    assert len(listed) == 4
    words = shlex.split(next(line for line in listed if line.endswith(f"out={point}")))
    assert words[:2] == ["vitp", "pretrain"]
    pretrain(words[2], [*words[3:], f"out={place / 'single'}"])
    assert same(point, place / "single")
    assert not same(point, place / "whole" / "drop_ratio=0,seed=4")
    assert {o.folder.name for o in done.outcomes} == {Path(shlex.split(x)[-1][4:]).name for x in listed}


def test_the_table_has_means_and_deviations_over_the_seeds(place: Path, done: SweepResult) -> None:
    losses = {
        o.point.name: read_log(o.folder)[-1]["loss"] for o in done.outcomes
    }  # 3 steps: the last tenth is the last
    table = json.loads((place / "whole" / "sweep.json").read_text())["table"]
    assert [row["drop_ratio"] for row in table] == [0, 0.5]
    for row in table:
        pair = [losses[f"drop_ratio={row['drop_ratio']},seed={seed}"] for seed in (3, 4)]
        assert row["loss"]["mean"] == pytest.approx(statistics.fmean(pair))
        assert row["loss"]["sd"] == pytest.approx(statistics.stdev(pair))
        assert row["loss"]["n"] == 2
        for name in ("samples/s", "plain linear", "plain kNN", "halves mIoU"):
            assert row[name]["n"] == 2, name
        assert 0 <= row["plain linear"]["mean"] <= 100
    lines = done.lines()
    assert lines[0].split()[:2] == ["drop_ratio", "loss"]
    assert "plain linear" in lines[0]
    assert len(lines) == 3
    assert all("±" in line for line in lines[1:])


def test_the_files_hold_every_point(place: Path, done: SweepResult) -> None:
    with (place / "whole" / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [(r["drop_ratio"], r["seed"], r["state"]) for r in found] == [
        (ratio, seed, "done") for ratio in ("0", "0.5") for seed in ("3", "4")
    ]
    for row, outcome in zip(found, done.outcomes, strict=True):
        assert float(row["loss"]) == outcome.numbers["loss"]
        stored = json.loads((outcome.folder / "halves.json").read_text())
        assert float(row["halves mIoU"]) == 100 * stored["numbers"]["miou"]
        assert "head_lr: 0.002" in stored["recipe"]
    html = (place / "whole" / "sweep.html").read_text()
    assert "Line chart of plain linear over vrl.drop_ratio" in html
    assert "drop_ratio=0.5,seed=4" in html


def test_a_finished_sweep_is_kept_and_grows(place: Path, done: SweepResult, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def counting(config: object, **keys: object) -> object:
        ran.append(config.folder.name)  # type: ignore[attr-defined]
        return pretrain(config, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr("vitp.ablation.kinds.pretrain", counting)
    monkeypatch.setattr("vitp.ablation.downstream.probe", lambda *_, **__: pytest.fail("probed again"))
    out = place / "whole"
    probe = str(place / "plain.yaml")
    with pytest.raises(OutputError, match="holds a sweep: add --resume"):
        vitp.sweep(place / "recipe.yaml", GRID, [f"out={out}"])
    again = vitp.sweep(out / "sweep.yaml", then=[probe], resume=True)  # the record is a recipe itself
    assert ran == []
    assert [o.state for o in again.outcomes] == ["kept"] * 4
    assert [o.numbers["plain kNN"] for o in again.outcomes] == [o.numbers["plain kNN"] for o in done.outcomes]
    axes = {"drop_ratio": [0, 0.5, 0.9], "seed": [4]}
    more = vitp.sweep(place / "recipe.yaml", axes, [f"out={out}"], resume=True)
    assert ran == ["drop_ratio=0.9,seed=4"]
    assert [o.state for o in more.outcomes] == ["kept", "kept", "done"]
    assert more.outcomes[0].numbers["loss"] == done.outcomes[1].numbers["loss"]


def test_a_changed_recipe_is_refused_before_anything_runs(place: Path, done: SweepResult) -> None:
    before = (place / "whole" / "sweep.json").read_bytes()
    with pytest.raises(CheckpointError, match="made with another recipe .batch_size changed"):
        vitp.sweep(place / "recipe.yaml", GRID, [f"out={place / 'whole'}", "batch_size=3"], resume=True)
    assert (place / "whole" / "sweep.json").read_bytes() == before


class Stop(Exception):
    """The power fails."""


class Watch:
    """Collects what a user sees, and may stop the whole."""

    def __init__(self, stop_at: int = -1) -> None:
        self.seen: list[tuple[int, int, float, float]] = []
        self.stop_at = stop_at

    def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
        self.seen.append((step, steps, logs["point"], logs["points"]))
        if step == self.stop_at:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        pass


def test_an_interrupted_sweep_goes_on_where_it_stopped(place: Path, done: SweepResult, tmp_path: Path) -> None:
    overrides = [f"out={tmp_path / 'cut'}", "checkpoint_every=1"]
    with pytest.raises(KeyboardInterrupt):  # in the second point, after its first step's checkpoint
        vitp.sweep(place / "recipe.yaml", GRID, overrides, progress=Watch(stop_at=5))
    states = [p["state"] for p in json.loads((tmp_path / "cut" / "sweep.json").read_text())["points"]]
    assert states == ["done", "open", "open", "open"]
    watch, said = Watch(), []
    result = vitp.sweep(place / "recipe.yaml", GRID, overrides, resume=True, progress=watch, say=said.append)
    assert [o.state for o in result.outcomes] == ["kept", "done", "done", "done"]
    assert watch.seen[0] == (2, 9, 2, 4)  # its second step, of three times three to do; point 2 of 4
    assert watch.seen[-1] == (9, 9, 4, 4)
    assert "1 of 4 points are finished and kept" in said
    for outcome in done.outcomes:
        assert same(tmp_path / "cut" / outcome.point.name, outcome.folder)


def test_one_failing_point_does_not_lose_the_others(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, out = tmp_path / "missing.safetensors", tmp_path / "out"
    arguments = [
        "pretrain",
        str(place / "recipe.yaml"),
        "--sweep",
        f"tower.weights={missing},null",
        f"out={out}",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["vitp", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert found["failed"] == 1
    assert [p["state"] for p in found["points"]] == ["failed", "done"]
    assert "no such file or folder" in found["points"][0]["error"]
    assert f"{missing}: no such file or folder" in captured.err
    assert "1 failed" in captured.err
    assert "no such file or folder" in (out / "sweep.html").read_text()


def test_a_crash_of_a_point_leaves_its_traceback(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(config: object, **keys: object) -> object:
        if config.seed == 3:  # type: ignore[attr-defined]
            raise RuntimeError("out of memory, say")
        return pretrain(config, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr("vitp.ablation.kinds.pretrain", breaking)
    axes, overrides = ["seed=3,4"], [f"out={tmp_path / 'out'}"]
    result = vitp.sweep(place / "recipe.yaml", axes, overrides)
    assert [o.state for o in result.outcomes] == ["failed", "done"]
    assert "RuntimeError: out of memory, say" in (result.failed[0].error or "")
    assert "in breaking" in (tmp_path / "out" / "seed=3.error.txt").read_text()
    assert len(result.lines()) == 4  # a seed for itself has its own row
    monkeypatch.undo()
    mended = vitp.sweep(place / "recipe.yaml", axes, overrides, resume=True)
    assert [o.state for o in mended.outcomes] == ["done", "kept"]
    assert not (tmp_path / "out" / "seed=3.error.txt").exists()


def test_mistakes_are_told_before_the_first_point(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = place / "recipe.yaml", tmp_path / "out"
    for axes, more, then, kind, said in (
        (["drop_ratio=0,1.5"], [], [], ConfigError, r"point drop_ratio=1.5: .*vrl.drop_ratio: must be less than 1"),
        (["vrl.drop_ration=0,1"], [], [], ConfigError, "did you mean 'drop_ratio'"),
        (["seed=1"], ["data.sources.0.root=/no/such"], [], DataError, "/no/such"),
        (["seed=1"], [], [f"{place / 'plain.yaml'} data.root=/no/such"], DataError, "/no/such"),
        (["seed=1"], [], ["probe/nothing"], ConfigError, "nothing"),
        (["seed=1"], [], [str(recipe)], VitpError, "probing|fine-tuning|unknown key"),
        (["seed=1"], [], ["'"], ConfigError, "quotes"),
        (["ablation/nothing"], [], [], ConfigError, "nothing"),
        ([], [], [], ConfigError, "nothing is varied"),
    ):
        with pytest.raises(kind, match=said):
            vitp.sweep(recipe, axes, [f"out={out}", *more], then=then)
        assert not out.exists()
    with pytest.raises(OutputError, match="not both"):
        vitp.sweep(recipe, ["seed=1"], [f"out={out}"], resume=True, overwrite=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(VitpError, match="--list prints their commands"):
        vitp.sweep(recipe, ["seed=1"], [f"out={out}"])


def test_foreign_folders_are_left_alone(place: Path, done: SweepResult, tmp_path: Path) -> None:
    recipe = place / "recipe.yaml"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="not written by a sweep"):
        vitp.sweep(recipe, ["seed=1"], [f"out={tmp_path / 'mine'}"], overwrite=True)
    with pytest.raises(OutputError, match="holds a single run"):
        vitp.sweep(recipe, ["seed=1"], [f"out={done.outcomes[0].folder}"], resume=True)
    with pytest.raises(OutputError, match="was not written by vitp"):
        pretrain(recipe, [f"out={place / 'whole'}"], overwrite=True)
    out = tmp_path / "own"
    vitp.sweep(recipe, ["seed=1"], [f"out={out}"])
    (out / "notes.txt").write_text("x")
    vitp.sweep(recipe, ["seed=2"], [f"out={out}"], overwrite=True)
    assert sorted(item.name for item in out.iterdir() if item.is_dir()) == ["seed=2"]
    assert (out / "notes.txt").exists()


def test_an_ablation_recipe_gives_its_axes_to_another_recipe(place: Path) -> None:
    own = load_recipe(SweepConfig, "ablation/drop_ratio")
    listed = commands(place / "recipe.yaml", ["ablation/drop_ratio", "seed=0,1"], ["steps=7"])
    assert len(listed) == 2 * len(own.sweep[0].split(","))
    assert all(str(place / "recipe.yaml") in line and "steps=7" in line for line in listed)
    assert not any("steps=400" in line for line in listed)  # those overrides are for its own recipe
    large = commands("remote_sensing", ["ablation/frozen"])
    assert len(large) == 4
    with pytest.raises(ConfigError, match="nothing is varied"):
        load_recipe(SweepConfig, "ablation/drop_ratio", ["sweep=[]"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": "rotated", "detector": {"kind": "oriented_rcnn"}}, "rotated boxes come from quads"),
        ({"detector": {"kind": "mask_rcnn"}}, "mask_rcnn learns from outlines"),
        ({"augment": {"size": 32, "rectangular": ["shp"]}}, "augment.rectangular: 'shp' is no class .* 'ship'"),
    ],
)
def test_labels_that_a_detector_cannot_learn_are_told_before_pretraining(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    coco(tmp_path, [note(i, i, [1, 1, 5, 5]) for i in (1, 2, 3)])
    data = {"kind": "coco", "root": str(tmp_path), "images": "images/*.png", "labels": "labels.json"}
    recipe = {"name": "objects", "task": "detect", "steps": 1, "data": {**data, "test_images": "images/c.png"}}
    (tmp_path / "objects.yaml").write_text(json.dumps({**recipe, **change}))
    (then,) = parse_then([str(tmp_path / "objects.yaml")])
    with pytest.raises(ConfigError, match=message):
        then.check(tmp_path / "out")
