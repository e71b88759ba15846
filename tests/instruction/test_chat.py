"""Conversations to tokens: what is supervised, where the image goes, and templates of other families."""

from __future__ import annotations

import numpy as np
import pytest

from vitp.errors import CheckpointError, DataError
from vitp.instruction.chat import SPECIAL_TOKENS, ChatFormat
from vitp.instruction.sample import Turn
from vitp.vlm.tokenizer import build_tokenizer

TURNS = (
    Turn("user", "<image>\nHow many ships?"),
    Turn("assistant", "Two ships."),
    Turn("user", "Where? naïve 東京"),
    Turn("assistant", "<ref>ship</ref><box>[[1, 2, 30, 40]]</box>"),
)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return build_tokenizer(["How many ships are there? Two ships in the harbour."] * 20, 400)


def test_only_answers_and_their_end_token_are_supervised(tokenizer: object) -> None:
    chat = ChatFormat(tokenizer)
    encoded = chat.encode(TURNS, [4])
    decoded = [tokenizer.decode(encoded.ids[a:b].tolist()) for a, b in encoded.answers]  # type: ignore[attr-defined]
    assert decoded == ["Two ships.<|im_end|>", "<ref>ship</ref><box>[[1, 2, 30, 40]]</box><|im_end|>"]
    for begin, _ in encoded.answers:
        before = tokenizer.decode(encoded.ids[:begin].tolist())  # type: ignore[attr-defined]
        assert before.endswith("<|im_start|>assistant\n")


def test_image_mark_becomes_framed_placeholders(tokenizer: object) -> None:
    chat = ChatFormat(tokenizer)
    encoded = chat.encode(TURNS, [4])
    places = np.flatnonzero(encoded.visual)
    assert np.array_equal(np.diff(places), [1, 1, 1])
    text = tokenizer.decode(encoded.ids.tolist())  # type: ignore[attr-defined]
    assert "<|im_start|>user\n<img>" + "<IMG_CONTEXT>" * 4 + "</img>\nHow many ships?<|im_end|>\n" in text
    assert "naïve 東京" in text  # byte-level: nothing is out of vocabulary


def test_decoding_the_ids_gives_the_rendered_conversation(tokenizer: object) -> None:
    chat = ChatFormat(tokenizer)
    text, _ = chat.render(TURNS)
    encoded = chat.encode(TURNS, [0])
    assert tokenizer.decode(encoded.ids.tolist()) == text.replace("<image>", "<img></img>")  # type: ignore[attr-defined]


@pytest.mark.parametrize("counts", [[], [1, 2]])
def test_mark_count_must_match(tokenizer: object, counts: list[int]) -> None:
    with pytest.raises(DataError, match="1 <image> marks for"):
        ChatFormat(tokenizer).encode(TURNS, counts, "a.jsonl:3")


def test_a_template_with_its_own_header_and_suffix(tokenizer: object) -> None:
    """Llama-style framing: other markers, a system preamble, no newline after the end token."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = (  # type: ignore[attr-defined]
        "SYSTEM{% for m in messages %}<|im_start|>[{{ m['role'] }}]\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>[assistant]\n\n{% endif %}"
    )
    encoded = ChatFormat(other).encode(TURNS[:2], [2])
    begin, end = encoded.answers[0]
    assert other.decode(encoded.ids[begin:end].tolist()) == "Two ships.<|im_end|>"  # type: ignore[attr-defined]


def test_a_template_that_rewrites_history_is_refused(tokenizer: object) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = (  # type: ignore[attr-defined]
        "{% for m in messages %}{{ m['role'] }}:{% if loop.last %}{{ m['content'] }}{% else %}...{% endif %}\n{% endfor %}"
    )
    with pytest.raises(CheckpointError, match="rewrites earlier turns"):
        ChatFormat(other).encode(TURNS, [1])


def test_built_tokenizer_survives_saving(tokenizer: object, tmp_path: object) -> None:
    from vitp.vlm.tokenizer import load_tokenizer

    tokenizer.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    again = load_tokenizer(str(tmp_path))
    one, two = ChatFormat(tokenizer).encode(TURNS, [3]), ChatFormat(again).encode(TURNS, [3])
    assert np.array_equal(one.ids, two.ids)
    assert one.answers == two.answers
    assert len({again.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}) == len(SPECIAL_TOKENS)


def test_missing_tokenizer_names_the_place() -> None:
    from vitp.vlm.tokenizer import load_tokenizer

    with pytest.raises(CheckpointError, match=r"/nowhere/at/all: no tokenizer"):
        load_tokenizer("/nowhere/at/all")
