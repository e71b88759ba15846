"""`vitp synthesize` as a user calls it, on the procedural scenes' own label files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitp.cli import app
from vitp.demo.scenes import SceneConfig, write_dataset
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.source import Source, SourceConfig

MASKS = ["format=masks", "images=images/*.png", "masks=masks/{stem}.png"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_dataset(root, 12, 4, SceneConfig(size=96))
    return root


@pytest.mark.parametrize("overrides", [["format=coco"], MASKS], ids=["boxes", "masks"])
def test_labels_become_instructions_that_pass_the_check(scenes: Path, tmp_path: Path, overrides: list[str]) -> None:
    out = tmp_path / "made.jsonl"
    run = CliRunner().invoke(app, ["synthesize", str(scenes), str(out), *overrides, "turns=4", "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["records"] == len(out.read_text().splitlines()) >= 10
    report = check_sources([Source(SourceConfig(name="made", root=scenes, annotations=out))], CheckOptions(decode=True))
    assert report.count("error") == 0
    first = out.read_bytes()
    again = CliRunner().invoke(app, ["synthesize", str(scenes), str(out), *overrides, "turns=4", "--overwrite"])
    assert again.exit_code == 0, again.output
    assert out.read_bytes() == first


def test_an_existing_file_a_typo_and_a_wrong_folder(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    out.write_text("mine\n")
    for arguments, said in (
        ([str(scenes), str(out), "format=coco"], "exists and is not empty"),
        ([str(scenes), str(tmp_path / "b.jsonl"), "fromat=coco"], "format"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "b.jsonl")], "nowhere"),
    ):
        run = CliRunner().invoke(app, ["synthesize", *arguments])
        assert run.exit_code != 0
        assert said in f"{run.output} {run.exception}"
    assert out.read_text() == "mine\n"
    assert not (tmp_path / "b.jsonl").exists()
