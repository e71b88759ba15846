"""One record of an annotation file, in any of the usual layouts, to one `Sample`.

What is read (other keys are ignored):

* images: ``image`` (InternVL, LLaVA) or ``images`` (ShareGPT, LLaMA-Factory), a path or a list of paths;
* turns: ``conversations`` or ``messages``, a list of ``{"from", "value"}`` or ``{"role", "content"}``; the roles are
  human = user, gpt = assistant, and system, which comes first or not at all (or stands in the key ``system``);
* a content may be a list of parts, ``{"type": "text", "text": ...}`` and ``{"type": "image"}``; an image part may hold
  its path in ``image`` or ``path`` when the record has no image key.

An ``<image>`` mark stands where an image goes, in user turns only. A record with one image and no mark gets
``<image>`` and a newline in front of its first user turn; otherwise there are as many marks as images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from vitp.errors import DataError
from vitp.instruction.sample import IMAGE_MARK, Role, Sample, Turn

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# The chat template writes these itself; inside a text they would forge turns or images.
RESERVED = ("<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")

Code = Literal[
    "record-layout", "record-type", "record-role", "record-order", "empty-text", "image-marks", "reserved-token",
    "bad-text", "video", "line-syntax", "line-encoding", "line-too-long", "file-changed", "file-damaged", "shard-member",
]  # fmt: skip

MAX_RECORD_BYTES = 32 << 20  # ours: far above any real record; guards against a file without line ends


class RecordError(DataError):
    """A record cannot be used. `code` groups errors of one kind, `found` and `fix` are the sentence's halves."""

    def __init__(self, code: Code, found: str, fix: str, where: str) -> None:
        self.code: Code = code
        self.found = found
        self.fix = fix
        super().__init__(f"{found}; {fix}", where)

    def __reduce__(self) -> tuple[type[RecordError], tuple[Code, str, str, str]]:
        return RecordError, (self.code, self.found, self.fix, self.where)


def parse_record(record: object, where: str) -> Sample:
    """Turn a decoded JSON record into a `Sample`.

    Args:
        record: what the JSON parser returned.
        where: ``file:line``, for messages and for `Sample.where`.

    Raises:
        RecordError: the first thing found wrong, with its fix.
    """
    if not isinstance(record, dict):
        raise RecordError("record-type", f"holds {_kind(record)}", "a record is a JSON object {...}", where)
    for key in ("video", "videos"):
        if record.get(key):
            raise RecordError("video", f"has the key '{key}', and videos are not supported",
                              "name single frames under 'image' instead", where)  # fmt: skip
    listed = _images(record, where)
    turns, attached = _turns(record, where)
    if listed is not None and attached:
        raise RecordError("record-layout", "names images both under an image key and inside its content parts",
                          "keep one of the two", where)  # fmt: skip
    images = tuple(attached if listed is None else listed)
    _check_order(turns, where)
    _check_texts(turns, where)
    return Sample(_with_marks(turns, len(images), where), images, where)


def _kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return "a list" if isinstance(value, list) else "an object"


def _images(record: dict[object, object], where: str) -> list[str] | None:
    """Paths under ``image`` or ``images``; None where both are absent, null or empty."""
    given = [key for key in ("image", "images") if record.get(key) not in (None, "", [])]
    if not given:
        return None
    if len(given) == 2:
        raise RecordError("record-layout", "has both 'image' and 'images'", "keep one of the two", where)
    value = record[given[0]]
    paths: list[str] = []
    for path in value if isinstance(value, list) else [value]:
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise RecordError("record-type", f"names {_kind(path)} under '{given[0]}'",
                              "an image is a path relative to the source's root", where)  # fmt: skip
        _check_encodable(path, f"a path under '{given[0]}'", where)
        paths.append(path)
    return paths


def _turns(record: dict[object, object], where: str) -> tuple[list[Turn], list[str]]:
    """All turns with their text as written, and the images named inside content parts."""
    given = [key for key in ("conversations", "messages") if record.get(key) is not None]
    if len(given) != 1:
        found = "has both 'conversations' and 'messages'" if given else "has neither 'conversations' nor 'messages'"
        keys = ", ".join(sorted(repr(key) for key in record)[:8]) or "none"
        fix = "keep one of the two" if given else f"write its turns under 'conversations' (its keys: {keys})"
        raise RecordError("record-layout", found, fix, where)
    entries = record[given[0]]
    if not isinstance(entries, list) or not entries:
        found = f"has {'an empty list' if entries == [] else _kind(entries)} under '{given[0]}'"
        raise RecordError("record-type", found, "write a list of turns", where)
    turns: list[Turn] = []
    images: list[str] = []
    if record.get("system") is not None:
        turns.append(Turn("system", _content(record["system"], "the system text", images, where)))
    for number, entry in enumerate(entries, 1):
        turns.append(_turn(entry, number, images, where))
    return turns, images


def _turn(entry: object, number: int, images: list[str], where: str) -> Turn:
    """One turn; paths of its image parts are appended to `images`."""
    if not isinstance(entry, dict):
        raise RecordError("record-type", f"turn {number} is {_kind(entry)}",
                          "a turn is an object with 'from' and 'value' or 'role' and 'content'", where)  # fmt: skip
    role_key = "from" if "from" in entry else "role"
    text_key = "value" if "value" in entry else "content"
    for key, other in ((role_key, "from"), (text_key, "value")):
        if key not in entry:
            raise RecordError("record-layout", f"turn {number} has no '{other}' and no '{key}'", "add it", where)
    name = entry[role_key]
    if not isinstance(name, str) or name not in ROLES:
        raise RecordError("record-role", f"turn {number} has the role {_kind(name)}",
                          f"the roles are {', '.join(ROLES)}", where)  # fmt: skip
    return Turn(ROLES[name], _content(entry[text_key], f"the text of turn {number}", images, where))


