"""NIfTI volumes, slice by slice, into label volumes of the same grid, orientation and affine."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vitp.datasets.volumes import VolumeFolderConfig
from vitp.errors import ConfigError
from vitp.files import write_atomic
from vitp.images.decode import ImageError
from vitp.images.levels import RangeScaling, import_extra
from vitp.images.nifti import NiftiConfig, View, nifti_opened, read_nifti, view_of
from vitp.images.volume import VolumeReader, levels, read_grid, unpacked
from vitp.inference.engine import ahead, best, predicted
from vitp.inference.grid import make_grid
from vitp.inference.partial import Partial, raw_rows
from vitp.inference.scene import CLASSES, Work, state_folder, with_suffix
from vitp.inference.sinks import write_preview
from vitp.inference.sources import PictureSource


class _Slices(Protocol):
    """The pictures of a volume."""

    def __call__(self, index: int, /) -> NDArray[np.uint8]:
        """Slice `index` as the model sees it, uint8 [3, h, w]; h, w may differ from the grid's."""
        ...


class _Shown:
    """Slices by the reader's settings, as pictures of single slices are read."""

    def __init__(self, path: Path, config: NiftiConfig, say: Callable[[str], None]) -> None:
        self._path, self._file, self._config = path, unpacked(path), config
        if config.window is None and config.statistics == "volume" and not isinstance(config.scaling, RangeScaling):
            limits = read_nifti(self._file, config).limits  # taken once, not again for each slice
            if limits is not None and limits[0] < limits[1]:
                scaling = RangeScaling(low=(limits[0],), high=(limits[1],))
                self._config = config.model_copy(update={"scaling": scaling})
                say(
                    f"{path.name}: levels 0 ... 255 stand for {limits[0]:g} ... {limits[1]:g} (percentiles of the volume)"
                )

    def __call__(self, index: int, /) -> NDArray[np.uint8]:
        try:
            return read_nifti(self._file, self._config.model_copy(update={"index": index})).pixels
        except ImageError as error:
            raise ImageError(error.code, error.found, error.fix, str(self._path)) from error


class _Trained:
    """Slices with the channels, neighbours and spacing of the volumes that the model was trained on."""

    def __init__(self, path: Path, config: VolumeFolderConfig, say: Callable[[str], None]) -> None:
        self._channels = config.shown()
        files = [channel.file for channel in self._channels if channel.file is not None]
        if files:
            raise ConfigError(
                f"{path}: the model sees further modalities ({files[0]}), which cannot be found beside a single volume; "
                "stack them as channels of a data set and use `vitp evaluate`"
            )
        self._grid = read_grid(path, config.plane)
        self._readers = [VolumeReader(path, config.plane, c.volume, unpack=config.unpack) for c in self._channels]
        self._limits = [r.limits(c) for r, c in zip(self._readers, self._channels, strict=True)]
        self._size: list[int] | None = None
        if config.spacing is not None:
            steps = self._grid.spacing[:2]
            self._size = [max(1, round(n * s / config.spacing)) for n, s in zip(self._grid.size, steps, strict=True)]
            say(
                f"{path.name}: slices are resampled to {config.spacing:g} mm for the model, classes back to the file's grid"
            )

    def __call__(self, index: int, /) -> NDArray[np.uint8]:
        planes = []
        for reader, channel, limits in zip(self._readers, self._channels, self._limits, strict=True):
            at = min(max(index + channel.offset, 0), self._grid.slices - 1)  # as in training
            planes.append(levels(reader.values(at), limits))
        picture = np.stack(planes if len(planes) == 3 else planes * 3)
        if self._size is None:
            return picture
        resized: NDArray[np.uint8] = functional.resize(torch.from_numpy(picture), self._size, antialias=True).numpy()
        return resized


def volume_target(target: Path, path: Path) -> Path:
    """The label volume's file; compressed where the input is."""
    return with_suffix(target, ".nii.gz" if path.name.lower().endswith(".gz") else ".nii")


def predict_volume(path: Path, target: Path, work: Work) -> list[Path]:
    """Predict every slice of a volume and write class ids with the volume's affine; a killed call goes on where it was.

    Args and errors are those of `predict_scene`; of a 4-D file one volume is predicted (reader.nifti.volume).
    """
    if work.predictor.dates == 2:
        raise ConfigError(f"{path}: the model compares two dates, which volumes do not have; give pairs of images")
    for asked, name in ((work.config.probabilities, "probabilities"), (work.config.polygons, "polygons")):
        if asked:
            work.say(f"{path.name}: {name} are written for images, not for volumes; left out")
    trained, reader = work.volumes, work.reader.nifti
    plane = reader.plane if trained is None else trained.plane
    with nifti_opened(path) as image:
        view = view_of(image, plane, path)
    partial = Partial(state_folder(target), work.fingerprint(path, None), {CLASSES: math.prod(view.lengths)})
    try:
        slices: _Slices = _Shown(path, reader, work.say) if trained is None else _Trained(path, trained, work.say)
        _predict(path, slices, view, partial, work)
    except BaseException:
        partial.close()
        raise
    final = volume_target(target, path)
    written = [final]
    if work.config.preview:
        written.append(with_suffix(target, "_preview.png"))
        _preview(written[-1], slices, view, partial.path(CLASSES), work)
    with nifti_opened(path) as image:
        _save(final, image, view, partial.path(CLASSES), len(work.look.classes))
    partial.remove()
    return written


