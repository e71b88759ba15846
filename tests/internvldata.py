"""Tiny InternVLs with random weights, in every layout in which real ones are published.

The published model is rebuilt here in a few lines, after its own modules: its state dict has the published names because
its modules have them, and its forward is a second opinion on what they mean. From its tensors the transformers layouts
are written with the replacements of transformers' conversion script, not with this project's own tables.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tinyvlm import IMAGE_ID, PATCH, SIZE, VOCABULARY

WIDTH, DEPTH, HEADS, MLP = 24, 2, 3, 80
TOKENS = 16  # (SIZE / PATCH / 2)^2
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "rope_theta": 1e6,
}
CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q * (c // HEADS) ** -0.5 @ k.mT).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, MLP), "fc2": nn.Linear(MLP, WIDTH)})
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))) * self.ls2


class VisionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.embeddings.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.embeddings.position_embedding = nn.Parameter(torch.zeros(1, 1 + (SIZE // PATCH) ** 2, WIDTH))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Layer() for _ in range(DEPTH))

    def forward(self, pixels: Tensor) -> Tensor:
        """All tokens, class token first; no final norm."""
        patches = self.embeddings.patch_embedding(pixels).flatten(2).mT
        x = torch.cat([self.embeddings.class_embedding.expand(len(pixels), -1, -1), patches], 1)
        x = x + self.embeddings.position_embedding
        for layer in self.encoder.layers:
            x = layer(x)
        return x


class PublishedInternVL(nn.Module):
    """``vision_model``, ``mlp1`` and ``language_model`` as in the published repositories."""

    def __init__(self, kind: str = "qwen2", tied: bool = False, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.vision_model = VisionModel()
        channels, width = 4 * WIDTH, int(TEXT["hidden_size"])
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width)
        )
        config = AutoConfig.for_model(kind, **TEXT, tie_word_embeddings=tied)
        self.language_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for name, parameter in self.named_parameters():
            around = 1.0 if re.search(r"norm\d?\.weight|layernorm\.weight|ls\d|mlp1\.0\.weight", name) else 0.0
            parameter.data = around + torch.randn(parameter.shape, generator=generator) * 0.15
        self.language_model.tie_weights()
        self.tied = tied

    def visual(self, pixels: Tensor) -> Tensor:
        """[T, 16, W]: class token removed, pixel shuffle v2, projected."""
        x = self.vision_model(pixels)[:, 1:]
        t, side = len(x), SIZE // PATCH
        x = x.view(t, side, side // 2, 2 * WIDTH).permute(0, 2, 1, 3).contiguous()
        x = x.view(t, side // 2, side // 2, 4 * WIDTH).permute(0, 2, 1, 3).contiguous()
        return self.mlp1(x.view(t, TOKENS, 4 * WIDTH))

    def logits(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """[L, V] of one sample."""
        inputs = self.language_model.get_input_embeddings()(ids).clone()
        inputs[ids == IMAGE_ID] = self.visual(pixels).flatten(0, 1)
        return self.language_model(inputs_embeds=inputs[None]).logits[0]

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        named = {k: v.detach().to(dtype).contiguous() for k, v in self.state_dict().items() if "inv_freq" not in k}
        return {k: v for k, v in named.items() if not (self.tied and k == "language_model.lm_head.weight")}


def published_config(model: PublishedInternVL) -> dict[str, Any]:
    """The keys of a real InternVL2_5 config.json, those that say nothing here included."""
    return {
        "_commit_hash": None,
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": SIZE,
        "llm_config": {
            "_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
            "architectures": [CLASSES[model.kind]],
            "model_type": model.kind,
            **TEXT,
            "attn_implementation": "flash_attention_2",
            "tie_word_embeddings": model.tied,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.37.2",
            "use_bfloat16": True,
            "use_sliding_window": False,
            "sliding_window": 32768,
            "temperature": 1.0,
            "top_k": 50,
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "hidden_act": "gelu",
            "hidden_size": WIDTH,
            "image_size": SIZE,
            "initializer_factor": 1.0,
            "intermediate_size": MLP,
            "layer_norm_eps": 1e-06,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": HEADS,
            "num_channels": 3,
            "num_hidden_layers": DEPTH,
            "patch_size": PATCH,
            "qk_normalization": False,
            "qkv_bias": True,
            "torch_dtype": "bfloat16",
            "use_flash_attn": True,
        },
    }


def native_config(model: PublishedInternVL) -> dict[str, Any]:
    """What an -hf repository's config.json holds."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": TOKENS,
        "image_token_id": IMAGE_ID,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": model.tied,
        "text_config": {
            "architectures": [CLASSES[model.kind]],
            "model_type": model.kind,
            **TEXT,
            "tie_word_embeddings": model.tied,
        },
        "torch_dtype": "float32",
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "attention_bias": True,
            "hidden_act": "gelu",
            "hidden_size": WIDTH,
            "image_size": [SIZE, SIZE],
            "intermediate_size": MLP,
            "layer_norm_eps": 1e-06,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": HEADS,
            "num_hidden_layers": DEPTH,
            "patch_size": [PATCH, PATCH],
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


_REPLACEMENTS = [  # the conversion script's, in its order
    ("vision_model", "vision_tower"),
    ("layers", "layer"),
    ("class_embedding", "cls_token"),
    ("position_embedding", "position_embeddings"),
    ("patch_embedding", "patch_embeddings.projection"),
    (r"ls(\d+)", r"lambda_\1"),
    (r"attn\.proj", "attention.projection_layer"),
    ("attn", "attention"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
]


def native_tensors(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under the names that the -hf repositories use."""
    out: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if name.startswith("vision_model."):
            for pattern, replacement in _REPLACEMENTS:
                name = re.sub(pattern, replacement, name)
            if "attention.qkv" in name:
                for i, part in enumerate("qkv"):
                    rows = tensor[i * WIDTH : (i + 1) * WIDTH].clone()
                    out[name.replace("attention.qkv", f"attention.{part}_proj")] = rows
                continue
        for old, new in (("mlp1.0", "layer_norm"), ("mlp1.1", "linear_1"), ("mlp1.3", "linear_2")):
            name = name.replace(old, f"multi_modal_projector.{new}")
        out[name] = tensor
    return out


def current_names(prefixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under transformers' module names of today."""
    out = {}
    for name, tensor in prefixed.items():
        name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model", "model.language_model")
        out[re.sub(r"^(vision_tower|multi_modal_projector)", r"model.\1", name)] = tensor
    return out


def write_checkpoint(folder: Path, model: PublishedInternVL, layout: str, dtype: torch.dtype = torch.float32) -> Path:
    """config.json and model.safetensors of `model` in one of the three layouts."""
    tensors = model.tensors(dtype)
    if layout != "internvl":
        tensors = native_tensors(tensors)
    if layout == "internvl_hf":
        tensors = current_names(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = published_config(model) if layout == "internvl" else native_config(model)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_shards(folder: Path, count: int) -> None:
    """Cut a folder's model.safetensors into shards with an index, as large repositories are."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::count]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
