"""What instruction data consists of: tasks by their look, scripts, quantiles; sums over chunks are those of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp.instruction.encoding import damage
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.statistics import QUANTILES, Counts, script_of, source_stats, task_of

# Texts that only look unusual: closing quotes behind capitals and umlauts, units, quoted letters, many scripts.
SOUND = [
    "Ein Spaß“, sagte er", "CAFÉ…", "AMANHÃ” disse", "10 Å² und 5 Å·m", "« Santé…»", "»Ä«", "déjà vu – naïveté”",
    "ESPAÑA y ESPAÑ…", "5 × 3 µm, 25 °C, ± 2 ²", "Привет, мир", "中文描述。", "日本語テスト", "العربية", "Ångström",
    "2×½", "10×“", "SÃO PAULO", "Ø 5 mm", "Łódź Škoda žena œuvre",
    "😀 “quoted” it’s", "a\tb\r\nc", "Île-de-France ÎLE", "Bartók–Ligeti", "€5",
]  # fmt: skip
SPOILT = ["café", "25 °C", "naïve", "Größe", "Łódź", "“quoted”", "it’s", "5 × 3", "Привет мир", "中文", "日本語", "العربية",
          "שלום", "Ελλάδα", "😀", "µm", "…", "€5", "œuvre", "Škoda", "한국어", "हिन्दी", "AÇÃO"]  # fmt: skip


@pytest.mark.parametrize("text", SOUND)
def test_no_damage_is_invented(text: str) -> None:
    assert list(damage(text)) == []


@pytest.mark.parametrize("text", SPOILT)
@pytest.mark.parametrize("wrong", ["cp1252", "latin-1"])
def test_utf8_read_as_something_else_is_found(text: str, wrong: str) -> None:
    spoilt = "".join(bytes([b]).decode(wrong, "ignore") or chr(b) for b in text.encode())
    ((code, found),) = damage(f"so {spoilt} it is")
    assert code == "text-mojibake"
    assert found.startswith("'")


@given(st.text(st.characters(max_codepoint=0x7F)))
def test_plain_ascii_is_damaged_by_control_characters_only(text: str) -> None:
    controls = [c for c in text if (ord(c) < 32 and c not in "\t\n\r") or ord(c) == 127]
    assert [code for code, _ in damage(text)] == (["text-control"] if controls else [])


@pytest.mark.parametrize(
    ("question", "answer", "task"),
    [
        ("<image>\nDescribe the image.", "A harbour with two large ships and a crane.", "caption"),
        ("<image>", "A harbour with two large ships and a crane.", "caption"),
        (
            "请描述这张图片。",
            "这是一张港口的照片，里面有两艘大船，旁边有起重机，天空晴朗，远处还有几座建筑。",
            "caption",
        ),
        ("What is the theme of this picture?", "airport", "classification"),
        ("Which type of organ is shown?", "liver", "classification"),
        ("Is there a ship?", "Yes.", "vqa"),
        ("How many classes of ships are there?", "3", "vqa"),
        ("Why is it dark here?", "The radar sees smooth water as a dark area in the image.", "vqa"),
        ("What does the sign say?", "Exit", "ocr"),
        ("Transcribe the label.", "12 mg", "ocr"),
        ("Where is <ref>the ship</ref>?", "<box>[[1, 2, 3, 4]]</box>", "grounding"),
        ("What is in <box>[[1, 2, 3, 4]]</box>?", "a ship", "grounding"),
        ("Where is the ship?", "<quad>((1, 2), (3, 4))</quad>", "grounding"),
    ],
)
def test_tasks_by_their_look(question: str, answer: str, task: str) -> None:
    assert task_of(question, answer) == task


def test_scripts() -> None:
    scripts = {"a": "Latin", "é": "Latin", "ỏ": "Latin", "Ａ": "Latin", "Ω": "Greek", "ж": "Cyrillic", "ա": "other",
               "ש": "Hebrew", "ع": "Arabic", "ﻉ": "Arabic", "ह": "Devanagari", "ก": "Thai", "中": "Han", "㐀": "Han",
               "𠀀": "Han", "か": "Kana", "ｱ": "Kana", "한": "Hangul", "ᄀ": "Hangul", "ნ": "other"}  # fmt: skip
    assert {letter: script_of(letter) for letter in scripts} == scripts


def sample(*texts: str, images: int = 1) -> Sample:
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Sample(turns, tuple(f"{i}.png" for i in range(images)), "f:1")


def test_figures_of_a_source() -> None:
    counts = Counts()
    counts.numbers["samples"] = 3
    counts.take(sample("<image>Что это?", "да", "<ref>и</ref>", "нет"), [(4, 5)], None)
    counts.take(sample("<image><image>q", "a" * 9, images=2), [(3, 3), (9, 2)], None)
    counts.take(sample("What is read here?", "text only", images=0), [], None)
    stats = source_stats("s", counts, bad=1, distinct_images=3, max_length=None)
    assert (stats.samples, stats.usable, stats.images, stats.several_images) == (3, 2, 3, 1)
    assert (stats.smallest_image, stats.largest_image) == ((3, 3), (4, 5))
    assert stats.answer_bins == {"2–3": 2, "4–7": 0, "8–15": 2}
    assert stats.scripts["Cyrillic"] == pytest.approx(12 / (12 + 1 + 9 + 14 + 8))
    assert stats.tasks == {"vqa": 3, "dialogue": 1}  # a text alone is no task of a vision backbone


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=30), st.integers(0, 30))
def test_chunks_add_up_and_quantiles_are_exact(answers: list[str], cut: int) -> None:
    whole, first, second = Counts(), Counts(), Counts()
    for number, answer in enumerate(answers):
        taken = sample("q", answer)
        size = [(number % 7 + 1, len(answer))]
        whole.take(taken, size, None)
        (first if number < cut else second).take(taken, size, None)
    first.add(second)
    assert first == whole
    stats = source_stats("s", whole, bad=0, distinct_images=1, max_length=None)
    lengths = [len(answer) for answer in answers]
    expected = {name: int(np.quantile(lengths, q, method="lower")) for name, q in QUANTILES.items()}
    assert stats.answer_chars == expected
    assert sum(stats.answer_bins.values()) == len(answers)
