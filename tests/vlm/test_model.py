"""The model against a slow reference: one sample at a time, every token projected, full logits, transformers' own attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.tinyvlm import IMAGE_ID, SIZE, VOCABULARY, laid_out_sample, tiny_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitp.instruction.pack import LaidOut, join
from vitp.vlm.attention import _per_document, _short_documents
from vitp.vlm.loss import supervised_loss
from vitp.vlm.model import VisionLanguageModel, shuffle_kept


def released_pixel_shuffle(x: Tensor) -> Tensor:
    """InternVL's v2 order, derived from its view / permute sequence: [T, H, W, C] -> [T, H/2, W/2, 4C]."""
    t, h, w, c = x.shape
    x = x.view(t, h, w // 2, c * 2).permute(0, 2, 1, 3).contiguous()
    return x.view(t, w // 2, h // 2, c * 4).permute(0, 2, 1, 3).contiguous()


def reference_loss(model: VisionLanguageModel, sample: LaidOut) -> Tensor:
    """The sample's weighted loss with eager attention and all logits; dropped tokens removed after projecting all."""
    language = copy.deepcopy(model.language_model)
    language.load_state_dict(model.language_model.state_dict())
    language.set_attn_implementation("eager")
    embeds = language.get_input_embeddings()(torch.from_numpy(sample.ids))
    if len(sample.tiles):
        pixels = (sample.tiles.float() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
            [0.2, 0.3, 0.25]
        ).view(1, 3, 1, 1)
        patches = model.tower.forward_features(pixels)[:, 1:]
        cells = released_pixel_shuffle(patches.view(-1, 8, 8, patches.shape[-1]))
        visual = model.projector(cells.flatten(0, 2))
        embeds = embeds.clone()
        embeds[torch.from_numpy(sample.ids) == IMAGE_ID] = visual[torch.from_numpy(sample.kept)]
    n = len(sample.ids)
    mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
    out = language(
        inputs_embeds=embeds[None],
        position_ids=torch.from_numpy(sample.positions)[None],
        attention_mask=mask,
        use_cache=False,
    )
    predict = torch.from_numpy(sample.predict)
    losses = F.cross_entropy(out.logits[0, predict], torch.from_numpy(sample.targets), reduction="none")
    return (losses * torch.from_numpy(sample.weights)).sum()


@pytest.mark.parametrize("r", [0.0, 0.75])
def test_loss_equals_full_logits_reference(r: float) -> None:
    model = tiny_model().eval()
    samples = [laid_out_sample(t, seed, r) for seed, t in enumerate([1, 3, 0, 2])]
    ours = model(join(samples, model.tokens_per_tile, SIZE, 4))
    theirs = sum(reference_loss(model, s) for s in samples)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_shuffle_equals_the_released_channel_order() -> None:
    x = torch.randn(3, 64, 5)
    expected = released_pixel_shuffle(x.view(3, 8, 8, 5)).reshape(48, 20)
    torch.testing.assert_close(shuffle_kept(x, torch.arange(48), 8, 2), expected, rtol=0, atol=0)
    kept = torch.tensor([0, 5, 17, 40, 47])
    torch.testing.assert_close(shuffle_kept(x, kept, 8, 2), expected[kept], rtol=0, atol=0)
    first = shuffle_kept(x, torch.tensor([1]), 8, 2)[0]  # cell (0, 1): patches (0,2), (0,3), (1,2), (1,3)
    torch.testing.assert_close(first, torch.cat([x[0, 2], x[0, 3], x[0, 10], x[0, 11]]), rtol=0, atol=0)


def test_position_gaps_do_not_split_a_sample() -> None:
    """transformers alone would take each gap that VRL leaves for the start of a new document."""
    model = tiny_model().eval()
    sample = laid_out_sample(2, 1, 0.75)
    assert (torch.from_numpy(sample.positions).diff() != 1).any()
    pack = join([sample], model.tokens_per_tile, SIZE, 4)
    torch.testing.assert_close(model(pack), reference_loss(model, sample), rtol=1e-5, atol=1e-5)


def test_samples_of_a_pack_do_not_see_each_other() -> None:
    model = tiny_model().eval()
    samples = [laid_out_sample(1, seed, 0.5) for seed in range(3)]
    together = model.hidden(join(samples, model.tokens_per_tile, SIZE, 4))
    changed = [samples[0], laid_out_sample(2, 99, 0.5), samples[2]]
    other = model.hidden(join(changed, model.tokens_per_tile, SIZE, 4))
    n0, n2 = len(samples[0].ids), len(samples[2].ids)
    torch.testing.assert_close(together[:n0], other[:n0], rtol=0, atol=1e-6)
    torch.testing.assert_close(together[-n2:], other[-n2:], rtol=0, atol=1e-6)


def test_dropped_tokens_get_exactly_no_gradient_at_the_projector() -> None:
    model = tiny_model().train()
    pack = join([laid_out_sample(2, 0, 0.75), laid_out_sample(1, 1, 0.75)], model.tokens_per_tile, SIZE, 4)
    patches = model.encode(pack.tiles, pack.depth).detach().requires_grad_()
    visual = model.project(patches, pack.kept)
    visual.square().sum().backward()
    assert patches.grad is not None
    cells = shuffle_kept(patches.grad, torch.arange(48), model.grid, model.factor).abs().sum(1)
    dropped = torch.ones(48, dtype=torch.bool)
    dropped[pack.kept] = False
    assert cells[dropped].max() == 0.0
    assert cells[pack.kept].min() > 0.0
    assert int(dropped.sum()) == 48 - 8 - 4


def test_dropping_shortens_the_language_models_work() -> None:
    """Counted, not argued: the language model's FLOPs fall with its tokens, and projected rows are the kept ones."""
    model = tiny_model().train()
    projector, language, tokens, kept = {}, {}, {}, {}
    for r in (0.0, 0.75):
        pack = join([laid_out_sample(4, s, r) for s in range(3)], model.tokens_per_tile, SIZE, 4)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(pack)
        flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        projector[r] = flops["VisionLanguageModel.projector"]
        language[r] = flops["VisionLanguageModel.language_model.model.layers.0.mlp"]
        tokens[r], kept[r] = len(pack.ids), len(pack.kept)
    assert kept[0.0] == 4 * kept[0.75]
    assert projector[0.0] == 4 * projector[0.75]
    assert tokens[0.0] - tokens[0.75] == kept[0.0] - kept[0.75]  # the texts stay whole
    assert language[0.0] * tokens[0.75] == language[0.75] * tokens[0.0]  # exactly proportional to the tokens


@pytest.mark.parametrize("heads", [(2, 1), (6, 2), (4, 4)])
def test_dense_batch_of_short_samples_equals_one_by_one(heads: tuple[int, int]) -> None:
    """The written-out attention for many short samples: outputs and gradients of the fused kernel, fp64."""
    torch.manual_seed(0)
    lengths = (5, 17, 1, 33, 16)
    q, k, v = (
        torch.randn(1, h, sum(lengths), 8, dtype=torch.float64, requires_grad=True) for h in (heads[0], *[heads[1]] * 2)
    )
    results = []
    for attend in (_per_document, _short_documents):
        out = attend(q, k, v, lengths, 0.3)
        weights = torch.arange(out.numel(), dtype=torch.float64).view(out.shape).sin()
        results.append((out.detach(), *torch.autograd.grad((out * weights).sum(), [q, k, v])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_fast_attention_is_what_bf16_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary embeddings leave autocast in fp32; the dense batch must be chosen all the same."""
    taken: list[torch.dtype] = []

    def spy(q: Tensor, *rest: Any) -> Tensor:
        taken.append(q.dtype)
        return _short_documents(q, *rest)

    monkeypatch.setattr("vitp.vlm.attention._short_documents", spy)
    model = tiny_model().train()
    pack = join([laid_out_sample(1, s, 0.0) for s in range(6)], model.tokens_per_tile, SIZE, 4)
    exact = model(pack).item()
    assert not taken
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(pack).item()
    assert taken == [torch.bfloat16] * 2
    assert rounded == pytest.approx(exact, rel=2e-2)


def test_chunked_loss_equals_plain_loss_and_its_gradients() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(50, 16, requires_grad=True), torch.randn(VOCABULARY, 16, requires_grad=True)
    targets, weights = torch.randint(0, VOCABULARY, (50,)), torch.rand(50)
    grads = []
    for rows in (1024, 7):
        loss = supervised_loss(hidden, head, targets, weights, rows_per_chunk=rows)
        grads.append((loss.detach(), *torch.autograd.grad(loss, [hidden, head])))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_how_tiles_lie_in_memory() -> None:
    """To the last bit, so that a run does not change with the decoder."""
    model = tiny_model().eval()
    tiles = laid_out_sample(3, 0, 0.0).tiles
    together = tiles.contiguous(memory_format=torch.channels_last)
    assert together.stride() != tiles.stride()
    assert torch.equal(model.encode(together), model.encode(tiles))


def test_stochastic_depth_belongs_to_the_tile_not_to_the_batch() -> None:
    model = tiny_model(drop_path=0.5).train()
    tiles = torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8)
    depth = torch.rand(6, 4)
    together = model.encode(tiles, depth)
    alone = torch.cat([model.encode(tiles[i : i + 1], depth[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, model.encode(tiles, torch.ones(6, 4)), atol=1e-3)
    torch.testing.assert_close(model.eval().encode(tiles, depth), model.encode(tiles), rtol=0, atol=0)


def test_stochastic_depth_keeps_the_expectation() -> None:
    from vitp.train.keyed_drop import KeyedDropPath
    from vitp.vlm.stochastic_depth import set_uniforms

    module = KeyedDropPath(0.3).train()
    set_uniforms([module], ((torch.arange(1000) + 0.5) / 1000)[:, None])
    out = module(torch.ones(1000, 2))
    assert out.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert (out[:300] == 0).all()
