"""How many tokens conversations become, without laying them out: what `ChatFormat.encode` gives, twenty times faster.

Two facts make that possible, and both are checked rather than assumed; where one does not hold, the slow way is taken.

* Most chat templates copy the texts and look at the roles alone (`vitp.instruction.chat_frame`).
* Byte-level BPE tokenises every piece of its pre-tokeniser on its own, and with the patterns known to
  `vitp.instruction.pieces` no piece holds a space that follows anything but blanks. So a text may be cut in front of such
  spaces, and each word counted once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vitp.instruction.chat import IMAGE_END, IMAGE_START, ChatFormat, cut_at_answers
from vitp.instruction.chat_frame import Frame, find_frame
from vitp.instruction.pieces import cuts_at_spaces
from vitp.instruction.sample import IMAGE_MARK, Role, Turn

_WORD_SPACE = re.compile(r"(?<=\S) ")  # a space that begins a word
_ENDS_LINE = re.compile(r"\S\n\Z")
_WORDS = 1 << 18  # words remembered, about 30 MB
_LONGEST_WORD = 64  # characters; longer ones seldom come twice


Ints = npt.NDArray[np.int64]
Turns = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class TextCount:
    """Tokens of one conversation: all but the visual ones, and those of its answers among them."""

    text: int
    supervised: int


@dataclass(frozen=True)
class _Loose:
    """A frame whose literals may be counted apart from the turns between them: once, and for all."""

    text: int  # tokens of all literals
    supervised: int  # of those, in answers
    answers: tuple[bool, ...]  # which turns are
    after_line_end: tuple[bool, ...]  # which turns follow a literal, and must not begin with a blank


class TokenCounter:
    """Counts the tokens of conversations for one chat format."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._frames: dict[tuple[Role, ...], tuple[Frame | None, _Loose | None]] = {}
        self._words = _Words(chat.tokenizer)
        self._added = list(chat.tokenizer.added_tokens_decoder.values()) if self._words.cut else []
        self._marks = int(self._words.tokens([IMAGE_START, IMAGE_END]).sum())

    def count(self, conversations: Sequence[Turns]) -> list[TextCount]:
        """Tokens of conversations as `ChatFormat.encode` lays them out; image start and end tokens are text.

        Raises:
            CheckpointError: the template rewrites earlier turns.
        """
        known, known_supervised = [0] * len(conversations), [0] * len(conversations)
        pieces: list[str] = []  # each tokenised on its own
        owners: list[int] = []
        answers: list[bool] = []
        for number, turns in enumerate(conversations):
            frame, loose = self._frame(turns)
            if loose is not None:
                known[number], known_supervised[number] = loose.text, loose.supervised
                parts = list(zip(loose.answers, [turn.text for turn in turns], strict=True))
            else:
                parts = cut_at_answers(*self._chat.locate(turns)) if frame is None else frame.texts(turns)
                if not self._chat.splits(parts):
                    encoded = self._chat.encode(turns, [0] * sum(turn.text.count(IMAGE_MARK) for turn in turns))
                    known[number], known_supervised[number] = len(encoded.ids), encoded.supervised
                    continue
            for answer, part in parts:
                if answer or IMAGE_MARK not in part:
                    pieces.append(part)
                    owners.append(number)
                    answers.append(answer)
                else:
                    shown = part.split(IMAGE_MARK)
                    known[number] += (len(shown) - 1) * self._marks
                    pieces += shown
                    owners += [number] * len(shown)
                    answers += [False] * len(shown)
        counts, chosen = self._words.tokens(pieces), np.array(answers, bool)
        owner = np.array(owners, np.int64)
        text, supervised = np.array(known, np.int64), np.array(known_supervised, np.int64)
        np.add.at(text, owner, counts)
        np.add.at(supervised, owner[chosen], counts[chosen])
        return list(map(TextCount, text.tolist(), supervised.tolist()))

    def _frame(self, turns: Turns) -> tuple[Frame | None, _Loose | None]:
        """What stands around these turns, and the same counted, if it may be counted apart from them."""
        roles = tuple([turn.role for turn in turns])
        try:
            frame, loose = self._frames[roles]
        except KeyError:
            frame = find_frame(self._chat, roles)
            loose = self._loosened(frame) if frame is not None and self._words.cut else None
            self._frames[roles] = frame, loose
        if loose is not None:
            for turn, after in zip(turns, loose.after_line_end, strict=True):
                if (after or turn.role == "assistant") and turn.text[
                    :1
                ].isspace():  # may be joined to the literal before
                    return frame, None
        return frame, loose

    def _loosened(self, frame: Frame) -> _Loose | None:
        """The frame's literals counted, if each ends where a token does.

        That is so where an added token follows the turn, and where one line end stands before it: no pattern known here
        joins a line end to what follows, unless that is blank.
        """
        if not self._chat.splits(frame.texts([Turn("user", "a")] * sum(len(places) for _, _, places in frame.parts))):
            return None
        text = supervised = 0
        answers: dict[int, bool] = {}
        after: dict[int, bool] = {}
        for answer, literals, places in frame.parts:
            if not all(_ENDS_LINE.search(literal) for literal in literals[:-1] if literal):
                return None
            if not all(self._begins_apart(literal) for literal in literals[1:] if literal):
                return None
            count = int(self._words.tokens(literals).sum())
            text, supervised = text + count, supervised + answer * count
            for place, literal in zip(places, literals, strict=False):
                answers[place], after[place] = answer, bool(literal)
        return _Loose(text, supervised, *(tuple(found[place] for place in sorted(found)) for found in (answers, after)))

    def _begins_apart(self, literal: str) -> bool:
        """Whether a literal begins with an added token, and no other could reach into it from the text before."""
        if any("\n" in token.content for token in self._added):
            return False
        if any(literal.startswith(t.content[k:]) for t in self._added for k in range(1, len(t.content))):
            return False
        return any(literal.startswith(t.content) and not (t.normalized or t.single_word) for t in self._added)


