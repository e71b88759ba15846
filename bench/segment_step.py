"""One training step of segmentation: ViT and UPerNet of this package against transformers' own, same ViT and head widths.

    python -m bench.segment_step --json                                                  # four minutes on a quiet core
    python -m bench.segment_step --vit vit_small_patch16_224 --width 256 --rounds 5 --json
    python -m bench.segment_step --features plain --profile

The rival is transformers' `UperNetForSemanticSegmentation` on a `BeitBackbone` with absolute positions and its own pyramid
(``add_fpn``: two deconvolutions, one, none, max-pooling), the only ViT there with maps of strides 4 to 32. Equal on both sides
are the ViT (its weights are copied; BEiT has no key bias, which softmax does not see), fused attention, the head's widths and
weights, images, labels, cross-entropy at the images' own resolution, fp32 (or bf16 autocast), fused AdamW, and no auxiliary
head. Not equal is what lies between ViT and head, which is the point: `adapter` (ViT-Adapter, the released one), `plain` (maps of
four blocks, resampled without parameters) and `pyramid` (ViTDet's, 256 channels) on our side; the adapter computes more
than the rival's pyramid. Sizes are the rival's own defaults: a base ViT, a head 512 wide; images of 256 pixels. The bench
stops unless tokens of all four blocks and the loss of the head on the same maps agree.

A B A B; the ratio is the median over the rounds of rival's time over ours, in CPU time with one thread (the default) and by the
clock on the wall with more. Last line: {"ratio" (adapter), "plain", "pyramid", "rival_samples_per_s", ...}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import BeitConfig, UperNetConfig, UperNetForSemanticSegmentation

from bench.step import Step, alternate, training
from vitp.backbone.features import AdapterFeatures, FeaturesConfig, PlainFeatures, PyramidFeatures
from vitp.backbone.vit import BackboneConfig, ViTBackbone, random_backbone
from vitp.heads.head import UPerNetConfig
from vitp.heads.losses import LossTerms, segmentation_loss
from vitp.heads.upernet import UPerNetHead
from vitp.tasks.dense import hand_uniforms
from vitp.tasks.segment import Segmenter, SegmenterParts, build_segmenter

CLASSES = 19
FEATURES: dict[str, FeaturesConfig] = {
    "adapter": AdapterFeatures(kind="adapter"),
    "plain": PlainFeatures(),
    "pyramid": PyramidFeatures(kind="pyramid"),
}
_LAYERS = (nn.Conv2d, nn.BatchNorm2d)


def build_rival(vit: ViTBackbone, width: int) -> Any:
    """Transformers' UPerNet on the same ViT."""
    config = vit.config
    blocks = cast(Any, vit.vit).blocks
    beit = BeitConfig(
        hidden_size=vit.channels,
        num_hidden_layers=vit.depth,
        num_attention_heads=blocks[0].attn.num_heads,
        intermediate_size=blocks[0].mlp.fc1.out_features,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=blocks[0].norm1.eps,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=0.0,
        drop_path_rate=0.0,
        add_fpn=True,
        out_indices=[(k + 1) * vit.depth // 4 for k in range(4)],
    )
    settings = UperNetConfig(backbone_config=beit, hidden_size=width, use_auxiliary_head=False, num_labels=CLASSES)
    rival = UperNetForSemanticSegmentation(settings)
    rival.backbone.set_attn_implementation("sdpa")  # as a whole it says it cannot
    _copy_vit(vit, rival.backbone.beit)
    return rival.train()


@torch.no_grad()
def _copy_vit(vit: ViTBackbone, beit: Any) -> None:
    source = cast(Any, vit.vit)
    place = beit.embeddings
    pairs = [
        (place.cls_token, source.cls_token),
        (place.position_embeddings, source.pos_embed),
        (place.patch_embeddings.projection.weight, source.patch_embed.proj.weight),
        (place.patch_embeddings.projection.bias, source.patch_embed.proj.bias),
    ]
    layers = getattr(beit, "layers", None) or beit.encoder.layer
    for theirs, ours in zip(layers, source.blocks, strict=True):
        attention = theirs.attention
        q, k, v = ours.attn.qkv.weight.chunk(3)
        q_bias, _, v_bias = ours.attn.qkv.bias.chunk(3)
        pairs += [
            (attention.q_proj.weight, q),
            (attention.k_proj.weight, k),
            (attention.v_proj.weight, v),
            (attention.q_proj.bias, q_bias),
            (attention.v_proj.bias, v_bias),
        ]
        pairs += _of_linears(
            (attention.o_proj, ours.attn.proj),
            (theirs.layernorm_before, ours.norm1),
            (theirs.layernorm_after, ours.norm2),
            (theirs.mlp.fc1, ours.mlp.fc1),
            (theirs.mlp.fc2, ours.mlp.fc2),
        )
    for target, value in pairs:
        target.copy_(value)


def _of_linears(*pairs: tuple[Any, Any]) -> list[tuple[Tensor, Tensor]]:
    return [pair for a, b in pairs for pair in ((a.weight, b.weight), (a.bias, b.bias))]


@torch.no_grad()
def copy_head(theirs: Any, ours: UPerNetHead) -> None:
    """Their head's weights into ours, convolution by convolution and norm by norm."""
    sources = [
        *theirs.psp_modules.blocks,
        theirs.bottleneck,
        *theirs.lateral_convs,
        *theirs.fpn_convs,
        theirs.fpn_bottleneck,
        theirs.classifier,
    ]
    targets = [*ours.pooling.project, ours.pooling.bottleneck, *ours.lateral, *ours.smooth, ours.fuse, ours.classify]
    for source, target in zip(sources, targets, strict=True):
        layers = ([m for m in module.modules() if isinstance(m, _LAYERS)] for module in (target, source))
        for mine, other in zip(*layers, strict=True):
            mine.load_state_dict(other.state_dict())


def check_parity(rival: Any, vit: ViTBackbone, width: int, images: Tensor, labels: Tensor) -> float:
    """Largest relative difference of the four blocks' tokens, and of the head's loss on the same maps; at most 1e-4."""
    pixels, wanted = vit.prepare(images), [(k + 1) * vit.depth // 4 for k in range(4)]
    worst = 0.0
    with torch.no_grad():
        hidden = rival.backbone.beit(pixels, output_hidden_states=True).hidden_states
        for index, ours in zip(wanted, vit.blocks(images, [i - 1 for i in wanted], norm=False), strict=True):
            theirs = hidden[index][:, 1:].mT.reshape(ours.shape)
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        maps = rival.backbone(pixels).feature_maps
        head = UPerNetHead([vit.channels] * 4, CLASSES, width, dropout=0.0)
        copy_head(rival.decode_head, head)
        ours, theirs = _loss(head(maps, labels.shape[1:]), labels), rival(pixels, labels=labels.long()).loss
        worst = max(worst, abs(float(ours / theirs) - 1))
    if worst > 1e-4:
        raise SystemExit(f"tokens or losses differ by {worst:.2g}: the models are not the same, nothing is compared")
    return worst


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    pixels = float(labels.numel())
    total, _ = segmentation_loss(logits, labels, LossTerms(), weight=pixels, samples=len(labels))
    return total / pixels


def our_step(model: Segmenter, images: Tensor, labels: Tensor, *, bf16: bool) -> Step:
    """A step as `vitp finetune` takes it: uint8 pixels in, drops decided, AdamW at the end."""

    def loss(_: None) -> Tensor:
        hand_uniforms(model, 0, 0, range(len(images)), images.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return _loss(model(images), labels)

    return training(loss, [None], model, fused=True)


def rival_step(rival: Any, images: Tensor, labels: Tensor, *, bf16: bool) -> Step:
    """The same with transformers' model, whose pixels come normalised and whose labels are int64."""

    def loss(_: None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found: Tensor = rival(images, labels=labels).loss
        return found

    return training(loss, [None], rival, fused=True)


def _flops(step: Step) -> float:
    with FlopCounterMode(display=False) as counter:
        step(0)
    return float(counter.get_total_flops())


def _show_profile(steps: Sequence[tuple[str, Step]]) -> None:
    for name, step in steps:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step(0)
        print(name, found.key_averages().table(sort_by="self_cpu_time_total", row_limit=22), sep="\n")


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    vit = random_backbone(BackboneConfig(architecture=args.vit, image_size=args.size, patch_size=16), seed=0)
    images = torch.randint(0, 256, (args.batch, 3, args.size, args.size), dtype=torch.uint8)
    coarse = torch.randint(0, CLASSES, (args.batch, args.size // 16, args.size // 16), dtype=torch.uint8)
    labels = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
    rival = build_rival(vit, args.width)
    parity = check_parity(rival, vit, args.width, images, labels)
    theirs = rival_step(rival, vit.prepare(images), labels.long(), bf16=args.dtype == "bf16")
    result: dict[str, Any] = {}
    for name in args.features:
        parts = SegmenterParts(features=FEATURES[name], head=UPerNetConfig(kind="upernet", width=args.width))
        model = build_segmenter(random_backbone(vit.config, seed=0), [str(k) for k in range(CLASSES)], 0, parts)
        ours = our_step(model.train(), images, labels, bf16=args.dtype == "bf16")
        flops = [_flops(step) for step in (theirs, ours)]  # also the warm-up
        if args.profile:
            _show_profile((("transformers", theirs), (name, ours)))
        seconds = alternate(theirs, ours, 1, args.rounds, clock)
        medians = [statistics.median(s) for s in seconds]
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        print(
            f"{name}: x{ratio:.2f} (rival {medians[0]:.2f} s, ours {medians[1]:.2f} s; FLOPs x{flops[0] / flops[1]:.2f})"
        )
        result["ratio" if name == "adapter" else name] = round(ratio, 3)
        result[f"{name}_flops_ratio"] = round(flops[0] / flops[1], 3)
        result[f"{name}_samples_per_s"] = round(args.batch / medians[1], 3)
        result.setdefault("rival_samples_per_s", round(args.batch / medians[0], 3))
    return {**result, "parity": float(f"{parity:.2g}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit", default="vit_base_patch16_224", help="a timm ViT of patch size 16")
    parser.add_argument("--size", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--width", type=int, default=512, help="of the head")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--features", nargs="+", choices=sorted(FEATURES), default=list(FEATURES))
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print what each step spends its time on")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    settings = {k: getattr(args, k) for k in ("vit", "size", "width", "batch", "dtype", "threads", "rounds")}
    print(json.dumps({**run(args), **settings, "clock": "cpu" if args.threads == 1 else "wall"}))


if __name__ == "__main__":
    main()
