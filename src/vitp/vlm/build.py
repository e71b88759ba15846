"""The model of a recipe: a whole InternVL checkpoint, or a tower, a new projector and a language model put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from vitp.backbone.layouts import layout_of, place_of, to_timm_shape
from vitp.backbone.vit import BackboneConfig
from vitp.config import Config
from vitp.errors import CheckpointError, ConfigError, VitpError
from vitp.instruction.chat import SPECIAL_TOKENS
from vitp.vlm.internvl import read_json
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.stored import fill, local_copy, open_stored
from vitp.vlm.tiny import LanguageModelConfig, build_language_model, language_model_of, load_language_model
from vitp.vlm.tokenizer import embedding_rows, load_tokenizer, read_tokenizer
from vitp.vlm.weights import fill_vlm, open_vlm, vlm_fields

Say = Callable[[str], None]
_TOWER_SIZES = ("architecture", "image_size", "patch_size")


class TowerConfig(BackboneConfig):
    """The ViT inside the model."""

    drop_path: float = Field(default=0.1, ge=0, lt=1)  # released scripts: linear from 0 to 0.1 over the blocks
    weights: Path | None = None  # a .safetensors file, a folder or a hub id of such a ViT; None: random initialisation


class ModelConfig(Config):
    """A whole checkpoint (`vlm`), or tower, projector and language model put together.

    With `vlm`, `tower` and `pixel_shuffle` come from the checkpoint's config.json; a recipe names only what it changes
    (``tower.drop_path``). A run's own recipe.yaml holds them written out and does not need the checkpoint again.
    """

    vlm: str | None = None  # folder, .safetensors beside its config.json, or hub id of an InternVL2, 2.5 or 3
    tower: TowerConfig
    pixel_shuffle: int = Field(default=2, ge=1, le=4)  # released: down_sample_ratio 0.5
    language_model: LanguageModelConfig = LanguageModelConfig()

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_checkpoint(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("vlm"), str):
            return data
        tower = data.get("tower")
        tower = {} if tower is None else tower.model_dump() if isinstance(tower, TowerConfig) else tower
        if not isinstance(tower, dict) or ("pixel_shuffle" in data and tower.keys() >= set(_TOWER_SIZES)):
            return data
        found = vlm_fields(data["vlm"])
        return {"pixel_shuffle": found["pixel_shuffle"], **data, "tower": {**found["tower"], **tower}}

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if self.vlm is not None:
            for key, value in (
                ("language_model.path", self.language_model.path),
                ("tower.weights", self.tower.weights),
            ):
                if value is not None:
                    raise ValueError(
                        f"vlm {self.vlm} brings its own; remove {key}, or remove vlm and put the parts together"
                    )
        return self


def tokenizer_of(origin: str, say: Say = lambda _: None) -> Any:
    """A checkpoint's own tokenizer with InternVL's tokens; those it lacked are added and said.

    Raises:
        CheckpointError: nothing loadable there.
    """
    file = Path(origin)
    if file.suffix.lower() == ".gguf":
        tokenizer = read_tokenizer(str(file.parent), file.name)
        added = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
        tokenizer.add_tokens(added, special_tokens=True)
    else:
        folder = str(file.parent) if file.is_file() else origin
        own = read_tokenizer(folder).get_vocab()
        tokenizer, added = load_tokenizer(folder), [token for token in SPECIAL_TOKENS if token not in own]
    if added:
        say(f"tokenizer: {len(added)} tokens are new to {origin}: {' '.join(added)}")
    return tokenizer


def assemble(
    config: ModelConfig, tokenizer: Any, seed: int, run: Path | None = None, say: Say = lambda _: None
) -> VisionLanguageModel:
    """The model of a recipe with its initial weights; what is new and random is said.

    Args:
        config: the recipe's ``model``.
        tokenizer: the model's.
        seed: of everything that is drawn.
        run: a run whose weights will be loaded next; nothing is then read from the places the recipe names.
        say: receives what was loaded, what is new, and what was added.

    Raises:
        CheckpointError: given weights do not fit.
        ConfigError: the parts do not fit together.
    """
    parts = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = config.tower.create()
        if run is not None:
            language_model = language_model_of(run / "language_model")
        elif config.vlm is not None:
            parts = open_vlm(config.vlm)
            language_model = parts.language_model
        else:
            language_model = _language_model(config.language_model, tokenizer, seed, say)
        model = wire(config, tower, language_model)
    if parts is not None:
        _rows_for(tokenizer, language_model, str(config.vlm))
        fill_vlm(model, parts)
        say(f"tower, projector and language model are those of {config.vlm}")
    elif run is None:
        if config.tower.weights is not None:
            load_tower(model.tower, config.tower.weights, say)
        say(f"tower: {config.tower.weights or 'random, drawn from the seed'}")
        say("projector: random, drawn from the seed")
    return model


def wire(config: ModelConfig, tower: nn.Module, language_model: nn.Module) -> VisionLanguageModel:
    """The parts of a recipe's model put together.

    Raises:
        ConfigError: they do not fit together.
    """
    try:
        return VisionLanguageModel(
            tower,
            language_model,
            image_size=config.tower.image_size,
            factor=config.pixel_shuffle,
            mean=config.tower.mean,
            std=config.tower.std,
            drop_path=config.tower.drop_path,
        )
    except VitpError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _language_model(config: LanguageModelConfig, tokenizer: Any, seed: int, say: Say) -> nn.Module:
    if config.path is None:
        say(f"language model: random, drawn from the seed ({config.depth} layers of width {config.width})")
        return build_language_model(config, len(tokenizer), seed)
    model = load_language_model(config.path, embedding_rows(tokenizer), say=say)
    say(f"language model: {config.path}")
    return model


def _rows_for(tokenizer: Any, language_model: Any, vlm: str) -> None:
    """Refuse a tokenizer with more tokens than the checkpoint has embedding rows.

    Raises:
        CheckpointError: so many tokens, so few rows.
    """
    rows = int(language_model.get_input_embeddings().num_embeddings)
    if embedding_rows(tokenizer) > rows:
        raise CheckpointError(
            f"{vlm}: its tokenizer has {len(tokenizer)} tokens ({', '.join(SPECIAL_TOKENS[:3])}, ...) and its embedding only "
            f"{rows} rows: the two do not belong together, so give the tokenizer files that were published with the weights"
        )


def load_tower(tower: nn.Module, weights: Path, say: Say) -> None:
    """Fill a timm ViT from its own file or folder, an InternViT's, or a SigLIP's vision model; prefixes are recognised.

    What comes after the ViT in such a file (a classifier, a pooling head, a text model) is left out, and said.

    Args:
        tower: a timm ViT without a classifier.
        weights: a .safetensors file, a folder, or a hub id.
        say: receives what was left out.

    Raises:
        CheckpointError: nothing there, or it belongs to another architecture.
    """
    stored = open_stored(local_copy(str(weights)))
    try:
        layout, prefix = layout_of(stored.files)
    except CheckpointError as error:
        raise CheckpointError(f"{stored.origin}: {error}") from error
    after = frozenset(name for name in stored.files if not name.startswith(prefix) or _is_after(name, prefix))
    if after:
        say(f"{stored.origin.name}: {len(after)} tensors behind the ViT are not needed ('{min(after)}', ...)")
    _say_activation(tower, next(iter(stored.files.values())).parent / "config.json", say)
    fill(
        tower,
        stored,
        lambda name: place_of(name.removeprefix(prefix), layout),
        shape=lambda tensor, name: to_timm_shape(tensor, name, layout),
        ignored=after,
    )


def _is_after(name: str, prefix: str) -> bool:
    """Whether a tensor belongs to what timm or transformers put behind the blocks: classifier, pooling."""
    return name.removeprefix(prefix).startswith(("head.", "head_dist.", "attn_pool.", "fc_norm."))


def _say_activation(tower: Any, config_file: Path, say: Say) -> None:
    """The one difference that no name and no shape shows: GELU or its tanh approximation."""
    if not config_file.is_file():
        return
    said = read_json(config_file)
    vision = said.get("vision_config") or said
    given = vision.get("hidden_act")
    act = tower.blocks[0].mlp.act
    tanh = getattr(act, "approximate", "none") == "tanh" or type(act).__name__ == "GELUTanh"
    own = "gelu_pytorch_tanh" if tanh else "gelu"
    if given in ("gelu", "gelu_pytorch_tanh") and given != own:
        say(
            f"tower: {config_file} was trained with {given}, this architecture computes {own}; its features differ slightly"
        )
