"""May a rewording stand for the original? Rules that a program can check, since a small language model invents.

A text is taken apart into what carries meaning (class names, numbers, places, comparisons, amounts and negations, the kind
of question, all remaining words) and what does not (articles, forms of *to be*, ways of saying that an image shows
something). What carries meaning must be the same on both sides; so a good rewording is refused now and then, and an
invented one rarely taken. All rules are for English.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from vitp.instruction.wording import NUMBERS


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_PLACES = _set(
    "left right upper lower top bottom above below under over beneath middle centre center central corner edge side half "
    "halves quarter third inside outside beside near next between behind around along across front north south east west "
    "leftmost rightmost topmost bottommost"
)
_COMPARED = _set(
    "more most fewer fewest less least large larger largest small smaller smallest big bigger biggest great greater "
    "greatest than equal same different longer shorter higher rather as"
)
_AMOUNTS = _set(
    "no not none never nor neither without any or either and all every each some several few both only just about nearly "
    "almost roughly except other others"
)
_PLAIN = _set(  # words that say nothing about what the image shows
    "a an the this that these those it its they them there here you we i me us your our is are was were be been being do "
    "does did can could would will may might has have had in on of for to from with at by within please tell give provide "
    "state say write determine calculate see seen seeing show shows shown showing display displays displayed displaying "
    "depict depicts depicted depicting contain contains contained containing hold holds held holding include includes "
    "included including feature features featured featuring present visible find found observe observed observable "
    "identify identified spot spotted appear appears appearing exist exists existing notice noticed viewed look looking "
    "looked capture captured portray portrayed portrays illustrate illustrated illustrates represent represented "
    "represents detect detected recognise recognised recognize recognized lie lies lying located situated positioned "
    "placed exactly what which where when who how count counts counted counting number total amount quantity share"
)
_REQUESTS = _set("please give tell state say write provide count find determine calculate identify name describe look")
_VIEWS = _set("image images picture pictures photo photos photograph photographs view views scene scenes")
_YES_OR_NO = re.compile(
    r"(?:^|[.:;,]\s+)(?:is|are|was|were|does|do|did|can|could|would|will|has|have|should|may|might)\b", re.IGNORECASE
)
_KINDS = {
    "how many": re.compile(r"\b(?:how many|count(?:s|ed|ing)?|numbers?|total|amount|quantity)\b", re.IGNORECASE),
    "how much": re.compile(r"\b(?:how much|how large|how big|share)\b", re.IGNORECASE),
    "where": re.compile(r"\b(?:where|locat(?:e|ion)|position|place)\b", re.IGNORECASE),
    "what": re.compile(r"\b(?:what|which)\b", re.IGNORECASE),
    "else": re.compile(r"\b(?:why|when|who|whose|how(?! (?:many|much|large|big)\b))\b", re.IGNORECASE),
}
_TALK = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|yes|no|sorry|hi|hello|answer|question|caption|output|rewording)\b"
    r"|\b(?:here (?:is|are)|here['’]s|(?:para|re)phras\w*|reword\w*|rewrit\w*|original|as an ai|language model|"
    r"i(?:['’]m| am| can(?:no|['’])t)|let me)\b",
    re.IGNORECASE,
)
_IMAGE_OF = re.compile(r"\b(?:image|picture|photo(?:graph)?|view|scene)s? of\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,]\d+)*%?|\x00")
_ENDS = (".", "?", "!")
_MARK = "\x00"  # stands where a class name stood
_PUNCTUATION = frozenset(" .,;:?!'\"()-–—/%&’‘“”")
_NUMBER_WORDS = {word: str(n) for n, word in enumerate(NUMBERS) if n} | {"zero": "0"}


class ClassNames:
    """Finds the class names of a data set in a text: the longest that fits, as whole words, in any case."""

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted({name.lower() for name in names if name.strip()}, key=lambda name: (-len(name), name))
        options = "|".join(re.escape(name) for name in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{options})(?!\w)", re.IGNORECASE) if options else None

    def found(self, text: str) -> tuple[str, ...]:
        """The names in a text, in order, as they stand there but in lower case."""
        return tuple(name.lower() for name in self._pattern.findall(text)) if self._pattern else ()

    def blanked(self, text: str) -> str:
        """The text with a mark in the place of each name."""
        return self._pattern.sub(_MARK, text) if self._pattern else text


@dataclass(frozen=True)
class Reading:
    """What of a text carries meaning."""

    text: str
    names: ClassNames

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in order."""
        return self.names.found(self.text)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words and numbers in lower case, a mark for each class name, negations spelled out."""
        text = re.sub(r"\bhow (?:many|much)\b", "how", self.names.blanked(self.text), flags=re.IGNORECASE)
        words: list[str] = []
        for word in _WORD.findall(text):
            lower = word.lower().replace("’", "'")
            if lower.endswith("n't") or lower == "cannot":
                words.append("not")
            else:
                words.append(_NUMBER_WORDS.get(lower, lower.partition("'")[0]))
        return tuple("centre" if word == "center" else word for word in words)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Digits and number words in order, as digits."""
        return tuple(word for word in self.words if word[0].isdigit())

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Words of direction and place in order."""
        return self._of(_PLACES)

    @cached_property
    def compared(self) -> tuple[str, ...]:
        """Words of comparison in order."""
        return self._of(_COMPARED)

    @cached_property
    def amounts(self) -> tuple[str, ...]:
        """Negations, amounts and alternatives in order."""
        return self._of(_AMOUNTS)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Class names, numbers, places and comparisons as one sequence."""
        kept = _PLACES | _COMPARED
        return tuple(word for word in self.words if word == _MARK or word[0].isdigit() or word in kept)

    @cached_property
    def views(self) -> int:
        """How often the image itself is named."""
        return len(self._of(_VIEWS))

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What is asked: yes or no, how many, how much, where, what."""
        text = self.names.blanked(self.text)
        found = {kind for kind, pattern in _KINDS.items() if pattern.search(text)}
        if found & {"how many", "how much"}:
            found.discard("what")  # "what is the number of" asks how many
        return frozenset(found | ({"yes or no"} if _YES_OR_NO.search(text) else set()))

    @cached_property
    def content(self) -> frozenset[str]:
        """All other words that may carry meaning, without their endings."""
        known = _PLACES | _COMPARED | _AMOUNTS | _PLAIN | _VIEWS
        return frozenset(_stem(word) for word in self.words if word not in known and word[0].isalpha())

    def _of(self, words: frozenset[str]) -> tuple[str, ...]:
        return tuple(word for word in self.words if word in words)


def _stem(word: str) -> str:
    """Without a usual ending, so that ``covers`` and ``covered`` are one word."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


