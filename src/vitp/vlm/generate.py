"""Greedy answers of the model, in batches of equal prompt length, with the language model's own cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitp.instruction.chat import ChatFormat
from vitp.instruction.sample import IMAGE_MARK, Turn
from vitp.instruction.tiling import TilingConfig, cut_tiles
from vitp.vlm.model import VisionLanguageModel


@dataclass(frozen=True)
class Question:
    """One question about one image (uint8 [3, H, W]), or about none."""

    image: Tensor | None
    text: str


def _prompt(question: Question) -> tuple[Turn, ...]:
    mark = f"{IMAGE_MARK}\n" if question.image is not None and IMAGE_MARK not in question.text else ""
    return (Turn("user", mark + question.text),)


@torch.no_grad()
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
    assert not model.training, "call model.eval() first"
    chat = ChatFormat(tokenizer)
    end = chat.end_token_id
    device = next(model.parameters()).device
    groups: dict[tuple[int, int], list[tuple[int, Tensor, Tensor, Tensor]]] = defaultdict(list)
    for i, question in enumerate(questions):
        tiles = [] if question.image is None else [cut_tiles(question.image, tiling, model.image_size)]
        encoded = chat.encode_prompt(_prompt(question), [len(t) * model.tokens_per_tile for t in tiles])
        stacked = (
            torch.cat(tiles) if tiles else torch.zeros(0, 3, model.image_size, model.image_size, dtype=torch.uint8)
        )
        ids = torch.from_numpy(encoded.ids).long()
        groups[(len(ids), len(stacked))].append((i, ids, torch.from_numpy(encoded.visual), stacked))
    answers = [""] * len(questions)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            ids = torch.stack([p[1] for p in part]).to(device)
            visual = torch.stack([p[2] for p in part]).to(device)
            tiles_batch = torch.cat([p[3] for p in part]).to(device)
            new = _decode(model, ids, visual, tiles_batch, end, max_new_tokens)
            for (i, *_), tokens in zip(part, new, strict=True):
                answers[i] = tokenizer.decode(tokens, skip_special_tokens=False).strip()
    return answers


def _decode(
    model: VisionLanguageModel, ids_BL: Tensor, visual_BL: Tensor, tiles: Tensor, end: int, max_new_tokens: int
) -> list[list[int]]:
    """New token ids of each row, up to its end token."""
    language: Any = model.language_model
    embeds = language.get_input_embeddings()(ids_BL)
    if len(tiles):
        patches = model.encode(tiles)
        every = torch.arange(len(tiles) * model.tokens_per_tile, device=tiles.device)
        embeds[visual_BL] = model.project(patches, every).to(embeds.dtype)
    out = language(inputs_embeds=embeds, use_cache=True)
    rows: list[list[int]] = [[] for _ in range(len(ids_BL))]
    open_rows = torch.ones(len(ids_BL), dtype=torch.bool, device=ids_BL.device)
    for _ in range(max_new_tokens):
        token = out.logits[:, -1].argmax(-1)
        open_rows &= token != end
        for row in open_rows.nonzero().flatten().tolist():
            rows[row].append(int(token[row]))
        if not open_rows.any():
            break
        out = language(input_ids=token[:, None], past_key_values=out.past_key_values, use_cache=True)
    return rows
