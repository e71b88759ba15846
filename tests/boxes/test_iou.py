import math

import numpy as np
import pytest
import shapely
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.boxes.draw import one, plain, rotated

from vitp.boxes import iou as overlap
from vitp.boxes.formats import from_xyxy, to_quads, to_xyxy


def by_shapely(a, b):
    """IoU pair by pair, by another library's polygons."""
    p, q = (shapely.polygons(to_quads(boxes.double()).numpy()) for boxes in (a, b))
    shared = shapely.area(shapely.intersection(p, q))
    return torch.from_numpy(shared / (shapely.area(p) + shapely.area(q) - shared))


def by_corners(a, b):
    """Slow and by another way: clip one rectangle's outline by the other's four sides (Sutherland-Hodgman)."""
    outline = [tuple(p) for p in to_quads(torch.tensor(a, dtype=torch.float64)).tolist()]
    sides = to_quads(torch.tensor(b, dtype=torch.float64)).tolist()
    for (ax, ay), (bx, by) in zip(sides, sides[1:] + sides[:1], strict=True):

        def height(p, ax=ax, ay=ay, bx=bx, by=by):
            return (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax)

        clipped = []
        for p, q in zip(outline, outline[1:] + outline[:1], strict=True):
            hp, hq = height(p), height(q)
            if hp >= 0:
                clipped.append(p)
            if hp * hq < 0:
                t = hp / (hp - hq)
                clipped.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        outline = clipped
    shared = abs(sum(x * v - u * y for (x, y), (u, v) in zip(outline, outline[1:] + outline[:1], strict=True))) / 2
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def near(boxes, seed):
    """Each box moved, stretched and turned a little."""
    g = torch.Generator().manual_seed(seed)
    return boxes + torch.randn(boxes.shape, generator=g) * torch.tensor([12.0, 12.0, 2.0, 2.0, 0.5])


@pytest.mark.parametrize(("least", "most"), [(8, 68), (0.5, 400)])
def test_random_pairs_equal_shapely(least, most):
    a = rotated(20_000, least=least, most=most)
    b = near(a, 1)
    b[:, 2:4] = b[:, 2:4].abs() + 0.1
    iou = overlap.rotated_iou_pairs(a, b)
    assert iou.dtype == torch.float32
    assert float((iou - by_shapely(a, b)).abs().max()) < 1e-6
    assert 0.1 < float(iou.mean()) < 0.9


@settings(max_examples=200)
@given(one(far=200), one(far=200))
def test_any_pair_equals_clipped_outlines(a, b):
    p, q = (torch.tensor([box], dtype=torch.float64) for box in (a, b))
    iou = float(overlap.rotated_iou_pairs(p, q))
    assert iou == pytest.approx(by_corners(a, b), abs=1e-7)
    assert iou == pytest.approx(float(overlap.rotated_iou_pairs(q, p)), abs=1e-9)
    assert float(overlap.rotated_iou(p, q)) == iou
    assert 0 <= iou <= 1


@settings(max_examples=150)
@given(one(), st.integers(0, 3), st.floats(0.01, 1), st.floats(0, 1))
def test_boxes_that_share_edges(box, case, share, at):
    """Identical, contained with edges in common, side by side, and turned by a quarter."""
    cx, cy, w, h, angle = box
    other = [cx, cy, w * share, h, angle]
    shift, expected = 0.0, share
    if case == 1:  # contained, flush with one end
        shift = w * (1 - share) / 2
    elif case == 2:  # they touch along a whole side
        shift, expected = w * (1 + share) / 2, 0.0
    elif case == 3:  # one sticks out of the other's end by the part `at`
        shift = w * (1 - share) / 2 + w * share * at
        inside = share * (1 - at)
        expected = inside / (1 + share - inside)
    other[0], other[1] = cx + shift * math.cos(angle), cy + shift * math.sin(angle)
    turned = [other[0], other[1], h, other[2], angle + math.pi / 2]
    a = torch.tensor([box, box, other, turned], dtype=torch.float64)
    b = torch.tensor([other, turned, box, other], dtype=torch.float64)
    iou = overlap.rotated_iou_pairs(a, b).tolist()
    rounding = 1e-12 * (1 + (abs(cx) + abs(cy)) / min(w * share, h))  # of the centre as it was written
    assert iou == pytest.approx([expected, expected, expected, 1.0], abs=rounding)


def test_identical_boxes_have_exactly_one():
    for boxes in (rotated(5000), torch.cat((rotated(5000)[:, :4], torch.zeros(5000, 1)), 1), rotated(5000) * 1e4):
        assert bool((overlap.rotated_iou_pairs(boxes, boxes.clone()) == 1).all())


def test_huge_coordinates_lose_nothing():
    a = rotated(2000, side=64.0).round()
    b = near(a, 2).round()
    b[:, 2:4] = b[:, 2:4].clamp_min(1)
    far = torch.tensor([2.0**23, -(2.0**23), 0, 0, 0])  # whole numbers are exact in float32 up to here
    assert torch.equal(overlap.rotated_iou_pairs(a + far, b + far), overlap.rotated_iou_pairs(a, b))
    moved = overlap.rotated_iou(a[:300] + far, b[:300] + far)
    assert torch.equal(moved, overlap.rotated_iou(a[:300], b[:300]))
    huge = torch.tensor([[0.0, 0.0, 1e8, 1e-3, 0.7], [0.0, 0.0, 1e12, 1e12, 0.3]])
    small = torch.tensor([[0.0, 0.0, 1e4, 1e-3, 0.7], [5.0, 5.0, 1e6, 1e6, 0.2]])
    assert overlap.rotated_iou_pairs(huge, small).tolist() == pytest.approx([1e-4, 1e-12], rel=1e-5)


