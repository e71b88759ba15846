"""Recipes that ship with vitp: where they are, and loading one by path or by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from vitp.config import Config, load
from vitp.errors import ConfigError

C = TypeVar("C", bound=Config)


def recipe_folder() -> Path:
    """The folder of the recipes: beside the package's sources in a checkout, inside the package in a wheel."""
    packaged = Path(__file__).parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def list_recipes() -> list[Path]:
    """All shipped recipes, sorted by kind and name."""
    return sorted(recipe_folder().glob("*/*.yaml"))


def find_recipe(name: str) -> Path | None:
    """A shipped recipe by ``pretrain/tiny_rsicd``, ``tiny_rsicd`` or ``recipes/pretrain/tiny_rsicd.yaml``."""
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    for path in list_recipes():
        if wanted in (path.stem, f"{path.parent.name}/{path.stem}"):
            return path
    return None


def summary(path: Path) -> str:
    """The first comment line of a recipe."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip()


def header(path: Path) -> list[str]:
    """The comment block a recipe starts with, without its marks."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return lines


def header_field(lines: Sequence[str], word: str) -> str:
    """What a header says after What, Hardware, Time, Expect or Command; empty where it says nothing."""
    found = (re.match(rf"{word} +(\S.*)", line) for line in lines)
    return next((match[1] for match in found if match), "")


def load_recipe(cls: type[C], recipe: C | Path | str, overrides: Sequence[str] = ()) -> C:
    """A recipe by path or shipped name, see `vitp.config.load`; one that is built already is handed back.

    Raises:
        ConfigError: the recipe is wrong, or there are overrides for one that is built already.
    """
    if isinstance(recipe, cls):
        if overrides:
            raise ConfigError(f"{overrides[0]}: overrides are for recipe files; change a built {cls.__name__} itself")
        return recipe
    assert isinstance(recipe, Path | str), f"a {type(recipe).__name__} is no {cls.__name__}"
    if similar := _similar(str(recipe)):
        raise ConfigError(
            f"{recipe} is neither a file nor a recipe that ships with vitp; did you mean {' or '.join(similar)}? "
            "(`vitp recipes` lists them)"
        )
    return load(cls, recipe, overrides, find=find_recipe)


def _similar(name: str) -> list[str]:
    """Shipped recipes spelled much like `name`, where it is none itself, nor the path of anything."""
    beside_others = "/" in name and Path(name).parent.is_dir()  # `load` knows what else lies there
    if beside_others or Path(name).exists() or find_recipe(name) is not None:
        return []
    wanted = name.removeprefix("recipes/").removesuffix(".yaml").removesuffix(".yml").lower()
    shipped = {f"{path.parent.name}/{path.stem}" for path in list_recipes()}
    names = shipped if "/" in wanted else {one.partition("/")[2] for one in shipped}
    return difflib.get_close_matches(wanted, sorted(names), n=2, cutoff=0.75)
