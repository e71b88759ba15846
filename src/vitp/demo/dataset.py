"""Data sets of procedural scenes on disk, in the layouts the rest of the project and other tools read."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitp.demo.classes import CATEGORIES, CLASSES, PALETTE
from vitp.demo.instances import Instance, area
from vitp.demo.questions import Task, instructions
from vitp.demo.render import SceneConfig, draw_pair, draw_scene
from vitp.demo.themes import THEMES
from vitp.errors import OutputError
from vitp.files import text_stream, write_atomic, write_text

ImageFormat = Literal["png", "jpeg"]
Progress = Callable[[int, int], None]
R = TypeVar("R")

_CHUNK = 16  # scenes a worker draws before it reports
_SUFFIX: dict[ImageFormat, str] = {"png": ".png", "jpeg": ".jpg"}
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """Where `write_dataset` put things; `count` scenes."""

    root: Path
    images: Path
    masks: Path
    instructions: Path
    coco: Path
    labels: Path
    classes: Path
    count: int


@dataclass(frozen=True, slots=True)
class PairFiles:
    """Where `write_pairs` put things; `count` pairs."""

    root: Path
    before: Path
    after: Path
    label: Path
    classes: Path
    count: int


@dataclass(frozen=True, slots=True)
class _Record:
    """What one scene adds to the shared files."""

    name: str
    theme: str
    line: str
    instances: tuple[Instance, ...]


@dataclass
class _Index:
    """What the shared files will hold."""

    names: list[str] = field(default_factory=list)
    themes: list[str] = field(default_factory=list)
    annotations: list[dict[str, object]] = field(default_factory=list)

    def add(self, record: _Record, image_id: int) -> None:
        self.annotations += _annotations(record, image_id, len(self.annotations))
        self.names.append(record.name)
        self.themes.append(record.theme)


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to know."""

    out: Path
    seed: int
    config: SceneConfig
    turns: int
    image_format: ImageFormat
    always: tuple[Task, ...] = ()


def write_dataset(
    out: Path,
    count: int,
    seed: int,
    config: SceneConfig,
    first_index: int = 0,
    turns_per_image: int = 6,
    workers: int = 1,
    progress: Progress | None = None,
    image_format: ImageFormat = "png",
    always: Sequence[Task] = (),
) -> DatasetFiles:
    """Draw scenes first_index .. first_index + count - 1 into a folder; the same bytes for any number of workers.

    Written are ``images/NNNNNN.png`` (or ``.jpg``), ``masks/NNNNNN.png`` (palette images of class ids), ``instructions.jsonl``
    (one conversation an image, LLaVA layout), ``coco.json`` (boxes, polygons, and ``obb`` as cx, cy, w, h, angle in le90
    radians), ``labels.csv`` (file, label = theme) and ``classes.json``. The shared files come last, so a folder with an
    ``instructions.jsonl`` is complete; a run that was killed is repeated into the same folder.

    Args:
        out: folder, made if missing.
        count: number of scenes.
        seed: of everything; with the index the only source of chance.
        config: what scenes to draw.
        first_index: distinct ranges of indices give distinct scenes.
        turns_per_image: questions an image; a very bare scene may have fewer.
        workers: processes. More than one starts fresh interpreters, so a script needs ``if __name__ == "__main__":``.
        progress: called with (done, total) now and then.
        image_format: of the images; masks are always PNG.
        always: kinds of questions asked of every scene; the rest is drawn from all other kinds.

    Raises:
        OutputError: the folder cannot be written to or already holds a finished data set.
    """
    assert count > 0
    assert turns_per_image > 0
    assert workers > 0
    files = DatasetFiles(
        root=out,
        images=out / "images",
        masks=out / "masks",
        instructions=out / "instructions.jsonl",
        coco=out / "coco.json",
        labels=out / "labels.csv",
        classes=out / "classes.json",
        count=count,
    )
    _prepare((files.images, files.masks), files.instructions)
    job = _Job(out, seed, config, turns_per_image, image_format, tuple(always))
    with text_stream(files.instructions) as stream:
        index = _Index()
        for records in _in_order(partial(_write_scenes, job), _chunks(first_index, count), workers):
            for record in records:
                stream.write(record.line + "\n")
                index.add(record, first_index + len(index.names))
            if progress is not None:
                progress(len(index.names), count)
        _write_shared(files, index, first_index, config.size)
    return files


