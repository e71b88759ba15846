import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.boxes.draw import one, plain, rotated
from torchvision.models.detection._utils import BoxCoder

from vitp.boxes.coders import DeltaCoder, MidpointOffsetCoder, RotatedDeltaCoder, as_rotated
from vitp.boxes.formats import regularise, to_quads, to_xyxy
from vitp.boxes.iou import rotated_iou_pairs
from vitp.config import load
from vitp.errors import ConfigError


def corners_apart(a, b):
    return float(torch.cdist(to_quads(a), to_quads(b)).amin(-1).amax())


def test_delta_equals_torchvisions_coder():
    proposals, truth = plain(300, 1), plain(300, 2)
    stds = (0.1, 0.1, 0.2, 0.2)
    ours, theirs = DeltaCoder(stds=stds), BoxCoder(tuple(1 / s for s in stds))
    assert torch.allclose(ours.encode(proposals, truth), theirs.encode_single(truth, proposals), atol=1e-3)
    offsets = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.allclose(
        ours.decode(proposals, offsets), theirs.decode_single(offsets, proposals), rtol=1e-4, atol=1e-3
    )


def test_delta_there_and_back_clipped_and_by_class():
    proposals, truth = plain(300, 1, dtype=torch.float64), plain(300, 2, dtype=torch.float64)
    coder = DeltaCoder(max_ratio=1e4)
    offsets = coder.encode(proposals, truth)
    assert torch.allclose(coder.decode(proposals, offsets), truth, atol=1e-9)
    inside = torch.stack((truth[:, 0::2].clamp(0, 500), truth[:, 1::2].clamp(0, 300)), -1).flatten(1)
    assert torch.allclose(coder.decode(proposals, offsets, (300, 500)), inside, atol=1e-9)
    by_class = coder.decode(proposals[:, None], torch.stack((offsets, offsets * 0), 1))
    assert torch.allclose(by_class[:, 0], truth, atol=1e-9)
    assert torch.allclose(by_class[:, 1], proposals, atol=1e-9)


@pytest.mark.parametrize("coder", [DeltaCoder(), MidpointOffsetCoder(), RotatedDeltaCoder()])
def test_wild_offsets_stay_within_the_ratio(coder):
    """What a network says in its first steps: sizes change by 1000 / 16 at most, both ways."""
    proposal = torch.tensor([[10.0, 20.0, 42.0, 52.0]])  # 32 x 32
    start = as_rotated(proposal) if isinstance(coder, RotatedDeltaCoder) else proposal
    for sign in (-1, 1):
        offsets = torch.zeros(1, len(coder.stds))
        offsets[:, 2:4] = sign * 1e6
        box = coder.decode(start, offsets)
        side = box[0, 2] - box[0, 0] if isinstance(coder, DeltaCoder) else box[0, 2:4].max()
        expected = 32 * 62.5**sign
        assert float(side) == pytest.approx(
            expected * (math.sqrt(0.5) if isinstance(coder, MidpointOffsetCoder) else 1), rel=1e-4
        )
        assert bool(coder.decode(start, torch.full((1, len(coder.stds)), sign * 1e6)).isfinite().all())


def test_boxes_without_area_encode_to_finite_numbers():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    turned = torch.tensor([[5.0, 5.0, 0.0, 0.0, 0.3]])
    assert bool(DeltaCoder().encode(point, point).isfinite().all())
    assert bool(MidpointOffsetCoder().encode(plain(1), turned).isfinite().all())
    assert bool(RotatedDeltaCoder().encode(turned, turned).isfinite().all())
    assert bool(MidpointOffsetCoder().decode(point, torch.zeros(1, 6)).isfinite().all())


@given(one(least=4, most=800), st.integers(0, 10**6))
@example([0.0, 0.0, math.exp(2.0), math.exp(1.40625), -1.546875], 0)  # ties at the short side alone
def test_midpoint_offsets_there_and_back(values, seed):
    truth = torch.tensor([values], dtype=torch.float64)
    around = to_xyxy(truth)
    g = torch.Generator().manual_seed(seed)
    anchor = around + (torch.rand(1, 4, generator=g, dtype=torch.float64) - 0.5) * 2
    coder = MidpointOffsetCoder(max_ratio=1e4)
    back = coder.decode(anchor, coder.encode(anchor, truth))
    # Within the tie of 0.1 px a corner may be named for its neighbour: a box all but upright comes back upright.
    long, short = float(truth[0, 2:4].max()), float(truth[0, 2:4].min())
    lean = abs(math.sin(2 * float(truth[0, 4])) / 2)  # how far from upright
    tied = lean * short < 0.11
    assert corners_apart(regularise(truth), back) < (0.5 + 0.2 * long / short if tied else 1e-6 * (1 + long))


