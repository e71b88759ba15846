"""What data sets whose labels are files share, whether an item shows one date or two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vitp.datasets.labels import LabelReader
from vitp.datasets.layout import Item
from vitp.datasets.splits import Divided
from vitp.images.read import ImageConfig, image_size


class LabelledItem(Item, Protocol):
    """An image with its label files."""

    @property
    def masks(self) -> tuple[Path, ...]:
        """Of the image; several are merged by the higher class id."""


class LabelledFiles(Divided):
    """Items with label files, and how those are read."""

    items: Sequence[LabelledItem]
    labels: LabelReader
    reader: ImageConfig  # of the images

    def read_mask(self, index: int, size: tuple[int, int] | None = None) -> Tensor:
        """Class ids uint8 [H, W] of one item, all its label files merged by the higher id (255: ignored).

        Args:
            index: into `items`.
            size: (H, W) of the image; None reads it from the image's header.

        Raises:
            DataError: a label file is damaged, of another size than the image, or holds a value or colour that is no class.
        """
        item = self.items[index]
        if size is None:
            width, height = image_size(item.image, self.reader)
            size = height, width
        return torch.from_numpy(self.labels.merged(item.masks, size, item.image))
