"""`vitp check --against`: which downstream images were pretrained on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vitp.cli import app
from vitp.demo.scenes import SceneConfig, draw_scene, write_dataset
from vitp.errors import DataError
from vitp.instruction import leakage
from vitp.instruction.leakage import find_overlap, image_files, source_images
from vitp.instruction.source import Source, SourceConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pretraining scenes; downstream five others, three of the first re-encoded, one of them turned."""
    place = tmp_path_factory.mktemp("leak")
    config = SceneConfig(size=96)
    write_dataset(place / "pretrain", 12, 5, config)
    (place / "test" / "deep").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(draw_scene(5, 1000 + i, config).image).save(place / "test" / f"other{i}.png")
    for i, turns in ((2, 0), (5, 1), (9, 0)):
        scene = Image.open(place / "pretrain" / "images" / f"{i:06d}.png").convert("RGB")
        scene.rotate(90 * turns).resize((150, 150)).save(place / "test" / "deep" / f"copy{i}.jpg", quality=70)
    Image.new("RGB", (64, 64), (20, 60, 120)).save(place / "test" / "sea.png")
    (place / "test" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return place


def expected(place: Path) -> set[tuple[str, str, bool]]:
    return {
        (str(place / "pretrain" / "images" / f"{i:06d}.png"), str(place / "test" / "deep" / f"copy{i}.jpg"), i == 5)
        for i in (2, 5, 9)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_planted_overlap_is_found_and_nothing_else(place: Path, workers: int) -> None:
    source = Source(SourceConfig(name="s", root=place / "pretrain", annotations=Path("instructions.jsonl")))
    images = source_images([source])
    assert len(images) == 12
    report = find_overlap(images, image_files([place / "test"]), workers=workers)
    assert {(o.image, o.found_in, o.turned) for o in report.overlaps} == expected(place)
    assert (report.images, report.against, report.flat, report.leaked) == (12, 8, 1, 3)
    assert len(report.unreadable) == 1
    assert "broken.png" in report.unreadable[0]


def test_command_lists_pairs(place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: leak\nsteps: 1\ndata:\n  sources:\n    - {{name: s, root: {place / 'pretrain'}, "
        "annotations: instructions.jsonl}\n"
        "model:\n  tower: {architecture: vit_tiny_patch16_224, image_size: 96, patch_size: 12, width: 64, depth: 2, heads: 2}\n"
        "  language_model: {width: 64, depth: 1, heads: 1, kv_heads: 1, mlp_width: 64, vocabulary: 512}\n"
    )
    result = CliRunner().invoke(app, ["check", str(recipe), "--against", str(place / "test"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["leakage"]["leaked"] == 3
    assert {(o["image"], o["found_in"], o["turned"]) for o in found["leakage"]["overlaps"]} == expected(place)
    page = tmp_path / "check.html"
    result = CliRunner().invoke(app, ["check", str(recipe), "--against", str(place / "test"), "--html", str(page)])
    html = page.read_text(encoding="utf-8")
    assert "Leaked images" in html
    assert html.count("data:image/png;base64") == 6  # three pairs, side by side
    assert "deep/copy5.jpg" in html
    assert "3 of 8 downstream images (37.5 %) occur among 12 pretraining images" in result.output


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        image_files([tmp_path / "nothing"])
    with pytest.raises(DataError, match="holds no image"):
        image_files([tmp_path])


def test_a_killed_worker_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_CHUNK", 1)
    monkeypatch.setattr(leakage, "thumbnail", lambda _: os._exit(9))  # in the worker, which was forked
    files = [tmp_path / f"{i}.png" for i in range(3)]
    with pytest.raises(DataError, match="a worker process died"):
        find_overlap(files, files, workers=2)