def test_midpoint_offsets_as_defined():
    """Worked by hand: a square on its tip, an upright box, and a box at 30 degrees."""
    coder = MidpointOffsetCoder(stds=(1, 1, 1, 1, 1, 1))
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    tip = torch.tensor([[5.0, 5.0, math.sqrt(50), math.sqrt(50), math.pi / 4]])
    assert coder.encode(anchor, tip)[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0], abs=1e-6)
    upright = torch.tensor([[5.0, 5.0, 10.0, 10.0, 0.0]])
    assert coder.encode(anchor, upright)[0].tolist() == pytest.approx([0, 0, 0, 0, 0.5, 0.5], abs=1e-6)
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    box = torch.tensor([[5.0, 5.0, 8.0, 2.0, math.pi / 6]], dtype=torch.float64)
    w, h = 8 * cos + 2 * sin, 8 * sin + 2 * cos
    topmost_x = -4 * cos + 1 * sin  # corner (-4, -1) turned clockwise
    rightmost_y = 4 * sin - 1 * cos  # corner (4, -1)
    offsets = coder.encode(anchor.double(), box)[0].tolist()
    assert offsets == pytest.approx(
        [0, 0, math.log(w / 10), math.log(h / 10), topmost_x / w, rightmost_y / h], abs=1e-9
    )
    skew = coder.decode(anchor, torch.tensor([[0, 0, 0, 0, 0.3, -0.1]]))  # a parallelogram: made a rectangle
    half = math.hypot(3, 5)
    assert float(skew[0, 2] ** 2 + skew[0, 3] ** 2) == pytest.approx(4 * half**2, rel=1e-5)
    clamped = coder.decode(anchor, torch.tensor([[0, 0, 0, 0, 9.0, 9.0]]))
    assert float(rotated_iou_pairs(clamped, upright)) > 0.999


@given(one(least=1, most=500), one(least=1, most=500))
def test_rotated_deltas_there_and_back(p, t):
    proposal, truth = (regularise(torch.tensor([v], dtype=torch.float64)) for v in (p, t))
    coder = RotatedDeltaCoder(max_ratio=1e4)
    offsets = coder.encode(proposal, truth)
    assert abs(float(offsets[0, 4])) * 0.1 <= math.pi / 4 + 1e-9  # the smaller of the two turns
    back = coder.decode(proposal, offsets)
    assert corners_apart(truth, back) < 1e-6
    assert float(back[0, 2]) >= float(back[0, 3])


def test_rotated_deltas_do_not_depend_on_where_north_is():
    """Turn proposal and truth together: the offsets stay, as they are measured in the proposal's own frame."""
    proposal, truth = rotated(50, 1, dtype=torch.float64), rotated(50, 2, dtype=torch.float64)
    coder = RotatedDeltaCoder()
    before = coder.encode(proposal, truth)
    turn = 0.7
    cos, sin = math.cos(turn), math.sin(turn)

    def turned(boxes):
        x, y = boxes[:, 0], boxes[:, 1]
        return torch.stack((x * cos - y * sin, x * sin + y * cos, boxes[:, 2], boxes[:, 3], boxes[:, 4] + turn), 1)

    assert torch.allclose(coder.encode(turned(proposal), turned(truth)), before, atol=1e-9)
    moved = coder.decode(proposal, torch.full((50, 5), 1e3), (600, 800))
    assert bool((moved[:, 0] <= 799).all() and (moved[:, 1] <= 599).all() and (moved[:, :2] >= 0).all())


def test_gradients_reach_the_offsets():
    """Losses on decoded boxes need them; finite also where a side is clamped."""
    for coder, start in (
        (DeltaCoder(), plain(5)),
        (MidpointOffsetCoder(), plain(5)),
        (RotatedDeltaCoder(), rotated(5)),
    ):
        offsets = torch.zeros(5, len(coder.stds)).requires_grad_()
        coder.decode(start, offsets + 0.05).sum().backward()
        assert bool(offsets.grad.isfinite().all())
        assert float(offsets.grad.abs().sum()) > 0


def test_settings_are_strict(tmp_path):
    recipe = tmp_path / "coder.yaml"
    recipe.write_text("stds: [0.1, 0.1, 0.2, 0.0]\n")
    with pytest.raises(ConfigError, match=r"stds.3: must be greater than 0"):
        load(DeltaCoder, recipe)
