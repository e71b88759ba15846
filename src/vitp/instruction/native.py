"""Native annotations of public data sets, read as instruction records in the LLaVA layout.

Each reader returns records and where they come from, in a fixed order, the same on every machine. An entry that is
wrong in itself becomes a record that `vitp.instruction.records.parse_record` refuses, so that one bad entry costs one
record. An image's questions are dealt to its records like cards (record r of R takes turns r, r + R, r + 2R, ...), so
every turn is used exactly once and a record mixes kinds of questions.

Splits by hash: where a data set has no split of its own that keeps images apart, the CRC-32 of the image's name
decides, so an image stays on its side whatever else is added or removed.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from vitp.config import Config
from vitp.errors import DataError
from vitp.instruction.presence import QA, keyed, presence_questions

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")

CAPTION_PROMPTS = (
    "Describe the image.",
    "What does this image show?",
    "Describe this picture in one sentence.",
    "What can be seen here?",
    "Write a short caption for the image.",
)


class NativeArgs(Config):
    """What a reader needs to know."""

    root: Path
    annotations: Path | None = None  # file or folder; None: where the data set keeps them below `root`
    split: str = "train"
    turns: int = Field(default=3, ge=1)  # ours: turns a record holds at most


@dataclass(frozen=True, slots=True)
class NativeRecord:
    """A record in the LLaVA layout, its image relative to `NativeArgs.root`, and where it comes from."""

    record: dict[str, object]
    where: str


def rsicd(args: NativeArgs) -> list[NativeRecord]:
    """RSICD and its reductions: captions, the scene question, and presence questions derived from the captions.

    Read are ``captions.json`` (``images[i]``: filename, split, class, captions, questions) and the published
    ``dataset_rsicd.json`` (filename, split, sentences[j].raw). Per image, each different caption is a turn with one of
    `CAPTION_PROMPTS`, each question with its answer is one, and "Is there a <noun> in the image?" is asked as
    `_presence` describes. Presence answers are derived, not annotated: a "no" says that no caption speaks of the thing.

    Raises:
        DataError: the file is missing or unreadable, or has no image in the split.
    """
    path, entries = _rsicd_entries(args)
    prefix = next((f"{name}/" for name in ("images", "RSICD_images") if (args.root / name).is_dir()), "")
    names = [str(entry.get("filename")) for entry in entries]
    captions = [_captions(entry) for entry in entries]
    presence = presence_questions(names, captions, [str(entry.get("class") or "") for entry in entries])
    records: list[NativeRecord] = []
    for name, entry, texts, asked in zip(names, entries, captions, presence, strict=True):
        described: list[QA] = [(_pick(CAPTION_PROMPTS, f"{name} {text}"), text) for text in texts]
        pairs = entry.get("questions")
        scene: list[QA] = []
        for pair in pairs if isinstance(pairs, list) else []:
            question, answer = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
            scene.append((_clean(question), _clean(answer)))
        records += _short_answers_first(prefix + name, scene, asked, described, args.turns, f"{path}:{name}")
    return records


def _short_answers_first(
    image: str, scene: Sequence[QA], asked: Sequence[QA], described: Sequence[QA], per_record: int, where: str
) -> list[NativeRecord]:
    """Records that open with the scene question, go on with presence questions and end with one caption.

    A caption names the scene and the things in it, so after one every other answer could be read off the text instead
    of the image. With fewer than three turns a record there is no room for that and all turns are simply dealt out.
    """
    room = per_record - len(scene) - 1
    if room < 1 or not scene or not described:
        return _deal(image, [*scene, *asked, *described], per_record, where)
    count = max(len(described), -(-len(asked) // room))
    return [_record(image, [*scene, *asked[k::count], described[k % len(described)]], where) for k in range(count)]


def _rsicd_entries(args: NativeArgs) -> tuple[Path, list[dict[str, object]]]:
    path = args.annotations or _first_existing(args.root, ("captions.json", "dataset_rsicd.json"))
    document = _read_json(path)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not all(isinstance(entry, dict) for entry in images):
        raise DataError("holds no list 'images' of objects; name RSICD's captions file", str(path))
    entries = [entry for entry in images if args.split in ("all", entry.get("split"))]
    if not entries:
        splits = sorted({str(entry.get("split")) for entry in images})
        raise DataError(f"has no image in split '{args.split}'; its splits are {', '.join(splits)} and all", str(path))
    return path, entries


def _captions(entry: dict[str, object]) -> list[str]:
    """Different captions of an image, in order, with the blanks before punctuation taken out."""
    given = entry.get("captions", entry.get("sentences"))
    texts = [item.get("raw") if isinstance(item, dict) else item for item in given] if isinstance(given, list) else []
    cleaned = [re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split())) for text in texts if isinstance(text, str)]
    return [text for text in dict.fromkeys(cleaned) if text]


def rsvqa(args: NativeArgs) -> list[NativeRecord]:
    """RSVQA-LR and -HR: ``{prefix}_split_{split}_{questions,answers,images}.json``, active entries only.

    Raises:
        DataError: files are missing or unreadable, or the split has no active question.
    """
    path = _rsvqa_questions(args)
    stem = path.name.removesuffix("questions.json")
    questions = _active(path, "questions")
    listed = _active(path.with_name(stem + "answers.json"), "answers")
    answers = {str(entry.get("id")): entry.get("answer") for entry in listed}
    shown = {str(entry.get("id")) for entry in _active(path.with_name(stem + "images.json"), "images")}
    by_image: dict[str, list[dict[str, object]]] = {}
    for entry in questions:
        if str(entry.get("img_id")) in shown:
            by_image.setdefault(str(entry.get("img_id")), []).append(entry)
    prefix, suffix = _image_folder(args, list(by_image), (".tif", *SUFFIXES))
    records: list[NativeRecord] = []
    for image, entries in by_image.items():
        turns: list[QA] = []
        for entry in entries:
            ids = entry.get("answers_ids")
            given = [answers[str(i)] for i in ids if str(i) in answers] if isinstance(ids, list) else []
            turns.append((_clean(entry.get("question")), _clean(given[0] if given else None)))
        records += _deal(f"{prefix}{image}{suffix}", turns, args.turns, f"{path}:image {image}")
    return records


def _rsvqa_questions(args: NativeArgs) -> Path:
    """The questions file of the split."""
    place = args.annotations or args.root
    folder = place if place.is_dir() else place.parent
    prefix = place.name.partition("_split_")[0] if place.is_file() else "*"
    found = sorted(folder.glob(f"{prefix}_split_{args.split}_questions.json"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(p.name for p in found)
        raise DataError(f"holds {len(found)} data sets; name one as 'annotations' of {listed}", str(folder))
    there = sorted(folder.glob("*_split_*_questions.json"))
    splits = sorted({p.name.partition("_split_")[2].removesuffix("_questions.json") for p in there})
    fix = f"its splits are {', '.join(splits)}" if splits else "RSVQA's files are named *_split_<split>_questions.json"
    raise DataError(f"has no questions of split '{args.split}'; {fix}", str(folder))


def _active(path: Path, key: str) -> list[dict[str, object]]:
    document = _read_json(path)
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"holds no list '{key}'; name RSVQA's original file", str(path))
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("active")]


def vqa_rad(args: NativeArgs) -> list[NativeRecord]:
    """VQA-RAD's public JSON; blanks and tabs in answers become single blanks, numbers become texts.

    The official test questions (phrase_type test_*) are about images that are also asked about in training. The splits
    here are by image instead: "test" is the 15 % of images whose name's CRC-32 modulo 100 is below 15, "train" the
    rest, "all" both.

    Raises:
        DataError: the file is missing or unreadable, or the split is unknown.
    """
    path = args.annotations or _first_existing(args.root, ("VQA_RAD Dataset Public.json",))
    document = _read_json(path)
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise DataError("is no list of questions; name VQA-RAD's public JSON file", str(path))
    by_image: dict[str, list[QA]] = {}
    for entry in document:
        qa = (_clean(entry.get("question")), _clean(entry.get("answer")))
        by_image.setdefault(str(entry.get("image_name")), []).append(qa)
    chosen = [name for name in by_image if _in_split(name, args.split, test_percent=15, where=str(path))]
    prefix, _ = _image_folder(args, chosen, ("",))
    dealt = [_deal(prefix + name, by_image[name], args.turns, f"{path}:{name}") for name in chosen]
    return [record for records in dealt for record in records]


def rocov2(args: NativeArgs) -> list[NativeRecord]:
    """ROCOv2: ``*{split}_captions.csv`` (ID, Caption), images in ``{split}/`` or ``{split}_images/``; one turn each.

    Raises:
        DataError: the file is missing, damaged or has other columns.
    """
    place = args.annotations or args.root
    files = [place] if place.is_file() else sorted(place.glob(f"*{args.split}_captions.csv"))
    if len(files) != 1:
        raise DataError(f"has {len(files)} files *{args.split}_captions.csv where one is expected; ROCOv2's splits are "
                        "train, valid and test, or name the file as 'annotations'", str(place))  # fmt: skip
    path = files[0]
    rows: list[tuple[str, str, int]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"ID", "Caption"} <= set(reader.fieldnames or ()):
                found = ", ".join(reader.fieldnames or ())
                raise DataError(f"has the columns '{found}'; ID and Caption are expected", str(path))
            rows = [(row["ID"] or "", " ".join((row["Caption"] or "").split()), reader.line_num) for row in reader]
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error}); fetch it again", str(path)) from error
    prefix, suffix = _image_folder(args, [name for name, _, _ in rows], SUFFIXES)
    records: list[NativeRecord] = []
    for name, caption, line in rows:
        records += _deal(f"{prefix}{name}{suffix}", [(_pick(CAPTION_PROMPTS, name), caption)], 1, f"{path}:{line}")
    return records


Reader = Callable[[NativeArgs], list[NativeRecord]]
FORMATS: dict[str, Reader] = {"rsicd": rsicd, "rsvqa": rsvqa, "vqa_rad": vqa_rad, "rocov2": rocov2}


def detect(root: Path, annotations: Path | None) -> str | None:
    """The native format of a data set by its file names, None where they do not tell."""
    place = annotations or root
    names = [place.name] if place.is_file() else [p.name for p in place.iterdir()] if place.is_dir() else []
    signs = {
        "rsicd": r"captions\.json|dataset_rsicd\.json",
        "rsvqa": r".+_split_.+_questions\.json",
        "vqa_rad": r"VQA_RAD.*\.json",
        "rocov2": r".*_captions\.csv",
    }
    matching = [name for name, sign in signs.items() if any(re.fullmatch(sign, found) for found in names)]
    return matching[0] if len(matching) == 1 else None


def labels(format: str, root: Path, split: str) -> list[tuple[Path, str]]:
    """(image, class) pairs for classification, sorted by path.

    Args:
        format: "rsicd" (the scene class), or "folder": one folder of images a class, below ``root/split`` where that
            exists. Else "test" is the 20 % of images whose name's CRC-32 modulo 100 is below 20, "train" the rest.
        root: the data set's folder.
        split: "train" or "test" ("all": both), or what the data set calls its splits.

    Raises:
        DataError: unknown format or split, or nothing found.
    """
    if format == "rsicd":
        path, entries = _rsicd_entries(NativeArgs(root=root, split=split))
        if not all(isinstance(entry.get("class"), str) for entry in entries):
            raise DataError("has images without a 'class'; add it to each", str(path))
        folder = next((root / name for name in ("images", "RSICD_images") if (root / name).is_dir()), root)
        return sorted((folder / str(entry.get("filename")), str(entry.get("class"))) for entry in entries)
    if format != "folder":
        raise DataError(f"labels are read from the formats rsicd and folder, not '{format}'", str(root))
    own = (root / split).is_dir()
    base = root / split if own else root
    if not base.is_dir():
        raise DataError("is no folder; name the folder that holds one folder a class", str(base))
    images = [path for path in sorted(base.glob("*/**/*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    names = [path.relative_to(base).as_posix() for path in images]
    kept = [(path, name.partition("/")[0]) for path, name in zip(images, names, strict=True)
            if own or _in_split(name, split, test_percent=20, where=str(base))]  # fmt: skip
    if not kept:
        raise DataError(f"has no image in split '{split}'; expected is one folder of images a class", str(base))
    return kept


def _deal(image: str, turns: Sequence[QA], per_record: int, where: str) -> list[NativeRecord]:
    """Turns of one image dealt to as few records as can hold them; no turns give one record, to be refused."""
    count = max(1, -(-len(turns) // per_record))
    return [_record(image, turns[first::count], where) for first in range(count)]


def _record(image: str, turns: Sequence[QA], where: str) -> NativeRecord:
    conversation: list[dict[str, object]] = []
    for question, answer in turns:
        conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return NativeRecord({"image": image, "conversations": conversation}, where)


def _clean(value: object) -> object:
    """A text with single blanks, a number as text; anything else stays, to be refused as a record."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return " ".join(value.split()) if isinstance(value, str) else value


