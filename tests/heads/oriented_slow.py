"""Oriented R-CNN once more, slow and plain: one box at a time, the math module's formulas, shapely's areas."""

import math

import shapely

NEGATIVE, IGNORED = -1, -2


def corners(box):
    """Clockwise as seen, from (cx, cy, w, h, angle)."""
    cx, cy, w, h, angle = box
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (cx + u * w * cos - v * h * sin, cy + u * w * sin + v * h * cos)
        for u, v in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
    ]


def around(box):
    """(x1, y1, x2, y2) of a plain box, or around a rotated one."""
    if len(box) == 4:
        return tuple(box)
    xs, ys = zip(*corners(box), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def iou(a, b):
    """Of two plain or two rotated boxes."""
    p, q = (shapely.box(*x) if len(x) == 4 else shapely.Polygon(corners(x)) for x in (a, b))
    shared = p.intersection(q).area
    return shared / (p.area + q.area - shared) if shared > 0 else 0.0


def assign(truth, boxes, positive, negative, least, low_quality):
    """What each box is: the number of its true box, background or neither."""
    table = [[iou(t, b) for b in boxes] for t in truth]
    out = []
    for n in range(len(boxes)):
        best = max(range(len(truth)), key=lambda g: table[g][n], default=None)
        overlap = 0.0 if best is None else table[best][n]
        out.append(best if overlap >= positive else NEGATIVE if overlap < negative else IGNORED)
    if low_quality:
        for g, row in enumerate(table):
            for n, overlap in enumerate(row):
                if overlap >= max(row) - 1e-12 and overlap >= least:
                    out[n] = g
    return out


def le90(cx, cy, w, h, angle):
    """The same rectangle with w the longer side and the angle in [-pi/2, pi/2)."""
    if h > w:
        w, h, angle = h, w, angle + math.pi / 2
    return cx, cy, w, h, (angle + math.pi / 2) % math.pi - math.pi / 2


# ------------------------------------------------------------------------------------------------------------- coders


def midpoint_encode(anchor, box):
    """Six offsets; the two of the corners doubled, for their deviation is one half."""
    ax, ay, aw, ah = (
        (anchor[0] + anchor[2]) / 2,
        (anchor[1] + anchor[3]) / 2,
        anchor[2] - anchor[0],
        anchor[3] - anchor[1],
    )
    x1, y1, x2, y2 = around(box)
    gx, gy, gw, gh = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    top = max(x for x, y in corners(box) if y <= y1 + 0.1)
    right = max(y for x, y in corners(box) if x >= x2 - 0.1)
    return (
        (gx - ax) / aw, (gy - ay) / ah, math.log(gw / aw), math.log(gh / ah),
        (top - gx) / gw * 2, (right - gy) / gh * 2,
    )  # fmt: skip


def midpoint_decode(anchor, offsets):
    ax, ay, aw, ah = (
        (anchor[0] + anchor[2]) / 2,
        (anchor[1] + anchor[3]) / 2,
        anchor[2] - anchor[0],
        anchor[3] - anchor[1],
    )
    dx, dy, dw, dh, da, db = offsets
    most = math.log(1000 / 16)
    w, h = aw * math.exp(min(max(dw, -most), most)), ah * math.exp(min(max(dh, -most), most))
    cx, cy = ax + dx * aw, ay + dy * ah
    da, db = (min(max(d / 2, -0.5), 0.5) for d in (da, db))
    ways = [(da * w, -h / 2), (w / 2, db * h)]  # from the centre to the topmost and to the rightmost corner
    longest = max(math.hypot(*way) for way in ways)
    (tx, ty), (rx, ry) = ((x * longest / math.hypot(x, y), y * longest / math.hypot(x, y)) for x, y in ways)
    first, second = (rx - tx, ry - ty), (-tx - rx, -ty - ry)  # top to right, right to bottom
    if math.hypot(*first) >= math.hypot(*second):
        long, short = first, second
    else:
        long, short = second, first
    return le90(cx, cy, math.hypot(*long), math.hypot(*short), math.atan2(long[1], long[0]))


STDS = (0.1, 0.1, 0.2, 0.2, 0.1)


def delta_encode(proposal, box):
    px, py, pw, ph, pa = proposal
    gx, gy, gw, gh, ga = box
    best = None
    for w, h, angle in ((gh, gw, ga + math.pi / 2), (gw, gh, ga)):
        turn = (angle - pa + math.pi / 2) % math.pi - math.pi / 2
        if best is None or abs(turn) < abs(best[2]):
            best = (w, h, turn)
    w, h, turn = best
    along = (gx - px) * math.cos(pa) + (gy - py) * math.sin(pa)
    down = (gy - py) * math.cos(pa) - (gx - px) * math.sin(pa)
    plain = (along / pw, down / ph, math.log(w / pw), math.log(h / ph), turn)
    return tuple(value / std for value, std in zip(plain, STDS, strict=True))


def delta_decode(proposal, offsets, size):
    px, py, pw, ph, pa = proposal
    dx, dy, dw, dh, turn = (value * std for value, std in zip(offsets, STDS, strict=True))
    most = math.log(1000 / 16)
    cx = px + dx * pw * math.cos(pa) - dy * ph * math.sin(pa)
    cy = py + dx * pw * math.sin(pa) + dy * ph * math.cos(pa)
    cx, cy = min(max(cx, 0), size[1] - 1), min(max(cy, 0), size[0] - 1)
    w, h = pw * math.exp(min(max(dw, -most), most)), ph * math.exp(min(max(dh, -most), most))
    return le90(cx, cy, w, h, pa + turn)


# ------------------------------------------------------------------------------------------------- losses, suppression


def smooth_l1(values, targets, beta):
    total = 0.0
    for a, b in zip(values, targets, strict=True):
        apart = abs(a - b)
        total += apart * apart / (2 * beta) if apart < beta else apart - beta / 2
    return total


def binary_cross_entropy(logit, hit):
    chance = 1 / (1 + math.exp(-logit))
    return -math.log(chance if hit else 1 - chance)


def softmax(logits):
    powers = [math.exp(x - max(logits)) for x in logits]
    return [p / sum(powers) for p in powers]


def suppress(boxes, scores, threshold, labels=None):
    """Indices that stay, by falling score."""
    kept = []
    for n in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        rivals = [k for k in kept if labels is None or labels[k] == labels[n]]
        if all(iou(boxes[k], boxes[n]) <= threshold for k in rivals):
            kept.append(n)
    return kept
