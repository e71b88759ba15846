"""Counted tokens are those of `ChatFormat.encode`, for whatever text, template and tokenizer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vitp.errors import CheckpointError
from vitp.instruction.chat import SPECIAL_TOKENS, ChatFormat
from vitp.instruction.chat_frame import find_frame
from vitp.instruction.chat_template import CHATML
from vitp.instruction.pieces import PATTERNS, cuts_at_spaces
from vitp.instruction.sample import Turn
from vitp.instruction.token_count import TokenCounter, tokenizer_fingerprint
from vitp.vlm.tokenizer import build_tokenizer, load_tokenizer

QWEN = Path(__file__).parents[2] / "../shared/data/tokenizers/qwen2"
CORPUS = [
    "How many ships are there? Two  ships,\nin the harbour's 3 docks (of 120).",
    "a tree. The trees\n\n  - one",
] * 30
# Preamble, and a text that is stripped: the template looks into the texts.
TRIMMING = (
    "{{ 'Cutting Knowledge: 2023\n\n' }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n\n"
    "{{ message['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
LOOKING = CHATML.replace(
    "{{ message['content'] }}", "{% if 'x' in message['content'] %}!{% endif %}{{ message.content }}"
)
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou  are\n helpful.<|im_end|>\n{% endif %}" + CHATML
)
BARE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def trained(pre_tokenizer: Any, normalizer: Any = None) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")


def split_by(pattern: str) -> Any:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


TOKENIZERS = {
    "own": lambda: build_tokenizer(CORPUS, 400),
    **{f"pattern {n}": lambda p=p: trained(split_by(p)) for n, p in enumerate(sorted(PATTERNS))},
    "digits": lambda: trained(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "unknown pattern": lambda: trained(split_by(r"\s?\S+\s\S+|\s+|\S+")),  # two words in one piece
    "one piece": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)),
}
TEMPLATES = {"chatml": CHATML, "trimming": TRIMMING, "looking": LOOKING, "system": SYSTEM, "bare": BARE}
BLANKS = [" ", " ", "  ", "\n", " \n", "\n ", "\t", "\u00a0", "\u2003", "\u3000", "\x1c", "\r\n", "\x00"]
WORDS = ["ship", "Two", "x", ".", ",", "'s", "'", "12", "3", "é", "e\u0301", "\u0301", "東京", "🚢", "<", "-"]
MARKUP = ["<box>", "</box>", "[[1, 2]]", "<ref>", "<image>"]
PIECES = [*BLANKS, *WORDS, *MARKUP]
TEXT = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)


def turns_of(texts: list[str], system: str | None) -> tuple[Turn, ...]:
    """User and assistant in turn; answers show no image."""
    pairs = [
        Turn("assistant" if i % 2 else "user", t.replace("<image>", "") if i % 2 else t) for i, t in enumerate(texts)
    ]
    return (*([Turn("system", system.replace("<image>", ""))] if system is not None else []), *pairs)


@pytest.fixture(scope="module", params=[(t, "chatml") for t in TOKENIZERS] + [("own", t) for t in TEMPLATES])
def formats(request: pytest.FixtureRequest) -> tuple[ChatFormat, TokenCounter]:
    tokenizer = TOKENIZERS[request.param[0]]()
    tokenizer.chat_template = TEMPLATES[request.param[1]]
    chat = ChatFormat(tokenizer)
    return chat, TokenCounter(chat)


@settings(max_examples=60)
@given(texts=st.lists(TEXT, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0), system=st.none() | TEXT)
def test_counts_are_those_of_the_encoding(
    formats: tuple[ChatFormat, TokenCounter], texts: list[str], system: str | None
) -> None:
    chat, counter = formats
    turns = turns_of(texts, system)
    images = sum(turn.text.count("<image>") for turn in turns)
    encoded = chat.encode(turns, [3] * images)
    (counted,) = counter.count([turns])
    assert (counted.text, counted.supervised) == (len(encoded.ids) - 3 * images, encoded.supervised)


def test_only_known_tokenizers_are_cut_at_spaces() -> None:
    assert {name for name, make in TOKENIZERS.items() if not cuts_at_spaces(make())} == {"unknown pattern", "one piece"}
    eager = build_tokenizer(CORPUS, 400)
    from tokenizers import AddedToken

    eager.add_tokens([AddedToken("<eat>", lstrip=True)])  # takes the space in front of it along
    assert not cuts_at_spaces(eager)


def test_a_real_tokenizer_counts_alike() -> None:
    if not QWEN.is_dir():
        pytest.skip("the Qwen2 vocabulary is not here")
    tokenizer = load_tokenizer(str(QWEN))
    assert cuts_at_spaces(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    chat = ChatFormat(tokenizer)
    counter, draw = TokenCounter(chat), random.Random(0)
    for _ in range(300):
        texts = ["".join(draw.choices(PIECES, k=30)) for _ in range(4)]
        turns = turns_of(texts, None)
        encoded = chat.encode(turns, [0] * sum(turn.text.count("<image>") for turn in turns))
        assert counter.count([turns])[0].text == len(encoded.ids)


@pytest.mark.parametrize(
    ("template", "fast"), [(CHATML, True), (SYSTEM, True), (BARE, False), (TRIMMING, False), (LOOKING, False)]
)
def test_texts_are_only_put_into_templates_that_copy_them(template: str, fast: bool) -> None:
    tokenizer = build_tokenizer(CORPUS, 400)
    tokenizer.chat_template = template
    assert (find_frame(ChatFormat(tokenizer), ("user", "assistant")) is not None) == fast


def test_templates_that_rewrite_earlier_turns_are_refused_as_in_training() -> None:
    tokenizer = build_tokenizer(CORPUS, 400)
    tokenizer.chat_template = CHATML.replace("{{ message['role'] }}", "{{ loop.last }}{{ message['role'] }}")
    turns = turns_of(["a", "b", "c", "d"], None)
    with pytest.raises(CheckpointError, match="rewrites earlier turns"):
        TokenCounter(ChatFormat(tokenizer)).count([turns])


def test_the_fingerprint_is_vocabulary_rules_and_template() -> None:
    first, same, smaller = build_tokenizer(CORPUS, 400), build_tokenizer(CORPUS, 400), build_tokenizer(CORPUS, 300)
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(same) != tokenizer_fingerprint(smaller)
    same("a text", truncation=True, max_length=2, padding="max_length")  # leaves traces in the tokenizer
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(same)
    same.chat_template = SYSTEM
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(same)
