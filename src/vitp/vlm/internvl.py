"""The config.json of InternVL checkpoints, published and transformers' own: read, judged and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vitp.errors import CheckpointError
from vitp.vlm.internvl_names import VlmLayout

ARCHITECTURE = "vit_intern300m_patch14_448"  # the tower of InternVL2, 2.5 and 3 below 26 B
_PUBLISHED, _NATIVE = "InternVLChatModel", "InternVLForConditionalGeneration"


@dataclass(frozen=True)
class VlmDescription:
    """What a checkpoint's config.json says of its model, in our words. `text` is the language model's own configuration."""

    origin: Path
    published: bool  # the original layout; else transformers' own
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    pixel_shuffle: int
    text: Mapping[str, Any]
    tied: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def tower_fields(self) -> dict[str, Any]:
        """The tower as keys of a recipe's ``model.tower``; sizes that are the architecture's own are left out."""
        named = {"image_size": self.image_size, "patch_size": self.patch_size}
        sizes = {"width": (self.width, 1024), "depth": (self.depth, 24), "heads": (self.heads, 16)}
        changed: dict[str, Any] = {key: value for key, (value, usual) in sizes.items() if value != usual}
        if self.mlp_width != 4 * self.width:
            changed["mlp_ratio"] = self.mlp_width / self.width
        if (self.mean, self.std) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
            changed.update(mean=list(self.mean), std=list(self.std))
        return {"architecture": ARCHITECTURE, **named, **changed}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; a checkpoint's folder holds its config.json") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not readable JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download it again")
    return value


def describe_vlm(config_file: Path) -> VlmDescription:
    """Read a checkpoint's config.json, and its preprocessor_config.json for mean and std if there is one.

    Raises:
        CheckpointError: not an InternVL, or one of a kind that is not supported; the message says which and what is.
    """
    config = read_json(config_file)
    kinds = config.get("architectures") or [config.get("model_type")]
    if _PUBLISHED in kinds or config.get("model_type") == "internvl_chat":
        return _published(config, config_file)
    if _NATIVE in kinds or config.get("model_type") == "internvl":
        return _native(config, config_file)
    raise CheckpointError(
        f"{config_file}: describes {kinds[0] or 'no model'}, not an InternVL ({_PUBLISHED} or {_NATIVE}); to put a tower and a "
        "language model together use model.tower and model.language_model instead of model.vlm"
    )


def _part(config: Mapping[str, Any], key: str, origin: Path) -> dict[str, Any]:
    part = config.get(key)
    if not isinstance(part, dict) or not part:
        raise CheckpointError(f"{origin}: has no {key}; it is not the config.json of a whole InternVL")
    return part


def _require(origin: Path, rules: Iterable[tuple[str, Any, tuple[Any, ...], str]]) -> None:
    for key, found, allowed, why in rules:
        if found not in allowed:
            raise CheckpointError(f"{origin}: {key} is {found!r}, which is not supported: {why}")


_ONE_KIND = (
    "only towers of InternViT-300M's kind are (LayerNorm, biases, queries and keys without norm): InternVL below 26 B"
)


# What transformers' InternVLVisionConfig takes for a key that a config.json leaves out.
_NATIVE_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
}


def _published(config: Mapping[str, Any], origin: Path) -> VlmDescription:
    vision, text = _part(config, "vision_config", origin), _part(config, "llm_config", origin)
    kind = (text.get("architectures") or [text.get("model_type")])[0]
    if kind == "InternLM2ForCausalLM" or text.get("model_type") == "internlm2":
        raise CheckpointError(
            f"{origin}: its language model is InternLM2, whose code is not part of transformers; take a sibling with Qwen2 "
            "(InternVL2_5-1B, InternVL2_5-4B, InternVL3-1B) or a converted -hf checkpoint"
        )
    _require(
        origin,
        [
            (
                "ps_version",
                config.get("ps_version", "v1"),
                ("v2",),
                "v1 transposes the visual tokens; InternVL2 and later are v2",
            ),
            (
                "select_layer",
                config.get("select_layer", -1),
                (-1,),
                "the last layer's features are taken, as InternVL2 and later do",
            ),
            ("vision_config.norm_type", vision.get("norm_type", "rms_norm"), ("layer_norm",), _ONE_KIND),
            ("vision_config.qk_normalization", vision.get("qk_normalization", True), (False,), _ONE_KIND),
            ("vision_config.qkv_bias", vision.get("qkv_bias", False), (True,), _ONE_KIND),
            ("vision_config.hidden_act", vision.get("hidden_act", "gelu"), ("gelu",), _ONE_KIND),
            ("vision_config.layer_norm_eps", vision.get("layer_norm_eps", 1e-6), (1e-6,), _ONE_KIND),
        ],
    )
    own = _side(vision.get("image_size"), "vision_config.image_size", origin)
    forced = config.get("force_image_size") or own
    if forced != own:
        raise CheckpointError(
            f"{origin}: force_image_size {forced} differs from the tower's own {own}: the position embeddings of such a "
            "checkpoint would have to be resized; take one whose tower is made for its tiles"
        )
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    return _described(config, vision, text, origin, published=True, image_size=own, tied=bool(tied))


def _native(config: Mapping[str, Any], origin: Path) -> VlmDescription:
    vision = {**_NATIVE_DEFAULTS, **_part(config, "vision_config", origin)}
    text = {"model_type": "qwen2", **_part(config, "text_config", origin)}
    _require(
        origin,
        [
            ("vision_feature_layer", config.get("vision_feature_layer", -1), (-1,), "the last layer's features are taken"),
            ("vision_feature_select_strategy", config.get("vision_feature_select_strategy", "default"), ("default",),
             "the class token never goes to the language model"),
            ("projector_hidden_act", config.get("projector_hidden_act", "gelu"), ("gelu",), "the projector's activation is GELU"),
            ("vision_config.norm_type", vision.get("norm_type", "layer_norm"), ("layer_norm",), _ONE_KIND),
            ("vision_config.use_qk_norm", vision.get("use_qk_norm", False), (False,), _ONE_KIND),
            ("vision_config.attention_bias", vision.get("attention_bias", False), (True,), _ONE_KIND),
            ("vision_config.use_mean_pooling", vision.get("use_mean_pooling", True), (True,), _ONE_KIND),
            ("vision_config.use_mask_token", vision.get("use_mask_token", False), (False,), _ONE_KIND),
            ("vision_config.hidden_act", vision.get("hidden_act", "gelu"), ("gelu",), _ONE_KIND),
            ("vision_config.layer_norm_eps", vision.get("layer_norm_eps", 1e-6), (1e-6,), _ONE_KIND),
        ],
    )  # fmt: skip
    size = _side(vision["image_size"], "vision_config.image_size", origin)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    return _described(config, vision, text, origin, published=False, image_size=size, tied=bool(tied))


def _side(value: Any, key: str, origin: Path) -> int:
    """One side of a square given as a number or a pair."""
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int) or sides[0] < 1:
        raise CheckpointError(f"{origin}: {key} is {value!r}; a square in pixels is needed")
    return sides[0]


def _described(
    config: Mapping[str, Any],
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    origin: Path,
    *,
    published: bool,
    image_size: int,
    tied: bool,
) -> VlmDescription:
    ratio = config.get("downsample_ratio", 0.5)
    factor = round(1 / ratio) if isinstance(ratio, int | float) and 0 < ratio <= 1 else 0
    if not factor or abs(factor * ratio - 1) > 1e-6:
        raise CheckpointError(f"{origin}: downsample_ratio {ratio!r} is not 1 over a whole number")
    sizes: list[int] = []
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        found = vision.get(key)
        if not isinstance(found, int):
            raise CheckpointError(
                f"{origin}: vision_config has no {key}; it is not the config.json of a whole InternVL"
            )
        sizes.append(found)
    width, depth, heads, mlp_width = sizes
    mean, std = _normalisation(origin.parent)
    return VlmDescription(
        origin,
        published,
        image_size,
        _side(vision.get("patch_size", 14), "vision_config.patch_size", origin),
        width,
        depth,
        heads,
        mlp_width,
        factor,
        text,
        tied,
        mean,
        std,
    )


def _normalisation(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of the checkpoint's own preprocessing; ImageNet's, as InternVL's code has them, where it has none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if not (folder / name).is_file():
            continue
        said = read_json(folder / name)
        said = said.get("image_processor") or said
        mean, std = said.get("image_mean"), said.get("image_std")
        if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3:
            return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def vlm_config(
    model: Any, layout: VlmLayout, image_token: int, dtype: torch.dtype | None, template: str
) -> dict[str, Any]:
    """The config.json of a `VisionLanguageModel` written in `layout`.

    Args:
        model: the model (its tower an InternViT).
        layout: whose keys to write.
        image_token: id of the token that stands for a visual token.
        dtype: of the stored weights; None for the model's own.
        template: name of the conversation template (published layout alone).
    """
    stored = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    text = _text_config(model.language_model, stored)
    tower = model.tower
    block = tower.blocks[0]
    vision = {
        "hidden_size": int(tower.num_features),
        "num_hidden_layers": len(tower.blocks),
        "num_attention_heads": int(block.attn.num_heads),
        "intermediate_size": int(block.mlp.fc1.out_features),
        "patch_size": int(tower.patch_embed.patch_size[0]),
        "image_size": int(model.image_size),
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": float(block.norm1.eps),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }
    shared = {"downsample_ratio": 1 / model.factor, "tie_word_embeddings": text["tie_word_embeddings"]}
    if layout == "internvl":
        return {**_PUBLISHED_CONFIG, **shared, "force_image_size": int(model.image_size), "template": template,
                "torch_dtype": stored, "llm_config": text,
                "vision_config": {**vision, "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b",
                                  "qkv_bias": True, "qk_normalization": False, "initializer_factor": 0.1,
                                  "dropout": 0.0, "drop_path_rate": 0.0, "use_flash_attn": False,
                                  "torch_dtype": stored}}  # fmt: skip
    return {"architectures": [_NATIVE], "model_type": "internvl", **shared, "dtype": stored,
            "image_token_id": image_token, "image_seq_length": int(model.tokens_per_tile), "projector_hidden_act": "gelu",
            "vision_feature_layer": -1, "vision_feature_select_strategy": "default", "text_config": text,
            "vision_config": {**vision, "model_type": "internvl_vision", "attention_bias": True, "use_qk_norm": False,
                              "layer_scale_init_value": 0.1, "use_mean_pooling": True, "use_mask_token": False,
                              "use_absolute_position_embeddings": True, "hidden_dropout_prob": 0.0,
                              "projection_dropout": 0.0}}  # fmt: skip


_PUBLISHED_CONFIG: Mapping[str, Any] = {  # InternVL2_5's
    "architectures": [_PUBLISHED],
    "model_type": "internvl_chat",
    "dynamic_image_size": True,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
    "use_thumbnail": True,
    "pad2square": False,
    "ps_version": "v2",
    "select_layer": -1,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
}


def _text_config(language_model: Any, stored: str) -> dict[str, Any]:
    """The language model's configuration, with the keys that older code looks for beside the newer ones."""
    text: dict[str, Any] = language_model.config.to_dict()
    for key in ("_name_or_path", "_attn_implementation", "attn_implementation", "transformers_version"):
        text.pop(key, None)
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:
        text["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        text["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    tied = language_model.get_output_embeddings().weight is language_model.get_input_embeddings().weight
    return {
        **text,
        "architectures": [type(language_model).__name__],
        "tie_word_embeddings": tied,
        "torch_dtype": stored,
    }
