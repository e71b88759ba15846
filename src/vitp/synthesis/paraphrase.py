"""Other words for questions and captions, by any local causal language model in transformers' layout.

The model sees one text at a time and never the answer or the image. Chance belongs to (seed, text, step), so a text is
reworded in the same way whatever stands beside it in the batch, but for rounding. What comes back is judged by
`vitp.synthesis.guard`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from vitp.config import Config
from vitp.demo.keys import Dice
from vitp.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["question", "caption"]
Progress = Callable[[int, int], None]
_GGUF_HEADER = 24  # bytes: magic, version, two counts
_STREAM = 6  # of the dice, beside the streams of `vitp.demo.keys`
_LEAST = 0.05  # min-p sampling (Nguyen et al., 2024): tokens below this share of the likeliest one's are not drawn


class ParaphraseConfig(Config):
    """Which language model rewords, and how much of what was written."""

    model: Path  # folder with config.json, tokenizer and safetensors, or a .gguf file
    share: float = Field(default=0.5, gt=0, le=1)  # ours: half keeps the fixed wording, so that both are learnt
    captions: bool = False  # ours: captions state facts, and a wrong one does more harm than an odd question
    batch_size: int = Field(default=16, ge=1)  # ours: prompts of some 150 tokens, well below 1 GB for 135 M parameters
    max_new_tokens: int = Field(default=64, ge=1)  # ours: twice the longest question; what runs on is not taken
    temperature: float = Field(default=0.5, ge=0)  # ours: 0 is greedy and repeats the text; above 1 it invents
    device: Literal["auto", "cpu", "cuda"] = "auto"  # as in training


@dataclass(frozen=True, slots=True, order=True)
class Wanted:
    """A text to reword."""

    text: str
    kind: Kind


class Rewriter(Protocol):
    """Whoever rewords texts: a language model, or a function of your own."""

    @property
    def name(self) -> str:
        """What the records name as the origin of a rewording."""

    def reword(self, texts: Sequence[Wanted], progress: Progress | None = None) -> list[str]:
        """One rewording for each text, in order; an empty one where none was found."""


_BEGUN = "Other words:"
_TASK: dict[Kind, str] = {
    "question": "Ask the same in other words. Keep every name, number and direction. Write one line.",
    "caption": "Say the same in other words. Keep every name, number and direction. Write one line.",
}
_SHOWN: dict[
    Kind, tuple[tuple[str, str], ...]
] = {  # what is wanted, by example; about things no data set is likely to name
    "question": (
        ("How many lamps are there in the image?", "What is the number of lamps visible in this picture?"),
        ("Is there a lamp in the upper half of the image?", "Does the upper half of the picture contain a lamp?"),
        ("Are there more lamps than sofas?", "Can you see more lamps than sofas?"),
    ),
    "caption": (
        ("An image with three lamps and one sofa.", "This picture shows three lamps and one sofa."),
        ("The image shows two sofas.", "Two sofas can be seen in the picture."),
    ),
}


class LanguageModelRewriter:
    """A causal language model that is shown a few rewordings and continues with one more."""

    def __init__(self, config: ParaphraseConfig, model: Any, tokenizer: Any, seed: int, device: Any) -> None:
        """`model` and `tokenizer` are transformers'; use `load_rewriter`."""
        from transformers import GenerationConfig

        self.config, self.seed, self.device = config, seed, device
        self.name = config.model.name
        self._model, self._tokenizer = model.eval().to(device), tokenizer
        ends = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        # The model's own settings would bring penalties and limits that depend on what else is in the batch.
        self._settings = GenerationConfig(
            max_new_tokens=config.max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
            eos_token_id=self._ends or None, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model.generation_config = self._settings

    def reword(self, texts: Sequence[Wanted], progress: Progress | None = None) -> list[str]:
        """See `Rewriter`; a text that did not come to its end within `max_new_tokens` is left out."""
        prompts = [self._prompt(wanted) for wanted in texts]
        lengths = [len(ids) for ids in self._tokenizer(prompts, add_special_tokens=self._bare)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda i: (lengths[i], texts[i]))  # alike long, so little is padding
        found = [""] * len(texts)
        if progress is not None:
            progress(0, len(order))  # the clock starts here
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            for i, text in zip(
                batch, self._continue([prompts[i] for i in batch], [texts[i] for i in batch]), strict=True
            ):
                found[i] = text
            if progress is not None:
                progress(start + len(batch), len(order))
        return found

    @property
    def _bare(self) -> bool:
        return not getattr(self._tokenizer, "chat_template", None)

    def _prompt(self, wanted: Wanted) -> str:
        """Task and examples in one message, the answer begun: small models copy a form better than they obey."""
        examples = "".join(f"Text: {was}\n{_BEGUN} {now}\n\n" for was, now in _SHOWN[wanted.kind])
        message = f"{_TASK[wanted.kind]}\n\n{examples}Text: {wanted.text}"
        if self._bare:
            return f"{message}\n{_BEGUN}"
        turns = [{"role": "user", "content": message}]
        prompt = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert isinstance(prompt, str)
        return prompt + _BEGUN

    def _continue(self, prompts: list[str], texts: list[Wanted]) -> list[str]:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        encoded = self._tokenizer(prompts, padding=True, add_special_tokens=self._bare, return_tensors="pt")
        ids, mask = encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)
        dice = [Dice(self.seed, _key(wanted), _STREAM) for wanted in texts]

        def draw(ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
            chosen = choose(scores_BV, dice, self.config.temperature)
            return torch.full_like(scores_BV, -torch.inf).scatter_(1, chosen[:, None], 0.0)

        def line_ended(ids_BL: Tensor, scores: Any, **_: Any) -> Tensor:  # transformers passes more to some criteria
            ended = ["\n" in self._text(row).lstrip() for row in ids_BL[:, ids.shape[1] :].tolist()]
            return torch.tensor(ended, device=ids_BL.device)

        with torch.no_grad():
            out = self._model.generate(
                input_ids=ids, attention_mask=mask, generation_config=self._settings,
                logits_processor=LogitsProcessorList([draw]), stopping_criteria=StoppingCriteriaList([line_ended]),
            )  # fmt: skip
        return [self._whole(row) for row in out[:, ids.shape[1] :].tolist()]

    def _text(self, row: list[int]) -> str:
        text = self._tokenizer.decode(row, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _whole(self, row: list[int]) -> str:
        """The first line of what was generated; nothing where it was cut off before its end."""
        ended = next((i for i, token in enumerate(row) if token in self._ends), None)
        text = self._text(row if ended is None else row[:ended]).lstrip()
        line, newline, _ = text.partition("\n")
        return tidy(line) if newline or ended is not None else ""


def tidy(text: str) -> str:
    """Without blanks and one pair of quotation marks around it."""
    text = text.strip()
    for first, last in (('"', '"'), ("“", "”"), ("'", "'")):
        if len(text) > 2 and text[0] == first and text[-1] == last:
            return text[1:-1].strip()
    return text


def choose(scores_BV: Tensor, dice: Sequence[Dice], temperature: float) -> Tensor:
    """One token id a row, [B]: the likeliest at temperature 0, else drawn with the row's own next number.

    Args:
        scores_BV: logits, [rows, vocabulary].
        dice: chance of each row.
        temperature: divides the logits.
    """
    import torch

    if temperature == 0:
        return scores_BV.argmax(-1)
    scores = scores_BV.double().cpu().numpy()
    # One comparison of two floats decides, in double precision: a batch of another shape hardly ever tips it.
    weights = np.exp((scores - scores.max(-1, keepdims=True)) / temperature)
    sums = np.cumsum(np.where(weights >= _LEAST, weights, 0.0), axis=-1)
    chosen = [
        int(np.searchsorted(row, one.unit() * row[-1], side="right")) for row, one in zip(sums, dice, strict=True)
    ]
    return torch.tensor(chosen, device=scores_BV.device).clamp_(max=scores_BV.shape[-1] - 1)


def _key(wanted: Wanted) -> int:
    text = f"{wanted.kind}\0{wanted.text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


# ------------------------------------------------------------------------------------------------------------- loading


def find_model(path: Path) -> tuple[Path, str | None]:
    """The folder of a model, and the name of its GGUF file if it is one; cheap, so that a typo is told at once.

    Raises:
        CheckpointError: nothing there that could be a model.
        MissingExtraError: a GGUF file, and what reads it is not installed.
    """
    try:
        is_file, is_folder = path.is_file(), (path / "config.json").is_file()
        start = b""
        if is_file:
            with path.open("rb") as stream:
                start = stream.read(_GGUF_HEADER)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be used as a language model ({error.strerror})") from error
    if is_file and path.suffix.lower() == ".gguf":
        if start[:4] != b"GGUF" or len(start) < _GGUF_HEADER:
            raise CheckpointError(f"{path} is no whole GGUF file, whatever its name says; download it again")
        for name in ("gguf", "accelerate"):
            if find_spec(name) is None:
                raise MissingExtraError(f"{path}: a GGUF file needs {name}; install it with: pip install 'vitp[gguf]'")
        return path.parent, path.name
    if is_file or not is_folder:
        found = "is a file" if is_file else "is no folder with a config.json" if path.exists() else "does not exist"
        text = "name a local folder in transformers' layout (config.json, tokenizer, safetensors) or a .gguf file"
        raise CheckpointError(f"{path} {found}: paraphrase.model must {text}")
    return path, None


def load_rewriter(config: ParaphraseConfig, seed: int) -> LanguageModelRewriter:
    """The language model of a configuration, ready to reword.

    Args:
        config: where it is and how it samples.
        seed: of all that is random.

    Raises:
        CheckpointError: no language model or tokenizer can be loaded.
        MissingExtraError: a GGUF file, and what reads it is not installed.
        TrainingError: CUDA was asked for and there is none.
    """
    from vitp.train.loop_config import choose_device
    from vitp.vlm.tiny import load_language_model
    from vitp.vlm.tokenizer import read_tokenizer

    folder, gguf_file = find_model(config.model)
    device = choose_device(config.device)
    tokenizer = read_tokenizer(str(folder), gguf_file)
    return LanguageModelRewriter(config, load_language_model(str(folder), 0, gguf_file), tokenizer, seed, device)
