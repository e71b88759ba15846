"""Released mixture files: one JSON object from names of data sets to where they lie and how often they count.

The layout is that of the InternVL fine-tuning scripts, which the released ViTP scripts use::

    {"geochat_train": {"root": "images/geochat", "annotation": "annotations/geochat_train.jsonl",
                       "data_augment": false, "max_dynamic_patch": 12, "repeat_time": 2, "length": 63883}}

Both paths are relative to the folder the scripts were started in; `base` names it here. `repeat_time` becomes the
source's weight: the same number of samples an epoch, but below 1 another part of the data set in every epoch where the
released loader takes its first lines for ever. `data_augment` is JPEG recompression, `max_dynamic_patch` the most tiles
of an image. `length` is what the file must hold (the released code does not look at it), and `force_image_size`, which
the released loader ignores, is ignored here too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from vitp.config import Config, explain
from vitp.errors import ConfigError
from vitp.instruction.remote import is_url
from vitp.instruction.source import AugmentConfig, SourceConfig
from vitp.yaml_lines import Document, parse, write

_BOTH = "names the sources, and so does data.sources; keep one of the two"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class MetaEntry(Config):
    """One data set of a released mixture file."""

    root: str  # folder of the images; "" is the base itself
    annotation: str = Field(min_length=1)  # JSON Lines; not below root but below the base
    data_augment: bool = False  # released files: true for two sets
    repeat_time: float = Field(default=1.0, allow_inf_nan=False)
    max_dynamic_patch: int | None = Field(default=None, ge=1)  # None: the recipe's
    length: int | None = Field(default=None, ge=1)
    force_image_size: int | None = None  # ignored, as by the released loader

    @field_validator("repeat_time")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError(f"must be above 0, got {value:g}; to leave the data set out, delete its entry")
        return value

    @field_validator("root", "annotation")
    @classmethod
    def _on_disk(cls, value: str) -> str:
        if _ADDRESS.match(value):
            raise ValueError(f"is an address ({value}); copy the data to a disk and name the place there")
        if "\0" in value:
            raise ValueError("holds a NUL character, which no path can")
        return value


def read_meta(path: Path | str, base: Path | str | None = None) -> list[SourceConfig]:
    """The sources of a released mixture file, in its order; none of them is opened.

    Args:
        path: the JSON file.
        base: folder its relative paths are below; None: the working folder.

    Raises:
        ConfigError: every mistake in the file, one a line: ``ft_data_rs.json:12: geochat_train.length: ...``.
    """
    path = Path(path).expanduser()
    document = _read(path)
    sources: list[SourceConfig] = []
    for name, fields in document.data.items():
        if not name.strip():
            document.blame((name,), "a data set needs a name")
            continue
        try:
            entry = MetaEntry.model_validate(fields)
        except ValidationError as error:
            for loc, text in explain(MetaEntry, error):
                document.blame((name, *loc), text)
        else:
            sources.append(_source(name, entry, Path(base or ".").expanduser(), path))
    if document.mistakes:
        raise ConfigError(document.report())
    return sources


def _source(name: str, entry: MetaEntry, base: Path, path: Path) -> SourceConfig:
    return SourceConfig(
        name=name,
        root=_absolute(base, entry.root),
        annotations=_absolute(base, entry.annotation),
        format="conversations",
        weight=entry.repeat_time,
        max_tiles=entry.max_dynamic_patch,
        augment=AugmentConfig(jpeg=entry.data_augment),
        samples=entry.length,
        declared_in=path,
    )


def _absolute(base: Path, place: str) -> Path:
    return Path(os.path.abspath(base / Path(place).expanduser()))


def _read(path: Path) -> Document:
    """The file as data whose keys know their lines."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name one mixture JSON in it")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; data.meta names a mixture JSON") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: the byte 0x{error.object[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file of records is a source's 'annotations'" if error.msg == "Extra data" else ""
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}{hint}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for a mixture file") from None
    if not isinstance(data, dict) or not data:
        found = "an empty object" if data == {} else "a list" if isinstance(data, list) else "a single value"
        raise ConfigError(
            f"{path}: holds {found}; a mixture file maps names of data sets to their root, annotation, repeat_time, ..."
        )
    document = Document(str(path))
    try:
        node = parse(text.replace("\t", " "))  # JSON is YAML but for tabs, which JSON has between values only
        if node is not None:
            document.build(node, ())
    except (yaml.YAMLError, RecursionError):
        document = Document(str(path))  # then messages go without lines
    document.data = data
    return document


def expand_document(document: Document) -> None:
    """Put the sources of ``data.meta`` in its place in a recipe that is being read.

    Raises:
        ConfigError: the recipe names both sources and a meta file, or the meta file cannot be used.
    """
    data = document.data.get("data")
    if not isinstance(data, dict) or data.get("meta") is None:
        return
    line = document.lines.get(("data", "meta"), 0)
    if data.get("sources") and line:
        document.blame(("data", "meta"), _BOTH)
        raise ConfigError(document.report())
    data.pop("sources", None)  # on the command line data.meta replaces the recipe's sources
    document.data["data"] = _expand(data)
    document.lines = {loc: n for loc, n in document.lines.items() if loc[:2] != ("data", "sources")}
    document.lines["data", "sources"] = line


def _expand(data: Mapping[str, Any]) -> dict[str, Any]:
    """The raw ``data`` section with `sources` in the place of `meta`; their paths are absolute.

    Values of wrong types stay as they are, for the validation to name.

    Raises:
        ConfigError: both sources and a meta file are given, or the meta file cannot be used.
    """
    expanded = dict(data)
    meta, base = expanded.get("meta"), expanded.get("base")
    if not isinstance(meta, str | Path) or not isinstance(base, str | Path | None):
        return expanded
    if expanded.get("sources"):
        raise ConfigError(f"meta {_BOTH}")
    del expanded["meta"]
    expanded["sources"] = [source.model_dump(mode="json", exclude_defaults=True) for source in read_meta(meta, base)]
    return expanded


def resolve_sources(data: Mapping[str, Any]) -> dict[str, Any]:
    """The raw ``data`` section with its meta file read and its base joined to relative roots; neither is left.

    Raises:
        ConfigError: both sources and a meta file are given, or the meta file cannot be used.
    """
    resolved = _expand(data)
    base, sources = resolved.get("base"), resolved.get("sources")
    if isinstance(base, str | Path) and isinstance(sources, list | tuple):
        del resolved["base"]
        resolved["sources"] = [_based(source, Path(base).expanduser()) for source in sources]
    return resolved


def _based(source: Any, base: Path) -> Any:
    """A source whose relative root is below `base`."""
    if isinstance(source, SourceConfig):
        if isinstance(source.root, str):
            return source
        return source.model_copy(update={"root": base / source.root.expanduser()})
    if isinstance(source, dict) and isinstance(source.get("root"), str | Path) and not is_url(str(source["root"])):
        return {**source, "root": str(base / Path(source["root"]).expanduser())}
    return source


def to_yaml(sources: list[SourceConfig]) -> str:
    """The ``data.sources`` of a recipe, without what is default."""
    listed: list[dict[str, Any]] = []
    for source in sources:
        fields = source.model_dump(mode="json", exclude_defaults=True, exclude={"declared_in"})
        root, annotations = source.root, source.annotations
        if isinstance(root, Path) and isinstance(annotations, Path) and annotations.is_relative_to(root):
            fields["annotations"] = str(annotations.relative_to(root))
        listed.append(fields)
    return write({"data": {"sources": listed}})
