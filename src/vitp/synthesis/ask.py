"""From one labelled image to its questions: which tasks, in which order, and never the same thing twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vitp.demo.keys import Dice
from vitp.instruction.wording import listed, with_article
from vitp.synthesis import ask_change, ask_masks, ask_objects
from vitp.synthesis import phrases as say
from vitp.synthesis.ask_change import ChangeFacts
from vitp.synthesis.ask_masks import MaskFacts
from vitp.synthesis.ask_objects import ObjectFacts
from vitp.synthesis.config import SynthesizeConfig, Task
from vitp.synthesis.detect import word
from vitp.synthesis.labels import LabelledImage, LabelledSet
from vitp.synthesis.rasters import class_names, read_changed, read_classes
from vitp.synthesis.words import Asked, Draw, Words, sentence

_ATTEMPTS = 4  # at one question before another is tried, as in the demo
_ROUNDS = 8  # a task is asked again, about something else, once all others had their turn

Question = Callable[[Dice, int], Asked | None]
Weighted = dict[Task, tuple[Question, float]]


class Interviewer:
    """Asks questions of the images of one data set. What it asks of an image does not depend on the other images."""

    def __init__(self, config: SynthesizeConfig, labelled: LabelledSet) -> None:
        self.config, self.labelled = config, labelled
        self.tasks = config.chosen(labelled.format)
        self.words = Words(config.plurals, config.view)
        self._unnamed = {name.lower() for name in config.unnamed} | {word(config, n).lower() for n in config.unnamed}
        self._values: dict[int, int] = {}
        if labelled.format == "masks":
            names = class_names(config)
            place = {name: i for i, name in enumerate(labelled.classes)}
            self._values = {value: place[word(config, name)] for value, name in names.items()}

    def ask(self, image: LabelledImage) -> list[Asked]:
        """Up to `turns` questions with their answers, in random order; none where nothing is beyond dispute.

        Raises:
            DataError: the image's mask is damaged.
        """
        draw = Draw(self.config.seed, image.name)
        questions = {task: pair for task, pair in self._questions(image, draw).items() if task in self.tasks}
        # Tasks come in an order drawn by weight (the largest of u^(1/w), as in weighted sampling without replacement).
        order = sorted(questions, key=lambda task: (-(draw.rank("order", task) ** (1 / questions[task][1])), task))
        asked: list[Asked] = []
        for attempt in range(_ROUNDS):
            for task in order:
                if len(asked) == self.config.turns:
                    break
                for retry in range(_ATTEMPTS):
                    number = attempt * _ATTEMPTS + retry
                    found = questions[task][0](draw.dice(task, number), number)
                    if found is not None and found.subject not in draw.asked:
                        asked.append(found)
                        draw.asked.add(found.subject)
                        break
        return sorted(asked, key=lambda found: draw.rank("turn", found.subject))

    def _questions(self, image: LabelledImage, draw: Draw) -> Weighted:
        """The askers of the image's format, bound to what is known about it."""
        fmt = self.labelled.format
        if fmt in ("coco", "dota", "voc"):
            objects = ObjectFacts(image, self.labelled.classes, self.words, draw)
            return {t: (partial(asker, objects), w) for t, (asker, w) in ask_objects.ASKERS.items()}
        if fmt == "masks":
            mask = read_classes(image, self._values, set(self.config.ignore))
            covers = MaskFacts(mask, self.labelled.classes, self._unnamed, self.words, draw)
            return {t: (partial(asker, covers), w) for t, (asker, w) in ask_masks.ASKERS.items()}
        if fmt == "change":
            change = ChangeFacts(read_changed(image), self.config.subject, draw)
            return {t: (partial(asker, change), w) for t, (asker, w) in ask_change.ASKERS.items()}
        if fmt == "captions":
            return {"caption": (lambda d, _: _given_caption(image, self.words, d), 1.0)}
        return self._class_questions(image, draw)

    def _class_questions(self, image: LabelledImage, draw: Draw) -> Weighted:
        label, view = image.label, self.words.view
        assert label is not None
        others = [name for name in self.labelled.classes if name != label]

        def caption(dice: Dice, _: int) -> Asked:
            question, answer = dice.pick(say.CLASS_CAPTION)
            text = sentence(answer.format(a=with_article(view), view=view, name=label))
            return Asked(question.format(view=view), text, "caption", "caption")

        def named(dice: Dice, _: int) -> Asked:
            return Asked(dice.pick(say.CLASS_OPEN).format(view=view), label, "class", "class")

        def choice(dice: Dice, attempt: int) -> Asked:
            wrong = draw.ordered(others, "choice", attempt)[: dice.whole(1, 3)]
            options = listed(draw.ordered([label, *wrong], "options", attempt), "or")
            return Asked(dice.pick(say.CLASS_CHOICE).format(options=options, view=view), label, "choice", "choice")

        def verify(dice: Dice, attempt: int) -> Asked:
            wanted = dice.chance(0.5)
            name = label if wanted else draw.first(others, "verify", attempt)
            question = dice.pick(say.CLASS_VERIFY).format(name=name, view=view)
            return Asked(question, "yes" if wanted else "no", "verify", "verify")

        return {"caption": (caption, 0.8), "class": (named, 1.2), "choice": (choice, 1.0), "verify": (verify, 1.0)}


def _given_caption(image: LabelledImage, words: Words, dice: Dice) -> Asked | None:
    if not image.captions:
        return None
    text = dice.pick(image.captions)
    return Asked(dice.pick(say.CAPTION).format(view=words.view), text, "caption", "caption")
