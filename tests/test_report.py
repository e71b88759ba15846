"""The HTML report: well formed, self-contained, safe with hostile text, honest about what it leaves out."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.errors import OutputError
from vitp.report.charts import clean, draw_bars, draw_lines, number, numbers, running_mean
from vitp.report.html import (
    BarChart,
    BarSeries,
    Commands,
    Curve,
    Dialogue,
    DialogueItem,
    Facts,
    ImageGrid,
    LineChart,
    Picture,
    Section,
    Table,
    Text,
    colour_mask,
    overlay,
    write_report,
)

VOID = {"meta", "img", "link", "br", "hr", "input"}
EVIL = "<script>alert('x')</script>\"&'<img src=x onerror=y>"


class Page(HTMLParser):
    """Parses a page, checks that its tags nest, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(tmp_path: Path, *sections: Section, title: str = "Title", subtitle: str = "Subtitle") -> Page:
    path = write_report(tmp_path / "report.html", title, subtitle, sections)
    return Page(path.read_text(encoding="utf-8"))


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def everything(words: str = "words") -> list[Section]:
    picture = Picture(colours(5, 7), words, words)
    return [
        Facts([(words, words)]),
        Text(words, [words, words]),
        LineChart(words, words, words, [Curve(words, range(500), [1.0] * 499 + [math.nan])], words, log_y=True),
        BarChart(words, words, [words, "b"], [BarSeries(words, [1, -2], [0.1, 0.2])], words),
        Table(words, [words, "n"], [[words, 1.5], [words, 2]], words, 1),
        ImageGrid(words, [[picture, picture], [picture]], [words], words),
        Dialogue(words, [DialogueItem(picture, words, words, words, False), DialogueItem(None, "q", "e", "a")], words),
        Commands(words, [(words, words), ("vitp demo", "")]),
    ]


def test_the_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    parsed = page(tmp_path, *everything())
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert raw.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", raw)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "background"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "#"))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_contents_link_to_every_titled_section(tmp_path: Path) -> None:
    parsed = page(tmp_path, Facts([("a", "1")]), Text("First", ["x"]), Table("Second", ["c"], [["d"]]))
    anchors = {attributes["id"] for attributes in parsed.find("section")}
    assert [link["href"] for link in parsed.find("a")] == ["#section-2", "#section-3"]
    assert anchors == {"section-2", "section-3"}


def test_hostile_text_stays_text_everywhere(tmp_path: Path) -> None:
    parsed = page(tmp_path, *everything(EVIL), title=EVIL, subtitle=EVIL)
    harmless = page(tmp_path, *everything())
    assert [tag for tag, _ in parsed.tags if tag != "title"] == [tag for tag, _ in harmless.tags if tag != "title"]
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert EVIL in parsed.text
    assert {image["alt"] for image in parsed.find("img")} == {EVIL}


def test_a_file_name_that_is_not_unicode_does_not_stop_the_report(tmp_path: Path) -> None:
    assert "caf? .tif" in page(tmp_path, Text("t", [b"caf\xe9 .tif".decode("utf-8", "surrogateescape")])).text


@pytest.mark.parametrize("shape", [(3, 5, 3), (4, 6), (1, 1, 3), (300, 200, 3)])
def test_pictures_decode_to_the_same_pixels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    (image,) = page(tmp_path, ImageGrid("g", [[Picture(pixels[::1, ::-1], "noise")]])).find("img")
    encoded = (image["src"] or "").removeprefix("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), pixels[:, ::-1])
    assert int(image["width"] or 0) >= 160
    assert int(image["width"] or 0) * shape[0] == int(image["height"] or 0) * shape[1]
    assert (image.get("class") == "enlarged") == (shape[1] < 160)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8)])
def test_pictures_of_the_wrong_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="picture 'p'"):
        Picture(pixels, "p")


