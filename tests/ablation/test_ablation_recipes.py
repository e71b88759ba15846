"""Every shipped ablation recipe runs, two steps a point, on fake data in place of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.minidata import write_data

import vitp
from vitp.ablation.plan import SweepConfig
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.recipes import list_recipes, load_recipe

ABLATIONS = [path for path in list_recipes() if path.parent.name == "ablation"]
SMALL = [
    "batch_size=2", "workers=0", "device=cpu", "precision=fp32", "model.pixel_shuffle=1", "warm_start.steps=0",
    "model.tower.architecture=vit_tiny_patch16_224", "model.tower.image_size=32", "model.tower.patch_size=8",
    "model.tower.width=24", "model.tower.depth=2", "model.tower.heads=3", "model.tower.weights=null",
    "model.vlm=null", "model.language_model.path=null", "model.language_model.vocabulary=320",
    "evaluation.split=null", "data.chat.template=own", "data.chat.released_system=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("ablation") / "data", 6)


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_ablation_recipe_runs(path: Path, data: Path, tmp_path: Path) -> None:
    own = load_recipe(SweepConfig, path)
    base = load_recipe(PretrainConfig, own.recipe, own.overrides)
    overrides = [f"out={tmp_path / 'out'}", "steps=2", *SMALL]
    for i, source in enumerate(base.data.sources):
        plain = {
            "root": data.parent,
            "annotations": data.name,
            "format": "conversations",
            "samples": "null",
            "turns": 3,
        }
        overrides += [f"data.sources.{i}.{key}={value}" for key, value in plain.items()]
        overrides += [f"data.sources.{i}.augment.{key}=false" for key in ("flip", "rot90")]
        overrides.append(f"data.sources.{i}.weight={max(1.0, source.weight)}")
    if path.stem == "steps":  # its axis is the number of steps
        listed = [int(n) for n in own.sweep[0].removeprefix("steps=").split(",")]
        assert listed == sorted(listed)
        result = vitp.sweep(own.recipe, ["steps=1,2"], [*own.overrides, *overrides])
    else:
        result = vitp.sweep(path, (), overrides, then=["none"])
    assert not result.failed, result.lines()
    assert len(result.outcomes) >= 2
    losses = [outcome.numbers["loss"] for outcome in result.outcomes]
    assert len(set(losses)) > 1, "no point differs from the others"
    assert (tmp_path / "out" / "sweep.html").is_file()
