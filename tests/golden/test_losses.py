"""Recorded losses of a miniature run: a change that should not alter numbers leaves them alone.

Record anew, and say in the change why: ``python -m tests.golden.test_losses``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from tests.minidata import write_data, write_recipe

from vitp.commands.pretrain import pretrain
from vitp.train.trackers import read_log

FILE = Path(__file__).with_name("losses.json")


def losses(folder: Path, preset: str) -> list[float]:
    write_data(folder / "data")
    recipe = write_recipe(folder, folder / "data", folder / "out", steps=12)
    pretrain(recipe, [f"vrl.preset={preset}"])
    return [line["loss"] for line in read_log(folder / "out")]


@pytest.mark.parametrize("preset", ["none", "paper", "released"])
def test_losses_are_the_recorded_ones(tmp_path: Path, preset: str) -> None:
    recorded = json.loads(FILE.read_text())[preset]
    assert losses(tmp_path, preset) == pytest.approx(recorded, rel=2e-3)


def record() -> None:
    values = {}
    for preset in ("none", "paper", "released"):
        with tempfile.TemporaryDirectory() as folder:
            values[preset] = losses(Path(folder), preset)
    FILE.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    record()
