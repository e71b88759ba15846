"""Whole models against transformers' InternVL and against the published model, from files in each real layout.

fp32: 1e-4 (absolute and relative) on features, hidden states, logits, loss and every gradient; no token dropped, same
tiles. bf16 is compared for what it is: both round, so their distance is held against each one's distance from fp32.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from tests.internvldata import (
    DEPTH,
    HEADS,
    MLP,
    WIDTH,
    PublishedInternVL,
    write_checkpoint,
    write_shards,
)
from tests.tinyvlm import PATCH, SIZE, laid_out_sample
from torch import Tensor
from transformers import InternVLForConditionalGeneration, InternVLVisionConfig, InternVLVisionModel

from vitp.backbone.layouts import from_timm
from vitp.instruction.pack import LaidOut, join
from vitp.vlm.internvl_names import VLM_LAYOUTS, VlmLayout, names_in_vlm
from vitp.vlm.model import PackTensors, VisionLanguageModel
from vitp.vlm.weights import load_vlm

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def samples() -> list[LaidOut]:
    """Three samples with 1, 3 and 2 tiles, nothing dropped, every sample weighing the same."""
    return [laid_out_sample(tiles, seed, 0.0, "sample") for seed, tiles in enumerate([1, 3, 2])]


def pack(model: VisionLanguageModel) -> PackTensors:
    return join(samples(), model.tokens_per_tile, SIZE, 0)


def pixels(model: VisionLanguageModel, sample: LaidOut) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (sample.tiles.float() / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def native(folder: Path, dtype: torch.dtype = torch.float32) -> InternVLForConditionalGeneration:
    return InternVLForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


def labels(sample: LaidOut) -> Tensor:
    """transformers' labels: the supervised tokens at their own places, -100 elsewhere."""
    out = torch.full((len(sample.ids),), -100)
    out[torch.from_numpy(sample.predict) + 1] = torch.from_numpy(sample.targets)
    return out


@pytest.fixture(
    params=[("qwen2", False), ("qwen2", True), ("qwen3", False), ("llama", True)],
    ids=lambda p: f"{p[0]}-{'tied' if p[1] else 'untied'}",
)
def published(request: pytest.FixtureRequest) -> PublishedInternVL:
    kind, tied = request.param
    return PublishedInternVL(kind, tied)


@pytest.mark.parametrize("layout", VLM_LAYOUTS)
def test_logits_hidden_loss_and_gradients_equal_transformers(
    tmp_path: Path, published: PublishedInternVL, layout: VlmLayout
) -> None:
    """The file in `layout` loaded here; the same weights in the -hf layout loaded by transformers."""
    ours = load_vlm(str(write_checkpoint(tmp_path / "ours", published, layout)))
    theirs = native(write_checkpoint(tmp_path / "theirs", published, "internvl_hf_prefixed"))
    assert ours.language_model.config.tie_word_embeddings is published.tied
    batch = pack(ours)
    hidden = ours.hidden(batch)
    logits = ours.language_model.get_output_embeddings()(hidden)
    loss = ours(batch)
    loss.backward()
    expected_loss, at = torch.tensor(0.0), 0
    for sample in samples():
        out = theirs(
            input_ids=torch.from_numpy(sample.ids)[None],
            pixel_values=pixels(ours, sample),
            labels=labels(sample)[None],
            output_hidden_states=True,
        )
        end = at + len(sample.ids)
        torch.testing.assert_close(hidden[at:end], out.hidden_states[-1][0], **TOLERANCE)
        torch.testing.assert_close(logits[at:end], out.logits[0], **TOLERANCE)
        expected_loss, at = expected_loss + out.loss, end
    torch.testing.assert_close(loss, expected_loss, **TOLERANCE)
    expected_loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert logits.std() > 0.1
    assert loss.item() > 1
    seen = set()
    for name, parameter in ours.named_parameters():
        names = names_in_vlm(name, "internvl_hf")
        expected = torch.cat([gradients[n] for n in names])
        assert expected.abs().max() > 1e-6, f"{name} has no gradient to compare"
        torch.testing.assert_close(parameter.grad, expected, **TOLERANCE)
        seen.update(names)
    assert seen == {n for n in gradients if not (published.tied and n == "lm_head.weight")}


