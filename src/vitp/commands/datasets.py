"""`vitp datasets`: the benchmarks of the paper, and whether a folder holds one of them completely."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp.datasets.benchmark import Benchmark
from vitp.datasets.catalog import BENCHMARKS, benchmark
from vitp.errors import ConfigError
from vitp.recipes import recipe_folder
from vitp.yaml_lines import read

if TYPE_CHECKING:
    from vitp.datasets.benchmark_check import FolderReport


_FORMATS = {"coco": "COCO's JSON", "voc": "VOC's XML", "dior_r": "DIOR-R's XML", "dota": "DOTA's text"}


@dataclass(frozen=True)
class Shown:
    """The catalog, one entry, or an entry with a look at a folder."""

    entries: tuple[Benchmark, ...]
    folder: FolderReport | None = None
    detailed: bool = False

    def lines(self) -> list[str]:
        """For people."""
        if self.folder is not None:
            return self.folder.lines()
        if self.detailed:
            return _detail(self.entries[0])
        width = max(len(entry.name) for entry in self.entries) + 2
        found = []
        for entry in self.entries:
            found.append(f"{entry.name:{width}}{entry.task:9}{entry.title}")
            found.append(f"{'':{width}}{'':9}paper: {entry.paper}")
        return [*found, "vitp datasets NAME shows one in full; vitp datasets NAME --root DIR checks a folder"]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        if self.folder is not None:
            return self.folder.to_json()
        return {"datasets": [{**entry.to_json(), "classes": list(classes_of(entry))} for entry in self.entries]}


def datasets(name: str | None = None, root: Path | None = None, *, threads: int = 4) -> Shown:
    """The catalog; one entry; or what is missing in the folder of one.

    Args:
        name: of an entry.
        root: its data; everything the recipe of the entry would read is looked at.
        threads: that read.

    Raises:
        ConfigError: there is no such entry, or a root without a name.
    """
    if name is None:
        if root is not None:
            raise ConfigError("--root needs the name of the data set it holds: vitp datasets NAME --root DIR")
        return Shown(tuple(BENCHMARKS.values()))
    entry = benchmark(name)
    if root is None:
        return Shown((entry,), detailed=True)
    from vitp.datasets.benchmark_check import check_folder

    return Shown((entry,), check_folder(entry, root, threads), detailed=True)


def classes_of(entry: Benchmark) -> tuple[str, ...]:
    """Class names in the order of their ids, as the recipe has them."""
    written = _data(entry).get("classes")
    return tuple(written) if written is not None else ("unchanged", "changed")


def _recipe(entry: Benchmark) -> dict[str, Any]:
    found: dict[str, Any] = read(recipe_folder() / "finetune" / f"{entry.name}.yaml").data
    return found


def _data(entry: Benchmark) -> dict[str, Any]:
    found: dict[str, Any] = _recipe(entry)["data"]
    return found


def _meaning(entry: Benchmark) -> str:
    """How labels are read, in words."""
    data = _data(entry)
    if entry.task == "detect":
        masks = " and masks" if data.get("outlines") else ""
        return f"{_FORMATS[data['kind']]}, {_recipe(entry)['boxes']} boxes{masks}"
    values: dict[str, Any] = {
        key: data[key] for key in ("labels", "threshold", "reduce_zero_label", "ignore") if key in data
    }
    if not values.keys() - {"ignore"}:
        said = ("changed from", 128) if entry.task == "change" else ("values", "class ids")
        values = {said[0]: said[1], **values}
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _detail(entry: Benchmark) -> list[str]:
    lines = [f"{entry.name}: {entry.title}"]
    facts = [
        ("modality", entry.modality),
        ("licence", entry.licence),
        ("obtain", f"{entry.obtain}{f' ({entry.page})' if entry.page else ''}"),
        ("classes", ", ".join(f"{i} {name}" for i, name in enumerate(classes_of(entry)))),
        ("labels", f"{_meaning(entry)} (as the recipe reads them)"),
        *([("colours", ", ".join(f"{n} {list(c)}" for n, c in entry.colours))] if entry.colours else []),
        ("layout", "; ".join(entry.layout)),
        ("prepare", entry.preparation),
        *([("prepared", "; ".join(entry.prepared))] if entry.needs_preparation else []),
        ("splits", entry.splits),
        ("paper", entry.paper),
        ("recipe", f"vitp finetune {entry.name} data.root=DIR backbone=FILE"),
    ]
    lines += [f"  {word:10}{text}" for word, text in facts]
    return [*lines, *(f"  note      {note}" for note in entry.notes)]
