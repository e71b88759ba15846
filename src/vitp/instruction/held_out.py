"""Records kept from training to ask the model about: chosen by image, the same ones in every run.

A picture is in training or held out, never both: where two sources of a mixture show the same file, holding it out of one
holds it out of the other. Which pictures those are depends on their names alone, not on the seed or the order of the
file, so that runs are compared on the same questions and further records change little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitp.errors import DataError
from vitp.files import write_text
from vitp.images.choice import split_choice
from vitp.instruction.source import Source

Ints = NDArray[np.int64]
HELD_OUT = "held_out.json"  # in a run's folder: what `write_splits` noted


@dataclass(frozen=True)
class Split:
    """A source in two parts, as sample numbers in ascending order; what is in neither shows pictures of both."""

    training: Ints
    held_out: Ints


def split_sources(sources: Sequence[Source], numbers: Sequence[int]) -> list[Split]:
    """Hold out about `numbers[i]` samples of source i: whole pictures, until there are that many.

    Every record is read once. A sample that cannot be read stays in training, which deals with it. A sample of several
    pictures is held out with all of them, and so is every other sample that shows one of these.

    Raises:
        DataError: nothing would be left to train on.
    """
    assert len(sources) == len(numbers)
    shown = [[_pictures(source, i) for i in range(len(source))] for source in sources]
    held: set[bytes] = set()
    for pictures, number in zip(shown, numbers, strict=True):
        held |= _chosen(pictures, number)
    parts = []
    for source, pictures, number in zip(sources, shown, numbers, strict=True):
        inside = np.array([sum(p.file in held for p in some) for some in pictures], np.int64)
        sizes = np.array([len(some) for some in pictures], np.int64)
        training, whole = np.flatnonzero(inside == 0), np.flatnonzero((inside > 0) & (inside == sizes))
        if not len(training):
            found = f"source '{source.config.name}': nothing is left to train on once {number or 'the'} samples are held out"
            raise DataError(f"{found} with all that show the same pictures; lower its hold_out")
        parts.append(Split(training, whole if number else whole[:0]))
    return parts


class _Picture(NamedTuple):
    """What a sample shows, by two hashes: of the name in the record, which gives the order, and of the file it is."""

    name: bytes
    file: bytes


def _pictures(source: Source, index: int) -> tuple[_Picture, ...]:
    """A sample's pictures (without any, its text stands for one); none if it cannot be read.

    The slices of a volume and the windows of a scene are one picture.
    """
    try:
        sample = source.sample(index)
        names = dict.fromkeys(split_choice(name)[0] for name in sample.images)
        if not names:
            text = _hash("\0".join(turn.text for turn in sample.turns))
            return (_Picture(text, text),)
        return tuple(_Picture(_hash(name), _hash(str(source.image_file(name)))) for name in names)
    except DataError:
        return ()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _chosen(shown: Sequence[tuple[_Picture, ...]], number: int) -> set[bytes]:
    """Files of whole samples, together with those beside them, until `number` samples show them.

    The order is by a hash of the name, so it has nothing to do with what is shown or where the data lies.
    """
    if number == 0:
        return set()
    users: dict[bytes, list[int]] = {}
    for index, pictures in enumerate(shown):
        for picture in pictures:
            users.setdefault(picture.file, []).append(index)
    held: set[bytes] = set()
    samples: set[int] = set()
    for first in sorted({picture for pictures in shown for picture in pictures}):
        if len(samples) >= number:
            break
        waiting = [first.file]
        while waiting:  # pictures shown together stay together
            file = waiting.pop()
            if file not in held:
                held.add(file)
                samples.update(users[file])
                waiting += [other.file for index in users[file] for other in shown[index]]
    return held


def write_splits(path: Path, sources: Sequence[Source], splits: Sequence[Split]) -> None:
    """Note what is held out and what is left out, by source, for a run to be resumed with.

    Raises:
        OutputError: the file cannot be written.
    """
    noted = {}
    for source, split in zip(sources, splits, strict=True):
        left = np.setdiff1d(np.arange(len(source)), np.concatenate([split.training, split.held_out]))
        noted[source.config.name] = {"held_out": split.held_out.tolist(), "left_out": left.tolist()}
    write_text(path, json.dumps(noted) + "\n")


def read_splits(path: Path, sources: Sequence[Source]) -> list[Split]:
    """What `write_splits` noted.

    Raises:
        DataError: it is not about these sources.
    """
    noted = json.loads(path.read_text(encoding="utf-8"))
    splits = []
    for source in sources:
        name, size = source.config.name, len(source)
        if name not in noted:
            raise DataError(f"says nothing of source '{name}'; resume with the sources the run began with", str(path))
        held, left = (np.array(noted[name][key], np.int64) for key in ("held_out", "left_out"))
        both = np.concatenate([held, left])
        if len(both) and both.max() >= size:
            raise DataError(
                f"names samples source '{name}' no longer has; restore its file or start a new run", str(path)
            )
        splits.append(Split(np.setdiff1d(np.arange(size), both), held))
    return splits


def find_splits(sources: Sequence[Source], numbers: Sequence[int], saved: Path | None) -> list[Split]:
    """What is held out of each source, as `saved` notes if there is such a file; empty where nothing is held out.

    Raises:
        DataError: nothing is left to train on, or the sources are no longer what they were.
    """
    if not any(numbers):
        return []
    return read_splits(saved, sources) if saved is not None and saved.is_file() else split_sources(sources, numbers)


def parted(sources: Sequence[Source], splits: Sequence[Split]) -> tuple[list[Source], list[Source]]:
    """What is left to train on, and what is held out of it; without splits everything is trained on."""
    if not splits:
        return list(sources), []
    pairs = list(zip(sources, splits, strict=True))
    held = [source.part(split.held_out) for source, split in pairs if len(split.held_out)]
    return [source.part(split.training) for source, split in pairs], held
