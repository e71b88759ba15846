"""`vitp pretrain RECIPE --sweep key=a,b,c`, `vitp evaluate RECIPE --sweep ...`: a grid of runs, resumable, one table."""

from __future__ import annotations

import json
import shlex
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitp.ablation import table
from vitp.ablation.axes import Axis
from vitp.ablation.downstream import Downstream
from vitp.ablation.kinds import Kind, KindName, read_record
from vitp.ablation.plan import Axes, Job, Plan, Variants, described, plan_sweep
from vitp.ablation.report import write_sweep_report
from vitp.ablation.table import Outcome
from vitp.commands.export import export
from vitp.config import save
from vitp.errors import OutputError, VitpError
from vitp.files import write_json, write_text
from vitp.train.checkpoint import list_checkpoints
from vitp.train.distributed import refuse_ranks
from vitp.train.loop import MARKER, check_same_recipe
from vitp.train.task import Progress

RECORD = "sweep.yaml"  # stands in every folder a sweep made; itself a recipe that `vitp pretrain` takes
_TABLES = ("sweep.json", "sweep.csv", "sweep.html")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found; `sweep.json`, `sweep.csv` and `sweep.html` in `out` hold the same."""

    out: Path
    axes: tuple[Axis, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        """The points that could not be finished."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]

    def lines(self) -> list[str]:
        """The table, then the failures with their reasons."""
        found = table.lines(self.axes, self.outcomes)
        found += [f"failed: {outcome.point.name}: {outcome.error}" for outcome in self.failed]
        return found

    def to_json(self) -> dict[str, Any]:
        """Axes, table and points, with the folder and the number of failures."""
        return {"out": str(self.out), "failed": len(self.failed), **table.to_json(self.axes, self.outcomes)}


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """See whether the sweep may use `folder`; changes nothing.

    Raises:
        OutputError: it may not.
    """
    if resume and overwrite:
        raise OutputError("say either --resume or --overwrite, not both")
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise OutputError(f"{place} is a file; choose another 'out' folder than {folder}")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if (folder / MARKER).is_file():
        raise OutputError(
            f"{folder} holds a single run, so no sweep is put there; choose another folder, out={folder}_sweep"
        )
    if not (folder / RECORD).is_file():
        raise OutputError(
            f"{folder} is not empty and was not written by a sweep (no {RECORD} in it); choose another 'out'"
        )
    if not resume and not overwrite:
        raise OutputError(
            f"{folder} holds a sweep: add --resume to continue it (points may be added), --overwrite to delete it and "
            "start anew, or choose another 'out'"
        )


def _clear(folder: Path) -> None:
    """Delete an earlier sweep: the runs below its folder and its tables, and nothing else."""
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink() and (item / MARKER).is_file():
            shutil.rmtree(item)
        elif item.name in (RECORD, *_TABLES) or item.name.endswith(".error.txt"):
            item.unlink()


def _with_progress(jobs: Sequence[Job], kind: Kind) -> tuple[Job, ...]:
    """The jobs with what earlier calls finished, after a look at every point's data and recipe.

    Raises:
        CheckpointError: a point was begun with another recipe.
        DataError: the data cannot be opened.
    """
    found = []
    for job in jobs:
        now = json.loads(json.dumps(kind.fingerprint(job.config)))
        checkpoints, finished = list_checkpoints(job.config.folder), False
        if checkpoints:
            state = read_record(checkpoints[-1] / "state.json")
            check_same_recipe(state, now, checkpoints[-1])
            finished = int(state["step"]) >= job.steps and kind.measured(job.config)
        found.append(replace(job, finished=finished))
    return tuple(found)


# --------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class _Part:
    """Progress of one point as part of the whole: steps of all points, and which point of how many it is."""

    whole: Progress
    before: int
    total: int
    point: int
    points: int

    def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
        """Count the point's step among all."""
        self.whole.update(self.before + step, self.total, {**logs, "point": self.point, "points": self.points})

    def say(self, text: str) -> None:
        """Pass a line on."""
        self.whole.say(text)


