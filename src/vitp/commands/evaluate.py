"""`vitp evaluate`: a fine-tuned model on a part of a labelled data set, with the benchmark's own metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.backbone.vit import read_metadata
from vitp.commands.evaluate_dense import evaluate_dense
from vitp.commands.evaluate_detect import evaluate_detect
from vitp.commands.finetune_recipe import METRICS, PICTURES, REPORT
from vitp.commands.scoring import Asked, Tta
from vitp.datasets.splits import Split
from vitp.errors import CheckpointError, ConfigError, OutputError

# What a model's file says it holds -> who scores it.
_SCORERS: dict[str, Callable[[Asked], tuple[dict[str, Any], list[str]]]] = {
    "segmenter": evaluate_dense,
    "detector": evaluate_detect,
}


@dataclass(frozen=True)
class EvaluateResult:
    """What was measured; metrics.json and report.html in `out` hold the same."""

    out: Path
    numbers: dict[str, Any]
    table: list[str]

    @property
    def report(self) -> Path:
        """Tables, what was mistaken for what, and pictures."""
        return self.out / REPORT

    def lines(self) -> list[str]:
        """For people."""
        return self.table


def evaluate(
    run: Path | str,
    overrides: Sequence[str] = (),
    *,
    data: Path | str | None = None,
    split: Split = "test",
    tta: Tta = "own",
    recipe: Path | str | None = None,
    out: Path | str | None = None,
    pictures: int = PICTURES,
    submission: Path | str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    say: Callable[[str], None] = lambda _: None,
) -> EvaluateResult:
    """Score a fine-tuned model.

    Args:
        run: the folder of a `vitp finetune` run, or its model.safetensors.
        overrides: dotted overrides of the run's recipe: of its data, its inference, device and precision.
        data: another place of the data set, the same as overriding ``data.root``.
        split: the part that is scored.
        tta: views of every image: as the recipe says (own), one (none), mirrored too (flip), or at 0.75, 1 and 1.25, mirrored too
            (multiscale, which the released change configs declare).
        recipe: whose data are taken, and whose inference unless the model is a detector, which keeps how it is shown images
            with its weights; by default recipe.yaml beside the model.
        out: folder of the results; by default evaluation/SPLIT in the run's folder.
        pictures: images shown in the report.
        submission: a zip to write what a detector found to, as DOTA's server takes it; patches are merged to whole images.
        overwrite: replace the results of an earlier call in `out`.
        progress: told images done and how many there are.
        say: receives lines worth reading.

    Returns:
        scores, and where they were written.

    Raises:
        VitpError: any mistake the user can mend.
    """
    run = Path(run)
    file = run / "model.safetensors" if run.is_dir() else run
    if not file.is_file():
        raise CheckpointError(f"{file}: does not exist; `vitp finetune` writes it when its last step is done")
    about = read_metadata(file)
    scorer = next((scorer for kind, scorer in _SCORERS.items() if kind in about), None)
    if scorer is None:
        raise CheckpointError(f"{file}: holds no model that can be scored; give the folder of a `vitp finetune` run")
    source = Path(recipe) if recipe is not None else file.with_name("recipe.yaml")
    if recipe is None and not source.is_file():
        raise ConfigError(f"{file} has no recipe.yaml beside it that says where its data is; name one: --recipe RECIPE")
    target = Path(out) if out is not None else file.parent / "evaluation" / split
    if (target / METRICS).exists() and not overwrite:
        raise OutputError(f"{target} holds an evaluation: say --overwrite to replace it, or choose another --out")
    zipped = None if submission is None else Path(submission)
    if zipped is not None and zipped.exists() and not overwrite:
        raise OutputError(f"{zipped} exists: say --overwrite to replace it, or choose another --submission")
    places = () if data is None else (f"data.root={json.dumps(str(data))}",)
    asked = Asked(
        model=file,
        recipe=source,
        overrides=(*places, *overrides),
        split=split,
        tta=tta,
        metrics=target / METRICS,
        report=target / REPORT,
        submission=zipped,
        pictures=pictures,
        progress=progress,
        say=say,
    )
    numbers, table = scorer(asked)
    return EvaluateResult(target, {"out": str(target), **numbers}, table)
