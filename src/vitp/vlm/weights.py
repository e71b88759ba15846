"""Whole vision-language models: InternVL checkpoints read into a `VisionLanguageModel`, and written from one.

No remote code runs. The tower becomes timm's ViT, the language model transformers' own class, the projector ours; every
stored tensor must find its place and every tensor of the model must be filled, or loading stops and names it. Tensors
are copied one at a time from memory-mapped files, so that no second copy of the model is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitp.backbone.vit import BackboneConfig
from vitp.errors import CheckpointError, ConfigError
from vitp.files import raise_if_unwritable, write_atomic, write_json
from vitp.instruction.chat import IMAGE_TOKEN
from vitp.train.checkpoint import model_tensors
from vitp.vlm.internvl import ARCHITECTURE, VlmDescription, describe_vlm, vlm_config
from vitp.vlm.internvl_names import VlmLayout, layout_of_vlm, names_in_vlm, place_in_vlm
from vitp.vlm.known import KNOWN_VLMS
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.stored import StoredTensors, fill, hub_file, local_copy, open_stored, refuse_pickle

Say = Callable[[str], None]


@dataclass(frozen=True)
class LoadedParts:
    """What a checkpoint holds, ready to be wired together: the files are open, no number has been read yet."""

    description: VlmDescription
    stored: StoredTensors
    layout: VlmLayout
    language_model: nn.Module


_HEAD, _INPUT = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def vlm_fields(vlm: str) -> dict[str, Any]:
    """``tower`` and ``pixel_shuffle`` of a recipe whose ``model.vlm`` is `vlm`: a folder, a file in it, or a hub id.

    Known hub ids need no network; of any other only the config.json is fetched.

    Raises:
        CheckpointError: nothing there, or not an InternVL.
    """
    path = Path(vlm).expanduser()
    if path.exists():
        found = describe_vlm(_folder(path) / "config.json")
    elif vlm in KNOWN_VLMS:
        tower = {"architecture": ARCHITECTURE, "image_size": 448, "patch_size": 14}
        return {"tower": tower, "pixel_shuffle": 2}
    else:
        found = describe_vlm(hub_file(vlm, "config.json"))
    return {"tower": found.tower_fields(), "pixel_shuffle": found.pixel_shuffle}


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def open_vlm(vlm: str) -> LoadedParts:
    """Open a checkpoint and build its language model, whose numbers are not read yet.

    Args:
        vlm: a folder, one .safetensors file beside its config.json, or a hub id.

    Raises:
        CheckpointError: nothing there, not an InternVL, or its files are incomplete.
    """
    path = local_copy(vlm)
    if path.is_file():
        refuse_pickle(path)
    description = describe_vlm(_folder(path) / "config.json")
    stored = open_stored(path)
    layout = layout_of_vlm(stored.files)
    if layout is None or (layout == "internvl") != description.published:
        first = min(stored.files, default="nothing")
        raise CheckpointError(
            f"{stored.origin}: its tensors ('{first}', ...) are not named as its config.json says; give the two of one checkpoint"
        )
    head = names_in_vlm(_HEAD, layout)[0]
    if head not in stored.files and not description.tied:
        raise CheckpointError(
            f"{stored.origin}: has no output embedding ('{head}'), and its config.json does not tie it to the input "
            "embedding (tie_word_embeddings); the checkpoint is incomplete"
        )
    tied = head not in stored.files or (description.tied and _same_embeddings(stored, layout))
    return LoadedParts(description, stored, layout, empty_language_model(description, tied))


def _same_embeddings(stored: StoredTensors, layout: VlmLayout) -> bool:
    """Whether the input and the output embedding hold the same numbers."""
    first, second = (names_in_vlm(own, layout)[0] for own in (_INPUT, _HEAD))
    if first not in stored.files or stored.shapes[first] != stored.shapes[second]:
        return False
    return torch.equal(stored.read(first), stored.read(second))


def empty_language_model(description: VlmDescription, tied: bool) -> nn.Module:
    """The language model that a checkpoint's config.json describes, its weights not yet initialised.

    Raises:
        CheckpointError: transformers has no such model without remote code, or refuses its sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {key: value for key, value in description.text.items() if key not in _NOT_OURS}
    kind = str(text.pop("model_type", "qwen2"))
    try:
        config = AutoConfig.for_model(kind, **text)
        config.tie_word_embeddings = tied
        with _uninitialised():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.tie_weights()
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or [repr(error)])[0]
        raise CheckpointError(
            f"{description.origin}: transformers builds no language model '{kind}' of these sizes without remote code ({said})"
        ) from error
    assert isinstance(model, nn.Module)
    return model


# Keys of a language model's configuration that say how it was once run, not what it is.
_NOT_OURS = frozenset(
    {"_name_or_path", "_attn_implementation", "attn_implementation", "auto_map", "dtype", "torch_dtype", "use_bfloat16"}
    | {"transformers_version", "_attn_implementation_autoset", "tie_word_embeddings"}
)


