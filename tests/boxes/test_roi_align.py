import math

import pytest
import torch
import torchvision
from tests.boxes.draw import rotated

from vitp.boxes.formats import from_xyxy
from vitp.boxes.roi_align import assign_levels, multilevel_rotated_roi_align, rotated_roi_align


def flat(count, seed=0, side=260.0, most=90.0):
    """Boxes at angle 0, many of them over the border, as ours and as torchvision's, with their images; float64."""
    boxes = rotated(count, seed, side=side, least=0.5, most=most, dtype=torch.float64)
    boxes[:, :2] -= 20
    boxes[:, 4] = 0
    image = torch.arange(count) % 2
    theirs = torch.cat((image[:, None].double(), boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2), 1)
    return boxes, image, theirs


def maps(seed=0, channels=5, height=26, width=31, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, height, width, generator=g, dtype=dtype)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [7, (3, 5)])
def test_angle_zero_equals_torchvision(aligned, ratio, size):
    """Inside, across and beyond the border; values and gradients; fixed and adaptive sampling."""
    boxes, image, theirs = flat(120)
    ours_in, theirs_in = maps().requires_grad_(), maps().requires_grad_()
    ours = rotated_roi_align(ours_in, boxes, image, size, 1 / 8, ratio, aligned)
    expected = torchvision.ops.roi_align(theirs_in, theirs, size, 1 / 8, ratio, aligned)
    assert torch.allclose(ours, expected, atol=1e-9)
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ours * pull).sum().backward()
    (expected * pull).sum().backward()
    assert torch.allclose(ours_in.grad, theirs_in.grad, atol=1e-9)


def test_float32_equals_torchvision_to_rounding():
    boxes, image, theirs = flat(300)
    features = maps(dtype=torch.float32)
    ours = rotated_roi_align(features, boxes.float(), image, 7, 1 / 8)
    assert torch.allclose(ours, torchvision.ops.roi_align(features, theirs.float(), 7, 1 / 8, 2, True), atol=1e-4)
    half = rotated_roi_align(features.bfloat16(), boxes.float(), image, 7, 1 / 8)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), ours, atol=0.05)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_are_those_of_the_values(ratio):
    boxes = rotated(4, 3, side=40.0, most=40.0, dtype=torch.float64)
    image = torch.tensor([0, 1, 1, 0])
    features = maps(channels=2, height=6, width=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: rotated_roi_align(m, boxes, image, 3, 1 / 8, ratio), (features,))