def numbers_of(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def test_curves_go_where_their_numbers_are() -> None:
    drawing = draw_lines(LineChart("t", "x", "y", [Curve("c", [0, 5, 10], [0.0, 1.0, 0.5])]), 400, 300)
    assert drawing is not None
    (stroke,) = drawing.strokes
    (x0, y0), (x1, y1), (x2, y2) = numbers_of(stroke.points)
    assert (x0, x2) == (drawing.left, drawing.right)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert (y0, y1) == (drawing.bottom, drawing.top)
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)
    assert [tick.text for tick in drawing.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [tick.text for tick in drawing.x_ticks] == ["0", "5", "10"]


def test_a_logarithmic_axis_spaces_decades_evenly() -> None:
    drawing = draw_lines(LineChart("t", "x", "y", [Curve("c", [0, 1, 2], [1.0, 0.1, 0.01])], log_y=True), 400, 300)
    assert drawing is not None
    heights = [y for _, y in numbers_of(drawing.strokes[0].points)]
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0], abs=0.11)
    assert [tick.at for tick in drawing.y_ticks] == pytest.approx(heights[::-1], abs=0.11)


@pytest.mark.parametrize(
    ("y", "left_out"),
    [([math.nan, 1, math.inf, 2, -math.inf], 3), ([], 0), ([math.nan], 1), ([3.0], 0), ([2.0] * 5, 0), ([0.0] * 3, 0),
     ([1e308, -1e308], 0), ([5e-324, 1e300], 0), ([1e9, 1e9 + 1e-6], 0), ([-0.0, 1e-12], 0)],
)  # fmt: skip
@pytest.mark.parametrize("log_y", [False, True])
def test_odd_curves_stay_inside_the_plot(tmp_path: Path, y: list[float], left_out: int, log_y: bool) -> None:
    chart = LineChart("t", "x", "y", [Curve("odd", range(len(y)), y)], log_y=log_y)
    drawable = [value for value in y if math.isfinite(value) and (value > 0 or not log_y)]
    parsed = page(tmp_path, chart)
    drawing = draw_lines(chart, 344, 270)
    assert (drawing is None) == (not drawable)
    if drawing is None:
        assert "Nothing to draw" in parsed.text
    else:
        points = [(dot.x, dot.y) for dot in drawing.dots]
        assert len(points) == len(drawable)
        assert all(drawing.left <= x <= drawing.right and drawing.top <= y <= drawing.bottom for x, y in points)
        texts = [tick.text for tick in drawing.y_ticks]
        assert 2 <= len(set(texts)) == len(texts) <= 12
        assert not re.search(r"nan|inf", " ".join(filter(None, (a.get("points") for a in parsed.find("polyline")))))
    missing = len(y) - len(drawable)
    assert (f"odd: {missing} of {len(y)} points left out" in parsed.text) == (missing > 0)
    assert log_y or missing == left_out


