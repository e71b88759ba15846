"""A miniature vision-language model and packs for it, small enough for exact checks."""

from __future__ import annotations

import numpy as np
import timm
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vitp.backbone.vit import BackboneConfig
from vitp.instruction.chat import Encoded
from vitp.instruction.pack import LaidOut, lay_out
from vitp.vlm.loss import Weighting
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.tiny import LanguageModelConfig, build_language_model
from vitp.vlm.token_drop import keep

SIZE, PATCH, VOCABULARY, IMAGE_ID = 32, 4, 320, 5
MODULES = 4


def tiny_model(factor: int = 2, drop_path: float = 0.2, seed: int = 0) -> VisionLanguageModel:
    torch.manual_seed(seed)
    tower = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, embed_dim=24, depth=2, num_heads=3, num_classes=0
    )
    language = LanguageModelConfig(width=32, depth=2, heads=4, kv_heads=2, mlp_width=48)
    return VisionLanguageModel(
        tower,
        build_language_model(language, VOCABULARY, seed),
        image_size=SIZE,
        factor=factor,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        drop_path=drop_path,
    )


def laid_out_sample(
    tiles: int, seed: int, r: float, weighting: Weighting = "answer", tokens_per_tile: int = 16, answers: int = 2
) -> LaidOut:
    """A conversation with `answers` answers over `tiles` tiles (0: text only), with its own dropped tokens."""
    rng = np.random.default_rng(seed)
    n = tiles * tokens_per_tile
    head = rng.integers(10, VOCABULARY, 3)
    parts, spans, at = [head, np.full(n, IMAGE_ID)], [], 3 + n
    for _ in range(answers):
        question, answer = (
            rng.integers(10, VOCABULARY, rng.integers(2, 6)),
            rng.integers(10, VOCABULARY, rng.integers(1, 7)),
        )
        parts += [question, answer]
        spans.append((at + len(question), at + len(question) + len(answer)))
        at += len(question) + len(answer)
    ids = np.concatenate(parts).astype(np.int32)
    encoded = Encoded(ids, ids == IMAGE_ID, tuple(spans))
    pixels = torch.from_numpy(rng.integers(0, 256, (tiles, 3, SIZE, SIZE), dtype=np.uint8))
    depth = rng.random((tiles, MODULES), dtype=np.float32)
    return lay_out(encoded, pixels, depth, keep(n, r, rng), weighting, 4096, f"sample {seed}")


def paper_model() -> VisionLanguageModel:
    """The paper's sizes without weights: InternViT-300M at 448 pixels, Qwen2.5-0.5B with embeddings tied."""
    with torch.device("meta"):
        tower = BackboneConfig(architecture="vit_intern300m_patch14_448", image_size=448, patch_size=14).create()
        config = Qwen2Config(
            vocab_size=151674, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
        return VisionLanguageModel(
            tower, Qwen2ForCausalLM(config), image_size=448, factor=2, mean=(0.0,) * 3, std=(1.0,) * 3, drop_path=0.1
        )
