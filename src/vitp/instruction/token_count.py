"""How many tokens conversations become, without laying them out: what `ChatFormat.encode` gives, some ten times faster.

Two facts make that possible, and both are checked rather than assumed; where one does not hold, the slow way is taken.

* Most chat templates copy the texts and look at the roles alone. Then the text around the turns depends on the roles
  only, and is rendered once for each sequence of roles (`_frame`), with texts that refuse to be looked into.
* Byte-level BPE tokenises every piece of its pre-tokeniser on its own, and with the patterns in `_PATTERNS` no piece holds
  a space that follows anything but blanks. So a text may be cut in front of such spaces, and the words counted once.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vitp.errors import CheckpointError
from vitp.instruction.chat import IMAGE_END, IMAGE_START, ChatFormat
from vitp.instruction.sample import IMAGE_MARK, Role, Turn

# Pre-tokeniser patterns in which a space is the first character of a piece, or the piece is blank throughout.
_PATTERNS = frozenset((
    # Qwen2, Qwen2.5, Qwen3; with it InternVL 2.5 and later
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Llama 3, cl100k
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
))  # fmt: skip
_NORMALIZERS = ("NFC", "NFD")  # neither joins nor reorders anything across a space
_WORD_SPACE = re.compile(r"(?<=\S) ")  # a space that begins a word
_Located = tuple[str, list[tuple[int, int]]]
_ENDS_LINE = re.compile(r"\S\n\Z")
_WORDS = 1 << 18  # words remembered, about 30 MB
_LONGEST_WORD = 64  # characters; longer ones seldom come twice


@dataclass(frozen=True, slots=True)
class TextCount:
    """Tokens of one conversation: all but the visual ones, and those of its answers among them."""

    text: int
    supervised: int


class _ReadError(Exception):
    """The template looked into a text."""


def _refuse(*_: object) -> NoReturn:
    raise _ReadError


_OPERATORS = [
    "bool",
    "contains",
    "eq",
    "ge",
    "getitem",
    "gt",
    "hash",
    "iter",
    "le",
    "len",
    "lt",
    "mod",
    "mul",
    "ne",
    "rmod",
    "rmul",
    "format",
]


def _joined(first: str, second: str) -> str:
    text: str = _Opaque(str.__str__(first) + str.__str__(second))
    return text


# A text that can be copied and joined to others, and nothing else.
_Opaque = type(
    "_Opaque",
    (str,),
    {
        **{name: _refuse for name in dir(str) if not name.startswith("_")},
        **{f"__{name}__": _refuse for name in _OPERATORS},
        "__add__": _joined,
        "__radd__": lambda self, other: _joined(other, self),
    },
)


@dataclass(frozen=True)
class _Frame:
    """What stands around the turns: per part of the text whether it is an answer, and its literals and turns in order."""

    parts: tuple[tuple[bool, tuple[str, ...], tuple[int, ...]], ...]

    def texts(self, turns: Sequence[Turn]) -> list[tuple[bool, str]]:
        """The parts with the turns' texts put in; true for an answer."""
        found = []
        for answer, literals, places in self.parts:
            if not places:
                found.append((answer, literals[0]))
            elif len(places) == 1:
                found.append((answer, f"{literals[0]}{turns[places[0]].text}{literals[1]}"))
            else:
                middle = (text for k, i in enumerate(places) for text in (turns[i].text, literals[k + 1]))
                found.append((answer, "".join((literals[0], *middle))))
        return found


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
        self._frames: dict[tuple[Role, ...], _Frame | None] = {}
        self._loose: dict[tuple[Role, ...], _Loose | None] = {}
        self._bare = _Counts(chat.tokenizer, "", ends_blank=False)
        self._spaced = _Counts(chat.tokenizer, " ", ends_blank=False)
        self._alone = _Counts(chat.tokenizer, "", ends_blank=True)
        self._last = _Counts(chat.tokenizer, " ", ends_blank=True)
        self._cuts = cuts_at_spaces(chat.tokenizer)
        self._added = list(chat.tokenizer.added_tokens_decoder.values()) if self._cuts else []
        self._marks = self._alone[IMAGE_START] + self._alone[IMAGE_END]

    def count(self, turns: tuple[Turn, ...]) -> TextCount:
        """Tokens of a conversation as `ChatFormat.encode` lays it out; image start and end tokens are text.

        Raises:
            CheckpointError: the template rewrites earlier turns.
        """
        roles = tuple([turn.role for turn in turns])
        try:
            frame, loose = self._frames[roles], self._loose[roles]
        except KeyError:
            frame = self._frames[roles] = _frame(self._chat, roles)
            loose = self._loose[roles] = None if frame is None or not self._cuts else self._loosened(frame)
        if loose is not None:
            counted = self._apart(turns, loose)
            if counted is not None:
                return counted
        text = supervised = 0
        for answer, part in _cut(*self._chat.locate(turns)) if frame is None else frame.texts(turns):
            if answer:
                supervised += self._tokens(part)
            else:
                text += self._marked(part)
        return TextCount(text + supervised, supervised)

    def _apart(self, turns: tuple[Turn, ...], loose: _Loose) -> TextCount | None:
        """The count, turn by turn; None where a turn begins with a blank that may belong to a literal's last token."""
        text, supervised = loose.text, loose.supervised
        for turn, answer, after in zip(turns, loose.answers, loose.after_line_end, strict=True):
            if after and turn.text[:1].isspace():
                return None
            count = self._tokens(turn.text) if answer else self._marked(turn.text)
            text += count
            if answer:
                supervised += count
        return TextCount(text, supervised)

    def _loosened(self, frame: _Frame) -> _Loose | None:
        """The frame's literals counted, if each ends where a token does.

        That is so where an added token follows the turn, and where one line end stands before it: no pattern known here
        joins a line end to what follows, unless that is blank.
        """
        text = supervised = 0
        answers: dict[int, bool] = {}
        after: dict[int, bool] = {}
        for answer, literals, places in frame.parts:
            if not all(_ENDS_LINE.search(literal) for literal in literals[:-1] if literal):
                return None
            if not all(self._begins_apart(literal) for literal in literals[1:] if literal):
                return None
            count = sum(self._alone[literal] for literal in literals)
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

    def _marked(self, text: str) -> int:
        """Tokens of a text that may hold image marks."""
        if IMAGE_MARK not in text:
            return self._tokens(text)
        pieces = text.split(IMAGE_MARK)
        return sum(map(self._tokens, pieces)) + (len(pieces) - 1) * self._marks

    def _tokens(self, text: str) -> int:
        """Tokens of a text that is tokenised on its own."""
        if not self._cuts:
            return self._alone[text]
        try:
            return self._sum(text.split(" "))
        except _BlankError:  # a space that follows a blank begins no word
            return self._sum(_WORD_SPACE.split(text))

    def _sum(self, words: list[str]) -> int:
        """Tokens of a text in words; all but the first have lost the space in front of them."""
        last = words.pop()
        blank = not last or last[-1].isspace()
        if not words:
            return (self._alone if blank else self._bare)[last]
        ends = (self._last if blank else self._spaced)[last] + self._bare[words[0]]
        del words[0]
        return ends + sum(map(self._spaced.__getitem__, words))


