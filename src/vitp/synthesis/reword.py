"""Which turns are reworded, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from vitp.synthesis.config import Task
from vitp.synthesis.guard import ClassNames, is_fixed, refusal
from vitp.synthesis.labels import LabelledImage
from vitp.synthesis.paraphrase import ParaphraseConfig, Progress, Rewriter, Wanted
from vitp.synthesis.words import Asked, Draw, Words

# Their answers have a form (boxes, lists, maps, one of the options) that the question must go on asking for. The task
# decides and not the answer: were "Locate every ship." reworded only where there is none, the wording would tell.
_FIXED: frozenset[Task] = frozenset(
    ("grounding", "oriented", "refer", "region", "extent", "part", "layout", "choice", "change_part", "change_layout")
)
Interview = tuple[LabelledImage, list[Asked]]


@dataclass(frozen=True)
class Reworded:
    """What a language model was asked to reword, and what was taken. Texts are counted once, turns as often as they occur."""

    model: str
    texts: int  # different texts that the model was given
    taken: int  # of them, rewordings that passed every rule
    turns: int  # questions and captions that now stand in other words
    untouched: int  # turns that were drawn but hold marks or ask for a certain form of answer
    refused: dict[str, int]  # reason -> texts that stay as they were

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"reworded by {self.model}: {self.turns:,} turns; {self.taken:,} of {self.texts:,} different texts passed, "
            f"{self.untouched:,} turns of a fixed form were left as they are"
        ]
        lines += [f"refused: {n:,} rewordings, {why}" for why, n in self.refused.items()]
        return lines


@dataclass(frozen=True, slots=True)
class Spoken:
    """The questions of an image as they will stand; `was` is the original text of each turn that was reworded."""

    asked: list[Asked]
    was: Mapping[int, str]


def class_forms(classes: Iterable[str], words: Words, subject: str | None) -> ClassNames:
    """Class names in singular and plural, and what a change is about."""
    names = [*classes, *([subject] if subject else [])]
    return ClassNames([*names, *(words.many(name) for name in names)])


def reword(
    interviews: Sequence[Interview],
    config: ParaphraseConfig,
    seed: int,
    names: ClassNames,
    rewriter: Rewriter,
    progress: Progress | None = None,
) -> tuple[list[Spoken], Reworded]:
    """Put a share of the questions, and of the captions where wanted, in other words.

    Which turns are drawn depends on (seed, image, subject) alone; the answer has no say in it.

    Args:
        interviews: images with their questions.
        config: share and captions.
        seed: of the draw.
        names: class names that must stay, and no others may appear.
        rewriter: asked once for each different text.
        progress: called with (done, total) different texts.

    Returns:
        for each image its questions, and the counts.
    """
    drawn = [_drawn(image, asked, config, seed) for image, asked in interviews]
    free = [{turn: w for turn, w in turns.items() if not is_fixed(w.text)} for turns in drawn]
    texts = sorted({wanted for turns in free for wanted in turns.values()})
    found = dict(zip(texts, rewriter.reword(texts, progress), strict=True)) if texts else {}
    refused: Counter[str] = Counter()
    good: dict[Wanted, str] = {}
    for wanted, text in found.items():
        why = refusal(wanted.text, text, names, caption=wanted.kind == "caption") if text else "nothing whole came back"
        if why is None:
            good[wanted] = text
        else:
            refused[why] += 1
    spoken = [_spoken(asked, turns, good) for (_, asked), turns in zip(interviews, free, strict=True)]
    counts = Reworded(
        model=rewriter.name, texts=len(texts), taken=len(good), turns=sum(len(one.was) for one in spoken),
        untouched=sum(map(len, drawn)) - sum(map(len, free)), refused=dict(refused.most_common()),
    )  # fmt: skip
    return spoken, counts


def _drawn(image: LabelledImage, asked: list[Asked], config: ParaphraseConfig, seed: int) -> dict[int, Wanted]:
    """Turn (0 the first question, 1 its answer, ...) -> the text that is to be reworded."""
    draw = Draw(seed, image.name)
    turns: dict[int, Wanted] = {}
    for number, found in enumerate(asked):
        if found.task not in _FIXED and draw.rank("reword question", found.subject) < config.share:
            turns[2 * number] = Wanted(found.question, "question")
        if config.captions and found.task == "caption" and draw.rank("reword answer", found.subject) < config.share:
            turns[2 * number + 1] = Wanted(found.answer, "caption")
    return turns


def _spoken(asked: list[Asked], turns: Mapping[int, Wanted], good: Mapping[Wanted, str]) -> Spoken:
    new = {turn: good[wanted] for turn, wanted in turns.items() if wanted in good}
    changed = [
        replace(found, question=new.get(2 * i, found.question), answer=new.get(2 * i + 1, found.answer))
        for i, found in enumerate(asked)
    ]
    old = list(chain.from_iterable((found.question, found.answer) for found in asked))
    return Spoken(changed, {turn: old[turn] for turn in sorted(new)})
