"""InternVL twice with the same weights, transformers' own and this package's, and a realistic mixture of samples.

What `bench.step` measures on; nothing here is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vitp.instruction.chat import Encoded
from vitp.instruction.pack import LaidOut, lay_out
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.token_drop import keep

IMAGE_ID, PAD_ID, FIRST_TEXT_ID = 7, 0, 10
TILE_SHARES = {1: 0.30, 3: 0.12, 4: 0.05, 5: 0.33, 7: 0.20}  # of a mixture of dynamically tiled images
VOCABULARY = {"small": 8192, "real": 151_674}  # small: head and decoder in the real proportion at the toy widths
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Size:
    """Depth, width, heads and MLP of the tower, the same of the decoder, tiles and texts."""

    tower: tuple[int, int, int, int]
    decoder: tuple[int, int, int, int, int]  # depth, width, heads, key/value heads, MLP
    tile: int
    text: float  # mean of the text tokens of a sample

    def with_layers(self, layers: int | None) -> Size:
        """The same with so many layers in tower and decoder."""
        if layers is None:
            return self
        return Size((layers, *self.tower[1:]), (layers, *self.decoder[1:]), self.tile, self.text)


SIZES = {
    # InternVL-1B scaled so that attention and linear layers stand to each other about as in the real one
    "toy": Size((6, 256, 4, 1024), (6, 192, 3, 1, 1024), 224, 47.5),
    "1b": Size((24, 1024, 16, 4096), (24, 896, 14, 2, 4864), 448, 190.0),  # InternViT-300M, Qwen2.5-0.5B
}


def build_rival(size: Size, vocabulary: int) -> Any:
    """InternVLForConditionalGeneration of transformers with random weights, attention by sdpa."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    (depth, width, heads, mlp), (layers, hidden, queries, groups, inner) = size.tower, size.decoder
    vision = InternVLVisionConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=mlp,
        image_size=(size.tile, size.tile),
        patch_size=(14, 14),
        attention_bias=True,
    )
    text = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=queries,
        num_key_value_heads=groups,
        rope_theta=1e6,
        max_position_embeddings=32768,
        tie_word_embeddings=False,  # InternVL2.5-1B
        use_cache=False,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        image_seq_length=(size.tile // 28) ** 2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    for name, parameter in model.named_parameters():  # position embeddings and biases start at nought
        if name.endswith(("position_embeddings", "cls_token", "bias")):
            nn.init.normal_(parameter, std=0.02)
    return model.train()


def _tower_tensors(vision: Any, depth: int) -> dict[str, Tensor]:
    source = dict(vision.named_parameters())
    named = {
        "cls_token": source["embeddings.cls_token"],
        "pos_embed": source["embeddings.position_embeddings"],
        "patch_embed.proj.weight": source["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": source["embeddings.patch_embeddings.projection.bias"],
    }
    for i in range(depth):
        theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
        named[ours + "ls1.gamma"], named[ours + "ls2.gamma"] = source[theirs + "lambda_1"], source[theirs + "lambda_2"]
        for kind in ("weight", "bias"):
            qkv = [source[f"{theirs}attention.{x}_proj.{kind}"] for x in "qkv"]
            named[f"{ours}attn.qkv.{kind}"] = torch.cat(qkv)
            named[f"{ours}attn.proj.{kind}"] = source[f"{theirs}attention.projection_layer.{kind}"]
            named[f"{ours}norm1.{kind}"] = source[f"{theirs}layernorm_before.{kind}"]
            named[f"{ours}norm2.{kind}"] = source[f"{theirs}layernorm_after.{kind}"]
            for fc in ("fc1", "fc2"):
                named[f"{ours}mlp.{fc}.{kind}"] = source[f"{theirs}mlp.{fc}.{kind}"]
    return named


@torch.no_grad()
def build_ours(size: Size, rival: Any) -> VisionLanguageModel:
    """Our model with the rival's weights, every one of them."""
    from transformers import Qwen2ForCausalLM

    depth, width, heads, mlp = size.tower
    tower = timm.create_model(
        "vit_base_patch16_224",
        img_size=size.tile,
        patch_size=14,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp / width,
        init_values=0.1,
        final_norm=False,
        num_classes=0,
    )
    tower.load_state_dict(_tower_tensors(rival.model.vision_tower, depth))
    language = Qwen2ForCausalLM(rival.config.text_config)
    language.model.load_state_dict(rival.model.language_model.state_dict())
    language.lm_head.load_state_dict(rival.lm_head.state_dict())
    model = VisionLanguageModel(tower, language, image_size=size.tile, factor=2, mean=MEAN, std=STD)
    theirs = rival.model.multi_modal_projector
    pairs = zip(("norm", "fc1", "fc2"), ("layer_norm", "linear_1", "linear_2"), strict=True)
    for own, other in pairs:
        getattr(model.projector, own).load_state_dict(getattr(theirs, other).state_dict())
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, rival)]
    assert counts[0] == counts[1], f"parameters differ: {counts}"
    return model.train()


