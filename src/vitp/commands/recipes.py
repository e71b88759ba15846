"""`vitp recipes`: what ships, what each recipe needs, and how much of its data is on this disk.

The list reads the recipes as plain YAML, so that it needs no torch and takes no time; a single pretraining recipe is
loaded in full, overrides included. Nothing here opens a data set: present means that its files are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp.errors import ConfigError
from vitp.recipes import find_recipe, header, header_field, list_recipes, load_recipe
from vitp.yaml_lines import read

if TYPE_CHECKING:
    from vitp.instruction.source import SourceConfig


@dataclass(frozen=True)
class SourceStatus:
    """One data set of a recipe and whether its files are here."""

    name: str
    root: str
    annotations: str | None = None
    state: str = "here"  # or what is missing
    modality: str | None = None
    tasks: tuple[str, ...] = ()
    domain: str = "domain"
    samples: int | None = None
    weight: float = 1.0
    licence: str | None = None
    obtain: str | None = None


@dataclass(frozen=True)
class RecipeStatus:
    """A recipe's header and its data."""

    name: str
    kind: str
    summary: str
    what: str
    hardware: str
    time: str
    expect: str
    command: str
    sources: tuple[SourceStatus, ...]

    @property
    def present(self) -> int:
        """How many of the sources are here."""
        return sum(source.state == "here" for source in self.sources)

    def data(self) -> str:
        """How much of the data is here, in words."""
        if not self.sources:
            return "names no data"
        if len(self.sources) == 1:
            return "data here" if self.present else f"data missing: {self.sources[0].state}"
        return f"{self.present} of {len(self.sources)} sources here"

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {**dataclasses.asdict(self), "sources_present": self.present, "sources_total": len(self.sources)}


@dataclass(frozen=True)
class Listing:
    """All shipped recipes."""

    recipes: tuple[RecipeStatus, ...]

    def lines(self) -> list[str]:
        """Two lines a recipe."""
        width = max((len(recipe.name) for recipe in self.recipes), default=0) + 2
        found: list[str] = []
        for recipe in self.recipes:
            found += [f"{recipe.name:{width}}{recipe.summary}"]
            found += [f"{'':{width}}{recipe.hardware} · {recipe.time} · {recipe.data()}"]
        return [*found, "", "vitp recipes NAME shows one in full, with every source and where to obtain it"]

    def to_json(self) -> dict[str, Any]:
        """``{"recipes": [...]}``."""
        return {"recipes": [recipe.to_json() for recipe in self.recipes]}


@dataclass(frozen=True)
class Detail:
    """One recipe in full."""

    recipe: RecipeStatus
    header: tuple[str, ...]
    epoch: int | None  # samples of one epoch; None where a source's size is not stated

    def lines(self) -> list[str]:
        """The header, the sources with licence and origin, and their sum."""
        known = sum(source.samples or 0 for source in self.recipe.sources)
        count = f", {known:,} samples, {self.epoch:,} in an epoch" if self.epoch is not None else ""
        table = _source_lines(self.recipe.sources) if self.recipe.kind == "pretrain" else []
        return [*self.header, "", *table, *([""] if table else []), self.recipe.data() + count]

    def to_json(self) -> dict[str, Any]:
        """The recipe with its header's lines and the length of an epoch."""
        return {**self.recipe.to_json(), "header": list(self.header), "epoch_samples": self.epoch}


@dataclass(frozen=True)
class Converted:
    """A released mixture file as a recipe's sources."""

    yaml: str
    sources: tuple[SourceStatus, ...]

    def lines(self) -> list[str]:
        """The YAML."""
        return self.yaml.splitlines()

    def to_json(self) -> dict[str, Any]:
        """The sources."""
        return {"sources": [dataclasses.asdict(source) for source in self.sources]}


def show(
    name: str | None = None,
    overrides: Sequence[str] = (),
    *,
    base: Path | None = None,
    from_meta: Path | None = None,
) -> Listing | Detail | Converted:
    """What `vitp recipes` prints: all recipes, one in full, or a released mixture file as sources.

    Args:
        name: a shipped recipe or a YAML file; None: all that ship.
        overrides: dotted overrides of one pretraining recipe.
        base: folder the data lies below, in the place of the recipe's ``data.base``.
        from_meta: a released mixture JSON to convert instead.

    Raises:
        ConfigError: no such recipe, or a mistake in it or in the mixture file.
    """
    if from_meta is not None:
        if name is not None:
            raise ConfigError(f"--from-meta converts a file and takes no recipe, got '{name}'; leave one of them out")
        return convert(from_meta, base)
    return listing(base) if name is None else describe(name, overrides, base=base)


def listing(base: Path | None = None) -> Listing:
    """All shipped recipes, sorted by kind and name."""
    return Listing(tuple(_status(path, _plain_sources(path, base)) for path in list_recipes()))


