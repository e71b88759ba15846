"""How good a generated answer is: questions with a short answer, and captions. Boxes are in `vitp.metrics.grounding`.

* VQA accuracy: equal after the normalisation of the VQA evaluation (Antol et al. 2015, https://visualqa.org/evaluation):
  case, punctuation, articles and number words do not count. There is one reference here, so an answer is right or wrong.
* Relaxed accuracy (ChartQA, Masry et al. 2022, section 3): a number may be off by 5 % of the reference.
* CIDEr-D (Vedantam et al. 2015, section 5), 0 to 10. Computed here: the libraries that hold it bring a Java tokeniser or a
  speech model with them. The words are cut by one rule instead of by Stanford's tokeniser.
* BLEU-4 of the whole set by sacrebleu (extra `text`), 0 to 100.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from vitp.errors import MissingExtraError

RELAXED = 0.05  # ChartQA
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WRITTEN = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}  # VQA's evaluation has "none" too
_ARTICLES = ("a", "an", "the")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# What is left of punctuation: a point inside a number, a sign before one.
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<!\S)-(?!\d)|(?<=\S)-|[^\w\s.\-]|_")
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(%?)\.?", re.IGNORECASE)
# A word, an apostrophe inside it included; scripts written without blanks letter by letter.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+(?:'\w+)?")

_ORDERS = 4  # n-grams of 1 to 4 words
_SIGMA = 6.0  # CIDEr-D: width of the penalty on a difference in length, in words
_SCALE = 10.0


def normalise(answer: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no articles, number words as digits.

    Apostrophes vanish ("don't" is "dont"), a comma in a number too, every other mark becomes a blank. An answer that is
    nothing but an article, such as the option "A", stays.
    """
    text = _THOUSANDS.sub("", answer.lower().replace("'", "").replace("’", ""))
    words = [_WRITTEN.get(word, word) for word in _PUNCTUATION.sub(" ", text).split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def exact(answer: str, references: Iterable[str]) -> bool:
    """Whether an answer equals one of the references after `normalise`."""
    given = normalise(answer)
    return any(given == normalise(reference) for reference in references)


def relaxed(answer: str, references: Iterable[str]) -> bool:
    """Whether an answer is `exact`, or a number within 5 % of a reference that is one (a zero has to be met)."""
    references = list(references)
    if exact(answer, references):
        return True
    given = _numbers(answer)
    wanted = [value for reference in references for value in _numbers(reference)]
    return any(abs(value - other) <= RELAXED * abs(other) for value in given for other in wanted)


def _numbers(text: str) -> tuple[float, ...]:
    """The number a text consists of; "12 %" may be meant as 12 and as 0.12."""
    plain = _THOUSANDS.sub("", text.strip().lower())
    match = _NUMBER.fullmatch(_WRITTEN.get(plain.rstrip("."), plain))
    if match is None:
        return ()
    value = float(match[1])
    return (value, value / 100) if match[2] else (value,)


# ------------------------------------------------------------------------------------------------------- captions


def words(text: str) -> list[str]:
    """The words of a caption in lower case, without punctuation."""
    return _WORD.findall(text.lower().replace("’", "'"))


def _grams(text: str) -> list[Counter[tuple[str, ...]]]:
    """How often each n-gram occurs, for n = 1 to 4."""
    cut = words(text)
    return [Counter(zip(*(cut[start:] for start in range(n)), strict=False)) for n in range(1, _ORDERS + 1)]


def cider_d(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of every caption, 0 to 10 (Vedantam et al. 2015, Eq. 2, 3 and the -D variant of section 5).

    Words are weighed by how rare they are among these references: the figure belongs to the set it is computed on, and
    is 0 for a set of one picture.

    Args:
        answers: one caption a picture.
        references: at least one reference for each of them.
    """
    assert len(answers) == len(references)
    known = [[_grams(text) for text in texts] for texts in references]
    found: Counter[tuple[str, ...]] = Counter()
    for texts in known:
        found.update({gram for orders in texts for counts in orders for gram in counts})
    pictures = math.log(max(1, len(references)))

    def weighed(counts: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: number * (pictures - math.log(max(1, found[gram]))) for gram, number in counts.items()}

    scores = []
    for text, texts in zip(answers, known, strict=True):
        orders, total = _grams(text), 0.0
        for other in texts:
            gap = orders[0].total() - other[0].total()
            pairs = (_agreement(weighed(a), weighed(b)) for a, b in zip(orders, other, strict=True))
            total += math.exp(-(gap**2) / (2 * _SIGMA**2)) * sum(pairs) / _ORDERS
        scores.append(_SCALE * total / max(1, len(texts)))
    return scores


def _agreement(given: dict[tuple[str, ...], float], wanted: dict[tuple[str, ...], float]) -> float:
    """Cosine of two weighed counts, what is repeated more often than in the reference clipped to the reference."""
    lengths = math.sqrt(sum(v * v for v in given.values())) * math.sqrt(sum(v * v for v in wanted.values()))
    if lengths == 0:
        return 0.0
    return sum(min(value, wanted[gram]) * wanted[gram] for gram, value in given.items() if gram in wanted) / lengths


def has_bleu() -> bool:
    """Whether the extra `text` is installed."""
    return find_spec("sacrebleu") is not None


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a set of captions, 0 to 100, as sacrebleu computes it, case ignored.

    Args:
        answers: at least one caption.
        references: at least one reference for each of them; they may differ in number.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    if not has_bleu():
        raise MissingExtraError("BLEU needs sacrebleu: pip install 'vitp[text]'")
    from sacrebleu import BLEU

    assert answers
    assert all(references)
    most = max(map(len, references))
    streams = [[texts[k] if k < len(texts) else None for texts in references] for k in range(most)]
    return float(BLEU(lowercase=True).corpus_score(list(answers), streams).score)