@dataclass(frozen=True)
class Conversation:
    """One sample before anything is dropped: tiles uint8 [t, 3, S, S], ids int64 [n], the last `answer` supervised."""

    tiles: Tensor
    ids: Tensor
    answer: int


def _conversation(tiles: int, text: int, answer: int, size: Size, vocabulary: int, seed: int) -> Conversation:
    rng = np.random.default_rng(seed)
    ids = np.concatenate(
        [
            rng.integers(FIRST_TEXT_ID, vocabulary, 4),
            np.full(tiles * (size.tile // 28) ** 2, IMAGE_ID),
            rng.integers(FIRST_TEXT_ID, vocabulary, text - 4),
        ]
    )
    pixels = torch.from_numpy(rng.integers(0, 256, (tiles, 3, size.tile, size.tile), dtype=np.uint8))
    return Conversation(pixels, torch.from_numpy(ids), answer)


def reference_batch(size: Size, vocabulary: int) -> list[Conversation]:
    """Four samples of 1, 3, 5 and 7 tiles: at the toy size 1,234 tokens, 2,192 when padded, 69 of them supervised."""
    return [
        _conversation(tiles, text, answer, size, vocabulary, tiles)
        for tiles, text, answer in ((1, 20, 7), (3, 40, 13), (5, 50, 16), (7, 100, 33))
    ]


def mixture(count: int, size: Size, vocabulary: int, seed: int = 0) -> list[Conversation]:
    """Samples whose tile numbers are the mixture's quantiles (so that a few stand for many), in a random order."""
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(list(TILE_SHARES.values()))
    places = np.searchsorted(bounds, (np.arange(count) + 0.5) / count)
    tiles = np.array(list(TILE_SHARES))[np.minimum(places, len(bounds) - 1)]
    made = []
    for i, t in enumerate(rng.permutation(tiles)):
        text = int(np.clip(rng.lognormal(np.log(size.text) - 0.18, 0.6), size.text / 6, size.text * 3.2))
        made.append(_conversation(int(t), text, max(1, round(0.35 * text)), size, vocabulary, seed + i))
    return made


def laid_out(samples: Sequence[Conversation], ratio: float) -> list[LaidOut]:
    """The samples as this package lays them out, `ratio` of the visual tokens dropped; every token weighs 1."""
    done = []
    for i, sample in enumerate(samples):
        ids = sample.ids.numpy().astype(np.int32)
        encoded = Encoded(ids, ids == IMAGE_ID, ((len(ids) - sample.answer, len(ids)),))
        kept = keep(int((ids == IMAGE_ID).sum()), ratio, np.random.default_rng(i))
        depth = np.zeros((len(sample.tiles), 0), np.float32)
        done.append(lay_out(encoded, sample.tiles, depth, kept, "token", 1 << 20, f"sample {i}"))
    return done


@dataclass(frozen=True)
class Padded:
    """A batch as transformers takes it, pixels normalised beforehand."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixel_values: Tensor


def pad(samples: Sequence[Conversation], length: int | None = None) -> Padded:
    """Samples side by side, filled up on the right to the longest, or to `length`."""
    longest = max(len(s.ids) for s in samples)
    if length is not None:
        assert length >= longest, f"a sample has {longest} positions, more than {length}"
        longest = length
    ids = torch.full((len(samples), longest), PAD_ID)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, sample in enumerate(samples):
        n = len(sample.ids)
        ids[i, :n], mask[i, :n] = sample.ids, 1
        labels[i, n - sample.answer : n] = sample.ids[-sample.answer :]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    pixels = (torch.cat([s.tiles for s in samples]) / 255 - mean) / std
    return Padded(ids, mask, labels, pixels)
