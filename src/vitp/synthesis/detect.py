"""Which of the layouts a folder has, and reading it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vitp.errors import ConfigError, DataError
from vitp.synthesis.coco import find_coco, read_coco
from vitp.synthesis.config import TASKS, Format, SynthesizeConfig
from vitp.synthesis.folders import class_folders, find_captions, read_captions, read_folders
from vitp.synthesis.labels import LabelledImage, LabelledSet
from vitp.synthesis.objects import DOTA_FOLDERS, VOC_FOLDER, base_of, read_dota, read_voc
from vitp.synthesis.rasters import CHANGE_FOLDERS, MASK_FOLDERS, class_names, read_change, read_masks

_READERS: dict[Format, Callable[[SynthesizeConfig], LabelledSet]] = {
    "coco": read_coco, "dota": read_dota, "voc": read_voc, "folders": read_folders, "masks": read_masks,
    "change": read_change, "captions": read_captions,
}  # fmt: skip
_SIGNS: dict[Format, str] = {
    "coco": "a .json file in it or in annotations/",
    "dota": "labelTxt/*.txt",
    "voc": "Annotations/*.xml",
    "folders": "one folder of images a class",
    "masks": "img_dir/ with ann_dir/, images/ with masks/ or labels/, or images beside *_mask.*",
    "change": "A/, B/ and label/",
    "captions": "captions.json, .jsonl, .csv or .tsv",
}


def detect(config: SynthesizeConfig) -> Format:
    """The format of a folder, by what lies in it; `config.format` where that is set.

    Raises:
        DataError: no such folder, nothing known in it, or several formats at once.
    """
    root, base = config.root, base_of(config)
    if not root.is_dir():
        raise DataError("no such folder; set root to the folder of the data set", str(root))
    if config.format != "auto":
        return config.format
    classes = class_folders(base)
    signs: dict[Format, bool] = {
        "coco": config.labels is None and any(_looks_like_coco(config)),
        "dota": any((base / name).is_dir() for name in DOTA_FOLDERS),
        "voc": any((root / VOC_FOLDER).glob("*.xml")),
        "folders": len(classes) >= 2,
        "masks": config.masks is not None
        or any((base / image).is_dir() and (base / mask).is_dir() for image, mask in MASK_FOLDERS[:3])
        or any(True for folder in classes for _ in folder.glob("*_mask*.*")),
        "change": all((base / name).is_dir() for name in CHANGE_FOLDERS),
        "captions": config.labels is None and bool(find_captions(config)),
    }
    found = [fmt for fmt, there in signs.items() if there]
    if len(found) == 1:
        return found[0]
    if found:
        reasons = " and ".join(f"{fmt} ({_SIGNS[fmt]})" for fmt in found)
        raise DataError(f"looks like {reasons}; say which with format: {found[0]}", str(root))
    known = "; ".join(f"{fmt}: {sign}" for fmt, sign in _SIGNS.items())
    inner = sorted(p.name for p in root.iterdir() if p.is_dir())[:4]
    hint = f" (its folders: {', '.join(inner)}; perhaps the root is one of them)" if inner else ""
    raise DataError(f"holds no labels that are known{hint}; {known}", str(root))


def _looks_like_coco(config: SynthesizeConfig) -> list[bool]:
    """Whether the first part of each JSON file speaks of images, annotations or categories."""
    heads = []
    for path in find_coco(config):
        with path.open("rb") as stream:
            head = stream.read(1 << 16)
        heads.append(any(f'"{key}"'.encode() in head for key in ("annotations", "categories", "images")))
    return heads


def read(config: SynthesizeConfig) -> LabelledSet:
    """The labelled images of a recipe, by name, classes renamed, cut to the first `limit`.

    Raises:
        DataError: the labels are damaged, or none of their images is there.
        ConfigError: a class to rename does not occur, or no task is left to ask.
    """
    fmt = detect(config)
    strange = [task for task in [*(config.tasks or []), *config.without] if task not in TASKS[fmt]]
    if strange or not config.chosen(fmt):
        found = f"there is no task '{strange[0]}' for {fmt}" if strange else "every task is left out"
        raise ConfigError(f"tasks: {found}; {fmt} has {', '.join(TASKS[fmt])}")
    found_set = _READERS[fmt](config)
    top = os.path.realpath(config.root)
    inside = [all(_lies_in(config.root / name, top) for name in image.images) for image in found_set.images]
    for image, fine in zip(found_set.images, inside, strict=True):
        if not fine:  # through a symbolic link; pretraining would refuse it
            found_set.skip("outside the root, or with a name that is no UTF-8", ascii(image.name))
    found_set.images = [image for image, fine in zip(found_set.images, inside, strict=True) if fine]
    if not found_set.images:
        reasons = ", ".join(f"{n} {reason} (such as {found_set.examples[reason]})"
                            for reason, n in found_set.skipped.items())  # fmt: skip
        fix = "set root to the folder that the image names are relative to, or images to their folder"
        raise DataError(f"none of the labelled images can be used: {reasons or 'none is listed'}; {fix}",
                        str(config.root))  # fmt: skip
    found_set.images.sort(key=lambda image: image.name)
    twice = [name for name, n in Counter(image.name for image in found_set.images).items() if n > 1]
    if twice:
        raise DataError(f"the image {twice[0]} is labelled twice; merge its labels", str(config.root))
    _check_renamed(config, found_set)
    found_set.classes = tuple(dict.fromkeys(word(config, name) for name in found_set.classes))
    found_set.images = [_renamed(config, image) for image in found_set.images[: config.limit]]
    return found_set


def _lies_in(path: Path, top: str) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return os.path.commonpath([top, os.path.realpath(path)]) == top


def _check_renamed(config: SynthesizeConfig, found: LabelledSet) -> None:
    known = set(found.classes)
    if found.format == "masks":
        known |= set(class_names(config).values())
    for name in config.rename:
        if name not in known:
            listed = ", ".join(sorted(known)[:20]) or "none"
            raise ConfigError(f"rename.{name}: the labels have no such class; their classes: {listed}")


def word(config: SynthesizeConfig, name: str) -> str:
    """A class as it is written in a sentence: renamed, or with spaces instead of - and _.

    Raises:
        DataError: the name cannot stand in a text.
    """
    if name in config.rename:
        return config.rename[name]
    plain = " ".join(name.replace("_", " ").replace("-", " ").split())
    if not plain or any(c in "<>[]{}" or not c.isprintable() for c in plain):
        raise DataError(f"the class name {name!r} cannot stand in a text; give it another with rename",
                        str(config.root))  # fmt: skip
    return plain


def _renamed(config: SynthesizeConfig, image: LabelledImage) -> LabelledImage:
    objects = tuple(replace(thing, label=word(config, thing.label)) for thing in image.objects)
    label = word(config, image.label) if image.label is not None else None
    return replace(image, objects=objects, label=label)
