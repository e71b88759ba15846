"""Windows: their weights, whole against tiled, and what a killed prediction leaves."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from vitp.backbone.vit import BackboneConfig, random_backbone
from vitp.errors import OutputError
from vitp.inference.engine import best, predicted
from vitp.inference.grid import cut, make_grid
from vitp.inference.model import Predictor
from vitp.inference.partial import Partial
from vitp.inference.sources import PictureSource
from vitp.tasks.segment import InferenceConfig, build_segmenter, predict_logits

CPU = torch.device("cpu")
CLASSES = ("ground", "box", "road")


class Pointwise(nn.Module):
    """Logits of a pixel depend on that pixel alone, so windows cannot matter."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, 3, h, w]."""
        return torch.sin(images.float() / 9 + torch.arange(3.0)[:, None, None])


class Local(nn.Module):
    """A 9 x 9 neighbourhood: pixels further than 4 from a window's border do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to the same size."""
        return nn.functional.conv2d(images.float() / 255, self.weight, padding=4)


def _image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def _source(pixels: NDArray[np.uint8]) -> PictureSource:
    return PictureSource(Path("x.png"), pixels.shape[1], pixels.shape[2], 3, None, False, pixels=pixels)


def _predictor(model: nn.Module, **changes: object) -> Predictor:
    return Predictor(model, CLASSES, CPU, **changes)  # type: ignore[arg-type]


@given(st.integers(1, 400), st.integers(1, 130), st.floats(0, 0.75))
@settings(max_examples=150, deadline=None)
def test_weights_of_windows_sum_to_one_at_every_pixel(length: int, window: int, overlap: float) -> None:
    axis = cut(length, window, overlap)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert start >= 0
        assert start + axis.window <= length
        assert (weight > 0).all()
        total[start : start + axis.window] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    for one, two in zip(axis.starts, axis.starts[1:], strict=False):
        assert one + axis.window - two >= int(axis.window * overlap)


@pytest.mark.parametrize(("height", "width", "overlap"), [(70, 90, 0.25), (70, 33, 0.6), (20, 15, 0.25), (65, 64, 0.0)])
def test_windows_do_not_change_a_model_that_looks_at_single_pixels(height: int, width: int, overlap: float) -> None:
    pixels = _image(height, width)
    whole = Pointwise()(torch.from_numpy(pixels)[None])[0]
    grid = make_grid(height, width, 32, overlap)
    rows = list(predicted(_predictor(Pointwise()), _source(pixels), grid, batch_size=3, probabilities=True))
    shares = np.concatenate([part.probabilities for part in rows], axis=1)  # type: ignore[type-var]
    assert np.abs(shares - whole.softmax(0).numpy() * 254).max() <= 0.51
    ids = np.concatenate([part.classes for part in rows])
    top = whole.topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-4).numpy()
    assert (ids == whole.argmax(0).numpy())[clear].all()


def test_blending_hides_the_borders_of_windows_that_a_local_model_sees() -> None:
    pixels = _image(120, 150)
    model = Local()
    whole = model(torch.from_numpy(pixels)[None])[0].softmax(0).numpy()

    def error(overlap: float) -> float:
        grid = make_grid(120, 150, 48, overlap)
        rows = predicted(_predictor(model), _source(pixels), grid, batch_size=4, probabilities=True)
        found = np.concatenate([part.probabilities for part in rows], axis=1) / 254  # type: ignore[operator]
        return float(np.abs(found - whole).mean())

    rounding = 1 / 1016  # mean of a stored probability
    assert error(0.5) - rounding < (error(0.0) - rounding) / 2


