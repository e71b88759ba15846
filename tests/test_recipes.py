"""Every shipped recipe loads, says what it is, and names only keys that exist; the bench of the README too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitp.ablation.plan import SweepConfig
from vitp.cli import app
from vitp.commands.finetune import recipe_kind
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.commands.probe import ProbeConfig
from vitp.commands.recipes import describe, listing, show
from vitp.config import Config, dump, load
from vitp.errors import ConfigError
from vitp.instruction.source import SourceConfig
from vitp.recipes import find_recipe, list_recipes, load_recipe, summary

KINDS: dict[str, type[Config]] = {
    "ablation": SweepConfig,
    "pretrain": PretrainConfig,
    "probe": ProbeConfig,
}
RECIPES = list_recipes()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_loads_and_has_its_header(path: Path) -> None:
    kind = recipe_kind(path) if path.parent.name == "finetune" else KINDS[path.parent.name]
    overrides = [] if path.parent.name in ("pretrain", "ablation") else ["backbone=backbone.safetensors"]
    config = load_recipe(kind, path, overrides)
    assert dump(config)
    text = path.read_text(encoding="utf-8")
    assert len(summary(path)) > 20
    for word in ("What", "Hardware", "Time", "Expect", "Command"):
        assert re.search(rf"^# {word} +\S", text, re.MULTILINE), f"{path.name}: header lacks '{word}'"
    assert "/work" not in text


def test_recipes_are_found_by_name_and_path() -> None:
    assert RECIPES
    for path in RECIPES:
        for name in (f"{path.parent.name}/{path.stem}", f"recipes/{path.parent.name}/{path.stem}.yaml"):
            assert find_recipe(name) == path
    assert find_recipe("tiny_rsicd") is not None
    assert find_recipe("nothing") is None


def test_misspelt_recipe_is_named_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "tiny_rsicd.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match="tiny_rsicd"):
        load(PretrainConfig, tmp_path / "tiny_rsci.yaml", [], find=find_recipe)


def test_a_built_recipe_is_handed_back_and_takes_no_overrides() -> None:
    built = load_recipe(PretrainConfig, "pretrain/tiny_rsicd")
    assert load_recipe(PretrainConfig, built) is built
    with pytest.raises(ConfigError, match="steps=3: overrides are for recipe files"):
        load_recipe(PretrainConfig, built, ["steps=3"])


# Sources, samples in all, and samples of an epoch as the released loader counts them (rates below 1 rounded down).
# Released: the published JSON files; paper: Tables 9-11, sizes in thousands as printed there.
MIXTURES = {
    "general": (9, 2_062_000, 1_124_800),
    "general_released": (8, 1_023_375, 1_023_375),
    "remote_sensing": (13, 2_972_000, 995_320),
    "remote_sensing_released": (36, 3_523_492, 1_088_702),
    "medical": (10, 5_533_000, 1_055_230),
    "medical_released": (20, 5_163_098, 1_048_143),
}


def mixture(name: str) -> list[SourceConfig]:
    return load_recipe(PretrainConfig, name).data.sources


def epoch(sources: list[SourceConfig]) -> int:
    return sum(int((s.samples or 0) * s.weight + 1e-9) for s in sources)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_have_the_published_totals(name: str) -> None:
    sources = mixture(name)
    assert (len(sources), sum(s.samples or 0 for s in sources), epoch(sources)) == MIXTURES[name]
    assert len({s.name for s in sources}) == len(sources)


@pytest.mark.parametrize("name", MIXTURES)
def test_every_source_says_what_it_is_and_where_to_get_it(name: str) -> None:
    for source in mixture(name):
        for fact in (source.modality, source.tasks, source.licence, source.obtain, source.samples):
            assert fact, source.name
        assert source.annotations is not None
    steps = {"general": 16000}.get(name, 8000)
    config = load_recipe(PretrainConfig, name)
    assert (config.steps, config.batch_size, config.lr_tower, config.warmup) == (steps, 128, 2e-5, 0.2)
    assert config.vrl.preset == ("released" if name.endswith("_released") else "paper")
    assert (config.model.tower.architecture, config.model.tower.image_size) == ("vit_intern300m_patch14_448", 448)


@pytest.mark.parametrize(
    ("name", "general", "grounding"),
    [
        ("remote_sensing", 0.042, 0.592),
        ("remote_sensing_released", 0.007, 0.545),
        ("medical", 0.026, 0.0),
        ("medical_released", 0.014, 0.0),
    ],
)
def test_shares_of_general_data_and_of_grounding(name: str, general: float, grounding: float) -> None:
    sources = mixture(name)
    assert epoch([s for s in sources if s.domain == "general"]) / epoch(sources) == pytest.approx(general, abs=5e-4)
    assert epoch([s for s in sources if "grounding" in s.tasks]) / epoch(sources) == pytest.approx(grounding, abs=5e-4)


def test_tiles_and_augmentation_of_the_released_mixtures() -> None:
    remote = {s.name: s for s in mixture("remote_sensing_released")}
    assert {name for name, s in remote.items() if s.augment.jpeg} == {"cls_rgb_METER-ML", "cls_rgb_UCM"}
    small = {"cls_rgb_NWPU-RESISC45", "vqa_panc_dota", "vqa_rgb_LRBEN", "vqa_rgb_SAMRS"}
    assert {name for name, s in remote.items() if s.max_tiles == 6} == small
    for name in ("remote_sensing_released", "medical_released"):
        for source in mixture(name):
            assert source.name in small or source.max_tiles == (None if source.domain == "general" else 12)
    assert load_recipe(PretrainConfig, "medical_released").data.tiling.max_tiles == 6


def lay(base: Path, source: SourceConfig) -> None:
    """The files of a source, empty."""
    (base / source.root.relative_to("data")).mkdir(parents=True)
    (base / source.root.relative_to("data") / (source.annotations or "")).touch()


def test_the_list_says_hardware_time_and_what_is_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in mixture("medical")[:3]:
        lay(tmp_path / "data", source)
    (tmp_path / "data" / "busi").mkdir()
    listed = {recipe.name: recipe for recipe in listing().recipes}
    assert set(listed) == {f"{path.parent.name}/{path.stem}" for path in RECIPES}
    medical = listed["pretrain/medical"]
    assert (medical.present, len(medical.sources)) == (3, 10)
    assert medical.hardware.startswith("8 x A40")
    assert listed["pretrain/general_released"].data() == "0 of 8 sources here"
    assert listed["finetune/busi"].data() == "data here"
    assert "no folder data/rsicd_128" in listed["pretrain/tiny_rsicd"].data()
    text = "\n".join(listing().lines())
    assert "3 of 10 sources here" in text
    assert {recipe.present for recipe in listing(tmp_path / "nowhere").recipes} == {0}
    elsewhere = {recipe.name: recipe.present for recipe in listing(tmp_path / "data").recipes}
    assert elsewhere["pretrain/medical"] == 3
    asked = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)["recipes"]
    assert [(r["name"], r["sources_present"]) for r in asked] == [(r.name, r.present) for r in listing().recipes]


def test_one_recipe_is_shown_with_every_source(tmp_path: Path) -> None:
    sources = mixture("remote_sensing_released")
    lay(tmp_path, sources[6])
    (tmp_path / sources[7].root.name).mkdir()  # images without annotations
    detail = describe("remote_sensing_released", ["data.sources.8.weight=4"], base=tmp_path)
    states = [s.state for s in detail.recipe.sources]
    assert states[6] == "here"
    assert states[7] == f"no file {tmp_path / 'vrsbench_train' / 'vrsbench_train.jsonl'}"
    assert states.count("here") == detail.recipe.present == 1
    assert detail.epoch is not None
    assert detail.epoch - epoch(sources) + 6 * 5505 in range(20)  # rsvg_train at 4 instead of 10; rounding
    lines = detail.lines()
    text = "\n".join(lines)
    for source in sources:
        assert sum(source.name in line.split() for line in lines) == 1
        assert f"{source.samples:,}" in text
        assert source.licence is not None
        assert source.licence in text
        assert source.obtain is not None
        assert source.obtain in text
    assert "Hardware  8 x A40" in text
    assert lines[-1].startswith("1 of 36 sources here, 3,523,492 samples, ")
    shown = CliRunner().invoke(app, ["recipes", "remote_sensing_released", "--base", str(tmp_path), "--json"])
    found = json.loads(shown.stdout)
    assert (found["sources_present"], found["sources_total"]) == (1, 36)
    assert found["sources"][1]["obtain"] == sources[1].obtain


def test_other_recipes_and_a_users_own_are_shown_too(tmp_path: Path) -> None:
    busi = "\n".join(describe("busi").lines())
    assert "Command   vitp finetune" in busi
    own = tmp_path / "own.yaml"
    shipped = find_recipe("tiny_rsicd")
    assert shipped is not None
    own.write_text(shipped.read_text(encoding="utf-8").replace("# Expect", "# Hope"), encoding="utf-8")
    detail = describe(str(own))
    assert detail.recipe.expect == ""
    assert detail.epoch is None  # its size is not stated
    assert "rsicd" in "\n".join(detail.lines())
    with pytest.raises(ConfigError, match="only pretraining recipes are shown with overrides"):
        describe("busi", ["data.root=x"])
    with pytest.raises(ConfigError, match="no_such_recipe does not exist"):
        describe("no_such_recipe")
    with pytest.raises(ConfigError, match="did you mean 'weight'"):
        describe("tiny_rsicd", ["data.sources.0.wieght=2"])
    with pytest.raises(ConfigError, match="takes no recipe, got 'busi'"):
        show("busi", from_meta=tmp_path / "x.json")


def test_listing_needs_no_torch() -> None:
    code = "import sys; from vitp.commands.recipes import listing; listing(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("finetune/bcd", "finetune/bccd"), ("tiny_rsic", "tiny_rsicd"), ("BCCD", "bccd"), ("bccd.yml", "bccd")],
)
def test_misspelt_shipped_recipes_get_a_suggestion(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        load_recipe(PretrainConfig, typed)


def test_a_missing_file_beside_others_is_no_shipped_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"did you mean mine\.yaml"):
        load_recipe(PretrainConfig, tmp_path / "mime.yaml")
