"""Boxes to test with: every draw from a generator of its own."""

import math

import torch
from hypothesis import strategies as st

numbers = st.floats(-1, 1, width=32)


def rotated(count, seed=0, side=1024.0, least=8.0, most=68.0, dtype=torch.float32):
    """Rotated boxes [count, 5] in a square, with any angle in [-pi/2, pi/2)."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 5, generator=g, dtype=torch.float64)
    boxes = torch.cat((u[:, :2] * side, least + u[:, 2:4] * (most - least), (u[:, 4:] - 0.5) * math.pi), 1)
    return boxes.to(dtype)


def plain(count, seed=0, side=1024.0, most=120.0, dtype=torch.float32):
    """Boxes (x1, y1, x2, y2) [count, 4]."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 4, generator=g, dtype=torch.float64)
    return torch.cat((u[:, :2] * side, u[:, :2] * side + 1 + u[:, 2:] * most), 1).to(dtype)


@st.composite
def one(draw, far=1000.0, least=0.01, most=1000.0):
    """A rotated box as five floats, any angle, sides over five orders of magnitude."""
    coordinate = st.floats(-far, far, allow_nan=False)
    size = st.floats(math.log(least), math.log(most)).map(math.exp)
    return [draw(coordinate), draw(coordinate), draw(size), draw(size), draw(st.floats(-7, 7))]
