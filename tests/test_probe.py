"""Probing frozen features: against scikit-learn, and the leaks and mistakes that make a probe lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from vitp.backbone.vit import BackboneConfig, random_backbone, save_backbone
from vitp.commands.probe import (
    STRENGTHS,
    ProbeConfig,
    choose_strength,
    extract_features,
    fit_linear,
    nearest,
    probe,
    standardise,
)
from vitp.config import load
from vitp.datasets.folder import read_labelled
from vitp.errors import CheckpointError, ConfigError, DataError, TrainingError

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2)
RECIPES = Path(__file__).parents[1] / "recipes/probe"
REAL = Path(__file__).parents[1] / "../shared/data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real sample data (../shared/data) is not here")


def _clusters(
    seed: int, per_class: int, classes: int = 5, width: int = 12, noise: float = 2.5
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), per_class)
    return torch.from_numpy(centres[labels] + rng.normal(scale=noise, size=(len(labels), width))), torch.from_numpy(
        labels
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise in three colours, one folder each."""
    root = tmp_path_factory.mktemp("colours")
    for c, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for i in range(12):
            pixels = np.random.default_rng((c, i)).integers(0, 120, (30, 40, 3))
            pixels[..., 2 - c] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def _recipe(folder: Path, **changes: object) -> ProbeConfig:
    fields = {
        "name": "colours",
        "backbone_config": TINY.model_dump(),
        "data": {"format": "folder", "root": folder},
        "labels_per_class": 4,
        "label_seeds": [0, 1],
        "precision": "fp32",
        "device": "cpu",
    }
    return ProbeConfig.model_validate({**fields, **changes})


# --------------------------------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize("strength", [1.0, 0.03, 0.001])
@pytest.mark.parametrize("width", [12, 200])  # fewer and more features than images
def test_the_linear_probe_is_scikit_learns_logistic_regression(width: int, strength: float) -> None:
    x, y = _clusters(0, 30, width=width)
    other, _ = _clusters(1, 200, width=width)
    ours = fit_linear(x, y, 5, strength, tolerance=1e-7)
    theirs = LogisticRegression(C=1 / (len(x) * strength), max_iter=5000, tol=1e-9).fit(x.numpy(), y.numpy())
    np.testing.assert_array_equal(ours.predict(other), theirs.predict(other.numpy()))
    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=3e-4)
    started = fit_linear(x, y, 5, strength, start=fit_linear(x, y, 5, 3.0), tolerance=1e-7)
    np.testing.assert_allclose(started.weight, ours.weight, atol=3e-4)  # one minimum, wherever the search starts
    loose = fit_linear(x, y, 5, strength)
    assert float((loose.predict(other) == ours.predict(other)).double().mean()) > 0.995


@pytest.mark.parametrize("k", [1, 20, 500])
def test_neighbours_vote_as_in_scikit_learn(k: int) -> None:
    x, y = _clusters(0, 30)
    other, _ = _clusters(1, 200)
    reference = KNeighborsClassifier(
        min(k, len(x)), weights=lambda distance: np.exp(-distance / 0.07), metric="cosine", algorithm="brute"
    ).fit(x.numpy(), y.numpy())
    np.testing.assert_array_equal(nearest(x, y, other, 5, k, 0.07), reference.predict(other.numpy()))


def test_the_chosen_strength_generalises_and_noise_asks_for_more_of_it() -> None:
    x, y = _clusters(0, 12, width=60)
    clean, labels = _clusters(0, 12, width=60, noise=0.3)
    test, truth = _clusters(1, 200, width=60)

    def accuracy(strength: float) -> float:
        return float((fit_linear(x, y, 5, strength).predict(test) == truth).double().mean())

    chosen = choose_strength(x, y, 5, seed=0)
    assert chosen > choose_strength(clean, labels, 5, seed=0)
    assert accuracy(chosen) > accuracy(1e-4)
    assert accuracy(chosen) > max(accuracy(s) for s in STRENGTHS) - 0.03
    single = torch.tensor([0, 1, 1, 2, 2, 3, 4])
    assert 0 < choose_strength(x[: len(single)], single, 5, seed=0) < 10  # nothing to hold out of class 0


