"""`vitp evaluate`: the scores of a run again, other views of its images, and a sweep over shares of the data."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitp
from vitp.ablation.variants import backbone_variants, seed_variants
from vitp.backbone.vit import BackboneConfig, random_backbone, save_backbone
from vitp.cli import main
from vitp.commands.finetune import FinetuneConfig
from vitp.commands.sweep import commands, sweep
from vitp.datasets.masks import MaskFolder
from vitp.errors import CheckpointError, ConfigError, DataError, OutputError
from vitp.inference.grid import flush_starts
from vitp.recipes import load_recipe
from vitp.report.matrix import Matrix, draw_matrix, gathered
from vitp.tasks.segment import InferenceConfig, build_segmenter, load_dense, predict_logits

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2)


def _picture(rng: np.random.Generator, ids: np.ndarray) -> Image.Image:
    return Image.fromarray((rng.integers(0, 90, (*ids.shape, 3)) + ids[..., None] * 150).astype(np.uint8))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright rectangles of six patients, the same as pairs whose first date is empty, and a recipe of each."""
    root = tmp_path_factory.mktemp("evaluate")
    for i in range(12):
        rng = np.random.default_rng(i)
        y, x = rng.integers(0, 20, 2)
        ids = np.zeros((36, 44), dtype=np.uint8)
        ids[y : y + 14, x : x + 16] = 1
        for folder, picture in {
            "images": _picture(rng, ids),
            "before": _picture(rng, np.zeros_like(ids)),
            "masks": Image.fromarray(ids),
        }.items():
            (root / folder).mkdir(exist_ok=True)
            picture.save(root / f"{folder}/p{i // 2}_{i}.png")
    common = {"steps": 12, "batch_size": 4, "workers": 0, "device": "cpu", "precision": "fp32", "backbone_lr": 2e-3,
              "head_lr": 4e-3, "backbone_config": TINY.model_dump(mode="json"), "augment": {"crop": 32},
              "inference": {"window": 32, "overlap": 0.25, "flips": "horizontal"}}  # fmt: skip
    data = {"root": str(root), "group": r"(p\d)_", "masks": "masks/{name}", "test_fraction": 0.3}
    segment = {
        **common,
        "name": "boxes",
        "task": "segment",
        "data": {**data, "images": "images/*.png", "classes": ["ground", "box"]},
    }
    pairs = {**data, "images": "before/*.png", "after": "images/{name}", "threshold": 1}
    change = {**common, "name": "change", "task": "change", "data": pairs}
    for recipe in (segment, change):
        recipe["out"] = str(root / "runs" / str(recipe["name"]))
        (root / f"{recipe['name']}.yaml").write_text(json.dumps(recipe))
    return root


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Path]:
    """Both recipes, run."""
    return {name: vitp.finetune(place / f"{name}.yaml").out for name in ("boxes", "change")}


# -------------------------------------------------------------------------------------------------------------- one model


@pytest.mark.parametrize("name", ["boxes", "change"])
def test_the_scores_are_those_the_run_itself_found(runs: dict[str, Path], name: str) -> None:
    result = vitp.evaluate(runs[name], out=runs[name] / "again")
    own = json.loads((runs[name] / "metrics.json").read_text())
    assert result.numbers["classes"] == own["classes"]
    assert result.numbers["miou"] == own["miou"]
    assert result.numbers.get("f1_changed") == own.get("f1_changed")
    assert {"out": str(result.out), **json.loads((result.out / "metrics.json").read_text())} == result.numbers
    assert np.sum(result.numbers["confusion"]) == own["pixels"]
    for word in (*own["classes"], "mean", *(["F1 of changes"] if name == "change" else [])):
        assert any(line.startswith(word) for line in result.lines()), word
    page = result.report.read_text()
    assert page.count("<img ") == (4 if name == "boxes" else 5) * min(6, result.numbers["images"])
    assert 'class="cell right"' in page


