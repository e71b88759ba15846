"""What is varied: axes from texts such as ``drop_ratio=0,0.5,0.75``, short key names, and the grid of points."""

from __future__ import annotations

import difflib
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml
from pydantic import BaseModel

from vitp.config import Config
from vitp.errors import ConfigError
from vitp.yaml_lines import Document, parse

SEED = "seed"  # the axis whose points are repetitions: tables give mean and deviation over it
_LONGEST = 100  # characters of a point's folder name
# What must be said as well for a swept key to mean anything; an axis or override of that key wins.
_NEEDS = {"vrl.drop_ratio": ("vrl.preset", "custom"), "vrl.apply_prob": ("vrl.preset", "custom")}


@dataclass(frozen=True)
class Choice:
    """One value of an axis: how it is called, the value (None for a variant), and the overrides that set it."""

    label: str
    value: Any
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Axis:
    """A key (dotted path) or a set of variants, with the values to try; `label` is short and unique among axes."""

    key: str
    label: str
    choices: tuple[Choice, ...]

    @property
    def numeric(self) -> bool:
        """Whether the values can stand on the x axis of a chart."""
        return all(isinstance(c.value, int | float) and not isinstance(c.value, bool) for c in self.choices)


@dataclass(frozen=True)
class Point:
    """One run: a choice from every axis. `name` is the run's folder."""

    name: str
    choices: tuple[Choice, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """All overrides of its choices, in the order of the axes."""
        return tuple(text for choice in self.choices for text in choice.overrides)


def parse_axis(text: str, config: Config) -> Axis:
    """An axis from ``key=value,value``; values are YAML, so lists and mappings stand in their brackets.

    Args:
        text: what was written after ``--sweep``.
        config: the recipe the key belongs to.

    Raises:
        ConfigError: no such key, several it could be, or values that are no YAML.
    """
    key, equals, listed = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--sweep {text}: a sweep looks like key=value,value or names a recipe such as ablation/drop_ratio"
        )
    document = Document("command line")
    try:
        node = parse(f"[{listed}]")
        values = document.build(node, ()) if node is not None else None
    except (yaml.YAMLError, RecursionError):
        values = None
    if document.mistakes or not isinstance(values, list):
        raise ConfigError(
            f"--sweep {text}: '{listed}' is no list of YAML values; write them as in {key}=0,0.5 or {key}=[1, 2],[3]"
        )
    return axis_of(key.strip(), values, config)


def axis_of(key: str, values: Sequence[Any], config: Config) -> Axis:
    """An axis from a short or dotted key and its values.

    Raises:
        ConfigError: no such key, several it could be, no values, or one given twice.
    """
    path = resolve_key(key, config)
    plain = [str(value) if isinstance(value, PurePath) else value for value in values]
    if not plain:
        raise ConfigError(f"--sweep {key}=: no values; write them behind it with commas, as in {key}=1,2,3")
    labels = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in plain]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ConfigError(f"--sweep {key}=...: {twice} is given twice; name each value once (seed=0,1,2 repeats runs)")
    choices = tuple(
        Choice(label, value, (f"{path}={json.dumps(value, ensure_ascii=False)}",))
        for label, value in zip(labels, plain, strict=True)
    )
    return Axis(path, path, choices)


def variants_axis(name: str, variants: Mapping[str, Sequence[str]]) -> Axis:
    """An axis whose points set several keys at once."""
    return Axis(name, name, tuple(Choice(label, None, tuple(texts)) for label, texts in variants.items()))


def resolve_key(key: str, config: Config) -> str:
    """The dotted path a short name stands for: the end of the path of some key, such as ``drop_ratio``.

    Of several the one nearest to the top of the recipe is meant, if it is alone there: ``vrl.drop_ratio``, not
    ``evaluation.vrl.drop_ratio``.
    A key that starts at the top of the recipe is taken as it is; whether it exists is seen when the points are loaded.

    Raises:
        ConfigError: nothing of that name, or several.
    """
    if key.split(".")[0] in type(config).model_fields:
        return key
    paths = list(_paths(config))
    found = sorted((path for path in paths if path.endswith(f".{key}")), key=lambda path: path.count("."))
    nearest = [path for path in found if path.count(".") == found[0].count(".")]
    if len(nearest) == 1:
        return nearest[0]
    if found:
        shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise ConfigError(f"--sweep {key}: {len(found)} keys end in '{key}' ({shown}); write the one you mean in full")
    last: dict[str, str] = {}
    for path in paths:
        last.setdefault(path.rsplit(".", 1)[-1], path)
    close = [name for name in last if key.lower() in name.split("_")]
    close += difflib.get_close_matches(key.rsplit(".", 1)[-1].lower(), last, n=3, cutoff=0.6)
    near = ", ".join(last[name] for name in dict.fromkeys(close))
    raise ConfigError(f"--sweep {key}: the recipe has no such key" + (f"; did you mean {near}?" if near else ""))


def _paths(value: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all keys of a recipe, sections left out, those below list items with their number."""
    for name in type(value).model_fields:
        inner, path = getattr(value, name), f"{prefix}{name}"
        if isinstance(inner, BaseModel):
            yield from _paths(inner, f"{path}.")
        elif isinstance(inner, list | tuple) and inner and all(isinstance(item, BaseModel) for item in inner):
            for number, item in enumerate(inner):
                yield from _paths(item, f"{path}.{number}.")
        else:
            yield path


def label_axes(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes with the shortest ends of their keys that tell them apart as labels.

    Raises:
        ConfigError: a key stands on two axes.
    """
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--sweep {key}: given twice; put all its values behind one --sweep {key}=")
    labelled = []
    for axis in axes:
        parts = axis.key.split(".")
        ends = [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]
        others = [f".{key}" for key in keys if key != axis.key]
        label = next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), axis.key)
        labelled.append(Axis(axis.key, label, axis.choices))
    return tuple(labelled)


def needed(axes: Sequence[Axis], config: Config) -> list[str]:
    """Overrides without which the swept keys would be refused (a drop ratio needs the preset ``custom``)."""
    keys = {axis.key for axis in axes}
    found = []
    for key, (also, value) in _NEEDS.items():
        if key in keys and also not in keys and _value(config, also) != value:
            found.append(f"{also}={value}")
    return list(dict.fromkeys(found))


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def grid(axes: Sequence[Axis]) -> tuple[Point, ...]:
    """Every combination, the last axis changing fastest."""
    points: list[Point] = []
    taken: set[str] = set()
    for choices in itertools.product(*(axis.choices for axis in axes)):
        exact = ",".join(f"{axis.label}={choice.label}" for axis, choice in zip(axes, choices, strict=True))
        name = re.sub(r"[^\w.,=+-]+", "-", exact, flags=re.ASCII).strip("-.")
        if len(name) > _LONGEST or name.lower() in taken:  # some file systems do not tell cases apart
            name = f"{name[: _LONGEST - 9]}-{zlib.crc32(exact.encode()):08x}"
        taken.add(name.lower())
        points.append(Point(name, choices))
    return tuple(points)
