"""Change pairs: two dates of the same place, and what changed between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from vitp.datasets.labelled import LabelledFiles
from vitp.datasets.labels import LabelConfig, LabelReader
from vitp.datasets.layout import LayoutConfig, belonging, find_images, group_of
from vitp.datasets.report import MaskReport, band_notes, count_labels, require_valid_pixels
from vitp.datasets.splits import SplitConfig, split_items
from vitp.errors import DataError
from vitp.images.decode import require_whole
from vitp.images.georeference import require_same_grid
from vitp.images.read import ImageConfig, image_size, read_image

CHANGE_CLASSES = ["unchanged", "changed"]
_THRESHOLD = 128  # the released loaders: grey labels below 128 are 0, others 1


class PairFolderConfig(SplitConfig, LabelConfig, LayoutConfig):
    """A change-detection data set in a folder.

    `images` finds the first dates; `after` and `masks` are templates of the first date's path (see `LayoutConfig`):
    ``images: A/*.png``, ``after: B/{name}``, ``masks: label/{name}``. Without `labels`, `colours`, `threshold` or
    `reduce_zero_label` labels are grey pictures, changed from 128 up (released loaders).
    """

    kind: Literal["pairs"] = "pairs"
    after: str  # the second date
    masks: str  # the changes
    reader: ImageConfig = ImageConfig()  # bands, scaling and windows of images deeper than 8 bits, for both dates

    @model_validator(mode="after")
    def _templates(self) -> PairFolderConfig:
        self.check_template("after", self.after)
        self.check_template("masks", self.masks)
        return self

    def meaning(self) -> LabelConfig:
        """What label pixels mean, with the threshold where nothing else is said."""
        said = self.labels is not None or self.colours is not None or self.reduce_zero_label
        threshold = self.threshold if said or self.threshold is not None else _THRESHOLD
        own = {name: getattr(self, name) for name in LabelConfig.model_fields}
        return LabelConfig.model_validate({**own, "threshold": threshold})


@dataclass(frozen=True)
class PairItem:
    """Two dates with their label files; several labels are merged by the higher class id."""

    image: Path  # the first date
    after: Path
    masks: tuple[Path, ...]
    group: str


class PairFolder(LabelledFiles):
    """The pairs of a `PairFolderConfig`, found and split; pixels are read on demand.

    `train`, `val` and `test` hold indices into `items`.
    """

    items: tuple[PairItem, ...]

    def __init__(self, config: PairFolderConfig) -> None:
        """Find every pair and its labels.

        Raises:
            DataError: no image, a first date without second date or label, a list that is missing or names unknown images,
                an empty part, or a group on both sides.
        """
        self.config, self.reader = config, config.reader
        self.labels = LabelReader(config.meaning(), config.root, CHANGE_CLASSES)
        self.classes = self.labels.classes
        self.items = tuple(self._find(image) for image in find_images(config))
        self.parts = split_items(self.items, config, config.root)

    def _find(self, image: Path) -> PairItem:
        config = self.config
        after = belonging(image, config.after, config, "second date")
        if len(after) > 1:
            raise DataError(f"has {len(after)} second dates ({after[0]}, {after[1]} ...); narrow `after`", str(image))
        return PairItem(image, after[0], belonging(image, config.masks, config, "label"), group_of(image, config))

    def read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Both dates, uint8 [3, H, W], and class ids uint8 [H, W] (255: ignored).

        Raises:
            DataError: a file is damaged, sizes differ, or a pixel value or colour is no class.
        """
        item = self.items[index]
        before, after = read_image(item.image, self.config.reader), read_image(item.after, self.config.reader)
        if before.shape != after.shape:
            raise _other_size(item, (before.shape[2], before.shape[1]), (after.shape[2], after.shape[1]))
        return before, after, self.read_mask(index, (before.shape[1], before.shape[2]))

    def check(self, threads: int = 4) -> MaskReport:
        """Read every label and the headers of both dates once, and count pixels by class.

        Raises:
            DataError: the first pair that cannot be used: dates of other sizes or (GeoTIFF) on other grids, a label of
                another size or grid, a value or colour that is no class, a truncated date, nothing but nodata in one.
        """

        def look(index: int) -> NDArray[np.uint8]:
            item = self.items[index]
            require_same_grid(item.image, item.after)
            size, other = (image_size(file, self.config.reader) for file in (item.image, item.after))
            if size != other:
                raise _other_size(item, size, other)
            for mask in item.masks:
                require_same_grid(item.image, mask)
            for date in (item.image, item.after):
                require_whole(date)
                require_valid_pixels(date, self.config.reader)
            ids: NDArray[np.uint8] = self.read_mask(index).numpy()
            return ids

        used = sorted({*self.train, *self.val, *self.test})
        dates = [date for i in used for date in (self.items[i].image, self.items[i].after)]
        notes = band_notes(dates, self.config.reader)
        return count_labels(self.parts, self.classes, look, lambda i: str(self.items[i].image), threads).noted(notes)


def _other_size(item: PairItem, before: tuple[int, int], after: tuple[int, int]) -> DataError:
    return DataError(
        f"the second date has {after[0]} x {after[1]} pixels and the first, {item.image}, has {before[0]} x {before[1]}; "
        "both must show the same area",
        str(item.after),
    )
