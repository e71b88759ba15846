"""Is a benchmark's folder complete? Files that belong together, lists, label values and counts, before any training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from vitp.datasets.benchmark import Benchmark
from vitp.datasets.dense import DenseDataConfig, open_dataset
from vitp.datasets.detection import DetectionDataConfig, open_detection
from vitp.datasets.layout import belonging, find_images
from vitp.datasets.objects_config import CocoConfig, FileLabels, ObjectRules
from vitp.datasets.pairs import PairFolderConfig
from vitp.datasets.prepare import NOTE, unfinished
from vitp.datasets.splits import Split
from vitp.datasets.volumes import VolumeFolder, VolumeFolderConfig
from vitp.errors import DataError
from vitp.recipes import recipe_folder
from vitp.yaml_lines import read

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_DataConfig = DenseDataConfig | DetectionDataConfig


@dataclass(frozen=True)
class FolderReport:
    """What a look at a benchmark's folder found."""

    name: str
    root: Path
    counts: dict[str, int]  # images, pairs or volumes of each part; empty where the folder cannot be used
    pixels: dict[str, dict[str, int]]  # labelled pixels of each part by class; none of detection
    missing: tuple[str, ...]  # sentences: training must not begin, or is not on the whole set
    notes: tuple[str, ...] = ()
    objects: dict[str, dict[str, int]] = field(default_factory=dict)  # of each part by class; of detection alone

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def lines(self) -> list[str]:
        """For people."""
        found = ", ".join(f"{count:,} {part}" for part, count in self.counts.items())
        head = f"{self.name} in {self.root}: {found or 'cannot be used'}"
        state = "complete" if self.complete else f"{len(self.missing)} things are missing"
        return [head, *(f"missing: {text}" for text in self.missing), *(f"note: {text}" for text in self.notes), state]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "root": str(self.root),
            "complete": self.complete,
            "counts": self.counts,
            "pixels": self.pixels,
            "objects": self.objects,
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def data_of(entry: Benchmark, root: Path | None = None) -> _DataConfig:
    """What the recipe of a benchmark reads, from `root` where one is given."""
    written = dict(read(recipe_folder() / "finetune" / f"{entry.name}.yaml").data["data"])
    if root is not None:
        written["root"] = root
    adapter: TypeAdapter[Any] = TypeAdapter(DetectionDataConfig if entry.task == "detect" else DenseDataConfig)
    found: _DataConfig = adapter.validate_python(written)
    return found


def check_folder(entry: Benchmark, root: Path, threads: int = 4) -> FolderReport:
    """Look at everything the benchmark's recipe would read.

    Args:
        entry: the benchmark.
        root: of its data, as the recipe's data.root.
        threads: that read.

    Returns:
        what is missing: files that belong to others, lists, whole parts, labels of a class, images of the public set. Every
        label is read once where the files are all there.
    """
    config = data_of(entry, root)
    if unfinished(root):
        text = f"{root}: the preparation was interrupted; give the same `vitp prepare` command again"
        return FolderReport(entry.name, root, {}, {}, (text,))
    missing = list(_missing_files(entry, config))
    if missing and entry.needs_preparation and root.is_dir() and not (root / NOTE).is_file():
        missing.append(f"the preparation, which this folder has not seen: {_expected(entry)}")
    if missing:
        return FolderReport(entry.name, root, {}, {}, tuple(missing))
    try:
        counts, pixels, objects, absent, notes = _read_labels(config, threads)
    except DataError as error:
        return FolderReport(entry.name, root, {}, {}, (str(error),))
    for part, expected in entry.counts.items():
        if expected is not None and counts.get(part, 0) < expected:
            missing.append(f"{part} has {counts.get(part, 0):,} of the {expected:,} {_noun(config)} of the public set")
        if expected is not None and counts.get(part, 0) > expected:
            notes.append(f"{part} has {counts[part]:,} {_noun(config)}, the public set {expected:,}")
    missing += [
        f"no {part} label shows {', '.join(names)}" for part, names in absent.items() if names and part in counts
    ]
    return FolderReport(entry.name, root, counts, pixels, tuple(missing), tuple(notes), objects)


