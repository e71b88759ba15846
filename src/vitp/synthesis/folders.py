"""Labels that belong to whole images: one folder a class, and files of captions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from vitp.errors import DataError
from vitp.instruction.grammar import GrammarError, parse_boxes
from vitp.instruction.records import RESERVED
from vitp.instruction.sample import IMAGE_MARK
from vitp.synthesis.config import SynthesizeConfig
from vitp.synthesis.json_lines import Entries, read_json
from vitp.synthesis.labels import (
    SUFFIXES,
    LabelledImage,
    LabelledSet,
    below,
    find_size,
    read_label_text,
    relative,
)  # fmt: skip
from vitp.synthesis.objects import base_of

_STRUCTURE = {
    "a", "b", "label", "labels", "images", "image", "img", "imgs", "masks", "mask", "annotations", "ann_dir", "img_dir",
    "jpegimages", "imagesets", "train", "val", "valid", "validation", "test",
}  # fmt: skip
CAPTION_NAMES = ("captions.json", "captions.jsonl", "captions.csv", "captions.tsv")
_IMAGE_KEYS, _CAPTION_KEYS = ("image", "file", "filename", "file_name", "id"), ("caption", "text")
Row = tuple[str, list[str], str]  # image name, its captions, file:line


def class_folders(base: Path) -> list[Path]:
    """Sub-folders that look like classes: they hold images, and their names are not those of another layout."""
    if not base.is_dir():
        return []
    return [
        folder
        for folder in sorted(base.iterdir())
        if folder.is_dir()
        and folder.name.lower() not in _STRUCTURE
        and "mask" not in folder.name.lower()
        and not folder.name.startswith((".", "_"))
        and any(p.suffix.lower() in SUFFIXES for p in folder.iterdir())
    ]


def read_folders(config: SynthesizeConfig) -> LabelledSet:
    """Images in one folder a class.

    Raises:
        DataError: fewer than two classes.
    """
    base = base_of(config) if config.images is None else config.root / config.images
    folders = class_folders(base)
    if len(folders) < 2:
        found = f"holds {len(folders)} folders of images; one folder a class is needed, two classes at least"
        raise DataError(found, str(base))
    excluded = set(config.root.glob(config.exclude)) if config.exclude else set()
    found_set = LabelledSet("folders", classes=tuple(folder.name for folder in folders))
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in SUFFIXES or path in excluded or not path.is_file():
                continue
            name = relative(path, config.root)
            size = find_size(path, found_set, name)
            if size is not None:
                source = relative(folder, config.root)
                found_set.images.append(LabelledImage((name,), size, source, label=folder.name))
    return found_set


# ------------------------------------------------------------------------------------------------------------ captions


def find_captions(config: SynthesizeConfig) -> list[Path]:
    """Caption files at their usual names."""
    if config.labels is not None:
        return [config.root / config.labels]
    return [config.root / name for name in CAPTION_NAMES if (config.root / name).is_file()]


def read_captions(config: SynthesizeConfig) -> LabelledSet:
    """Images with one or more captions each, from one file:

    * JSON with images of ``{"filename", "sentences": [{"raw"}]}`` or ``{"filename", "captions": [...]}``;
    * COCO captions: images, and annotations of ``{"image_id", "caption"}``;
    * JSON Lines of ``{"image", "caption" or "captions"}``;
    * CSV or TSV with a column image (file, filename, id) and a column caption (text).

    Raises:
        DataError: with file:line: no or several caption files, or an entry of another shape.
    """
    files = find_captions(config)
    if len(files) != 1:
        found = f"{len(files)} caption files" if files else f"no caption file ({', '.join(CAPTION_NAMES)})"
        raise DataError(f"holds {found}; say which with labels: FILE", str(config.root))
    path = files[0]
    suffix = path.suffix.lower()
    rows = _json_lines(path) if suffix == ".jsonl" else _table(path) if suffix in (".csv", ".tsv") else _json(path)
    collected: dict[str, tuple[list[str], str]] = {}
    for name, texts, where in _of_split(rows, path, config):
        kept = collected.setdefault(name, ([], where))[0]
        for text in texts:
            clean = " ".join(text.split())
            if clean and clean not in kept:
                kept.append(clean)
    found_set = LabelledSet("captions")
    folders = _caption_folders(config)
    for name, (texts, where) in collected.items():
        place = next((p for f in folders for p in _spelled(f, name, where, config.root) if p.is_file()), None)
        size = find_size(place if place is not None else config.root / name, found_set, name)
        if place is None or size is None:
            continue
        if not texts:
            found_set.skip("without caption", name)
            continue
        clean_texts = tuple(filter(_usable, texts))
        found_set.noted["captions that hold reserved marks, broken boxes or broken characters"] += len(texts) - len(
            clean_texts
        )
        found_set.images.append(
            LabelledImage((relative(place, config.root),), size, relative(path, config.root), captions=clean_texts)
        )
    return found_set


def _usable(text: str) -> bool:
    """Whether a caption can stand in an answer without being taken for something else."""
    try:
        text.encode()
        parse_boxes(text)
    except (UnicodeEncodeError, GrammarError):
        return False
    return not any(mark in text for mark in (IMAGE_MARK, *RESERVED))


def _caption_folders(config: SynthesizeConfig) -> list[Path]:
    if config.images is not None:
        return [config.root / config.images]
    return [config.root, *(p for p in sorted(config.root.rglob("*")) if p.is_dir())]


def _spelled(folder: Path, name: str, where: str, root: Path) -> Iterator[Path]:
    """A file of that name, or of that name with a suffix."""
    below(root, (folder / name).as_posix(), where)
    yield folder / name
    if Path(name).suffix.lower() not in SUFFIXES:
        for suffix in sorted(SUFFIXES):
            yield folder / f"{name}{suffix}"


def _of_split(rows: list[tuple[Row, str]], path: Path, config: SynthesizeConfig) -> Iterator[Row]:
    if config.split is None:
        yield from (row for row, _ in rows)
        return
    known = sorted({split for _, split in rows if split})
    if config.split not in known:
        named = f"it has {', '.join(known)}" if known else "it names none"
        raise DataError(f"has no split '{config.split}' ({named}); correct it or leave it out", f"{path}:1")
    yield from (row for row, split in rows if split == config.split)


def _json(path: Path) -> list[tuple[Row, str]]:
    document = read_json(path)
    images = Entries(path, document, "images")
    if isinstance(document, dict) and isinstance(document.get("annotations"), list):
        notes = Entries(path, document, "annotations")
        names = {images.whole(i, "id"): images.text(i, "file_name") for i in range(len(images.items))}
        rows: list[tuple[Row, str]] = []
        for i in range(len(notes.items)):
            owner = notes.whole(i, "image_id")
            if owner not in names:
                raise notes.mistake(i, f"belongs to the image {owner}, which is not listed", "add it under 'images'")
            rows.append(((names[owner], [notes.text(i, "caption")], str(path)), ""))
        return rows
    return [_json_row(images, i, path) for i in range(len(images.items))]


def _json_row(images: Entries, i: int, path: Path) -> tuple[Row, str]:
    entry = images.mapping(i)
    name = images.text(i, "filename" if "filename" in entry else "file_name")
    texts = entry.get("captions", entry.get("sentences"))
    if not isinstance(texts, list):
        fix = 'write "captions": ["..."] or "sentences": [{"raw": "..."}]'
        raise images.mistake(i, "has no list of captions", fix)
    raw = [text.get("raw") if isinstance(text, dict) else text for text in texts]
    plain = [text for text in raw if isinstance(text, str)]
    if len(plain) < len(raw):
        raise images.mistake(i, "has a caption that is no text", "write texts in quotes")
    split = entry.get("split")
    return (name, plain, str(path)), split if isinstance(split, str) else ""


def _json_lines(path: Path) -> list[tuple[Row, str]]:
    rows: list[tuple[Row, str]] = []
    for number, line in enumerate(read_label_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError("is no JSON; write one whole object a line", where) from error
        entry = entry if isinstance(entry, dict) else {}
        name = next((entry[key] for key in _IMAGE_KEYS if key in entry), None)
        text = entry.get("captions", next((entry[key] for key in _CAPTION_KEYS if key in entry), None))
        given = text if isinstance(text, list) else [text]
        texts = [t for t in given if isinstance(t, str)]
        if not isinstance(name, str) or len(texts) < len(given):
            raise DataError('needs an image and a caption; write {"image": "a.jpg", "caption": "..."}', where)
        split = entry.get("split")
        rows.append(((name, texts, where), split if isinstance(split, str) else ""))
    return rows


def _table(path: Path) -> list[tuple[Row, str]]:
    text = read_label_text(path).replace("\0", "")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    by_lower = {name.strip().lower(): name for name in reader.fieldnames or []}
    image = next((by_lower[key] for key in _IMAGE_KEYS if key in by_lower), None)
    caption = next((by_lower[key] for key in _CAPTION_KEYS if key in by_lower), None)
    if image is None or caption is None:
        found = ", ".join(by_lower) or "none"
        raise DataError(f"needs the columns image and caption, found: {found}; add a header line", f"{path}:1")
    rows: list[tuple[Row, str]] = []
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not row[image] or row[caption] is None:
                raise DataError("has no image or no caption; fill it in or delete the line", where)
            rows.append(((row[image].strip(), [row[caption]], where), (row.get(by_lower.get("split", "")) or "")))
    except csv.Error as error:
        raise DataError(f"is no table ({error}); correct its quotes", f"{path}:{reader.line_num}") from error
    return rows
