"""Ids, supervision and tiles against the released InternVL code, written down here a second time from its description:

turns tokenised one by one; in an answer the header's tokens and the last one, a line end, are not supervised; tiles cut by
Pillow from grids in the order of a set.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tokenizerdata import write_internvl, write_llama3

from vitp.images.read import ImageConfig, read_image
from vitp.instruction.chat import ChatFormat
from vitp.instruction.chat_template import ChatConfig, apply_chat_config
from vitp.instruction.sample import Turn
from vitp.instruction.tiling import TilingConfig, choose_grid, cut_tiles, tile_count
from vitp.vlm.tokenizer import load_tokenizer

SYSTEM = "你是一个助手。 Be brief."
PIECES = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "ships",
    "Two",
    "x",
    ".",
    ",",
    "'s",
    "12",
    "é",
    "東京",
    "<box>",
    "[[1, 2]]",
    "</ref>",
]
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)
RELEASED = TilingConfig(max_tiles=12, resize="pillow")


def released_ids(tokenizer: Any, turns: list[Turn], counts: list[int]) -> tuple[list[int], list[bool]]:
    """ids [L] and whether each is supervised [L]."""
    bos = [tokenizer.bos_token_id] if getattr(tokenizer, "bos_token_id", None) is not None else []
    left, ids, supervised = list(counts), list(bos), [False] * len(bos)
    header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    for turn in turns:
        text = turn.text
        while "<image>" in text:
            text = text.replace("<image>", f"<img>{'<IMG_CONTEXT>' * left.pop(0)}</img>", 1)
        new = tokenizer.encode(f"<|im_start|>{turn.role}\n{text}<|im_end|>\n", add_special_tokens=False)
        ids += new
        answer = turn.role == "assistant"
        supervised += [answer and len(header) <= k < len(new) - 1 for k in range(len(new))]
    return ids, supervised


@pytest.fixture(scope="module", params=["qwen", "bos"])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    """The released setting: ChatML, whatever the tokenizer's own template, with a system sentence."""
    folder = tmp_path_factory.mktemp("tokenizer")
    path = write_internvl(folder) if request.param == "qwen" else write_llama3(folder)
    return ChatFormat(apply_chat_config(load_tokenizer(str(path)), ChatConfig(template="chatml", system=SYSTEM)))


@settings(max_examples=150)
@given(texts=st.lists(TEXT, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0), images=st.integers(0, 2))
def test_ids_and_supervision_are_those_of_turns_tokenised_one_by_one(
    chat: ChatFormat, texts: list[str], images: int
) -> None:
    turns = [Turn("assistant" if k % 2 else "user", text) for k, text in enumerate(texts)]
    turns[0] = Turn("user", "<image>\n" * images + turns[0].text)
    counts = [3, 5][:images]
    ids, supervised = released_ids(chat.tokenizer, [Turn("system", SYSTEM), *turns], counts)
    encoded = chat.encode(tuple(turns), counts)
    assert encoded.ids.tolist() == ids
    ours = np.zeros(len(ids), bool)
    for begin, end in encoded.answers:
        ours[begin:end] = True
    assert ours.tolist() == supervised


def test_a_samples_own_system_turn_takes_the_place_of_the_recipes(chat: ChatFormat) -> None:
    turns = [Turn("system", "Answer in French."), Turn("user", "a"), Turn("assistant", "b")]
    assert chat.encode(tuple(turns), []).ids.tolist() == released_ids(chat.tokenizer, turns, [])[0]


def released_grid(width: int, height: int, fewest: int, most: int, side: int) -> tuple[int, int]:
    grids: set[tuple[int, int]] = set()
    for n in range(fewest, most + 1):
        for i in range(1, n + 1):
            grids.update((i, j) for j in range(1, n + 1) if fewest <= i * j <= most)
    best, difference = (1, 1), float("inf")
    for grid in sorted(grids, key=lambda g: g[0] * g[1]):
        new = abs(width / height - grid[0] / grid[1])
        if new < difference or (new == difference and width * height > 0.5 * side**2 * grid[0] * grid[1]):
            best, difference = grid, new
    return best


def halfway_sizes() -> list[tuple[int, int]]:
    """Sizes whose aspect ratio lies halfway between two grids', where the order decides."""
    grids = [(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= 12]
    return [
        (scale * (a * d + c * b), scale * 2 * b * d)
        for a, b in grids
        for c, d in grids
        for scale in (1, 9, 60)
        if a * d < c * b
    ]


@pytest.mark.parametrize(("fewest", "most"), [(1, 6), (1, 12), (2, 9), (4, 4), (6, 7), (8, 9), (12, 12)])
def test_grids_where_two_are_equally_near(fewest: int, most: int) -> None:
    for width, height in halfway_sizes():
        assert choose_grid(width, height, fewest, most, 448) == released_grid(width, height, fewest, most, 448)


@pytest.mark.parametrize("images", [1, 2, 5, 40])
@pytest.mark.parametrize("fewest", [1, 3])
def test_images_of_a_sample_share_the_tiles(images: int, fewest: int) -> None:
    draw, config = random.Random(images), TilingConfig(min_tiles=fewest, max_tiles=12)
    for _ in range(200):
        width, height = draw.randint(1, 3000), draw.randint(1, 3000)
        columns, rows = released_grid(width, height, fewest, max(1, 12 // images), 448)
        assert tile_count(width, height, config, 448, images) == columns * rows + (columns * rows > 1)


def test_tiles_of_files_are_the_released_ones_bit_by_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(25):
        width, height = (int(n) for n in rng.integers(8, 500, 2))
        file, side = tmp_path / f"{number}.png", 40
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        columns, rows = released_grid(width, height, 1, 12, side)
        stretched = picture.resize((columns * side, rows * side))
        parts = [
            stretched.crop((left, top, left + side, top + side))
            for top in range(0, rows * side, side)
            for left in range(0, columns * side, side)
        ]
        if len(parts) > 1:
            parts.append(picture.resize((side, side)))
        expected = torch.from_numpy(np.stack([np.array(part) for part in parts])).permute(0, 3, 1, 2)
        assert torch.equal(cut_tiles(read_image(file, ImageConfig()), RELEASED, side), expected)
