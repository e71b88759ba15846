"""What is wrong with an image file: missing, unreadable, damaged, tiny, huge."""

from __future__ import annotations

from dataclasses import dataclass

from vitp.errors import DataError
from vitp.images.decode import MAX_PIXELS
from vitp.images.read import image_size, read_image
from vitp.images.stored import ImageFile
from vitp.instruction.findings import MAX_RATIO, MIN_SIDE, Finding, note, note_error
from vitp.instruction.source import Source
from vitp.instruction.statistics import Size

_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class Inspected:
    """An image of a sample: its file, its size and what is wrong with it; None where they cannot be told."""

    path: ImageFile | None
    size: Size | None  # width, height
    notes: tuple[Finding, ...]


class ImageInspector:
    """Looks at image files, at each of them once as long as it remembers it."""

    def __init__(self, decode: bool) -> None:
        """`decode`: every image in full, not just its header."""
        self._decode = decode
        self._known: dict[tuple[int, str], Inspected] = {}

    def look(self, source: Source, name: str) -> Inspected:
        """One image, by its name in a record."""
        try:
            path = source.image_file(name)
        except DataError as error:
            return Inspected(None, None, (note_error(error, f"image {name} "),))
        key = (id(source), str(path))  # two sources may read one file with different scalings
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            size, notes = self._inspect(source, path, name)
            self._known[key] = Inspected(path, size, tuple(notes))
        return self._known[key]

    def _inspect(self, source: Source, path: ImageFile, name: str) -> tuple[Size | None, list[Finding]]:
        image = str(path)
        try:
            width, height = size = image_size(path, source.config.images)
            if width * height > MAX_PIXELS:
                found = f"image {name} has {width} x {height} pixels"
                return size, [note("error", "image-too-large", found, "cut it into smaller images", image=image)]
            if self._decode:
                read_image(path, source.config.images)
        except DataError as error:
            return None, [note_error(error, f"image {name} ", image)]
        if min(size) < MIN_SIDE:
            found = f"image {name} is only {width} x {height} pixels"
            return size, [note("warning", "image-tiny", found, "remove it if nothing can be seen", image=image)]
        if max(size) > MAX_RATIO * min(size):
            found = f"image {name} is a strip of {width} x {height} pixels"
            return size, [note("warning", "image-strip", found, "cut it, or remove the record", image=image)]
        return size, []
