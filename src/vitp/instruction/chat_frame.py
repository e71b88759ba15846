"""What a chat template puts around turns, known without rendering every conversation.

Most templates copy the texts and look at the roles alone. What stands around the turns then depends on the roles only, and
is rendered once for each sequence of roles. That a template is such a one is not assumed but tried: it is rendered with
texts that refuse to be looked into.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vitp.errors import CheckpointError
from vitp.instruction.chat import ChatFormat, cut_at_answers
from vitp.instruction.sample import Role, Turn

_Located = tuple[str, list[tuple[int, int]]]


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
class Frame:
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


def find_frame(chat: ChatFormat, roles: Sequence[Role]) -> Frame | None:
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
    for answer, text in cut_at_answers(whole, spans):
        places = tuple(number for number, mark in enumerate(marks) if mark in text)
        literals = []
        for number in places:
            before, text = text.split(marks[number])
            literals.append(before)
        parts.append((answer, (*literals, text), places))
    if sorted(number for _, _, places in parts for number in places) != list(range(len(roles))):
        return None  # an answer begins or ends inside a turn's text
    return Frame(tuple(parts))
