"""Images with one or more mask files each: where the masks lie, what their pixel values mean, how the set is split."""

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
from vitp.images.decode import require_whole
from vitp.images.georeference import require_same_grid
from vitp.images.read import ImageConfig, read_image


class MaskFolderConfig(SplitConfig, LabelConfig, LayoutConfig):
    """A segmentation data set in a folder.

    `masks` is a template (see `LayoutConfig`); it may hold * for several masks an image:
    ``masks/{stem}.png``, ``{folder}/{stem}_mask*.png``, ``{above}/labels/{stem}.tif``.
    """

    kind: Literal["masks"] = "masks"
    masks: str  # see above
    reader: ImageConfig = ImageConfig()  # bands, scaling, windows and slices of images deeper than 8 bits

    @model_validator(mode="after")
    def _template(self) -> MaskFolderConfig:
        self.check_template("masks", self.masks)
        return self


@dataclass(frozen=True)
class MaskItem:
    """One image with its mask files; several masks are merged by the higher class id."""

    image: Path
    masks: tuple[Path, ...]
    group: str


class MaskFolder(LabelledFiles):
    """The images of a `MaskFolderConfig`, found and split; pixels are read on demand.

    `train`, `val` and `test` hold indices into `items`.
    """

    items: tuple[MaskItem, ...]

    def __init__(self, config: MaskFolderConfig) -> None:
        """Find every image and its masks.

        Raises:
            DataError: no image, an image without mask, a list that is missing or names unknown images, an empty part, or
                a group on both sides.
        """
        self.config, self.reader = config, config.reader
        self.labels = LabelReader(config, config.root)
        self.classes = self.labels.classes
        self.items = tuple(
            MaskItem(image, belonging(image, config.masks, config, "mask"), group_of(image, config))
            for image in find_images(config)
        )
        self.parts = split_items(self.items, config, config.root)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3, H, W] and class ids uint8 [H, W] (255: ignored).

        Raises:
            DataError: a file is damaged, sizes differ, or a pixel value or colour is no class.
        """
        item = self.items[index]
        image = read_image(item.image, self.config.reader)
        return image, self.read_mask(index, (image.shape[1], image.shape[2]))

    def check(self, threads: int = 4) -> MaskReport:
        """Read every mask of the parts once, and header and end of its image, and count pixels by class.

        Raises:
            DataError: the first image or mask that cannot be used: a value or colour that is no class, another size or
                (of GeoTIFFs) another grid than the image, truncated, nothing but nodata, no labelled pixel to train on.
        """

        def look(index: int) -> NDArray[np.uint8]:
            item = self.items[index]
            ids: NDArray[np.uint8] = self.read_mask(index).numpy()
            for mask in item.masks:
                require_same_grid(item.image, mask)
            require_whole(item.image)
            require_valid_pixels(item.image, self.config.reader)
            return ids

        used = sorted({*self.train, *self.val, *self.test})
        notes = band_notes((self.items[i].image for i in used), self.config.reader)
        report = count_labels(self.parts, self.classes, look, lambda i: str(self.items[i].image), threads)
        return report.noted(notes)
