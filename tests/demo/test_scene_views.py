"""Change pairs, the radar view and shadows of procedural scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from vitp.demo.canvas import Canvas
from vitp.demo.keys import generator
from vitp.demo.sar import Look, backscatter
from vitp.demo.scenes import (
    CLASSES,
    SceneConfig,
    draw_pair,
    draw_scene,
    radar_intensity,
)
from vitp.demo.style import Material, plain
from vitp.demo.terrain import draw_ground

SEED = 11
WATER, BUILDING, SHIP, VEHICLE, TANK, COURT = (
    CLASSES.index(c) for c in ("water", "building", "ship", "vehicle", "tank", "court")
)


def test_a_pair_without_changes_has_an_empty_mask_though_it_looks_different() -> None:
    for index in range(4):
        pair = draw_pair(5, index, SceneConfig(theme="residential", change_probability=0.0))
        assert not pair.change.any()
        assert np.abs(pair.before.image.astype(int) - pair.after.image).mean() > 3
        fixed = np.isin(pair.before.mask, (BUILDING, TANK, COURT))
        assert np.array_equal(fixed, np.isin(pair.after.mask, (BUILDING, TANK, COURT)))


def test_change_is_where_structures_differ_and_nowhere_else() -> None:
    changed = 0
    for index in range(42):
        pair = draw_pair(6, index, SceneConfig(change_probability=0.4))
        before, after = (np.isin(s.mask, (BUILDING, TANK, COURT)) for s in (pair.before, pair.after))
        differ = before != after
        # A car may stand before a building on one date only.
        movable = np.isin(pair.before.mask, (SHIP, VEHICLE)) | np.isin(pair.after.mask, (SHIP, VEHICLE))
        near = ndimage.binary_dilation(pair.change.astype(bool), np.ones((3, 3)))  # roof faces round apart at edges
        assert not (differ & ~movable & ~near).any()
        assert set(np.unique(pair.change)) <= {0, 1}
        changed += int(pair.change.any())
        if pair.change.sum() > 200:
            inside = ndimage.binary_erosion(pair.change.astype(bool))
            assert (pair.before.mask[inside] != pair.after.mask[inside]).mean() > 0.6
    assert 12 <= changed < 42
    assert np.array_equal(
        draw_scene(6, 3, SceneConfig()).mask, draw_pair(6, 3, SceneConfig(change_probability=0.0)).before.mask
    )


def test_misregistration_moves_the_second_date_only() -> None:
    config = SceneConfig(theme="industrial", change_probability=0.0, season="summer")
    moved = draw_pair(7, 2, config.model_copy(update={"misregistration_px": 4.0}))
    still = draw_pair(7, 2, config)
    assert np.array_equal(moved.before.mask, still.before.mask)
    shifts = [
        (np.mean(np.roll(moved.after.mask, (dy, dx), (0, 1))[8:-8, 8:-8] == still.after.mask[8:-8, 8:-8]), (dy, dx))
        for dy in range(-4, 5)
        for dx in range(-4, 5)
    ]
    best, shift = max(shifts)
    assert best > 0.97
    assert shift != (0, 0)


def test_both_modalities_show_the_same_scene() -> None:
    optical = draw_scene(SEED, 9, SceneConfig())
    radar = draw_scene(SEED, 9, SceneConfig(modality="sar"))
    assert np.array_equal(radar.mask, optical.mask)
    assert [i.obb for i in radar.instances] == [i.obb for i in optical.instances]
    assert (radar.image == radar.image[:, :, :1]).all()
    assert radar.modality == "sar"


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_speckle_has_the_variation_of_its_looks(looks: int) -> None:
    variations = []
    for index in range(6):
        config = SceneConfig(theme="port", modality="sar", looks=looks, size=256)
        scene = draw_scene(8, index, config)
        calm = ndimage.binary_erosion(scene.mask == WATER, iterations=12)
        if calm.sum() > 1500:
            values = radar_intensity(8, index, config)[calm]
            variations.append(values.std() / values.mean())
    assert len(variations) >= 3
    # Theory: 1 / sqrt(L) for fully developed speckle (Goodman 1976); wakes disturb a scene now and then.
    assert np.median(variations) == pytest.approx(1 / math.sqrt(looks), rel=0.06)


def test_metal_is_bright_and_water_dark_in_the_radar_view() -> None:
    means: dict[str, list[float]] = {c: [] for c in CLASSES}
    for index in range(42):
        values = radar_intensity(SEED, index, SceneConfig())
        mask = draw_scene(SEED, index, SceneConfig()).mask
        for label, name in enumerate(CLASSES):
            here = mask == label
            if here.sum() > 30:
                means[name].append(float(values[here].mean()))
    average = {name: np.mean(v) for name, v in means.items() if v}
    for bright in ("ship", "aircraft", "vehicle", "building", "tank"):
        assert average[bright] > 4 * max(average["water"], average["road"])
    assert average["forest"] > average["background"] > average["road"]


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, -1.0)])
def test_radar_shadow_falls_away_from_the_sensor_and_layover_towards_it(direction: tuple[float, float]) -> None:
    canvas = Canvas(96, 1.0, 2, plain((90, 120, 60), Material.GRASS))
    block = [(-8.0, -8.0), (8.0, -8.0), (8.0, 8.0), (-8.0, 8.0)]
    canvas.cast(block, 12.0, metal=1.0)
    canvas.fill(block, plain((120, 120, 120), Material.ROOF), BUILDING)
    ground = draw_ground(generator(0, 0, 0), 96, 1.0, None, (0.0, 0.0))
    values = backscatter(canvas, canvas.raster(), ground, Look(direction, 1.0, 0.0))

    def patch(metres: float) -> float:
        x, y = round(48 + metres * direction[0]), round(48 + metres * direction[1])
        return float(values[y - 2 : y + 3, x - 2 : x + 3].mean())

    grass = patch(-40.0)
    assert patch(14.0) < 0.2 * grass  # shadow of 12 m behind the far wall
    assert patch(26.0) > 0.5 * grass  # and no further
    assert patch(-14.0) > 1.5 * grass  # layover of 12 m before the near wall
    assert patch(-26.0) < 1.5 * grass


def test_sun_shadow_points_away_from_the_sun() -> None:
    canvas = Canvas(64, 1.0, 2, plain((90, 120, 60), Material.GRASS))
    canvas.cast([(-5.0, -5.0), (5.0, -5.0), (5.0, 5.0), (-5.0, 5.0)], 10.0)
    shade = canvas.shade_map((0.0, 1.0))
    rows, columns = np.nonzero(shade > 0.5)
    assert rows.min() == pytest.approx(32 + 5, abs=1)
    assert rows.max() == pytest.approx(32 + 15, abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((27, 36), abs=1)
