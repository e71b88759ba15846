"""Augmentation: dates and mask moved together, rotation, crops by class share, fit, and draws by key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from vitp.datasets.transforms import FILL, AugmentConfig, augment, augment_pair

PLAIN = {"scale": (1.0, 1.0), "flip": False, "photometric": 0.0}


def _disc(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A picture and a mask of the same disc off the centre, so that any difference in movement shows."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = ((y - height * 0.4) ** 2 + (x - width * 0.6) ** 2 < (min(height, width) * 0.3) ** 2).to(torch.uint8)
    return (disc * 255).expand(3, -1, -1).contiguous(), disc


def _noise(height: int, width: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "turned", [{"rotate": 180, "rotate_chance": 1.0}, {"rot_flip": 20}, {"rot90": True}, {"flip_vertical": True}]
)
def test_both_dates_and_the_mask_move_together(turned: dict[str, object]) -> None:
    config = AugmentConfig.model_validate({"crop": 64, "photometric": 0.0, **turned})
    image, mask = _disc(96, 120)
    wrong = total = 0
    for slot in range(24):
        before, after, labels = augment_pair(image, image, mask, config, 0, 0, slot)
        assert torch.equal(before, after)
        inside = labels != 255
        wrong += int(((before[0] > 127) != (labels == 1))[inside].sum())
        total += int(inside.sum())
    assert total > 24 * 64 * 64 / 4
    assert wrong / total < 0.04  # the edge of the disc


@given(
    st.integers(20, 150),
    st.integers(20, 150),
    st.integers(8, 70),
    st.floats(0.3, 3),
    st.floats(0, 180),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_every_crop_has_its_size_and_ignores_exactly_what_lies_outside(
    height: int, width: int, crop: int, zoom: float, angle: float, slot: int
) -> None:
    config = AugmentConfig(
        crop=crop, scale=(zoom, zoom), rotate=angle, rotate_chance=1.0, flip_vertical=True, photometric=0.0
    )
    white = torch.full((3, height, width), 255, dtype=torch.uint8)
    image, mask = augment(white, torch.ones(height, width, dtype=torch.uint8), config, 0, 0, slot)
    assert (tuple(image.shape), tuple(mask.shape)) == ((3, crop, crop), (crop, crop))
    assert set(mask.unique().tolist()) <= {1, 255}
    far, deep = (
        torch.nn.functional.max_pool2d((mask == other).float()[None], 5, 1)[0] == 0 for other in (1, 255)
    )  # two pixels or more from the picture's border
    inner = image[:, 2:-2, 2:-2]
    assert (inner[:, far] == torch.tensor(FILL)[:, None]).all()
    assert (inner[:, deep] >= 254).all()


def test_a_rotated_crop_of_a_large_picture_has_no_empty_corner() -> None:
    config = AugmentConfig.model_validate({**PLAIN, "crop": 32, "rotate": 180, "rotate_chance": 1.0})
    image, mask = _noise(200, 200, 0), torch.zeros(200, 200, dtype=torch.uint8)
    inside = [int((augment(image, mask, config, 0, 0, slot)[1] == 255).sum()) for slot in range(20)]
    assert inside == [0] * 20


def test_rotation_is_by_the_angle_drawn_and_about_the_centre() -> None:
    """A centred bar stays centred, and its direction takes every angle up to the limit."""
    image = torch.zeros(3, 65, 65, dtype=torch.uint8)
    image[:, 30:35, 10:55] = 255
    mask = (image[0] > 0).to(torch.uint8)
    config = AugmentConfig.model_validate({**PLAIN, "crop": 65, "rotate": 30, "rotate_chance": 1.0})
    angles = []
    for slot in range(40):
        _, labels = augment(image, mask, config, 0, 0, slot)
        y, x = torch.nonzero(labels == 1, as_tuple=True)
        assert abs(float(y.float().mean()) - 32) < 0.7
        assert abs(float(x.float().mean()) - 32) < 0.7
        spread = np.cov(np.stack([x.numpy(), y.numpy()]))
        angles.append(np.degrees(np.arctan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1]) / 2))
    assert max(np.abs(angles)) < 31.5
    assert min(angles) < -18
    assert max(angles) > 18


def test_half_of_the_samples_are_rotated() -> None:
    image, mask = _noise(40, 40, 0), torch.zeros(40, 40, dtype=torch.uint8)
    config = AugmentConfig.model_validate({**PLAIN, "crop": 40, "rotate": 180})
    still = sum(torch.equal(augment(image, mask, config, 0, 0, slot)[0], image) for slot in range(200))
    assert 70 < still < 130
    config = AugmentConfig.model_validate({**PLAIN, "crop": 40, "rot_flip": 20})
    kinds = {"still": 0, "exact": 0, "rotated": 0}
    turns = [torch.rot90(image, k, (-2, -1)) for k in range(4)]
    turns += [turn.flip(-2) for turn in turns]
    for slot in range(200):
        found = augment(image, mask, config, 0, 0, slot)[0]
        same = torch.equal(found, image)
        exact = any(torch.equal(found, turn) for turn in turns)
        kinds["still" if same else "exact" if exact else "rotated"] += 1
    assert 70 < kinds["rotated"] < 130  # p 0.5
    assert kinds["exact"] > 25  # 0.25, of which one in eight is the picture itself
    assert kinds["still"] > 30


def test_crops_in_which_one_class_fills_nearly_all_are_avoided() -> None:
    mask = torch.zeros(256, 256, dtype=torch.uint8)
    mask[:, 200:] = 1
    mask[:64] = 255  # ignored pixels are no class
    image = _noise(256, 256, 0)
    shares = {}
    for most in (1.0, 0.75):
        config = AugmentConfig.model_validate({**PLAIN, "crop": 64, "max_class": most})
        crops = [augment(image, mask, config, 0, 0, slot)[1] for slot in range(60)]
        counts = [torch.bincount(crop.flatten(), minlength=256)[:2] for crop in crops]
        shares[most] = np.mean([int(c.sum()) > 0 and int(c.max()) < 0.75 * int(c.sum()) for c in counts])
    assert shares[1.0] < 0.35
    assert shares[0.75] > 0.75


def test_fit_zooms_the_whole_picture_first() -> None:
    """A picture of 1024 fitted to 512: a crop of 128 shows 256 source pixels, whatever the picture's own size."""
    for side in (1024, 512, 256):
        ramp = torch.arange(side).mul(255).div(side).to(torch.uint8).expand(3, side, side).contiguous()
        config = AugmentConfig.model_validate({**PLAIN, "crop": 128, "fit": (512, 512)})
        image, _ = augment(ramp, torch.zeros(side, side, dtype=torch.uint8), config, 0, 0, 0)
        assert abs(int(image[0, 0, -1]) - int(image[0, 0, 0]) - 63) <= 2
    wide = AugmentConfig.model_validate({**PLAIN, "crop": 64, "fit": (2048, 64)})  # the short side is 64
    image, mask = augment(_noise(128, 300, 0), torch.zeros(128, 300, dtype=torch.uint8), wide, 0, 0, 0)
    assert bool((mask == 0).all())


