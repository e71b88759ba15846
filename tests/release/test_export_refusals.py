"""What export refuses, and that it never leaves anything half-written or replaces what is not its own."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from tests.release.edited import edited

from vitp.cli import main
from vitp.commands.export import export
from vitp.errors import CheckpointError, MissingExtraError, OutputError, VitpError


def test_what_a_format_cannot_hold_is_a_sentence_and_leaves_nothing(run: Path, other_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'norm\.weight' has no counterpart .*use --to timm"):
        export(other_run, to="vitp", path=tmp_path / "x.safetensors")

    def no_thumbnail(document: dict[str, Any]) -> None:
        document["data"]["tiling"]["thumbnail"] = False

    with pytest.raises(CheckpointError, match="thumbnail"):
        export(edited(run, tmp_path / "edited", no_thumbnail), to="hf", path=tmp_path / "whole")
    assert {item.name for item in tmp_path.iterdir()} == {"edited"}


def test_a_difference_is_an_error_and_an_earlier_export_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vit.safetensors"
    export(run, path=path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    real = timm.create_model

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        model = real(*args, **kwargs)
        if "checkpoint_path" in kwargs:
            model.blocks[1].mlp.fc2.bias.data[3] += 1.0
        return model

    monkeypatch.setattr(timm, "create_model", disturbed)
    with pytest.raises(CheckpointError, match=r"re-loaded through timm the output differs by .*; not written"):
        export(run, path=path, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("to", ["timm", "hf-vision"])
def test_an_existing_export_is_replaced_only_when_said(run: Path, tmp_path: Path, to: str) -> None:
    path = tmp_path / ("vit.safetensors" if to == "timm" else "vision")
    export(run, to=to, path=path)
    with pytest.raises(OutputError, match=r"is there already: add --overwrite"):
        export(run, to=to, path=path)
    export(run, to=to, path=path, dtype="bf16", overwrite=True)
    with safe_open(path if to == "timm" else path / "model.safetensors", "pt") as file:
        assert file.get_tensor(next(iter(file.keys()))).dtype == torch.bfloat16
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


def test_a_folder_of_the_user_is_never_replaced(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match="was not written by vitp"):
        export(run, to="hf-vision", path=mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert export(run, to="hf-vision", path=tmp_path / "empty").card.is_file()


def test_a_place_that_cannot_be_written_is_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        export(run, path=tmp_path / "file" / "vit.safetensors")
    with pytest.raises(OutputError, match="is a folder"):
        export(run, path=_folder(tmp_path / "there.safetensors"))
    real = Path.mkdir

    def read_only(self: Path, *args: Any, **kwargs: Any) -> None:
        if "sealed" in str(self):
            raise PermissionError(13, "Permission denied", str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)  # a read-only folder is none to the superuser
    with pytest.raises(OutputError, match=r"sealed/vit\.safetensors cannot be written \(Permission denied\)"):
        export(run, path=tmp_path / "sealed" / "vit.safetensors")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_missing_extra_is_named_before_the_run_is_loaded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=r"onnxruntime is missing\): pip install 'vitp\[onnx\]'"):
        export(run, to="onnx")
    assert isinstance(sys.modules["torch"], types.ModuleType)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "no/such/run"], "no/such/run is not a pretraining run"),
        (["export", "RUN", "--to", "timn"], "--to timn: unknown format; formats here: timm, vitp, hf-vision, hf, onnx"),
        (["export", "RUN", "x.pt"], "x.pt: --to timm writes one file; give a name that ends in .safetensors"),
        (["export", "RUN", "x.pt", "--to", "onnx"], "ends in .onnx"),
        (["export", "RUN", "--dtype", "fp8"], "--dtype fp8: timm is written in fp32 or bf16"),
        (["export", "RUN", "--to", "onnx", "--dtype", "bf16"], "onnx is written in fp32"),
        (["export", "RUN", "--resample", "nearest"], "--resample nearest: choose pinv or bicubic"),
        (["export", "RUN", "new", "--patch-size", "5", "--image-size", "32"], "not a multiple of patch_size 5"),
        (["export", "RUN", "new", "--push-to", "nobody"], "--push-to nobody: give owner/name"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    run: Path, arguments: list[str], said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vitp", *(str(run) if a == "RUN" else a for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_line_prints_parity_and_json(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vitp", "export", str(run), str(tmp_path / "v"), "--to", "hf-vision", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    said = capsys.readouterr()
    assert "parity: max abs difference" in said.err
    assert "re-loaded through transformers' InternVLVisionModel" in said.err
    numbers = json.loads(said.out.splitlines()[-1])
    assert numbers["weights"] == str(tmp_path / "v")
    assert 0 <= numbers["max_abs_difference"] < 1e-4


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "young")
    shutil.rmtree(tmp_path / "young" / "checkpoints")
    with pytest.raises(VitpError, match="no complete checkpoint yet"):
        export(tmp_path / "young", path=tmp_path / "x.safetensors")
    assert {item.name for item in tmp_path.iterdir()} == {"young"}