# ------------------------------------------------------------------------------------------------ one function a rule


def one_line(was: Reading, now: Reading) -> bool:
    """One line of printable characters, with no marks, brackets or other signs that the original lacks."""
    text = now.text
    if not text.strip() or len(text.splitlines()) != 1 or text != text.strip():
        return False

    def fine(sign: str) -> bool:
        known = sign in _PUNCTUATION or sign in was.text or (sign.isascii() and sign.isdigit())
        return known or (sign.isalpha() and unicodedata.category(sign)[0] == "L")

    return all(map(fine, text)) and not any(unicodedata.category(sign)[0] == "C" for sign in text)


def no_placeholder(was: Reading, now: Reading) -> bool:
    """Nothing left to fill in: no dots, no ``X``."""
    gap = re.compile(r"\.\.|…|\b[A-Z]\b(?<![AI])|\b[Xx]{2,}\b|[:,;-]$")
    return gap.search(now.text) is None or gap.search(was.text) is not None


def no_talk(was: Reading, now: Reading) -> bool:
    """Not about the task: no ``Sure``, ``Here is``, ``Paraphrase:``."""
    return _TALK.search(now.text) is None or _TALK.search(was.text) is not None


def alike_long(was: Reading, now: Reading) -> bool:
    """At least half and at most twice as many characters."""
    return len(was.text) <= 2 * len(now.text) and len(now.text) <= 2 * len(was.text)


def changed(was: Reading, now: Reading) -> bool:
    """Other words, or the same in another order."""
    return _bare(was.text) != _bare(now.text)


