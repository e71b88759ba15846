"""What may stand for a text and what may not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp.synthesis.guard import REASONS, ClassNames, is_fixed, refusal

NAMES = ClassNames(["ship", "ships", "harbor", "harbors", "tennis court", "tennis courts", "court", "courts"])
NOUNS = ("ship", "ships", "harbors", "tennis courts", "courts")

GOOD = [
    ("How many ships are there in the image?", "What is the number of ships visible in this picture?"),
    ("Count the tennis courts.", "How many tennis courts are there?"),
    ("Count the tennis courts.", "Give the number of tennis courts."),
    ("Is there a ship in the image?", "Can you see a ship in the picture?"),
    ("Does the upper left quarter of the image hold any ships?", "Are there any ships in the upper left quarter?"),
    ("Are there more ships than harbors?", "Does the image contain more ships than harbors?"),
    ("Is the ship to the left of the harbor?", "Is the ship located to the left of the harbor?"),
    ("What does the image show?", "What can be seen in the photo?"),
    ("Where in the image is the ship?", "Where is the ship located in this image?"),
]
BAD = [
    ("How many ships are there?", "How many ships are there?", "the same words"),
    ("How many ships are there?", "how many ships are there ?", "the same words"),
    ("How many ships are there?", "", "not one clean line"),
    ("How many ships are there?", "How many ships are\nin the image?", "not one clean line"),
    ("How many ships are there?", "How many ships are\u2028in the image?", "not one clean line"),
    ("How many ships are there?", "How many ships\u200b are in view?", "not one clean line"),
    ("How many ships are there?", "How many <ref>ships</ref> are in view?", "not one clean line"),
    ("How many ships are there?", "How many [ships] can you see here?", "not one clean line"),
    ("How many ships are there?", "How many ships can you see here? \U0001f6a2", "not one clean line"),
    ("How many ships are there?", "How many ships are visible ...?", "a placeholder"),
    ("How many ships are there?", "How many ships can X see here?", "a placeholder"),
    ("How many ships are there?", "Sure: how many ships are visible?", "talk about the task"),
    ("How many ships are there?", "Here is one: how many ships?", "talk about the task"),
    ("How many ships are there?", "Paraphrase: how many ships can you see?", "talk about the task"),
    ("How many ships are there?", "Ships?", "much longer or shorter"),
    ("Count the ships.", "How many ships can you see in the image that is here?", "much longer or shorter"),
    ("How many ships are there?", "How many harbors can be seen?", "other class names"),
    ("How many ships are there?", "How many boats can be seen?", "other class names"),
    ("How many ships are there?", "How many ships are in harbors?", "other class names"),
    ("Are there more ships than harbors?", "Are there more harbors than ships?", "other class names"),
    ("Is the ship above the harbor?", "Is the harbor above the ship?", "other class names"),
    ("How many tennis courts are there?", "How many courts can be seen?", "other class names"),
    ("Do the 3 ships lie here?", "Can you see the 4 ships here?", "other numbers"),
    ("Do the 3 ships lie here?", "Can you see the ships here?", "other numbers"),
    ("How many ships are there?", "How many ships are in the two images?", "other numbers"),
    ("Is the ship above the harbor?", "Is the ship below the harbor?", "other places"),
    ("Is there a ship in the left half?", "Can you see a ship here?", "other places"),
    ("Is there a ship in the image?", "Is a ship on the left in the image?", "other places"),
    ("Is the ship left of the harbor?", "Is the ship left in the image of the harbor?", "other places"),
    ("Are there more ships than harbors?", "Are there fewer ships than harbors?", "other comparisons"),
    ("Is there a ship in the image?", "Is there not a ship in the picture?", "other amounts or negations"),
    ("Is there a ship in the image?", "Isn't there a ship in the picture?", "other amounts or negations"),
    ("Does the image show any ships?", "Does the picture show all ships?", "other amounts or negations"),
    ("Are there more ships or more harbors?", "Are there more ships and more harbors?", "other amounts or negations"),
    ("Is the ship left of the harbor?", "Is the left ship the harbor's?", "names in another order"),
    ("How many ships are there?", "Tell how many ships are visible.", "no longer a question"),
    ("Give the number of ships that can be seen.", "The number of ships seen.", "no longer a question"),
    ("How many ships are there?", "how many ships can you see?", "not a whole sentence"),
    ("How many ships are there?", "What ships can you see here?", "another question"),
    ("Is there a ship in the image?", "How many, a ship, is in the image?", "another question"),
    ("Can a ship be seen in the image?", "Where can a ship be seen in it?", "another question"),
    ("Is there a ship in the SAR image?", "Can you see a ship in the image?", "a word lost"),
    ("Is there a ship in the image?", "Is there a red ship in the image?", "a word invented"),
    ("How many ships are there?", "How many ships are in the parking lot?", "a word invented"),
    ("Is there a ship in the image?", "Is this an image of a ship?", "a word invented"),
]
CAPTIONS = [
    ("An image with three ships.", "This picture shows three ships.", None),
    ("An image with three ships.", "This picture shows 3 ships.", None),
    ("An image with three ships.", "This picture shows four ships.", "other numbers"),
    ("An image with three ships.", "This picture shows three ships and a harbor.", "other class names"),
    ("An image with three ships.", "Does this picture show three ships?", "a question now"),
    ("An image with three ships.", "This picture shows three ships", "not a whole sentence"),
    ("An image with three ships.", "This picture shows three calm ships.", "a word invented"),
    ("One ship and two harbors.", "Two ship and one harbors.", "other numbers"),
    (
        "The image shows one ship and one harbor. The ship is in the upper left.",
        "In the image are one ship in the upper left and one harbor, and the ship is seen.",
        "other amounts or negations",
    ),
    (
        "The image shows two ships and one harbor. The harbor is in the upper left.",
        "Seen here: two ships and one in the upper left. The harbor is a harbor.",
        "names in another order",
    ),
]


@pytest.mark.parametrize(("was", "now"), GOOD)
def test_a_faithful_rewording_is_taken(was: str, now: str) -> None:
    assert refusal(was, now, NAMES) is None


@pytest.mark.parametrize(("was", "now", "why"), BAD)
def test_each_way_to_go_wrong_has_its_reason(was: str, now: str, why: str) -> None:
    assert refusal(was, now, NAMES) == why
    assert why in REASONS


@pytest.mark.parametrize(("was", "now", "why"), CAPTIONS)
def test_captions(was: str, now: str, why: str | None) -> None:
    assert refusal(was, now, NAMES, caption=True) == why


def test_every_reason_is_tested() -> None:
    assert {why for *_, why in (*BAD, *CAPTIONS)} - {None} == set(REASONS)


@pytest.mark.parametrize(
    "text",
    [
        "What is in the region <box>[[1, 2, 3, 4]]</box>?",
        "Where is <ref>the ship</ref>?",
        "<image>\nCount the ships.",
        "Where are the ships? Answer with their boxes.",
        "How much of the image is water? Answer in percent.",
        "Give the bounding box of the ship.",
        "Map the changes in a 4 by 4 grid, row by row: changed or same.",
        "Divide the image into 3 rows of 3 parts. What covers most of each part?",
        "Which of these is it: ship, harbor or bridge?",
        "List the contents of the centre of a 3 by 3 grid, largest first.",
        "Classify the image and name its class.",
        "Give the position of the ship in words.",
    ],
)
def test_marks_and_forms_of_answers_are_recognised(text: str) -> None:
    assert is_fixed(text)


def test_ordinary_questions_are_free() -> None:
    assert not any(is_fixed(was) for was, _ in GOOD)


# ------------------------------------------------------------------------------------------------- what always holds

WORDS = """how many is are there a the in image picture of can you see left right upper lower more fewer than no not any 3 4
three Sure red what where count ? . , :"""
texts = st.lists(st.sampled_from([*WORDS.split(), "\n", *NOUNS]), max_size=14).map(" ".join)
anything = st.one_of(st.text(max_size=60), texts)


@given(anything, anything, st.booleans())
def test_whatever_is_taken_keeps_classes_numbers_and_directions(was: str, now: str, caption: bool) -> None:
    why = refusal(was, now, NAMES, caption=caption)
    assert why is None or why in REASONS
    if why is None:
        digits = [[t if t.isdigit() else "3" for t in re.findall(r"\d+|\bthree\b", s)] for s in (was, now)]
        assert digits[0] == digits[1]
        for words in (NOUNS, ("left", "right"), ("upper", "lower"), ("more", "fewer"), ("no", "not", "any")):
            pattern = rf"\b(?:{'|'.join(sorted(words, key=len, reverse=True))})\b"
            assert re.findall(pattern, was.lower()) == re.findall(pattern, now.lower())
        assert "\n" not in now
        assert now.lower() != was.lower()
        assert len(was) / 2 <= len(now) <= 2 * len(was)


@given(
    st.sampled_from([was for was, _ in GOOD]), st.integers(0, 12), st.sampled_from([*NOUNS, "red", "no", "7", "below"])
)
def test_one_foreign_word_spoils_a_good_rewording(was: str, place: int, word: str) -> None:
    now = dict(GOOD)[was].split(" ")
    place = min(place, len(now) - 1)
    spoiled = " ".join([*now[: place or 1], word, *now[place or 1 :]])
    assert refusal(was, spoiled, NAMES) is not None


@given(st.sampled_from(GOOD), st.data())
def test_nothing_that_carries_meaning_can_be_dropped(pair: tuple[str, str], data: st.DataObject) -> None:
    was, now = pair
    marked = [
        w for w in re.findall(r"\w+", now) if w in NOUNS or w in ("left", "upper", "more", "than", "any", "quarter")
    ]
    if marked:
        gone = data.draw(st.sampled_from(marked))
        assert refusal(was, re.sub(rf"\b{gone} ?\b", "", now, count=1), NAMES) is not None


@given(anything)
def test_a_text_is_never_its_own_rewording(text: str) -> None:
    assert refusal(text, text, NAMES) is not None


def test_without_class_names_the_other_rules_still_hold() -> None:
    assert ClassNames([" "]).found("a ship") == ()
    assert refusal("Describe the image.", "Describe the picture.", ClassNames([])) is None
    assert refusal("Describe the image.", "Describe the harbor.", ClassNames([])) == "a word invented"
