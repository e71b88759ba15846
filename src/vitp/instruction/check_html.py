"""The report of `vitp check` as one HTML file: counts first, then what the data holds, then examples with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.errors import VitpError
from vitp.images.raster import RasterConfig
from vitp.images.read import ImageConfig, read_image
from vitp.instruction.check_report import CheckReport
from vitp.instruction.findings import Finding
from vitp.instruction.leakage import LeakReport
from vitp.instruction.principles import Principles, modalities_of
from vitp.instruction.source import SourceConfig
from vitp.instruction.statistics import QUANTILES, SourceStats
from vitp.report.charts import STYLES
from vitp.report.html import (
    BarChart,
    BarSeries,
    Commands,
    Facts,
    ImageGrid,
    Picture,
    Section,
    Table,
    Text,
    write_report,
)

_EXAMPLES = 10  # of each code
_PAIRS = 12  # pictures side by side
_PICTURES = 16  # of images that findings name
_SIDE = 224  # pixels of the longer side of an embedded picture
_SMALL = 64  # pixels; smaller pictures are shown in a square of this side
_ANY = ImageConfig(raster=RasterConfig())  # downstream images: no recipe says how to scale them


def write_check_report(
    path: Path, report: CheckReport, sources: Sequence[SourceConfig], recipe: str, leaks: LeakReport | None = None
) -> Path:
    """Write the report atomically and return its path.

    Args:
        path: the HTML file.
        report: of `vitp.instruction.check.check_sources`, in the order of `sources`.
        sources: the recipe's.
        recipe: its name or file, for the title.
        leaks: what `--against` found.

    Raises:
        OutputError: the file cannot be written.
    """
    configs = {config.name: config for config in sources}
    sections: list[Section] = [_facts(report, leaks), _counts(report)]
    if report.notes:
        sections.append(Text("Not checked", report.notes))
    sections += [_sources(report.sources, configs), *_answers(report.sources), *_histogram(report.sources)]
    sections += _lengths(report.sources)
    if report.principles is not None:
        sections += _principles(report.principles)
    sections.append(_scripts(report.sources))
    sections += _examples(report)
    sections += _pictures(report, configs)
    sections += _near_duplicates(report, configs)
    if leaks is not None:
        sections += _leaks(leaks)
    sections.append(_commands(recipe, report, leaks))
    return write_report(path, "What is in the instruction data, and what is wrong with it", recipe, sections)


def _facts(report: CheckReport, leaks: LeakReport | None) -> Facts:
    items = [
        ("samples", f"{sum(stats.samples for stats in report.sources):,}"),
        ("of them unusable", f"{len(report.bad):,}"),
        ("errors", f"{report.count('error'):,}"),
        ("warnings", f"{report.count('warning'):,}"),
    ]
    measured, truncated, dropped = report.length_shares()
    if measured:
        items.append(("truncated / dropped for length", f"{truncated / measured:.1%} / {dropped / measured:.1%}"))
    if leaks is not None:
        items.append(("downstream images seen", f"{leaks.leaked:,} of {leaks.against:,}"))
    return Facts(items)


def _counts(report: CheckReport) -> Table | Text:
    rows: list[list[str | float | int]] = []
    for severity, code, number in report.grouped():
        first = report.examples(code, 1)[0]
        rows.append([code, severity, number, first.expected, first.where])
    if not rows:
        return Text("Findings", ["None: every sample can be used, and nothing looks wrong."])
    caption = "An error makes its sample unusable; a warning does not. Examples follow below."
    return Table("Findings", ["code", "severity", "count", "expected", "first at"], rows, caption)


def _sources(stats: Sequence[SourceStats], configs: Mapping[str, SourceConfig]) -> Table:
    rows: list[list[str | float | int]] = []
    for held in stats:
        config = configs[held.name]
        sizes = "–"
        if held.smallest_image and held.largest_image:
            sizes = "{}×{} to {}×{}".format(*held.smallest_image, *held.largest_image)
        declared = [*modalities_of(config.modality), *(["general"] if config.domain == "general" else [])]
        rows.append(
            [
                held.name,
                held.samples,
                held.usable,
                held.distinct_images,
                sizes,
                config.weight,
                ", ".join(declared) or "–",
            ]
        )
    columns = ["source", "samples", "usable", "images", "pixels", "weight", "declared as"]
    return Table("Sources", columns, rows)


def _answers(stats: Sequence[SourceStats]) -> Iterator[Table]:
    rows = [[s.name, s.answers, *(s.answer_chars.get(q, "–") for q in QUANTILES)] for s in stats]
    yield Table("Answers", ["source", "answers", *QUANTILES], rows, "Quantiles of the number of characters.")
    kinds = list(dict.fromkeys(kind for s in stats for kind in s.kinds))
    caption = "A short answer has at most five words."
    yield Table(
        "Answers by their look",
        ["source", *kinds],
        [[s.name, *(s.kinds.get(k, 0) for k in kinds)] for s in stats],
        caption,
    )


def _histogram(stats: Sequence[SourceStats]) -> Iterator[BarChart]:
    """Answers by length: a series for each source, or one for all where there are many."""
    bins = {name: int(name.partition("–")[0].replace(",", "")) for s in stats for name in s.answer_bins}
    groups = [str(name) for name in sorted(bins, key=bins.__getitem__)]
    if not groups:
        return
    series = [BarSeries(s.name, [_percent(s.answer_bins.get(g, 0), s.answers) for g in groups]) for s in stats]
    if len(series) > STYLES:
        answers = sum(s.answers for s in stats)
        together = [_percent(sum(s.answer_bins.get(g, 0) for s in stats), answers) for g in groups]
        series = [BarSeries("all sources", together)]
    yield BarChart("Answers by length in characters", "share of the source's answers, %", groups, series)


def _percent(part: int, whole: int) -> float:
    return round(100 * part / max(1, whole), 2)


def _lengths(stats: Sequence[SourceStats]) -> Iterator[Table]:
    known = [(s.name, s.tokens) for s in stats if s.tokens is not None]
    if not known:
        return
    rows = [
        [name, t.measured, _percent(t.truncated, t.measured), _percent(t.dropped, t.measured),
         *(t.quantiles.get(q, "–") for q in ("median", "p95", "p99", "max"))]
        for name, t in known
    ]  # fmt: skip
    columns = ["source", "samples", "truncated, %", "dropped, %", "median", "95 %", "99 %", "longest"]
    caption = f"At {known[0][1].max_length:,} tokens (data.max_length), visual tokens before dropping included. "
    caption += "The quantiles are of evenly taken samples, the shares of all."
    yield Table("Samples by length in tokens", columns, rows, caption)


def _principles(held: Principles) -> Iterator[Section]:
    wanted = ", ".join([*held.downstream, *held.downstream_modalities])
    judged = f"Judged for {wanted}." if wanted else "Declare data.downstream to have the mixture judged."
    caption = f"Visual Instruction Pretraining, section 3.3. Shares are of the samples of an epoch. {judged}"
    yield Table("Recipe principles", ["principle", "the mixture"], held.rows(), caption)
    if held.tasks:
        names = sorted(held.tasks, key=lambda task: -held.tasks[task])
        shares = [round(100 * held.tasks[name], 2) for name in names]
        yield BarChart("Tasks", "share of answers, %", names, [BarSeries("answers", shares)])
    modalities = {**held.modalities, **({"not declared": held.undeclared} if held.undeclared else {})}
    if modalities:
        names = sorted(modalities, key=lambda name: -modalities[name])
        shares = [round(100 * modalities[name], 2) for name in names]
        note = "A source that declares several modalities counts for each of them."
        yield BarChart("Modalities", "share of samples, %", names, [BarSeries("samples", shares)], note)


def _scripts(stats: Sequence[SourceStats]) -> Table:
    names = list(dict.fromkeys(script for s in stats for script in s.scripts))
    rows = [[s.name, *(f"{s.scripts.get(name, 0):.2%}" for name in names)] for s in stats]
    caption = "Share of the letters of questions and answers, by Unicode block."
    return Table("Scripts", ["source", *names], rows, caption)


def _examples(report: CheckReport) -> Iterator[Table]:
    """Errors and warnings one by one, the first of each code."""
    for wanted, title in (("error", "Errors, one by one"), ("warning", "Warnings, one by one")):
        rows, more = [], 0
        for severity, code, number in report.grouped():
            shown = report.examples(code, _EXAMPLES) if severity == wanted else []
            rows += [[f.code, _place(f), f.found, f.fix] for f in shown]
            more += number - len(shown) if shown else 0
        caption = "Samples count from 0 in their source; what was expected stands under Findings."
        if more:
            caption += f" Up to {_EXAMPLES} of each code are shown; `vitp check --json` lists the other {more:,}."
        if rows:
            yield Table(title, ["code", "place", "found", "fix"], rows, caption)


def _place(finding: Finding) -> str:
    short = _name(finding.where)
    return short if finding.sample is None else f"{short}, sample {finding.sample}"


def _pictures(report: CheckReport, configs: Mapping[str, SourceConfig]) -> Iterator[ImageGrid]:
    """Images that findings name, as far as they can be shown; copies come in pairs further below."""
    named = {f.image: f for f in report.findings if f.image and f.code != "near-duplicate-image"}
    shown = []
    for image, finding in named.items():
        picture = _picture(Path(image), _config(finding, configs), f"{finding.code}: {_name(image)}")
        if picture is not None:
            shown.append(picture)
        if len(shown) == _PICTURES:
            break
    if shown:
        rows = [shown[i : i + 4] for i in range(0, len(shown), 4)]
        yield ImageGrid("Images that findings name", rows, caption="Unreadable ones cannot be shown.")


def _near_duplicates(report: CheckReport, configs: Mapping[str, SourceConfig]) -> Iterator[ImageGrid]:
    if not report.near_duplicates:
        return
    of_image = {f.image: f for f in report.findings if f.code == "near-duplicate-image"}
    rows = []
    for pair in report.near_duplicates[:_PAIRS]:
        finding = of_image.get(pair.image)
        images = _ANY if finding is None else _config(finding, configs)
        rows.append(_pair((Path(pair.image), images), (Path(pair.found_in), images), pair.how()))
    caption = f"{len(rows)} of {len(report.near_duplicates):,} pairs."
    yield ImageGrid("Near-duplicate images", [row for row in rows if row], ["image", "shows the same as"], caption)


def _leaks(leaks: LeakReport) -> Iterator[Section]:
    yield Text("Leakage", [line.strip() for line in leaks.summary()])
    rows = [
        _pair((Path(pair.image), _ANY), (Path(pair.found_in), _ANY), pair.how()) for pair in leaks.overlaps[:_PAIRS]
    ]
    if rows:
        caption = f"{len(rows)} of {len(leaks.overlaps):,} pairs."
        yield ImageGrid("Leaked images", [row for row in rows if row], ["pretraining", "downstream"], caption)


def _pair(left: tuple[Path, ImageConfig], right: tuple[Path, ImageConfig], how: str) -> list[Picture]:
    """Two pictures, or nothing where one cannot be shown."""
    one = _picture(*left, f"{_name(str(left[0]))}: {how}")
    other = _picture(*right, _name(str(right[0])))
    return [] if one is None or other is None else [one, other]


def _config(finding: Finding, configs: Mapping[str, SourceConfig]) -> ImageConfig:
    return configs[finding.source].images if finding.source in configs else _ANY


def _name(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _picture(path: Path, images: ImageConfig, label: str) -> Picture | None:
    """A small version of an image file, None where it cannot be read."""
    try:
        pixels = read_image(path, images)
    except VitpError:
        return None
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    image.thumbnail((_SIDE, _SIDE))
    if max(image.size) > 2 * min(image.size) or max(image.size) < _SMALL:  # strips and dots, on a grey square
        side = max(*image.size, _SMALL)
        square = Image.new("RGB", (side, side), (128, 128, 128))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return Picture(np.asarray(image), alt=label, label=label)


def _commands(recipe: str, report: CheckReport, leaks: LeakReport | None) -> Commands:
    lines = [(f"vitp check {recipe} --json", "every finding, as one line of JSON"),
             (f"vitp check {recipe} --decode", "decode every image in full, which finds damaged ones")]  # fmt: skip
    if report.near_duplicates is None:
        lines.append((f"vitp check {recipe} --near-duplicates", "images that show the same as others"))
    if leaks is None:
        lines.append((f"vitp check {recipe} --against FOLDER", "downstream images among those pretrained on"))
    return Commands("Go on", [*lines, (f"vitp pretrain {recipe}", "train on it")])
