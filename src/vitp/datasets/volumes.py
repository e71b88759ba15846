"""Volumes (NIfTI, DICOM series) with label volumes as slices: 2-D, 2.5-D, or several modalities as channels; split by patient.

Slices lie and count as in `vitp.images.nifti`: turned to the nearest RAS+ axes, shown in the radiological convention.

Shape legend: H x W pixels of a slice, after resampling to `spacing`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vitp.datasets.labels import LabelConfig, LabelReader
from vitp.datasets.layout import LayoutConfig, belonging, find_images, group_of
from vitp.datasets.report import MaskReport, count_labels
from vitp.datasets.splits import Divided, Parts, SplitConfig, split_items
from vitp.errors import DataError
from vitp.images.levels import Limits
from vitp.images.nifti import Plane
from vitp.images.volume import ChannelConfig, VolumeGrid, VolumeReader, levels, read_grid, require_same_volume
from vitp.metrics.segmentation import IGNORE
from vitp.train.draws import Purpose, generator

_KEPT_SLICES = 64  # of 512 x 512 levels: 16 MB
_DECIMALS = 1e-3  # of whole numbers stored as floats


class VolumeFolderConfig(SplitConfig, LabelConfig, LayoutConfig):
    """A segmentation data set of volumes (.nii, .nii.gz, or folders of DICOM series).

    `images` finds one volume a scan, `masks` is the template of its label volume (see `LayoutConfig`), and a channel's
    `file` that of a further modality. Lists, `train` and fractions count volumes; without `group` each is a patient.
    """

    kind: Literal["volumes"] = "volumes"
    masks: str  # the label volume
    plane: Plane = "axial"  # the plane in which CT is acquired and read
    channels: list[ChannelConfig] = Field(default=[ChannelConfig()], min_length=1, max_length=3)  # one grey, or three
    neighbours: int = Field(default=0, ge=0)  # 2.5-D: slices this far before and after are the first and third channel
    spacing: float | None = Field(default=None, gt=0)  # mm a pixel to resample slices to; None: as stored
    empty_slices: float = Field(default=1.0, ge=0, le=1)  # share kept of the training slices that show background alone
    grid_tolerance: float = Field(default=0.1, ge=0)  # ours: voxels by which labels may lie off; headers are rounded
    unpack: bool = True  # compressed volumes are unpacked once into the cache folder (vitp.cache)

    @model_validator(mode="after")
    def _slices_fit(self) -> VolumeFolderConfig:
        self.check_template("masks", self.masks)
        for channel in self.channels:
            if channel.file is not None:
                self.check_template("channels.file", channel.file)
        if len(self.channels) == 2:
            raise ValueError("channels must be one (grey) or three, got 2")
        if self.neighbours > 0 and len(self.channels) > 1:
            raise ValueError("neighbours makes three channels of one; with three channels use their offset instead")
        if self.colours is not None:
            raise ValueError("label volumes hold numbers; use labels instead of colours")
        if self.empty_slices < 1 and self.background is None:
            raise ValueError("empty_slices needs to know the background class; set background, or leave it out")
        return self

    def shown(self) -> list[ChannelConfig]:
        """The channels with neighbours written out: one or three."""
        if self.neighbours == 0:
            return self.channels
        one = self.channels[0]
        reach = (-self.neighbours, 0, self.neighbours)
        return [one.model_copy(update={"offset": one.offset + further}) for further in reach]


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan."""

    image: Path
    files: tuple[Path, ...]  # one a channel
    mask: Path
    group: str  # the patient
    grid: VolumeGrid  # as stored, with the affine


class SliceItem(NamedTuple):
    """One slice of a scan."""

    image: Path
    volume: int  # into `volumes`
    slice: int
    group: str


