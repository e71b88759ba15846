"""Pictures of answered questions: what was shown, with the boxes of the reference and of the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from vitp.errors import DataError
from vitp.files import write_atomic
from vitp.images.read import read_image
from vitp.instruction.grammar import SCALE, GrammarError
from vitp.instruction.source import Source
from vitp.metrics.grounding import Outline, shapes
from vitp.tasks.questions import Answered

Pixels = npt.NDArray[np.uint8]

REFERENCE, ANSWER = (0, 158, 115), (213, 94, 0)  # Okabe and Ito's green and vermilion: told apart by the colour-blind
_SIDE = 512  # pixels at most; more is not seen in a report
_BOXES = 40  # outlines drawn at most


def picture_of(source: Source, item: Answered) -> Pixels | None:
    """The pictures of a question side by side, uint8 [H, W, 3]; None where there are none or they cannot be read.

    Boxes are drawn where there is one picture: the reference's in green, the answer's in orange.
    """
    names = item.asked.images
    try:
        images = [_shrunk(read_image(source.image_file(name), source.config.images)) for name in names]
    except DataError:
        return None
    if not images:
        return None
    if len(images) == 1:
        outlined = outline(images[0], _outlines(item.asked.references[0]), REFERENCE)
        return outline(outlined, _outlines(item.answer), ANSWER)
    height = max(image.shape[0] for image in images)
    padded = [np.pad(i, ((0, height - i.shape[0]), (0, 4), (0, 0)), constant_values=255) for i in images]
    return np.ascontiguousarray(np.concatenate(padded, 1)[:, :-4])


def _shrunk(image: Tensor) -> Pixels:
    """uint8 [3, H, W] to [h, w, 3] of at most `_SIDE` pixels a side."""
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels.thumbnail((_SIDE, _SIDE))
    return np.asarray(pixels)


def _outlines(text: str) -> list[Outline]:
    try:
        return [shape.outline for shape in shapes(text)][:_BOXES]
    except GrammarError:
        return []


def outline(pixels: Pixels, outlines: list[Outline], colour: tuple[int, int, int]) -> Pixels:
    """Draw outlines given in 0-1000 of the picture's width and height."""
    if not outlines:
        return pixels
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 150))
    for corners in outlines:
        if len(corners) > 1:
            points = [(x * (image.width - 1) / SCALE, y * (image.height - 1) / SCALE) for x, y in corners]
            pen.line([*points, points[0]], fill=colour, width=width)
    return np.asarray(image)


def save_picture(path: Path, pixels: Pixels) -> None:
    """Write a PNG.

    Raises:
        OutputError: no space left, or the place is not writable.
    """
    write_atomic(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"), durable=False)


def load_picture(path: Path) -> Pixels:
    """A PNG written by `save_picture`."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