def _content(value: object, what: str, images: list[str], where: str) -> str:
    """A text as it is, or parts joined: texts directly, an image mark on a line of its own."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RecordError("record-type", f"{what} is {_kind(value)}", "write it as a text in quotes", where)
    text = ""
    for part in value:
        piece = _part(part, what, images, where)
        both_sides = bool(text) and not text.endswith("\n") and not piece.startswith("\n")
        text += "\n" + piece if both_sides and IMAGE_MARK in (piece, text[-len(IMAGE_MARK) :]) else piece
    return text


def _part(part: object, what: str, images: list[str], where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, dict) and kind == "image":
        path = part.get("image", part.get("path"))
        if isinstance(path, str) and path.strip() and "\0" not in path:
            _check_encodable(path, "the path of an image part", where)
            images.append(path)
        elif path is not None:
            raise RecordError("record-type", f"{what} has an image part with {_kind(path)} as its path",
                              "an image is a path relative to the source's root", where)  # fmt: skip
        return IMAGE_MARK
    if kind == "video":
        raise RecordError("video", f"{what} has a part of type 'video', and videos are not supported",
                          "use single frames as parts of type 'image'", where)  # fmt: skip
    found = f"a part of type {kind!r}" if isinstance(kind, str) else f"{_kind(part)} as a part"
    raise RecordError("record-type", f"{what} has {found}",
                      'the parts are {"type": "text", "text": "..."} and {"type": "image"}', where)  # fmt: skip


def _check_order(turns: list[Turn], where: str) -> None:
    """system?, then user and assistant in turn, the last one an assistant."""
    start = 1 if turns[0].role == "system" else 0
    for number, turn in enumerate(turns[start:], 0):
        expected: Role = "assistant" if number % 2 else "user"
        if turn.role != expected:
            found = f"turn {number + start + 1} comes from {turn.role} where {expected} is expected"
            raise RecordError("record-order", found,
                              "let user and assistant alternate after an optional system turn", where)  # fmt: skip
    if turns[-1].role != "assistant":
        raise RecordError("record-order", f"ends with a turn of {turns[-1].role}",
                          "add the assistant's answer or remove the turn", where)  # fmt: skip


def _check_texts(turns: list[Turn], where: str) -> None:
    """No empty answer, no token that belongs to the chat template, nothing UTF-8 cannot hold."""
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise RecordError("empty-text", f"the answer in turn {number} is empty",
                              "write an answer or remove the question", where)  # fmt: skip
        for token in RESERVED if "<" in turn.text else ():
            if token in turn.text:
                raise RecordError("reserved-token", f"turn {number} holds the reserved token {token}",
                                  "remove it, the chat template writes it where it belongs", where)  # fmt: skip
        if turn.role != "user" and IMAGE_MARK in turn.text:
            raise RecordError("image-marks", f"turn {number} ({turn.role}) holds an {IMAGE_MARK} mark",
                              "only user turns show images, so move or remove it", where)  # fmt: skip
        _check_encodable(turn.text, f"the text of turn {number}", where)


def _check_encodable(text: str, what: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair: "\ud83d"
        raise RecordError("bad-text", f"{what} holds half a surrogate pair (character {error.start + 1})",
                          "write the character itself in UTF-8", where) from error  # fmt: skip


def _with_marks(turns: list[Turn], images: int, where: str) -> tuple[Turn, ...]:
    """The turns with as many marks as images, or an error; adds the mark of a lone unmarked image."""
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if images == 1 and marks == 0:
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", f"{IMAGE_MARK}\n{turns[first].text}")
    elif marks != images:
        noun = "mark" if marks == 1 else "marks"
        found = f"holds {marks} {IMAGE_MARK} {noun} for {images} {'image' if images == 1 else 'images'}"
        raise RecordError("image-marks", found, "write one mark in a user turn for each image", where)
    for number, turn in enumerate(turns, 1):
        if turn.role == "user" and not turn.text.strip():
            raise RecordError("empty-text", f"the question in turn {number} is empty", "write one", where)
    return tuple(turns)


# ------------------------------------------------------------------------------------------------------ from bytes


def decode_record(data: bytes, where: str, at_cut_end: bool = False) -> object:
    """The JSON value of one record's bytes; `at_cut_end` says that the file ends right behind them, without a newline.

    Raises:
        RecordError: no UTF-8, a NUL byte, no JSON.
    """
    if b"\0" in data:
        found = f"holds a NUL byte (byte {data.index(0) + 1})"
        raise RecordError("line-encoding", found, "copy the file again, or save it as UTF-8", where)
    try:
        value: object = json.loads(data.decode())
    except UnicodeDecodeError as error:
        found = f"is not UTF-8 (byte {error.start + 1} is 0x{data[error.start]:02x})"
        raise RecordError("line-encoding", found, "save the file as UTF-8", where) from error
    except json.JSONDecodeError as error:
        if at_cut_end:
            found, fix = "ends in the middle of a record", "the file is truncated: copy it again or remove the line"
        else:
            found, fix = f"is no JSON ({error.msg} at character {error.pos + 1})", "mend or remove the line"
        raise RecordError("line-syntax", found, fix, where) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        found = "holds JSON that is too deep or too long to be a record"
        raise RecordError("line-syntax", found, "mend or remove the line", where) from error
    return value
