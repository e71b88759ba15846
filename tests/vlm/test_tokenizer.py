"""The tokenizer built from a recipe's text."""

from __future__ import annotations

from vitp.vlm.tokenizer import build_tokenizer


def test_the_chat_templates_own_words_are_one_token_each() -> None:
    texts = [f"How many ships are at pier {i}?" if i % 2 else f"{i} ships" for i in range(200)]
    tokenizer = build_tokenizer(texts, 400)
    turns = [{"role": "user", "content": "ships?"}, {"role": "assistant", "content": "7"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    pieces = [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "".join(pieces) == text
    assert {"user", "assistant"} <= set(pieces)


def test_any_text_survives() -> None:
    tokenizer = build_tokenizer(["a few words"] * 3, 300)
    text = "Straße, 東京 \U0001f6f0 \t\n <box>[[1, 2, 3, 4]]</box>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
