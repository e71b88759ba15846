"""Greedy answers of the model, in batches of any prompt lengths, with the language model's own cache.

Prompts are read as one packed row, exactly as in training; the keys and values of each are then laid side by side, filled
up to the longest, and the answers grow as one batch in which a row attends to its own positions alone.

Shape legend: B prompts, L longest prompt, G key/value heads, D head width, W language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from vitp.instruction.chat import ChatFormat
from vitp.instruction.sample import IMAGE_MARK, Turn
from vitp.instruction.tiling import TilingConfig, cut_tiles
from vitp.vlm.attention import Documents
from vitp.vlm.model import VisionLanguageModel

_TILES = 64  # tiles the tower sees at once; about what a training pack holds


@dataclass(frozen=True)
class Question:
    """One question about one image (uint8 [3, H, W]), or about none."""

    image: Tensor | None
    text: str


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where an answer begins, visual tokens that were dropped already gone.

    tiles: uint8 [t, 3, S, S]; ids, positions: int64 [l], positions as before dropping; slots, kept: int64 [k], where the
    kept visual tokens stand in ids and which of the prompt's they are.
    """

    tiles: Tensor
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    kept: NDArray[np.int64]


def answer(
    model: VisionLanguageModel,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    tiling: TilingConfig,
    max_new_tokens: int = 32,
    batch_size: int = 32,
) -> list[str]:
    """Answer every question greedily; no visual token is dropped.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        questions: any mixture of lengths and image sizes.
        tiling: as in training.
        max_new_tokens: where an answer without an end is cut.
        batch_size: questions answered at once.

    Returns:
        one text per question, in order.
    """
    chat = ChatFormat(tokenizer)
    prompts = [_prompt(model, chat, question, tiling) for question in questions]
    return generate(model, chat, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)


def _prompt(model: VisionLanguageModel, chat: ChatFormat, question: Question, tiling: TilingConfig) -> Prompt:
    size, image = model.image_size, question.image
    tiles = torch.zeros(0, 3, size, size, dtype=torch.uint8) if image is None else cut_tiles(image, tiling, size)
    mark = f"{IMAGE_MARK}\n" if image is not None and IMAGE_MARK not in question.text else ""
    counts = [] if image is None else [len(tiles) * model.tokens_per_tile]
    encoded = chat.encode_prompt((Turn("user", mark + question.text),), counts)
    slots = np.flatnonzero(encoded.visual)
    return Prompt(tiles, encoded.ids.astype(np.int64), np.arange(len(encoded.ids)), slots, np.arange(len(slots)))


@torch.no_grad()
def generate(
    model: VisionLanguageModel,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 32,
) -> list[str]:
    """Continue every prompt greedily up to the template's end of an answer.

    Args:
        model: in eval mode.
        chat: the model's template and tokenizer.
        prompts: of any lengths; those of about the same length share a batch.
        max_new_tokens: where an answer without an end is cut.
        batch_size: prompts continued at once.

    Returns:
        one text per prompt, in order, without blanks at its ends.
    """
    assert not model.training, "call model.eval() first"
    end = chat.end_token_id
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, tokens in zip(chosen, _decode(model, [prompts[i] for i in chosen], end, max_new_tokens), strict=True):
            answers[i] = chat.tokenizer.decode(tokens, skip_special_tokens=False).strip()
    return answers


def _inputs(model: VisionLanguageModel, prompts: Sequence[Prompt]) -> Tensor:
    """The language model's inputs of all prompts in one row, [1, sum of lengths, W]."""
    device = model.mean.device
    lengths = np.cumsum([0, *(len(p.ids) for p in prompts)])
    cells = np.cumsum([0, *(len(p.tiles) * model.tokens_per_tile for p in prompts)])
    ids = torch.from_numpy(np.concatenate([p.ids for p in prompts])).to(device)
    inputs: Tensor = model.language_model.get_input_embeddings()(ids)  # type: ignore[operator]
    kept = np.concatenate([p.kept + at for p, at in zip(prompts, cells, strict=False)])
    if len(kept):
        slots = np.concatenate([p.slots + at for p, at in zip(prompts, lengths, strict=False)])
        tiles = torch.cat([p.tiles for p in prompts if len(p.tiles)])
        patches = torch.cat([model.encode(part.to(device)) for part in torch.split(tiles, _TILES)])
        visual = model.project(patches, torch.from_numpy(kept).to(device))
        inputs = inputs.index_copy(0, torch.from_numpy(slots).to(device), visual.to(inputs.dtype))
    return inputs[None]


def _side_by_side(packed: DynamicCache, lengths: Sequence[int]) -> DynamicCache:
    """A cache of one packed row as a cache of B rows, [B, G, L, D]; what fills up the shorter ones is never attended."""
    cache, longest = DynamicCache(), max(lengths)
    for number, layer in enumerate(packed.layers):
        rows = [
            torch.stack(
                [
                    nn.functional.pad(part[0], (0, 0, 0, longest - part.shape[2]))
                    for part in kv.split_with_sizes(list(lengths), 2)
                ]
            )
            for kv in (layer.keys, layer.values)
        ]
        cache.update(rows[0], rows[1], number)
    return cache


def _decode(model: VisionLanguageModel, prompts: Sequence[Prompt], end: int, max_new_tokens: int) -> list[list[int]]:
    """New token ids of each prompt, up to its end token."""
    language: Any = model.language_model
    head, embedding = language.get_output_embeddings(), language.get_input_embeddings()
    lengths, device = [len(p.ids) for p in prompts], model.mean.device
    positions = torch.from_numpy(np.concatenate([p.positions for p in prompts])).to(device)
    packed = DynamicCache()
    states = language.model(
        inputs_embeds=_inputs(model, prompts),
        position_ids=positions[None],
        past_key_values=packed,
        use_cache=True,
        documents=Documents.of(lengths, device),
    ).last_hidden_state[0]
    sizes = torch.tensor(lengths, device=device)
    last = sizes.cumsum(0) - 1
    states, following = states[last], positions[last] + 1
    cache = _side_by_side(packed, lengths)
    room = torch.arange(max(lengths) + max_new_tokens, device=device)
    # Positions of the prompts that exist, and all of the answers: these stand behind the longest prompt.
    seen = (room < sizes[:, None]) | (room >= max(lengths))
    rows: list[list[int]] = [[] for _ in prompts]
    is_open = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for new in range(max_new_tokens):
        token = head(states).argmax(-1)
        is_open &= token != end
        for row, (goes_on, chosen) in enumerate(torch.stack([is_open, token]).T.tolist()):
            if goes_on:
                rows[row].append(chosen)
        if new + 1 == max_new_tokens or not any(len(row) > new for row in rows):
            break
        states = language.model(
            inputs_embeds=embedding(token[:, None]),
            position_ids=(following + new)[:, None],
            past_key_values=cache,
            use_cache=True,
            key_mask=seen[:, : max(lengths) + new + 1],
        ).last_hidden_state[:, -1]
    return rows
