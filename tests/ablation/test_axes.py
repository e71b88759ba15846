"""What a sweep's texts stand for: keys by short names, values as YAML, points with folders of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitp.ablation.axes import axis_of, grid, label_axes, needed, parse_axis, resolve_key, variants_axis
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import ConfigError
from vitp.recipes import load_recipe

TINY = load_recipe(PretrainConfig, "pretrain/tiny_rsicd")
LARGE = load_recipe(PretrainConfig, "pretrain/remote_sensing")


@pytest.mark.parametrize(
    ("short", "path"),
    [
        ("drop_ratio", "vrl.drop_ratio"),
        ("seed", "seed"),
        ("tower.depth", "model.tower.depth"),
        ("language_model.depth", "model.language_model.depth"),
        ("turns", "data.sources.0.turns"),
        ("vrl.anything.at.all", "vrl.anything.at.all"),  # refused where it belongs: when the point's recipe is loaded
    ],
)
def test_a_short_name_stands_for_the_one_key_that_ends_so(short: str, path: str) -> None:
    assert resolve_key(short, TINY) == path


@pytest.mark.parametrize(
    ("config", "short", "said"),
    [
        (
            TINY,
            "depth",
            "2 keys end in 'depth' .model.tower.depth, model.language_model.depth.; write the one you mean",
        ),
        (LARGE, "weight", "13 keys end in 'weight' .data.sources.0.weight, .* and 9 more"),
        (TINY, "lr", "no such key; did you mean lr_tower, lr_projector, lr_language_model"),
        (TINY, "drop_ration", "no such key; did you mean vrl.drop_ratio"),
        (TINY, "zzz", "the recipe has no such key$"),
    ],
)
def test_a_name_that_fits_several_keys_or_none_is_refused_with_the_candidates(
    config: PretrainConfig, short: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_key(short, config)


def test_values_are_yaml() -> None:
    axis = parse_axis("drop_ratio=0,0.5,75e-2", TINY)
    assert [c.value for c in axis.choices] == [0, 0.5, 0.75]
    assert axis.choices[1].overrides == ("vrl.drop_ratio=0.5",)
    assert axis.numeric
    texts = parse_axis("language_model.path=Qwen/Qwen2.5-0.5B,null,'a, b'", TINY)
    assert [c.value for c in texts.choices] == ["Qwen/Qwen2.5-0.5B", None, "a, b"]
    assert not texts.numeric
    nested = parse_axis("betas=[0.9, 0.95],[0.9, 0.999]", TINY)
    assert [c.value for c in nested.choices] == [[0.9, 0.95], [0.9, 0.999]]
    for axis in (texts, nested):  # what is written is what is read
        for choice in axis.choices:
            changed = load_recipe(PretrainConfig, "pretrain/tiny_rsicd", choice.overrides)
            read = changed.betas if axis is nested else changed.model.language_model.path
            assert read == (tuple(choice.value) if axis is nested else choice.value)
    assert [c.value for c in axis_of("tower.weights", [Path("a b/c"), None], TINY).choices] == ["a b/c", None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("drop_ratio", "looks like key=value,value"),
        ("=1,2", "looks like key=value,value"),
        ("drop_ratio=", "no values"),
        ("drop_ratio=0,[", "no list of YAML values"),
        ("drop_ratio=0,,1", "no list of YAML values"),
        ("seed=1,2,1", "1 is given twice"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_axis(text, TINY)


def test_the_grid_has_every_combination_and_a_folder_for_each() -> None:
    axes = label_axes(
        [
            parse_axis("tower.depth=2,4", TINY),
            parse_axis("language_model.depth=1,2", TINY),
            variants_axis("data", {"full": (), "w/o SAR": ("data.without=[SAR]",), "w o SAR": ("steps=3",)}),
        ]
    )
    assert [axis.label for axis in axes] == ["tower.depth", "language_model.depth", "data"]
    points = grid(axes)
    assert len(points) == 12
    assert points[0].name == "tower.depth=2,language_model.depth=1,data=full"
    assert points[1].overrides == ("model.tower.depth=2", "model.language_model.depth=1", "data.without=[SAR]")
    names = [point.name for point in points]
    assert len({name.lower() for name in names}) == 12
    assert all("/" not in name and " " not in name for name in names)
    long = grid(label_axes([axis_of("tower.weights", ["x" * 300 + "1", "x" * 300 + "2"], TINY)]))
    assert len({point.name for point in long}) == 2
    assert all(len(point.name) <= 100 for point in long)
    with pytest.raises(ConfigError, match=r"vrl\.drop_ratio: given twice"):
        label_axes([parse_axis("drop_ratio=0,0.5", TINY), parse_axis("vrl.drop_ratio=0.7,0.8", TINY)])


def test_a_drop_ratio_brings_the_preset_it_needs_unless_that_is_swept_too() -> None:
    ratio, preset = parse_axis("drop_ratio=0,0.9", TINY), parse_axis("preset=paper,none", TINY)
    assert needed([ratio], TINY) == ["vrl.preset=custom"]
    assert needed([ratio, preset], TINY) == []
    assert needed([preset], TINY) == []
    custom = load_recipe(PretrainConfig, "pretrain/tiny_rsicd", ["vrl.preset=custom", "vrl.drop_ratio=0.2"])
    assert needed([ratio], custom) == []
