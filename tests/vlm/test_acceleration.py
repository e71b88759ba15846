"""Other ways to compute a step: the same numbers within rounding, or a sentence why not."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.tinyvlm import MODULES, SIZE, VOCABULARY, laid_out_sample, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitp.errors import CheckpointError, ConfigError
from vitp.instruction.pack import join
from vitp.vlm.acceleration import StepConfig, accelerate, check_float8, choose_loss_kernel, use_compile, use_float8
from vitp.vlm.attention import Documents, _per_document, _varlen, use_packed_attention
from vitp.vlm.checkpointing import use_checkpointing
from vitp.vlm.loss import supervised_loss
from vitp.vlm.model import PackTensors, VisionLanguageModel

CPU = torch.device("cpu")


def pack_of(model: VisionLanguageModel, tiles: list[int], r: float = 0.75) -> PackTensors:
    samples = [laid_out_sample(t, seed, r) for seed, t in enumerate(tiles)]
    return join(samples, model.tokens_per_tile, SIZE, MODULES)


def gradients(model: VisionLanguageModel, pack: PackTensors) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(pack)
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


# ---------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_chunked_gradients_are_exact(needs: tuple[bool, bool]) -> None:
    """fp64 to 1e-12 against one product and torch's cross-entropy; also scaled, and where head or hidden is frozen."""
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, dtype=torch.float64, requires_grad=needs[0])
    head = torch.randn(70, 16, dtype=torch.float64, requires_grad=needs[1])
    targets, weights = torch.randint(0, 70, (50,)), torch.rand(50, dtype=torch.float64)
    plain = (F.cross_entropy(hidden @ head.t(), targets, reduction="none") * weights).sum()
    inputs = [t for t, needed in zip((hidden, head), needs, strict=True) if needed]
    expected = torch.autograd.grad(plain / 7, inputs)
    for rows in (1, 7, 25, 49):
        ours = supervised_loss(hidden, head, targets, weights, rows_per_chunk=rows)
        # torch's kernel takes fp32 logits here, which bounds what can be asked of the loss, not of the products
        torch.testing.assert_close(ours, plain.to(ours.dtype), rtol=1e-6, atol=1e-6)
        for a, b in zip(torch.autograd.grad(ours / 7, inputs), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_bound_the_logits() -> None:
    """No tensor of all rows times the vocabulary is ever made, forward or backward."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in (out,) if isinstance(out, Tensor) else ():
                largest = max(largest, tensor.numel())
            return out

    hidden, head = torch.randn(64, 4, requires_grad=True), torch.randn(100, 4, requires_grad=True)
    with Watch():
        loss = supervised_loss(hidden, head, torch.zeros(64, dtype=torch.long), torch.ones(64), rows_per_chunk=8)
        loss.backward()
    assert largest == 8 * 100


def test_bf16_chunks_add_up_in_fp32() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(512, 8).bfloat16().requires_grad_(), torch.randn(40, 8).bfloat16().requires_grad_()
    targets, weights = torch.randint(0, 40, (512,)), torch.ones(512)
    whole, parts = (supervised_loss(hidden, head, targets, weights, rows_per_chunk=rows) for rows in (512, 4))
    assert parts.dtype == torch.float32
    assert parts.item() == pytest.approx(whole.item(), rel=1e-3)
    (a,), (b,) = torch.autograd.grad(whole, [head]), torch.autograd.grad(parts, [head])
    assert a.dtype == b.dtype == torch.bfloat16
    exact = F.cross_entropy(hidden.float() @ head.float().t(), targets, reduction="sum")
    (reference,) = torch.autograd.grad(exact, [head])
    assert (b - reference).norm() < 0.01 * reference.norm()


def test_ligers_kernel_gets_what_it_promises_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for liger-kernel, which needs a GPU: its contract is torch's, with losses in the logits' type."""
    seen: list[torch.dtype] = []

    def stand_in(logits: Tensor, target: Tensor, reduction: str) -> Tensor:
        seen.append(logits.dtype)
        assert target.dtype == torch.int64
        return F.cross_entropy(logits.float(), target, reduction=reduction).to(logits.dtype)

    functional = ModuleType("liger_kernel.transformers.functional")
    functional.liger_cross_entropy = stand_in  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    hidden, head = torch.randn(20, 8).bfloat16().requires_grad_(), torch.randn(30, 8).bfloat16().requires_grad_()
    targets, weights = torch.randint(0, 30, (20,)), torch.rand(20)
    for rows in (1024, 6):
        results = []
        for kernel in ("torch", "liger"):
            loss = supervised_loss(hidden, head, targets, weights, rows, kernel)  # type: ignore[arg-type]
            results.append((loss.detach(), *torch.autograd.grad(loss, [hidden, head])))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    assert set(seen) == {torch.bfloat16}


def test_liger_needs_a_gpu_and_its_package() -> None:
    assert choose_loss_kernel("auto", CPU) == "torch"
    with pytest.raises(ConfigError, match=r"vitp\[fast\]|runs on GPUs only"):
        choose_loss_kernel("liger", CPU)


# ----------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("shares_heads", [True, False])
def test_varlen_call_means_attention_within_documents(monkeypatch: pytest.MonkeyPatch, shares_heads: bool) -> None:
    """Torch's kernel runs on GPUs only: a stand-in takes the same arguments and computes what its documentation says."""

    def by_documentation(q, k, v, cu_q, cu_k, most_q, most_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
        assert cu_q.dtype == torch.int32
        assert window_size == (-1, 0)  # causal
        assert most_q == most_k == int(cu_q.diff().max())
        if not enable_gqa:
            assert q.shape[1] == k.shape[1]
        out = []
        for a, b in zip(cu_q.tolist(), cu_q.tolist()[1:], strict=False):
            one = [x[a:b].transpose(0, 1)[None] for x in (q, k, v)]
            out.append(F.scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=enable_gqa))
        return torch.cat(out, 2)[0].transpose(0, 1)

    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(varlen, "varlen_attn", by_documentation)
    monkeypatch.setattr("vitp.vlm.attention._varlen_shares_heads", lambda: shares_heads)
    lengths = (3, 9, 1, 5)
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    q, k, v = (torch.randn(1, h, 18, 8) for h in (4, 2, 2))
    ours = _varlen(q, k, v, Documents(lengths, ends), 0.3)
    torch.testing.assert_close(ours, _per_document(q, k, v, lengths, 0.3), rtol=1e-5, atol=1e-6)


def test_ends_travel_with_the_pack() -> None:
    pack = pack_of(tiny_model(), [1, 2, 0])
    assert pack.ends.tolist() == [0, *torch.tensor(pack.lengths).cumsum(0).tolist()]
    assert "ends" in pack.tensors()
    assert {"lengths", "most_kept"}.isdisjoint(set(pack.tensors()) - {"lengths"})


def test_a_step_never_waits_for_the_device() -> None:
    """No value is read back and nothing of a size only the device knows is made, forward or backward."""
    waiting = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique", "aten::is_nonzero"}
    met: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            met.append(func.name().split(".")[0])
            return func(*args, **(kwargs or {}))

    model = tiny_model(drop_path=0.5).train()
    pack = pack_of(model, [2, 0, 1])
    with Watch():
        model(pack).backward()
    assert len(met) > 300
    assert waiting.isdisjoint(met)
    with Watch():  # the watch sees what it should
        torch.ones(1).sum().item()
    assert not waiting.isdisjoint(met)


# ------------------------------------------------------------------------------------------------- compile, 8-bit, all


def test_compiled_blocks_give_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients to 1e-5, two packs of different sizes, MLPs computed again; traced, without code generation."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled(f, backend="aot_eager"))
    model = tiny_model().train()
    packs = [pack_of(model, [2, 1]), pack_of(model, [1, 0, 3])]
    expected = [gradients(model, pack) for pack in packs]
    use_compile(model)
    use_checkpointing(model, "mlp")
    for pack, plain in zip(packs, expected, strict=True):
        for name, tensor in gradients(model, pack).items():
            torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_8_bit_layers_are_near_and_only_where_they_fit() -> None:
    pytest.importorskip("torchao")
    model = tiny_model().train()
    pack = pack_of(model, [2, 1])
    exact = gradients(model, pack)
    count = use_float8(model, emulate=True)
    kinds = {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    converted = [name for name, kind in kinds.items() if kind == "Float8Linear"]
    assert len(converted) == count > 0
    assert all("layers." in name for name in converted)  # the tower's width of 24 is no multiple of 16
    ours = gradients(model, pack)
    assert ours["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.02)
    assert ours["loss"].item() != exact["loss"].item()
    assert list(ours) == list(exact)
    weight = "language_model.model.embed_tokens.weight"
    assert F.cosine_similarity(ours[weight].flatten(), exact[weight].flatten(), 0) > 0.98
    assert len(ours[weight]) == VOCABULARY


def test_checkpointing_is_said_aloud() -> None:
    said: list[str] = []
    model = tiny_model().train()
    assert StepConfig().checkpointing_modes == ("none", "mlp", "full")
    assert StepConfig(checkpointing="mlp").checkpointing_modes == ("mlp",)
    accelerate(model, StepConfig(), CPU, "full", said.append)
    assert any("full" in line and "a third more work" in line for line in said)


def test_what_this_machine_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="Hopper generation or newer, this run is on the CPU"):
        check_float8(CPU)
    with pytest.raises(ConfigError, match="Hopper"):
        accelerate(tiny_model(), StepConfig(float8=True), CPU, "none", lambda _: None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.GPT2LMHeadModel(t.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=30)), "head or layout"),
        (lambda t: t.MambaForCausalLM(t.MambaConfig(num_hidden_layers=1, hidden_size=16, vocab_size=30)), "choose a decoder"),
        (
            lambda t: t.CohereForCausalLM(
                t.CohereConfig(num_hidden_layers=1, hidden_size=16, vocab_size=30, intermediate_size=16, num_attention_heads=2)
            ),
            "logit_scale",
        ),
        (
            lambda t: t.MistralForCausalLM(
                t.MistralConfig(
                    num_hidden_layers=1, hidden_size=16, vocab_size=30, intermediate_size=16, num_attention_heads=2,
                    num_key_value_heads=1, sliding_window=4,
                )
            ),
            "sliding",
        ),
    ],
)  # fmt: skip
def test_a_decoder_that_cannot_be_packed_is_refused_in_a_sentence(make: Any, message: str) -> None:
    import transformers

    with pytest.raises(CheckpointError, match=message):
        use_packed_attention(make(transformers))
