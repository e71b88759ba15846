"""Where a tokenizer's tokens may be cut apart without changing them."""

from __future__ import annotations

import json
from typing import Any

# Pre-tokeniser patterns in which a space is the first character of a piece, or the piece is blank throughout.
PATTERNS = frozenset((
    # Qwen2, Qwen2.5, Qwen3; with it InternVL 2.5 and later
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Llama 3, cl100k
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
))  # fmt: skip
_NORMALIZERS = ("NFC", "NFD")  # neither joins nor reorders anything across a space


def cuts_at_spaces(tokenizer: Any) -> bool:
    """Whether a text's tokens are those of its words, cut in front of every space that follows no blank."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE" or getattr(backend.model, "dropout", None):
        return False
    if any(" " in t.content or t.lstrip or t.rstrip for t in tokenizer.added_tokens_decoder.values()):
        return False
    normalizer = None if backend.normalizer is None else json.loads(backend.normalizer.__getstate__())
    if normalizer is not None and normalizer["type"] not in _NORMALIZERS:
        return False
    if backend.pre_tokenizer is None:
        return False
    spec = json.loads(backend.pre_tokenizer.__getstate__())
    steps = spec["pretokenizers"] if spec["type"] == "Sequence" else [spec]
    if len(steps) == 2 and steps[0]["type"] == "Digits":  # SmolLM2: digits apart, wherever they stand
        steps = steps[1:]
    if not steps or any(step["type"] not in ("Split", "ByteLevel") for step in steps):
        return False
    first = steps[0]
    if first["type"] == "ByteLevel":  # GPT-2's own pattern, in which spaces stand first too
        return bool(first["use_regex"]) and len(steps) == 1
    known = first["pattern"].get("Regex") in PATTERNS and first["behavior"] == "Isolated" and not first["invert"]
    return known and len(steps) == 2 and steps[1]["type"] == "ByteLevel"


def cuts_after_line_ends(tokenizer: Any) -> bool:
    """Whether, where `cuts_at_spaces` holds, line ends are never joined to what follows them unless that is blank.

    All of `PATTERNS` take line ends before other blanks. GPT-2's leaves the last of several to what follows.
    """
    spec = json.loads(tokenizer.backend_tokenizer.pre_tokenizer.__getstate__())
    steps = spec["pretokenizers"] if spec["type"] == "Sequence" else [spec]
    return bool(steps[0]["type"] == "Split")
