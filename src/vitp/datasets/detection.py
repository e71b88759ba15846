"""The data sets of detection under one roof: `data: {kind: coco | voc | dior_r | dota, ...}` in a recipe.

All labels are read when a data set is opened, and kept as columns; pixels are read on demand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from vitp.boxes.objects import SIZES, Objects
from vitp.datasets.layout import find_images, group_of, places_of
from vitp.datasets.objects_coco import read_coco_objects
from vitp.datasets.objects_config import (
    CocoConfig,
    DetectionDataConfig,
    DiorRConfig,
    DotaConfig,
    VocConfig,
)
from vitp.datasets.objects_dota import read_dota_objects
from vitp.datasets.objects_report import SPLITS, Finding, Findings, ObjectReport, first_of, size_name
from vitp.datasets.objects_settle import settle
from vitp.datasets.objects_table import ObjectItem, ObjectTable, Size
from vitp.datasets.objects_xml import read_xml_objects
from vitp.datasets.report import band_notes
from vitp.datasets.splits import Divided, Parts, Split, split_items
from vitp.errors import DataError
from vitp.images.decode import require_whole
from vitp.images.read import image_size, read_image

__all__ = [
    "CocoConfig", "DetectionData", "DetectionDataConfig", "DiorRConfig", "DotaConfig", "Finding", "ObjectItem",
    "ObjectReport", "VocConfig", "open_detection",
]  # fmt: skip
_ALWAYS_TOLERATED = 10  # ours: unusable objects that are too few to tell a misread format by their share


class DetectionData(Divided):
    """Images and their objects, found and divided. `train`, `val` and `test` hold indices into `items`."""

    items: Sequence[ObjectItem]

    def __init__(
        self,
        config: CocoConfig | VocConfig | DiorRConfig | DotaConfig,
        items: Sequence[ObjectItem],
        table: ObjectTable,
        classes: tuple[str, ...],
        findings: Findings,
        *,
        known: dict[Split, set[int]] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Made by `open_detection`."""
        self.config, self.items, self.table, self.classes = config, tuple(items), table, classes
        self._findings, self._notes = findings, list(notes)
        empty = np.flatnonzero(np.diff(table.starts) == 0).tolist()
        self.parts: Parts = split_items(
            self.items, config, config.root, known=known, useless=empty if config.skip_empty else ()
        )
        self._unused = len(empty) if config.skip_empty else 0
        self._sizes: dict[int, Size] = {}

    @property
    def rotated(self) -> bool:
        """Whether objects have quads."""
        return self.table.quads is not None

    @property
    def outlined(self) -> bool:
        """Whether objects have outlines; a single one may still have none."""
        return self.table.points is not None

    def size(self, index: int) -> Size:
        """(H, W) of an image, from its header.

        Raises:
            DataError: the header is damaged, or the labels are for another size.
        """
        if index not in self._sizes:
            width, height = image_size(self.items[index].image, self.config.reader)
            self._sizes[index] = self._checked(index, (height, width))
        return self._sizes[index]

    def objects(self, index: int) -> Objects:
        """What an image shows, without its pixels; what cannot be used is left out as `check` tells.

        Raises:
            DataError: as `size`.
        """
        return settle(self.table, index, self.items[index], self.size(index))

    def read(self, index: int) -> tuple[Tensor, Objects]:
        """An image uint8 [3, H, W] and its objects.

        Raises:
            DataError: the image is damaged, or of another size than its labels say.
        """
        image = read_image(self.items[index].image, self.config.reader)
        size = self._checked(index, (image.shape[1], image.shape[2]))
        return image, settle(self.table, index, self.items[index], size)

    def check(self, threads: int = 4, *, parts: Sequence[Split] = SPLITS) -> ObjectReport:
        """Look at the header and the end of every image of some parts and at every object, and count.

        Raises:
            DataError: a truncated image, a header that cannot be read, an image of another size than its labels say, more
                unusable objects than `tolerate`, or no object to learn from where the training images are looked at.
        """
        used = sorted({i for part in parts for i in self.indices(part)})
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self._look, used):
                pass
        findings, found = Findings(), {}
        for index in used:
            found[index] = settle(self.table, index, self.items[index], self.size(index), findings)
        self._refuse_misread(findings, sum(len(objects) for objects in found.values()))
        notes = [*self._notes, *band_notes((self.items[i].image for i in used), self.config.reader)]
        if self._unused:
            notes.append(f"{self._unused} images show no object; none of them is trained on (data.skip_empty)")
        if self.table.left_out:
            notes.append(f"{self.table.left_out} objects are left out as data.leave_out asks")
        if {"val", "test"} <= {*parts} and (shared := set(self.val) & set(self.test)):
            notes.append(f"{len(shared)} of {len(self.test)} test images are validation images too")
        report = self._counted(found, parts, self._findings.merged(findings), notes)
        if "train" in parts and not any(report.objects["train"].values()):
            raise DataError("no training image shows an object that can be learned", str(self.config.root))
        return report

    def _look(self, index: int) -> None:
        require_whole(self.items[index].image)
        self.size(index)

    def _checked(self, index: int, size: Size) -> Size:
        item = self.items[index]
        if item.stated is not None and item.stated != size and self.config.stated_size == "check":
            said = f"the labels are for {item.stated[1]} x {item.stated[0]} pixels, the image has {size[1]} x {size[0]}"
            fix = "label this image, or set data.stated_size: ignore where only the stated size is wrong"
            raise DataError(f"{said} ({item.image}); {fix}", str(item.labels))
        return size

    def _refuse_misread(self, findings: Findings, good: int) -> None:
        lost = [finding for finding in findings.all() if finding.dropped]
        count = sum(finding.count for finding in lost)
        if count > _ALWAYS_TOLERATED and count > self.config.tolerate * (count + good):
            raise DataError(
                f"{count} of {count + good} objects cannot be used, more than data.tolerate ({self.config.tolerate:.0%}): "
                f"{', and '.join(map(str, lost))}; is this the right format, with the right images?",
                str(self.config.root),
            )

    def _counted(
        self, found: dict[int, Objects], parts: Sequence[Split], findings: Findings, notes: Sequence[str]
    ) -> ObjectReport:
        objects: dict[Split, dict[str, int]] = {}
        images: dict[Split, int] = {}
        empty: dict[Split, int] = {}
        ignored: dict[Split, int] = {}
        sizes = Counter({name: 0 for name, *_ in SIZES})
        for split in SPLITS:
            shown = [found[i] for i in self.indices(split)] if split in parts else []
            counts = np.zeros(len(self.classes), dtype=np.int64)
            images[split], empty[split], ignored[split] = len(shown), sum(not len(o) for o in shown), 0
            for seen in shown:
                real = ~(seen.difficult | seen.crowd)
                counts += np.bincount(seen.labels[real].numpy(), minlength=len(counts))
                ignored[split] += int((~real).sum())
                if split == "train":
                    sides = seen.boxes[real, 2:] - seen.boxes[real, :2]
                    sizes.update(size_name(area) for area in sides.prod(1).tolist())
            objects[split] = {name: int(count) for name, count in zip(self.classes, counts, strict=True)}
        most = max((len(shown) for shown in found.values()), default=0)
        return ObjectReport(objects, images, empty, ignored, dict(sizes), most, findings.all(), tuple(notes))


