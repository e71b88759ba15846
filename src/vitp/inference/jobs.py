"""Which files a command predicts, what their outputs are called, and what an interrupted command has finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.errors import ConfigError, DataError, OutputError
from vitp.files import raise_if_unwritable, write_json
from vitp.images.raster import RasterConfig
from vitp.images.read import ImageConfig, kind_of
from vitp.inference.objects import object_list
from vitp.inference.scene import class_map, state_folder
from vitp.inference.volumes import volume_target

MANIFEST = "predict.json"
_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".jp2", ".nii", ".nii.gz", ".dcm", ".dicom")
_DOUBLE = ".nii.gz"


@dataclass(frozen=True)
class Job:
    """One input and where its outputs go."""

    name: str  # as in messages and in the manifest
    path: Path
    after: Path | None
    target: Path  # of the outputs, without suffix
    final: Path  # the class map, or the list of objects
    volume: bool = False


def find_jobs(image: Path, after: Path | None, out: Path, reader: ImageConfig, *, objects: bool = False) -> list[Job]:
    """The inputs, sorted by name; with `objects` their outputs are lists of what was found.

    Raises:
        DataError: nothing there, or a first date without second.
        ConfigError: a folder against a file, or two inputs whose outputs would have the same name.
    """
    for path in (image, after):
        if path is not None and not path.exists():
            raise DataError("no such file or folder; correct the path", str(path))
    if after is not None and image.is_dir() != after.is_dir():
        raise ConfigError(f"{image} and {after}: one is a folder and the other a file; give two files or two folders")
    if not image.is_dir():
        return [_job(image.name, image, after, out, reader, objects)]
    jobs = []
    for path in sorted(image.rglob("*")):
        relative = path.relative_to(image)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not path.name.lower().endswith(_ENDINGS) or not path.is_file() or path.is_relative_to(out):
            continue
        second = None if after is None else after / relative
        if second is not None and not second.is_file():
            raise DataError(f"has no second date: {second} does not exist; add it or take this file out", str(path))
        jobs.append(_job(relative.as_posix(), path, second, out, reader, objects))
    if not jobs:
        raise DataError(f"holds no image ({', '.join(_ENDINGS)}); give another folder", str(image))
    taken: dict[Path, Job] = {}
    for job in jobs:
        other = taken.setdefault(job.target, job)
        if other is not job:
            raise ConfigError(f"{other.path} and {job.path} would both be written to {job.final}; rename one of them")
    return jobs


def _job(name: str, path: Path, after: Path | None, out: Path, reader: ImageConfig, objects: bool) -> Job:
    relative = Path(name)
    cut = len(_DOUBLE) if name.lower().endswith(_DOUBLE) else len(relative.suffix)
    target = out / (name[:-cut] if cut else name)
    kind = kind_of(path, reader if reader.raster is not None else reader.model_copy(update={"raster": RasterConfig()}))
    if objects:
        if kind == "nifti":
            raise DataError(
                "is a volume, and the model finds objects in pictures; save its slices as pictures", str(path)
            )
        return Job(name, path, after, target, object_list(target))
    if kind == "nifti":
        return Job(name, path, after, target, volume_target(target, path), volume=True)
    return Job(name, path, after, target, class_map(target, raster=kind == "raster"))


class Ledger:
    """The manifest of an output folder: settings, and which inputs are finished.

    `open` are the jobs to do, `skipped` the names of those that an interrupted command had finished.
    """

    def __init__(self, out: Path, jobs: Sequence[Job], about: dict[str, Any], *, overwrite: bool) -> None:
        """Compare what is there with what is asked for; changes nothing but, with `overwrite`, unfinished states.

        Raises:
            OutputError: an output exists and may not be replaced, or `out` is a file.
        """
        self._file, self._about = out / MANIFEST, json.loads(json.dumps(about))
        for place in (out, *out.parents):
            if place.exists() and not place.is_dir():
                raise OutputError(f"{place} is a file; choose another --out than {out}")
        self._finished: dict[str, list[str]] = {} if overwrite else self._interrupted()
        self.open: list[Job] = []
        self.skipped: list[str] = []
        for job in jobs:
            if job.name in self._finished and job.final.exists():
                self.skipped.append(job.name)
                continue
            if job.final.exists() and not overwrite:
                raise OutputError(f"{job.final} exists already: say --overwrite to replace it, or choose another --out")
            if job.final.resolve() in (job.path.resolve(), job.after.resolve() if job.after is not None else None):
                raise OutputError(f"{job.final} is the input itself; choose another --out")
            self.open.append(job)
        if overwrite:
            _forget(jobs)

    def finish(self, job: Job, files: Sequence[Path]) -> None:
        """Note that a job is done."""
        self._finished[job.name] = [str(file.relative_to(self._file.parent)) for file in files]
        self._write(complete=False)

    def close(self, failed: dict[str, str]) -> None:
        """Note that the command came to its end."""
        self._write(complete=True, failed=failed)

    def _write(self, *, complete: bool, failed: dict[str, str] | None = None) -> None:
        found = {**self._about, "complete": complete, "files": self._finished, "failed": failed or {}}
        write_json(self._file, found)

    def _interrupted(self) -> dict[str, list[str]]:
        """What a command with the same settings finished before it was interrupted."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            same = all(found[key] == value for key, value in self._about.items())
            return dict(found["files"]) if same and not found["complete"] else {}
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
            return {}


def _forget(jobs: Sequence[Job]) -> None:
    """Delete the unfinished states of jobs; a folder of that name without our note is left alone."""
    for job in jobs:
        folder = state_folder(job.target)
        if not (folder / "state.json").is_file():
            continue
        try:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        except OSError as error:
            raise_if_unwritable(error, folder)
            raise OutputError(f"{folder} cannot be deleted ({error.strerror}); delete it yourself") from error