def test_one_window_is_what_the_scoring_of_test_images_does() -> None:
    config = BackboneConfig(
        architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2
    )
    model = build_segmenter(random_backbone(config, 0), CLASSES, 0).eval()
    pixels = _image(40, 56)
    expected = predict_logits(model, torch.from_numpy(pixels), InferenceConfig(scale=1.5))
    found = _predictor(model, zoom=1.5).logits(torch.from_numpy(pixels)[None])[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_flips_and_scales_are_undone_before_they_are_averaged() -> None:
    pixels = torch.from_numpy(_image(24, 40))[None]
    plain = _predictor(Pointwise()).logits(pixels).softmax(1)
    assert torch.allclose(_predictor(Pointwise(), flips="all").logits(pixels).softmax(1), plain, atol=1e-6)
    smooth = torch.linspace(40, 60, 40).round().to(torch.uint8).expand(1, 3, 24, 40)
    scaled = _predictor(Pointwise(), scales=(1.0, 2.0)).logits(smooth).softmax(1)
    assert scaled.shape == plain.shape
    assert (scaled - _predictor(Pointwise()).logits(smooth).softmax(1)).abs().max() < 0.03


def test_a_row_started_anew_has_the_same_values() -> None:
    pixels, grid = _image(150, 80), make_grid(150, 80, 32, 0.6)
    predictor = _predictor(Local())
    rows = list(predicted(predictor, _source(pixels), grid, batch_size=3, probabilities=True))
    for first in (1, len(rows) // 2, len(rows) - 1):
        again = list(predicted(predictor, _source(pixels), grid, batch_size=3, probabilities=True, first=first))
        assert [part.top for part in again] == [part.top for part in rows[first:]]
        for one, two in zip(again, rows[first:], strict=True):
            assert np.array_equal(one.classes, two.classes)
            assert np.array_equal(one.probabilities, two.probabilities)  # type: ignore[arg-type]


def test_nothing_is_read_any_more_once_a_prediction_is_closed() -> None:
    class File(PictureSource):
        def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            assert not closed, "read after it was closed"
            reads.append(top)
            return super().rows(top, count)

    closed: list[bool] = []
    reads: list[int] = []
    pixels = _image(400, 40)
    source = File(Path("x.png"), 400, 40, 3, None, False, pixels=pixels)
    rows = predicted(_predictor(Pointwise()), source, make_grid(400, 40, 32, 0.25), batch_size=1)
    next(rows)
    rows.close()
    closed.append(True)
    count, threads = len(reads), threading.active_count()
    assert 1 <= count < 8
    rows = predicted(_predictor(Pointwise()), _source(pixels), make_grid(400, 40, 32, 0.25), batch_size=1)
    list(rows)
    assert len(reads) == count
    assert threading.active_count() <= threads


def test_windows_without_a_valid_pixel_never_reach_the_model() -> None:
    seen = []

    class Counting(Pointwise):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return super().forward(images)

    class Holed(PictureSource):
        def rows(self, top: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            pixels, valid = super().rows(top, count)
            valid[:, :70] = False
            return pixels, valid

    pixels = _image(64, 128)
    source = Holed(Path("x.png"), 64, 128, 3, None, False, pixels=pixels)
    done: list[int] = []
    rows = predicted(
        _predictor(Counting()),
        source,
        make_grid(64, 128, 32, 0.0),
        batch_size=8,
        probabilities=True,
        progress=done.append,
    )
    parts = list(rows)
    ids = np.concatenate([part.classes for part in parts])
    assert sum(seen) == 4  # of 2 x 4 windows the right halves
    assert (ids[:, :70] == 255).all()
    assert np.array_equal(ids[:, 70:], Pointwise()(torch.from_numpy(pixels)[None])[0].argmax(0).numpy()[:, 70:])
    assert all((part.probabilities[:, :, :70] == 255).all() for part in parts if part.probabilities is not None)
    assert done == sorted(done)
    assert done[-1] == 8


def test_the_first_of_equal_logits_wins() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, 5.0], [1.0, 3.0, 4.0]]).reshape(3, 1, 3)
    assert best(logits).tolist() == [[0, 1, 1]]
    assert best(logits[:2]).tolist() == [[0, 1, 1]]


def test_a_partial_state_goes_on_only_with_the_same_work(tmp_path: Path) -> None:
    folder = tmp_path / ".a.partial"
    partial = Partial(folder, {"window": 32}, {"classes": 100})
    partial.write("classes", 10, np.arange(20, dtype=np.uint8))
    partial.note(3, now=True)
    partial.write("classes", 50, np.arange(20, dtype=np.uint8))
    partial.note(4)  # not on disk yet: a kill here costs this much
    partial.close()
    again = Partial(folder, {"window": 32}, {"classes": 100})
    assert again.done == 3
    again.close()
    with pytest.raises(OutputError, match=r"window changed.*--overwrite"):
        Partial(folder, {"window": 64}, {"classes": 100})
    (folder / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(OutputError, match="damaged"):
        Partial(folder, {"window": 32}, {"classes": 100})


def test_missing_space_is_told_before_the_first_window(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no space left for .*needs 100000\d*\.\d GB"):
        Partial(tmp_path / "out" / ".a.partial", {}, {"classes": 10**17})
    assert not (tmp_path / "out").exists()
