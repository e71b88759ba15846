"""A recipe's model without its weights: the right modules with the right shapes, on the meta device.

What a model costs depends on its shapes alone, so an estimate needs no checkpoint. Sizes come from the checkpoint's own
config.json where it is on this disk, from a short list of published models where it is not, and from the hub for all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitp.errors import CheckpointError
from vitp.vlm.build import ModelConfig, wire
from vitp.vlm.internvl import describe_vlm
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.stored import hub_file
from vitp.vlm.tiny import LanguageModelConfig, build_language_model
from vitp.vlm.weights import empty_language_model

# The language models of published InternVLs, `vitp.vlm.known`.
_INSIDE = {
    "OpenGVLab/InternVL2-1B": "Qwen2-0.5B",
    "OpenGVLab/InternVL2_5-1B": "Qwen2.5-0.5B",
    "OpenGVLab/InternVL2_5-1B-MPO": "Qwen2.5-0.5B",
    "OpenGVLab/InternVL2_5-4B": "Qwen2.5-3B",
    "OpenGVLab/InternVL3-1B": "Qwen2.5-0.5B",
    "OpenGVLab/InternVL3-1B-hf": "Qwen2.5-0.5B",
    "OpenGVLab/InternVL3-2B": "Qwen2.5-1.5B",
    "OpenGVLab/InternVL3-2B-hf": "Qwen2.5-1.5B",
    "OpenGVLab/InternVL3-8B": "Qwen2.5-7B",
    "OpenGVLab/InternVL3-8B-hf": "Qwen2.5-7B",
}
INTERNVL_VOCABULARY = 151674  # rows of InternVL's Qwen2 and Qwen2.5 embeddings, its nine tokens included

# Published language models by the end of their hub id, "-Instruct" left out. Sizes are those of their config.json: transformers'
# kind, width, MLP width, layers, heads, key/value heads, head width (0: width / heads), vocabulary, embeddings tied.
_PUBLISHED: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "Qwen2-0.5B": ("qwen2", 896, 4864, 24, 14, 2, 0, 151936, True),
    "Qwen2.5-0.5B": ("qwen2", 896, 4864, 24, 14, 2, 0, 151936, True),
    "Qwen2.5-1.5B": ("qwen2", 1536, 8960, 28, 12, 2, 0, 151936, True),
    "Qwen2.5-3B": ("qwen2", 2048, 11008, 36, 16, 2, 0, 151936, True),
    "Qwen2.5-7B": ("qwen2", 3584, 18944, 28, 28, 4, 0, 152064, False),
    "Qwen3-0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True),
    "Qwen3-1.7B": ("qwen3", 2048, 6144, 28, 16, 8, 128, 151936, True),
    "SmolLM2-135M": ("llama", 576, 1536, 30, 9, 3, 0, 49152, True),
    "SmolLM2-360M": ("llama", 960, 2560, 32, 15, 5, 0, 49152, True),
}


def published_name(name: str) -> str:
    """The end of a hub id as the list of published models has it."""
    return name.rsplit("/", 1)[-1].removesuffix("-Instruct")


def sketch_model(config: ModelConfig) -> VisionLanguageModel:
    """The model of a recipe on the meta device.

    The vocabulary of a language model from scratch is the most that its tokenizer may have; tokens that a tokenizer lacks
    and training would add (at most nine rows) are left out.

    Raises:
        CheckpointError: a checkpoint that is neither here nor known nor on the hub, or that no model can be built from.
        ConfigError: the parts do not fit together.
    """
    with torch.device("meta"):
        tower = config.tower.create()
        language = _of_vlm(config.vlm) if config.vlm is not None else _language_model(config.language_model)
        return wire(config, tower, language)


def _of_vlm(vlm: str) -> nn.Module:
    path = Path(vlm).expanduser()
    if not path.exists() and vlm in _INSIDE:
        # All of these hold an output embedding of their own, whatever the language model had.
        return _published(_INSIDE[vlm], vocabulary=INTERNVL_VOCABULARY, tied=False)
    folder = path if path.is_dir() else path.parent
    description = describe_vlm(folder / "config.json" if path.exists() else hub_file(vlm, "config.json"))
    return empty_language_model(description, description.tied)


def _language_model(config: LanguageModelConfig) -> nn.Module:
    if config.path is None:
        return build_language_model(config, config.vocabulary, 0)
    path = Path(config.path).expanduser()
    if not path.exists() and published_name(config.path) in _PUBLISHED:
        return _published(published_name(config.path))
    return _from_config(path if path.exists() else Path(config.path))


def _published(name: str, vocabulary: int | None = None, tied: bool | None = None) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, width, mlp_width, layers, heads, kv_heads, head_width, rows, shared = _PUBLISHED[name]
    own: dict[str, Any] = {"head_dim": head_width} if head_width else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=rows if vocabulary is None else vocabulary,
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=shared if tied is None else tied,
        **own,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, nn.Module)
    return model


def _from_config(path: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    gguf = path.name if path.suffix.lower() == ".gguf" else None
    try:
        config = AutoConfig.from_pretrained(str(path.parent if gguf else path), trust_remote_code=False, gguf_file=gguf)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"{path}: its sizes are not known ({said}); give a folder with its config.json, or one of "
            f"{', '.join(sorted(_PUBLISHED))}"
        ) from error
    assert isinstance(model, nn.Module)
    return model
