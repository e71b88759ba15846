"""The one training loop. It knows steps, gradients, schedules and checkpoints, and no task by name.

A step is a pure function of its number: the task lays out its micro-batches together with the step's total loss
weight, so the gradient is exact however the step is cut, and a resumed run continues as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vitp.errors import CheckpointError, OutputError, TrainingError
from vitp.files import raise_if_unwritable, write_json, write_text
from vitp.heads.layers import synchronise_batch_norm
from vitp.train.average import WeightAverage
from vitp.train.distributed import Ranks
from vitp.train.feeding import Feeding, batches
from vitp.train.hardware import dense_peak
from vitp.train.loop_config import LoopConfig, choose_device, uses_bf16
from vitp.train.optim import (
    build_optimizer,
    freeze,
    lr_factor,
    set_lr,
    to_bf16_weights,
    uses_bf16_weights,
)
from vitp.train.saver import saver_for
from vitp.train.step_sums import StepSums
from vitp.train.strategies import choose_strategy, local_part
from vitp.train.task import Observation, Progress, StepBatch, Task
from vitp.train.trackers import SilentTracker, Tracker


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves behind."""

    step: int
    loss: float
    seconds: float  # of training, those before a resume included
    checkpoint: Path
    counts: dict[str, float]
    skipped: int


