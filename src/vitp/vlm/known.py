"""Published checkpoints that fit, by hub id: `vitp models` lists them. Any other of the same kinds fits as well."""

from __future__ import annotations

from collections.abc import Mapping

# InternVLs with the tower InternViT-300M, 448 px, 256 tokens a tile: their sizes are known without asking the hub.
# id -> what it is, as its page says
KNOWN_VLMS: Mapping[str, str] = {
    "OpenGVLab/InternVL2-1B": "InternViT-300M + Qwen2-0.5B-Instruct, 0.9 B",
    "OpenGVLab/InternVL2_5-1B": "InternViT-300M + Qwen2.5-0.5B-Instruct, 0.9 B; what the released ViTP scripts start from",
    "OpenGVLab/InternVL2_5-1B-MPO": "the same after preference optimisation",
    "OpenGVLab/InternVL2_5-4B": "InternViT-300M + Qwen2.5-3B-Instruct, 3.7 B",
    "OpenGVLab/InternVL3-1B": "InternViT-300M + Qwen2.5-0.5B, 0.9 B",
    "OpenGVLab/InternVL3-1B-hf": "the same in transformers' layout",
    "OpenGVLab/InternVL3-2B": "InternViT-300M + Qwen2.5-1.5B, 2.1 B",
    "OpenGVLab/InternVL3-2B-hf": "the same in transformers' layout",
    "OpenGVLab/InternVL3-8B": "InternViT-300M + Qwen2.5-7B, 7.9 B",
    "OpenGVLab/InternVL3-8B-hf": "the same in transformers' layout",
}
KNOWN_TOWERS: Mapping[str, str] = {
    "timm/vit_intern300m_patch14_448.ogvl_2pt5": "architecture vit_intern300m_patch14_448, image_size 448, patch_size 14",
    "timm/vit_so400m_patch16_siglip_256.v2_webli": "SigLIP2; architecture vit_so400m_patch16_siglip_256, mean and std 0.5",
    "google/siglip2-so400m-patch16-256": "the same tower in transformers' layout",
}
KNOWN_LANGUAGE_MODELS: Mapping[str, str] = {
    "Qwen/Qwen2.5-0.5B-Instruct": "the language model of InternVL2_5-1B before their joint training",
    "Qwen/Qwen3-0.6B": "Qwen3",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "Llama's architecture; also as a .gguf file",
}
