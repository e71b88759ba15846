"""Every shipped recipe loads, says what it is, and names only keys that exist; the bench of the README too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vitp.commands.finetune import FinetuneConfig
from vitp.commands.pretrain import PretrainConfig
from vitp.commands.probe import ProbeConfig
from vitp.config import Config, dump, load
from vitp.errors import ConfigError
from vitp.recipes import find_recipe, list_recipes, load_recipe, summary

KINDS: dict[str, type[Config]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "probe": ProbeConfig}
RECIPES = list_recipes()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_loads_and_has_its_header(path: Path) -> None:
    kind = KINDS[path.parent.name]
    overrides = [] if path.parent.name == "pretrain" else ["backbone=backbone.safetensors"]
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
