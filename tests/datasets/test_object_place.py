"""What the border of a moved picture leaves of objects: shapely as the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, affinity, box
from tests.datasets.objectsets import objects_at

from vitp.boxes.formats import to_quads
from vitp.boxes.objects import no_objects
from vitp.datasets.object_geometry import clip_ring, rotation, scaling, shift, signed_area
from vitp.datasets.object_place import moved_objects
from vitp.datasets.object_transforms import ObjectAugmentConfig, augment_objects

STILL = {"flip": 0.0, "size": 64}
TURNED = {**STILL, "rotate": 180, "rotate_chance": 1.0}


def _ring(seed: int, reach: float = 80) -> np.ndarray[Any, Any]:
    """A simple polygon, mostly concave, about somewhere near a picture of 40 x 60."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(3, 25, 9)
    centre = rng.uniform(-10, reach, 2)
    return centre + np.stack((np.cos(angles), np.sin(angles)), 1) * radii[:, None]


@pytest.mark.parametrize("seed", range(60))
def test_a_ring_cut_at_the_border_has_the_area_that_shapely_finds(seed: int) -> None:
    ring = _ring(seed)
    part = clip_ring(ring, (40, 60))
    truth = Polygon(ring).intersection(box(0, 0, 60, 40))
    assert abs(signed_area(part)) == pytest.approx(truth.area, abs=1e-6)
    if len(part) and truth.area > 0:
        assert part.min() >= 0
        assert (part <= np.array([60, 40])).all()


@pytest.mark.parametrize("form", ["quads", "outlines", "boxes"])
@given(seed=st.integers(0, 10_000), degrees=st.floats(-180, 180), visible=st.sampled_from([0.0, 0.3, 0.7]))
@settings(max_examples=60)
def test_what_stays_is_what_shapely_still_sees(form: str, seed: int, degrees: float, visible: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.stack([*rng.uniform(0, 60, (2, 8)), *rng.uniform(2, 40, (2, 8)), rng.uniform(-1.5, 1.5, 8)], 1)
    quads = to_quads(torch.from_numpy(boxes).float())
    objects = objects_at(quads, form=form)
    shown = [Polygon(quad).intersection(box(0, 0, 60, 60)) for quad in quads.tolist()]
    objects = replace(objects, boxes=torch.tensor([part.bounds if part.area else (0.0,) * 4 for part in shown]))
    if form == "boxes":
        degrees = round(degrees / 90) * 90.0
    source, picture = (60, 60), (50, 45)
    move = rotation(degrees, source).then(scaling(0.9, 1.1)).then(shift(-4, 2))
    found = moved_objects(objects, move, source, picture, visible)
    frame, kept = box(0, 0, 45, 50), found.labels.tolist()
    for i in range(8):
        whole = box(*objects.boxes[i].tolist()) if form == "boxes" else Polygon(quads[i].tolist())
        before = affinity.affine_transform(
            whole.intersection(box(0, 0, 60, 60)), [move.a, move.b, move.d, move.e, move.c, move.f]
        )
        after = before.intersection(frame)
        share = after.area / before.area if before.area > 1e-3 else 0.0
        if abs(share - visible) > 0.01:
            assert (i in kept) == (share > visible)
        if i in kept:
            torch.testing.assert_close(
                found.boxes[kept.index(i)], torch.tensor(after.bounds).float(), atol=0.02, rtol=0
            )


def test_what_only_the_picture_had_cut_is_not_dropped_by_standing_still() -> None:
    """A quad of which the image itself shows a tenth stays as long as that is shown."""
    quads = torch.tensor([[[57.0, 10.0], [87.0, 10.0], [87.0, 20.0], [57.0, 20.0]]])
    objects = replace(objects_at(quads), boxes=torch.tensor([[57.0, 10.0, 60.0, 20.0]]))
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    config = ObjectAugmentConfig.model_validate({**STILL, "visible": 0.9, "rot90": True})
    for slot in range(4):
        _, found = augment_objects(image, objects, config, 0, 0, slot)
        assert len(found) == 1
        assert bool((found.boxes >= 0).all())
        assert bool((found.boxes <= 64).all())


def test_an_image_without_objects_stays_without() -> None:
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    for empty in (no_objects(), no_objects(quads=True), no_objects(outlines=True)):
        _, found = augment_objects(image, empty, ObjectAugmentConfig.model_validate({**TURNED, "crop": 30}), 0, 0, 0)
        assert len(found) == 0
        assert (found.quads is None, found.outlines is None) == (empty.quads is None, empty.outlines is None)