def test_long_curves_are_thinned_but_keep_their_peaks_and_show_a_mean(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(1.0, 0.1, 50_000)
    y[31_234] = 9.0
    y[40_001] = -7.0
    chart = LineChart("t", "step", "loss", [Curve("c", np.arange(50_000).tolist(), y.tolist())])
    drawing = draw_lines(chart, 736, 330)
    assert drawing is not None
    faint, strong = drawing.strokes
    assert (faint.faint, strong.faint) == (True, False)
    raw, mean = numbers_of(faint.points), numbers_of(strong.points)
    assert len(raw) <= 2 * 736

    def at(value: float) -> float:  # all y ticks are two apart
        by_text = {tick.text: tick.at for tick in drawing.y_ticks}
        return by_text["0"] + (by_text["10"] - by_text["0"]) * value / 10

    assert min(v for _, v in raw) == pytest.approx(at(9), abs=0.2)
    assert max(v for _, v in raw) == pytest.approx(at(-7), abs=0.2)
    assert max(abs(v - at(1.0)) for _, v in mean) < abs(at(1.0) - at(1.1))
    assert "running mean" in page(tmp_path, chart).text


def test_the_running_mean_neither_lags_nor_droops_at_the_ends() -> None:
    x = np.arange(3000.0)
    mean_x, mean_y = running_mean(x, 2 * x + 5)
    inner = slice(20, -20)
    np.testing.assert_allclose(mean_y[inner], 2 * mean_x[inner] + 5)
    np.testing.assert_allclose(running_mean(x, np.full(3000, 3.0))[1], 3.0)


def test_curve_lengths_must_agree() -> None:
    with pytest.raises(AssertionError, match="curve 'c': 2 x values, 1 y values"):
        Curve("c", [1, 2], [1])
    x, y, left_out = clean(Curve("c", [1, math.nan, 3], [1, 2, math.inf]), log_y=False)
    assert (x.tolist(), y.tolist(), left_out) == ([1.0], [1.0], 2)


@pytest.mark.parametrize("width", [344, 736])
def test_bars_are_proportional_and_carry_their_errors(width: int) -> None:
    chart = BarChart(
        "t", "score", ["one", "two"], [BarSeries("a", [40, 80.5], [4, 2]), BarSeries("b", [math.nan, -20])]
    )
    drawing = draw_bars(chart, width)
    assert drawing is not None
    assert drawing.zero is not None
    a_one, b_one, a_two, b_two = drawing.bars
    assert [bar.text for bar in drawing.bars] == ["40.0 ± 4.0", "no value", "80.5 ± 2.0", "−20.0"]
    assert a_two.width / a_one.width == pytest.approx(80.5 / 40, rel=0.01)
    assert a_one.x == drawing.zero
    assert b_two.x + b_two.width == pytest.approx(drawing.zero, abs=0.1)
    assert b_two.width / a_one.width == pytest.approx(0.5, rel=0.01)
    assert b_one.width == 0
    assert b_one.error is None
    assert a_one.error is not None
    assert sum(a_one.error) / 2 == pytest.approx(a_one.x + a_one.width, abs=0.1)
    assert (a_one.error[1] - a_one.error[0]) / a_one.width == pytest.approx(8 / 40, rel=0.02)
    rows = [bar.y for bar in drawing.bars]
    assert rows == sorted(rows)
    assert all(bar.text_x + 7 * len(bar.text) <= width for bar in drawing.bars)


def test_odd_bar_charts(tmp_path: Path) -> None:
    assert draw_bars(BarChart("t", "y", [], []), 344) is None
    assert draw_bars(BarChart("t", "y", ["g"], [BarSeries("s", [math.inf])]), 344) is None
    assert draw_bars(BarChart("t", "y", ["g"], [BarSeries("s", [0.0], [math.nan])]), 344) is not None
    huge = draw_bars(BarChart("t", "y", ["g" * 99], [BarSeries("s", [1e308], [1e308])]), 736)
    assert huge is not None
    assert all(math.isfinite(value) for bar in huge.bars for value in (bar.x, bar.width, bar.text_x))
    assert huge.labels[0].text.endswith("…")
    assert "Nothing to draw" in page(tmp_path, BarChart("t", "y", [], [])).text
    with pytest.raises(AssertionError, match="series 's'"):
        BarChart("t", "y", ["g", "h"], [BarSeries("s", [1.0])])


def test_charts_are_told_in_words(tmp_path: Path) -> None:
    parsed = page(
        tmp_path,
        LineChart("Loss", "step", "nats", [Curve("train", [1, 2, 3], [4.0, 2.5, 3.0])]),
        BarChart("Score", "mIoU", ["road"], [BarSeries("ours", [0.5])]),
    )
    labels = [svg["aria-label"] for svg in parsed.find("svg") if svg.get("role") == "img"]
    assert labels[0] == "Loss. Line chart of nats over step. train: from 4 at 1 to 3 at 3, between 2.5 and 4"
    assert labels[2] == "Score. Bar chart of mIoU. ours: road 0.5"


def test_tables_align_numbers_and_mark_the_chosen_row(tmp_path: Path) -> None:
    rows = [["ours", 72.31, 1200, True], ["theirs", np.float32(65.2), np.int64(-3), False], ["none", math.nan, 0, True]]
    parsed = page(tmp_path, Table("t", ["name", "mIoU", "steps", "ok"], rows, highlight_row=0))
    assert "ours (highlighted) 72.31 1,200 yes theirs 65.20 −3 no none – 0 yes" in parsed.text
    heads = [head for head in parsed.find("th") if head["scope"] == "col"]
    assert [head.get("class") for head in heads] == [None, "number", "number", None]
    assert [row.get("class") for row in parsed.find("tr")] == [None, "chosen", None, None]
    with pytest.raises(AssertionError, match="table 't': 1 cells, 2 columns"):
        Table("t", ["a", "b"], [["x"]])


def test_an_empty_table_and_an_empty_report_are_fine(tmp_path: Path) -> None:
    page(tmp_path, Table("t", ["a"], []), ImageGrid("g", []), Dialogue("d", []), Commands("c", []), Facts([]))
    assert not page(tmp_path, subtitle="").find("nav")


def test_answers_are_judged_in_words_not_only_in_colour(tmp_path: Path) -> None:
    items = [DialogueItem(None, "q", "e", f"answer {i}", judged) for i, judged in enumerate((True, False, None))]
    text = page(tmp_path, Dialogue("d", items)).text
    assert "answer 0 ✓ correct" in text
    assert "answer 1 ✗ wrong" in text
    assert text.count("✓") == text.count("✗") == 1


def test_commands_copy_as_they_are(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "r.html",
        "t",
        "",
        [Commands("c", [("vitp demo", "all\nof it"), ("vitp env a=1", ""), ("x > y", "")])],
    )
    block = re.search(r"<pre.*?><code>(.*?)</code>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    shown = "".join(Page(f"<p>{block[1]}</p>").words)
    assert shown == "# all of it\nvitp demo\n\nvitp env a=1\n\nx > y"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.83124, "0.8312"), (71.3, "71.3"), (14300.0, "14,300"), (1e-5, "1e−5"), (3.14159e8, "3.142e8"), (-2.5, "−2.5"),
     (math.nan, "–"), (-math.inf, "−∞"), (0.0, "0"), (999.96, "1000"), (1234567.0, "1,235,000")],
)  # fmt: skip
def test_numbers_read_well(value: float, text: str) -> None:
    assert number(value) == text


