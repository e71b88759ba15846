"""Perceptual hashes find a picture again, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from vitp.demo.scenes import SceneConfig, draw_scene
from vitp.images.perceptual import MAX_DISTANCE, ORIENTATIONS, correlation, hashes, is_flat, near, oriented, thumbnail


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [Image.fromarray(draw_scene(3, i, SceneConfig()).image) for i in range(40)]


def bits(a: np.uint64, b: np.uint64) -> int:
    return bin(int(a) ^ int(b)).count("1")


def test_found_again_after_what_people_do_to_images(scenes: list[Image.Image], tmp_path: Path) -> None:
    for i, scene in enumerate(scenes):
        original = tmp_path / "a.png"
        scene.save(original)
        first = thumbnail(original)
        for j, changed in enumerate(
            (
                scene.resize((300, 300), Image.Resampling.BICUBIC),
                scene.resize((64, 64), Image.Resampling.LANCZOS),
                ImageEnhance.Brightness(scene).enhance(1.2),
                ImageEnhance.Contrast(scene).enhance(0.8),
            )
        ):
            copy = tmp_path / f"{j}.jpg"
            changed.save(copy, quality=60)
            again = thumbnail(copy)
            assert bits(hashes(first)[0], hashes(again)[0]) <= 6, (i, j)
            assert correlation(first, again) > 0.95, (i, j)


def test_other_images_are_not_found(scenes: list[Image.Image], tmp_path: Path) -> None:
    pictures = []
    for i, scene in enumerate(scenes):
        scene.save(tmp_path / f"{i}.png")
        pictures.append(thumbnail(tmp_path / f"{i}.png"))
    codes = [hashes(p) for p in pictures]
    closest = min(bits(codes[i][0], code) for i in range(40) for j in range(i) for code in codes[j])
    assert closest > 6


def test_the_eight_hashes_are_those_of_the_eight_turned_pictures(scenes: list[Image.Image], tmp_path: Path) -> None:
    for scene in scenes[:5]:
        scene.save(tmp_path / "a.png")
        picture = thumbnail(tmp_path / "a.png")
        for k in range(len(ORIENTATIONS)):
            assert (
                bits(hashes(picture)[k], hashes(np.ascontiguousarray(oriented(picture, k)))[0]) <= 2
            )  # rounding at the median
    turned = {oriented(picture, k).tobytes() for k in range(8)}
    assert len(turned) == 8
    assert any(np.array_equal(oriented(picture, k), np.rot90(picture)) for k in range(8))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, MAX_DISTANCE), st.integers(1, 60), st.integers(0, 60))
def test_near_finds_what_comparing_all_pairs_finds(seed: int, distance: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2**63, n, dtype=np.uint64) * np.uint64(2) + rng.integers(0, 2, n, dtype=np.uint64)
    b = rng.integers(0, 2**63, m, dtype=np.uint64)
    for j in range(0, m, 2):  # every other one close to some a: up to nine bits flipped
        b[j] = a[rng.integers(n)]
        for bit in rng.choice(64, rng.integers(0, 10), replace=False):
            b[j] ^= np.uint64(1) << np.uint64(bit)
    expected = [[i, j] for i in range(n) for j in range(m) if bits(a[i], b[j]) <= distance]
    assert near(a, b, distance).tolist() == expected


def test_flat_pictures_are_told() -> None:
    rng = np.random.default_rng(0)
    assert is_flat(np.full((32, 32), 40, np.float32) + rng.normal(0, 1, (32, 32)).astype(np.float32))
    assert not is_flat(rng.normal(90, 20, (32, 32)).astype(np.float32))
    assert correlation(np.zeros((32, 32), np.float32), np.ones((32, 32), np.float32)) == 0.0