def write_pairs(
    out: Path,
    count: int,
    seed: int,
    config: SceneConfig,
    first_index: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> PairFiles:
    """Draw change pairs into ``A/``, ``B/`` and ``label/`` (palette PNG: 0 unchanged, 1 changed, shown black and white).

    Arguments and errors as for `write_dataset`; ``classes.json`` is written last.
    """
    assert count > 0
    assert workers > 0
    files = PairFiles(out, out / "A", out / "B", out / "label", out / "classes.json", count)
    _prepare((files.before, files.after, files.label), files.classes)
    job = _Job(out, seed, config, 0, "png")
    done = 0
    for names in _in_order(partial(_write_pairs, job), _chunks(first_index, count), workers):
        done += len(names)
        if progress is not None:
            progress(done, count)
    write_text(files.classes, json.dumps({"classes": ["unchanged", "changed"]}) + "\n")
    return files


def _write_shared(files: DatasetFiles, index: _Index, first: int, size: int) -> None:
    """The files about all images: boxes, theme labels, legend."""
    images = [{"id": first + i, "file_name": name, "width": size, "height": size} for i, name in enumerate(index.names)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    coco = {"images": images, "categories": categories, "annotations": index.annotations}
    write_text(files.coco, json.dumps(coco) + "\n")
    rows = [f"{name},{theme}" for name, theme in zip(index.names, index.themes, strict=True)]
    write_text(files.labels, "\n".join(["file,label", *rows, ""]))
    legend = {
        "classes": list(CLASSES),
        "palette": PALETTE.tolist(),
        "categories": list(CATEGORIES),
        "themes": list(THEMES),
    }
    write_text(files.classes, json.dumps(legend, indent=1) + "\n")


def _chunks(first: int, count: int) -> list[range]:
    return [range(i, min(i + _CHUNK, first + count)) for i in range(first, first + count, _CHUNK)]


def _in_order(work: Callable[[range], R], chunks: Sequence[range], workers: int) -> Iterator[R]:
    """Results in the order of the chunks, computed by `workers` processes with a bounded lead."""
    if workers == 1 or len(chunks) == 1:
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("spawn")  # safe beside threads and an initialised GPU
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context)
    try:
        lead = 4 * workers
        pending = {i: pool.submit(work, chunk) for i, chunk in enumerate(chunks[:lead])}
        for i in range(len(chunks)):
            wait([pending[i]], return_when=FIRST_COMPLETED)
            yield pending.pop(i).result()
            if i + lead < len(chunks):
                pending[i + lead] = pool.submit(work, chunks[i + lead])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_scenes(job: _Job, indices: range) -> list[_Record]:
    """Draw and write some scenes; runs in a worker."""
    records = []
    for index in indices:
        scene = draw_scene(job.seed, index, job.config)
        name = f"images/{index:06d}{_SUFFIX[job.image_format]}"
        _write_image(job.out / name, Image.fromarray(scene.image))
        _write_image(job.out / "masks" / f"{index:06d}.png", _indexed(scene.mask, PALETTE))
        turns = instructions(scene, job.seed, index, job.turns, job.always)
        conversations = []
        for i, (question, answer, _) in enumerate(turns):
            conversations.append({"from": "human", "value": f"<image>\n{question}" if i == 0 else question})
            conversations.append({"from": "gpt", "value": answer})
        size = job.config.size
        line = {"id": index, "image": name, "width": size, "height": size, "conversations": conversations}
        records.append(_Record(name, scene.theme, json.dumps(line, ensure_ascii=False), scene.instances))
    return records


def _write_pairs(job: _Job, indices: range) -> list[str]:
    """Draw and write some pairs; runs in a worker."""
    black_white = np.array([(0, 0, 0), (255, 255, 255)], dtype=np.uint8)
    names = []
    for index in indices:
        pair = draw_pair(job.seed, index, job.config)
        name = f"{index:06d}.png"
        _write_image(job.out / "A" / name, Image.fromarray(pair.before.image))
        _write_image(job.out / "B" / name, Image.fromarray(pair.after.image))
        _write_image(job.out / "label" / name, _indexed(pair.change, black_white))
        names.append(name)
    return names


def _indexed(ids: NDArray[np.uint8], palette: NDArray[np.uint8]) -> Image.Image:
    """Class ids as a palette image: readers see ids, viewers see colours."""
    image = Image.fromarray(ids).convert("L")
    image.putpalette(palette.ravel().tolist())
    return image


def _write_image(path: Path, image: Image.Image) -> None:
    """Encode and write under a temporary name, then rename."""
    data = io.BytesIO()
    if path.suffix == ".jpg":
        image.save(data, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        image.save(data, "PNG", compress_level=3)  # noise hardly compresses; 3 costs half the time of 6
    write_atomic(path, lambda temporary: _write_bytes(temporary, data.getbuffer()), durable=False)


def _write_bytes(path: Path, data: memoryview) -> None:
    path.write_bytes(data)


def _prepare(folders: Sequence[Path], last: Path) -> None:
    """Make the folders; refuse a finished data set, clear what a killed run left half written."""
    if last.exists():
        raise OutputError(f"{last.parent} already holds a data set ({last.name}); choose another folder or delete it")
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            probe = folder / f".{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(f"{folder} cannot be used ({error.strerror}); choose another folder") from error


def _annotations(record: _Record, image_id: int, done: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for instance in record.instances:
        x1, y1, x2, y2 = instance.bbox
        points = [(float(x), float(y)) for x, y in instance.polygon.tolist()]
        found.append(
            {
                "id": done + len(found) + 1,
                "image_id": image_id,
                "category_id": CATEGORIES.index(instance.category) + 1,
                "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                "segmentation": [[round(v, 2) for point in points for v in point]],
                "area": round(area(points), 2),
                "obb": [*(round(v, 2) for v in instance.obb[:4]), round(instance.obb[4], 5)],
                "iscrowd": 0,
            }
        )
    return found