def test_boxes_without_area_or_sense_overlap_nothing():
    whole = [5.0, 5.0, 10.0, 10.0, 0.2]
    odd = [[5.0, 5.0, 0.0, 10.0, 0.2], [5.0, 5.0, 10.0, 0.0, 0.2], [5.0, 5.0, 0.0, 0.0, 0.0], [5.0, 5.0, -4.0, 4.0, 0.0],
           [5.0, 5.0, -4.0, -4.0, 0.0], [math.nan, 5.0, 4.0, 4.0, 0.0], [5.0, 5.0, 4.0, 4.0, math.nan],
           [-math.inf, 5.0, 4.0, 4.0, 0.0], [5.0, 5.0, math.inf, 4.0, 0.0], [5.0, 5.0, math.inf, math.inf, 0.5]]  # fmt: skip
    boxes = torch.tensor([*odd, whole])
    matrix = overlap.rotated_iou(boxes, boxes)
    assert matrix[-1, -1] == 1
    assert float(matrix.sum()) == 1  # and no NaN anywhere
    assert overlap.rotated_iou_pairs(boxes, boxes).tolist() == [0.0] * len(odd) + [1.0]
    assert torch.equal(overlap.rotated_iou(torch.tensor([whole]), boxes)[0], matrix[-1])


def test_matrix_equals_pairs_in_every_block_size(monkeypatch):
    a, b = rotated(150, 3, side=200.0), rotated(220, 4, side=200.0)
    a[7, 2:4] = 2000.0  # one box over everything
    expected = overlap.rotated_iou_pairs(a.repeat_interleave(220, 0), b.repeat(150, 1)).view(150, 220)
    for cells in (1, 700, 10_000, 1 << 20):
        monkeypatch.setitem(overlap._BLOCK, "cpu", cells)
        monkeypatch.setitem(overlap._CHUNK, "cpu", cells)
        assert torch.allclose(overlap.rotated_iou(a, b), expected, atol=1e-7)
    assert overlap.rotated_iou(a[:0], b).shape == (0, 220)
    assert overlap.rotated_iou(a, b[:0]).shape == (150, 0)
    assert overlap.rotated_iou_pairs(a[:0], b[:0]).shape == (0,)


def test_blocks_bound_the_memory():
    count = 5000
    boxes = rotated(count, 5, side=4096.0)
    largest = max(len(i) for i, _, _ in overlap.overlapping(boxes, boxes))
    assert largest <= overlap._CHUNK["cpu"]
    same = boxes[:1].expand(count, 5)  # every pair overlaps
    pairs = sum(len(i) for i, _, _ in overlap.overlapping(same[:1000], same[:1000], ascending=True))
    assert pairs == 1000 * 999 // 2


def test_groups_and_order_of_pairs():
    boxes = rotated(300, 6, side=150.0) - 300
    labels = torch.from_numpy(np.random.default_rng(0).choice([-3, 0, 10**9], 300))
    full = overlap.rotated_iou(boxes, boxes)
    found = torch.zeros(300, 300)
    for i, j, iou in overlap.overlapping(boxes, boxes, labels, labels, ascending=True):
        assert bool((labels[i] == labels[j]).all())
        assert bool((i < j).all())
        found[i, j] = iou.float()
    assert torch.allclose(found, (full * (labels[:, None] == labels)).triu(1), atol=1e-7)


def test_plain_overlaps():
    a, b = plain(200, 1, side=300.0), plain(150, 2, side=300.0)
    assert torch.allclose(overlap.plain_iou(a, b), torchvision.ops.box_iou(a, b), atol=1e-6)
    turned = overlap.rotated_iou(from_xyxy(a.double()), from_xyxy(b.double()))
    assert torch.allclose(turned, overlap.plain_iou(a.double(), b.double()), atol=1e-9)
    share = overlap.plain_ioa(a, torch.tensor([[-1e4, -1e4, 1e4, 1e4], [1e5, 1e5, 2e5, 2e5]]))
    assert torch.allclose(share, torch.tensor([[1.0, 0.0]]).expand(200, 2))
    hollow = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert float(overlap.plain_iou(hollow, hollow)) == 0
    r = rotated(100, 7, side=300.0)
    assert torch.equal(overlap.circumscribed_iou(r, b), overlap.plain_iou(to_xyxy(r), b))
    assert torch.equal(overlap.circumscribed_iou(r, r), overlap.plain_iou(to_xyxy(r), to_xyxy(r)))


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_plain_pairs_are_those_of_the_matrix(least):
    sizes = (1.0, 6.0, 40.0, 400.0)
    a = torch.cat([plain(30, k, side=300.0, most=most, dtype=torch.float64) for k, most in enumerate(sizes)])
    b = torch.cat([plain(90, 9 + k, side=300.0, most=most, dtype=torch.float64) for k, most in enumerate(sizes)])
    a[3], b[5], b[6] = math.nan, math.inf, torch.tensor([5.0, 5.0, 5.0, 5.0])
    found = torch.full((len(a), len(b)), -1.0, dtype=torch.float64)
    for i, j, iou in overlap.plain_overlapping(a, b, least):
        assert (found[i, j] == -1).all()  # each pair once
        found[i, j] = iou
    expected = overlap.plain_iou(a, b)
    expected = torch.where((expected >= least) & (expected > 0), expected, -1.0)
    assert torch.allclose(found, expected, atol=1e-12)
    assert int((found > 0).sum()) > 100
