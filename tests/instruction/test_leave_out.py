"""``data.without``: sources left out by name, or by what they say of themselves."""

from __future__ import annotations

import pytest

from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.config import dump, load
from vitp.errors import ConfigError
from vitp.recipes import load_recipe


def names(without: str, recipe: str = "remote_sensing", *more: str) -> set[str]:
    config = load_recipe(PretrainConfig, recipe, [f"data.without={without}", *more])
    assert config.data.without == ()
    return {source.name for source in config.data.sources}


def test_sources_go_by_name_modality_task_or_domain() -> None:
    every = names("[]")
    assert every - names("[VHM, RSVG]") == {"VHM", "RSVG"}
    assert every - names("[SAR]") == {"ISPRS_SAR", "SAR_Sentinel-1&2"}
    assert every - names("[grounding]") == {"GeoChat", "VRSBench", "RSVG", "DIOR-RSVG"}  # Table 10's tasks VG
    assert every - names("[general]") == {"Mini-InternVL"}
    assert names("[domain]") == {"Mini-InternVL"}  # a domain that is the default counts too
    assert every - names("[sar, GAIA]") == {"ISPRS_SAR", "SAR_Sentinel-1&2", "GAIA"}


def test_a_name_wins_over_a_kind_and_numbers_are_those_of_the_whole_list() -> None:
    left = names("[SAR]", "remote_sensing", "data.sources.0.name=SAR")
    assert "ISPRS_SAR" in left
    assert "SAR" not in left
    config = load_recipe(PretrainConfig, "remote_sensing", ["data.without=[general]", "data.sources.1.weight=7"])
    assert config.data.sources[0].name == "RSVQA"
    assert config.data.sources[0].weight == 7


def test_what_is_left_is_what_a_run_saves(tmp_path: object) -> None:
    config = load_recipe(PretrainConfig, "remote_sensing", ["data.without=[SAR]"])
    (file := tmp_path / "recipe.yaml").write_text(dump(config), encoding="utf-8")  # type: ignore[operator]
    assert load(PretrainConfig, file) == config


def test_what_fits_nothing_or_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="without: 'SRA' is no source .Mini-InternVL, .* modality, task or domain"):
        names("[SRA]")
    with pytest.raises(ConfigError, match="without: leaves no source"):
        names("[domain, general]")
    with pytest.raises(ConfigError, match="without: 'SAR' is no source .rsicd. .*classification"):
        names("[SAR]", "tiny_rsicd")