def test_colours_of_the_dates_are_drawn_apart_or_alike() -> None:
    grey = torch.full((3, 32, 32), 120, dtype=torch.uint8)
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    for apart in (True, False):
        config = AugmentConfig(crop=32, scale=(1, 1), colours_by_date=apart)
        equal = [torch.equal(*augment_pair(grey, grey, mask, config, 0, 0, slot)[:2]) for slot in range(20)]
        assert all(equal) != apart


def test_dates_are_swapped_as_often_as_asked() -> None:
    before, after = _noise(32, 32, 1), _noise(32, 32, 2)
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    for chance, low, high in ((0.0, 0, 0), (0.5, 30, 70), (1.0, 100, 100)):
        config = AugmentConfig.model_validate({**PLAIN, "crop": 32, "swap_dates": chance})
        swapped = 0
        for slot in range(100):
            one, two, _ = augment_pair(before, after, mask, config, 0, 0, slot)
            assert {torch.equal(one, before), torch.equal(one, after)} == {True, False}
            assert torch.equal(two, before if torch.equal(one, after) else after)
            swapped += torch.equal(one, after)
        assert low <= swapped <= high


def test_pairs_depend_on_seed_step_and_slot_alone() -> None:
    before, after, mask = _noise(80, 80, 1), _noise(80, 80, 2), torch.zeros(80, 80, dtype=torch.uint8)
    config = AugmentConfig(crop=32, rotate=90, max_class=0.75, swap_dates=0.5)
    state = torch.random.get_rng_state()
    first = augment_pair(before, after, mask, config, 1, 2, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(first, augment_pair(before, after, mask, config, 1, 2, 3), strict=True)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(first[0], augment_pair(before, after, mask, config, *key)[0])


def test_contradictions_are_refused() -> None:
    for fields, said in [({"rot_flip": 20, "rot90": True}, "already turns"), ({"fit": (0, 5)}, "two lengths")]:
        with pytest.raises(ValidationError, match=said):
            AugmentConfig.model_validate(fields)
