"""Images and the places their texts name move together; recompression is the released pipeline's."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.minidata import write_data
from torch import Tensor

from vitp.instruction.augment import augment, recompress
from vitp.instruction.chat import ChatFormat
from vitp.instruction.grammar import GrammarError, parse_boxes, print_boxes
from vitp.instruction.pack import StepBuilder
from vitp.instruction.plan import PlanConfig
from vitp.instruction.quads import Quad, normalise_quad, parse_quads, print_quads
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.source import AugmentConfig, Source, SourceConfig
from vitp.instruction.tiling import TilingConfig
from vitp.vlm.token_drop import TokenDropConfig
from vitp.vlm.tokenizer import build_tokenizer

WIDTH, HEIGHT = 360, 240
EVERYTHING = AugmentConfig(flip=True, rot90=True, crop_min_scale=0.3)
CORNERS = (90.0, 60.0, 210.0, 110.0, 180.0, 182.0, 60.0, 132.0)  # a turned rectangle in pixels, clockwise


def depth_inside(corners: list[tuple[float, float]], shape: tuple[int, int]) -> np.ndarray:
    """[H, W]: how far inside a convex outline, clockwise with y down, each pixel's centre is (negative: outside)."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    distances = []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        distances.append(((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / math.hypot(bx - ax, by - ay))
    return np.min(distances, axis=0)


def corners_of(quad: tuple[int, ...], shape: tuple[int, int]) -> list[tuple[float, float]]:
    return [(x * shape[1] / 1000, y * shape[0] / 1000) for x, y in zip(quad[0::2], quad[1::2], strict=True)]


def painted() -> tuple[Tensor, Quad, Sample]:
    """A picture of one turned rectangle, and a sample that says where it is, both ways."""
    quad = normalise_quad(CORNERS, WIDTH, HEIGHT)
    assert quad is not None
    shape = (HEIGHT, WIDTH)
    inside = torch.from_numpy(depth_inside(corners_of(quad, shape), shape) > 0)
    image = (inside.to(torch.uint8) * 255).expand(3, -1, -1).contiguous()
    box = (min(quad[0::2]), min(quad[1::2]), max(quad[0::2]), max(quad[1::2]))
    turns = (Turn("user", f"Is it {print_boxes('a roof', [box])}?"), Turn("assistant", print_quads("a roof", [quad])))
    return image, quad, Sample(turns, ("a.png",), "a:1")


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(flip=True), AugmentConfig(rot90=True), AugmentConfig(crop_min_scale=0.3), EVERYTHING],
    ids=["flip", "rot90", "crop", "everything"],
)
def test_the_moved_quad_and_box_enclose_the_same_pixels(config: AugmentConfig) -> None:
    image, _, sample = painted()
    shapes, texts = set(), set()
    for seed in range(24):
        (moved,), new = augment([image], sample, config, np.random.default_rng(seed))
        height, width = moved.shape[-2:]
        white = moved[0].numpy() > 0
        assert white.sum() == (image[0] > 0).sum(), "a crop cut the rectangle"
        (quad,) = parse_quads(new.turns[1].text)
        depth = depth_inside(corners_of(quad, (height, width)), (height, width))
        slack = 0.5 + max(width, height) / 1000  # a pixel's half and half a unit, each way
        assert white[depth > slack].all()
        assert not white[depth < -slack].any()
        (grounding,) = parse_boxes(new.turns[0].text)
        x1, y1, x2, y2 = grounding.boxes[0]
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        for edge, pixel, side in (
            (x1, columns[0], width), (x2, columns[-1] + 1, width), (y1, rows[0], height), (y2, rows[-1] + 1, height),
        ):  # fmt: skip
            assert abs(edge * side / 1000 - pixel) <= 1.5
        shapes.add((width, height))
        texts.add(new.turns[1].text)
    assert len(texts) > 2
    assert len(shapes) >= (
        1 if config == AugmentConfig(flip=True) else 2 if config == AugmentConfig(rot90=True) else 20
    )


def test_flips_and_turns_move_to_the_unit() -> None:
    """All eight symmetries of the square are met, with every corner where arithmetic puts it."""
    image, quad, sample = painted()
    seen = set()
    for seed in range(64):
        _, new = augment([image], sample, AugmentConfig(flip=True, rot90=True), np.random.default_rng(seed))
        seen.add(frozenset(corners_of(parse_quads(new.turns[1].text)[0], (1000, 1000))))
    expected = set()
    for mirror in (False, True):
        for upside in (False, True):
            points = [(1000 - x if mirror else x, 1000 - y if upside else y) for x, y in corners_of(quad, (1000, 1000))]
            expected |= {frozenset(points), frozenset((y, x) for x, y in points)}
    assert seen == expected
    assert len(expected) == 8