def test_other_views_other_data_and_other_parts(runs: dict[str, Path], place: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    several = vitp.evaluate(
        runs["boxes"] / "model.safetensors",
        tta="multiscale",
        out=tmp_path / "views",
        progress=lambda done, total: seen.append((done, total)),
        say=said.append,
    )
    assert several.numbers["inference"]["scales"] == [0.75, 1.0, 1.25]
    assert "6 views" in said[0]
    assert seen == [(i, several.numbers["images"]) for i in range(1, several.numbers["images"] + 1)]
    train = vitp.evaluate(runs["boxes"], split="train", tta="none", out=tmp_path / "train")
    assert train.numbers["inference"]["flips"] == "none"
    assert train.numbers["images"] + several.numbers["images"] == 12
    moved = tmp_path / "moved"
    for folder in ("images", "masks"):
        (moved / folder).mkdir(parents=True)
        for file in (place / folder).glob("*.png"):
            (moved / folder / file.name).write_bytes(file.read_bytes())
    elsewhere = vitp.evaluate(runs["boxes"], data=moved, out=tmp_path / "elsewhere")
    assert elsewhere.numbers["data"] == str(moved)
    assert elsewhere.numbers["miou"] == json.loads((runs["boxes"] / "metrics.json").read_text())["miou"]


def test_mistakes_are_one_sentence(runs: dict[str, Path], place: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        vitp.evaluate(tmp_path / "nothing")
    with pytest.raises(DataError, match="has no val images"):
        vitp.evaluate(runs["boxes"], split="val", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="its data are pairs, and .* takes single images"):
        vitp.evaluate(runs["boxes"], recipe=place / "change.yaml", out=tmp_path / "x")
    with pytest.raises(ConfigError, match=r"its classes \(ground, box, road\) are not those"):
        vitp.evaluate(runs["boxes"], ["data.classes=[ground, box, road]"], out=tmp_path / "x")
    lonely = tmp_path / "lonely.safetensors"
    lonely.write_bytes((runs["boxes"] / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"has no recipe\.yaml beside it"):
        vitp.evaluate(lonely)
    vitp.evaluate(lonely, recipe=place / "boxes.yaml", out=tmp_path / "y")
    with pytest.raises(OutputError, match="holds an evaluation: say --overwrite"):
        vitp.evaluate(lonely, recipe=place / "boxes.yaml", out=tmp_path / "y")
    backbone = tmp_path / "backbone.safetensors"
    save_backbone(backbone, random_backbone(TINY, 0), TINY, {"name": "x"})
    with pytest.raises(CheckpointError, match="holds no model that can be scored"):
        vitp.evaluate(backbone)


def test_the_command_line_ends_with_one_line_of_json(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["vitp", "evaluate", str(runs["change"]), "inference.window=null", "--tta", "flip"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "one"), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    captured = capsys.readouterr()
    (line,) = captured.out.strip().splitlines()
    assert json.loads(line)["inference"]["flips"] == "horizontal"
    assert "F1 of changes" in captured.err
    monkeypatch.setattr(sys, "argv", [*words[:3], "--split", "tset"])
    with pytest.raises(SystemExit):
        main()
    assert "--split tset: known are test, val, train" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- windows and views


def test_views_average_probabilities_not_logits(place: Path) -> None:
    model = build_segmenter(random_backbone(TINY, 0), ["a", "b", "c"], 0).eval()
    image = torch.randint(0, 256, (3, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inference = InferenceConfig(window=32, overlap=0.5, flips="horizontal")
    found = predict_logits(model, image, inference).softmax(0)
    expected = torch.zeros(3, 40, 52)
    for flip in ((), (-1,)):
        view = image.flip(flip)
        total, count = torch.zeros(3, 40, 52), torch.zeros(40, 52)
        for y in (0, 8):
            for x in (0, 16, 20):
                with torch.no_grad():
                    total[:, y : y + 32, x : x + 32] += model(view[None, :, y : y + 32, x : x + 32])[0]
                count[y : y + 32, x : x + 32] += 1
        expected += (total / count).softmax(0).flip(flip) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "window", "step", "scales", "flips"),
    [
        ("isaid", 896, 448, (0.75, 1, 1.5), "horizontal"),
        ("uavid", 768, 512, (0.5, 0.75, 1, 1.25, 1.5, 1.75), "horizontal"),
        ("loveda", 512, 384, (1,), "none"),
        ("s2looking", 512, 256, (1,), "none"),
    ],
)
def test_recipes_test_as_released(recipe: str, window: int, step: int, scales: tuple[float, ...], flips: str) -> None:
    found = load_recipe(FinetuneConfig, f"finetune/{recipe}", ["backbone=x"]).inference
    assert (found.window, found.step, found.scales, found.flips) == (window, step, scales, flips)


@pytest.mark.parametrize("window", [8, 9, 32, 96, 128, 512, 513, 768])
def test_windows_share_a_third_unless_said_otherwise(window: int) -> None:
    assert InferenceConfig(window=window).step == window * 2 // 3
    assert InferenceConfig(window=window, overlap=0).step == window
    assert flush_starts(100, 32, 32) == [0, 32, 64, 68]
    assert flush_starts(20, 32, 16) == [0]


# ------------------------------------------------------------------------------------------------------------ the picture


def test_a_matrix_of_many_classes_loses_no_pixel() -> None:
    counts = np.random.default_rng(0).integers(0, 50, (40, 40))
    labels, shown = gathered(Matrix("m", [f"c{i}" for i in range(40)], counts.tolist()))
    assert len(labels) == 20
    assert labels[-1] == "21 others"
    assert shown.sum() == counts.sum()
    kept = [int(name[1:]) for name in labels[:-1]]
    assert set(kept) == set(np.argsort(-counts.sum(1), kind="stable")[:19].tolist())
    assert (shown[:-1, :-1] == counts[np.ix_(kept, kept)]).all()


def test_rows_of_the_matrix_are_percent_of_their_label() -> None:
    drawing = draw_matrix(Matrix("m", ["a", "b", "c"], [[3, 1, 0], [0, 5, 0], [0, 0, 0]]), 344)
    assert drawing is not None
    assert [cell.text for cell in drawing.cells] == ["75", "25", "", "", "100", "", "", "", ""]
    assert [cell.right for cell in drawing.cells] == [True, False, False, False, True, False, False, False, True]
    assert max(cell.x for cell in drawing.cells) + drawing.side <= 344
    assert draw_matrix(Matrix("m", ["a", "b"], [[0, 0], [0, 0]]), 344) is None


# ------------------------------------------------------------------------------------------------------ data efficiency


def test_a_sweep_over_fractions_and_backbones(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.safetensors"
    save_backbone(file, random_backbone(TINY, 7), TINY, {"name": "own"})
    out = tmp_path / "sweep"
    words = [
        "vitp",
        "evaluate",
        str(place / "boxes.yaml"),
        f"out={out}",
        "steps=2",
        "--sweep",
        "fraction=1,0.25",
        "--json",
    ]
    words += ["--backbones", f"random,own={file}", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(row["fraction"], row["backbone"], row["mIoU"]["n"]) for row in found["table"]] == [
        (1, "random", 2), (1, "own", 2), (0.25, "random", 2), (0.25, "own", 2)
    ]  # fmt: skip
    for point in found["points"]:
        own = json.loads((Path(point["folder"]) / "metrics.json").read_text())
        assert point["mIoU"] == 100 * own["miou"]
        config = MaskFolder(load_recipe(FinetuneConfig, Path(point["folder"]) / "recipe.yaml").data)
        patients = {config.items[i].group for i in config.train}
        assert len(config.train) == 2 * len(patients) == (8 if point["fraction"] == 1 else 2)
    assert (out / "sweep.html").is_file()
    monkeypatch.setattr(sys, "argv", ["vitp", "evaluate", str(out / "sweep.yaml"), "--resume", "--json"])
    monkeypatch.setattr("vitp.ablation.kinds.finetune", None)  # nothing is run again
    with pytest.raises(SystemExit):
        main()
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert again["table"] == found["table"]
    assert {point["state"] for point in again["points"]} == {"kept"}


def test_a_point_that_was_trained_but_not_scored_is_scored(place: Path, tmp_path: Path) -> None:
    given = (place / "boxes.yaml", ["fraction=0.5"], [f"out={tmp_path / 's'}", "steps=1"])
    first = sweep(*given, kind="finetune")
    metrics = tmp_path / "s" / "fraction=0.5" / "metrics.json"
    metrics.unlink()
    again = sweep(*given, kind="finetune", resume=True)
    assert again.outcomes[0].state == "done"
    assert again.outcomes[0].numbers["mIoU"] == first.outcomes[0].numbers["mIoU"]
    assert json.loads(metrics.read_text())["miou"] == first.outcomes[0].numbers["mIoU"] / 100


def test_commands_and_mistakes_of_a_sweep(place: Path, tmp_path: Path) -> None:
    recipe = place / "boxes.yaml"
    variants = {**backbone_variants(["random", "own=/x.safetensors"], recipe), **seed_variants(3)}
    listed = commands(recipe, ["fraction=1,0.02"], [f"out={tmp_path}"], kind="finetune", variants=variants)
    assert len(listed) == 12
    assert all(line.startswith("vitp finetune ") and "data.fraction_seed=" in line for line in listed)
    with pytest.raises(CheckpointError, match=r"/x\.safetensors: does not exist"):
        sweep(recipe, ["fraction=1"], [f"out={tmp_path / 's'}"], kind="finetune", variants=variants)
    with pytest.raises(ConfigError, match="write random, or NAME=FILE"):
        backbone_variants(["own"], recipe)
    with pytest.raises(ConfigError, match="'own' is there twice"):
        backbone_variants(["own=a", "own=b"], recipe)
    with pytest.raises(ConfigError, match="of which ViT"):
        backbone_variants(["random"], "finetune/oam_buildings")
    with pytest.raises(ConfigError, match="fraction"):
        commands(recipe, ["fraction=0,1"], [f"out={tmp_path}"], kind="finetune")


def test_a_model_opens_whatever_it_is(runs: dict[str, Path]) -> None:
    assert [load_dense(runs[name])[0].dates for name in ("boxes", "change")] == [1, 2]