def _feeding(config: LoopConfig, device: torch.device, ranks: Ranks) -> Feeding:
    workers = config.workers
    if workers is None:
        workers = max(0, min(8, (os.cpu_count() or 1) // ranks.local_size - 1))
    return Feeding(workers, config.worker_timeout, pin_memory=device.type == "cuda")


MARKER = ".vitp-run"  # stands in every folder vitp made for a run; nothing else is ever overwritten or resumed


def check_output(out: Path, *, resume: bool, overwrite: bool) -> None:
    """See whether a run may use `out`; changes nothing.

    Raises:
        OutputError: it is a file or below one, or not empty while neither `resume` nor `overwrite` was said, or not a
            folder that vitp made.
    """
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise OutputError(f"{place} is a file; choose another 'out' folder than {out}")
    if resume and overwrite:
        raise OutputError("say either --resume or --overwrite, not both")
    if not out.exists() or not any(out.iterdir()):
        return
    if (resume or overwrite) and not (out / MARKER).is_file():
        raise OutputError(
            f"{out} was not written by vitp (no {MARKER} in it), so nothing in it is touched; choose another 'out' folder"
        )
    if not resume and not overwrite:
        raise OutputError(
            f"{out} is not empty: add --resume to continue that run, --overwrite to delete it and start anew, or choose "
            "another 'out'"
        )


def open_output(out: Path, *, overwrite: bool) -> None:
    """Make the run's folder, emptied of an earlier run when `overwrite`; call `check_output` first.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite and (out / MARKER).is_file():
            for item in out.iterdir():
                if item.is_dir() and not item.is_symlink():
                    shutil.rmtree(item)
                else:
                    item.unlink()
        (out / MARKER).touch()
    except OSError as error:
        raise_if_unwritable(error, out)
        raise OutputError(f"{out} cannot be made ({error.strerror}); choose another 'out' folder") from error


def _cut_lines(path: Path, step: int) -> None:
    """Drop the JSON lines a killed run wrote after its last checkpoint."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # a line cut in half by the kill
    write_text(path, "".join(kept))


def _stop_not_finite(
    out: Path, step: int, what: str, batch: StepBatch, model: nn.Module, ranks: Ranks
) -> TrainingError:
    """Save what is needed to look at step `step` (1-based), of this rank alone, and say where."""
    folder = out / "failed" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    rank = "" if ranks.alone else f"rank_{ranks.rank}_"
    for i, micro in enumerate(batch.micros):
        tensors = {name: tensor.contiguous().cpu() for name, tensor in micro.tensors().items()}
        save_file(tensors, folder / f"{rank}batch_{i}.safetensors")
    kept = ((name, local_part(p)) for name, p in model.named_parameters())  # whole ones would need the other ranks
    bad = [name for name, p in kept if not torch.isfinite(p).all()]
    write_json(folder / f"{rank}samples.json", {"step": step, "samples": batch.samples, "non_finite_parameters": bad})
    first = f", the first at {batch.samples[0]}" if batch.samples else ""
    return TrainingError(
        f"{what} is not finite at step {step} ({len(batch.samples)} samples{first}); the batch is saved in {folder}; "
        "lower the learning rate, lengthen the warm-up or look at these samples"
    )


class _Run:
    """The moving parts of one call of `train`."""

    def __init__(self, task: Task, config: LoopConfig, out: Path, starts: tuple[int, ...], ranks: Ranks) -> None:
        self.task, self.config, self.out, self.starts, self.ranks = task, config, out, starts, ranks
        self.device = choose_device(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        self.strategy = choose_strategy(config.strategy, ranks, self.device)
        self.sums = StepSums(ranks, self.strategy, self.device)
        freeze(task.parameter_groups())
        self.bf16_weights = uses_bf16_weights(config.weights, self.device, ranks.size, bf16=self.bf16)
        self.model = self.strategy.prepare(
            synchronise_batch_norm(task.model.to(self.device), self.strategy.group), bf16=self.bf16
        )
        masters = to_bf16_weights(self.model) if self.bf16_weights else None
        self.groups = task.parameter_groups()  # anew: a strategy may put parts in place of parameters
        if all(group.lr <= 0 for group in self.groups):
            raise TrainingError("every learning rate is 0, so nothing would train; set one above 0")
        self.optimizer = build_optimizer(
            self.groups,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
            decay_vectors=config.decay_vectors,
            decay_positions=config.decay_positions,
            masters=masters,
        )
        self.strategy.share(self.optimizer)
        if config.ema is not None and not ranks.alone:
            raise TrainingError(f"ema averages the weights of one process, this run has {ranks.size}; leave ema out")
        self.average = None if config.ema is None else WeightAverage(self.model, config.ema)
        self.parameters = [p for g in self.groups if g.lr > 0 for _, p in g.parameters]

    def step(self, step: int, batch: StepBatch) -> dict[str, float]:
        """Forward and backward over the micro-batches, clip, update. Returns loss, gradient norm and lr factor.

        The device is asked for numbers once, when all work but the update is queued.
        """
        loss_total = torch.zeros((), dtype=torch.float64, device=self.device)
        extra: dict[str, float] = {}
        for number, micro in enumerate(batch.micros, 1):
            moved = micro.to(self.device)
            self.strategy.before_micro(last=number == len(batch.micros))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and not self.bf16_weights):
                loss_sum, logs = self.task.loss(moved)
            part = loss_sum.float() / batch.weight
            if part.requires_grad:  # a text-only pack reaches no trained part when the language model is frozen
                part.backward()  # type: ignore[no-untyped-call]
            loss_total += part.detach()
            for key, value in logs.items():
                extra[key] = extra.get(key, 0.0) + value
        self.strategy.sum_gradients()
        totals = self.sums.total(loss_total, extra)
        limit = self.config.clip_norm or math.inf
        norm, loss, *others = torch.cat([self.strategy.clip(self.parameters, limit).double().view(1), totals]).tolist()
        extra = self.sums.named(others, extra)
        for what, value in (("the loss", loss), ("the gradient", norm)):
            if not math.isfinite(value):
                raise self.ranks.told(_stop_not_finite(self.out, step + 1, what, batch, self.model, self.ranks))
        config = self.config
        factor = lr_factor(step, config.steps, config.warmup, self.starts, config.schedule, config.warmup_from)
        set_lr(self.optimizer, factor)
        self.optimizer.step()
        self.strategy.updated()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, step)
        return {"loss": loss, "grad_norm": norm, "lr_factor": factor, **extra}


# Values a resumed run may change: where it is written and how it is watched, not what it computes.
_FREE = frozenset(
    {
        "out",
        "workers",
        "worker_timeout",
        "log_every",
        "checkpoint_every",
        "keep_last",
        "max_skipped_share",
        "device",
        "strategy",
    }
)


def recipe_fingerprint(config: LoopConfig, free: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """The values of a recipe by dotted path, without those a resumed run may change (`free` names further ones).

    The precision is the one in use, since ``auto`` may mean another on the machine where the run is resumed.
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i, inner in enumerate(value):
                walk(f"{prefix}.{i}", inner)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json", exclude=set(_FREE | free)))
    flat["precision"] = "bf16" if uses_bf16(config.precision, choose_device(config.device)) else "fp32"
    return flat


def in_step(config: LoopConfig, *, resume: bool) -> dict[str, Any]:
    """What is none of a run's fingerprint, and yet the same on all its ranks, or they would wait for one another for ever."""
    return {"--resume": resume, "strategy": config.strategy, "checkpoint_every": config.checkpoint_every}


def check_same_recipe(saved: dict[str, Any], fingerprint: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another recipe: `saved` is its state, `path` where it lies.

    Raises:
        CheckpointError: names the values that changed.
    """
    before = saved.get("fingerprint", {})
    changed = sorted(k for k in before.keys() | fingerprint.keys() if before.get(k) != fingerprint.get(k))
    if changed:
        key = changed[0]
        raise CheckpointError(
            f"{path}: made with another recipe ({', '.join(changed[:5])} changed; {key} was {before.get(key)!r}, is now "
            f"{fingerprint.get(key)!r}): resume with the same values, or start a new run in another 'out'"
        )


def _count(total: dict[str, float], batch: StepBatch, limit: float, out: Path) -> None:
    """Add a step to the run's totals.

    Raises:
        TrainingError: more than the share `limit` of the samples (and more than 20) were unusable.
    """
    for key, value in batch.counts.items():
        total[key] = total.get(key, 0.0) + value
    total["skipped"] += len(batch.skipped)
    if total["skipped"] > max(20.0, limit * total["samples"]):
        raise TrainingError(
            f"{total['skipped']:.0f} of {total['samples']:.0f} samples were unusable so far, see "
            f"{out / 'skipped.jsonl'}; run `vitp check`, or raise max_skipped_share"
        )


def train(
    task: Task,
    config: LoopConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    schedule_starts: tuple[int, ...] = (0,),
    fingerprint: dict[str, Any] | None = None,
    after_step: Callable[[int], Observation | None] | None = None,
    averaged: Callable[[WeightAverage], None] | None = None,
    ranks: Ranks = Ranks(),
) -> TrainResult:
    """Train `task` for `config.steps` steps, from the newest checkpoint in `out` when `resume` is set.

    Where the run averages its weights (`config.ema`) the model holds the averages in the end.

    Args:
        task: model, data and loss.
        config: steps, optimiser and bookkeeping.
        out: the run's folder, made ready by `prepare_output`.
        resume: continue from the newest complete checkpoint if there is one.
        progress: told after every step.
        schedule_starts: first steps of the phases with a learning-rate schedule of their own.
        fingerprint: values that must be the same when a run is resumed.
        after_step: called with the number of finished steps, 0 at first, before a checkpoint is written; what it returns is
            logged.
        averaged: given the average of the weights before the first step, where the run keeps one; what looks at the run after
            a step may put it in their place for a while.
        ranks: the processes of the run, see `vitp.train.distributed.joined`; the task gives this one its part of a step.

    Raises:
        TrainingError: loss or gradient not finite, or too many unusable samples.
        CheckpointError: the checkpoint does not fit.
        OutputError: no space left.
    """
    run = _Run(task, config, out, schedule_starts, ranks)
    fingerprint = json.loads(json.dumps(fingerprint or {}))
    start, loss, total = 0, math.nan, {"samples": 0.0, "skipped": 0.0, "seconds": 0.0}
    saver = saver_for(ranks)(out, ranks, run.model, run.optimizer, run.strategy, config.keep_last, run.average)
    newest = saver.newest() if resume else None
    if newest is not None:
        state = saver.load(newest)
        ranks.alike(partial(check_same_recipe, state, fingerprint, newest))
        start, loss, total = int(state["step"]), float(state["loss"]), state["total"]
    if resume and ranks.first:
        for name in ("log.jsonl", "skipped.jsonl"):
            _cut_lines(out / name, start)
    if run.average is not None and averaged is not None:
        averaged(run.average)
    run.model.train()
    rates = {g.name: g.lr for g in run.groups}
    peak = (dense_peak(run.device, bf16=run.bf16) or 0.0) * ranks.size  # counts are those of all ranks
    tracker = (Tracker if ranks.first else SilentTracker)(out, start, config.steps, config.log_every, rates, peak)
    waited_from = time.perf_counter()
    last_saved = newest or out
    try:
        if start == 0:
            tracker.observe(0, after_step)
        steps = range(start, config.steps)
        say = progress.say if progress is not None else lambda _: None
        feed = batches(task, steps, _feeding(config, run.device, ranks), say)
        for step, part in zip(steps, feed, strict=True):
            batch = ranks.shared(part)
            got = time.perf_counter()
            numbers = run.step(step, batch)
            done = time.perf_counter()
            loss = numbers["loss"]
            logs = tracker.step(step + 1, numbers, batch, wait=got - waited_from, busy=done - got)
            total["seconds"] += time.perf_counter() - waited_from
            ranks.alike(partial(_count, total, batch, config.max_skipped_share, out))
            if progress is not None:
                progress.update(step + 1, config.steps, logs)
            tracker.observe(step + 1, after_step)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                tracker.flush()
                state = {"total": total, "fingerprint": fingerprint, "loss": loss}
                last_saved = saver.save(step + 1, state)
            waited_from = time.perf_counter()
        saver.wait()
    except OSError as error:
        raise_if_unwritable(error, out)
        raise
    finally:
        tracker.close()
    if run.average is not None:
        run.average.copy_to(run.model)
    return TrainResult(config.steps, loss, total["seconds"], last_saved, total, int(total["skipped"]))
