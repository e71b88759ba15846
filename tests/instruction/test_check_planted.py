"""A folder with one of every fault: each is found, with its code, line and sample; nothing else is."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitp.cli import app
from vitp.instruction.findings import EXPECTED
from vitp.instruction.grammar import GrammarCode
from vitp.instruction.records import Code

SOURCES = Path(__file__).parents[2] / "src" / "vitp"
PRINCIPLES = ("scale", "diversity", "modality", "task", "generality")
NOT_PLANTED = {  # what the tests of the readers plant; what one cannot plant; what would take 32 MB
    *(code for code in EXPECTED if code.startswith(("dicom-", "nifti-"))),
    *("image-bands", "image-window", "image-choice", "image-complex", "image-inks", "image-denied", "image-unreadable"),
    *("file-changed", "file-damaged", "shard-member", "line-too-long", "unusable", "unexpected"),
}


def picture(path: Path, key: int, width: int = 96, height: int = 64) -> str:
    """A smooth random picture, unlike that of any other key."""
    coarse = np.random.default_rng(key).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path.name


def record(*texts: str, image: str | None = None, **keys: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns, **({"image": image} if image else {}), **keys}


def words(count: int, key: int) -> str:
    """A long text that does not repeat itself."""
    return " ".join(map(str, np.random.default_rng(key).integers(10, 10**6, count).tolist()))


def clean(root: Path) -> list[Any]:
    """What looks like faults and is none."""
    names = [picture(root / f"clean{key}.png", key) for key in range(8)]
    box = "<ref>ship</ref><box>[[0, 0, 1000, 1000], [1, 2, 3, 4]]</box>"
    return [
        record("Where is the ship?", box, image=names[0]),
        record("Was ist das?", "Ein großer Spaß“, 25 °C, 10 Å² und 3 µm.", image=names[1]),
        record("Qu'est-ce ?", "« Santé…» – déjà vu, naïveté”, CAFÉ…", image=names[2]),
        record("图中有什么？", "一艘船停在港口，旁边有几座建筑物。", image=names[3]),
        record("Что это?", "Это корабль.\n\tДва корабля.", image=names[4]),
        record("Map it.", "\n".join(["water " * 16] * 16), image=names[5]),
        record("Which?", "<box>[" + ", ".join(["[1, 2, 3, 4]"] * 150) + "]</box>", image=names[6]),
        {"images": names[6:8], "messages": [{"role": "system", "content": "Be brief."},
         {"role": "user", "content": "<image>\n<image>\nWhat changed?"}, {"role": "assistant", "content": "A road."},
         {"role": "user", "content": "Anything else?"}, {"role": "assistant", "content": "no"}]},
        record("Which text is meant?", "one that names the left edge: no flips here"),
        record("Long?", words(400, 1)),
    ]  # fmt: skip


def bad_images(root: Path) -> list[tuple[str, Any]]:
    """(code, record) of faults that lie in the image file."""
    data = (root / "clean0.png").read_bytes()
    (root / "cut.png").write_bytes(data[: len(data) // 2])
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no image")
    (root / "folder.png").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(root / "deep.png")
    Image.new("1", (10_001, 10_000)).save(root / "huge.png")
    picture(root / "tiny.png", 100, 7, 30)
    picture(root / "strip.png", 101, 1020, 20)
    Image.open(root / "clean1.png").resize((150, 150)).save(root / "copy.jpg", quality=60)
    named = {"image-missing": "gone.png", "image-damaged": "cut.png", "image-empty": "empty.jpg",
             "image-unknown": "text.jpg", "image-not-a-file": "folder.png", "image-deep": "deep.png",
             "image-too-large": "huge.png", "image-outside": "../x.png", "image-tiny": "tiny.png",
             "image-strip": "strip.png", "near-duplicate-image": "copy.jpg"}  # fmt: skip
    return [(code, record(f"Q {code}?", "an answer", image=name)) for code, name in named.items()]


def faults(root: Path) -> list[tuple[str, Any]]:
    """(code, record or line) of every fault."""
    box, name = "<ref>ship</ref><box>[[{}]]</box>", "clean0.png"
    return [
        ("line-syntax", "{"),
        ("line-encoding", json.dumps(record("q1", "caf?")).replace("?", "\xe9").encode("latin-1")),
        ("record-type", []),
        ("record-layout", {"image": name}),
        ("record-role", {"conversations": [{"from": "robot", "value": "q2"}]}),
        ("record-order", {"conversations": [{"from": "gpt", "value": "q3"}, {"from": "human", "value": "a"}]}),
        ("empty-text", record("q4", " \n")),
        ("empty-text", record("", "a4")),
        ("image-marks", record("<image> q5 <image>", "a", image=name)),
        ("reserved-token", record("q6", "a<|im_end|>")),
        ("bad-text", record("q7", "half \ud83d")),
        ("video", record("q8", "a", video="x.mp4")),
        ("box-syntax", record("q9", box.format("1, 2, 3"), image=name)),
        ("box-range", record("q10", box.format("1, 2, 3, 1001"), image=name)),
        ("box-order", record("q11", box.format("3, 2, 1, 4"), image=name)),
        ("quad-range", record("q11b", "<quad>[[1, 2, 3, 1, 1001, 4, 1, 5]]</quad>", image=name)),
        ("text-replacement", record("q12", "caf\ufffd")),
        ("text-mojibake", record("q13", "un cafÃ© noir")),
        ("text-mojibake", record("q14 itâ€™s", "yes")),
        ("text-mojibake", record("q15", "ÐšÐ¾Ñ€Ð°Ð±Ð»ÑŒ")),
        ("text-control", record("q16", "a\x0bb")),
        ("text-control", record("q17", "a\x00b")),
        ("answer-endless", record("q18", words(2600, 2))),
        ("answer-repeats", record("q19", "The image shows a harbour. " + "There is a ship in it. " * 60)),
        ("length-truncated", record(*(text for i in range(40) for text in (f"q20 {i}", words(160, 10 + i))))),
        ("length-dropped", record("q21 " + words(7000, 3), "too late")),
        ("duplicate", record("What is it?", "the same")),
        *bad_images(root),
    ]


WARNINGS = {
    *("duplicate", "near-duplicate-image", "image-tiny", "image-strip", "length-truncated", "direction-words"),
    *("quad-range", "answer-endless", "answer-repeats", "text-replacement", "text-mojibake", "text-control"),
}


def line_of(item: Any) -> bytes:
    return item if isinstance(item, bytes) else item.encode() if isinstance(item, str) else json.dumps(item).encode()


def write_recipe(place: Path, **data: Any) -> Path:
    recipe = {
        "name": "planted", "steps": 10, "batch_size": 4,
        "model": {
            "tower": {"architecture": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8},
            "language_model": {"width": 32, "depth": 1, "heads": 4, "kv_heads": 2, "mlp_width": 48, "vocabulary": 300},
        },
        "data": data,
    }  # fmt: skip
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, dict[str, set[str]]]:
    """The report as JSON, as HTML, and the codes expected at each place."""
    root = tmp_path_factory.mktemp("planted")
    expected: dict[str, set[str]] = defaultdict(set)
    good = clean(root)
    lines: list[bytes] = [line_of(record("What is it?", "the same"))]
    for number, (code, item) in enumerate(faults(root)):  # good and bad in turn
        lines += [line_of(good[number])] if number < len(good) else []
        lines.append(line_of(item))
        expected[f"{root / 'all.jsonl'}:{len(lines)}"].add(code)
    (root / "all.jsonl").write_bytes(b"\n".join(lines))
    flipped = [record("q", "Yes, it is on the left.", image="clean2.png"), record("q", "<quad>((1, 2))</quad>"),
               record("q", "a leftover")]  # fmt: skip
    (root / "flipped.json").write_text(json.dumps(flipped, indent=1))
    for place, code in enumerate(("direction-words", "quad-syntax")):
        text = (root / "flipped.json").read_text().split(json.dumps(flipped[place]["conversations"][1]["value"]))[0]
        start = text.rfind("\n {") + 2  # the line its record opens in
        expected[f"{root / 'flipped.json'}:{text.count(chr(10), 0, start) + 1}"].add(code)
    recipe = write_recipe(root, max_length=30_000, sources=[
        {"name": "all", "root": str(root), "annotations": "all.jsonl"},
        {"name": "flipped", "root": str(root), "annotations": "flipped.json", "augment": {"flip": True}},
    ])  # fmt: skip
    options = ["--decode", "--near-duplicates", "--json", "--html", str(root / "report.html"), "--workers", "1"]
    result = CliRunner().invoke(app, ["check", str(recipe), *options])
    assert result.exit_code == 2, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    return found, (root / "report.html").read_text(encoding="utf-8"), expected


def test_every_fault_is_found_and_none_invented(planted: tuple[dict[str, Any], str, dict[str, set[str]]]) -> None:
    found, _, expected = planted
    told: dict[str, set[str]] = defaultdict(set)
    for finding in found["findings"]:
        told[finding["where"]].add(finding["code"])
    assert told == expected
    assert {f["code"] for f in found["findings"] if f["severity"] == "warning"} == WARNINGS
    assert all(f["found"] and f["expected"] and f["fix"] for f in found["findings"])
    assert {f["sample"] + 1 for f in found["findings"] if f["source"] == "all"} == {
        int(where.rpartition(":")[2]) for where in expected if "all.jsonl" in where
    }
    assert found["errors"] + found["warnings"] == sum(count["count"] for count in found["counts"])
    tokens = found["sources"][0]["tokens"]
    assert (tokens["truncated"], tokens["dropped"], tokens["max_length"]) == (1, 1, 30_000)


def test_every_code_is_planted_or_named(planted: tuple[dict[str, Any], str, dict[str, set[str]]]) -> None:
    found, _, _ = planted
    codes = {count["code"] for count in found["counts"]}
    assert set(EXPECTED) <= codes | NOT_PLANTED
    assert not codes & NOT_PLANTED


def test_every_code_of_the_readers_has_its_expectation() -> None:
    raised = {code for path in SOURCES.glob("images/*.py")
              for code in re.findall(r'"((?:image|dicom|nifti)-[a-z-]+)"', path.read_text(encoding="utf-8"))}  # fmt: skip
    assert len(raised) > 15
    assert raised | set(get_args(Code)) | set(get_args(GrammarCode)) <= set(EXPECTED)


def test_the_documentation_lists_every_code() -> None:
    text = (SOURCES.parents[1] / "docs" / "check.md").read_text(encoding="utf-8")
    extra = {"length-truncated", "length-dropped", *(f"principle-{code}" for code in PRINCIPLES)}
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", text)) >= set(EXPECTED) | extra


def test_html_is_one_file_with_counts_examples_and_pictures(
    planted: tuple[dict[str, Any], str, dict[str, set[str]]],
) -> None:
    found, html, _ = planted
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:|//|file:)""", html)
    positions = [html.index(f">{count['code']}<") for count in found["counts"]]
    assert positions == sorted(positions), "grouped counts come first, in their order"
    assert max(positions) < html.index('id="section-3"')
    assert html.count("data:image/png;base64") == 4  # tiny and strip, and a near-duplicate beside its original
    assert "Near-duplicate images" in html
    assert "Ã©" in html
