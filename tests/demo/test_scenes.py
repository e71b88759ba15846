"""Procedural scenes: deterministic, consistent with their annotations, not solved by colour."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitp.demo.instances import annotate, oriented_box
from vitp.demo.scenes import (
    CATEGORIES,
    CLASSES,
    PALETTE,
    THEMES,
    Scene,
    SceneConfig,
    draw_scene,
    scene_theme,
)

SEED, COUNT = 11, 300
WATER, ROAD, BUILDING, SHIP, VEHICLE = (CLASSES.index(c) for c in ("water", "road", "building", "ship", "vehicle"))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(SEED, i, SceneConfig()) for i in range(COUNT)]


def test_a_scene_depends_on_its_arguments_alone(scenes: list[Scene]) -> None:
    for index in (250, 3, 77):
        again = draw_scene(SEED, index, SceneConfig())
        assert np.array_equal(again.image, scenes[index].image)
        assert np.array_equal(again.mask, scenes[index].mask)
        assert [i.obb for i in again.instances] == [i.obb for i in scenes[index].instances]
    images = {s.image.tobytes() for s in scenes}
    assert len(images) == COUNT
    assert not np.array_equal(draw_scene(SEED + 1, 3, SceneConfig()).image, scenes[3].image)


@pytest.mark.parametrize("size", [32, 48, 513])
def test_any_size(size: int) -> None:
    for theme in ("port", "forest", "airport"):
        for modality in ("optical", "sar"):
            scene = draw_scene(0, 1, SceneConfig(size=size, theme=theme, modality=modality))
            assert scene.image.shape == (size, size, 3)
            assert scene.mask.shape == (size, size)
            assert scene.image.dtype == scene.mask.dtype == np.uint8


def test_every_class_occurs_and_none_beyond(scenes: list[Scene]) -> None:
    pixels = sum((np.bincount(s.mask.ravel(), minlength=256) for s in scenes), start=np.zeros(256, int))
    assert (pixels[: len(CLASSES)] > 0).all()
    assert pixels[len(CLASSES) :].sum() == 0
    assert PALETTE.shape == (len(CLASSES), 3)
    assert len({tuple(c) for c in PALETTE.tolist()}) == len(CLASSES)


def test_themes_are_balanced_and_different_orders_follow_from_the_seed(scenes: list[Scene]) -> None:
    whole = COUNT // len(THEMES)
    counts = Counter(s.theme for s in scenes[: whole * len(THEMES)])
    assert set(counts.values()) == {whole}
    assert [scene_theme(1, i) for i in range(14)] != [scene_theme(2, i) for i in range(14)]
    assert draw_scene(0, 5, SceneConfig(theme="port")).theme == "port"


def test_boxes_fit_their_polygons(scenes: list[Scene]) -> None:
    for scene in scenes:
        for instance in scene.instances:
            cx, cy, w, h, angle = instance.obb
            assert w >= h > 0.0
            assert -math.pi / 2 <= angle < math.pi / 2
            along = (instance.polygon - (cx, cy)) @ (math.cos(angle), math.sin(angle))
            across = (instance.polygon - (cx, cy)) @ (-math.sin(angle), math.cos(angle))
            # The polygon touches all four sides from inside.
            assert (along.max(), -along.min()) == pytest.approx((w / 2, w / 2), abs=0.02)
            assert (across.max(), -across.min()) == pytest.approx((h / 2, h / 2), abs=0.02)
            x1, y1, x2, y2 = instance.bbox
            assert 0 <= x1 < x2 <= scene.mask.shape[1]
            assert 0 <= y1 < y2 <= scene.mask.shape[0]
            tight = (*instance.polygon.min(0), *instance.polygon.max(0))
            assert (x1, y1, x2, y2) == pytest.approx(tight, abs=1e-3)
            assert 0.3 <= instance.visible_fraction <= 1.0


def test_polygons_lie_on_their_class_in_the_mask(scenes: list[Scene]) -> None:
    shares: dict[str, list[float]] = {c: [] for c in CATEGORIES}
    covered = np.zeros(len(CLASSES))
    total = np.zeros(len(CLASSES))
    for scene in scenes[:120]:
        union = np.zeros_like(scene.mask)
        for instance in scene.instances:
            canvas = Image.new("1", scene.mask.shape)
            ImageDraw.Draw(canvas).polygon([tuple(p) for p in (instance.polygon - 0.5).tolist()], fill=1)
            inside = np.asarray(canvas)
            label = CLASSES.index(instance.category)
            shares[instance.category].append(float((scene.mask[inside] == label).mean()))
            union[inside] = 1
        for label in range(BUILDING, len(CLASSES)):
            here = scene.mask == label
            if CLASSES[label] not in scene.cut_off:
                covered[label] += (ndimage.binary_dilation(union, iterations=1) & here).sum()
                total[label] += here.sum()
    for category, values in shares.items():
        assert np.mean(values) > 0.75, category  # thin wings and small cars lose pixels at their edges
    # Nothing in the mask goes without an annotation; engines stand out of an aircraft's outline a little.
    assert (covered[BUILDING:] >= 0.97 * total[BUILDING:]).all()


def test_mostly_cut_off_objects_are_left_out_and_named() -> None:
    square = [(-6.0, 10.0), (4.0, 10.0), (4.0, 20.0), (-6.0, 20.0)]
    kept = annotate("building", square, 0.0, 64)
    assert kept is not None
    assert kept.visible_fraction == pytest.approx(0.4)
    assert kept.bbox == pytest.approx((0.0, 10.0, 4.0, 20.0))
    assert kept.obb == pytest.approx((2.0, 15.0, 10.0, 4.0, -math.pi / 2))
    assert annotate("building", [(x - 3.0, y) for x, y in square], 0.0, 64) is None
    assert any(s.cut_off for s in (draw_scene(0, i, SceneConfig(theme="residential")) for i in range(8)))


def test_le90_at_its_borders() -> None:
    wide = [(0.0, 0.0), (4.0, 0.0), (4.0, 2.0), (0.0, 2.0)]
    for angle in (math.pi / 2, -math.pi / 2, 3 * math.pi / 2, -1e-18 - math.pi / 2, math.pi, 0.0):
        *_, w, h, turned = oriented_box(wide, angle)
        assert (w, h) == pytest.approx((4.0, 2.0))
        assert -math.pi / 2 <= turned < math.pi / 2
        assert math.cos(2 * turned) == pytest.approx(1.0)


def test_ships_lie_on_water_and_cars_do_not(scenes: list[Scene]) -> None:
    around: dict[int, list[float]] = {SHIP: [], VEHICLE: []}
    for scene in scenes:
        for label, shares in around.items():
            parts, count = ndimage.label(scene.mask == label)
            for k in range(1, count + 1):
                ring = ndimage.binary_dilation(parts == k, iterations=2) & (scene.mask != label)
                shares.append(float((scene.mask[ring] == WATER).mean()))
    assert len(around[SHIP]) > 60
    assert min(around[SHIP]) > 0.1  # moored on one side, perhaps in a corner of the image
    assert np.mean(around[SHIP]) > 0.8
    assert np.mean(around[VEHICLE]) < 0.03


def test_streets_are_connected() -> None:
    largest = []
    for index in range(12):
        scene = draw_scene(2, index, SceneConfig(theme="residential", size=192))
        parts, _ = ndimage.label(np.isin(scene.mask, (ROAD, VEHICLE)), np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        largest.append(sizes.max() / sizes.sum())
    assert np.mean(largest) > 0.85


def patches(scenes: list[Scene], count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """3x3 neighbourhoods of raw pixels [N, 27] and the class in their middle."""
    features, labels = [], []
    for scene in scenes:
        y, x = rng.integers(1, 127, (2, count))
        offsets = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        features.append(np.concatenate([scene.image[y + dy, x + dx] for dy, dx in offsets], axis=1))
        labels.append(scene.mask[y, x])
    return np.concatenate(features).astype(np.float32), np.concatenate(labels)


def test_colour_alone_does_not_solve_segmentation_or_themes(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    train_x, train_y = patches(scenes[:200], 60, rng)
    test_x, test_y = patches(scenes[200:], 200, rng)
    scaler = StandardScaler().fit(train_x)
    model = LogisticRegression(max_iter=300, tol=1e-3).fit(scaler.transform(train_x), train_y)
    predicted = model.predict(scaler.transform(test_x))
    table = np.bincount(test_y * len(CLASSES) + predicted, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)
    union = table.sum(0) + table.sum(1) - table.diagonal()
    iou = table.diagonal() / np.maximum(union, 1)
    print(f"linear model on 3x3 pixels: mIoU {iou.mean():.3f}, accuracy {(predicted == test_y).mean():.3f}")
    assert iou.mean() < 0.35
    small = np.stack(
        [np.asarray(Image.fromarray(s.image).resize((8, 8), Image.Resampling.BOX)).ravel() for s in scenes]
    )
    names = np.array([s.theme for s in scenes])
    scaler = StandardScaler().fit(small[:200])
    themes = LogisticRegression(max_iter=300, C=0.01).fit(scaler.transform(small[:200]), names[:200])
    accuracy = themes.score(scaler.transform(small[200:]), names[200:])
    print(f"linear model on 8x8 pixels: theme accuracy {accuracy:.3f}")
    assert accuracy < 0.5


@pytest.mark.parametrize(
    "wrong", [{"size": 16}, {"theme": "moon"}, {"modality": "x-ray"}, {"colour": 1}, {"size": "64"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SceneConfig.model_validate(wrong)
