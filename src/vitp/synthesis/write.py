"""Questions to a JSON Lines file in the LLaVA layout, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vitp.errors import OutputError
from vitp.files import text_stream
from vitp.instruction.sample import IMAGE_MARK
from vitp.synthesis.config import Format
from vitp.synthesis.labels import LabelledImage
from vitp.synthesis.words import Asked


def make_record(
    image: LabelledImage, asked: Sequence[Asked], fmt: Format, seed: int, was: Mapping[int, str], model: str
) -> dict[str, object]:
    """One record: id, image (a list for a pair), conversations, and where it comes from.

    ``source_file`` is the label file, ``source_format`` its format, ``tasks`` the task of each question, ``seed`` the
    seed that chose them. Where `model` reworded turns, ``reworded`` names it and holds the original value of each:
    ``{"model": ..., "turns": [{"turn": 0, "was": ...}]}``. Readers of instruction data leave these keys alone.
    """
    assert asked
    marks = f"{IMAGE_MARK}\n" * len(image.images)
    turns: list[dict[str, str]] = []
    for number, found in enumerate(asked):
        turns.append({"from": "human", "value": (marks if number == 0 else "") + found.question})
        turns.append({"from": "gpt", "value": found.answer})
    old = [{"turn": turn, "was": (marks if turn == 0 else "") + text} for turn, text in was.items()]
    return {
        "id": f"{fmt}/{image.name}",
        "image": image.images[0] if len(image.images) == 1 else list(image.images),
        "conversations": turns,
        "source_file": image.source,
        "source_format": fmt,
        "tasks": [found.task for found in asked],
        "seed": seed,
        **({"reworded": {"model": model, "turns": old}} if old else {}),
    }


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        OutputError: a folder, or a file that holds something and is not to be overwritten.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name the file to write, {path}/instructions.jsonl")
        if not overwrite and path.exists() and path.stat().st_size:
            raise OutputError(f"{path} exists and is not empty; choose another name, or allow it with overwrite")
    except OSError as error:
        raise OutputError(f"{path} cannot be used ({error.strerror}); choose another place") from error


def write_records(path: Path, records: Iterable[dict[str, object]]) -> int:
    """Write records one a line (UTF-8), atomically; returns their number.

    Raises:
        OutputError: the folder cannot be made or written to. Nothing is left behind, and an older file stays as it was.
    """
    count = 0
    with text_stream(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
