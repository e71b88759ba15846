"""What one sample asks of the machine, as `StepBuilder` would find it, from its record and the headers of its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from vitp.errors import DataError, VitpError
from vitp.images.decode import MAX_PIXELS, ImageError
from vitp.images.read import image_size
from vitp.instruction.grammar import GrammarError, parse_boxes
from vitp.instruction.index import SizeRules
from vitp.instruction.index_file import IMAGE, SIZE_FIELDS, Flag
from vitp.instruction.pack import lay_out_text
from vitp.instruction.quads import parse_quads
from vitp.instruction.records import RecordError
from vitp.instruction.sample import Sample
from vitp.instruction.source import Source
from vitp.instruction.tiling import tile_count
from vitp.instruction.token_count import TokenCounter

Size = tuple[int, int]  # width, height
_WAITING = 4 << 20  # characters; ours: enough for words to come again, and little memory
_KNOWN_IMAGES = 200_000  # as in `vitp.instruction.check`


@dataclass(slots=True)
class Row:
    """One row of an index."""

    images: list[tuple[str, int, int]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)  # tiles of each image
    text: int = 0
    supervised: int = 0
    tiles: int = 0
    flags: int = 0
    code: str = ""
    message: str = ""

    def refuse(self, code: str, message: str, flag: int = 0) -> None:
        """Call the sample unusable."""
        self.text = self.supervised = self.tiles = 0
        self.flags, self.code, self.message = Flag.UNUSABLE | flag, code, message


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
        """Measure one sample; raises what `rows` raises."""
        return self.rows(range(index, index + 1))[0]

    def rows(self, chunk: range) -> list[Row]:
        """Measure samples; what makes one unusable is in its row.

        Raises:
            DataError: the annotations as a whole cannot be read any more.
            MissingExtraError: an image's format needs an extra that is not installed.
        """
        found: list[Row] = []
        waiting: list[tuple[Row, Sample]] = []  # for their tokens, which are counted many at a time
        characters = 0
        for index in chunk:
            row = Row()
            found.append(row)
            try:
                sample = self._source.sample(index)
            except RecordError as error:
                if error.code == "file-changed":
                    raise
                row.refuse(error.code, error.reason)
                continue
            if _tried(row, partial(self._look, row, sample)):
                waiting.append((row, sample))
                characters += sum([len(turn.text) for turn in sample.turns])
                if characters > _WAITING:
                    self._count(waiting)
                    waiting, characters = [], 0
        self._count(waiting)
        return found

    def _look(self, row: Row, sample: Sample) -> None:
        """All but the tokens."""
        for turn in sample.turns:
            if "<box>" in turn.text:
                parse_boxes(turn.text)
                row.flags |= Flag.BOXES
            moved = (
                self._source.config.augment.moves and sample.images
            )  # elsewhere unreadable quads are in nobody's way
            if moved and parse_quads(turn.text):
                row.flags |= Flag.BOXES
        if sample.images:
            self._size(sample.images, row.images)
            row.cut = [self._tiles(width, height, len(row.images)) for _, width, height in row.images]
            row.tiles = sum(row.cut)

    def _count(self, waiting: list[tuple[Row, Sample]]) -> None:
        """The tokens."""
        try:
            counts = self._counter.count([sample.turns for _, sample in waiting])
        except VitpError:
            raise
        except Exception:
            if len(waiting) == 1:
                raise
            for row, sample in waiting:  # one of them is to blame
                _tried(row, partial(self._count, [(row, sample)]))
            return
        limit = self._rules.max_length
        for (row, sample), count in zip(waiting, counts, strict=True):
            row.text, row.supervised = count.text, count.supervised
            if count.text + row.tiles * self._rules.tokens_per_tile > limit:
                row.flags |= Flag.TRUNCATED
                _tried(row, partial(self._truncate, row, sample))

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

    def _truncate(self, row: Row, sample: Sample) -> None:
        """Supervised tokens left of a sample that is longer than max_length.

        Raises:
            DataError: visual tokens would be cut, or no answer is left.
        """
        encoded = self._rules.chat.encode(sample.turns, [n * self._rules.tokens_per_tile for n in row.cut])
        row.supervised = len(lay_out_text(encoded, self._rules.max_length, "").targets)

    def table(self, rows: range) -> tuple[pa.Table, list[str]]:
        """Rows of an index without places, and the codes that its column ``reason`` counts."""
        measured = self.rows(rows)
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


def _tried(row: Row, work: Callable[[], None]) -> bool:
    """Whether a step of measuring went well; if not, the row says why the sample is unusable."""
    try:
        work()
    except ImageError as error:
        row.refuse(error.code, error.reason, Flag.IMAGE)
    except GrammarError as error:
        row.refuse(error.code, error.reason)
    except DataError as error:
        row.refuse("max-length", error.reason)
    except VitpError:
        raise
    except Exception as error:  # a defect of ours must not cost the other samples
        row.refuse("unexpected", f"raises {type(error).__name__}: {error}; please report this, with the record")
    else:
        return True
    return False
