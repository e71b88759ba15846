"""Packed attention is not Qwen's own: a Llama (the layout of SmolLM2) gives the same packed as one sample at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from vitp.vlm.attention import Documents, packed_attention, use_packed_attention

LENGTHS = (9, 1, 17, 4, 6)


def llama(implementation: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    if implementation is not None:
        model.set_attn_implementation(implementation)
    return model


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("gaps", [False, True])
def test_packed_llama_equals_one_sample_at_a_time_in_transformers_own_attention(gaps: bool) -> None:
    """Hidden states and every gradient; with gaps in the positions too, as dropped visual tokens leave them."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 64, (n,), generator=generator) for n in LENGTHS]
    steps = [1 + torch.randint(0, 5, (n,), generator=generator) if gaps else torch.ones(n).long() for n in LENGTHS]
    positions = [s.cumsum(0) - s[0] for s in steps]
    weights = torch.randn(sum(LENGTHS), 64, generator=generator)

    packed = llama()
    use_packed_attention(packed)
    out = packed(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions)[None],
        documents=Documents.of(LENGTHS, torch.device("cpu")),
        use_cache=False,
    ).logits[0]
    alone = llama("eager")
    masks = [torch.full((n, n), float("-inf")).triu(1)[None, None] for n in LENGTHS]
    each = [
        alone(input_ids=i[None], position_ids=p[None], attention_mask=m, use_cache=False).logits[0]
        for i, p, m in zip(ids, positions, masks, strict=True)
    ]
    expected = torch.cat(each)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(packed, (out * weights).sum()), gradients(alone, (expected * weights).sum())
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(
    "keyword",
    [{"lengths": LENGTHS}, {"cu_seq_lens_q": torch.tensor([0, 4])}, {"is_causal": False}, {"sliding_window": 4}],
)
def test_a_keyword_that_would_be_ignored_is_an_error(keyword: dict[str, object]) -> None:
    """An old name for the samples' lengths, or another attention: the numbers would be wrong without a word."""
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(TypeError, match=next(iter(keyword))):
        packed_attention(nn.Identity(), x, x, x, None, **keyword)  # type: ignore[arg-type]
    packed = llama()
    use_packed_attention(packed)
    with pytest.raises(TypeError, match=next(iter(keyword))):
        packed(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False, **keyword)


def test_keywords_of_transformers_that_change_nothing_pass() -> None:
    packed = llama()
    use_packed_attention(packed)
    ids = torch.randint(0, 64, (1, 6), generator=torch.Generator().manual_seed(2))
    plain = packed(input_ids=ids).logits
    more = packed(
        input_ids=ids, use_cache=True, output_hidden_states=True, cu_seq_lens_q=None, sliding_window=None
    ).logits
    torch.testing.assert_close(more, plain)
