"""Charts as geometry: what to draw and where, in pixels; the template turns it into SVG and escapes every text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STYLES = 6  # colours and dash patterns the template defines; more curves repeat them
SMOOTH_ABOVE = 200  # points; above it the raw curve is drawn faint under its running mean
_SMOOTH_FRACTION = 40  # the running mean spans a fortieth of the curve
_LARGEST = 1e300  # values are clamped here, so that spans stay finite


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a chart: `x` and `y` of equal length, in drawing order; non-finite points are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: bool = False  # points that mark something on another curve: large, and not joined

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y), f"curve '{self.name}': {len(self.x)} x values, {len(self.y)} y values"


@dataclass(frozen=True, eq=False)
class LineChart:
    """Curves over a common axis; a logarithmic axis leaves out what is not positive. What is left out is said under the chart."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    caption: str = ""
    log_y: bool = False
    log_x: bool = False


@dataclass(frozen=True, eq=False)
class BarSeries:
    """One value for each group, with the half length of its error bar where known; non-finite: no bar."""

    name: str
    values: Sequence[float]
    errors: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class BarChart:
    """Horizontal bars from zero, grouped; every bar carries its number."""

    title: str
    y_label: str
    groups: Sequence[str]
    series: Sequence[BarSeries]
    caption: str = ""

    def __post_init__(self) -> None:
        for series in self.series:
            lengths = {len(series.values), len(self.groups), len(series.errors or series.values)}
            assert len(lengths) == 1, f"series '{series.name}': one value (and error) for each of the groups"


@dataclass(frozen=True)
class Tick:
    """A gridline: its pixel and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Stroke:
    """A polyline (``x,y x,y``) in one of the styles."""

    style: int
    points: str
    faint: bool = False


@dataclass(frozen=True)
class Dot:
    """A marked point of a short curve."""

    style: int
    x: float
    y: float
    radius: int = 3


@dataclass(frozen=True)
class Bar:
    """One bar with its error line (`error`: left and right end, or None) and its text."""

    style: int
    x: float
    y: float
    width: float
    height: float
    error: tuple[float, float] | None
    text: str
    text_x: float


@dataclass(frozen=True)
class GroupLabel:
    """Name of a group of bars: beside them (right-aligned) or, on narrow charts, above them."""

    x: float
    y: float
    text: str
    full: str


@dataclass(frozen=True)
class Drawing:
    """A chart at one width: size, plot box and marks, all in pixels."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...] = ()
    strokes: tuple[Stroke, ...] = ()
    dots: tuple[Dot, ...] = ()
    bars: tuple[Bar, ...] = ()
    labels: tuple[GroupLabel, ...] = ()
    labels_above: bool = False
    zero: float | None = None