def test_compared_numbers_share_decimals_unless_that_hides_one() -> None:
    assert numbers([72.31, 65.2, 55.0, math.nan]) == ["72.31", "65.20", "55.00", "–"]
    assert numbers([63.6, 0.00012]) == ["63.6", "0.00012"]
    assert numbers([66.0, 80.0]) == ["66", "80"]
    assert numbers([]) == []


def test_overlay_mixes_known_classes_only() -> None:
    image = colours(4, 5)
    mask = np.array([[0, 1, 255, -1, 2]] * 4)
    palette = [(0, 0, 0), (200, 100, 50)]
    mixed = overlay(image, mask, palette, opacity=0.25)
    np.testing.assert_array_equal(mixed[:, 2:], image[:, 2:])
    expected = np.rint(image[:, 1] * 0.75 + np.array([200, 100, 50]) * 0.25)
    np.testing.assert_array_equal(mixed[:, 1], expected)
    np.testing.assert_array_equal(overlay(image, mask, palette, opacity=0.0), image)
    np.testing.assert_array_equal(overlay(image, mask, palette, 1.0)[:, :2], colour_mask(mask, palette)[:, :2])
    with pytest.raises(AssertionError, match="differ"):
        overlay(image, mask[:2], palette)


def test_colour_mask_shows_strangers_in_grey() -> None:
    shown = colour_mask(np.array([[0, 1], [7, -1]], dtype=np.int16), [(1, 2, 3), (4, 5, 6)])
    assert shown.tolist() == [[[1, 2, 3], [4, 5, 6]], [[128] * 3, [128] * 3]]
    assert shown.dtype == np.uint8
    ignored = colour_mask(np.array([[255]], dtype=np.uint8), [(9, 9, 9)])
    assert ignored.tolist() == [[[128, 128, 128]]]


def test_the_file_is_written_atomically_and_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path / "new" / "report.html", "t", "s", everything())
    first = path.read_bytes()
    assert write_report(path, "t", "s", everything()).read_bytes() == first

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"no space left to write .*report\.html"):
        write_report(path, "other", "s", [])
    assert path.read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_of_wcag_in_light_and_dark(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", "t", "", [])
    blocks = re.findall(r":root \{(.*?)\}", (tmp_path / "r.html").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        named = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))

        def contrast(one: str, two: str, named: dict[str, str] = named) -> float:
            dark, light = sorted((luminance(named[one]), luminance(named[two])))
            return (light + 0.05) / (dark + 0.05)

        for name in ("ink", "soft", "link", "right", "wrong"):  # 1.4.3: text, 4.5 to 1
            assert contrast(name, "paper") >= 4.5, name
        assert min(contrast("soft", "tint"), contrast("ink", "mark")) >= 4.5
        assert all(contrast(f"s{i}", "paper") >= 3 for i in range(6))  # 1.4.11: graphics, 3 to 1
