"""The command line as a newcomer meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.minidata import write_data, write_recipe
from vitp.cli import app, main

RUNNER = CliRunner()
COMMANDS = ("demo", "check", "estimate", "pretrain", "ask", "export", "finetune", "probe", "recipes", "models", "env")


def test_help_names_every_command_with_a_sentence() -> None:
    text = RUNNER.invoke(app, ["--help"]).output
    for name in COMMANDS:
        assert name in text
        own = RUNNER.invoke(app, [name, "--help"])
        assert own.exit_code == 0
        assert "Usage" in own.output


def test_importing_the_package_or_asking_for_help_loads_no_torch() -> None:
    code = "import sys, vitp, vitp.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def run_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["vitp", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrain", "no_such_recipe.yaml"], "no_such_recipe.yaml"),
        (["export", "no/such/run"], "not a pretraining run"),
        (["pretrain", "tiny_rsicd", "data.sources.0.root=/no/such/folder"], "/no/such/folder"),
        (["pretrain", "tiny_rsicd", "modle.tower.depth=4"], "did you mean 'model'"),
        (["pretrain", "tiny_rsicd", "vrl.preset=custom", "vrl.drop_ratio=1.2"], "vrl.drop_ratio"),
        (["finetune", "busi", "backbone=nowhere.safetensors", "data.root=/no/such/folder"], "/no/such/folder"),
        (["probe", "rsscn7"], "backbone"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(arguments, monkeypatch) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())  # nothing written


def test_check_lists_findings_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    write_data(root, 8)
    recipe = write_recipe(tmp_path, root, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["vitp", "check", str(recipe), "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert not [f for f in report["findings"] if f["severity"] == "error"]
    (root / "images" / "002.png").write_bytes(b"")
    (root / "images" / "004.png").unlink()
    assert run_main(["check", str(recipe)], monkeypatch) == 2
    text = capsys.readouterr().out
    assert "train.jsonl:3" in text
    assert "train.jsonl:5" in text


def test_python_twins_are_functions_whatever_was_imported_before() -> None:
    """The modules that hold them must not take their names in the package."""
    code = (
        "import vitp\n"
        "for _ in range(2):\n"
        "    for name in ('check', 'pretrain', 'export', 'finetune', 'probe', 'load_backbone', 'load_run'):\n"
        "        assert callable(getattr(vitp, name)), name\n"
        "import vitp.cli, vitp.demo.run\n"
        "assert callable(vitp.pretrain) and callable(vitp.check)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recipes_and_env_print_what_there_is() -> None:
    listed = RUNNER.invoke(app, ["recipes"]).output
    assert "pretrain/tiny_rsicd" in listed
    models = RUNNER.invoke(app, ["models"]).output
    assert "model.vlm" in models
    assert "OpenGVLab/InternVL2_5-1B " in models
    assert "model.vlm" in json.loads(RUNNER.invoke(app, ["models", "--json"]).output)
    facts = RUNNER.invoke(app, ["env"]).output
    for word in ("torch", "timm", "transformers", "vitp", "cores"):
        assert word in facts


def test_full_disk_is_a_sentence(tmp_path: Path) -> None:
    """A real full file system, where the machine lets us have one."""
    full = Path("/dev/full")
    if not full.exists() or os.name != "posix":
        pytest.skip("no /dev/full here")
    from vitp.errors import OutputError
    from vitp.files import raise_if_unwritable

    try:
        with open(full, "wb", buffering=0) as handle:
            handle.write(b"x")
    except OSError as error:
        with pytest.raises(OutputError, match="no space left to write"):
            raise_if_unwritable(error, tmp_path / "model.safetensors")
    else:
        pytest.fail("/dev/full took a byte")