def test_standardising_looks_at_training_features_alone() -> None:
    x, _ = _clusters(0, 10)
    x[:, 3] = 7.0
    train, test = standardise(x, x[:5] + 100)
    torch.testing.assert_close(train.mean(0), torch.zeros(12, dtype=torch.float64))
    spread = train.std(0, correction=0)
    assert spread[3] == 0
    torch.testing.assert_close(spread[[0, 11]], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(test[:, 0], train[:5, 0] + 100 / x[:, 0].std(correction=0))
    assert torch.isfinite(test).all()


def test_features_that_are_not_finite_stop_the_fit() -> None:
    x, y = _clusters(0, 10)
    x[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="did not converge"):
        fit_linear(x, y, 5, 0.1)


# ------------------------------------------------------------------------------------------------------------- features


def test_features_do_not_depend_on_batching_and_flips_are_averaged(folder: Path) -> None:
    backbone = random_backbone(TINY, 0)
    files = sorted(folder.glob("*/*.png"))[:7]
    one = extract_features(backbone, files, _recipe(folder, batch_size=1, threads=1))
    many = extract_features(backbone, files, _recipe(folder, batch_size=3, threads=3))
    torch.testing.assert_close(one, many)
    assert one.shape == (7, 32)
    flipped = extract_features(backbone, files, _recipe(folder, flip=True, layers=2))
    assert flipped.shape == (7, 64)
    mirrored = folder.parent / "mirrored.png"
    Image.open(files[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    pair = extract_features(backbone, [files[0], mirrored], _recipe(folder, layers=2))
    torch.testing.assert_close(flipped[0], pair.mean(0))
    rough = extract_features(backbone, files, _recipe(folder, precision="bf16"))
    assert 0 < float((rough - one).norm() / one.norm()) < 0.03
    with pytest.raises(TrainingError, match="layers: 3 wanted"):
        extract_features(backbone, files, _recipe(folder, layers=3))


def test_a_damaged_image_is_named(folder: Path, tmp_path: Path) -> None:
    good = sorted(folder.glob("*/*.png"))[0]
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    with pytest.raises(DataError) as error:
        extract_features(random_backbone(TINY, 0), [good, bad], _recipe(folder))
    assert error.value.where == str(bad)


def test_16_bit_images_are_probed_like_their_8_bit_twins(folder: Path, tmp_path: Path) -> None:
    """A folder a class of 12-bit values in 16-bit TIFF, with the range they are stored in."""
    for colour in ("blue", "green"):
        for kind in ("deep", "plain"):
            (tmp_path / kind / colour).mkdir(parents=True)
        for file in sorted((folder / colour).glob("*.png"))[:3]:
            grey = np.asarray(Image.open(file).convert("L"))
            Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "deep" / colour / f"{file.stem}.tif")
            Image.fromarray(grey).convert("RGB").save(tmp_path / "plain" / colour / f"{file.stem}.tif")
    raster = {"scaling": {"kind": "range", "low": [0], "high": [255 * 16]}}
    found = {}
    for kind, images in (("deep", {"raster": raster}), ("plain", {})):
        config = _recipe(tmp_path / kind, data={"format": "folder", "root": tmp_path / kind, "images": images})
        train, test = read_labelled(config.data)
        assert len(train) + len(test) == 6
        files = sorted([*train.files, *test.files], key=lambda file: file.relative_to(tmp_path / kind))
        found[kind] = extract_features(random_backbone(TINY, 0), files, config)
    torch.testing.assert_close(found["deep"], found["plain"])
    with pytest.raises(DataError, match=r"16-.*images\.raster"):
        extract_features(random_backbone(TINY, 0), [tmp_path / "deep/blue/0.tif"], _recipe(tmp_path / "deep"))


# ------------------------------------------------------------------------------------------------------------- command


def test_a_probe_finds_what_is_in_the_features_and_repeats(folder: Path) -> None:
    said: list[str] = []
    result = probe(_recipe(folder), say=said.append)
    assert result.classes == ("blue", "green", "red")
    assert (result.train_images, result.test_images) == (12, 18)
    assert min(result.linear) > 0.8  # a random net keeps colour
    assert min(result.knn) > 0.6
    assert any("RANDOM weights" in line for line in said)
    again = probe(_recipe(folder))
    assert (again.linear, again.knn, again.strengths) == (result.linear, result.knn, result.strengths)
    numbers = json.loads(json.dumps(result.numbers, allow_nan=False))
    assert numbers["linear_mean"] == pytest.approx(np.mean(result.linear))
    assert numbers["linear_sd"] == pytest.approx(np.std(result.linear, ddof=1))


def test_labels_that_say_nothing_about_the_image_give_chance(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*/*.png"))
    names = np.random.default_rng(0).permutation([str(i % 3) for i in range(len(files))])
    lines = [f"{file.relative_to(folder)},{name}" for file, name in zip(files, names, strict=True)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "\n".join(lines))
    data = {"format": "csv", "root": folder, "labels": tmp_path / "labels.csv"}
    result = probe(_recipe(folder, data=data, label_seeds=[0, 1, 2, 3]))
    assert result.numbers["linear_mean"] < 0.6


def test_a_trained_file_is_used_and_a_missing_one_never_replaced(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    backbone = random_backbone(TINY, 5)
    save_backbone(file, backbone, TINY)
    config = _recipe(folder, backbone=file, backbone_config=None)
    assert probe(config).linear == probe(config, backbone=backbone).linear
    with pytest.raises(CheckpointError, match="no such file"):
        probe(_recipe(folder, backbone=tmp_path / "gone.safetensors", backbone_config=None))


def test_lists_with_their_own_split(folder: Path, tmp_path: Path) -> None:
    rows = [
        f"{name}/{i}.png,{name},{'train' if i < 8 else 'test'}" for name in ("blue", "green", "red") for i in range(12)
    ]
    path = tmp_path / "labels.csv"
    data = {"format": "csv", "root": folder, "labels": path}
    path.write_text("\n".join(["file,label,split", *rows]))
    result = probe(_recipe(folder, data=data, labels_per_class=None))
    assert (result.train_images, result.test_images, len(result.linear)) == (24, 12, 1)
    assert result.numbers["linear_sd"] is None
    path.write_text("\n".join(["file,label,split", *rows, "red/0.png,red,test"]))
    with pytest.raises(DataError, match="already named in line"):
        probe(_recipe(folder, data=data))
    path.write_text("\n".join(["file,label,split", *rows]).replace("red/9.png,red,test", "red/9.png,violet,test"))
    with pytest.raises(DataError, match="class 'violet' is unknown"):
        probe(_recipe(folder, data=data))
    path.write_text("\n".join(["file,label,split", *rows]).replace(",test", ",dev"))
    with pytest.raises(DataError, match="split 'dev' is unknown"):
        probe(_recipe(folder, data=data))


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class blue has 6 training images, 7 wanted"):
        probe(_recipe(folder, labels_per_class=7))
    with pytest.raises(DataError, match="both a training and a test image"):
        probe(_recipe(folder, data={"format": "folder", "root": folder, "test_root": folder}))
    with pytest.raises(DataError, match="no image in any of its sub-folders"):
        probe(_recipe(folder, data={"format": "folder", "root": tmp_path}))
    recipe = tmp_path / "probe.yaml"
    recipe.write_text("name: x\ndata: {format: csv, root: .}\nbackbone: a.safetensors\n")
    with pytest.raises(ConfigError, match=r"labels .* goes with format: csv"):
        load(ProbeConfig, recipe)
    with pytest.raises(ConfigError, match="backbone is missing"):
        load(ProbeConfig, recipe, ["data.format=folder", "backbone=null"])


@pytest.mark.parametrize("name", ["rsicd", "rsscn7"])
def test_shipped_recipes_are_valid(name: str) -> None:
    assert load(ProbeConfig, RECIPES / f"{name}.yaml", ["backbone=backbone.safetensors"]).name == name


@needs_real
@pytest.mark.parametrize(("name", "classes", "chance"), [("rsicd", 30, 1 / 30), ("rsscn7", 7, 1 / 7)])
def test_shipped_recipes_run_on_the_real_data(name: str, classes: int, chance: float) -> None:
    root = REAL / ("rsicd_128" if name == "rsicd" else name)
    overrides = [f"data.root={root}", "label_seeds=[0]", "labels_per_class=4", "image_size=32", "precision=fp32"]
    overrides.append(f"backbone_config={TINY.model_dump_json(exclude_none=True)}")
    result = probe(RECIPES / f"{name}.yaml", overrides)
    assert len(result.classes) == classes
    assert result.linear[0] > 1.5 * chance  # colours alone tell some scenes apart
