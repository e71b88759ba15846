"""Which questions are asked, how each is judged, and what the scores of a set are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitp.instruction.source import Source, SourceConfig
from vitp.metrics.text import has_bleu
from vitp.tasks.decline import DeclineWatch
from vitp.tasks.questions import Answered, Asked, choose_questions, judge, measure_of, one_of_each, scores

BOX = "<ref>it</ref><box>[[0, 0, 500, 500]]</box>"
LONG = "a white plane stands on the runway near two buildings"


@pytest.mark.parametrize(
    ("question", "reference", "tasks", "measure"),
    [
        ("Where is the plane?", BOX, (), "grounding"),
        ("Where?", "<quad>[[0, 0, 9, 0, 9, 9, 0, 9]]</quad>", (), "grounding"),
        ("Where?", "<box>[[0, 0, 9]]</box>", (), "vqa"),  # cannot be read as boxes
        (f"What is in {BOX}?", "a plane", (), "vqa"),
        ("Is there a plane?", "yes", (), "vqa"),
        ("How many?", "12", (), "vqa"),
        ("What is it?", "two white planes", (), "vqa"),
        ("Describe the image.", LONG, (), "caption"),
        ("Describe the image.", LONG, ("vqa", "dialogue"), "vqa"),
        ("Describe the image.", "a plane", ("caption",), "caption"),
        ("Where?", BOX, ("caption",), "grounding"),
        ("Describe the image.", LONG, ("caption", "vqa"), "caption"),
        ("Is it?", "yes", ("caption", "vqa"), "vqa"),
    ],
)
def test_the_measure_follows_the_answer_or_what_the_source_declares(
    question: str, reference: str, tasks: tuple[str, ...], measure: str
) -> None:
    assert measure_of(question, reference, tasks) == measure


def source(root: Path, records: list[tuple[list[str], list[tuple[str, str]]]]) -> Source:
    lines = []
    for images, pairs in records:
        turns = [{"from": "system", "value": "Be brief."}]
        for i, (question, answer) in enumerate(pairs):
            mark = "<image>\n" * len(images) if i == 0 else ""
            turns += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps(({"image": images} if images else {}) | {"conversations": turns}))
    (root / "a.jsonl").write_text("\n".join(lines) + "\n")
    return Source(SourceConfig(name="a", root=root, annotations=Path("a.jsonl")))


def test_questions_are_spread_over_samples_and_their_turns(tmp_path: Path) -> None:
    pairs = [("First?", "one"), ("Second?", "two"), ("Third?", "three")]
    whole = source(tmp_path, [([f"{i}.png"], pairs) for i in range(40)])
    asked = choose_questions(whole, 10)
    assert len(asked) == 10
    assert (asked[0].index, asked[-1].index) == (0, 39)
    assert {a.question for a in asked} == {"First?", "Second?", "Third?"}  # without the image mark
    for item in asked:
        assert pairs[item.turn] == (item.question, item.references[0])
        assert item.images == (f"{item.index}.png",)
        assert item.where.endswith(f"a.jsonl:{item.index + 1}")
    assert len(choose_questions(whole, 1000)) == 40
    assert choose_questions(whole, 10) == asked


def test_a_picture_is_described_once_with_all_its_descriptions_as_references(tmp_path: Path) -> None:
    records = [([f"{i // 3}.png"], [("Describe the image.", f"{LONG} number {i} of them")]) for i in range(12)]
    asked = choose_questions(source(tmp_path, records), 12)
    assert [a.images for a in asked] == [(f"{i}.png",) for i in range(4)]
    assert all(len(a.references) == 3 for a in asked)
    assert asked[1].references[0].endswith("number 3 of them")


def test_a_long_answer_to_another_question_is_no_description(tmp_path: Path) -> None:
    pairs = [
        ("Describe the image.", LONG),
        ("Map the rows.", "trees, trees, road; road, road, trees; trees, water, water"),
    ]
    asked = choose_questions(source(tmp_path, [([f"{i // 2}.png"], pairs) for i in range(8)]), 8)
    mapped = [a for a in asked if a.turn == 1]
    assert mapped
    assert all(a.measure == "caption" and len(a.references) == 1 for a in mapped)
    assert all(a.references == (LONG,) for a in asked if a.turn == 0)  # the same description twice counts once
    assert len([a for a in asked if a.turn == 0]) == 4


def test_broken_samples_are_passed_over(tmp_path: Path) -> None:
    whole = source(tmp_path, [([f"{i}.png"], [("What?", "this")]) for i in range(6)])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:2], "{}", *lines[3:]]) + "\n")
    assert [a.index for a in choose_questions(Source(whole.config), 6)] == [0, 1, 3, 4, 5]


def asked(reference: str, question: str = "q", images: tuple[str, ...] = ()) -> Asked:
    return Asked("a", 0, 0, measure_of(question, reference), question, (reference,), images, "a.jsonl:1")


def test_scores_are_those_of_the_measures_that_occur() -> None:
    vqa = [
        judge(asked("yes"), "Yes."),
        judge(asked("100"), "103"),
        judge(asked("red"), "blue"),
        judge(asked("no"), "yes"),
    ]
    assert scores(vqa) == {"questions": 4.0, "vqa_exact": 0.25, "vqa_relaxed": 0.5}
    assert [item.correct for item in vqa] == [True, False, False, False]
    shifted = BOX.replace("[0, 0, 500, 500]", "[0, 0, 500, 300]")
    boxes = [judge(asked(BOX), BOX), judge(asked(BOX), shifted), judge(asked(BOX), "there")]
    found = scores(boxes)
    assert found["grounding_accuracy"] == pytest.approx(2 / 3)
    assert found["grounding_iou"] == pytest.approx(1.6 / 3)
    assert found["grounding_unreadable"] == pytest.approx(1 / 3)
    assert [item.correct for item in boxes] == [True, True, False]
    texts = [LONG, "three boats lie in a small harbour at the sea", "a dense green forest with a narrow road in it"]
    captions = [judge(asked(text, "Describe it."), text) for text in texts]
    found = scores(captions)
    assert found["caption_cider"] == pytest.approx(10.0)
    assert ("caption_bleu" in found) == has_bleu()
    assert [item.correct for item in captions] == [None] * 3
    assert scores([*vqa, *boxes])["vqa_exact"] == 0.25


def test_what_is_shown_takes_turns() -> None:
    items = [Answered(asked("yes"), "no", False) for _ in range(9)] + [judge(asked(BOX), BOX), judge(asked(LONG), LONG)]
    shown = one_of_each(items, 5)
    assert [item.asked.measure for item in shown] == ["vqa", "grounding", "caption", "vqa", "vqa"]
    assert len(one_of_each(items, 100)) == 11
    assert one_of_each(items, 0) == []


def test_a_source_that_gets_worse_is_named_once_until_it_recovers() -> None:
    watch = DeclineWatch(margin=0.1, patience=2)
    courses = {
        "up": [1.0, 0.8, 0.9, 0.85, 0.95, 1.0, 0.7, 0.9, 0.9],
        "down": [2.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 1.05, 1.0],
    }
    said = [
        watch.take(10 * (i + 1), {name: losses[i] for name, losses in courses.items()})
        for i in range(len(courses["up"]))
    ]
    assert [bool(lines) for lines in said] == [False] * 5 + [True, False, False, True]
    assert len(said[5]) == 1
    for part in ("'up'", "1 at step 60", "25% above its best of 0.8 at step 20", "more than 10%", "2 evaluations"):
        assert part in said[5][0]
    assert "0.7 at step 70" in said[8][0]
