"""A conversation to token ids, through the model's own chat template, with the answers marked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitp.errors import CheckpointError, DataError
from vitp.instruction.sample import IMAGE_MARK, Turn

IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
# InternVL's added tokens, in its order.
SPECIAL_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_TOKEN, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
_CACHE = 65536


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens; visual tokens stand as runs of one placeholder id.

    ids: int32 [L]; visual: bool [L]; answers: (begin, end) of every supervised answer in `ids`.
    """

    ids: np.ndarray
    visual: np.ndarray
    answers: tuple[tuple[int, int], ...]

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(end - begin for begin, end in self.answers)


class ChatFormat:
    """Encodes conversations for one tokenizer.

    The template is rendered once per conversation; every part between two boundaries is tokenised on its own, as the
    released code does. An answer is supervised from its first character to the end-of-turn token, included.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is a transformers tokenizer with a chat template and the image tokens.

        Raises:
            CheckpointError: no chat template, or an image token is missing.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise CheckpointError("the tokenizer has no chat template: use an instruction-tuned model's tokenizer")
        self.tokenizer = tokenizer
        self.image_token_id = self._id(IMAGE_TOKEN)
        self._tokens: OrderedDict[str, list[int]] = OrderedDict()
        self._spans: OrderedDict[tuple[Turn, ...], tuple[str, list[tuple[int, int]]]] = OrderedDict()

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer in this template."""
        encoded = self.encode((Turn("user", "a"), Turn("assistant", "b")), [])
        return int(encoded.ids[encoded.answers[-1][1] - 1])

    def _id(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int) or found == self.tokenizer.unk_token_id:
            raise CheckpointError(f"the tokenizer has no token {token}: add InternVL's special tokens to it first")
        return found

    def _render(self, turns: Sequence[Turn], prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert isinstance(text, str)
        return text

    def render(self, turns: tuple[Turn, ...]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text and the (begin, end) characters of every answer, end-of-turn token included.

        Raises:
            CheckpointError: the template rewrites earlier turns, so that answers cannot be located.
        """
        cached = self._spans.get(turns)
        if cached is not None:
            return cached
        found = self.locate(turns)
        self._spans[turns] = found
        if len(self._spans) > _CACHE:
            self._spans.popitem(last=False)
        return found

    def locate(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        """What `render` gives, without remembering it."""
        whole = self._render(turns, prompt=False)
        spans = []
        for i, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before, after = self._render(turns[:i], prompt=True), self._render(turns[: i + 1], prompt=False)
            if not (whole.startswith(before) and whole.startswith(after)):
                raise CheckpointError(
                    "the chat template rewrites earlier turns when later ones follow (reasoning templates do), "
                    "so answers cannot be marked; use a template that leaves them as they are"
                )
            spans.append((len(before), len(before) + len(after[len(before) :].rstrip())))
        return whole, spans

    def _tokenise(self, text: str) -> list[int]:
        known = self._tokens.get(text)
        if known is None:
            known = list(self.tokenizer.encode(text, add_special_tokens=False))
            self._tokens[text] = known
            if len(self._tokens) > _CACHE:
                self._tokens.popitem(last=False)
        return known

    def _append(self, ids: list[int], text: str, counts: Sequence[int], image: int) -> int:
        """Tokenise `text` onto `ids`, putting in visual placeholders; returns the number of images used so far."""
        for k, piece in enumerate(text.split(IMAGE_MARK)):
            if k:
                visual = [self.image_token_id] * (counts[image] if image < len(counts) else 0)
                ids += [*self._tokenise(IMAGE_START), *visual, *self._tokenise(IMAGE_END)]
                image += 1
            if piece:
                ids += self._tokenise(piece)
        return image

    def encode(self, turns: tuple[Turn, ...], visual_counts: Sequence[int], where: str = "") -> Encoded:
        """Tokenise a conversation whose i-th ``<image>`` stands for ``visual_counts[i]`` visual tokens.

        Raises:
            DataError: the number of marks differs from the number of images.
        """
        text, spans = self.render(turns)
        ids: list[int] = []
        answers: list[tuple[int, int]] = []
        image, at = 0, 0
        for begin, end in spans:
            image = self._append(ids, text[at:begin], visual_counts, image)
            first = len(ids)
            ids += self._tokenise(text[begin:end])
            answers.append((first, len(ids)))
            at = end
        image = self._append(ids, text[at:], visual_counts, image)
        return self._finish(ids, answers, image, visual_counts, where)

    def encode_prompt(self, turns: tuple[Turn, ...], visual_counts: Sequence[int], where: str = "") -> Encoded:
        """Tokenise a conversation that ends with a user turn, ready for the answer to be generated."""
        ids: list[int] = []
        image = self._append(ids, self._render(turns, prompt=True), visual_counts, 0)
        return self._finish(ids, [], image, visual_counts, where)

    def _finish(
        self, ids: list[int], answers: list[tuple[int, int]], image: int, counts: Sequence[int], where: str
    ) -> Encoded:
        if image != len(counts):
            raise DataError(f"{image} {IMAGE_MARK} marks for {len(counts)} images", where)
        array = np.asarray(ids, np.int32)
        return Encoded(array, array == self.image_token_id, tuple(answers))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": OrderedDict(), "_spans": OrderedDict()}
