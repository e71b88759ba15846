"""Questions about boxes: every answer recomputed from the raw labels by other code."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.synthesize.labelsets import CLASSES, coco_document, match, picture, questions, real, run, write_coco

from vitp.instruction.grammar import parse_boxes
from vitp.instruction.quads import normalise_quad, parse_quads
from vitp.synthesis import phrases as say
from vitp.synthesis.words import Words

SINGULAR = {"ships": "ship", "storage tanks": "storage tank", "harbors": "harbor", "vehicles": "vehicle"}
BOXES = list[tuple[float, float, float, float]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("coco")
    document = coco_document(160)
    write_coco(root, document)
    return document, run(root, root / "out.jsonl", turns=10)[1]


def objects(document: dict[str, Any]) -> dict[str, dict[str, BOXES]]:
    """Image path -> class -> boxes x1, y1, x2, y2; a class with a crowd is listed under "?class" too."""
    names = {c["id"]: c["name"].replace("_", " ") for c in document["categories"]}
    files = {i["id"]: f"images/{i['file_name']}" for i in document["images"]}
    found: dict[str, dict[str, BOXES]] = {file: defaultdict(list) for file in files.values()}
    for note in document["annotations"]:
        x, y, w, h = note["bbox"]
        here = found[files[note["image_id"]]]
        here[names[note["category_id"]]].append((x, y, x + w, y + h))
        cut = x <= 1 or y <= 1 or x + w >= 95 or y + h >= 79
        if note["iscrowd"] or cut:
            here["?" + names[note["category_id"]]].append((x, y, x + w, y + h))
    return found


def units(box: tuple[float, ...]) -> list[int]:
    return [round(v / side * 1000) for v, side in zip(box, (96, 80, 96, 80), strict=True)]


def test_counts_are_true_and_never_of_a_class_with_a_crowd(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    found = questions(records, "count")
    assert len(found) > 100
    for record, question, answer in found:
        gaps = match(question, say.COUNT)
        assert gaps is not None
        name = SINGULAR[gaps["many"]]
        here = truth[record["image"]]
        assert int(answer) == len(here[name])
        assert not here["?" + name]
    spread = Counter(answer for _, _, answer in found)
    assert spread["0"]
    assert max(spread.values()) < 0.5 * len(found)


def test_presence_is_true_and_balanced(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    answers = Counter[str]()
    forms: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for record, question, answer in questions(records, "presence"):
        here, gaps = truth[record["image"]], match(question, say.PRESENCE_PART)
        answers[answer] += 1
        forms[gaps is not None][answer] += 1
        if gaps is None:
            name = next(c for c in SINGULAR.values() if c in question)
            assert (answer == "yes") == bool(here[name]), (record, question)
            continue
        name = next(c for c in SINGULAR.values() if c in question)
        row, column = gaps["part"].split()
        left, top = 48 * (column == "right"), 40 * (row == "lower")
        overlap = [b for b in here[name] if b[0] < left + 48 and b[2] > left and b[1] < top + 40 and b[3] > top]
        inside = [b for b in overlap if b[0] >= left and b[2] <= left + 48 and b[1] >= top and b[3] <= top + 40]
        assert bool(inside) if answer == "yes" else not overlap
    assert 0.42 < answers["yes"] / answers.total() < 0.58
    assert answers.total() > 200
    assert all(0.38 < form["yes"] / form.total() < 0.62 for form in forms.values())


def test_comparisons_are_true(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    answers = Counter[str]()
    for record, question, answer in questions(records, "compare"):
        here = {name: boxes for name, boxes in truth[record["image"]].items() if name[0] != "?"}
        if (gaps := match(question, say.COMPARE_HALVES)) is not None:
            axis = int({gaps["a"], gaps["b"]} == {"upper", "lower"})
            assert {gaps["a"], gaps["b"]} in ({"left", "right"}, {"upper", "lower"})
            boxes, middle = here[SINGULAR[gaps["many"]]], (48, 40)[axis]
            low = sum((b[axis] + b[axis + 2]) / 2 < middle for b in boxes)
            assert not any(b[axis] < middle < b[axis + 2] for b in boxes)
            expected = (("right", "lower"), ("left", "upper"))[2 * low > len(boxes)][axis]
            assert 2 * low != len(boxes)
            assert answer == expected
        elif (gaps := match(question, say.COMPARE_WHICH)) is not None:
            counts = {many: len(here[SINGULAR[many]]) for many in (gaps["a"], gaps["b"])}
            assert counts[answer] == max(counts.values()) > min(counts.values())
        else:
            gaps = match(question, say.COMPARE_MORE)
            assert gaps is not None
            first, second = (len(here[SINGULAR[gaps[key]]]) for key in "ab")
            assert first != second
            assert (answer == "yes") == (first > second)
            answers[answer] += 1
    assert answers.total() > 20
    assert min(answers["yes"], answers["no"]) > 0.25 * answers.total()


def test_positions_and_relations_are_true(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    rows, columns = ("upper", "middle", "lower"), ("left", "centre", "right")
    positions = questions(records, "position")
    for record, question, answer in positions:
        gaps = match(question, say.POSITION)
        assert gaps is not None
        ((x1, y1, x2, y2),) = truth[record["image"]][gaps["one"]]
        row, column = int((y1 + y2) / 2 / 80 * 3), int((x1 + x2) / 2 / 96 * 3)
        assert answer == ("centre" if row == column == 1 else f"{rows[row]} {columns[column]}")
    relations = questions(records, "relation")
    for record, question, answer in relations:
        here = truth[record["image"]]
        side = next(s for s in ("to the left of", "to the right of", "above", "below") if s in question)
        first, second = sorted((n for n in SINGULAR.values() if n in question), key=question.index)
        if question.startswith("Relative"):
            first, second = second, first
        (a,), (b,) = here[first], here[second]
        true = {"to the left of": a[2] <= b[0], "to the right of": a[0] >= b[2], "above": a[3] <= b[1],
                "below": a[1] >= b[3]}  # fmt: skip
        assert (answer == "yes") == true[side]
    assert len(positions) > 20
    assert len(relations) > 5


def test_boxes_in_answers_are_all_boxes_of_the_class(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    none = 0
    for record, _, answer in questions(records, "grounding"):
        here = truth[record["image"]]
        if answer.startswith("There is no"):
            none += 1
            assert not here[next(n for n in SINGULAR.values() if n in answer)]
            continue
        (grounding,) = parse_boxes(answer)
        assert grounding.phrase in SINGULAR.values()
        assert sorted(map(list, grounding.boxes)) == sorted(units(b) for b in here[str(grounding.phrase)])
    assert none > 3


def test_referring_expressions_have_one_referent(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    found = questions(records, "refer")
    assert len({answer.split()[1] for _, _, answer in found}) == 6
    for record, _, answer in found:
        (grounding,) = parse_boxes(answer)
        _, which, name = str(grounding.phrase).split(" ", 2)
        boxes = truth[record["image"]][name]
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
        score = {
            "largest": areas, "smallest": [-a for a in areas], "leftmost": [-b[0] for b in boxes],
            "topmost": [-b[1] for b in boxes], "rightmost": [b[2] for b in boxes], "bottommost": [b[3] for b in boxes],
        }[which]  # fmt: skip
        best = max(range(len(boxes)), key=lambda i: score[i])
        assert [list(b) for b in grounding.boxes] == [units(boxes[best])]
        others = [s for i, s in enumerate(score) if i != best]
        gap = {"largest": 0, "smallest": 0, "leftmost": 3.8, "rightmost": 3.8}.get(which, 3.2)
        assert others
        assert score[best] - max(others) >= gap
        assert score[best] > max(others)
        if which in ("largest", "smallest"):
            low, high = sorted((abs(score[best]), abs(max(others))))
            assert high >= 1.3 * low


def test_regions_hold_what_the_answer_says(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    for record, question, answer in questions(records, "region"):
        (grounding,) = parse_boxes(question)
        assert list(grounding.boxes[0]) in [units(b) for b in truth[record["image"]][answer]]


def test_captions_count_only_what_is_sure(asked: Any) -> None:
    document, records = asked
    truth = objects(document)
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4}
    seen = 0
    for record, _, answer in questions(records, "caption"):
        here = truth[record["image"]]
        for name in SINGULAR.values():
            for form in (name, Words({}, "image").many(name)):
                for word, number in numbers.items():
                    if f" {word} {form}" in answer.split(". ")[0] + " ":
                        assert len(here[name]) == number
                        assert not here["?" + name]
                        seen += 1
    assert seen > 50


def test_same_bytes_twice_and_records_do_not_depend_on_other_images(tmp_path: Path) -> None:
    document = coco_document(40)
    write_coco(tmp_path / "a", document)
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    _, records = run(tmp_path / "a", first)
    run(tmp_path / "a", second)
    assert first.read_bytes() == second.read_bytes()
    assert run(tmp_path / "a", tmp_path / "3.jsonl", seed=1)[1] != records
    # Another order, and one image less.
    fewer = {**document, "images": document["images"][::-1], "annotations": document["annotations"][::-1]}
    gone = fewer["images"].pop(7)
    fewer["annotations"] = [n for n in fewer["annotations"] if n["image_id"] != gone["id"]]
    fewer["annotations"].sort(key=lambda n: n["id"])
    write_coco(tmp_path / "b", fewer)
    others = [r for r in records if r["image"] != f"images/{gone['file_name']}"]
    assert len(others) == len(records) - 1
    assert run(tmp_path / "b", tmp_path / "4.jsonl")[1] == others
    _, few = run(tmp_path / "a", tmp_path / "5.jsonl", limit=5)
    assert few == records[:5]


def test_leaving_out_a_task_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(10))
    whole = run(tmp_path, tmp_path / "1.jsonl", turns=50)[1]
    part = run(tmp_path, tmp_path / "2.jsonl", turns=50, without=("caption", "count"))[1]
    assert {t for r in part for t in r["tasks"]} == {t for r in whole for t in r["tasks"]} - {"caption", "count"}
    for task in ("region", "relation", "presence"):
        assert {(q, a) for _, q, a in questions(part, task)} == {(q, a) for _, q, a in questions(whole, task)}


def test_missing_images_are_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(6))
    (tmp_path / "images" / "002.png").unlink()
    (tmp_path / "images" / "003.png").write_bytes(b"not an image")
    result, records = run(tmp_path, tmp_path / "o.jsonl")
    assert result.skipped == {"missing": 1, "unreadable": 1}
    assert len(records) == 4
    assert any("002.png" in line for line in result.lines())


def test_renaming_and_plurals(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(12))
    keys = {"rename": {"ship": "vessel", "harbor": "quay"}, "plurals": {"quay": "quayz"}}
    text = json.dumps(run(tmp_path, tmp_path / "o.jsonl", **keys)[1])
    assert "vessels" in text
    assert "quayz" in text
    assert "ship" not in text
    assert "harbor" not in text


# ------------------------------------------------------------------------------------------------------ oriented boxes


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("backwards", [False, True])
def test_quads_are_written_clockwise_from_the_top_left(start: int, backwards: bool) -> None:
    corners = [(40, 20), (80, 40), (60, 80), (20, 60)]  # clockwise with y down; 40 + 20 is the smallest sum
    turned = corners[start:] + corners[:start]
    flat = [v for point in (turned[::-1] if backwards else turned) for v in point]
    assert normalise_quad(tuple(flat), 100, 200) == (400, 100, 800, 200, 600, 400, 200, 300)  # type: ignore[arg-type]


def test_a_crossing_or_flat_quad_is_not_written() -> None:
    assert normalise_quad((0, 0, 50, 50, 50, 0, 0, 50), 100, 100) is None
    assert normalise_quad((0, 0, 50, 0, 90, 0, 95, 0.01), 100, 100) is None


def test_dota_quads_are_those_of_the_file(tmp_path: Path) -> None:
    root = real("dota_example")
    _, records = run(root, tmp_path / "o.jsonl", tasks=("oriented",), turns=20)
    checked = 0
    for record, _, answer in questions(records, "oriented"):
        rows = [line.split() for line in (root / record["source_file"]).read_text().splitlines() if ":" not in line]
        name = answer.split("</ref>")[0].removeprefix("<ref>")
        mine = [row for row in rows if row[8].replace("-", " ") == name]
        assert parse_boxes(answer) == []
        assert len(parse_quads(answer)) == len(mine)
        assert all(row[9] == "0" for row in mine)  # none is difficult
        with Image.open(root / record["image"]) as image:
            width, height = image.size
        truth = {
            frozenset((round(float(r[i]) / width * 1000), round(float(r[i + 1]) / height * 1000)) for i in (0, 2, 4, 6))
            for r in mine
        }
        assert {frozenset(zip(q[::2], q[1::2], strict=True)) for q in parse_quads(answer)} == truth
        checked += len(mine)
    assert checked > 5


def test_a_difficult_object_is_neither_counted_nor_denied(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    rows = ["imagesource:x", "gsd:1", "10 10 30 10 30 25 10 25 ship 0", "50 40 70 40 70 60 50 60 ship 1",
            "40 10 44 10 44 14 40 14 plane 0"]  # fmt: skip
    (tmp_path / "labelTxt").mkdir()
    (tmp_path / "labelTxt" / "a.txt").write_text("\n".join(rows))
    _, records = run(tmp_path, tmp_path / "o.jsonl", turns=40)
    for task in ("count", "position", "grounding", "oriented", "refer"):
        assert all("ship" not in q + a for _, q, a in questions(records, task))
    for _, question, answer in questions(records, "presence"):
        assert not ("ship" in question and "lower right" in question), (question, answer)


def test_class_words() -> None:
    words = Words({"harbor": "harbours"}, "image")
    assert [words.many(n) for n in ("ship", "harbor", "bus", "baseball diamond", "aircraft", "person", "city")] == [
        "ships", "harbours", "buses", "baseball diamonds", "aircraft", "people", "cities",
    ]  # fmt: skip
    assert len(CLASSES) == 4
