"""Tokenizers: a model's own, or a small byte-level BPE built from the recipe's text."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from vitp.errors import CheckpointError
from vitp.instruction.chat import SPECIAL_TOKENS

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Train a byte-level BPE on `texts`; no text is ever out of its vocabulary.

    Args:
        texts: the recipe's own questions and answers.
        vocabulary: upper bound of the number of tokens, special ones included; at least 300.

    Returns:
        a ``PreTrainedTokenizerFast`` with ChatML as its chat template and InternVL's added tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, *SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_with_roles(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, *SPECIAL_TOKENS],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _with_roles(texts: Iterable[str]) -> Iterator[str]:
    """The texts, and the words the chat template puts around them, as often as it will: each becomes one token."""
    for text, role in zip(texts, cycle(("user", "assistant")), strict=False):
        yield text
        yield role


def read_tokenizer(path: str, gguf_file: str | None = None) -> Any:
    """A model's tokenizer as it is, from a folder or a hub id, or from a GGUF file in the folder `path`.

    Raises:
        CheckpointError: nothing loadable there.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, gguf_file=gguf_file)
    except (OSError, ValueError, struct.error) as error:
        hint = "" if Path(path).exists() else " (no such folder here, and the hub did not answer)"
        raise CheckpointError(
            f"{Path(path, gguf_file or '')}: no tokenizer can be loaded{hint}: {str(error).splitlines()[0]}"
        ) from error


def load_tokenizer(path: str) -> Any:
    """A model's tokenizer from a folder or a hub id, with InternVL's image and box tokens added where missing.

    Raises:
        CheckpointError: nothing loadable there.
    """
    tokenizer = read_tokenizer(path)
    known = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in known]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer
