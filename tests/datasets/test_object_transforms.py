"""Objects move with their image: torchvision and shapely as references, and coloured quads that must land on their pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import ValidationError
from shapely import Polygon, affinity
from tests.datasets.objectsets import objects_at
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from vitp.boxes.formats import from_quads, to_quads
from vitp.boxes.iou import rotated_iou_pairs
from vitp.boxes.objects import Objects
from vitp.datasets.object_geometry import Affine, rotation, scaling, shift
from vitp.datasets.object_transforms import ObjectAugmentConfig, augment_objects, fit
from vitp.datasets.transforms import FILL
from vitp.errors import ConfigError

STILL = {"flip": 0.0, "size": 64}
TURNED = {**STILL, "rotate": 180, "rotate_chance": 1.0}


def _scene(height: int, width: int, seed: int, count: int = 6) -> tuple[Tensor, Objects]:
    """A dark image with filled oriented rectangles of levels 220, 226, ..., one a cell, and those as quads."""
    rng = np.random.default_rng(seed)
    picture = Image.new("L", (width * 4, height * 4), 0)  # drawn large, so that its borders are smooth
    draw = ImageDraw.Draw(picture)
    boxes = []
    for k in range(count):
        cx, cy = width * (k % 3 + 0.5) / 3, height * (k // 3 + 0.5) / 2
        w, h = rng.uniform(0.25, 0.6) * min(height / 2, width / 3), rng.uniform(0.2, 0.4) * min(height / 2, width / 3)
        boxes.append([cx, cy, max(w, 4), max(h, 4), rng.uniform(-1.5, 1.5)])
    quads = to_quads(torch.tensor(boxes, dtype=torch.float32))
    for k, quad in enumerate(quads.tolist()):
        draw.polygon([(4 * x - 0.5, 4 * y - 0.5) for x, y in quad], fill=_level(k))
    small = torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.BOX)))
    return small.expand(3, -1, -1).contiguous(), objects_at(quads)


def _level(label: int) -> int:
    return 220 + 6 * label


def _landed(image: Tensor, objects: Objects) -> float:
    """IoU of all quads with the bright pixels; and each quad must hold the level of its label."""
    assert objects.quads is not None
    height, width = image.shape[1:]
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    level = image[2].numpy()  # here the fill is 104
    union = np.zeros((height, width), dtype=bool)
    for quad, label in zip(objects.quads.double().numpy(), objects.labels.tolist(), strict=True):
        inside = np.ones((height, width), dtype=bool)
        for (ax, ay), (bx, by) in zip(quad, np.roll(quad, -1, 0), strict=True):
            inside &= (bx - ax) * (rows - ay) - (by - ay) * (columns - ax) >= 0  # clockwise as seen
        if inside.sum() > 60:
            assert abs(float(np.percentile(level[inside], 90)) - _level(label)) < 3
        union |= inside
    bright = level > 110
    return float((union & bright).sum() / (union | bright).sum())


# ----------------------------------------------------------------------------------------------- quads land on their pixels


@pytest.mark.parametrize(
    "drawn",
    [
        {"size": 160},  # stretched: 200 x 120 becomes a square
        {"size": 160, "flip": 0.0, "flip_vertical": 1.0},
        {"size": 160, "flip": 0.0, "flip_diagonal": 1.0},
        {"size": 160, "rot90": True},
        {"size": (150, 200, 260), "keep_ratio": True, "rot90": True, "pad_multiple": 32},
        {"size": 100, "longest": 150, "keep_ratio": True, "pad_square": True},
        {"size": 200, "rotate": 180, "rotate_chance": 1.0},  # an uneven stretch, then any angle
        {"size": 200, "rotate": 180, "rotate_chance": 1.0, "keep_ratio": True, "rot90": True},
        {"size": 160, "crop": 90},
        {"size": 200, "crop": 90, "rotate": 180, "rotate_chance": 1.0},
        {"size": 200, "crop": 300, "rotate": 180, "rotate_chance": 1.0, "rot90": True},  # larger than the picture
    ],
)
def test_quads_lie_on_the_pixels_of_their_objects(drawn: dict[str, Any]) -> None:
    config = ObjectAugmentConfig.model_validate({"visible": 0.0, **drawn})
    shares = []
    for slot in range(12):
        image, objects = _scene(120, 200, slot)
        moved, found = augment_objects(image, objects, config, 0, 0, slot)
        if len(found):
            shares.append(_landed(moved, found))
    assert len(shares) > 8
    assert min(shares) > 0.88  # what lacks are the blurred borders


def test_an_uneven_stretch_makes_parallelograms_and_their_box_is_not_the_scaled_one() -> None:
    """What scaling w and h by themselves would give lies beside the object."""
    quad = to_quads(torch.tensor([[50.0, 50.0, 60.0, 10.0, 0.785]]))
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    _, found = augment_objects(image, objects_at(quad), ObjectAugmentConfig(size=100, flip=0), 0, 0, 0)
    assert found.quads is not None
    torch.testing.assert_close(found.quads, quad)
    wide = torch.zeros(3, 100, 300, dtype=torch.uint8)
    quad[..., 0] *= 3  # an object in a wide image, which is squeezed to the square
    _, found = augment_objects(wide, objects_at(quad), ObjectAugmentConfig(size=100, flip=0), 0, 0, 0)
    assert found.quads is not None
    torch.testing.assert_close(found.quads[0, :, 0], quad[0, :, 0] / 3)
    box_of = from_quads(found.quads)
    assert abs(float(box_of[0, 4])) == pytest.approx(0.785, abs=1e-3)
    naive = from_quads(quad).clone()
    naive[:, [0, 2]] /= 3  # the released code: centre and width with x, height with y, the angle as it was
    assert float(rotated_iou_pairs(naive, box_of)) < 0.5


# ------------------------------------------------------------------------------------------------------ torchvision agrees


def _boxes(objects: Objects, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=size)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        ({"flip": 1.0}, functional.horizontal_flip),
        ({"flip": 0.0, "flip_vertical": 1.0}, functional.vertical_flip),
        ({"flip": 0.0, "flip_diagonal": 1.0}, lambda x: functional.vertical_flip(functional.horizontal_flip(x))),
    ],
)
def test_mirrored_and_resized_as_torchvision_does(config: dict[str, Any], reference: Callable[[Any], Any]) -> None:
    image, objects = _scene(90, 120, 1)
    objects = replace(objects, quads=None)
    wanted = functional.resize(_boxes(objects, (90, 120)), [64, 64])
    moved, found = augment_objects(image, objects, ObjectAugmentConfig.model_validate({"size": 64, **config}), 3, 1, 4)
    assert torch.equal(moved, reference(functional.resize(image, [64, 64], antialias=True)))
    torch.testing.assert_close(found.boxes, torch.as_tensor(reference(wanted)).as_subclass(Tensor))
    points = functional.resize(tv_tensors.KeyPoints(_scene(90, 120, 1)[1].quads, canvas_size=(90, 120)), [64, 64])
    centres = tv_tensors.KeyPoints(points - 0.5, canvas_size=(64, 64))  # a mirror sends column x to column W - 1 - x
    wanted = reference(centres).as_subclass(Tensor) + 0.5
    _, found = augment_objects(
        image, _scene(90, 120, 1)[1], ObjectAugmentConfig.model_validate({"size": 64, **config}), 3, 1, 4
    )
    assert found.quads is not None
    for mine, other in zip(found.quads, wanted, strict=True):
        turned_over = "flip_diagonal" not in config
        torch.testing.assert_close(mine, other[[0, 3, 2, 1]] if turned_over else other)  # clockwise again


@pytest.mark.parametrize("degrees", [-170.0, -90.0, -12.5, 0.0, 33.0, 90.0, 145.0])
def test_turned_as_torchvision_turns_points(degrees: float) -> None:
    size = (70, 110)
    points = torch.rand(9, 1, 2, generator=torch.Generator().manual_seed(0)) * 70
    wanted = functional.rotate(tv_tensors.KeyPoints(points, canvas_size=size), degrees)
    mine = rotation(degrees, size).points(points.double().numpy())
    inside = ((mine > 0.1) & (mine < np.array([109.9, 69.9]))).all((1, 2))  # torchvision clamps the others
    np.testing.assert_allclose(mine[inside], wanted.numpy()[inside], atol=1e-2)
    assert inside.sum() > 3


def test_fit_gives_the_way_back() -> None:
    image, objects = _scene(75, 120, 0)
    assert objects.quads is not None
    for config in (
        ObjectAugmentConfig(size=(48, 96)),
        ObjectAugmentConfig(size=96, keep_ratio=True, pad_square=True),
        ObjectAugmentConfig(size=60, keep_ratio=True, longest=80, pad_multiple=32),
        ObjectAugmentConfig(size=50, crop=100),
    ):
        seen, back = fit(image, config)
        there = back.inverse()
        quads = torch.from_numpy(there.points(objects.quads.double().numpy()))
        torch.testing.assert_close(back.points(quads.numpy()), objects.quads.double().numpy(), atol=1e-4, rtol=0)
        torch.testing.assert_close(back.boxes(there.boxes(objects.boxes)), objects.boxes, atol=1e-3, rtol=0)
        shown = replace(objects, quads=quads.float())
        assert _landed(seen, shown) > 0.8
        assert not seen[:, :1, :1].eq(FILL[0]).all()  # padding lies at the bottom and right
    assert fit(image, ObjectAugmentConfig(size=96, keep_ratio=True, pad_square=True))[0].shape == (3, 96, 96)
    assert fit(image, ObjectAugmentConfig(size=60, keep_ratio=True, longest=80, pad_multiple=32))[0].shape == (
        3,
        64,
        96,
    )
    assert fit(image, ObjectAugmentConfig(size=50, crop=100))[0].shape == (3, 38, 60)
    assert fit(image, ObjectAugmentConfig(size=(48, 96)))[0].shape == (3, 96, 96)  # the largest


@given(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(-1.57, 1.57), st.floats(2, 80), st.floats(2, 80), st.booleans())
@settings(max_examples=150)
def test_rotated_boxes_go_back_as_what_their_corners_become(
    x: float, y: float, angle: float, w: float, h: float, even: bool
) -> None:
    move = scaling(x, x if even else y).then(shift(3, -5))
    boxes = torch.tensor([[40.0, 30.0, max(w, h), min(w, h), angle]], dtype=torch.float64)
    corners = Polygon(to_quads(boxes)[0].tolist())
    moved = Polygon(to_quads(move.boxes(boxes))[0].tolist())
    truth = affinity.affine_transform(corners, [move.a, move.b, move.d, move.e, move.c, move.f])
    assert moved.buffer(1e-6).contains(truth)
    smallest = truth if even else truth.minimum_rotated_rectangle
    assert moved.area == pytest.approx(smallest.area, rel=1e-6)


def test_mirrored_rotated_boxes_stay_rectangles() -> None:
    boxes = torch.tensor([[40.0, 30.0, 20.0, 6.0, 0.4]])
    mirrored = Affine(a=-1, c=100).boxes(boxes)
    torch.testing.assert_close(mirrored, torch.tensor([[60.0, 30.0, 20.0, 6.0, -0.4]]))
    assert Affine().boxes(torch.zeros(0, 5)).shape == (0, 5)
    assert Affine().boxes(torch.zeros(0, 4)).shape == (0, 4)


# ------------------------------------------------------------------------------------------------------------ invariants


def test_everything_is_drawn_by_key_alone() -> None:
    image, objects = _scene(80, 100, 0)
    config = ObjectAugmentConfig(
        size=(64, 96), crop=60, flip=0.25, flip_vertical=0.25, flip_diagonal=0.25, rot90=True, rotate=180, photometric=1
    )
    seen = set()
    for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        first, second = (augment_objects(image, objects, config, *key) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1].boxes, second[1].boxes)
        seen.add(first[0].numpy().tobytes())
    assert len(seen) == 4


@pytest.mark.parametrize("way", ["flip", "flip_vertical", "flip_diagonal"])
@pytest.mark.parametrize("form", ["quads", "outlines", "boxes"])
def test_mirrored_twice_is_the_same(way: str, form: str) -> None:
    image, objects = _scene(64, 64, 2)
    assert objects.quads is not None
    objects = objects_at(objects.quads, form=form)
    config = ObjectAugmentConfig.model_validate({**STILL, way: 1.0})
    once = augment_objects(image, objects, config, 0, 0, 0)
    assert not torch.equal(once[0], image)
    twice, found = augment_objects(*once, config, 0, 0, 1)
    assert torch.equal(twice, image)
    torch.testing.assert_close(found.boxes, objects.boxes)
    assert torch.equal(found.labels, objects.labels)
    assert torch.equal(found.crowd, objects.crowd)
    assert torch.equal(found.difficult, objects.difficult)
    if found.quads is not None:
        torch.testing.assert_close(found.quads, objects.quads)
    for rings, given_rings in zip(found.outlines or (), objects.outlines or (), strict=True):
        np.testing.assert_allclose(rings[0], given_rings[0], atol=1e-5)


def test_each_of_the_flips_has_its_share() -> None:
    image, objects = _scene(64, 64, 2)
    config = ObjectAugmentConfig(
        size=64, flip=0.25, flip_vertical=0.25, flip_diagonal=0.25
    )  # the released oriented configs
    ways = [image, image.flip(2), image.flip(1), image.flip(1, 2)]
    counts = [0, 0, 0, 0]
    for slot in range(200):
        moved, _ = augment_objects(image, objects, config, 0, 0, slot)
        counts[next(k for k, way in enumerate(ways) if torch.equal(moved, way))] += 1
    assert min(counts) > 30


def test_classes_of_rectangles_turn_by_quarters_only() -> None:
    image, objects = _scene(64, 64, 2, count=2)
    config = ObjectAugmentConfig.model_validate({**TURNED, "rectangular": ["court"], "visible": 0.0})
    quarters = [torch.rot90(image, k, (1, 2)) for k in range(1, 4)]
    turns = [0, 0, 0]
    for slot in range(200):
        moved, found = augment_objects(image, objects, config, 0, 0, slot, classes=("court", "ship"))
        turns[next(k for k, turn in enumerate(quarters) if torch.equal(moved, turn))] += 1
        assert _landed(moved, found) > 0.8
        ships = objects.take(objects.labels == 1)
        moved, _ = augment_objects(image, ships, config, 0, 0, slot, classes=("court", "ship"))
        assert not any(torch.equal(moved, turn) for turn in quarters)
    assert 80 <= turns[1] <= 120  # as often as both others together
    assert min(turns[0], turns[2]) > 30
    with pytest.raises(ConfigError, match="'court' is no class of the data set; did you mean 'courts'"):
        augment_objects(image, objects, config, 0, 0, 0, classes=("courts", "ship"))


def test_crops_show_the_objects_they_are_aimed_at() -> None:
    image = torch.zeros(3, 600, 900, dtype=torch.uint8)
    quads = to_quads(torch.tensor([[850.0, 40.0, 20.0, 10.0, 0.3]]))
    shown = {}
    for aim in (0.0, 1.0):
        config = ObjectAugmentConfig(size=64, crop=100, crop_on_object=aim, rotate=180)
        found = [augment_objects(image, objects_at(quads), config, 0, 0, slot)[1] for slot in range(60)]
        shown[aim] = sum(map(len, found))
    assert shown[0.0] < 10
    assert shown[1.0] > 45  # others lie at a corner of the picture, with less than half of the object in the crop


def test_rotated_crops_of_large_pictures_have_no_empty_corner() -> None:
    image = torch.full((3, 400, 400), 255, dtype=torch.uint8)
    config = ObjectAugmentConfig.model_validate({**TURNED, "crop": 64})
    quads = to_quads(torch.tensor([[200.0, 200.0, 20.0, 10.0, 0.3]]))
    config = config.model_copy(update={"crop_on_object": 1.0})
    for slot in range(10):
        moved, _ = augment_objects(image, objects_at(quads), config, 0, 0, slot)
        assert moved.shape == (3, 64, 64)
        assert int(moved.min()) >= 254


def test_colours_change_and_fills_do_not() -> None:
    image, objects = _scene(60, 60, 0)
    plain = ObjectAugmentConfig(size=100, crop=100, flip=0)
    vivid = plain.model_copy(update={"photometric": 1.0})
    changed = 0
    for slot in range(8):
        first, second = (augment_objects(image, objects, config, 0, 0, slot)[0] for config in (plain, vivid))
        fill = (first == torch.tensor(FILL)[:, None, None]).all(0)
        assert int(fill.sum()) > 5000
        assert (second == torch.tensor(FILL)[:, None, None]).all(0)[fill].float().mean() > 0.99
        changed += not torch.equal(first, second)
    assert changed > 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": ()}, "one or more sides"),
        ({"size": 4}, "one or more sides"),
        ({"flip": 0.6, "flip_vertical": 0.6}, "exclude each other"),
        ({"longest": 1333}, "need keep_ratio"),
        ({"pad_square": True}, "need keep_ratio"),
        ({"crop": 512, "keep_ratio": True}, "crop makes squares"),
        ({"rotat": 5}, "rotat"),
    ],
)
def test_recipes_that_cannot_be_meant(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectAugmentConfig.model_validate(config)
