"""Labels in pixels: semantic masks, and change pairs A / B / label."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitp.errors import DataError
from vitp.synthesis.config import SynthesizeConfig
from vitp.synthesis.json_lines import read_json
from vitp.synthesis.labels import SUFFIXES, LabelledImage, LabelledSet, find_size, relative
from vitp.synthesis.objects import base_of

# (images, masks): the usual names of the two folders.
MASK_FOLDERS = (
    ("img_dir", "ann_dir"), ("images", "masks"), ("images", "labels"), ("images", "annotations"), ("image", "mask"),
)  # fmt: skip
CHANGE_FOLDERS = ("A", "B", "label")
NO_CLASS = -1


def read_masks(config: SynthesizeConfig) -> LabelledSet:
    """Images with one or more mask files each; pixels are read when the questions are made (`read_classes`).

    Raises:
        DataError: no image, no class names, or an image without mask.
    """
    images, template = _mask_places(config)
    names = class_names(config)
    excluded = set(config.root.glob(config.exclude)) if config.exclude else set()
    files = [p for p in sorted(config.root.glob(images))
             if p.suffix.lower() in SUFFIXES and p not in excluded and p.is_file()]  # fmt: skip
    found = LabelledSet("masks", classes=tuple(dict.fromkeys(names.values())))
    for path in files:
        name = relative(path, config.root)
        masks = _find_masks(path, config.root, template)
        if not masks:
            fix = "add it, or leave the image out with exclude: GLOB"
            raise DataError(f"has no mask ({template}); {fix}", str(path))
        size = find_size(path, found, name)
        if size is not None:
            found.images.append(LabelledImage((name,), size, relative(masks[0], config.root), masks=tuple(masks)))
    return found


def _mask_places(config: SynthesizeConfig) -> tuple[str, str]:
    """Glob of the images and template of the masks, both under root."""
    if config.images is not None:
        if config.masks is None:
            raise DataError("images is given without masks; add masks: ann_dir/{stem}.png", str(config.root))
        return config.images, config.masks
    base = base_of(config)
    for image, mask in MASK_FOLDERS:
        if (base / image).is_dir() and (base / mask).is_dir():
            prefix = f"{config.split}/" if base != config.root else ""
            return f"{prefix}{image}/*", f"{prefix}{mask}/{{stem}}.*"
    usual = ", ".join(f"{image}/ with {mask}/" for image, mask in MASK_FOLDERS)
    fix = "name them with images: img_dir/*.png and masks: ann_dir/{stem}.png"
    raise DataError(f"no folders of images and masks ({usual}); {fix}", str(base))


def _find_masks(image: Path, root: Path, template: str) -> list[Path]:
    inside = image.relative_to(root)
    places = {
        "stem": image.stem, "name": image.name, "folder": inside.parent.as_posix(), "parent": inside.parent.name,
        "above": inside.parent.parent.as_posix(),
    }  # fmt: skip
    exact = root / template.format(**places)
    if exact.is_file():
        return [exact]
    pattern = template.format(**{key: escape(value) for key, value in places.items()})
    return sorted(file for file in root.glob(pattern) if file.is_file() and file != image)


def class_names(config: SynthesizeConfig) -> dict[int, str]:
    """Pixel value -> class name as the recipe gives it, or as root/classes.json does (a list, or {"0": name}).

    Raises:
        DataError: neither says, or classes.json holds something else.
    """
    if config.classes is not None:
        return config.classes
    file = config.root / "classes.json"
    if not file.is_file():
        fix = "say what the pixel values mean, as in classes: {0: background, 1: building}"
        raise DataError(f"there is no classes.json; {fix}", str(config.root))
    found = read_json(file)
    if isinstance(found, dict) and "classes" in found:
        found = found["classes"]
    if isinstance(found, list):
        found = {str(i): name for i, name in enumerate(found)}
    if not isinstance(found, dict) or not all(k.isdecimal() and isinstance(v, str) and v for k, v in found.items()):
        raise DataError('must hold a list of class names, or {"0": name, ...}', f"{file}:1")
    return {int(key): name for key, name in found.items()}


def read_classes(image: LabelledImage, values: dict[int, int], ignore: set[int]) -> NDArray[np.int16]:
    """Class index of every pixel, [H, W]; `NO_CLASS` where the value is ignored.

    Several masks of one image are merged by the higher pixel value.

    Args:
        image: with its mask files.
        values: pixel value -> class index.
        ignore: pixel values without a class.

    Raises:
        DataError: a mask cannot be read, has another size than its image, or holds an unknown value.
    """
    merged: NDArray[np.int64] | None = None
    for file in image.masks:
        here = read_values(file, image.size)
        merged = here if merged is None else np.maximum(merged, here)
    assert merged is not None
    known = np.array(sorted({*values, *ignore}), np.int64)
    target = np.array([NO_CLASS if v in ignore else values[v] for v in known.tolist()], np.int16)
    place = np.minimum(np.searchsorted(known, merged), len(known) - 1)
    strange = known[place] != merged
    if strange.any():
        value = int(merged[strange][0])
        fix = f"name it with classes: {{{value}: NAME}}, or leave it out with ignore: [{value}]"
        raise DataError(f"pixel value {value} is no class (known: {known.tolist()[:12]}); {fix}", str(image.masks[0]))
    result: NDArray[np.int16] = target[place]
    return result


def read_values(file: Path, size: tuple[int, int]) -> NDArray[np.int64]:
    """Pixel values [H, W] of a mask file: palette indices as they are, 1-bit as 0 and 255.

    Raises:
        DataError: unreadable, colourful, not whole numbers, or of another size.
    """
    try:
        with Image.open(file) as picture:
            values: NDArray[Any] = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the mask cannot be read ({error}); copy it again", str(file)) from error
    if values.ndim == 3:
        colours = values[..., : 1 if values.shape[2] == 2 else 3]
        if (colours != colours[..., :1]).any():
            raise DataError("is a colour picture; masks hold one number a pixel (grey or palette)", str(file))
        values = colours[..., 0]
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"holds {values.dtype} pixels; masks hold whole numbers", str(file))
    if values.shape != (size[1], size[0]):
        found = f"has {values.shape[1]} x {values.shape[0]} pixels and its image {size[0]} x {size[1]}"
        raise DataError(f"{found}; both must have the same size", str(file))
    return values.astype(np.int64)


def read_change(config: SynthesizeConfig) -> LabelledSet:
    """Pairs of images with a label of two values each: 0 where nothing changed, another one (1, 255) where it did.

    Raises:
        DataError: a folder is missing, or the two images of a pair differ in size.
    """
    base = base_of(config)
    folders = [base / name for name in CHANGE_FOLDERS]
    for folder in folders:
        if not folder.is_dir():
            raise DataError("no such folder; change pairs lie in A (before), B (after) and label", str(folder))
    found = LabelledSet("change")
    for label in sorted(p for p in folders[2].iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()):
        pair = [_same_name(folder, label) for folder in folders[:2]]
        before = find_size(pair[0], found, relative(pair[0], config.root))
        after = find_size(pair[1], found, relative(pair[1], config.root)) if before is not None else None
        if before is None or after is None:
            continue
        if after != before:
            text = f"has {after[0]} x {after[1]} pixels and its other date {before[0]} x {before[1]}"
            raise DataError(f"{text}; both must have the same size", str(pair[1]))
        names = (relative(pair[0], config.root), relative(pair[1], config.root))
        found.images.append(LabelledImage(names, after, relative(label, config.root), masks=(label,)))
    return found


def _same_name(folder: Path, label: Path) -> Path:
    """The image of a label: the same name, or the same name with another suffix."""
    exact = folder / label.name
    if exact.is_file():
        return exact
    return next((p for s in sorted(SUFFIXES) if (p := folder / f"{label.stem}{s}").is_file()), exact)


def read_changed(image: LabelledImage) -> NDArray[np.bool_]:
    """Where a pair changed, [H, W].

    Raises:
        DataError: as `read_values`, or a label of more than two values.
    """
    values = read_values(image.masks[0], image.size)
    kinds = np.unique(values)
    if len(kinds[kinds != 0]) > 1:
        shown = ", ".join(map(str, kinds[:6].tolist()))
        fix = "write 0 for unchanged and one other value for changed, without lossy compression"
        raise DataError(f"holds {len(kinds)} values ({shown}, ...); {fix}", str(image.masks[0]))
    changed: NDArray[np.bool_] = values != 0
    return changed