def test_nothing_is_touched_where_nothing_is_on() -> None:
    image, _, sample = painted()
    broken = Sample((*sample.turns, Turn("assistant", "<quad>((1, 2))</quad>")), sample.images, sample.where)
    for config in (AugmentConfig(), AugmentConfig(jpeg=True)):
        (same,), new = augment([image], broken, config, np.random.default_rng(0))
        assert torch.equal(same, image)
        assert new == broken
    for config in (AugmentConfig(flip=True), AugmentConfig(rot90=True), AugmentConfig(crop_min_scale=0.9)):
        for seed in range(4):  # whatever is drawn
            with pytest.raises(GrammarError, match="no list of quads"):
                augment([image], broken, config, np.random.default_rng(seed))


def test_crops_keep_their_share_and_everything_located() -> None:
    """Alike for all images of a sample; a thing at the border, or all over the image, stays whole."""
    images = [torch.zeros(3, 200, 300, dtype=torch.uint8), torch.zeros(3, 100, 150, dtype=torch.uint8)]
    config = AugmentConfig(crop_min_scale=0.25)
    plain = Sample((Turn("user", "What?"), Turn("assistant", "Ships.")), ("a", "b"), "a:1")
    shares = []
    for seed in range(40):
        (one, two), new = augment(images, plain, config, np.random.default_rng(seed))
        assert new == plain
        assert abs(one.shape[-1] - 2 * two.shape[-1]) <= 1
        shares.append(one[0].numel() / images[0][0].numel())
    assert 0.24 <= min(shares) < 0.4
    assert 0.85 < max(shares) <= 1
    whole, corner = (0, 0, 1000, 1000), (999, 0, 1000, 1)
    for boxes in ([whole], [corner], [(0, 999, 1, 1000), corner]):
        located = Sample((Turn("assistant", print_boxes("x", boxes)),), ("a",), "a:1")
        for seed in range(10):
            (image, _), new = augment(images, located, config, np.random.default_rng(seed))
            (grounding,) = parse_boxes(new.turns[0].text)
            assert len(grounding.boxes) == len(boxes)
            if boxes != [corner]:
                assert image.shape == images[0].shape
                assert new == located
            else:
                assert grounding.boxes[0][1] == 0
                assert grounding.boxes[0][2] == 1000


def jpeg(tile: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(tile.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def test_each_tile_is_recompressed_at_its_own_quality() -> None:
    tiles = torch.randint(0, 256, (12, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = tiles.clone()
    found = recompress(tiles, np.random.default_rng(0))
    assert torch.equal(tiles, before)
    assert torch.equal(found, recompress(tiles, np.random.default_rng(0)))
    qualities = []
    for tile, new in zip(tiles, found, strict=True):
        qualities += [q for q in range(101) if torch.equal(jpeg(tile, q), new)]
    assert len(qualities) >= 12
    assert len(set(qualities)) > 6
    assert all(75 <= q <= 100 for q in qualities)


def test_a_runs_tiles_are_recompressed_after_cutting(tmp_path: Path) -> None:
    """Where the source says so, and there alone; the thumbnail too."""
    write_data(tmp_path, count=4, size=40)
    tiles = []
    for on in (False, True):
        config = SourceConfig(
            name="mini", root=tmp_path, annotations=Path("train.jsonl"), augment=AugmentConfig(jpeg=on)
        )
        builder = StepBuilder(
            [Source(config)],
            ChatFormat(build_tokenizer(["It is red. Which colour is it?"] * 5, 320)),
            seed=1,
            batch_size=4,
            tile_size=16,
            tokens_per_tile=4,
            depth_modules=1,
            tiling=TilingConfig(max_tiles=6),
            vrl=TokenDropConfig(preset="none"),
            weighting="answer",
            max_length=400,
            plan=PlanConfig(max_tokens_per_pack=10_000),
        )
        tiles.append(torch.cat([micro.tiles for micro in builder.step_batch(0).micros]))
    plain, compressed = tiles
    assert plain.shape == compressed.shape
    assert len(plain) > 8
    for tile, new in zip(plain, compressed, strict=True):
        assert any(torch.equal(jpeg(tile, q), new) for q in range(75, 101))
