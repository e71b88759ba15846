"""A sweep before it runs: the ablation recipe, its axes, and the checked recipe of every point."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from vitp.ablation.axes import Axis, Point, grid, label_axes, needed, parse_axis, variants_axis
from vitp.ablation.downstream import Downstream, parse_then
from vitp.ablation.kinds import Kind, KindName, Swept, kind_of
from vitp.config import Config
from vitp.errors import ConfigError
from vitp.recipes import find_recipe, load_recipe
from vitp.yaml_lines import read

Variants = Mapping[str, Mapping[str, tuple[str, ...]]]  # axis -> label -> overrides
Axes = Sequence[str] | Mapping[str, Sequence[Any]]


class SweepConfig(Config):
    """An ablation recipe: a recipe, what is varied in it, and what the results are measured by."""

    name: str
    kind: KindName = "pretrain"  # finetune: every point is fine-tuned and scored
    recipe: str  # a recipe of that kind, shipped or a file
    out: Path | None = None  # out/<name>; a folder below it for each point
    overrides: tuple[str, ...] = ()  # of the recipe, for every point
    sweep: tuple[str, ...] = ()  # axes, as after --sweep
    variants: dict[str, dict[str, tuple[str, ...]]] = Field(default={})  # further axes: name -> label -> overrides
    then: tuple[str, ...] = ()  # downstream recipes, as after --then

    @model_validator(mode="after")
    def _varies_something(self) -> SweepConfig:
        if not self.sweep and not self.variants:
            raise ValueError("nothing is varied: give sweep or variants")
        if self.kind == "finetune" and self.then:
            raise ValueError("then is for pretraining; a fine-tuning is scored by itself")
        for name, variants in self.variants.items():
            if not variants:
                raise ValueError(f"variants.{name} has no variant")
        return self


@dataclass(frozen=True)
class Job:
    """A point with its recipe; `finished` when an earlier call trained it to its end."""

    point: Point
    config: Swept
    steps: int  # all of the loop
    finished: bool = False


@dataclass(frozen=True)
class Plan:
    """A sweep as it will run."""

    config: SweepConfig
    kind: Kind
    folder: Path
    axes: tuple[Axis, ...]
    jobs: tuple[Job, ...]
    then: tuple[Downstream, ...]
    shared: tuple[str, ...]  # overrides of every point


def is_sweep(recipe: str) -> bool:
    """Whether a recipe (file or shipped name) is an ablation recipe."""
    path = _file(recipe)
    return path.is_file() and path.suffix in (".yaml", ".yml") and bool({"sweep", "variants"} & set(read(path).data))


def _file(recipe: str) -> Path:
    return Path(recipe) if Path(recipe).is_file() else find_recipe(recipe) or Path(recipe)


def described(
    recipe: Path | str,
    axes: Axes,
    overrides: Sequence[str],
    then: Sequence[str],
    kind: KindName = "pretrain",
    further: Variants | None = None,
) -> SweepConfig:
    """The sweep as an ablation recipe, whichever way it was asked for; `further` are axes of variants."""
    variants: dict[str, dict[str, tuple[str, ...]]] = {}
    texts: list[str] = []
    name, out = Path(recipe).stem, None
    before: tuple[str, ...] = ()
    if is_sweep(str(recipe)):
        own = load_recipe(SweepConfig, recipe)
        recipe, name, before, out = own.recipe, own.name, own.overrides, own.out or Path("out") / own.name
        kind = own.kind
        texts, variants, then = list(own.sweep), dict(own.variants), then or own.then
    for text in () if isinstance(axes, Mapping) else axes:
        if "=" in text:
            texts.append(text)
        else:
            other = load_recipe(SweepConfig, text)
            if both := sorted(variants.keys() & other.variants.keys()):
                raise ConfigError(f"--sweep {text}: the variants '{both[0]}' are there already; leave one of them out")
            texts += other.sweep
            variants |= other.variants
    if isinstance(axes, Mapping):
        texts += [
            f"{key}={json.dumps([str(v) if isinstance(v, Path) else v for v in vs])[1:-1]}" for key, vs in axes.items()
        ]
    variants |= {name: dict(choices) for name, choices in (further or {}).items()}
    if not texts and not variants:
        raise ConfigError("nothing is varied: say what, as in --sweep drop_ratio=0,0.5,0.75")
    return SweepConfig(
        name=name,
        kind=kind,
        recipe=str(recipe),
        out=out,
        overrides=(*before, *overrides),
        sweep=tuple(texts),
        variants=variants,
        then=tuple(then),
    )


def plan_sweep(asked: SweepConfig) -> Plan:
    """Every point's recipe, loaded and checked.

    Raises:
        ConfigError: a mistake in any of them, named with its point.
    """
    kind = kind_of(asked.kind)
    placed = [f"out={json.dumps(str(asked.out))}"] if asked.out is not None else []
    # a fine-tuning recipe may leave the backbone to its variants: the first of each completes it
    first = [text for variants in asked.variants.values() for text in next(iter(variants.values()))]
    base = kind.load(asked.recipe, [*placed, *asked.overrides, *(first if asked.kind == "finetune" else [])])
    varied = [parse_axis(text, base) for text in asked.sweep]
    varied += [variants_axis(name, variants) for name, variants in asked.variants.items()]
    axes = label_axes(varied)
    shared = (*needed(axes, base), *asked.overrides)
    jobs = []
    for point in grid(axes):
        out = f"out={json.dumps(str(base.folder / point.name))}"
        try:
            config = kind.load(asked.recipe, [*shared, *point.overrides, out])
        except ConfigError as error:
            raise ConfigError(f"point {point.name}: {error}") from error
        jobs.append(Job(point, config, kind.steps(config)))
    record = asked.model_copy(update={"out": base.folder})
    return Plan(record, kind, base.folder, axes, tuple(jobs), parse_then(asked.then), shared)
