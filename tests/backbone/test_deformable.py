"""Deformable attention: both forms against transformers' own, gradients, precision, and the exported graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr import modeling_deformable_detr as reference

from vitp.backbone import deformable
from vitp.backbone.deformable import DeformableAttention, choose_form, sample, sample_bag, sample_grid

SHAPES = ((9, 7), (4, 6), (3, 2))  # none square
FORMS = {"grid": sample_grid, "bag": sample_bag}


def _inputs(dtype: torch.dtype = torch.float32, shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Tensor]:
    """Value, locations (some outside, some exactly on borders and cell centres), weights."""
    random = torch.Generator().manual_seed(0)
    levels, cells = len(shapes), sum(h * w for h, w in shapes)
    value = torch.randn(2, cells, 4, 8, generator=random, dtype=dtype)
    locations = torch.rand(2, 11, 4, levels, 5, 2, generator=random, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(2, 11, 4, levels, 5, generator=random, dtype=dtype)
    return [t.requires_grad_() for t in (value, locations, weights)]


def _with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * direction).sum(), inputs)]


@pytest.mark.parametrize("form", FORMS)
def test_sampling_equals_transformers_forward_and_backward(form: str) -> None:
    inputs = _inputs()
    value, locations, weights = inputs
    sizes = torch.tensor(SHAPES)
    theirs = reference.MultiScaleDeformableAttention()(value, sizes, list(SHAPES), None, locations, weights, 64)
    ours = FORMS[form](value, SHAPES, locations, weights)
    for mine, expected in zip(_with_gradients(ours, inputs), _with_gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("form", FORMS)
def test_the_module_equals_transformers_with_its_weights(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "choose_form", lambda *_: form)
    torch.manual_seed(0)
    config = DeformableDetrConfig(d_model=32)
    theirs = reference.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=5)
    theirs.n_levels = config.num_feature_levels
    ours = DeformableAttention(32, heads=4, levels=config.num_feature_levels, points=5)
    ours.load_state_dict(theirs.state_dict())
    for parameter in (ours.sampling_offsets.weight, ours.attention_weights.weight):
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    shapes = (*SHAPES, (1, 2))
    cells = sum(h * w for h, w in shapes)
    query, feature = torch.randn(2, 11, 32, requires_grad=True), torch.randn(2, cells, 32, requires_grad=True)
    references = torch.rand(11, len(shapes), 2)
    expected, _ = theirs(
        hidden_states=query,
        encoder_hidden_states=feature,
        reference_points=references.expand(2, -1, -1, -1),
        spatial_shapes=torch.tensor(shapes),
        spatial_shapes_list=list(shapes),
        level_start_index=None,
    )
    mine = _with_gradients(ours(query, references, feature, shapes), [query, feature])
    for a, b in zip(mine, _with_gradients(expected, [query, feature]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_new_module_starts_as_deformable_detr_does() -> None:
    config = DeformableDetrConfig(d_model=32)
    theirs = reference.DeformableDetrModel(DeformableDetrConfig(d_model=32, encoder_layers=1, decoder_layers=1))
    start = theirs.encoder.layers[0].self_attn.sampling_offsets
    ours = DeformableAttention(
        32, heads=config.encoder_attention_heads, levels=config.num_feature_levels, points=config.encoder_n_points
    )
    torch.testing.assert_close(ours.sampling_offsets.bias, start.bias)
    assert not ours.sampling_offsets.weight.any()
    assert not ours.attention_weights.weight.any()


def test_the_bags_own_backward_is_the_derivative() -> None:
    value, locations, weights = _inputs(torch.float64, ((3, 4), (2, 1)))
    inputs = (value[:1, :, :2, :2], locations[:1, :3, :2], weights[:1, :3, :2])
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda v, at, w: sample_bag(v, ((3, 4), (2, 1)), at, w), leaves)


@pytest.mark.parametrize("shapes", [((1, 1),), ((2, 2), (1, 1)), ((3, 4), (2, 2), (1, 1))])
def test_maps_smaller_than_what_is_read_from_them(shapes: tuple[tuple[int, int], ...]) -> None:
    value, locations, weights = _inputs(shapes=shapes)
    inputs = [t.detach()[:1, :, :1] for t in (value, locations, weights)]
    inputs = [t.requires_grad_() for t in inputs]
    bag = _with_gradients(sample_bag(inputs[0], shapes, inputs[1], inputs[2]), inputs)
    grid = _with_gradients(sample_grid(inputs[0], shapes, inputs[1], inputs[2]), inputs)
    for a, b in zip(bag, grid, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_asked_for_are_computed(needed: tuple[bool, bool, bool]) -> None:
    full, part = _inputs(), [t.detach().requires_grad_(n) for t, n in zip(_inputs(), needed, strict=True)]
    for inputs in (full, part):
        sample_bag(inputs[0], SHAPES, inputs[1], inputs[2]).square().sum().backward()
    for whole, one, n in zip(full, part, needed, strict=True):
        assert (one.grad is not None) == n
        if n:
            torch.testing.assert_close(one.grad, whole.grad, rtol=0, atol=0)


def test_maps_larger_than_16_bit_keys_give_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs()
    expected = _with_gradients(sample_bag(inputs[0], SHAPES, inputs[1], inputs[2]), inputs)
    monkeypatch.setattr(deformable, "_RADIX", 8)
    found = _with_gradients(sample_bag(inputs[0], SHAPES, inputs[1], inputs[2]), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("at", [float("nan"), float("inf"), 1e30, -1e30])
def test_wild_locations_read_nothing_and_break_nothing(at: float) -> None:
    value, locations, weights = (t.detach() for t in _inputs())
    locations[0, 0] = at
    out = sample_bag(value, SHAPES, locations, weights)
    assert not out[0, 0].nan_to_num().any()
    torch.testing.assert_close(out[1], sample_grid(value, SHAPES, locations, weights)[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples_in_fp32(dtype: torch.dtype, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "choose_form", lambda *_: form)
    value, locations, weights = (t.detach() for t in _inputs())
    value = value.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = sample(value, SHAPES, locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, sample_grid(value.float(), SHAPES, locations, weights).to(dtype), rtol=0, atol=0.02)


def test_each_form_runs_where_it_is_the_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, many = torch.device("cpu"), 1 << 20
    assert choose_form(cpu, 16, many) == "bag"
    assert choose_form(cpu, 6, many) == "grid"
    assert choose_form(cpu, 16, 1000) == "grid"
    assert choose_form(torch.device("cuda"), 16, many) == "grid"
    used = []
    for name, form in FORMS.items():
        monkeypatch.setattr(deformable, f"sample_{name}", lambda *a, n=name, f=form: used.append(n) or f(*a))
    monkeypatch.setattr(deformable, "_CORNERS", 2 * 11 * 4 * 3 * 5 * 4)  # exactly those of the inputs
    with torch.no_grad():
        sample(_inputs()[0], SHAPES, *_inputs()[1:])
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        sample(_inputs()[0], SHAPES, *_inputs()[1:])
    assert used == ["bag", "grid"]


def test_the_exported_graph_gives_the_same_in_onnxruntime(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    module = DeformableAttention(32, heads=4, levels=3).eval()
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.3)
    cells = sum(h * w for h, w in SHAPES)
    query, references, feature = torch.randn(2, 6, 32), torch.rand(6, 3, 2), torch.randn(2, cells, 32)

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, query: Tensor, references: Tensor, feature: Tensor) -> Tensor:
            return self.inner(query, references, feature, SHAPES)

    file = tmp_path / "attention.onnx"
    torch.onnx.export(Fixed().eval(), (query, references, feature), file, dynamo=True, opset_version=20, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    given = {name: t.numpy() for name, t in zip(names, (query, references, feature), strict=True)}
    found = torch.from_numpy(session.run(None, given)[0])
    with torch.no_grad():
        torch.testing.assert_close(found, module(query, references, feature, SHAPES), rtol=1e-5, atol=1e-5)
