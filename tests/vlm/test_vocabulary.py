"""The vocabulary's matrices on CPUs: blocked loss, gradients in memory that is used again."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.tinyvlm import MODULES, SIZE, laid_out_sample, tiny_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitp.instruction.pack import join
from vitp.vlm import vocabulary
from vitp.vlm.loss import _LinearLoss, supervised_loss
from vitp.vlm.model import PackTensors, VisionLanguageModel
from vitp.vlm.vocabulary import Spare, embedded

ROWS, WIDTH = 1000, 16  # blocks have at least 256 rows: four of them


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets at the edges of blocks and several times the same; one certain position, one whose highest logit comes last."""
    torch.manual_seed(0)
    hidden, head = torch.randn(40, WIDTH, dtype=torch.float64), torch.randn(ROWS, WIDTH, dtype=torch.float64)
    targets = torch.randint(0, ROWS, (40,))
    targets[:8] = torch.tensor([0, 255, 256, 256, 511, 512, 768, ROWS - 1])
    hidden[8] = 8 * head[targets[8]]
    head[-1] *= 40
    return hidden.to(dtype), head.to(dtype), targets, torch.rand(40, dtype=torch.float64)


def reference(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> list[Tensor]:
    leaves = [t.double().requires_grad_() for t in (hidden, head)]
    loss = (F.cross_entropy(leaves[0] @ leaves[1].t(), targets, reduction="none") * weights).sum()
    return [loss.detach(), *torch.autograd.grad(loss / 7, leaves)]


def apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, relative."""
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("rows", [1024, 7])
def test_blocks_and_whole_rows_give_the_loss_and_its_gradients(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    """Blocks of the vocabulary on CPUs, whole rows of logits elsewhere; the second is run here as well."""
    hidden, head, targets, weights = problem(dtype)
    expected = reference(hidden, head, targets, weights)
    for whole_rows in (False, True):
        leaves = [t.clone().requires_grad_() for t in (hidden, head)]
        if whole_rows:
            loss = _LinearLoss.apply(*leaves, targets, weights.to(torch.float32), rows, "torch")
        else:
            loss = supervised_loss(*leaves, targets, weights, rows)
        results = [loss.detach(), *torch.autograd.grad(loss / 7, leaves)]
        bound = max(tolerance, 1e-6) if whole_rows else tolerance
        assert [apart(a, b) < bound for a, b in zip(results, expected, strict=True)] == [True] * 3


def test_a_certain_position_keeps_its_small_gradient_in_bf16() -> None:
    """The probability of its target rounds to one in bf16; what it lacks does not round to nought."""
    torch.manual_seed(0)
    hidden, head, targets = torch.full((1, WIDTH), 13 / WIDTH), 0.1 * torch.randn(300, WIDTH), torch.tensor([270])
    head[targets] = 1.0
    hidden, head = hidden.bfloat16(), head.bfloat16()
    lacking = (hidden @ head.t()).double().softmax(1)
    lacking[0, targets] -= 1
    assert 1e-5 < -lacking[0, targets] < 2e-3
    leaves = [t.clone().requires_grad_() for t in (hidden, head)]
    of_hidden, of_head = torch.autograd.grad(supervised_loss(*leaves, targets, torch.ones(1)), leaves)
    assert apart(of_hidden, lacking @ head.double()) < 1e-2
    assert apart(of_head, lacking.t() @ hidden.double()) < 1e-2


def test_autocast_gives_the_head_an_exact_gradient() -> None:
    """Products in bf16; what is left of them when they are added up is fp32, as the head."""
    hidden, head, targets, weights = problem(torch.float32)
    expected = reference(hidden.bfloat16(), head.bfloat16(), targets, weights)
    leaves = [t.clone().requires_grad_() for t in (hidden, head)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = supervised_loss(*leaves, targets, weights)
    results = [loss.detach(), *torch.autograd.grad(loss / 7, leaves)]
    assert [r.dtype for r in results] == [torch.float32] * 3
    assert [apart(a, b) < 5e-3 for a, b in zip(results, expected, strict=True)] == [True] * 3


def test_no_supervised_position_is_no_loss() -> None:
    head = torch.randn(ROWS, WIDTH, requires_grad=True)
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    loss = supervised_loss(hidden, head, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert loss.item() == 0
    loss.backward()
    assert head.grad is None or not head.grad.any()


def test_the_way_of_gpus_reads_nothing_back() -> None:
    """Run here on the CPU: no number is asked of the device, forward or backward."""
    waiting = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique", "aten::is_nonzero"}
    met: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            met.add(func.name().split(".")[0])
            return func(*args, **(kwargs or {}))

    hidden, head, targets, weights = problem(torch.float32)
    leaves = [t.requires_grad_() for t in (hidden, head)]
    with Watch():
        _LinearLoss.apply(*leaves, targets, weights.float(), 16, "torch").backward()
    assert "aten::mm" in met
    assert waiting.isdisjoint(met)


# -------------------------------------------------------------------------------------------------------------- memory


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    spare, shape = Spare(), torch.Size([30, 7])
    first = spare.tensor(shape, torch.float32)
    assert first.shape == shape
    assert first.data_ptr() % 64 == 0
    place, row = first.data_ptr(), first.fill_(1.0)[3]
    del first  # a view of it is still there
    second = spare.tensor(shape, torch.float32).fill_(2.0)
    assert second.data_ptr() != place
    assert row.tolist() == [1.0] * 7
    place = second.data_ptr()
    del second
    assert spare.tensor(shape, torch.float32).data_ptr() == place
    held = spare.tensor(shape, torch.bfloat16)
    assert copy.deepcopy(spare).tensor(shape, torch.bfloat16).data_ptr() != held.data_ptr()


def pack_of(model: VisionLanguageModel, seed: int) -> PackTensors:
    samples = [laid_out_sample(t, seed + i, 0.75) for i, t in enumerate([2, 1])]
    return join(samples, model.tokens_per_tile, SIZE, MODULES)


def test_steps_take_the_memory_of_the_last_gradients_and_micro_batches_add_up() -> None:
    model = tiny_model().train()
    model.language_model.lm_head.weight = nn.Parameter(model.language_model.lm_head.weight.detach().clone())  # not tied
    table = model.language_model.get_input_embeddings().weight
    packs = [pack_of(model, seed) for seed in (0, 5)]
    alone, places = [], []
    for pack in packs:
        model.zero_grad()
        model(pack).backward()
        alone.append(table.grad.clone())
        places.append(table.grad.data_ptr())
    assert places[0] == places[1]
    held, before = table.grad, table.grad.clone()
    model.zero_grad()
    model(packs[0]).backward()
    model(packs[1]).backward()
    torch.testing.assert_close(table.grad, alone[0] + alone[1], rtol=1e-5, atol=1e-7)
    assert torch.equal(held, before)  # a gradient that somebody keeps is left alone
    assert copy.deepcopy(model).spare_input is not model.spare_input


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_has_the_gradient_torch_gives_it(padding: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(20, 6, padding_idx=padding, dtype=dtype)
    ids, factor = torch.tensor([3, 1, 19, 1, 0, 3]), torch.randn(6, 6).to(dtype)
    embedding(ids).mul(factor).sum().backward()
    expected, embedding.weight.grad = embedding.weight.grad, None
    spare = Spare()
    spare.tensor(embedding.weight.shape, dtype).fill_(9.0)
    rows = embedded(embedding, ids, spare)
    assert torch.equal(rows, embedding(ids))
    rows.mul(factor).sum().backward()
    torch.testing.assert_close(embedding.weight.grad, expected)


def test_an_embedding_that_does_more_is_asked_itself() -> None:
    embedding = nn.Embedding(20, 6)
    embedding.register_forward_hook(lambda module, inputs, out: 2 * out)
    ids = torch.tensor([3, 1])
    assert torch.equal(embedded(embedding, ids, Spare()), 2 * embedding.weight[ids])
    scaled = nn.Embedding(20, 6, max_norm=0.1)
    assert float(embedded(scaled, ids, Spare()).detach().norm(dim=1).max()) < 0.11


def test_blocks_are_smaller_than_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rest on: several blocks, and no tensor of all the logits of a chunk."""
    monkeypatch.setattr(vocabulary, "_LOGITS", 1)
    hidden, head, targets, weights = problem(torch.float32)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape[:1] == (40,):
                largest = max(largest, out.numel())
            return out

    with Watch():
        supervised_loss(hidden.requires_grad_(), head.requires_grad_(), targets, weights).backward()
    assert largest == 40 * 256
