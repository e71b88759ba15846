"""Instructions about procedural scenes: true, varied, balanced."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from vitp.demo import phrases
from vitp.demo.scenes import (
    CLASSES,
    Scene,
    SceneConfig,
    draw_scene,
    instructions,
)
from vitp.instruction import wording
from vitp.instruction.grammar import parse_boxes

SEED, COUNT = 11, 300


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(SEED, i, SceneConfig()) for i in range(COUNT)]


def recount(scene: Scene, many: str) -> int:
    category = next(c for c, (_, plural) in phrases.NOUNS.items() if plural == many)
    return sum(i.category == category for i in scene.instances)


def test_answers_are_true_when_worked_out_again(scenes: list[Scene]) -> None:
    nouns = {word: c for c, pair in phrases.NOUNS.items() for word in pair}
    covers = {name: CLASSES.index(c) for c, name in phrases.COVERS.items()}
    checked: Counter[str] = Counter()
    for index, scene in enumerate(scenes):
        share = np.bincount(scene.mask.ravel(), minlength=len(CLASSES)) / scene.mask.size
        for question, answer, task in instructions(scene, SEED, index):
            checked[task] += 1
            found = [w for w in sorted({**nouns, **covers}, key=len, reverse=True) if re.search(rf"\b{w}\b", question)]
            if task == "count":
                category = nouns[found[0]]
                assert int(answer) == recount(scene, phrases.NOUNS[category][1])
                if answer == "0":
                    assert not (scene.mask == CLASSES.index(category)).any()
            elif task == "presence":
                label = CLASSES.index(nouns[found[0]]) if found[0] in nouns else covers[found[0]]
                assert (answer == "yes") == bool((scene.mask == label).any()), question
            elif task == "area" and answer.startswith("about"):
                assert abs(100 * share[covers[found[0]]] - int(answer[6:-1])) <= 2.5 + 1e-9
            elif task == "area":
                low, high = {"less": (0, 0.25), "betw": (0.25, 0.75), "more": (0.75, 1)}[answer[:4]]
                assert low <= share[covers[found[0]]] <= high
            elif task == "compare" and question.startswith(phrases.COMPARE_MORE[0][:14]) and " than " in question:
                a, b = re.findall(r"more (.+) than (.+)\?", question)[0]
                more = recount(scene, a) - recount(scene, b)
                assert answer == ("yes" if more > 0 else "no" if more < 0 else "no, equally many")
            elif task == "compare" and answer in covers and answer not in nouns:
                other = next(w for w in found if w != answer and w in covers)
                assert share[covers[answer]] > share[covers[other]]
            elif task == "theme":
                assert answer == phrases.PLACES[scene.theme][0]
                assert "or" not in question.split() or answer in question
            elif task == "region":
                box = parse_boxes(question)[0].boxes[0]
                match = [i for i in scene.instances if box == pytest.approx([v * 1000 / 128 for v in i.bbox], abs=0.51)]
                assert phrases.NOUNS[match[0].category][0] == answer
            elif task == "grounding":
                check_grounding(scene, answer)
            elif task == "position" and found[0] in nouns:
                check_place(scene, nouns[found[0]], answer)
            elif task == "layout":
                check_layout(scene, answer)
            elif task == "part":
                check_part(scene, question, answer)
            elif task == "caption":
                for word, many in re.findall(r"\b(\w+) (\w+ ?\w+)[.,]", answer):
                    if word in wording.NUMBERS and many in nouns:
                        assert wording.NUMBERS[recount(scene, phrases.NOUNS[nouns[many]][1])] == word
    assert all(
        checked[task] > 30
        for task in ("caption", "theme", "count", "presence", "compare", "area", "region", "layout", "part")
    )
    assert all(checked[task] > 5 for task in ("grounding", "position", "relation"))


def check_grounding(scene: Scene, answer: str) -> None:
    (grounding,) = parse_boxes(answer)
    category = next(c for c, (one, _) in phrases.NOUNS.items() if one == grounding.phrase)
    expected = sorted(i.bbox for i in scene.instances if i.category == category)
    assert len(grounding.boxes) == len(expected)
    size = scene.mask.shape[0]
    given = sorted(tuple(v * size / 1000 for v in box) for box in grounding.boxes)
    assert np.allclose(given, expected, atol=0.51 * size / 1000)


def check_place(scene: Scene, category: str, answer: str) -> None:
    (instance,) = [i for i in scene.instances if i.category == category]
    x, y = (instance.bbox[0] + instance.bbox[2]) / 2 / 128, (instance.bbox[1] + instance.bbox[3]) / 2 / 128
    assert ("left" in answer, "right" in answer) == (x < 1 / 3, x > 2 / 3)
    assert ("top" in answer, "bottom" in answer) == (y < 1 / 3, y > 2 / 3)


def check_layout(scene: Scene, answer: str) -> None:
    names = {word: CLASSES.index(c) for c, word in phrases.PARTS.items()}
    rows = [row.split(", ") for row in answer.split("; ")]
    assert [len(row) for row in rows] == [4, 4, 4, 4]
    for y, row in enumerate(rows):
        for x, word in enumerate(row):
            cell = scene.mask[y * 32 : (y + 1) * 32, x * 32 : (x + 1) * 32]
            here = Counter(cell.ravel().tolist())
            objects = {k: v for k, v in here.items() if k >= CLASSES.index("building")}
            ground = {k: v for k, v in here.items() if k not in objects}
            if objects and max(objects.values()) >= cell.size / 8:
                assert objects[names[word]] == max(objects.values())
            else:
                assert ground[names[word]] == max(ground.values())


def check_part(scene: Scene, question: str, answer: str) -> None:
    names = {word: CLASSES.index(c) for c, word in phrases.PARTS.items()}
    row = next((i for i, word in enumerate(wording.ROWS) if word in question), 1)
    column = next((i for i, word in enumerate(wording.COLUMNS) if word in question), 1)
    edges = (0, 43, 85, 128)
    cell = scene.mask[edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
    shares = [float((cell == names[word]).mean()) for word in answer.split(", ")]
    assert shares == sorted(shares, reverse=True)
    assert min(shares) >= 0.03
    assert sum(shares) > 0.7


def test_kinds_asked_of_every_scene_come_first(scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes[:50]):
        turns = instructions(scene, SEED, index, 3, always=("layout",))
        assert [task for _, _, task in turns].count("layout") == 1
        assert len(turns) == 3
        assert [task for _, _, task in instructions(scene, SEED, index, 1, always=("layout", "part"))] == ["layout"]


def test_relations_hold() -> None:
    sides = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
    answers: Counter[str] = Counter()
    for index in range(250):
        scene = draw_scene(4, index, SceneConfig(theme=("farmland", "lake", "forest")[index % 3], size=64))
        for question, answer, task in instructions(scene, 4, index):
            if task == "relation":
                side = next(s for s in sides if s in question)
                named = sorted(phrases.NOUNS, key=lambda c, q=question: q.find(f" {phrases.NOUNS[c][0]}") % 1000)[:2]
                a, b = reversed(named) if question.startswith("Relative") else named
                box = {i.category: i.bbox for i in scene.instances}
                axis, sign = sides[side]
                before = box[a][axis + 2] <= box[b][axis]
                assert answer == ("yes" if before == (sign > 0) else "no"), question
                answers[answer] += 1
    assert min(answers["yes"], answers["no"]) > 2


def test_questions_vary_and_yes_balances_no(scenes: list[Scene]) -> None:
    yes: Counter[str] = Counter()
    for index, scene in enumerate(scenes):
        turns = instructions(scene, SEED, index, 6)
        assert turns == instructions(scene, SEED, index, 6)
        assert len({question for question, _, _ in turns}) == len(turns) == 6
        yes.update(answer for _, answer, task in turns if task == "presence")
    assert 0.4 < yes["yes"] / yes.total() < 0.6
    asked = {name: forms for name, forms in vars(phrases).items() if name.isupper() and isinstance(forms, tuple)}
    assert all(len(forms) >= 3 for forms in asked.values())
