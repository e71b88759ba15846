"""Tiles, image tokens and ids against transformers' own InternVL processor, opened from files in its layout."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tokenizerdata import PIXELS, TOKENS_PER_TILE, write_internvl_hf
from transformers import AutoProcessor
from transformers.models.got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from vitp.instruction.chat import ChatFormat
from vitp.instruction.chat_template import ChatConfig, apply_chat_config
from vitp.instruction.sample import Turn
from vitp.instruction.tiling import TilingConfig, choose_grid, cut_tiles, tile_count
from vitp.vlm.tokenizer import load_tokenizer

THEIRS = TilingConfig(max_tiles=12, several_images="each", grid_order="columns")
# The sizes of the published table, and shapes at the edge.
FIXED = [
    (633, 633),
    (800, 800),
    (1024, 1024),
    (640, 480),
    (1920, 1080),
    (2000, 500),
    (1, 1),
    (1, 3000),
    (3000, 1),
    (449, 448),
]


def random_sizes(number: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    draw = random.Random(0)
    for _ in range(number):
        yield draw.randint(low, high), draw.randint(low, high)


def picture_of(width: int, height: int, seed: int) -> Image.Image:
    """Noise, or a smooth picture."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    low = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_internvl_hf(tmp_path_factory.mktemp("internvl-hf"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("most", [1, 6, 12, 24])
def test_tiles_and_image_tokens_of_200_random_sizes(processor: Any, most: int) -> None:
    ours = TilingConfig(max_tiles=most)  # with one image, the released way is theirs
    kwargs = {"crop_to_patches": True, "max_patches": most, "patch_size": {"height": 448, "width": 448}}
    for width, height in [*FIXED, *random_sizes(200, 16, 4000)]:
        count = tile_count(width, height, ours, 448)
        assert count == processor.image_processor.get_number_of_image_patches(height, width, kwargs)


def test_image_tokens_are_those_of_the_processors_own_estimate(processor: Any) -> None:
    sizes = [*FIXED, *random_sizes(200, 16, 1000)]
    told = processor._get_num_multimodal_tokens([(height, width) for width, height in sizes], crop_to_patches=True)
    counted = [
        tile_count(width, height, THEIRS, PIXELS) * TOKENS_PER_TILE + 2 for width, height in sizes
    ]  # start and end
    assert told["num_image_tokens"] == counted


@settings(max_examples=1000)
@given(
    st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 16), st.integers(1, 16), st.sampled_from([28, 224, 448])
)
def test_grids_of_any_size(width: int, height: int, fewest: int, most: int, side: int) -> None:
    fewest, most = sorted((fewest, most))
    theirs = get_optimal_tiled_canvas((height, width), (side, side), fewest, most)
    assert choose_grid(width, height, fewest, most, side, "columns") == theirs
    if fewest == 1:
        assert choose_grid(width, height, fewest, most, side, "released") == theirs


def test_ties_between_equally_many_tiles_are_where_the_orders_differ() -> None:
    """Halfway between 1:1 and 4:1, and the other tie of four tiles."""
    assert get_optimal_tiled_canvas((2000, 5000), (448, 448), 4, 4) == (4, 1)
    assert choose_grid(5000, 2000, 4, 4, 448, "columns") == (4, 1)
    assert choose_grid(5000, 2000, 4, 4, 448, "released") == (2, 2)


def test_pixels_are_equal_bit_by_bit(processor: Any) -> None:
    for seed, (width, height) in enumerate([*((w // 8 + 1, h // 8 + 1) for w, h in FIXED), *random_sizes(200, 8, 400)]):
        picture = picture_of(width, height, seed)
        theirs = processor.image_processor(
            images=[picture], crop_to_patches=True, do_rescale=False, do_normalize=False, return_tensors="pt"
        )["pixel_values"]
        assert torch.equal(cut_tiles(pixels_of(picture), THEIRS, PIXELS), theirs.to(torch.uint8))


def test_pixels_of_the_pillow_processor_are_equal_bit_by_bit_too() -> None:
    """With the other resizing, which is the released code's."""
    pillow = GotOcr2ImageProcessorPil(size={"height": PIXELS, "width": PIXELS}, crop_to_patches=True)
    ours, furthest = THEIRS.model_copy(update={"resize": "pillow"}), 0
    for seed, (width, height) in enumerate(random_sizes(40, 8, 400)):
        picture = picture_of(width, height, seed)
        theirs = torch.from_numpy(
            np.stack(pillow(images=[picture], do_rescale=False, do_normalize=False)["pixel_values"]).astype(np.uint8)
        )
        assert torch.equal(cut_tiles(pixels_of(picture), ours, PIXELS), theirs)
        other = cut_tiles(pixels_of(picture), THEIRS, PIXELS).int() - theirs.int()
        furthest = max(furthest, int(other.abs().max()))
    assert 0 < furthest < 64  # the two differ, most on noise


CONVERSATIONS = [
    ("How many ships?", "Two ships."),
    ("  Where?\n", "\nAt the  pier."),
    ("naïve 東京 12", " <ref>ship</ref><box>[[1, 2, 30, 40]]</box>"),
    ("a\n\nb", "\n\n  \n7"),
]


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("system", [None, "Answer briefly. 请简短回答。"])
def test_ids_and_pixels_of_whole_conversations(processor: Any, folder: Path, images: int, system: str | None) -> None:
    """Through the processor's own template, with the images as parts of the first turn."""
    chat = ChatFormat(apply_chat_config(load_tokenizer(str(folder)), ChatConfig(template="chatml")))
    for number in range(len(CONVERSATIONS)):
        pairs = [CONVERSATIONS[(number + k) % len(CONVERSATIONS)] for k in range(3)]
        pictures = [picture_of(*size, seed) for seed, size in enumerate(random_sizes(images, 10, 300))]
        shown = [{"type": "image", "image": picture} for picture in pictures]
        messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        turns = [] if system is None else [Turn("system", system)]
        for k, (question, answer) in enumerate(pairs):
            first = shown if k == 0 else []
            messages += [
                {"role": "user", "content": [*first, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
            turns += [Turn("user", "<image>\n" * len(first) + question), Turn("assistant", answer)]
        theirs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        tiles = [cut_tiles(pixels_of(picture), THEIRS, PIXELS, images) for picture in pictures]
        ours = chat.encode(tuple(turns), [len(t) * TOKENS_PER_TILE for t in tiles])
        assert ours.ids.tolist() == theirs["input_ids"][0].tolist()
        if images:
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            normalised = (torch.cat(tiles) - 255 * mean.view(3, 1, 1)) / (255 * std.view(3, 1, 1))  # as the model does
            assert torch.allclose(normalised, theirs["pixel_values"], atol=2e-6, rtol=0)
        asked = processor.apply_chat_template(
            messages[:-1], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        prompt = chat.encode_prompt(tuple(turns[:-1]), [len(t) * TOKENS_PER_TILE for t in tiles])
        assert prompt.ids.tolist() == asked["input_ids"][0].tolist()


def test_the_processor_gives_every_image_all_tiles_and_the_released_code_a_share(processor: Any) -> None:
    pictures = [picture_of(640, 480, seed) for seed in (1, 2, 4)]
    theirs = processor.image_processor(images=pictures, crop_to_patches=True)["num_patches"]
    assert [tile_count(640, 480, THEIRS, PIXELS, 3)] * 3 == [int(n) for n in theirs] == [13, 13, 13]
    assert tile_count(640, 480, TilingConfig(max_tiles=12), PIXELS, 3) == 5  # four and the thumbnail