class _Seen(NamedTuple):
    """What reading every label found; by part."""

    counts: dict[str, int]  # of the parts that are not empty
    pixels: dict[str, dict[str, int]]
    objects: dict[str, dict[str, int]]
    absent: dict[Split, list[str]]  # classes that no label shows
    notes: list[str]


def _read_labels(config: _DataConfig, threads: int) -> _Seen:
    """Read every label.

    Raises:
        DataError: one cannot be used, or the parts do not fit.
    """
    if isinstance(config, ObjectRules):
        whole = config.model_copy(update={"skip_empty": False, "tolerate": 1.0})  # count what training may leave out
        found = open_detection(whole)
        looked = found.check()
        counts = {str(part): found.parts.of(part) for part in _SPLITS}
        objects = {str(part): looked.objects[part] for part in _SPLITS if counts[part]}
        notes = [*(f"{'dropped' if f.dropped else 'seen'}: {f}" for f in looked.findings), *looked.notes]
        absent = {part: looked.missing(part) for part in _SPLITS}
        return _Seen({part: len(of) for part, of in counts.items() if of}, {}, objects, absent, notes)
    data = open_dataset(config)
    report = data.check(threads)
    parts = data.volume_parts if isinstance(data, VolumeFolder) else data.parts
    counts = {str(part): parts.of(part) for part in _SPLITS}
    pixels = {"train": report.train, "val": report.val, "test": report.test}
    return _Seen(
        {part: len(of) for part, of in counts.items() if of},
        {part: seen for part, seen in pixels.items() if counts[part]},
        {},
        {part: report.missing(part) for part in _SPLITS},
        list(report.notes),
    )


def _noun(config: _DataConfig) -> str:
    return {"pairs": "pairs", "volumes": "volumes"}.get(config.kind, "images")


def _missing_files(entry: Benchmark, config: _DataConfig) -> Iterable[str]:
    """Sentences about files and lists that are not there."""
    try:
        images = find_images(config)
    except DataError as error:
        yield f"{error.where}: {error.reason}" if config.root.is_dir() else f"{config.root}: there is no such folder"
        if config.root.is_dir() and not entry.needs_preparation:
            yield _expected(entry)
        return
    for part in _SPLITS:
        listed = getattr(config, f"{part}_list")
        if listed is not None and not (listed.is_file() or (config.root / listed).is_file()):
            yield f"the list {config.root / listed}, which says what the {part} images are"
        pattern = getattr(config, f"{part}_images")
        if pattern is not None and not any(config.root.glob(pattern)):
            yield f"all {part} images: nothing matches {config.root / pattern}"
    if isinstance(config, CocoConfig):
        for part in _SPLITS:
            labels = getattr(config, f"{part}_labels")
            if labels is not None and not (config.root / labels).is_file():
                yield f"{config.root / labels}, the labels of all {part} images"
    for noun, template in _templates(config):
        lacking: list[Path] = []
        reason = ""
        for image in images:
            try:
                belonging(image, template, config, noun)
            except DataError as error:
                lacking.append(image)
                reason = reason or error.reason
        if lacking:
            yield f"the {noun} of {len(lacking):,} of {len(images):,} images; the first: {lacking[0]} {reason}"


def _expected(entry: Benchmark) -> str:
    if entry.needs_preparation:
        return f"{'; '.join(entry.prepared)}, which `{entry.preparation}` makes of {'; '.join(entry.layout)}"
    return f"the folders {'; '.join(entry.layout)}"


def _templates(config: _DataConfig) -> list[tuple[str, str]]:
    """What belongs to every image: what it is called, and its template."""
    if isinstance(config, CocoConfig):  # labels are in files of their own
        return []
    if isinstance(config, FileLabels):
        return [("label", config.labels)]
    found = [("label", config.masks)]
    if isinstance(config, PairFolderConfig):
        found.insert(0, ("second date", config.after))
    if isinstance(config, VolumeFolderConfig):
        found += [("sequence", c.file) for c in config.channels if c.file is not None]
    return found