def test_logits_equal_the_published_model(tmp_path: Path, published: PublishedInternVL) -> None:
    ours = load_vlm(str(write_checkpoint(tmp_path, published, "internvl")))
    with torch.no_grad():
        logits = ours.language_model.get_output_embeddings()(ours.hidden(pack(ours)))
        expected = [published.logits(torch.from_numpy(s.ids), pixels(ours, s)) for s in samples()]
    torch.testing.assert_close(logits, torch.cat(expected), **TOLERANCE)


def test_sharded_and_single_files_hold_the_same(tmp_path: Path) -> None:
    model = PublishedInternVL()
    whole = load_vlm(str(write_checkpoint(tmp_path / "whole", model, "internvl") / "model.safetensors"))
    folder = write_checkpoint(tmp_path / "parts", model, "internvl")
    write_shards(folder, 3)
    parts = load_vlm(str(folder))
    for (name, a), (_, b) in zip(whole.state_dict().items(), parts.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_bf16_differs_by_rounding_alone(tmp_path: Path) -> None:
    """Ours in bf16 (autocast over fp32 weights) is as near to fp32 as transformers' bf16 model is; measured, see docs."""
    model = PublishedInternVL()
    folder = write_checkpoint(tmp_path, model, "internvl_hf_prefixed", torch.bfloat16)
    ours, exact, rounded = load_vlm(str(folder)), native(folder), native(folder, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mine = ours.language_model.get_output_embeddings()(ours.hidden(pack(ours))).float()
    reference, theirs = [], []
    for sample in samples():
        inputs = {"input_ids": torch.from_numpy(sample.ids)[None], "pixel_values": pixels(ours, sample)}
        with torch.no_grad():
            reference.append(exact(**inputs).logits[0])
            theirs.append(rounded(**inputs).logits[0].float())
    fp32 = torch.cat(reference)
    mine_off, theirs_off = ((x - fp32).norm() / fp32.norm() for x in (mine, torch.cat(theirs)))
    assert mine_off < 0.02, mine_off
    assert mine_off < 1.5 * theirs_off, (mine_off, theirs_off)


def tiny_timm() -> torch.nn.Module:
    torch.manual_seed(3)
    vit = timm.create_model(
        "vit_intern300m_patch14_448", img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        mlp_ratio=MLP / WIDTH, num_classes=0,
    )  # fmt: skip
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vit.eval()


def test_tower_features_equal_timm_and_transformers(tmp_path: Path) -> None:
    published = PublishedInternVL()
    ours = load_vlm(str(write_checkpoint(tmp_path, published, "internvl")))
    vit = tiny_timm()
    vit.load_state_dict(ours.tower.state_dict())
    config = InternVLVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=MLP, image_size=SIZE,
        patch_size=PATCH, attention_bias=True,
    )  # fmt: skip
    theirs = InternVLVisionModel(config).eval()
    theirs.load_state_dict(from_timm(vit.state_dict(), "transformers"))
    sample = samples()[1]
    x = pixels(ours, sample)
    with torch.no_grad():
        features = ours.encode(sample.tiles)
        torch.testing.assert_close(features, vit.forward_features(x)[:, 1:], **TOLERANCE)
        torch.testing.assert_close(features, theirs(x).last_hidden_state[:, 1:], **TOLERANCE)
        torch.testing.assert_close(features, published.vision_model(x)[:, 1:], **TOLERANCE)
    assert features.shape == (3, 64, WIDTH)


def test_visual_tokens_stand_where_the_published_model_puts_them(tmp_path: Path) -> None:
    """Order of the tiles, of the cells in a tile and of the channels in a cell, after the projector."""
    published = PublishedInternVL()
    ours = load_vlm(str(write_checkpoint(tmp_path, published, "internvl")))
    sample = samples()[1]
    with torch.no_grad():
        tokens = ours.project(ours.encode(sample.tiles), torch.arange(48))
        expected = published.visual(pixels(ours, sample)).flatten(0, 1)
    torch.testing.assert_close(tokens, expected, **TOLERANCE)
    assert F.mse_loss(expected, expected.flip(0)) > 1e-3
