"""Which held-out questions the model is asked, by which measure each answer is judged, and the scores of a set of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vitp.errors import DataError
from vitp.instruction.grammar import GrammarError
from vitp.instruction.sample import IMAGE_MARK, Sample
from vitp.instruction.source import Source
from vitp.instruction.statistics import kind_of, task_of
from vitp.metrics.grounding import fit, shapes
from vitp.metrics.text import bleu, cider_d, exact, has_bleu, relaxed

PREFIX = "evaluation/"  # of every number's name in the log
FOLDER, ANSWERS = "evaluation", "answers.jsonl"  # of a run: a folder for each evaluation, and all answers in it
Measure = Literal["vqa", "grounding", "caption"]
_ASKED_FOR_WORDS = frozenset({"vqa", "classification", "ocr"})  # declared tasks whose answers are right or wrong


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: the `turn`-th answer (from 0) of sample `index` of a source is what the model has to give."""

    source: str
    index: int
    turn: int
    measure: Measure
    question: str
    references: tuple[str, ...]
    images: tuple[str, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the model's answer; `correct` None: not right or wrong but more or less good (captions)."""

    asked: Asked
    answer: str
    correct: bool | None

    def to_json(self) -> dict[str, object]:
        """A record of the run's answers.jsonl."""
        asked = self.asked
        return {
            "source": asked.source, "where": asked.where, "images": list(asked.images), "measure": asked.measure,
            "question": asked.question, "references": list(asked.references), "answer": self.answer,
            "correct": self.correct,
        }  # fmt: skip


def measure_of(question: str, reference: str, tasks: Sequence[str] = ()) -> Measure:
    """How an answer is judged: by its boxes, as right or wrong, or as a caption.

    Args:
        question: what is asked.
        reference: the right answer. One that holds boxes is grounding. Otherwise what the source declares counts, if
            all of it is of one kind; else its look: at most five words are right or wrong, more are a caption.
        tasks: declared by the source.
    """
    if any(tag in reference for tag in ("<box>", "<quad>")):
        try:
            if shapes(reference):
                return "grounding"
        except GrammarError:
            pass
    declared = set(tasks) - {"dialogue", "grounding"}
    if declared == {"caption"}:
        return "caption"
    if declared and declared <= _ASKED_FOR_WORDS:
        return "vqa"
    return "caption" if kind_of("", reference) == "description" else "vqa"


def choose_questions(source: Source, most: int) -> list[Asked]:
    """At most `most` questions of a source, one a sample, evenly over its samples and over the turns of these.

    A picture is described once; its references are all descriptions the source has of it. Other long answers have their own
    reference alone. Unreadable samples are passed over.
    """
    name, tasks = source.config.name, source.config.tasks
    count = min(most, len(source))
    chosen = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64)).tolist()
    found: list[Asked] = []
    described: set[tuple[str, ...]] = set()
    for number, index in enumerate(chosen):
        pairs = _pairs(source, index)
        if pairs is None:
            continue
        sample, turns = pairs
        for shift in range(len(turns)):
            turn = (number + shift) % len(turns)
            question, reference = turns[turn]
            if describes(question, reference, tasks):
                if sample.images in described:
                    continue
                described.add(sample.images)
            measure = measure_of(question, reference, tasks)
            text = " ".join(question.replace(IMAGE_MARK, " ").split())
            found.append(Asked(name, index, turn, measure, text, (reference,), sample.images, sample.where))
            break
    return _with_all_references(source, found, described) if described else found


def _pairs(source: Source, index: int) -> tuple[Sample, list[tuple[str, str]]] | None:
    """A sample and its (question, answer) pairs."""
    try:
        sample = source.sample(index)
    except DataError:
        return None
    turns = [turn for turn in sample.turns if turn.role != "system"]
    return sample, [(q.text, a.text) for q, a in zip(turns[0::2], turns[1::2], strict=True)]


def describes(question: str, reference: str, tasks: Sequence[str]) -> bool:
    """Whether a question asks for a description of the picture, which any other description answers as well."""
    if measure_of(question, reference, tasks) != "caption":
        return False
    return set(tasks) - {"dialogue"} == {"caption"} or task_of(question, reference) == "caption"


def _with_all_references(source: Source, asked: Iterable[Asked], described: set[tuple[str, ...]]) -> list[Asked]:
    """The questions, descriptions with every description of the same pictures as a reference, their own first."""
    known: dict[tuple[str, ...], list[str]] = defaultdict(list)
    tasks = source.config.tasks
    for index in range(len(source)):
        pairs = _pairs(source, index)
        if pairs is not None and pairs[0].images in described:
            known[pairs[0].images] += [answer for question, answer in pairs[1] if describes(question, answer, tasks)]
    found = []
    for item in asked:
        if item.images and describes(item.question, item.references[0], tasks):
            item = replace(item, references=tuple(dict.fromkeys((*item.references, *known[item.images]))))
        found.append(item)
    return found


def judge(asked: Asked, answer: str) -> Answered:
    """An answer with whether it is right: equal words, or boxes of which at least half fit."""
    if asked.measure == "vqa":
        return Answered(asked, answer, exact(answer, asked.references))
    if asked.measure == "grounding":
        return Answered(asked, answer, fit(answer, asked.references[0]).accuracy >= 0.5)
    return Answered(asked, answer, None)


def scores(answered: Sequence[Answered]) -> dict[str, float]:
    """Scores of a set of answers; those of measures that do not occur are left out.

    ``vqa_exact``, ``vqa_relaxed``, ``grounding_accuracy`` (IoU 0.5), ``grounding_iou``, ``grounding_unreadable``: shares
    of their questions or means over them, 0 to 1; ``caption_cider``: 0 to 10; ``caption_bleu``: 0 to 100, where
    sacrebleu is installed; ``questions``: their number.
    """
    found: dict[str, float] = {"questions": float(len(answered))}
    for measure, some in _by_measure(answered).items():
        given = [item.answer for item in some]
        references = [item.asked.references for item in some]
        if measure == "vqa":
            found["vqa_exact"] = _mean(map(exact, given, references))
            found["vqa_relaxed"] = _mean(map(relaxed, given, references))
        elif measure == "grounding":
            fits = [fit(answer, texts[0]) for answer, texts in zip(given, references, strict=True)]
            found["grounding_accuracy"] = _mean(item.accuracy for item in fits)
            found["grounding_iou"] = _mean(item.iou for item in fits)
            found["grounding_unreadable"] = _mean(not item.readable for item in fits)
        else:
            found["caption_cider"] = _mean(cider_d(given, references))
            if has_bleu():
                found["caption_bleu"] = bleu(given, references)
    return found


def _by_measure(answered: Iterable[Answered]) -> Mapping[Measure, list[Answered]]:
    found: dict[Measure, list[Answered]] = defaultdict(list)
    for item in answered:
        found[item.asked.measure].append(item)
    return found


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def one_of_each(answered: Sequence[Answered], most: int) -> list[Answered]:
    """At most `most` answers to show, sources and measures taking turns."""
    groups: dict[tuple[str, Measure], Iterator[Answered]] = {}
    for key in dict.fromkeys((item.asked.source, item.asked.measure) for item in answered):
        groups[key] = iter([item for item in answered if (item.asked.source, item.asked.measure) == key])
    found: list[Answered] = []
    while groups and len(found) < most:
        for key in list(groups):
            item = next(groups[key], None)
            if item is None:
                del groups[key]
            elif len(found) < most:
                found.append(item)
    return found
