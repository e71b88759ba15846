"""`vitp predict`: a trained run on images of any size, each output with its input's place on the ground or in the body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vitp
from vitp.boxes.objects import Detections
from vitp.config import load
from vitp.errors import ConfigError, OutputError, VitpError
from vitp.files import file_state
from vitp.inference.colours import class_colours
from vitp.inference.config import PredictConfig
from vitp.inference.jobs import Job, Ledger, find_jobs
from vitp.inference.load_finder import is_detector, load_finder, whole_up_to
from vitp.inference.model import RunFacts, load_predictor, read_facts, window_side, windows_at_once
from vitp.inference.object_files import Picture, join_coco, write_coco, write_dota, write_object_polygons
from vitp.inference.objects import ObjectWork, find_objects, object_list
from vitp.inference.polygons import check_polygons
from vitp.inference.scene import Progress, Settings, Work, predict_scene, with_suffix
from vitp.inference.sinks import Look
from vitp.inference.volumes import predict_volume
from vitp.metrics.dota_submission import Task, image_names, scenes_of, task_of

TOGETHER = "detections.json"
SCENES = "scenes"  # folder of what patches were merged to
DOTA: dict[Task, str] = {1: "task1.zip", 2: "task2.zip"}  # of rotated boxes, of upright ones
_OF_MAPS = frozenset({"probabilities", "format", "compress", "overviews", "min_polygon"})
_OF_OBJECTS = frozenset({"threshold", "merge", "dota"})


@dataclass(frozen=True)
class PredictResult:
    """What was written, and which inputs could not be used."""

    out: Path
    outputs: dict[str, list[Path]]  # input -> its files, the class map first
    skipped: list[str] = field(default_factory=list)  # inputs an earlier, interrupted call had finished
    failed: dict[str, str] = field(default_factory=dict)  # input -> what is wrong with it
    together: list[Path] = field(
        default_factory=list
    )  # files of all inputs: their objects as one list, or a submission
    scenes: list[Path] = field(default_factory=list)  # files of images that were merged from patches

    def lines(self) -> list[str]:
        """For people."""
        files = [*(file for files in self.outputs.values() for file in files), *self.together]
        inputs = len(self.outputs) + len(self.failed) + len(self.skipped)
        lines = [f"predicted {len(self.outputs)} of {inputs}, {len(files)} files"]
        if len(self.outputs) == inputs == 1:
            lines = [f"wrote {', '.join(map(str, files))}"]
        elif self.together:
            lines.append(f"of all inputs: {', '.join(map(str, self.together))}")
        if self.scenes:
            lines.append(f"merged from patches: {len(self.scenes)} files in {self.scenes[0].parent}")
        if self.skipped:
            lines.append(f"{len(self.skipped)} were there already, from the call that was interrupted")
        if self.failed:
            lines.append(f"{len(self.failed)} failed:")
            lines += [f"  {sentence}" for sentence in self.failed.values()]
        return lines

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        outputs = {name: [str(file) for file in files] for name, files in self.outputs.items()}
        return {
            "out": str(self.out),
            "outputs": outputs,
            "together": [str(file) for file in self.together],
            "scenes": [str(file) for file in self.scenes],
            "skipped": self.skipped,
            "failed": self.failed,
        }


def predict(
    run: Path | str,
    image: Path | str,
    out: Path | str,
    overrides: Sequence[str] = (),
    *,
    after: Path | str | None = None,
    config: PredictConfig | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _done, _total: None,
    say: Callable[[str], None] = lambda _: None,
) -> PredictResult:
    """Predict an image, a GeoTIFF, a volume, a pair of dates, or a folder of them.

    Args:
        run: the folder of a `vitp finetune` run.
        image: a file (picture, GeoTIFF, NIfTI), or a folder whose files are taken one by one.
        out: folder for the outputs; each is named after its input.
        overrides: dotted overrides of `PredictConfig`, ``window=512``.
        after: the second date, or a folder of second dates with the same names, for change detection.
        config: the settings, built; instead of overrides.
        overwrite: replace outputs that exist, and forget what an interrupted call has finished.
        progress: told windows (slices of a volume) done and how many there are, for each input.
        say: receives lines worth reading.

    Returns:
        the files written and, of a folder, what failed.

    Raises:
        VitpError: any mistake the user can mend; of a folder's files the others go on, and it is in the result.
    """
    if config is None:
        config = load(PredictConfig, None, overrides)
    elif overrides:
        raise ConfigError(f"{overrides[0]}: overrides are for the defaults; change the built PredictConfig itself")
    run, image, out = Path(run), Path(image), Path(out)
    facts = read_facts(run)
    objects = is_detector(run)
    _check_settings(config, run, objects=objects)
    jobs = find_jobs(image, None if after is None else Path(after), out, config.reader or facts.reader, objects=objects)
    work: Work | ObjectWork = (_object_work if objects else _work)(run, config, facts, progress, say)
    for job in jobs:
        work.check_dates(job.path, job.after)
    if isinstance(work, ObjectWork) and config.dota:
        scenes_of(image_names([job.path for job in jobs], work.finder.classes))
    ledger = Ledger(out, jobs, _about(run, work), overwrite=overwrite)
    outputs: dict[str, list[Path]] = {}
    failed: dict[str, str] = {}
    for job in ledger.open:
        try:
            outputs[job.name] = _predict(job, work)
        except VitpError as error:
            if not image.is_dir() or isinstance(error, OutputError):
                raise
            failed[job.name] = str(error)
            say(f"failed: {error}")
        else:
            ledger.finish(job, outputs[job.name])
    together: list[Path] = []
    scenes: list[Path] = []
    if isinstance(work, ObjectWork):
        usable = [job for job in jobs if job.name not in failed]
        together = _together(image, out, usable, work)
        if config.dota and usable:
            together.append(out / DOTA[task_of(rotated=work.finder.rotated)])
            scenes = _submit(together[-1], out / SCENES, usable, work)
            _say_missing(jobs, usable, say)
    ledger.close(failed)
    return PredictResult(out, outputs, ledger.skipped, failed, together, scenes)


def _check_settings(config: PredictConfig, run: Path, *, objects: bool) -> None:
    strange = sorted(config.model_fields_set & (_OF_MAPS if objects else _OF_OBJECTS))
    if strange:
        gives = "finds objects and maps no pixels" if objects else "maps pixels and finds no objects"
        raise ConfigError(f"{strange[0]}: the model of {run} {gives}; leave {' and '.join(strange)} out")
    if config.polygons is not None:
        check_polygons(config.polygons, objects=objects)


def _work(run: Path, config: PredictConfig, facts: RunFacts, progress: Progress, say: Callable[[str], None]) -> Work:
    predictor, own = load_predictor(
        run, device=config.device, precision=config.precision, scales=config.scales, flips=config.flips
    )
    look = Look(predictor.classes, class_colours(predictor.classes, facts.background, config.colours), facts.background)
    reader = config.reader or facts.reader
    volumes = facts.volumes if config.reader is None else None
    side = window_side(config.window, own, predictor.zoom)
    batch_size = config.batch_size or windows_at_once(side * predictor.zoom, predictor.device)
    return Work(
        predictor=predictor,
        look=look,
        config=config,
        reader=reader,
        side=side,
        batch_size=batch_size,
        weights=_weights(run),
        volumes=volumes,
        say=say,
        progress=progress,
    )


def _object_work(
    run: Path, config: PredictConfig, facts: RunFacts, progress: Progress, say: Callable[[str], None]
) -> ObjectWork:
    finder, own = load_finder(run, config)
    side = config.window or own
    seen = side * finder.in_windows(side).zoom
    return ObjectWork(
        finder=finder,
        whole=whole_up_to(finder, config, side),
        look=Look(finder.classes, class_colours(finder.classes, None, config.colours), None),
        config=config,
        reader=config.reader or facts.reader,
        side=side,
        batch_size=config.batch_size or windows_at_once(seen, finder.device),
        weights=_weights(run),
        say=say,
        progress=progress,
    )


def _weights(run: Path) -> tuple[int, int]:
    """Size and time of change of the weights' file."""
    return file_state(run / "model.safetensors" if run.is_dir() else run)