def _cut(whole: str, spans: Sequence[tuple[int, int]]) -> list[tuple[bool, str]]:
    """A rendered text in parts, each tokenised on its own: between answers, and answers (true)."""
    parts, at = [], 0
    for begin, end in spans:
        parts += [(False, whole[at:begin]), (True, whole[begin:end])]
        at = end
    return [*parts, (False, whole[at:])]


class _OwnRenderer:
    """Renders a tokenizer's template as transformers does, but with texts as they are: it makes plain copies of them."""

    def __init__(self, tokenizer: Any) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self._template = environment.from_string(tokenizer.chat_template)
        self._names = tokenizer.special_tokens_map

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        """As the tokenizer's method of this name."""
        assert not tokenize
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self._names
        )


def _copies(chat: ChatFormat, roles: Sequence[Role], marks: Sequence[str], expected: _Located) -> bool:
    """Whether the template, given turns with these roles, copies their texts and does nothing else with them.

    `expected` is what it makes of `marks` in earnest: rendering with texts that cannot be looked into has to give the same.
    """
    probe = copy.copy(chat)
    try:
        probe.tokenizer = _OwnRenderer(chat.tokenizer)
        return probe.locate([Turn(role, _Opaque(mark)) for role, mark in zip(roles, marks, strict=True)]) == expected
    except (_ReadError, TemplateError, TypeError, CheckpointError):
        return False


def _frame(chat: ChatFormat, roles: Sequence[Role]) -> _Frame | None:
    """What the template puts around turns with these roles, whatever they say; None where it looks at what they say."""
    # Blanks, brackets and line ends at both sides: whatever changes a text changes one of these.
    marks = [f" \n<\"'&\\\x01{number}\x02 é{{}}>\n " for number in range(len(roles))]
    whole, spans = chat.locate([Turn(role, mark) for role, mark in zip(roles, marks, strict=True)])
    if not _copies(chat, roles, marks, (whole, spans)):
        return None
    order = [whole.find(mark) for mark in marks]
    if order != sorted(order) or any(whole.count(mark) != 1 for mark in marks):
        return None
    parts = []
    for answer, text in _cut(whole, spans):
        places = tuple(number for number, mark in enumerate(marks) if mark in text)
        literals = []
        for number in places:
            before, text = text.split(marks[number])
            literals.append(before)
        parts.append((answer, (*literals, text), places))
    if sorted(number for _, _, places in parts for number in places) != list(range(len(roles))):
        return None  # an answer begins or ends inside a turn's text
    return _Frame(tuple(parts))


class _BlankError(Exception):
    """A word ends with a blank, so the space behind it begins no word."""


class _Counts(dict[str, int]):
    """Word -> tokens of `prefix` and the word, counted when first asked for.

    Raises:
        _BlankError: the word ends with a blank, unless `ends_blank` allows it.
    """

    def __init__(self, tokenizer: Any, prefix: str, ends_blank: bool) -> None:
        super().__init__()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        tokenizer.encode("", add_special_tokens=False)  # switches off truncation and padding a file may ask for
        self._encode = tokenizer.encode if backend is None else backend.encode
        self._prefix, self._ends_blank = prefix, ends_blank

    def __missing__(self, word: str) -> int:
        full = self._prefix + word
        if not self._ends_blank and full[-1:].isspace():
            raise _BlankError
        count = len(self._encode(full, add_special_tokens=False))
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _WORDS:
                self.clear()
            self[word] = count
        return count


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
    if not steps or any(step["type"] not in ("Split", "ByteLevel") for step in steps):
        return False
    first = steps[0]
    if first["type"] == "ByteLevel":  # GPT-2's own pattern, in which spaces stand first too
        return bool(first["use_regex"]) and len(steps) == 1
    known = first["pattern"].get("Regex") in _PATTERNS and first["behavior"] == "Isolated" and not first["invert"]
    return known and len(steps) == 2 and steps[1]["type"] == "ByteLevel"


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