def open_detection(config: CocoConfig | VocConfig | DiorRConfig | DotaConfig) -> DetectionData:
    """Find the images of a data set, read all their labels, and divide them.

    Raises:
        DataError: with file:line where there is one: no image, labels that are missing, broken or of an unknown class, a
            list that is missing or names unknown images, an empty part, an image or group on both sides.
    """
    findings = Findings()
    if isinstance(config, CocoConfig):
        labels = read_coco_objects(config, findings)
        table, classes = labels.table.build(config, labels.categories)
        notes = [f"{labels.unused} images are listed in no label file, and left out"] if labels.unused else []
        return DetectionData(config, labels.items, table, classes, findings, known=labels.known, notes=notes)
    items, notes = _items(config)
    if isinstance(config, DotaConfig):
        items, builder = read_dota_objects(items, config)
    else:
        items, builder = read_xml_objects(items, config)
    table, classes = builder.build(config)
    return DetectionData(config, items, table, classes, findings, notes=notes)


def _items(config: VocConfig | DiorRConfig | DotaConfig) -> tuple[list[ObjectItem], list[str]]:
    """The images with their label files, and what is to be said about those that do not match."""
    items: list[ObjectItem] = []
    bare: list[tuple[Path, Path]] = []
    images = find_images(config)
    for image in images:
        file = config.root / config.labels.format(**places_of(image, config))
        there = file.is_file()
        if not there:
            bare.append((image, file))
        if there or config.unlabelled == "empty":
            items.append(ObjectItem(image, group_of(image, config), file if there else None))
    notes = []
    if bare:
        said = f"{len(bare)} of {len(images)} images have no labels (the first: {bare[0][0]} without {bare[0][1]})"
        if config.unlabelled == "error" or not items:
            fix = "correct data.labels, exclude the images, or set data.unlabelled: empty or leave_out"
            raise DataError(f"{said}; {fix}", str(config.root))
        notes.append(
            f"{said}; {'they count as without objects' if config.unlabelled == 'empty' else 'they are left out'}"
        )
    used = {item.labels for item in items}
    pattern = re.sub(r"{\w+}", "*", config.labels).replace("**", "*")
    if stray := sorted(file for file in config.root.glob(pattern) if file.is_file() and file not in used):
        notes.append(f"{len(stray)} label files belong to no image: {first_of(stray)}")
    return items, notes
