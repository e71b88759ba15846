import math

import numpy as np
import pytest
import shapely
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.boxes.draw import one, plain, rotated

from vitp.boxes import formats as f
from vitp.errors import DataError


def same_rectangle(a, b, tolerance=1e-6):
    """Equal as sets of points: the corners of each lie on corners of the other."""
    p, q = f.to_quads(a), f.to_quads(b)
    far = torch.cdist(p, q).amin(-1).amax()
    return float(far) <= tolerance


def test_a_positive_angle_turns_clockwise_as_seen():
    corners = f.to_quads(torch.tensor([0.0, 0.0, 4.0, 2.0, math.radians(30)], dtype=torch.float64))
    right_end = (corners[1] + corners[2]) / 2
    assert right_end.tolist() == pytest.approx([2 * math.cos(math.radians(30)), 1.0])  # y down: lower on the screen
    x, y = corners.unbind(-1)
    assert float((x * y.roll(-1) - y * x.roll(-1)).sum()) > 0  # the corners go round clockwise too


@given(one())
def test_regularise_keeps_the_rectangle_and_obeys_le90(values):
    box = torch.tensor(values, dtype=torch.float64)
    regular = f.regularise(box)
    assert same_rectangle(box, regular)
    assert regular[2] >= regular[3]
    assert -math.pi / 2 <= regular[4] < math.pi / 2
    assert torch.equal(f.regularise(regular), regular)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapped_angles_never_reach_the_open_end(dtype):
    half = torch.tensor(math.pi / 2, dtype=dtype)
    edge = torch.stack([half, -half, half.nextafter(-half), (-half).nextafter(-half * 2), half * 3, half * 1e4])
    wrapped = f.wrap_angle(edge)
    assert bool(((wrapped >= -math.pi / 2 - 1e-7) & (wrapped < math.pi / 2)).all())


@given(one())
def test_quads_give_the_box_back(values):
    box = f.regularise(torch.tensor(values, dtype=torch.float64))
    for back in (f.from_quads(f.to_quads(box)), f.from_rectangles(f.to_quads(box))):
        assert same_rectangle(box, back, 1e-9 * (1 + box[:4].abs().max()))
    assert same_rectangle(box, f.from_quads(f.to_quads(box).flatten()), 1e-9 * (1 + box[:4].abs().max()))


def test_torchvision_has_the_opposite_sign_in_degrees():
    boxes = rotated(200, dtype=torch.float64)
    theirs = f.to_torchvision(boxes)
    corners = torchvision.ops.box_convert(theirs, "cxcywhr", "xyxyxyxy").view(-1, 4, 2)
    assert torch.allclose(corners, f.to_quads(boxes), atol=1e-9)
    assert same_rectangle(boxes, f.from_torchvision(theirs))
    assert torch.allclose(f.from_torchvision(theirs), f.regularise(boxes), atol=1e-9)


def test_opencv_boxes_there_and_back():
    boxes = rotated(500, dtype=torch.float64)
    theirs = f.to_opencv(boxes)
    assert bool(((theirs[:, 4] > 0) & (theirs[:, 4] <= 90)).all())
    assert same_rectangle(boxes, f.from_opencv(theirs))
    upright = torch.tensor([[5.0, 6.0, 4.0, 2.0, 0.0], [5.0, 6.0, 4.0, 2.0, -math.pi / 2]], dtype=torch.float64)
    assert f.to_opencv(upright)[0].tolist() == pytest.approx([5, 6, 2, 4, 90])
    assert same_rectangle(upright, f.from_opencv(f.to_opencv(upright)))


def test_opencv_agrees_where_it_is_installed():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    for box in rotated(100, dtype=torch.float64):
        cx, cy, w, h, degrees = f.to_opencv(box).tolist()
        theirs = torch.from_numpy(cv2.boxPoints(((cx, cy), (w, h), degrees)).astype(np.float64))
        assert torch.cdist(theirs, f.to_quads(box)).amin(1).max() < 1e-3  # boxPoints works in float32
        (cx, cy), (w, h), degrees = cv2.minAreaRect(f.to_quads(box).float().numpy())
        assert same_rectangle(f.from_opencv(torch.tensor([cx, cy, w, h, degrees], dtype=torch.float64)), box, 2e-3)


def test_boxes_along_the_axes():
    boxes = plain(100)
    assert torch.allclose(f.from_xywh(f.to_xywh(boxes)), boxes)
    theirs = torchvision.ops.box_convert(boxes, "xyxy", "xywh")
    assert torch.equal(f.to_xywh(boxes), theirs)
    turned = f.from_xyxy(boxes.double())
    assert bool((turned[:, 2] >= turned[:, 3]).all())
    assert torch.allclose(f.to_xyxy(turned), boxes.double(), atol=1e-9)
    corners = f.to_quads(turned)
    assert torch.allclose(torch.cat((corners.amin(1), corners.amax(1)), 1), boxes.double(), atol=1e-9)


def test_dota_text_keeps_the_box_to_its_decimals():
    boxes = f.regularise(rotated(50, dtype=torch.float64))
    for box, line in zip(boxes, f.to_dota(boxes, None), strict=True):
        assert same_rectangle(f.from_dota(line + " plane 0"), box, 1e-9)
    assert f.to_dota(torch.tensor([[5.0, 5.0, 4.0, 2.0, 0.0]])) == ["3.00 4.00 7.00 4.00 7.00 6.00 3.00 6.00"]