def sweep(
    recipe: Path | str,
    axes: Axes = (),
    overrides: Sequence[str] = (),
    *,
    then: Sequence[str] = (),
    kind: KindName = "pretrain",
    variants: Variants | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> SweepResult:
    """Pretrain, or fine-tune and score, at every point of a grid and tabulate, with what each backbone is worth downstream.

    Args:
        recipe: a recipe of the kind (file or shipped name), or an ablation recipe, which names one.
        axes: texts as after ``--sweep`` (``drop_ratio=0,0.5``, or an ablation recipe whose axes are taken), or a
            mapping from keys to values. Points of the key ``seed`` are repetitions of the others.
        overrides: dotted overrides of the recipe, for every point.
        then: probing and fine-tuning recipes, each with its overrides behind it (``probe/rsscn7 data.root=/data``);
            they take the place of an ablation recipe's own, and ``none`` leaves them out.
        kind: what a point is, where `recipe` is no ablation recipe.
        variants: axes whose points set several keys: axis -> label -> overrides; `seed_variants` and `backbone_variants` of
            `vitp.ablation.variants` make some.
        resume: keep finished points and continue the others.
        overwrite: delete an earlier sweep in the folder.
        progress: told after every step, counted over all points.
        say: receives lines worth reading.

    Returns:
        one outcome a point, in the order of the grid; a point that fails does not stop the others.

    Raises:
        VitpError: any mistake that shows before the first point runs.
    """
    refuse_ranks(
        "a sweep", "start its points with torchrun (--list prints their commands), then tabulate with --resume"
    )
    plan = plan_sweep(described(recipe, axes, overrides, then, kind, variants))
    _check_folder(plan.folder, resume=resume, overwrite=overwrite)
    for downstream in plan.then:
        downstream.check(plan.folder)
    if overwrite and plan.folder.exists():
        _clear(plan.folder)
    plan = replace(plan, jobs=_with_progress(plan.jobs, plan.kind))
    save(plan.config, plan.folder / RECORD)
    outcomes = [Outcome(job.point, job.config.folder, "open") for job in plan.jobs]
    left = [job for job in plan.jobs if not job.finished]
    if len(left) < len(plan.jobs):
        say(f"{len(plan.jobs) - len(left)} of {len(plan.jobs)} points are finished and kept")
    before, total = 0, sum(job.steps for job in left)
    for i, job in enumerate(plan.jobs):
        say(f"point {i + 1} of {len(plan.jobs)}: {job.point.name}" + (" (trained before)" if job.finished else ""))
        part = _Part(progress, before, total, i + 1, len(plan.jobs)) if progress is not None else None
        outcomes[i] = _run(job, plan, part, say)
        before += 0 if job.finished else job.steps
        if outcomes[i].error:
            say(f"point {job.point.name} failed: {outcomes[i].error}")
        _write(plan, outcomes)
    return SweepResult(plan.folder, plan.axes, tuple(outcomes))


def _run(job: Job, plan: Plan, part: _Part | None, say: Callable[[str], None]) -> Outcome:
    """Train one point as far as it is not, and measure it; whatever goes wrong becomes its outcome."""
    folder = job.config.folder
    _error_log(folder).unlink(missing_ok=True)
    outcome = Outcome(job.point, folder, "kept" if job.finished else "done")
    try:
        if not job.finished:
            plan.kind.train(job.config, resume=(folder / MARKER).is_file(), progress=part, say=say)
        state = read_record(list_checkpoints(folder)[-1] / "state.json")
        outcome = replace(outcome, numbers=plan.kind.numbers(job.config, float(state["total"]["seconds"])))
        for downstream in plan.then:
            found = _measure(downstream, folder, anew=not job.finished, say=say)
            outcome = replace(
                outcome,
                numbers={**outcome.numbers, **downstream.shown(found)},
                downstream={**outcome.downstream, downstream.label: found},
            )
    except VitpError as error:
        return replace(outcome, state="failed", error=str(error))
    except Exception as error:  # the other points shall run, whatever this one met
        log = _error_log(folder)
        write_text(log, traceback.format_exc())
        return replace(outcome, state="failed", error=f"{type(error).__name__}: {error} (see {log})")
    return outcome


def _error_log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.error.txt")


def _measure(downstream: Downstream, folder: Path, *, anew: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The numbers of a downstream recipe, run unless the same recipe was run on these weights before."""
    backbone, file = folder / "backbone.safetensors", folder / f"{downstream.label}.json"
    if not anew and file.is_file():
        stored = read_record(file)
        if stored["recipe"] == downstream.made_by(backbone, folder):
            numbers: dict[str, Any] = stored["numbers"]
            return numbers
    if anew or not backbone.is_file():
        export(folder, path=backbone, overwrite=True)
    say(f"{folder.name}: {downstream.recipe}")
    made_by, numbers = downstream.run(backbone, folder, say)
    write_json(file, {"recipe": made_by, "numbers": numbers})
    return numbers


def _write(plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """The tables so far: a sweep that is stopped leaves what it found."""
    write_json(plan.folder / "sweep.json", table.to_json(plan.axes, outcomes))
    write_text(plan.folder / "sweep.csv", table.to_csv(plan.axes, outcomes))
    command = f"vitp {plan.kind.sweeper} {shlex.quote(str(plan.folder / RECORD))} --resume"
    write_sweep_report(plan.folder / "sweep.html", plan.config.name, plan.axes, outcomes, command)


def commands(
    recipe: Path | str,
    axes: Axes = (),
    overrides: Sequence[str] = (),
    *,
    then: Sequence[str] = (),
    kind: KindName = "pretrain",
    variants: Variants | None = None,
) -> list[str]:
    """The `vitp pretrain` or `vitp finetune` command of every point, to be run one by one anywhere; nothing is run here.

    Raises:
        ConfigError: a mistake in any of them.
    """
    plan = plan_sweep(described(recipe, axes, overrides, then, kind, variants))
    return [
        shlex.join(
            [
                "vitp",
                plan.kind.command,
                plan.config.recipe,
                *plan.shared,
                *job.point.overrides,
                f"out={job.config.folder}",
            ]
        )
        for job in plan.jobs
    ]
