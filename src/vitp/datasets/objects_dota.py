"""Objects in DOTA's text files: eight numbers, a class and a difficulty a line."""

from __future__ import annotations

from vitp.datasets.objects_config import DotaConfig
from vitp.datasets.objects_table import ObjectItem, TableBuilder
from vitp.synthesis.objects import dota_lines


def read_dota_objects(items: list[ObjectItem], config: DotaConfig) -> tuple[list[ObjectItem], TableBuilder]:
    """The objects of all images.

    Raises:
        DataError: with file:line: a line of another shape.
    """
    found = TableBuilder(quads=True, outlined=False)
    for item in items:
        found.begin(item.labels)
        for number, (corners, name, difficulty) in dota_lines(item.labels) if item.labels is not None else ():
            found.add(name, corners, number, difficult=difficulty in config.ignore_difficulty)
    return items, found