@pytest.mark.parametrize("line", ["1 2 3 4 5 6 7", "imagesource:GoogleEarth", "1 2 3 4 5 6 7 nan plane 0", ""])
def test_dota_text_that_is_none_is_named(line):
    with pytest.raises(DataError, match="a.txt:3: .*eight.*write x1 y1"):
        f.from_dota(line, "a.txt:3")


# ------------------------------------------------------------------------------------------- rectangles of least area


def area(box):
    return float(box[2] * box[3])


def covers(box, points):
    cx, cy, w, h, angle = box.tolist()
    local = points - torch.tensor([cx, cy], dtype=torch.float64)
    u = local[:, 0] * math.cos(angle) + local[:, 1] * math.sin(angle)
    v = local[:, 1] * math.cos(angle) - local[:, 0] * math.sin(angle)
    slack = 1e-9 * (1 + points.abs().max())
    return bool((u.abs() <= w / 2 + slack).all() and (v.abs() <= h / 2 + slack).all())


def least_area(points):
    """Slow and obviously right: every direction between two points is tried."""
    best = math.inf
    for i in range(len(points)):
        for j in range(i):
            way = points[i] - points[j]
            if float(way.norm()) == 0:
                continue
            u, v = points @ (way / way.norm()), points @ (torch.stack((-way[1], way[0])) / way.norm())
            best = min(best, float((u.max() - u.min()) * (v.max() - v.min())))
    return best


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(-30, 30), st.integers(-30, 30)), min_size=3, max_size=12), st.floats(0, 1e5))
def test_polygon_rectangles_cover_and_are_least(points, far):
    points = torch.tensor(points, dtype=torch.float64) + far
    box = f.from_polygon(points.flatten().tolist())
    assert covers(box, points)
    if math.isfinite(least_area(points)):
        assert area(box) == pytest.approx(least_area(points - points.mean(0)), rel=1e-6, abs=1e-6)
    if len(points) >= 4:
        quad = f.from_quads(points[:4])
        assert covers(quad, points[:4])
        assert area(quad) == pytest.approx(area(f.from_polygon(points[:4].flatten().tolist())), rel=1e-6, abs=1e-6)


def test_many_cornered_polygons_against_shapely():
    rng = np.random.default_rng(0)
    for count in (5, 40, 300):
        points = rng.normal(size=(count, 2)) * [30, 10] + 5000
        box = f.from_polygon(points.ravel().tolist())
        rectangle = shapely.minimum_rotated_rectangle(shapely.MultiPoint(points))
        assert area(box) == pytest.approx(rectangle.area, rel=1e-9)
    circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 20000, endpoint=False)), np.sin(t)], 1)
    assert area(f.from_polygon((circle * 50).ravel().tolist())) == pytest.approx(10000, rel=1e-6)


def test_opencv_finds_no_smaller_rectangle():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    rng = np.random.default_rng(1)
    for count in (3, 4, 9, 60):
        points = rng.uniform(0, 200, size=(count, 2)).astype(np.float32)
        theirs = cv2.minAreaRect(points)
        assert area(f.from_polygon(points.ravel().tolist())) <= theirs[1][0] * theirs[1][1] * (1 + 1e-4)


def test_crossed_and_collapsed_outlines():
    crossed = torch.tensor([[0.0, 0.0], [4.0, 2.0], [4.0, 0.0], [0.0, 2.0]])
    assert same_rectangle(f.from_quads(crossed), torch.tensor([2.0, 1.0, 4.0, 2.0, 0.0]))
    concave = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 0.5], [0.0, 2.0]])
    assert area(f.from_quads(concave)) == pytest.approx(8)
    line = f.from_quads(torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]))
    assert line.tolist() == pytest.approx([1.5, 1.5, math.sqrt(18), 0, math.pi / 4], abs=1e-6)
    point = f.from_quads(torch.full((2, 4, 2), 7.0))
    assert point.tolist() == [[7, 7, 0, 0, 0]] * 2
    assert f.from_polygon([7.0, 8.0]).tolist() == [7, 8, 0, 0, 0]
    assert f.from_polygon([0.0, 0.0, 0.0, 5.0]).tolist() == pytest.approx([0, 2.5, 5, 0, -math.pi / 2])
    nan = f.from_quads(torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, torch.nan], [0.0, 1.0]], crossed.tolist()]))
    assert bool(nan[0].isnan().any())
    assert bool(nan[1].isfinite().all())


@pytest.mark.parametrize("points", [[], [1.0, 2.0, 3.0], [0.0, 0.0, 1.0, math.nan, 2.0, 2.0], [math.inf] * 6])
def test_polygons_that_are_none_are_named(points):
    with pytest.raises(DataError, match="^labels.json: has a polygon"):
        f.from_polygon(points, "labels.json")


def test_no_boxes_at_all():
    none = torch.zeros(0, 5)
    assert f.to_quads(none).shape == (0, 4, 2)
    assert f.from_quads(torch.zeros(0, 4, 2)).shape == (0, 5)
    assert f.regularise(none).shape == f.from_xyxy(torch.zeros(0, 4)).shape == (0, 5)
