"""A colour for each class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from vitp.errors import ConfigError

Colour = tuple[int, int, int]
_GOLDEN = 0.618034  # of the circle of hues: neighbours in the list are far apart, however many there are


def class_colours(classes: Sequence[str], background: int | None, chosen: Sequence[str] | None) -> list[Colour]:
    """RGB of each class: as chosen (#rrggbb), else black for the background and distinct hues for the others.

    Raises:
        ConfigError: another number of colours than of classes.
    """
    if chosen is None:
        return [(0, 0, 0) if index == background else _hue(index) for index in range(len(classes))]
    if len(chosen) != len(classes):
        raise ConfigError(f"colours: {len(chosen)} given, and the model has {len(classes)} classes; give one for each")
    values = [int(colour[1:], 16) for colour in chosen]
    return [(value >> 16, value >> 8 & 255, value & 255) for value in values]


def _hue(index: int) -> Colour:
    bright = 1.0 if index % 3 else 0.75
    red, green, blue = colorsys.hsv_to_rgb((index - 1) * _GOLDEN % 1.0, 0.85 if index % 2 else 0.6, bright)
    return round(red * 255), round(green * 255), round(blue * 255)