class VolumeFolder(Divided):
    """The slices of a `VolumeFolderConfig`, found and split by patient; pixels are read on demand.

    `train`, `val` and `test` hold indices into `items`, the slices of all `volumes` one after the other.
    """

    items: tuple[SliceItem, ...]

    def __init__(self, config: VolumeFolderConfig, threads: int = 4) -> None:
        """Find every volume and its labels, and read the headers; with `empty_slices` below 1 the training labels too.

        Raises:
            DataError: no volume, a volume without labels or modality, another grid than the labels, a list that is missing
                or names unknown volumes, an empty part, or a patient on both sides.
        """
        self.config = config
        self.labels = LabelReader(config, config.root)
        self.classes = self.labels.classes
        self._channels = config.shown()
        alike = [channel.model_copy(update={"offset": 0}) for channel in self._channels]
        self._sources = [alike.index(channel) for channel in alike]  # the first channel of the same file and levels
        with ThreadPoolExecutor(threads) as pool:
            self.volumes = tuple(pool.map(self._find, find_images(config, folders=True)))
        self.volume_parts = split_items(self.volumes, config, config.root)
        self._first = np.cumsum([0, *(volume.grid.slices for volume in self.volumes)])
        self.items = tuple(
            SliceItem(volume.image, number, index, volume.group)
            for number, volume in enumerate(self.volumes)
            for index in range(volume.grid.slices)
        )
        self._limits: dict[tuple[int, int], Limits | None] = {}
        self._cache = _SliceCache(_KEPT_SLICES)
        self.parts = Parts(*(self._slices(self.volume_parts.of(split)) for split in ("train", "val", "test")))
        self.thinned = 0  # training slices left out
        if config.empty_slices < 1:
            kept = self._thin(threads)
            self.thinned = len(self.parts.train) - len(kept)
            self.parts = Parts(kept, self.parts.val, self.parts.test)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """A slice, uint8 [3, H, W], and its class ids, uint8 [H, W] (255: ignored).

        Raises:
            DataError: a file is damaged, or a label value is no class.
        """
        item = self.items[index]
        slices = self.volumes[item.volume].grid.slices
        planes = [
            self._cache.get((item.volume, source, at), partial(self._levels, item.volume, source, at))
            for source, channel in zip(self._sources, self._channels, strict=True)
            for at in [
                min(max(item.slice + channel.offset, 0), slices - 1)
            ]  # the outermost slices stand for what is beyond
        ]
        image = torch.from_numpy(np.stack(planes if len(planes) == 3 else planes * 3))
        return self._resampled(image, item.volume, InterpolationMode.BILINEAR), self.read_mask(index)

    def read_mask(self, index: int) -> Tensor:
        """Class ids uint8 [H, W] of one slice (255: ignored); raises what `read` raises."""
        item = self.items[index]
        mask = self.volumes[item.volume].mask
        values = VolumeReader(mask, self.config.plane, unpack=self.config.unpack).values(item.slice)
        ids = torch.from_numpy(self.labels.ids(_whole(values, mask), f"{mask} slice {item.slice}"))
        return self._resampled(ids[None], item.volume, InterpolationMode.NEAREST_EXACT)[0]

    def name(self, index: int) -> str:
        """A slice, for people."""
        return f"{self.items[index].image} slice {self.items[index].slice}"

    def check(self, threads: int = 4) -> MaskReport:
        """Read every label slice of the parts once, and the middle of every volume, and count pixels by class.

        Raises:
            DataError: the first volume that cannot be used: a value that is no class, nothing measured in it, no labelled
                pixel to train on.
        """
        used = sorted({*self.volume_parts.train, *self.volume_parts.val, *self.volume_parts.test})
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._require_values, used))
        counted = count_labels(self.parts, self.classes, lambda i: _numpy(self.read_mask(i)), self.name, threads)
        patients = len({self.volumes[i].group for i in used})
        notes = [f"{len(used)} volumes of {patients} patients, {self.config.plane} slices"]
        if self.thinned:
            left = len(self.parts.train)
            notes.append(
                f"{self.thinned} of {left + self.thinned} training slices show background alone and are left out"
            )
        if len(self._channels) == 1:
            notes.append("one channel is shown as red, green and blue alike")
        return counted.noted(notes)

    # ------------------------------------------------------------------------------------------------------- one scan

    def _find(self, image: Path) -> Volume:
        config = self.config
        mask = self._only(image, config.masks, "label volume")
        files = tuple(
            image if channel.file is None else self._only(image, channel.file, "volume of that modality")
            for channel in self._channels
        )
        for other in dict.fromkeys((*files, mask)):
            if other != image:
                require_same_volume(image, other, config.plane, config.grid_tolerance)
        return Volume(image, files, mask, group_of(image, config), read_grid(image, config.plane))

    def _only(self, image: Path, template: str, noun: str) -> Path:
        found = belonging(image, template, self.config, noun)
        if len(found) > 1:
            raise DataError(f"has {len(found)} files for one {noun} ({found[0]} ...); narrow '{template}'", str(image))
        return found[0]

    def _reader(self, number: int, channel: int) -> VolumeReader:
        file = self.volumes[number].files[channel]
        return VolumeReader(file, self.config.plane, self._channels[channel].volume, unpack=self.config.unpack)

    def _levels(self, number: int, channel: int, index: int) -> NDArray[np.uint8]:
        return levels(self._reader(number, channel).values(index), self._limits_of(number, channel))

    def _limits_of(self, number: int, channel: int) -> Limits | None:
        """Limits of a channel, taken once a volume."""
        if (number, channel) not in self._limits:  # two threads may both find out; they find the same
            self._limits[number, channel] = self._reader(number, channel).limits(self._channels[channel])
        return self._limits[number, channel]

    def _require_values(self, number: int) -> None:
        for channel in set(self._sources):
            if self._limits_of(number, channel) is None:
                raise DataError(
                    "holds no measured voxel; leave it out with exclude: a glob",
                    str(self._reader(number, channel).path),
                )
            self._levels(number, channel, self.volumes[number].grid.slices // 2)

    def _resampled(self, picture: Tensor, number: int, how: InterpolationMode) -> Tensor:
        """A picture [C, H, W] on the pixel size of the recipe."""
        if self.config.spacing is None:
            return picture
        steps = self.volumes[number].grid.spacing[:2]
        size = [max(1, round(n * step / self.config.spacing)) for n, step in zip(picture.shape[1:], steps, strict=True)]
        resized: Tensor = functional.resize(picture, size, interpolation=how, antialias=True)
        return resized

    # --------------------------------------------------------------------------------------------------------- slices

    def _slices(self, volumes: Sequence[int]) -> list[int]:
        return [i for number in volumes for i in range(int(self._first[number]), int(self._first[number + 1]))]

    def _thin(self, threads: int) -> list[int]:
        """Training slices with labels, and a seeded share of those that show background alone."""
        background = self.config.background

        def labelled(number: int) -> NDArray[np.bool_]:
            mask = self.volumes[number].mask
            values = VolumeReader(mask, self.config.plane, unpack=self.config.unpack).whole()
            ids = self.labels.ids(_whole(values, mask), mask)
            found: NDArray[np.bool_] = ((ids != background) & (ids != IGNORE)).any(axis=(1, 2))
            return found

        with ThreadPoolExecutor(threads) as pool:
            marked = list(pool.map(labelled, self.volume_parts.train))
        full = np.concatenate(marked)
        empty = np.flatnonzero(~full)
        draw = generator(self.config.split_seed, Purpose.MIXTURE, 4).permutation(len(empty))
        full[empty[draw[: round(self.config.empty_slices * len(empty))]]] = True
        if not full.any():
            raise DataError(
                "no training volume has a labelled slice, and empty_slices: 0 leaves out the others",
                str(self.config.root),
            )
        return [index for index, kept in zip(self.parts.train, full, strict=True) if kept]


class _SliceCache:
    """The latest slices, for neighbours that are read again; safe between threads, empty in a new process."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[_SliceCache], tuple[int]]:
        return _SliceCache, (self._size,)

    def get(self, key: tuple[int, int, int], read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        value = read()
        with self._lock:
            self._found[key] = value
            if len(self._found) > self._size:
                self._found.popitem(last=False)
        return value


def _whole(values: NDArray[Any], file: Path) -> NDArray[np.int64]:
    """Label values as whole numbers, which NIfTI writers like to store as floats."""
    if values.dtype.kind in "biu":
        return values.astype(np.int64)
    rounded = np.rint(values)
    if not np.isfinite(values).all() or float(np.abs(values - rounded).max()) > _DECIMALS:
        raise DataError("holds fractions; a label volume must hold whole numbers (resample it by nearest)", str(file))
    whole: NDArray[np.int64] = rounded.astype(np.int64)
    return whole


def _numpy(mask: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = mask.numpy()
    return found