def draw_lines(chart: LineChart, width: int, height: int) -> Drawing | None:
    """Geometry of a line chart; None where no curve has a drawable point."""
    cleaned = [clean(curve, chart.log_y, chart.log_x)[:2] for curve in chart.curves]
    if not any(len(x) for x, _ in cleaned):
        return None
    every_x, every_y = (np.concatenate(values) for values in zip(*cleaned, strict=True))
    y_low, y_high, y_values, y_texts = _axis(every_y, 5, chart.log_y, outward=True)
    x_low, x_high, x_values, x_texts = _axis(every_x, max(4, width // 110), log=chart.log_x, outward=False)
    left, right = 14 + 7.2 * max(map(len, y_texts)), width - 16.0
    top, bottom = 30.0, height - 46.0

    def x_pixel(x: Floats) -> Floats:
        x = np.log10(x) if chart.log_x else x
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def y_pixel(y: Floats) -> Floats:
        y = np.log10(y) if chart.log_y else y
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    strokes: list[Stroke] = []
    dots: list[Dot] = []
    for index, (x, y) in enumerate(cleaned):
        style, mark = index % STYLES, chart.curves[index].mark
        if len(x) > SMOOTH_ABOVE and not mark:
            strokes.append(Stroke(style, _points(*_thin(x_pixel(x), y_pixel(y), int(right - left))), faint=True))
            mean_x, mean_y = running_mean(x, y)
            strokes.append(Stroke(style, _points(x_pixel(mean_x), y_pixel(mean_y))))
        elif len(x) > 1 and not mark:
            strokes.append(Stroke(style, _points(x_pixel(x), y_pixel(y))))
        if len(x) <= 25 or mark:
            pairs = zip(x_pixel(x), y_pixel(y), strict=True)
            dots += [Dot(style, round(float(a), 1), round(float(b), 1), 5 if mark else 3) for a, b in pairs]
    strokes.sort(key=lambda stroke: not stroke.faint)  # faint ones below
    y_ats = y_pixel(np.power(10.0, y_values) if chart.log_y else np.asarray(y_values))
    x_ats = x_pixel(np.power(10.0, x_values) if chart.log_x else np.asarray(x_values))
    x_ticks = _ticks(x_ats, x_texts)
    y_ticks = _ticks(y_ats, y_texts)
    return Drawing(width, height, round(left, 1), right, top, bottom, x_ticks, y_ticks, tuple(strokes), tuple(dots))


def draw_bars(chart: BarChart, width: int) -> Drawing | None:
    """Geometry of a bar chart, as high as its bars need; None where no series has a finite value."""
    values = np.array([series.values for series in chart.series], dtype=np.float64).reshape(
        len(chart.series), len(chart.groups)
    )
    errors = np.array([series.errors or [0.0] * len(series.values) for series in chart.series], dtype=np.float64)
    errors = np.where(np.isfinite(errors), np.minimum(np.abs(errors), _LARGEST), 0.0).reshape(values.shape)
    values = np.clip(np.where(np.isfinite(values), values, np.nan), -_LARGEST, _LARGEST)
    if not np.isfinite(values).any():
        return None
    ends = np.concatenate([np.nan_to_num((values + sign * errors).ravel()) for sign in (-1, 1)])
    low, high, tick_values, tick_texts = _axis(np.append(ends, 0.0), max(3, width // 130), log=False, outward=True)
    texts = _bar_texts(values, errors)
    above = width < 500
    column = 0.0 if above else min(220.0, 12 + 7.2 * max(map(len, chart.groups)))
    left, right = column + 8.0, width - 14 - 7.0 * max(len(text) for row in texts for text in row)

    def pixel(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 1)

    thick, gap, pause, line = 15.0, 3.0, 14.0, 19.0 if above else 0.0
    y, bars, labels = 8.0, [], []
    for g, group in enumerate(chart.groups):
        block = len(chart.series) * (thick + gap) - gap
        short = shorten(group, int((width - 16 if above else column - 8) / 6.8))
        labels.append(GroupLabel(0.0 if above else column, y + 13 if above else y + block / 2 + 4, short, group))
        y += line
        for s in range(len(chart.series)):
            value, error = float(values[s, g]), float(errors[s, g])
            start, end = sorted((pixel(0.0), pixel(0.0 if math.isnan(value) else value)))
            whisker = (pixel(value - error), pixel(value + error)) if error > 0 and not math.isnan(value) else None
            text_x = max(end, whisker[1] if whisker else end, pixel(0.0)) + 6
            bars.append(Bar(s % STYLES, start, y, round(end - start, 1), thick, whisker, texts[s][g], round(text_x, 1)))
            y += thick + gap
        y += pause - gap
    bottom = y - pause + 8
    ticks = _ticks(np.array([pixel(value) for value in tick_values]), tick_texts)
    return Drawing(
        width,
        int(bottom + 44),
        round(left, 1),
        round(right, 1),
        2.0,
        bottom,
        ticks,
        bars=tuple(bars),
        labels=tuple(labels),
        labels_above=above,
        zero=pixel(0.0),
    )


def clean(curve: Curve, log_y: bool, log_x: bool = False) -> tuple[Floats, Floats, int]:
    """Drawable points of a curve as x [N] and y [N], and how many were left out."""
    x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
    fine = np.isfinite(x) & np.isfinite(y)
    if log_y:
        fine &= y > 0
    if log_x:
        fine &= x > 0
    x, y = (np.clip(values[fine], -_LARGEST, _LARGEST) for values in (x, y))
    if log_y:
        y = np.clip(y, 1e-280, 1e280)  # so that the axis, a little longer, stays finite too
    if log_x:
        x = np.clip(x, 1e-280, 1e280)
    return x, y, int(len(fine) - fine.sum())


def running_mean(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Centred mean of a curve [N] over a fortieth of its points, on at most 1,000 places; shorter at the two ends."""
    parts = min(len(x), 1000)
    x, y = (np.array([part.mean() for part in np.array_split(values, parts)]) for values in (x, y))
    window = np.ones(max(3, parts // _SMOOTH_FRACTION) | 1)
    return x, np.convolve(y, window, "same") / np.convolve(np.ones(parts), window, "same")


def number(value: float, digits: int = 4) -> str:
    """A number for a reader, by default of four significant digits: 0.8312, 14,300, 1e-5; a dash for no number."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    if 1000 <= abs(value) < 1e7:
        mantissa, exponent = f"{float(f'{mantissa}e{exponent or 0}'):,.{max(0, digits - 7)}f}", ""
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−")


def numbers(values: Sequence[float]) -> list[str]:
    """Numbers that are compared: as `number`, with common decimals where that hides no small one."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    if not sizes or not 1e-3 <= min(sizes) <= max(sizes) < 1e6:
        return [number(value) for value in values]
    longest = max(len(f"{size:.4g}".partition(".")[2]) for size in sizes)
    digits = min(longest, max(0, 3 - math.floor(math.log10(max(sizes)))))
    if min(sizes) < 10 ** (1 - digits):
        return [number(value) for value in values]
    return [f"{v:,.{digits}f}".replace("-", "−") if math.isfinite(v) else number(v) for v in values]


def _ticks(ats: Floats, texts: Sequence[str]) -> tuple[Tick, ...]:
    return tuple(Tick(round(float(at), 1), text) for at, text in zip(ats, texts, strict=True))


def _bar_texts(values: Floats, errors: Floats) -> list[list[str]]:
    """Texts of the bars [series, groups]; the values share their decimals, an error bar has those of its value."""
    shown = iter(numbers(values.ravel().tolist()))
    texts = []
    for value, error in zip(values.ravel(), errors.ravel(), strict=True):
        text = next(shown)
        digits = len(text.partition(".")[2])
        spread = f"{error:.{digits}f}" if "e" not in text and error >= 10.0**-digits else number(error, 2)
        texts.append("no value" if math.isnan(value) else f"{text} ± {spread}" if error > 0 else text)
    return [list(row) for row in np.array(texts, dtype=object).reshape(values.shape)]


def shorten(text: str, length: int) -> str:
    """A text of at most `length` letters."""
    return text if len(text) <= length else text[: max(1, length - 1)].rstrip() + "…"


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _thin(x: Floats, y: Floats, parts: int) -> tuple[Floats, Floats]:
    """Lowest and highest point of each of `parts` stretches, in order: peaks stay where a pixel holds many points."""
    if len(x) <= 2 * parts:
        return x, y
    chosen: list[int] = []
    for stretch in np.array_split(np.arange(len(x)), parts):
        chosen += sorted({int(stretch[np.argmin(y[stretch])]), int(stretch[np.argmax(y[stretch])])})
    return x[chosen], y[chosen]


def _axis(values: Floats, count: int, log: bool, outward: bool) -> tuple[float, float, list[float], list[str]]:
    """(low, high, ticks, texts) of an axis with about `count` ticks; all but the texts in log10 where `log`.

    `outward` widens the axis to whole ticks.
    """
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-290):  # one point, or a flat line
        margin = 0.3 if log else (abs(high) * 0.1 or 1.0)
        low, high = low - margin, high + margin
    if log:
        margin = 0.04 * (high - low)
        low, high = low - margin, high + margin
        ticks = _log_ticks(low, high, count)
        return low, high, ticks, [number(10**tick) for tick in ticks]
    step = _nice_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if outward:
        low, high = first * step, last * step
    ticks = [
        index * step for index in range(first, last + 1) if low - 1e-9 * step <= index * step <= high + 1e-9 * step
    ]
    return low, high, ticks, _tick_texts(ticks, step)


def _nice_step(rough: float) -> float:
    """Smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Decades, or their 1-2-5 (or nine) parts where the axis is short; in log10."""
    every = max(1, math.ceil((high - low) / (count + 1)))
    decades = range(math.floor(low), math.ceil(high) + 1)
    for parts in ((1,), (1, 2, 5), range(1, 10)):
        ticks = [d + math.log10(part) for d in decades if d % every == 0 for part in parts]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks
    step = _nice_step((10**high - 10**low) / count)  # less than about a third of a decade: as on a linear axis
    return [math.log10(i * step) for i in range(math.ceil(10**low / step), math.floor(10**high / step) + 1)]


def _tick_texts(ticks: Sequence[float], step: float) -> list[str]:
    """Texts with the digits the step needs: 0.25, 1,500, 20k, 3M; powers of ten outside 1e-4 .. 1e12."""
    biggest = max(map(abs, ticks))
    if biggest >= 1e12 or step < 1e-4:
        significant = math.ceil(math.log10(biggest / step)) + 1
        return [number(tick if abs(tick) > step / 2 else 0.0, significant) for tick in ticks]
    scale, suffix = next((s for s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if biggest >= 10 * s[0]), (1.0, ""))
    digits = max(0, math.ceil(-math.log10(step / scale) - 1e-9))
    texts = [f"{tick / scale:,.{digits}f}" for tick in ticks]
    return [(text + suffix if float(text.replace(",", "")) else "0").replace("-", "−") for text in texts]
