"""Every recipe of fine-tuning on its miniature, for two steps; every benchmark prepared and checked."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes import FAKES
from tests.fakes.detection import OBJECTS
from tests.fakes.ready import TINY, ready
from typer.testing import CliRunner

from vitp.backbone.features import AdapterFeatures
from vitp.cli import app
from vitp.commands.datasets import classes_of, datasets
from vitp.commands.evaluate import evaluate
from vitp.commands.finetune import FinetuneConfig, finetune
from vitp.datasets.benchmark_check import check_folder
from vitp.datasets.catalog import BENCHMARKS, benchmark
from vitp.errors import ConfigError, DataError
from vitp.recipes import list_recipes, load_recipe

DENSE = [name for name in FAKES if name not in OBJECTS and name != "ssdd_detection"]


def tiny(name: str, root: Path, out: Path) -> list[str]:
    """Overrides that make a recipe small; everything else stays as it is."""
    config = load_recipe(FinetuneConfig, f"finetune/{name}", ["backbone=x.safetensors"])
    parts = ["features.stem_width=8"] if config.features.kind == "adapter" else []
    parts += [f"head.width={8 if config.head.kind == 'upernet' else 32}"]
    parts += ["augment.fit=null"] if config.augment.fit is not None and name != "loveda" else []
    return [*TINY, "augment.crop=32", "inference.window=64", *parts, f"data.root={root}", f"out={out}"]


def test_every_recipe_has_a_miniature_and_every_benchmark_a_recipe() -> None:
    written = {path.stem for path in list_recipes() if path.parent.name == "finetune"}
    assert written == set(FAKES), "every recipe in recipes/finetune is run on a miniature: add it to tests/fakes"
    others = {"busi", "oam_buildings", "bccd", "nwpu_vhr10", "ssdd_oriented", "dota_example"}
    assert set(FAKES) - set(BENCHMARKS) == others
    for entry in BENCHMARKS.values():
        if entry.colours:
            assert classes_of(entry) == tuple(name for name, _ in entry.colours)
        assert len(classes_of(entry)) == len(set(classes_of(entry)))
    sizes = {name: len(classes_of(entry)) for name, entry in BENCHMARKS.items() if entry.task != "detect"}
    assert sizes == {
        "isaid": 16, "loveda": 7, "uavid": 8, "ssdd": 2, "ade20k": 150, "svcd": 2, "whu_cd": 2, "levir_cd": 2,
        "s2looking": 2, "amos2022": 16, "brats2021": 4, "covid_qu_ex": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_recipe_runs_two_steps_on_its_miniature(name: str, tmp_path: Path) -> None:
    root = ready(name, tmp_path)
    result = finetune(name, tiny(name, root, tmp_path / "out"))
    assert result.train.step == 2
    assert math.isfinite(result.train.loss)
    assert 0 <= result.scores.accuracy <= 1
    if name in ("amos2022", "loveda"):  # volumes, and images shrunk before the model; pairs: tests/test_evaluate.py
        assert evaluate(result.out).numbers["classes"] == result.numbers["classes"]
    if name in BENCHMARKS:
        report = check_folder(benchmark(name), root, threads=1)
        assert report.counts["train"] >= 2
        assert all(" of the " in text and "public set" in text for text in report.missing), report.missing
        assert result.scores.classes == classes_of(benchmark(name))
        assert (result.changed is not None) == (benchmark(name).task == "change")


def test_levir_needs_no_preparation_where_whole_images_are_asked_for(tmp_path: Path) -> None:
    root = FAKES["levir_cd"](tmp_path / "LEVIR-CD")
    text = (Path(__file__).parents[2] / "recipes/finetune/levir_cd.yaml").read_text(encoding="utf-8")
    said = text[text.index("#   vitp finetune levir_cd") :].split("\nname:")[0].replace("\n#", " ")
    overrides = [word for word in shlex.split(said) if "=" in word and not word.startswith("data.root")]
    assert len(overrides) == 12
    result = finetune("levir_cd", [*overrides, *tiny("levir_cd", root, tmp_path / "out")])
    assert result.scores.pixels == 128 * 128  # the whole test image, in windows


# ------------------------------------------------------------------------------------------------ what is missing


def test_a_missing_list_of_levir_is_an_error_not_all_images(tmp_path: Path) -> None:
    root = ready("levir_cd", tmp_path)
    assert check_folder(benchmark("levir_cd"), root).counts == {"train": 32, "val": 16, "test": 16}
    (root / "list/train.txt").unlink()
    report = check_folder(benchmark("levir_cd"), root)
    assert not report.complete
    assert report.missing == (f"the list {root / 'list/train.txt'}, which says what the train images are",)
    with pytest.raises(DataError, match=r"train\.txt: the list does not exist; all images are never meant by that"):
        finetune("levir_cd", tiny("levir_cd", root, tmp_path / "out"))
    shown = CliRunner().invoke(app, ["datasets", "levir-cd", "--root", str(root), "--json"])
    assert shown.exit_code == 2
    assert json.loads(shown.stdout)["missing"] == list(report.missing)


def test_missing_files_are_counted_by_what_they_are(tmp_path: Path) -> None:
    root = FAKES["brats2021"](tmp_path)
    for number in (1, 3):
        (root / f"BraTS2021_{number:05}/BraTS2021_{number:05}_seg.nii.gz").unlink()
    (root / "BraTS2021_00002/BraTS2021_00002_t1ce.nii.gz").unlink()
    label, sequence = check_folder(benchmark("brats2021"), root).missing
    assert label.startswith("the label of 2 of 5 images; the first: ")
    assert "BraTS2021_00001_seg.nii.gz does not exist" in label
    assert sequence.startswith("the sequence of 1 of 5 images")


def test_a_part_a_class_and_images_may_be_missing(tmp_path: Path) -> None:
    root = FAKES["svcd"](tmp_path / "svcd")
    for file in (root / "val").rglob("*.jpg"):
        file.unlink()
    (missing,) = check_folder(benchmark("svcd"), root).missing
    assert missing.startswith("all val images: nothing matches")
    covid = FAKES["covid_qu_ex"](tmp_path / "covid")
    (covid / "Test/COVID-19/images/covid-19_test.png").unlink()
    missing = "\n".join(check_folder(benchmark("covid_qu_ex"), covid).missing)
    assert "no test label shows infection" in missing
    assert "test has 2 of the 1,166 images of the public set" in missing


def test_labels_of_another_set_and_wrong_folders_are_told_in_a_sentence(tmp_path: Path) -> None:
    root = FAKES["loveda"](tmp_path / "loveda")
    label = root / "Val/Urban/masks_png/4.png"
    label.write_bytes((FAKES["ade20k"](tmp_path / "ade") / "annotations/training/ADE_train_00000001.png").read_bytes())
    (missing,) = check_folder(benchmark("loveda"), root).missing
    assert "4.png" in missing
    assert "pixel value 8 is no class (known values: 0, 1, 2, 3, 4, 5, 6, 7)" in missing
    (missing,) = check_folder(benchmark("loveda"), tmp_path / "nowhere").missing
    assert missing == f"{tmp_path / 'nowhere'}: there is no such folder"
    source = FAKES["uavid"](tmp_path / "uavid")
    first, hint = check_folder(benchmark("uavid"), source).missing
    assert "no image matches" in first
    assert "vitp prepare uavid SOURCE data/uavid" in hint


def test_catalog_lists_and_shows_every_entry() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["datasets"])
    assert listed.exit_code == 0
    for entry in BENCHMARKS.values():
        assert entry.title in listed.stdout
        assert entry.paper in listed.stdout
        shown = runner.invoke(app, ["datasets", entry.name])
        for fact in (entry.licence, entry.obtain, entry.preparation, entry.splits, *entry.layout, *entry.notes):
            assert fact in shown.stdout, (entry.name, fact)
        assert all(name in shown.stdout for name in classes_of(entry))
    asked = json.loads(runner.invoke(app, ["datasets", "--json"]).stdout)["datasets"]
    assert [entry["name"] for entry in asked] == list(BENCHMARKS)
    assert benchmark("LEVIR-CD") is benchmark("levir") is BENCHMARKS["levir_cd"]
    with pytest.raises(ConfigError, match="'s' is no data set of the catalog"):  # ssdd, svcd, s2looking
        benchmark("s")
    code = "import sys; from vitp.commands.datasets import datasets; datasets('uavid').lines(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ConfigError, match="did you mean 'isaid'"):
        benchmark("isiad")
    with pytest.raises(ConfigError, match="--root needs the name"):
        datasets(None, Path("data"))


# Released configurations: steps, batch over 8 GPUs, rate of the head, decay over layers, weight decay, crop
RELEASED = {
    "isaid": (80_000, 16, 1.5e-5, 0.9, 0.05, 896),
    "loveda": (80_000, 8, 1e-5, 0.9, 0.1, 512),
    "uavid": (80_000, 8, 1e-5, 0.9, 0.05, 768),
    "levir_cd": (80_000, 32, 1e-4, 0.9, 0.05, 256),
    "s2looking": (120_000, 8, 2e-5, 0.9, 0.05, 512),
    "svcd": (120_000, 32, 2e-5, 0.94, 0.05, 256),
    "whu_cd": (120_000, 32, 2e-5, 0.9, 0.05, 256),
}


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_hold_the_released_numbers(name: str) -> None:
    c = load_recipe(FinetuneConfig, f"finetune/{name}", ["backbone=x.safetensors"])
    found = (c.steps, c.batch_size, c.head_lr, c.layer_decay, c.weight_decay, c.augment.crop)
    assert found == RELEASED[name]
    assert (c.clip_norm, c.features.kind, c.head.kind, c.loss.average) == (0, "adapter", "upernet", "all")
    assert isinstance(c.features, AdapterFeatures)
    assert c.features.variant == ("fallback" if c.task == "change" else "compiled")
    if name == "svcd":  # 39 layers: the ViT's last layer has 0.94^16 of the rate, its embeddings 0.94^40
        assert c.backbone_lr * 0.94 == pytest.approx(2e-5 * 0.94**16, rel=1e-3)
        assert c.backbone_lr * 0.94**25 == pytest.approx(2e-5 * 0.94**40, rel=1e-3)
    else:
        assert c.backbone_lr == c.head_lr


def test_the_documented_table_is_the_catalog() -> None:
    text = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 8}
    assert list(rows) == list(BENCHMARKS)
    for name, row in rows.items():
        entry = benchmark(name)
        facts = [entry.title, entry.licence, entry.paper, f"| {len(classes_of(entry))} |"]
        facts += [f"{count:,} {part}" for part, count in entry.counts.items() if count is not None]
        facts += [f"]({entry.page})"] if entry.page is not None else []
        assert all(fact in row for fact in facts), (name, [fact for fact in facts if fact not in row])
        assert ("`vitp prepare`" in row) == entry.needs_preparation