def _bare(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def still_asks(was: Reading, now: Reading) -> bool:
    """A question stays a question; a request becomes one question, or begins as requests do."""
    marks, before = now.text.count("?"), was.text.count("?")
    if before or marks:
        return marks == max(1, before) and now.text.endswith("?")
    return bool(now.words) and now.words[0] in _REQUESTS | set(was.words[:1])


def whole_sentence(was: Reading, now: Reading) -> bool:
    """Begins with a capital and ends with a mark where the original does."""
    if was.text.endswith(_ENDS) and not now.text.endswith(_ENDS):
        return False
    return not was.text[:1].isupper() or now.text[:1].isupper() or now.text[:1].isdigit()


def still_states(was: Reading, now: Reading) -> bool:
    """A caption gains no question mark."""
    return "?" not in now.text or "?" in was.text


def same_kind(was: Reading, now: Reading) -> bool:
    """The same thing is asked for: yes or no, a number, a place, a class."""
    return was.kinds == now.kinds


def same_classes(was: Reading, now: Reading) -> bool:
    """The same class names in the same number and order, and no other class of the data set."""
    return was.classes == now.classes


def same_numbers(was: Reading, now: Reading) -> bool:
    """The same numbers in the same order, in digits or words."""
    return was.numbers == now.numbers


def same_places(was: Reading, now: Reading) -> bool:
    """The same words of place in the same order, and not newly of the image: left of a ship is not left of the image."""
    return was.places == now.places and (not was.places or now.views <= was.views)


def same_comparisons(was: Reading, now: Reading) -> bool:
    """The same words of comparison in the same order."""
    return was.compared == now.compared


def same_amounts(was: Reading, now: Reading) -> bool:
    """The same negations, amounts and alternatives in the same order."""
    return was.amounts == now.amounts


def same_order(was: Reading, now: Reading) -> bool:
    """Where several names are told apart, the place or number of one does not become the other's."""
    return len(was.classes) < 2 or was.order == now.order


def nothing_lost(was: Reading, now: Reading) -> bool:
    """No word with a meaning is dropped."""
    return was.content <= now.content


def nothing_new(was: Reading, now: Reading) -> bool:
    """No word with a meaning is added, and a thing in an image does not become what the image is of."""
    return now.content <= was.content and (_IMAGE_OF.search(now.text) is None or _IMAGE_OF.search(was.text) is not None)


Rule = Callable[[Reading, Reading], bool]
_BOTH: tuple[tuple[str, Rule], ...] = (  # reason of a refusal -> what must hold; the first that fails is named
    ("not one clean line", one_line),
    ("a placeholder", no_placeholder),
    ("talk about the task", no_talk),
    ("the same words", changed),
    ("much longer or shorter", alike_long),
    ("other class names", same_classes),
    ("other numbers", same_numbers),
    ("other places", same_places),
    ("other comparisons", same_comparisons),
    ("other amounts or negations", same_amounts),
    ("names in another order", same_order),
    ("not a whole sentence", whole_sentence),
)
_WORDS: tuple[tuple[str, Rule], ...] = (("a word lost", nothing_lost), ("a word invented", nothing_new))
QUESTION_RULES = (*_BOTH, ("no longer a question", still_asks), ("another question", same_kind), *_WORDS)
CAPTION_RULES = (*_BOTH, ("a question now", still_states), *_WORDS)
REASONS = tuple(dict.fromkeys(reason for reason, _ in (*QUESTION_RULES, *CAPTION_RULES)))


def refusal(original: str, rewording: str, names: ClassNames, *, caption: bool = False) -> str | None:
    """Why a rewording is not taken, one of `REASONS`; None where every rule holds.

    Args:
        original: the text as it was written from the labels.
        rewording: what a language model made of it.
        names: all class names of the data set, singular and plural.
        caption: a statement about the image; otherwise a question or a request.
    """
    was, now = Reading(original, names), Reading(rewording, names)
    rules = CAPTION_RULES if caption else QUESTION_RULES
    return next((reason for reason, holds in rules if not holds(was, now)), None)


_FIXED = re.compile(
    r"[<>]|\banswer (?:with|in)\b|\bgrid\b|\brows? (?:of|by)\b|\b\d+ by \d+\b|\bbox(?:es)?\b|\bcorners?\b|\bpercent\w*"
    r"|\blist\b|\bin words\b|\blargest first\b|\bname (?:it|its|the)\b|:[^.]*\bor\b",
    re.IGNORECASE,
)


def is_fixed(text: str) -> bool:
    """Whether a text holds marks (``<box>``, ``<ref>``, ``<image>``) or asks for a certain form of answer."""
    return _FIXED.search(text) is not None
