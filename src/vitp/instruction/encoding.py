"""Damage that a wrong encoding leaves in a text, told from text that only looks unusual.

UTF-8 read as Windows-1252 turns one character into two to four, "é" into "Ã©". Such a sequence is found by undoing the
mistake: its characters, written as Windows-1252 again, must be the UTF-8 of one character. As that happens by chance
too ("Spaß“", "10 Å²"), the character must be a likely one and the neighbours must fit; see `_is_likely`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# What Windows-1252 makes of each byte, and Latin-1, which leaves 0x80-0x9F control characters.
_BYTES: Mapping[str, int] = {
    char: byte for byte in range(0x80, 0x100) for char in (chr(byte), bytes([byte]).decode("cp1252", "ignore")) if char
}
_TAIL = "[" + "".join(re.escape(char) for char, byte in _BYTES.items() if byte < 0xC0) + "]"
_MOJIBAKE = re.compile(
    "[\u00c2-\u00df]" + _TAIL + "|[\u00e0-\u00ef]" + _TAIL + "{2}|[\u00f0-\u00f4]" + _TAIL + "{3}"
)  # the lead bytes of UTF-8 are the same characters in Windows-1252 and Unicode
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PUNCTUATION = frozenset("…–—‘’‚“”„‹›«»•")  # may follow a word without a blank
_UNIT_SIGNS = frozenset("·²³°")  # may follow a unit such as Å

_LATIN = (0x00A0, 0x00FF)
_LATIN_EXTENDED = (0x0100, 0x017F)
_ALPHABETS = ((0x0386, 0x03CE), (0x0400, 0x045F), (0x05D0, 0x05EA), (0x0621, 0x064A))  # Greek, Cyrillic, Hebrew, Arabic
_LONGER = ((0x0900, 0x0DFF), (0x0E01, 0x0E5B), (0x1E00, 0x1EFF), (0x2010, 0x203A), (0x20A0, 0x20BF), (0x2100, 0x22FF),
           (0x2500, 0x27BF), (0x3000, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFB06), (0xFF01, 0xFF65),
           (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF))  # fmt: skip


def damage(text: str) -> Iterator[tuple[str, str]]:
    """Codes and descriptions of the damage in a text, at most one of each kind, with the first place.

    Yields:
        ``text-replacement`` (U+FFFD), ``text-mojibake`` or ``text-control``, and what was found.
    """
    if text.isascii() and text.isprintable():  # nearly all there is
        return
    control = _CONTROL.search(text)
    if not text.isascii():
        if (place := text.find("\ufffd")) >= 0:
            yield "text-replacement", f"the replacement character U+FFFD at character {place + 1}"
        mojibake = _find_mojibake(text)
        if mojibake is not None:
            start, wrong, right = mojibake
            yield "text-mojibake", f"'{wrong}' for '{right}' at character {start + 1}"
            control = _ASCII_CONTROL.search(text)  # the others are parts of it
    if control is not None:
        name = "a byte-order mark" if control[0] == "\ufeff" else f"the control character U+{ord(control[0]):04X}"
        yield "text-control", f"{name} at character {control.start() + 1}"


def _find_mojibake(text: str) -> tuple[int, str, str] | None:
    """Place, wrong and right characters of the first sequence that is UTF-8 read as Windows-1252."""
    for match in _MOJIBAKE.finditer(text):
        right = _undone(match[0])
        if right is not None and _is_likely(text, match, right):
            return match.start(), match[0], right
    return None


def _undone(wrong: str) -> str | None:
    try:
        return bytes(_BYTES[char] for char in wrong).decode()
    except UnicodeDecodeError:
        return None


def _is_likely(text: str, match: re.Match[str], right: str) -> bool:
    """Whether a sequence is damage: the character it stands for is in use, and its place speaks for it."""
    before, after = text[: match.start()][-1:], text[match.end() : match.end() + 1]
    code, longer = ord(right), len(match[0]) > 2
    follows = _PUNCTUATION | {"\xa0"} if longer else _PUNCTUATION  # "Ã\xa0" is the "à" of "voilà"
    if before.isalpha() and not after.isalpha() and set(match[0][1:]) <= follows:
        return False  # a word's last letter and what follows it: Spaß“, AMANHÃ”, Santé…», « commité »
    if longer:
        return _within(code, *_LONGER)
    if _within(code, _LATIN):
        return True
    if _within(code, _LATIN_EXTENDED):  # a part of a word; else 10 Å² or Å·kg
        if match[0][1] in _UNIT_SIGNS and not before.isalpha():
            return False
        return any(char.isascii() and char.islower() for char in (before, after))
    beside = _MOJIBAKE.match(text, match.end()) or _MOJIBAKE.match(text, max(0, match.start() - 2))
    if not _within(code, *_ALPHABETS) or beside is None or beside.start() == match.start():
        return False
    other = _undone(beside[0])  # these letters come in words
    return other is not None and _within(ord(other[0]), *_ALPHABETS)


def _within(code: int, *ranges: tuple[int, int]) -> bool:
    return any(first <= code <= last for first, last in ranges)