def _uninitialised() -> AbstractContextManager[None]:
    """Modules made inside keep the memory they are given: every number is about to be overwritten (`fill` makes sure)."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # an older transformers: slower, no different
        return nullcontext()
    context: AbstractContextManager[None] = no_init_weights()
    return context


def fill_vlm(model: VisionLanguageModel, parts: LoadedParts) -> None:
    """Copy a checkpoint's numbers into a model wired from its language model and a tower of its sizes.

    Raises:
        CheckpointError: a tensor is left over, missing or of another shape.
        ConfigError: the tower is not the one that the checkpoint's config.json describes.
    """
    _check_tower(model, parts.description)
    stored, layout = parts.stored, parts.layout
    ignored = frozenset(names_in_vlm(_HEAD, layout) if _is_tied(parts.language_model) else ())
    fill(model, stored, lambda name: place_in_vlm(name, layout), ignored=ignored)


def _is_tied(language_model: nn.Module) -> bool:
    lm: Any = language_model
    return lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


def _check_tower(model: VisionLanguageModel, said: VlmDescription) -> None:
    """Sizes that a recipe overrides and that no shape would give away (heads), and those that one would, by their key."""
    tower: Any = model.tower
    pairs = {
        "image_size": (model.image_size, said.image_size),
        "patch_size": (int(tower.patch_embed.patch_size[0]), said.patch_size),
        "width": (int(tower.num_features), said.width),
        "depth": (len(tower.blocks), said.depth),
        "heads": (int(tower.blocks[0].attn.num_heads), said.heads),
        "mlp_ratio": (tower.blocks[0].mlp.fc1.out_features / tower.num_features, said.mlp_width / said.width),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ConfigError(
                f"model.tower.{key} is {ours:g}, but {said.origin} says {theirs:g}: remove the key, the checkpoint sets it"
            )
    if model.factor != said.pixel_shuffle:
        raise ConfigError(
            f"model.pixel_shuffle is {model.factor}, but {said.origin} says {said.pixel_shuffle}: remove the key"
        )


def load_vlm(vlm: str, drop_path: float = 0.0) -> VisionLanguageModel:
    """A whole InternVL checkpoint in fp32, whatever dtype it is stored in.

    Args:
        vlm: a folder, one .safetensors file beside its config.json, or a hub id; original or ``-hf`` layout.
        drop_path: stochastic depth of the tower's last block.

    Raises:
        CheckpointError: nothing there, not an InternVL, damaged or incomplete; the message names what.
    """
    parts = open_vlm(vlm)
    said = parts.description
    model = VisionLanguageModel(
        BackboneConfig(**said.tower_fields()).create(),
        parts.language_model,
        image_size=said.image_size,
        factor=said.pixel_shuffle,
        mean=said.mean,
        std=said.std,
        drop_path=drop_path,
    )
    fill_vlm(model, parts)
    return model.eval()


def save_vlm(
    folder: Path,
    model: VisionLanguageModel,
    tokenizer: Any,
    layout: VlmLayout,
    *,
    dtype: torch.dtype | None = None,
    template: str = "internvl2_5",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a whole model as an InternVL checkpoint: config.json, safetensors (sharded if large) and the tokenizer.

    What `load_vlm` read in a layout and dtype is written back bit for bit in them. Weights are converted and written one
    shard at a time; every file appears whole or not at all, and config.json last.

    Args:
        folder: made if missing; files of the same names are replaced.
        model: its tower must be an InternViT (timm's vit_intern300m_patch14_448, any size).
        tokenizer: the model's, with the image tokens.
        layout: ``internvl`` (published), ``internvl_hf_prefixed`` (what transformers writes), ``internvl_hf``.
        dtype: of the stored floating-point tensors; None keeps each as it is.
        template: name of the conversation template in a published config.json.
        shard_bytes: files hold at most so much, unless a single tensor is larger.

    Raises:
        CheckpointError: the tower or the language model has tensors that an InternVL has not.
        OutputError: no space left or not writable.
    """
    named = _named_for(model, layout)
    image_token = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    size = {name: tensor.numel() * _bytes_of(tensor, dtype) for name, tensor in named.items()}
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in named.items():
        if shards[-1] and used + size[name] > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size[name]
    map_of: dict[str, str] = {}
    for i, shard in enumerate(shards):
        only = len(shards) == 1
        file = "model.safetensors" if only else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard, dtype)
        map_of.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        about = {"metadata": {"total_size": sum(size.values())}, "weight_map": dict(sorted(map_of.items()))}
        write_json(folder / "model.safetensors.index.json", about)
    try:
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise_if_unwritable(error, folder)
        raise
    write_json(folder / "config.json", vlm_config(model, layout, image_token, dtype, template))


def _bytes_of(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return (dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype).itemsize


def _write_shard(path: Path, shard: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    tensors = {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in shard.items()
    }
    # parts of a fused matrix share its memory, which safetensors refuses to store twice
    apart = {name: t.clone() if t.untyped_storage().nbytes() > t.nbytes else t for name, t in tensors.items()}
    write_atomic(path, lambda temporary: save_file(apart, temporary, metadata={"format": "pt"}))


def _named_for(model: VisionLanguageModel, layout: VlmLayout) -> dict[str, Tensor]:
    """Every tensor of the model under its name in `layout`; tied embeddings once."""
    own = model_tensors(model)
    if not {"tower.cls_token", "tower.blocks.0.ls1.gamma"} <= own.keys():
        raise CheckpointError(
            f"an InternVL checkpoint holds an InternViT, with a class token and layer scale, and {type(model.tower).__name__} of "
            "this run is another kind; export the tower alone (--to timm)"
        )
    named: dict[str, Tensor] = {}
    for name, tensor in own.items():
        theirs = names_in_vlm(name, layout)
        if not theirs:
            raise CheckpointError(
                f"'{name}' has no counterpart in an InternVL checkpoint, whose tower has no such part; export the tower alone "
                "(--to timm)"
            )
        named.update(zip(theirs, tensor.chunk(3, 0) if len(theirs) == 3 else (tensor,), strict=True))
    return named