def _predict(path: Path, slices: _Slices, view: View, partial: Partial, work: Work) -> None:
    """Fill the layer, slice by slice as they are shown; slices that fit a window go through the model together."""
    count, height, width = view.lengths
    if partial.done:
        work.say(f"{path.name}: going on after {partial.done} of {count} slices")
    together = work.batch_size if max(height, width) <= work.side else 1
    first = partial.done - partial.done % together  # the batches of an uninterrupted call
    waiting: list[NDArray[np.uint8]] = []
    for index, pixels in enumerate(ahead(map(slices, range(first, count))), first):
        waiting.append(pixels)
        if len(waiting) < together and index + 1 < count:
            continue
        fits = max(pixels.shape[1:]) <= work.side
        ids = _whole(waiting, work) if fits else np.stack([_tiled(path, each, work) for each in waiting])
        partial.write(CLASSES, (index + 1 - len(waiting)) * height * width, _on_grid(ids, (height, width)))
        partial.note(index + 1, now=index + 1 == count)
        work.progress(index + 1, count)
        waiting = []


def _whole(slices: list[NDArray[np.uint8]], work: Work) -> NDArray[np.uint8]:
    """Class ids [n, h, w] of n slices [3, h, w], in one forward pass."""
    logits = work.predictor.logits(torch.from_numpy(np.stack(slices)))  # [n, K, h, w]
    return np.stack([best(each).numpy() for each in logits])


def _tiled(path: Path, pixels: NDArray[np.uint8], work: Work) -> NDArray[np.uint8]:
    _, height, width = pixels.shape
    source = PictureSource(path, height, width, 3, None, False, pixels=pixels)
    grid = make_grid(height, width, work.side, work.config.overlap)
    rows = predicted(work.predictor, source, grid, batch_size=work.batch_size)
    return np.concatenate([part.classes for part in rows])


def _on_grid(ids: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Class ids [n, h, w] on the file's grid, [n, H, W], by the nearest pixel."""
    if ids.shape[1:] == size:
        return ids
    back: NDArray[np.uint8] = functional.resize(
        torch.from_numpy(ids), list(size), interpolation=InterpolationMode.NEAREST_EXACT
    ).numpy()
    return back


def _save(final: Path, image: Any, view: View, raw: Path, kinds: int) -> None:
    """The layer as a NIfTI file of the input's grid, written in the order of storage."""
    nibabel = import_extra("nibabel", "medical", "writing NIfTI")
    shown = np.memmap(raw, dtype=np.uint8, mode="r", shape=view.lengths)
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, kinds - 1
    header.extensions.clear()
    kind = nibabel.Nifti2Image if isinstance(image, nibabel.Nifti2Pair) else nibabel.Nifti1Image
    labels = kind(view.stored(shown), None, header)
    sform, qform = int(image.header["sform_code"]), int(image.header["qform_code"])
    labels.set_sform(image.get_sform() if sform else None, sform)
    labels.header.set_qform(image.get_qform() if qform else None, qform)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            if not final.name.endswith(".gz"):
                _stream(labels, stream)
                return
            with gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed:  # no name, no time: the same bytes again
                _stream(labels, packed)

    write_atomic(final, write)


def _stream(labels: Any, stream: BinaryIO | gzip.GzipFile) -> None:
    labels.to_stream(stream)


def _preview(path: Path, slices: _Slices, view: View, raw: Path, work: Work) -> None:
    """The slice with most of the classes, or the middle one."""
    count, height, width = view.lengths
    background = work.look.background
    shares = [int((raw_rows(raw, i, 1, (height, width)) != background).sum()) for i in range(count)]
    index = int(np.argmax(shares)) if background is not None and max(shares) else count // 2
    step = math.ceil(max(height, width) / work.config.preview)
    pixels = torch.from_numpy(slices(index))
    if pixels.shape[1:] != (height, width):
        pixels = functional.resize(pixels, [height, width], antialias=True)
    ids = raw_rows(raw, index, 1, (height, width))[0, ::step, ::step]
    write_preview(path, pixels.numpy()[:, ::step, ::step].transpose(1, 2, 0), ids, work.look)