def _pick(options: Sequence[str], key: str) -> str:
    return options[keyed(key) % len(options)]


def _in_split(name: str, split: str, *, test_percent: int, where: str) -> bool:
    if split not in ("train", "test", "all"):
        raise DataError(f"has no split '{split}'; its splits are train, test and all", where)
    return split == "all" or (keyed(name) % 100 < test_percent) == (split == "test")


def _first_existing(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(f"holds no {' or '.join(names)}; set 'annotations' to the file", str(root))


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot be read as JSON ({detail}); fetch the file again", str(path)) from error


def _image_folder(args: NativeArgs, names: Sequence[str], suffixes: Iterable[str]) -> tuple[str, str]:
    """(folder below the root with a slash at its end, suffix) where the first few names are found as files."""
    root, own = args.root, (args.split, f"{args.split}_images")
    if not names:
        raise DataError(f"has nothing in split '{args.split}'; name another split", str(root))
    folders = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
    folders.sort(key=lambda folder: folder.name not in own)  # stable: the split's own folder first
    for name in names[:20]:
        for folder in folders:
            for suffix in suffixes:
                if (folder / f"{name}{suffix}").is_file():
                    relative = folder.relative_to(root).as_posix()
                    return ("" if relative == "." else relative + "/"), suffix
    raise DataError(f"holds no image named {names[0]}, nor do its folders; correct 'root'", str(root))
