"""What one sample asks of the machine, as `StepBuilder` would find it, from its record and the headers of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from vitp.errors import DataError, VitpError
from vitp.images.decode import MAX_PIXELS, ImageError
from vitp.images.read import image_size
from vitp.instruction.grammar import GrammarError, parse_boxes
from vitp.instruction.index import SizeRules
from vitp.instruction.index_file import IMAGE, SIZE_FIELDS, Flag
from vitp.instruction.pack import lay_out
from vitp.instruction.records import RecordError
from vitp.instruction.sample import Sample
from vitp.instruction.source import Source
from vitp.instruction.tiling import tile_count
from vitp.instruction.token_count import TokenCounter

Size = tuple[int, int]  # width, height
_KNOWN_IMAGES = 200_000  # as in `vitp.instruction.check`


@dataclass(slots=True)
class Row:
    """One row of an index."""

    images: list[tuple[str, int, int]]
    text: int = 0
    supervised: int = 0
    tiles: int = 0
    flags: int = 0
    code: str = ""
    message: str = ""


class Measurer:
    """Measures the samples of one source, remembering the images it has seen."""

    def __init__(self, source: Source, rules: SizeRules) -> None:
        self._source, self._rules = source, rules
        self._counter = TokenCounter(rules.chat)
        self._images: dict[str, Size | ImageError] = {}
        tiling = rules.tiling.with_most(source.config.max_tiles)

        @lru_cache(maxsize=65536)
        def tiles(width: int, height: int, images: int) -> int:
            return tile_count(width, height, tiling, rules.tile_size, images)

        self._tiles = tiles

    def trust(self, sizes: Mapping[str, Size]) -> None:
        """Take sizes of images as known."""
        self._images.update(sizes)

    def row(self, index: int) -> Row:
        """Measure one sample; what makes it unusable is in the row.

        Raises:
            DataError: the annotations as a whole cannot be read any more.
            MissingExtraError: an image's format needs an extra that is not installed.
        """
        images: list[tuple[str, int, int]] = []
        try:
            sample = self._source.sample(index)
        except RecordError as error:
            if error.code == "file-changed":
                raise
            return _unusable(images, error.code, error.reason)
        try:
            return self._measured(sample, images)
        except ImageError as error:
            return _unusable(images, error.code, error.reason, Flag.IMAGE)
        except GrammarError as error:
            return _unusable(images, error.code, error.reason)
        except DataError as error:
            return _unusable(images, "max-length", error.reason)
        except VitpError:
            raise
        except Exception as error:  # a defect of ours must not cost the other samples
            return _unusable(
                images, "unexpected", f"raises {type(error).__name__}: {error}; please report this, with the record"
            )

    def _measured(self, sample: Sample, images: list[tuple[str, int, int]]) -> Row:
        boxes = False
        for turn in sample.turns:
            if "<box>" in turn.text:
                parse_boxes(turn.text)
                boxes = True
        tiles: list[int] = []
        if sample.images:
            self._size(sample.images, images)
            tiles = [self._tiles(width, height, len(images)) for _, width, height in images]
        count = self._counter.count(sample.turns)
        row = Row(images, count.text, count.supervised, sum(tiles), Flag.BOXES if boxes else 0)
        if count.text + row.tiles * self._rules.tokens_per_tile > self._rules.max_length:
            row.supervised, row.flags = self._cut(sample, tiles), row.flags | Flag.TRUNCATED
        return row

    def _size(self, names: tuple[str, ...], images: list[tuple[str, int, int]]) -> None:
        """Append the images with their sizes, 0 x 0 where there is none.

        Raises:
            ImageError: about the first that cannot be used.
        """
        wrong: ImageError | None = None
        for name in names:
            known = self._images.get(name)
            if known is None:
                if len(self._images) >= _KNOWN_IMAGES:
                    self._images.clear()
                known = self._images[name] = self._inspect(name)
            if isinstance(known, ImageError):
                images.append((name, 0, 0))
                wrong = wrong or known
            else:
                images.append((name, *known))
        if wrong is not None:
            raise wrong.with_traceback(None)  # it is raised for many samples, and must not remember them all

    def _inspect(self, name: str) -> Size | ImageError:
        source = self._source
        try:
            width, height = image_size(source.image_file(name), source.config.images)
        except ImageError as error:
            return ImageError(error.code, f"image {name} {error.found}", error.fix, error.where)
        if width * height > MAX_PIXELS:
            found = f"image {name} has {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed"
            return ImageError("image-too-large", found, "cut it into smaller images", name)
        return width, height

    def _cut(self, sample: Sample, tiles: list[int]) -> int:
        """Supervised tokens left of a sample that is longer than max_length.

        Raises:
            DataError: visual tokens would be cut, or no answer is left.
        """
        encoded = self._rules.chat.encode(sample.turns, [n * self._rules.tokens_per_tile for n in tiles])
        nothing = np.zeros(0, np.int64)
        cut = lay_out(encoded, torch.zeros(0), nothing, nothing, "token", self._rules.max_length, "")
        return len(cut.targets)

    def table(self, rows: range) -> tuple[pa.Table, list[str]]:
        """Rows of an index without places, and the codes that its column ``reason`` counts."""
        measured = [self.row(index) for index in rows]
        reasons = ["", *sorted({row.code for row in measured} - {""})]
        numbers = {code: number for number, code in enumerate(reasons)}
        images = [image for row in measured for image in row.images]
        ends = np.cumsum([0, *(len(row.images) for row in measured)])
        parts = [pa.array([image[k] for image in images], field.type) for k, field in enumerate(IMAGE)]
        columns = [
            pa.LargeListArray.from_arrays(
                pa.array(ends, pa.int64()),
                pa.StructArray.from_arrays(parts, fields=list(IMAGE)),
                type=SIZE_FIELDS[0].type,
            ),
            [row.text for row in measured],
            [row.supervised for row in measured],
            [row.tiles for row in measured],
            [row.flags for row in measured],
            [numbers[row.code] for row in measured],
            [row.message for row in measured],
        ]
        arrays = [pa.array(c, f.type) if isinstance(c, list) else c for c, f in zip(columns, SIZE_FIELDS, strict=True)]
        return pa.Table.from_arrays(arrays, schema=pa.schema(list(SIZE_FIELDS))), reasons


def _unusable(images: list[tuple[str, int, int]], code: str, message: str, flags: int = 0) -> Row:
    return Row(images, flags=Flag.UNUSABLE | flags, code=code, message=message)