def slow(features, boxes, image, cells, scale, ratio):
    """Point by point, in Python: bilinear values at the points of every cell's grid, turned about the box's centre."""
    height, width = features.shape[2:]
    out = features.new_zeros(len(boxes), features.shape[1], cells, cells)
    for r, (cx, cy, w, h, angle) in enumerate(boxes.tolist()):
        for row in range(cells * ratio):
            for column in range(cells * ratio):
                u, v = ((column + 0.5) / (cells * ratio) - 0.5) * w, ((row + 0.5) / (cells * ratio) - 0.5) * h
                x = (cx + u * math.cos(angle) - v * math.sin(angle)) * scale - 0.5
                y = (cy + u * math.sin(angle) + v * math.cos(angle)) * scale - 0.5
                if not (-1 <= x <= width and -1 <= y <= height):
                    continue
                x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                for px, py in ((int(x), int(y)), (int(x) + 1, int(y)), (int(x), int(y) + 1), (int(x) + 1, int(y) + 1)):
                    weight = max(0, 1 - abs(x - px)) * max(0, 1 - abs(y - py))
                    if weight:
                        out[r, :, row // ratio, column // ratio] += features[image[r], :, py, px] * weight / ratio**2
    return out


def test_turned_boxes_equal_the_slow_form():
    boxes = rotated(25, 4, side=260.0, dtype=torch.float64)
    image = torch.arange(25) % 2
    features = maps()
    expected = slow(features, boxes, image, 3, 1 / 8, 2)
    assert torch.allclose(rotated_roi_align(features, boxes, image, 3, 1 / 8, 2), expected, atol=1e-10)
    assert float(expected.abs().sum()) > 1


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_turned_picture_and_a_turned_box_see_the_same(quarter):
    """Turn picture and box clockwise as seen by quarters: the box still reads the same content, upright."""
    picture = maps(height=24, width=24)
    box = torch.tensor([[11.0, 9.0, 10.0, 6.0, 0.3]], dtype=torch.float64)
    image = torch.zeros(1, dtype=torch.long)
    before = rotated_roi_align(picture, box, image, 5)
    turned = torch.rot90(picture, -quarter, (2, 3))  # rot90 turns anticlockwise
    cx, cy, w, h, angle = box[0].tolist()
    for _ in range(quarter):
        cx, cy, angle = 24 - cy, cx, angle + math.pi / 2
    after = rotated_roi_align(turned, torch.tensor([[cx, cy, w, h, angle]], dtype=torch.float64), image, 5)
    assert torch.allclose(before, after, atol=1e-9)
    wrong = rotated_roi_align(turned, torch.tensor([[cx, cy, w, h, -angle]], dtype=torch.float64), image, 5)
    assert not torch.allclose(before, wrong, atol=0.1)


def test_a_bar_that_points_down_right_is_read_level():
    """A bright line along 30 degrees clockwise fills the middle row of its own box's cells, and only that."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    angle = math.radians(30)
    across = (y + 0.5 - 32) * math.cos(angle) - (x + 0.5 - 32) * math.sin(angle)
    picture = (across.abs() < 3).double()[None, None]
    box = torch.tensor([[32.0, 32.0, 40.0, 30.0, angle]], dtype=torch.float64)
    cells = rotated_roi_align(picture, box, torch.zeros(1, dtype=torch.long), 5)[0, 0]
    assert float(cells[2].min()) > 0.7
    assert float(cells[[0, 1, 3, 4]].max()) < 0.2


def test_levels_and_pyramids():
    size = torch.tensor([1.0, 56.0, 111.0, 112.0, 223.0, 224.0, 448.0, 5000.0])
    boxes = torch.stack((size, size, size * 2, size / 2, torch.zeros(8)), 1)
    assert assign_levels(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    plain = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]), 1)
    assert assign_levels(plain, 4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    odd = torch.tensor([[0.0, 0.0, 0.0, 5.0, 0.0], [0.0, 0.0, -2.0, 5.0, 0.0], [0.0, 0.0, math.nan, 5.0, 0.0]])
    assert assign_levels(odd, 4).tolist() == [0, 0, 0]

    pyramid = [maps(k, 3, 64 >> k, 48 >> k).requires_grad_() for k in range(4)]
    rois = rotated(60, 9, side=200.0, least=20, most=500, dtype=torch.float64)
    image = torch.arange(60) % 2
    level = assign_levels(rois, 4)
    assert set(level.tolist()) == {0, 1, 2, 3}
    together = multilevel_rotated_roi_align(pyramid, rois, image, 4, (4, 8, 16, 32))
    for k in range(4):
        alone = rotated_roi_align(pyramid[k], rois[level == k], image[level == k], 4, 1 / (4 << k))
        assert torch.allclose(together[level == k], alone, atol=1e-12)
    together.square().sum().backward()
    assert all(float(m.grad.abs().sum()) > 0 for m in pyramid)


def test_levels_and_cells_equal_torchvisions_pyramid():
    """Horizontal boxes over a whole pyramid: the same rule of levels, and the cells of each level's own operator."""
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    rows = [
        [3, 5, 40, 60],
        [10, 10, 250, 200],
        [0, 0, 255, 255],
        [50, 60, 190, 170],
        [0, 0, 111.9, 112],
        [0, 0, 112, 112],
    ]
    boxes = torch.tensor(rows, dtype=torch.float64)
    pyramid = [maps(k, 3, 64 >> k, 64 >> k)[:1] for k in range(4)]
    pool(dict(zip("0123", pyramid, strict=True)), [boxes], [(256, 256)])  # sets up its levels
    level = assign_levels(boxes, 4)
    assert torch.equal(pool.map_levels([boxes]), level)
    assert len(set(level.tolist())) == 3
    rois = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], torch.zeros(6, 1)), 1)
    ours = multilevel_rotated_roi_align(pyramid, rois, torch.zeros(6, dtype=torch.long), 7, (4, 8, 16, 32))
    for k in range(4):
        theirs = torchvision.ops.roi_align(pyramid[k], [boxes[level == k]], 7, 1 / (4 << k), 2, aligned=True)
        assert torch.allclose(ours[level == k], theirs, atol=1e-9)


def test_odd_boxes_read_zero_and_no_boxes_keep_the_graph():
    features = maps().requires_grad_()
    odd = torch.tensor([[math.nan, 5, 4, 4, 0], [5, 5, math.inf, 4, 0], [1e9, 1e9, 4, 4, 0], [5, 5, 4, 4, math.nan]])
    for ratio in (0, 2):
        cells = rotated_roi_align(features.detach(), odd, torch.zeros(4, dtype=torch.long), 3, 1.0, ratio)
        assert float(cells[2].abs().sum()) == 0
        assert bool(cells.isfinite().all())
    none = rotated_roi_align(features, odd[:0], torch.zeros(0, dtype=torch.long), 3)
    assert none.shape == (0, 5, 3, 3)
    none.sum().backward()
    assert float(features.grad.abs().sum()) == 0
    assert from_xyxy(torch.zeros(0, 4)).shape == (0, 5)


def test_memory_formats_make_no_difference():
    boxes, image, _ = flat(20)
    one, other = maps().requires_grad_(), maps().contiguous(memory_format=torch.channels_last).requires_grad_()
    results = [rotated_roi_align(m, boxes, image, 3, 1 / 8) for m in (one, other)]
    assert torch.equal(*results)
    for result in results:
        result.square().sum().backward()
    assert torch.allclose(one.grad, other.grad, atol=1e-12)
