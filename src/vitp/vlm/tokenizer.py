"""Tokenizers: a model's own, or a small byte-level BPE built from the recipe's text."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from vitp.errors import CheckpointError, MissingExtraError
from vitp.instruction.chat import SPECIAL_TOKENS
from vitp.instruction.chat_template import CHATML, TURN_END, TURN_START

END_OF_TEXT = "<|endoftext|>"
_NONE = "holds no tokenizer; copy tokenizer.json and tokenizer_config.json there (or vocab.json and merges.txt)"


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
    """A model's tokenizer as it is, from a folder or a hub id, or from a GGUF file (`path` itself, or in the folder `path`).

    Raises:
        CheckpointError: nothing loadable there.
        MissingExtraError: a GGUF file, and the extra that reads it is not installed.
    """
    from transformers import AutoTokenizer

    if gguf_file is None and Path(path).suffix.lower() == ".gguf":
        path, gguf_file = split_gguf(path) if Path(path).is_file() else (str(Path(path).parent), Path(path).name)
    place = Path(path, gguf_file or "")
    if gguf_file is not None and not place.is_file():
        raise CheckpointError(f"{place}: there is no such file")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, gguf_file=gguf_file)
    except ImportError as error:
        if gguf_file is None:
            raise CheckpointError(f"{place}: no tokenizer can be loaded: {_first_line(error)}") from error
        raise MissingExtraError(f"{place}: a GGUF file needs more packages: pip install 'vitp[gguf]'") from error
    except (OSError, ValueError, KeyError, struct.error) as error:
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{place}: its tokenizer is Python code in the model's folder, which is not run; use a copy of the model in "
                "transformers' own format (for InternVL the repositories whose name ends in -hf), or one with a Qwen tokenizer"
            ) from error
        if "instantiate the backend tokenizer" in str(error):
            raise CheckpointError(f"{place}: {_NONE}") from error
        hint = "" if Path(path).exists() else " (no such folder here, and the hub did not answer)"
        raise CheckpointError(f"{place}: no tokenizer can be loaded{hint}: {_first_line(error)}") from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):  # made up from the model's type alone
        raise CheckpointError(f"{place}: {_NONE}")
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def split_gguf(path: str) -> tuple[str, str | None]:
    """Folder and name of a GGUF file; of anything else the path itself and None.

    Raises:
        CheckpointError: the file is no GGUF file.
        MissingExtraError: what reads it is not installed.
    """
    if not path.lower().endswith(".gguf") or not Path(path).is_file():
        return path, None
    from vitp.synthesis.paraphrase import find_model

    folder, name = find_model(Path(path))
    return str(folder), name


def load_tokenizer(path: str, gguf_file: str | None = None) -> Any:
    """A model's tokenizer, with InternVL's image and box tokens added where missing; tokens that are there keep their ids.

    Raises:
        CheckpointError: nothing loadable there, or it belongs to another model than the config.json beside it.
        MissingExtraError: what `read_tokenizer` raises.
    """
    tokenizer = read_tokenizer(path, gguf_file)
    rows = None if gguf_file else _stated_rows(Path(path, "config.json"))
    if rows is not None:
        raise_if_beyond(tokenizer, rows, path)
    known = (
        tokenizer.get_added_vocab()
    )  # an ordinary piece of that name keeps its id, but must be one that texts are cut at
    missing = [token for token in SPECIAL_TOKENS if token not in known]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def embedding_rows(tokenizer: Any) -> int:
    """Rows an embedding needs for the tokenizer: its highest id and one, which may be more than it has tokens."""
    return int(max(tokenizer.get_vocab().values())) + 1


def raise_if_beyond(tokenizer: Any, rows: int, place: Path | str) -> None:
    """Refuse a tokenizer with tokens that a language model of `rows` embedding rows cannot know.

    The tokens `load_tokenizer` and ChatML add are no such ones: rows are made for them.

    Raises:
        CheckpointError: there are some.
    """
    ours = {*SPECIAL_TOKENS, TURN_START, TURN_END}
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and token not in ours)
    if beyond:
        number, token = beyond[0]
        more = f" (and {len(beyond) - 1} more)" if beyond[1:] else ""
        raise CheckpointError(
            f"{place}: the tokenizer's token {token} has the id {number}{more}, but the language model has {rows} embedding "
            "rows; they are of different models: copy the tokenizer's files from the folder the weights came from"
        )


def _stated_rows(file: Path) -> int | None:
    """The vocabulary size a model's config.json states, in transformers' or InternVL's layout."""
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):  # none here (a hub id, a tokenizer alone); a damaged one is the weights' affair
        return None
    if not isinstance(config, dict):
        return None
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None