def describe(name: str, overrides: Sequence[str] = (), *, base: Path | None = None) -> Detail:
    """One recipe in full; a pretraining recipe is loaded and checked as `vitp pretrain` would."""
    path = Path(name) if Path(name).is_file() else find_recipe(name) or Path(name)
    data = read(path).data.get("data")
    if not isinstance(data, dict) or not data.keys() & {"sources", "meta"}:
        if overrides:
            raise ConfigError(f"'{overrides[0]}': only pretraining recipes are shown with overrides; leave it out")
        return Detail(_status(path, _plain_sources(path, base)), tuple(header(path)), None)
    from vitp.commands.pretrain_recipe import PretrainConfig
    from vitp.instruction.mixture import Mixture

    placed = [f"data.base={_quoted(base)}"] if base is not None else []
    config = load_recipe(PretrainConfig, path, [*placed, *overrides])
    sources = tuple(_source_status(source) for source in config.data.sources)
    sizes = [source.samples for source in sources if source.samples is not None]
    whole = len(sizes) == len(sources)
    epoch = Mixture(sizes, [source.weight for source in sources], 0).epoch_length if whole else None
    return Detail(_status(path, sources, "pretrain"), tuple(header(path)), epoch)


def convert(meta: Path, base: Path | None = None) -> Converted:
    """A released mixture file as the ``data.sources`` of a recipe."""
    from vitp.instruction.meta import read_meta, to_yaml

    sources = read_meta(meta, base)
    return Converted(to_yaml(sources), tuple(_source_status(source) for source in sources))


def _quoted(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"


def _state(root: Path | str, annotations: Path | str | None) -> str:
    """Whether a source is on this disk. What lies behind a URL (a string) is not asked for here."""
    if isinstance(root, str) or isinstance(annotations, str):
        return "remote"
    root = root.expanduser()
    if not root.is_dir():
        return f"no folder {root}"
    if annotations is not None and not (root / annotations.expanduser()).exists():
        return f"no file {root / annotations.expanduser()}"
    return "here"


def _source_status(source: SourceConfig) -> SourceStatus:
    annotations = None if source.annotations is None else str(source.annotations)
    return SourceStatus(
        name=source.name,
        root=str(source.root),
        annotations=annotations,
        state=_state(source.root, source.annotations),
        modality=source.modality,
        tasks=source.tasks,
        domain=source.domain,
        samples=source.samples,
        weight=source.weight,
        licence=source.licence,
        obtain=source.obtain,
    )


def _plain_sources(path: Path, base: Path | None) -> tuple[SourceStatus, ...]:
    """Names and places of a recipe's data sets from its plain YAML; what has another shape is left out."""
    recipe = read(path).data
    data = recipe.get("data")
    if not isinstance(data, dict):
        return ()
    below = Path(base or data.get("base") or ".")
    listed = data.get("sources") or [{"name": recipe.get("name", path.stem), **data}]
    found: list[SourceStatus] = []
    for source in listed if isinstance(listed, list) else []:
        if not isinstance(source, dict) or not isinstance(source.get("root"), str):
            continue
        root, annotations = below / Path(source["root"]).expanduser(), source.get("annotations")
        state = _state(root, Path(annotations) if isinstance(annotations, str) else None)
        found.append(SourceStatus(name=str(source.get("name")), root=str(root), annotations=annotations, state=state))
    return tuple(found)


def _status(path: Path, sources: tuple[SourceStatus, ...], kind: str = "") -> RecipeStatus:
    """A recipe's header as it is listed; `kind` of one that does not ship."""
    lines = header(path)
    shipped = path in list_recipes()
    return RecipeStatus(
        name=f"{path.parent.name}/{path.stem}" if shipped else str(path),
        kind=path.parent.name if shipped else kind,
        summary=lines[0] if lines else "",
        what=header_field(lines, "What"),
        hardware=header_field(lines, "Hardware"),
        time=header_field(lines, "Time"),
        expect=header_field(lines, "Expect"),
        command=header_field(lines, "Command"),
        sources=sources,
    )


def _source_lines(sources: Sequence[SourceStatus]) -> list[str]:
    """Two lines a source: its row in a table, and under it licence and where to obtain it."""
    rows = [("#", "source", "samples", "weight", "tasks", "modality", "on this disk")]
    for number, s in enumerate(sources):
        samples = f"{s.samples:,}" if s.samples is not None else "-"
        modality = (s.modality or "-") + (" (general)" if s.domain == "general" else "")
        rows.append((str(number), s.name, samples, f"{s.weight:g}", ", ".join(s.tasks) or "-", modality, s.state))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = (0, 2, 3)  # the columns of numbers
    table = [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in rows
    ]
    found = [table[0].rstrip()]
    for row, s in zip(table[1:], sources, strict=True):
        terms = f"licence: {s.licence or 'not stated'}; from: {s.obtain or 'not stated'}"
        found += [row.rstrip(), f"{'':{widths[0] + 2}}{terms}"]
    return found
