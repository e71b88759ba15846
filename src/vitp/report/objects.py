"""Pictures of what a detector found: the labelled objects on the left, its finds on the right, mistakes told apart.

Shape legend: D finds, G labelled objects, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitp.boxes.coders import as_rotated
from vitp.boxes.formats import to_quads
from vitp.boxes.objects import Detections, Objects
from vitp.boxes.paste import paste_mask
from vitp.inference.colours import Colour
from vitp.metrics.matching import HIT, IGNORED, Matching
from vitp.report.html import ImageGrid, Picture

_SIDE = 480  # longer side of a picture, pixels
_NAMED = 12  # objects beyond which no names are written
# After Okabe and Ito's, told apart by the colour-blind; brighter, for thin lines on dark images.
_LABEL, _MISSED = (86, 180, 233), (240, 228, 66)
_RIGHT, _WRONG, _NEITHER = (60, 230, 160), (255, 110, 40), (160, 160, 160)
_IOU = 0.5  # with an object of its class from which a find is right

Ring = NDArray[np.float64]  # [points, 2] pixels


@dataclass(frozen=True, eq=False)
class Judged:
    """The finds of an image that are shown, by falling score, and which objects they find."""

    found: Detections
    outcome: NDArray[np.int8]  # [D] HIT, FALSE or IGNORED (`Matches.outcomes`)
    hit: NDArray[np.bool_]  # [G]
    asked: NDArray[np.bool_]  # [G]: neither difficult nor a crowd

    @property
    def right(self) -> int:
        """Finds of an object."""
        return int((self.outcome == HIT).sum())

    @property
    def mistakes(self) -> int:
        """Finds of nothing, and objects that are not found."""
        return int((self.outcome != HIT).sum() - (self.outcome == IGNORED).sum() + (self.asked & ~self.hit).sum())

    @property
    def wrong(self) -> float:
        """Share of mistakes among finds and missed objects; NaN where there is neither."""
        count = self.right + self.mistakes
        return self.mistakes / count if count else math.nan


@dataclass(frozen=True, eq=False)
class ShownObjects:
    """One image, small, with its labels and with the finds drawn in, uint8 [h, w, 3]."""

    name: str
    labels: NDArray[np.uint8]
    finds: NDArray[np.uint8]
    judged: Judged


def judge(found: Detections, objects: Objects, classes: Sequence[str], *, rotated: bool, least: float) -> Judged:
    """Match the finds of an image that score at least `least` with its labelled objects, at IoU 0.5."""
    found = found.take((found.scores >= least) & found.boxes.isfinite().all(-1))
    found = found.take(found.scores.argsort(descending=True, stable=True))
    matching = Matching(classes, rotated=rotated)
    matching.update("image", found, objects)
    matches = matching.matches()
    outcome = matches.outcomes(_IOU)
    single = np.flatnonzero(~objects.crowd.numpy())
    hit = np.zeros(len(objects), dtype=np.bool_)
    hit[single[matches.row[outcome == HIT]]] = True
    return Judged(found, outcome, hit, ~(objects.difficult | objects.crowd).numpy())


def draw_objects(
    name: str, image: Tensor, objects: Objects, judged: Judged, classes: Sequence[str], *, rotated: bool
) -> ShownObjects:
    """The two pictures of an image uint8 [3, H, W]."""
    found = judged.found
    small, factor = _fitted(image)
    masked = _with_masks(small, found, judged.outcome, factor)
    names = [classes[label] for label in objects.labels.tolist()]
    left = [
        (rings, (_LABEL if hit else _MISSED) if asked else _NEITHER, bool(asked and not hit), text)
        for rings, asked, hit, text in zip(_labelled(objects, rotated), judged.asked, judged.hit, names, strict=True)
    ]
    corners = to_quads(as_rotated(found.boxes)).double().numpy()
    texts = [f"{classes[k]} {s:.2f}" for k, s in zip(found.labels.tolist(), found.scores.tolist(), strict=True)]
    right = [
        ([ring], _colour(int(outcome)), outcome not in (HIT, IGNORED), text)
        for ring, outcome, text in zip(corners, judged.outcome, texts, strict=True)
    ]
    return ShownObjects(name, _drawn(small, left, factor), _drawn(masked, right[::-1], factor), judged)


def object_pictures(shown: Sequence[ShownObjects], least: float) -> ImageGrid:
    """The section of a report, in the order given."""
    rows = []
    for one in shown:
        asked, right = int(one.judged.asked.sum()), one.judged.right
        finds = len(one.judged.found)
        rows.append(
            [
                Picture(
                    one.labels, f"labels of {one.name}", f"{one.name}: {asked:,} objects, {asked - right:,} missed"
                ),
                Picture(one.finds, f"finds in {one.name}", f"{finds:,} finds, {right:,} right"),
            ]
        )
    return ImageGrid(
        "Pictures",
        rows,
        ["labels", "finds"],
        caption=f"Finds with a score of at least {least:.3g}, as vitp predict shows them. Labels: blue where found, yellow "
        f"and thick where missed. Finds: green where right (IoU at least {_IOU:g} with an object of the class, once), orange "
        "and thick where wrong. Grey: difficult objects, crowds and their finds, which count neither way. Largest share of "
        "mistakes first; half of the images are evenly spread over all, the others are the worst.",
        widest=23,
    )


_Drawing = tuple[Sequence[Ring], Colour, bool, str]  # outlines of one object, its colour, whether thick, its name


def _fitted(image: Tensor) -> tuple[Image.Image, float]:
    """The image at the size of the report, and what it was multiplied by; small ones by a whole number."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    longest = max(picture.size)
    factor = _SIDE / longest if longest > _SIDE else float(max(1, _SIDE // longest))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST), factor


def _labelled(objects: Objects, rotated: bool) -> list[Sequence[Ring]]:
    """The outlines of each object: its mask's, else its quad (where those are scored), else its box."""
    if rotated and objects.quads is not None:
        return [[quad] for quad in objects.quads.double().numpy()]
    boxes = to_quads(as_rotated(objects.boxes)).double().numpy()
    if objects.outlines is None:
        return [[box] for box in boxes]
    return [
        [ring.astype(np.float64) for ring in outline] or [box]
        for outline, box in zip(objects.outlines, boxes, strict=True)
    ]


def _with_masks(picture: Image.Image, found: Detections, outcome: NDArray[np.int8], factor: float) -> Image.Image:
    if found.masks is None:
        return picture
    mixed = np.array(picture, dtype=np.float32)
    for i in reversed(range(len(found))):
        pasted, top, left = paste_mask(found.masks[i], found.boxes[i] * factor, (picture.height, picture.width))
        mask = pasted.numpy()
        part = mixed[top : top + mask.shape[0], left : left + mask.shape[1]]
        part[mask] = 0.6 * part[mask] + 0.4 * np.array(_colour(int(outcome[i])), dtype=np.float32)
    return Image.fromarray(mixed.astype(np.uint8))


def _drawn(picture: Image.Image, drawings: Sequence[_Drawing], factor: float) -> NDArray[np.uint8]:
    """The picture with outlines on a dark rim, and names where they are few."""
    picture = picture.copy()
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    crowded = len(drawings) > _NAMED
    lines = [
        ([(float(x), float(y)) for x, y in ring * factor], colour, 3 - crowded if thick else 2 - crowded)
        for rings, colour, thick, _ in sorted(drawings, key=lambda drawing: drawing[2])  # mistakes on top
        for ring in rings
    ]
    for points, colour, width in lines:
        if not crowded:
            pen.line([*points, points[0]], fill=(0, 0, 0), width=width + 2)
        pen.line([*points, points[0]], fill=colour, width=width)
    for rings, colour, _, text in () if crowded else drawings:
        left, top = (np.concatenate(rings) * factor).min(0).tolist()
        x = min(max(2.0, left), max(2.0, picture.width - font.getlength(text) - 3))
        y = max(0.0, top - 14)
        pen.text((x, y), text, fill=colour, font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(picture)


def _colour(outcome: int) -> Colour:
    return _RIGHT if outcome == HIT else _NEITHER if outcome == IGNORED else _WRONG