def _about(run: Path, work: Settings) -> dict[str, Any]:
    """What the outputs were made with, for the manifest."""
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in work.look.colours]
    return {
        "vitp": vitp.__version__,
        "run": str(run),
        "weights": work.weights,
        "classes": list(work.look.classes),
        "colours": colours,
        "window": work.side,
        "settings": work.config.model_dump(mode="json"),
        "reader": work.reader.model_dump(mode="json"),
    }


def _predict(job: Job, work: Work | ObjectWork) -> list[Path]:
    if isinstance(work, ObjectWork):
        return find_objects(job.path, job.target, work)
    if job.volume:
        return predict_volume(job.path, job.target, work)
    return predict_scene(job.path, job.after, job.target, work)


def _together(image: Path, out: Path, jobs: Sequence[Job], work: ObjectWork) -> list[Path]:
    """The objects of all inputs in one file, where there are several."""
    written = []
    if image.is_dir() and jobs:
        written.append(out / TOGETHER)
        join_coco(written[-1], [(job.name, job.final) for job in jobs])
    return written


def _say_missing(jobs: Sequence[Job], usable: Sequence[Job], say: Callable[[str], None]) -> None:
    """Say which images a submission holds in part or not at all."""
    there = {job.path.stem for job in usable}
    for name, members in scenes_of(job.path.stem for job in jobs).items():
        missing = {*members} - there
        if len(missing) == len(members):
            say(f"{name}: not in the submission, as it failed")
        elif missing:
            say(f"{name}: merged without {len(missing)} of its {len(members)} patches, which failed")


def _submit(path: Path, folder: Path, jobs: Sequence[Job], work: ObjectWork) -> list[Path]:
    """A DOTA submission, and the files of images of which the inputs are patches, named as the images."""
    written: list[Path] = []

    def scene(picture: Picture, found: Detections) -> None:
        target = folder / Path(picture.name).stem
        if work.config.polygons is not None:
            written.append(with_suffix(target, f".{work.config.polygons}"))
            write_object_polygons(written[-1], found, picture, work.finder.classes, None)
        written.append(object_list(target))
        write_coco(written[-1], [(picture, found)], work.finder.classes)

    names = image_names([job.path for job in jobs], work.finder.classes)
    write_dota(path, list(zip(names, (job.final for job in jobs), strict=True)), work.finder, scene)
    return written