class _Words:
    """Counts the tokens of texts by those of their words, each tokenised when first met."""

    def __init__(self, tokenizer: Any) -> None:
        self.cut = cuts_at_spaces(tokenizer)
        self._bare, self._spaced = _Counts(tokenizer, ""), _Counts(tokenizer, " ")

    def tokens(self, texts: Sequence[str]) -> Ints:
        """Tokens of texts that are tokenised on their own, int64 [n]."""
        if not self.cut or not texts:
            return np.array([_plain(self._bare[text]) for text in texts], np.int64)
        split = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
        ends = split.offsets.to_numpy()
        first, last = ends[:-1], ends[1:] - 1  # [n]; all words but the first have lost the space in front of them
        encoded = split.values.dictionary_encode()
        words, at = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        counts = np.array([self._spaced[word] for word in words], np.int64)[at]
        known = dict.fromkeys(at[first].tolist())
        bare = np.zeros(len(words), np.int64)
        bare[list(known)] = [self._bare[words[k]] for k in known]
        counts[first] = bare[at[first]]
        follows = counts < 0  # a blank at its end, hence no word begins behind it: only the last one may have that
        follows[last] = False
        totals: Ints = np.add.reduceat(np.where(counts < 0, ~counts, counts), first)
        for text in np.unique(np.searchsorted(ends, np.flatnonzero(follows), side="right") - 1).tolist():
            totals[text] = self._slowly(texts[text])
        return totals

    def _slowly(self, text: str) -> int:
        """The same where some spaces follow blanks, which begin no word."""
        first, *others = _WORD_SPACE.split(text)
        return _plain(self._bare[first]) + sum(_plain(self._spaced[word]) for word in others)


def _plain(count: int) -> int:
    return count if count >= 0 else ~count


class _Counts(dict[str, int]):
    """Word -> tokens of `prefix` and the word, n; for words that end with a blank, -1 - n."""

    def __init__(self, tokenizer: Any, prefix: str) -> None:
        super().__init__()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        tokenizer.encode("", add_special_tokens=False)  # switches off truncation and padding a file may ask for
        self._encode = tokenizer.encode if backend is None else backend.encode
        self._prefix = prefix

    def __missing__(self, word: str) -> int:
        full = self._prefix + word
        count = len(self._encode(full, add_special_tokens=False))
        if full[-1:].isspace():
            count = ~count
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _WORDS:
                self.clear()
            self[word] = count
        return count


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of everything that decides how a conversation is tokenised: vocabulary, rules, added tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    else:
        tokenizer.encode("", add_special_tokens=False)  # truncation and padding are no part of it
        rules = backend.to_str()
    key = json.dumps([str(tokenizer.chat_template), rules])
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
