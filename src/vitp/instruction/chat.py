"""A conversation to token ids, through the model's own chat template, with the answers marked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError

from vitp.errors import CheckpointError, DataError
from vitp.instruction.pieces import cuts_after_line_ends, cuts_at_spaces
from vitp.instruction.sample import IMAGE_MARK, Turn

IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
# InternVL's added tokens, in its order.
SPECIAL_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_TOKEN, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
_CACHE = 65536
_WAY_OUT = "set data.chat.template: chatml"
_PROBE = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))


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


def cut_at_answers(whole: str, spans: Sequence[tuple[int, int]]) -> list[tuple[bool, str]]:
    """A rendered text in parts: between answers, and answers (true)."""
    parts, at = [], 0
    for begin, end in spans:
        parts += [(False, whole[at:begin]), (True, whole[begin:end])]
        at = end
    return [*parts, (False, whole[at:])]


class ChatFormat:
    """Encodes conversations for one tokenizer.

    The template is rendered once per conversation. An answer is supervised from its first token to the end-of-turn token,
    included.

    The text is tokenised as a whole, like the released code (which takes it turn by turn, but a turn begins with an added
    token, where texts are cut anyway) and transformers' processor. With most templates and tokenizers that gives what its
    parts give one by one, which is faster; where it does not, as with an answer that begins with a line end, the template's
    header keeps the tokens it has without the answer, and a token made of both is not supervised.
    """

    def __init__(self, tokenizer: Any, tokenise: Literal["whole", "parts"] = "whole") -> None:
        """Try the template on a short conversation.

        Args:
            tokenizer: a transformers tokenizer with a chat template and the image tokens.
            tokenise: ``parts`` tokenises every answer on its own, as it will be when the model has written it.

        Raises:
            CheckpointError: no chat template or one that cannot be trained with, or an image token is missing.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise CheckpointError(
                f"the tokenizer has no chat template: use an instruction-tuned model's tokenizer, or {_WAY_OUT}"
            )
        self.tokenizer = tokenizer
        for token in (IMAGE_START, IMAGE_END):
            self._id(token)
        self.image_token_id = self._id(IMAGE_TOKEN)
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._added = tuple(added)
        self._by_pieces = cuts_at_spaces(tokenizer) and not any(c.isspace() for token in added for c in token)
        self._line_ends = self._by_pieces and cuts_after_line_ends(tokenizer)
        self._tokens: OrderedDict[str, list[int]] = OrderedDict()
        self._spans: OrderedDict[tuple[Turn, ...], tuple[str, list[tuple[int, int]]]] = OrderedDict()
        self.tokenise = tokenise if self._try_out() else "parts"

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer in this template.

        Raises:
            CheckpointError: there is none.
        """
        encoded = self.encode(_PROBE[:2], [])
        end = int(encoded.ids[encoded.answers[-1][1] - 1])
        if self.tokenizer.convert_ids_to_tokens(end) not in self._added:
            raise CheckpointError(f"the chat template ends answers with no token that could stop an answer; {_WAY_OUT}")
        return end

    def example(self) -> str:
        """What stands around a question about an image and its answer."""
        return self.locate((Turn("user", f"{IMAGE_MARK}\n…"), Turn("assistant", "…")))[0]

    def _try_out(self) -> bool:
        """Whether a header's tokens stay what they are when an answer follows.

        Raises:
            CheckpointError: the template cannot be trained with.
        """
        whole, spans = self.locate(_PROBE)
        for (begin, end), turn in zip(spans, (_PROBE[1], _PROBE[3]), strict=True):
            own, found, _ = whole[begin:end].partition(turn.text)
            if not found or own.strip():
                raise CheckpointError(
                    f"the chat template writes {own!r} of its own in front of answers (reasoning templates do), which the "
                    f"model would be trained to say; {_WAY_OUT}"
                )
        ids = self._tokenise(whole)
        header = self._tokenise(whole[: spans[0][0]])
        return ids[: len(header)] == header

    def _id(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int) or found == self.tokenizer.unk_token_id:
            raise CheckpointError(
                f"the tokenizer has no token {token}: load it with vitp.vlm.tokenizer.load_tokenizer, which adds it"
            )
        return found

    def _render(self, turns: Sequence[Turn], prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise CheckpointError(
                f"the chat template refuses a conversation of {roles}: {str(error).splitlines()[0]}; {_WAY_OUT}"
            ) from error
        assert isinstance(text, str)
        return text

    def render(self, turns: tuple[Turn, ...]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text and the (begin, end) characters of every answer, end-of-turn token included.

        Raises:
            CheckpointError: the template rewrites earlier turns, so that answers cannot be located, or refuses these.
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
                    f"so answers cannot be marked; {_WAY_OUT}"
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

    def splits(self, parts: Sequence[tuple[bool, str]]) -> bool:
        """Whether a text's parts (true: an answer) may be tokenised one by one.

        So it is in front of an answer where a line end precedes it and no blank begins it: no pattern known here joins these.
        And so it is behind an added token.
        """
        if self.tokenise == "parts":
            return True
        if not self._by_pieces:
            return False
        before = ""
        for answer, text in parts:
            if answer:
                line_end = before[-1:] == "\n" and (self._line_ends or not before[-2:-1].isspace())
                if not line_end or text[:1].isspace() or not text.endswith(self._added):
                    return False
            before = text
        return True

    def encode(self, turns: tuple[Turn, ...], visual_counts: Sequence[int], where: str = "") -> Encoded:
        """Tokenise a conversation whose i-th ``<image>`` stands for ``visual_counts[i]`` visual tokens.

        Raises:
            DataError: the number of marks differs from the number of images.
            CheckpointError: what `render` raises.
        """
        text, spans = self.render(turns)
        parts = cut_at_answers(text, spans)
        ids: list[int] = []
        answers: list[tuple[int, int]] = []
        if not self.splits(parts):
            return self._encode_whole(parts, visual_counts, where)
        image = 0
        for answer, part in parts:
            first = len(ids)
            if answer:
                ids += self._tokenise(part)
                answers.append((first, len(ids)))
            else:
                image = self._append(ids, part, visual_counts, image)
        return self._finish(ids, answers, image, visual_counts, where)

    def _encode_whole(self, parts: Sequence[tuple[bool, str]], counts: Sequence[int], where: str) -> Encoded:
        """The same, tokenised in one go."""
        text, images = "", 0
        spans: list[tuple[int, int]] = []  # in tokens, without the visual ones
        for answer, part in parts:
            if answer:
                first = len(self._tokenise(text))
                text += part
                spans.append((first, max(first, len(self._tokenise(text)))))
            else:
                images += part.count(IMAGE_MARK)
                text += part.replace(IMAGE_MARK, IMAGE_START + IMAGE_END)
        found = np.asarray(self._tokenise(text), np.int32)
        starts = np.flatnonzero(found == self._id(IMAGE_START))
        if images != len(counts) or images != len(starts):
            return self._finish([], [], images, counts, where)
        at = np.repeat(starts + 1, counts)
        ids = np.insert(found, at, self.image_token_id)
        answers = [(a + int((at <= a).sum()), b + int((at <= b).sum())) for a, b in spans]
        return self._finish(ids.tolist(), answers, images, counts, where)

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
        visual = array == self.image_token_id
        if int(visual.sum()) != sum(counts):
            raise DataError(
                f"a turn's text holds the token {IMAGE_TOKEN}, which stands for an image's pixels; remove it", where
            )
        return Encoded(array, visual, tuple(answers))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": OrderedDict(), "_spans": OrderedDict()}
