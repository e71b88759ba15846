"""What dropping 75 % of the visual tokens saves: one training step with r = 0 and with r = 0.75, A B A B.

    python -m bench.vrl --json

The model is a scaled InternVL: the tower and the language model stand to each other as InternViT-300M to
Qwen2.5-0.5B, 448-pixel tiles scaled to 224 (64 visual tokens a tile), 4 tiles a sample, 60 text tokens. Both
variants see the same tiles and texts; only the kept tokens differ. The rival is the same step without dropping, which
is also what the released code costs with dropping, since it pads back to the full length.
Last line: {"lm_tokens_ratio", "time_ratio", "lm_forward_time_ratio", ...}, each r = 0 over r = 0.75.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import timm
import torch

from vitp.instruction.chat import Encoded
from vitp.instruction.pack import join, lay_out
from vitp.vlm.model import PackTensors, VisionLanguageModel
from vitp.vlm.tiny import LanguageModelConfig, build_language_model
from vitp.vlm.token_drop import keep

TILES, TEXT, ANSWER, VOCABULARY = 4, 60, 20, 8192


def build(size: int) -> VisionLanguageModel:
    torch.manual_seed(0)
    tower = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, patch_size=14, embed_dim=256, depth=6, num_heads=4, num_classes=0
    )
    language = build_language_model(
        LanguageModelConfig(width=192, depth=6, heads=3, kv_heads=1, mlp_width=1024), VOCABULARY, 0
    )
    return VisionLanguageModel(
        tower, language, image_size=size, factor=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), drop_path=0.0
    ).train()


def pack(model: VisionLanguageModel, samples: int, r: float) -> PackTensors:
    laid = []
    for seed in range(samples):
        rng = np.random.default_rng(seed)
        n = TILES * model.tokens_per_tile
        text = rng.integers(10, VOCABULARY, TEXT)
        ids = np.concatenate([text[:4], np.full(n, 5), text[4:]]).astype(np.int32)
        end = len(ids)
        tiles = torch.from_numpy(rng.integers(0, 256, (TILES, 3, model.image_size, model.image_size), dtype=np.uint8))
        encoded = Encoded(ids, ids == 5, ((end - ANSWER, end),))
        laid.append(lay_out(encoded, tiles, np.zeros((TILES, 0), np.float32), keep(n, r, rng), "sample", 4096, ""))
    return join(laid, model.tokens_per_tile, model.image_size, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4, help="samples of a step")
    parser.add_argument("--size", type=int, default=224, help="tile side in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    model = build(args.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    packs = {r: pack(model, args.samples, r) for r in (0.0, 0.75)}

    def step(r: float) -> tuple[float, float]:
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
            cells = model.encode_kept(packs[r])
            seen = time.perf_counter()
            model.encode_kept = lambda _: cells  # type: ignore[method-assign] # so that the two parts are timed apart
            loss = model(packs[r])
            del model.encode_kept
        forward_language = time.perf_counter() - seen
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun, forward_language

    for r in packs:
        step(r)
    rounds: dict[float, list[tuple[float, float]]] = {0.0: [], 0.75: []}
    for i in range(args.rounds):
        for r in (0.0, 0.75) if i % 2 == 0 else (0.75, 0.0):
            rounds[r].append(step(r))
    pairs = list(zip(rounds[0.0], rounds[0.75], strict=True))
    full, dropped = packs[0.0], packs[0.75]
    for r in packs:
        print(f"r = {r}: {len(packs[r].ids)} LM tokens, step {statistics.median(t for t, _ in rounds[r]) * 1e3:.0f} ms")
    print(
        json.dumps(
            {
                "lm_tokens_ratio": round(len(full.ids) / len(dropped.ids), 3),
                "time_ratio": round(statistics.median(a[0] / b[0] for a, b in pairs), 3),
                "lm_forward_time_ratio": round(statistics.median(a[1] / b[1] for a, b in pairs), 3),
                "visual_tokens_ratio": round(len(full.kept) / len(dropped.kept), 3),
                "step_ms_full": round(statistics.median(a[0] for a in rounds[0.0]) * 1e3, 1),
                "step_ms_vrl": round(statistics.median(b[0] for b in rounds[0.75]) * 1e3, 1),
                "dtype": args.dtype,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
