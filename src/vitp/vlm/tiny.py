"""Building the language model: a small Qwen2-architecture one from scratch, or any transformers causal LM by path."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from vitp.config import Config
from vitp.errors import CheckpointError
from vitp.vlm.stored import refuse_pickle
from vitp.vlm.tokenizer import split_gguf


class LanguageModelConfig(Config):
    """Either `path` (folder, hub id or .gguf file: weights and tokenizer), or the sizes of a small Qwen2 built here."""

    path: str | None = None
    width: int = Field(default=192, ge=16)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=3, ge=1)
    kv_heads: int = Field(default=1, ge=1)
    mlp_width: int = Field(default=512, ge=16)
    vocabulary: int = Field(default=4096, ge=300)  # upper bound of the tokenizer built from the recipe's text

    @model_validator(mode="after")
    def _heads_fit(self) -> LanguageModelConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} is not an even multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self


def build_language_model(config: LanguageModelConfig, vocabulary: int, seed: int) -> nn.Module:
    """A Qwen2 with random weights, embeddings tied, drawn from `seed` alone."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    qwen = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=32768,
        rope_theta=1e6,  # Qwen2.5
        tie_word_embeddings=True,  # Qwen2.5-0.5B
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(qwen)
    assert isinstance(model, nn.Module)
    return model


def language_model_of(folder: Path) -> nn.Module:
    """The language model whose transformers configuration a run saved, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: holds no language model configuration; the run's folder is incomplete"
        ) from error
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert isinstance(model, nn.Module)
    return model


def load_language_model(
    path: str, vocabulary: int, gguf_file: str | None = None, say: Callable[[str], None] = lambda _: None
) -> nn.Module:
    """Any transformers causal LM in fp32, its embedding rows extended to `vocabulary` when tokens were added.

    New rows are the mean of the others, as in the released code, and are said.

    Args:
        path: a folder, a hub id, or a .gguf file.
        vocabulary: tokens of the tokenizer.
        gguf_file: name of a GGUF file in the folder `path` to read instead of its safetensors.
        say: receives how many rows were added.

    Raises:
        CheckpointError: nothing loadable there, or weights of other shapes than its config.json says.
        MissingExtraError: a GGUF file, and what reads it is not installed.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if gguf_file is None and path.lower().endswith(".gguf"):
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: no such file")
        path, gguf_file = split_gguf(path)
    if Path(path).is_file():
        refuse_pickle(Path(path))
        raise CheckpointError(f"{path} is a file; give the folder of a language model, a .gguf file, or a hub id")
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            gguf_file=gguf_file,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, struct.error) as error:
        hint = "" if Path(path).exists() else " (no such folder here, and the hub did not answer)"
        raise CheckpointError(
            f"{Path(path, gguf_file or '')}: no causal language model can be loaded{hint}: {str(error).splitlines()[0]}"
        ) from error
    absent = sorted(found["missing_keys"])  # transformers would draw them at random and go on
    if absent:
        raise CheckpointError(
            f"{Path(path, gguf_file or '')}: lacks '{absent[0]}' and {len(absent) - 1} more of {type(model).__name__}'s tensors; "
            "the file is incomplete or of another architecture than its config says"
        )
    if gguf_file is not None:
        model.config.quantization_config = None  # read into plain numbers, so that a run can build it again
    _add_rows(model, vocabulary, say)
    assert isinstance(model, nn.Module)
    return model


@torch.no_grad()
def _add_rows(model: Any, vocabulary: int, say: Callable[[str], None]) -> None:
    rows = int(model.get_input_embeddings().num_embeddings)
    if rows >= vocabulary:
        return
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        if embedding is not None:
            embedding.weight[rows:] = embedding.weight[:rows].mean(0)
    say(
        f"language model: {vocabulary - rows} embedding rows are new, for added tokens; each starts as the mean of the others"
    )
