"""The check: every planted mistake is found at its line, nothing stops it, and clean data is called clean."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp.errors import DataError
from vitp.instruction import check as check_module
from vitp.instruction import check_text
from vitp.instruction.check import CheckOptions
from vitp.instruction.check import check_sources as check
from vitp.instruction.source import AugmentConfig, Source, SourceConfig
from vitp.instruction.statistics import kind_of

DATA = Path(__file__).parents[1] / "../shared/data"


def record(question: str, answer: str, *images: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "image": list(images)}


def picture(path: Path, width: int = 32, height: int = 20) -> str:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.name


def source(root: Path, lines: list[Any], name: str = "s", **options: Any) -> Source:
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines)
    (root / f"{name}.jsonl").write_text(text)
    return Source(SourceConfig(name=name, root=root, annotations=Path(f"{name}.jsonl"), **options))


def planted(root: Path) -> Source:
    """One mistake a line, good records between."""
    good = picture(root / "good.png")
    data = (root / "good.png").read_bytes()
    (root / "cut.png").write_bytes(data[: len(data) // 2])
    (root / "empty.jpg").touch()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(root / "deep.png")
    picture(root / "tiny.png", 7, 30)
    picture(root / "strip.png", 1020, 20)
    box = "<ref>ship</ref><box>[[{}]]</box>"
    return source(root, [
        record("1", "good", good),
        "{",
        record("3", "missing", "gone.png"),
        record("4", "cut", "cut.png"),
        record("5", "empty", "empty.jpg"),
        record("6", "deep", "deep.png"),
        record("7", "outside", "../x.png"),
        record("8", "tiny", "tiny.png"),
        record("9", "strip", "strip.png"),
        record("10", box.format("1, 2, 3"), good),
        record("11", box.format("1, 2, 3, 1001"), good),
        record("12", box.format("3, 2, 1, 4"), good),
        record("13", box.format("1, 2, 3, 4"), good),
        record("1", "good", good),
        record("15", "", good),
        record("<image> 16 <image>", "two of one", good),
    ])  # fmt: skip


EXPECTED = {
    2: "line-syntax", 3: "image-missing", 5: "image-empty", 6: "image-deep", 7: "image-outside", 10: "box-syntax",
    11: "box-range", 12: "box-order", 15: "empty-text", 16: "image-marks",
}  # fmt: skip
WARNED = {8: "image-tiny", 9: "image-strip", 14: "duplicate"}


def test_every_planted_mistake_is_found_at_its_line(tmp_path: Path) -> None:
    report = check([planted(tmp_path)])
    assert {int(f.where.rpartition(":")[2]): f.code for f in report.errors} == EXPECTED
    warnings = [f for f in report.findings if f.severity == "warning"]
    assert {int(f.where.rpartition(":")[2]): f.code for f in warnings} == WARNED
    assert report.bad == {(0, line - 1) for line in EXPECTED}
    assert all(f.found and f.expected and f.fix and f.source == "s" for f in report.findings)
    assert all(f.where.startswith(str(tmp_path / "s.jsonl")) for f in report.findings)
    assert "gone.png" in next(f.found for f in report.errors if f.code == "image-missing")
    assert next(f for f in warnings if f.code == "duplicate").found.endswith("s.jsonl:1")


def test_decoding_finds_what_the_header_hides(tmp_path: Path) -> None:
    found = planted(tmp_path)
    assert check([found], CheckOptions(decode=True)).bad - check([found]).bad == {(0, 3)}


def test_the_report_does_not_depend_on_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_CHUNK", 3)
    sources = [planted(tmp_path), source(tmp_path, [record("q", f"a{i}", "good.png") for i in range(7)], "t")]
    steps: list[tuple[int, int]] = []
    alone = check(sources, CheckOptions(decode=True), progress=lambda done, total: steps.append((done, total)))
    assert check(sources, CheckOptions(decode=True), workers=2) == alone
    assert alone.bad == {(0, line - 1) for line in (*EXPECTED, 4)}
    assert steps == [(n, 23) for n in (3, 6, 9, 12, 15, 16, 19, 22, 23)]


def test_statistics(tmp_path: Path) -> None:
    for name, size in (("a.png", (32, 20)), ("b.png", (64, 48)), ("c.png", (10, 90))):
        picture(tmp_path / name, *size)
    long = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "<image><image>"},
                         {"role": "assistant", "content": "yes"}, {"role": "user", "content": "Why?"},
                         {"role": "assistant", "content": "It is a long story about a ship."}],
            "images": ["b.png", "c.png"]}  # fmt: skip
    stats = check([source(tmp_path, [record("q", "12", "a.png"), long, record("text", "Paris"), "broken"])]).sources[0]
    assert (stats.name, stats.samples, stats.usable) == ("s", 4, 3)
    assert (stats.images, stats.distinct_images, stats.turns, stats.answers) == (3, 3, 9, 4)
    assert (stats.smallest_image, stats.largest_image) == ((32, 20), (64, 48))
    assert stats.max_answer_chars == 32
    assert stats.mean_answer_chars == pytest.approx((2 + 3 + 32 + 5) / 4)
    assert stats.kinds == {"number": 1, "yes-no": 1, "description": 1, "short answer": 1}


def test_kinds_of_answers() -> None:
    kinds = {
        "Yes.": "yes-no",
        "no": "yes-no",
        "12": "number",
        "two ships": "short answer",
        "1 2 3 4 5 6": "description",
    }
    assert {answer: kind_of("q", answer) for answer in kinds} == kinds
    assert kind_of("q", "<box>[[1, 2, 3, 4]]</box>") == "grounding"
    assert kind_of("q", "<quad>[[1, 1, 5, 1, 5, 5, 1, 5]]</quad>") == "grounding"
    assert kind_of("What is in <box>[[1, 2, 3, 4]]</box>?", "a ship") == "grounding"


def test_what_flips_make_untrue_is_said_only_where_images_are_flipped(tmp_path: Path) -> None:
    lines = [record("q", "a ship at the Left edge"), record("q", "a leftover")]
    for augment, expected in (
        (AugmentConfig(), []),
        (AugmentConfig(jpeg=True, crop_min_scale=0.5), []),
        (AugmentConfig(flip=True), ["direction-words"]),
        (AugmentConfig(rot90=True), ["direction-words"]),
    ):
        report = check([source(tmp_path, lines, augment=augment)])
        assert [f.code for f in report.findings] == expected
        assert not report.bad


def test_unreadable_quads_are_unusable_only_where_they_must_move(tmp_path: Path) -> None:
    lines = [record("q", "<quad>[[1, 2, 3, 1, 4, 4, 1, 5]]</quad>"), record("q", "<quad>((1, 2))</quad>")]
    for augment, severity in (
        (AugmentConfig(jpeg=True), "warning"),
        (AugmentConfig(flip=True), "error"),
        (AugmentConfig(rot90=True), "error"),
        (AugmentConfig(crop_min_scale=0.5), "error"),
    ):
        (finding,) = check([source(tmp_path, lines, augment=augment)]).findings
        assert (finding.severity, finding.code) == (severity, "quad-syntax")
        assert finding.where.endswith(":2")
        assert "[[x1, y1, x2, y2, x3, y3, x4, y4], ...]" in finding.fix


def test_duplicates_need_the_same_images(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        root.mkdir()
        picture(root / "1.png", 30 + len(root.name))
    same = record("q", "a", "1.png")
    assert not check([source(root, [same]) for root in roots]).findings  # another 1.png
    text = record("q", "a")
    (finding,) = check([source(root, [text]) for root in roots]).findings
    assert (finding.code, finding.where) == ("duplicate", f"{roots[1] / 's.jsonl'}:1")
    assert not check([source(roots[0], [same, record("q", "b", "1.png"), record("qa", "", "1.png")])]).counts.get(
        ("warning", "duplicate")
    )


def test_counts_are_complete_where_findings_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "MAX_FINDINGS", 4)
    report = check([source(tmp_path, ["{"] * 9 + [record("q", "a", "x.png")] * 2)])
    assert len(report.findings) == 6
    assert report.counts == {("error", "line-syntax"): 9, ("error", "image-missing"): 2}
    assert report.count("error") == 11
    assert len(report.bad) == 11


def test_the_text_puts_counts_first_and_the_json_is_plain(tmp_path: Path) -> None:
    report = check([source(tmp_path, ["{"] * 9 + [record("q", "a", "x.png")] * 2 + [record("q", "a")] * 2)])
    lines = report.lines(max_per_code=3)
    assert lines[0] == "13 samples, 11 unusable; 11 errors, 1 warnings"
    assert lines[1:4] == ["  9 error line-syntax", "  2 error image-missing", "  1 warning duplicate"]
    assert lines[4].startswith("s: 13 samples (2 usable)")
    heads = [i for i, line in enumerate(lines) if line.startswith(("error ", "warning "))]
    assert [lines[i].partition(";")[0] for i in heads] == [
        "error line-syntax: 9", "error image-missing: 2", "warning duplicate: 1"
    ]  # fmt: skip
    assert lines[heads[0] + 1].startswith(f"  {tmp_path / 's.jsonl'}:1 (sample 0): ")
    assert lines[heads[0] + 4] == "  ... and 6 more"
    data = json.loads(json.dumps(report.to_json()))
    assert (data["errors"], data["warnings"], data["unusable_samples"]) == (11, 1, 11)
    assert len(data["findings"]) == 12
    assert data["sources"][0]["samples"] == 13


def test_a_defect_of_ours_does_not_hide_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(check_text, "parse_boxes", fail)
    report = check([source(tmp_path, [record("q", "a"), "{"])])
    assert [f.code for f in report.errors] == ["unexpected", "line-syntax"]
    assert "ZeroDivisionError: oops" in report.errors[0].found


def test_a_killed_worker_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_CHUNK", 1)
    monkeypatch.setattr(check_text, "parse_boxes", lambda _: os._exit(9))  # in the worker, which was forked
    with pytest.raises(DataError, match="a worker process died"):
        check([source(tmp_path, [record("q", "a"), record("q", "b")])], workers=2)


@pytest.mark.parametrize(
    ("folder", "options", "known"),
    [
        ("rsicd_128", {"split": "test"}, []),
        ("rsvqa_lr", {"split": "val"}, []),
        ("rsvqa_hr", {"split": "test"}, []),
        ("vqa_rad", {"split": "all"}, [("text-replacement", "VQA_RAD Dataset Public.json:synpic28180.jpg")]),
        ("rocov2_sample", {"split": "train"}, []),
        ("rocov2_sample", {"split": "valid"}, []),
        ("instruct_samples/qwen_vl", {"annotations": Path("single_images.json")}, []),
        ("instruct_samples/llamafactory", {"annotations": Path("mllm_demo.json")}, []),
    ],
)
def test_real_data_is_clean_but_for_what_is_known(
    folder: str, options: dict[str, Any], known: list[tuple[str, str]]
) -> None:
    """Everything is looked for; the one fault is in the published file, "it\ufffds" for "it's"."""
    if not (DATA / folder).is_dir():
        pytest.skip(f"no real data {folder}")
    source = Source(SourceConfig(name="real", root=DATA / folder, **options))
    report = check([source], CheckOptions(decode=True, near_duplicates=True))
    assert [(f.code, Path(f.where).name) for f in report.findings] == known
    assert report.errors == []
    assert report.sources[0].usable == report.sources[0].samples > 0
    assert report.sources[0].distinct_images > 0
    assert report.sources[0].scripts["Latin"] > 0.7
