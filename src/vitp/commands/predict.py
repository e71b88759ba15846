"""`vitp predict`: a trained run on images of any size, each output with its input's place on the ground or in the body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vitp
from vitp.config import load
from vitp.errors import ConfigError, OutputError, VitpError
from vitp.files import file_state
from vitp.inference.colours import class_colours
from vitp.inference.config import PredictConfig
from vitp.inference.jobs import Job, Ledger, find_jobs
from vitp.inference.model import RunFacts, load_predictor, read_facts, window_side, windows_at_once
from vitp.inference.scene import Progress, Work, predict_scene
from vitp.inference.sinks import Look
from vitp.inference.volumes import predict_volume


@dataclass(frozen=True)
class PredictResult:
    """What was written, and which inputs could not be used."""

    out: Path
    outputs: dict[str, list[Path]]  # input -> its files, the class map first
    skipped: list[str] = field(default_factory=list)  # inputs an earlier, interrupted call had finished
    failed: dict[str, str] = field(default_factory=dict)  # input -> what is wrong with it

    def lines(self) -> list[str]:
        """For people."""
        files = sum(len(files) for files in self.outputs.values())
        lines = [
            f"predicted {len(self.outputs)} of {len(self.outputs) + len(self.failed) + len(self.skipped)}, {files} files"
        ]
        if len(self.outputs) == 1:
            lines = [f"wrote {', '.join(str(file) for files in self.outputs.values() for file in files)}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} were there already, from the call that was interrupted")
        if self.failed:
            lines.append(f"{len(self.failed)} failed:")
            lines += [f"  {sentence}" for sentence in self.failed.values()]
        return lines

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        outputs = {name: [str(file) for file in files] for name, files in self.outputs.items()}
        return {"out": str(self.out), "outputs": outputs, "skipped": self.skipped, "failed": self.failed}


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
    jobs = find_jobs(image, None if after is None else Path(after), out, config.reader or facts.reader)
    work = _work(run, config, facts, progress, say)
    for job in jobs:
        work.check_dates(job.path, job.after)
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
    ledger.close(failed)
    return PredictResult(out, outputs, ledger.skipped, failed)


def _work(run: Path, config: PredictConfig, facts: RunFacts, progress: Progress, say: Callable[[str], None]) -> Work:
    predictor, own = load_predictor(
        run, device=config.device, precision=config.precision, scales=config.scales, flips=config.flips
    )
    look = Look(predictor.classes, class_colours(predictor.classes, facts.background, config.colours), facts.background)
    weights = file_state(run / "model.safetensors" if run.is_dir() else run)
    reader = config.reader or facts.reader
    volumes = facts.volumes if config.reader is None else None
    side = window_side(config.window, own, predictor.zoom)
    batch_size = config.batch_size or windows_at_once(side * predictor.zoom, predictor.device)
    return Work(predictor, look, config, reader, side, batch_size, weights, volumes, say, progress)


def _about(run: Path, work: Work) -> dict[str, Any]:
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


def _predict(job: Job, work: Work) -> list[Path]:
    if job.volume:
        return predict_volume(job.path, job.target, work)
    return predict_scene(job.path, job.after, job.target, work)
