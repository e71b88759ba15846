"""Linear layers of the tower as convolutions: the same numbers, the same work, and only where they are meant."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from tests.tinyvlm import MODULES, SIZE, VOCABULARY, laid_out_sample
from tests.vlm.test_sparse_tail import model_with, result
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vitp.instruction.pack import join
from vitp.vlm import products
from vitp.vlm.acceleration import use_float8
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.products import tile_linear
from vitp.vlm.tiny import LanguageModelConfig, build_language_model

needs_both = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
    reason="this torch has not both MKL and oneDNN",
)


class Convolutions(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.met: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.met[func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return sum(n for name, n in self.met.items() if "convolution" in name)


@needs_both
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", ["nothing", "weight", "input"])
def test_value_and_gradients_are_those_of_a_linear_layer(frozen: str, bias: bool) -> None:
    """fp32, 1e-5; both count the same FLOPs."""
    torch.manual_seed(0)
    x, weight = torch.randn(17, 9, 48), torch.randn(32, 48)
    b = torch.randn(32) if bias else None
    factor = torch.randn(17, 32, 9).transpose(1, 2)  # a gradient whose memory lies otherwise
    results, work = [], []
    for linear in (F.linear, tile_linear):
        leaves = [x.clone().requires_grad_(frozen != "input"), weight.clone().requires_grad_(frozen != "weight")]
        leaves += [b.clone().requires_grad_()] if b is not None else []
        with Convolutions() as watch, FlopCounterMode(display=False) as counter:
            out = linear(leaves[0], leaves[1], leaves[2] if bias else None)
            out.mul(factor).sum().backward()
        assert (watch.count > 0) == (linear is tile_linear)
        assert out.is_contiguous()
        work.append(counter.get_total_flops())
        results.append([out, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    assert work[0] == work[1]
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(15, 9, 8),  # few tiles: torch would leave them to MKL
        torch.randn(200, 8),  # the last block's survivors, no tiles any more
        torch.randn(16, 9, 8, dtype=torch.float64),
        torch.randn(16, 8, 9).transpose(1, 2),
    ],
)
def test_other_inputs_are_multiplied_as_ever(x: Tensor) -> None:
    weight = torch.randn(4, 8, dtype=x.dtype)
    with Convolutions() as watch:
        assert torch.equal(tile_linear(x, weight, None), F.linear(x, weight))
    assert watch.count == 0


def test_autocast_multiplies_in_bf16() -> None:
    x, weight = torch.randn(16, 9, 8), torch.randn(4, 8)
    with Convolutions() as watch, torch.autocast("cpu", torch.bfloat16):
        assert tile_linear(x, weight, None).dtype == torch.bfloat16
    assert watch.count == 0


@needs_both
@pytest.mark.parametrize("tower", [{"init_values": 0.3}, {"qkv_bias": False}], ids=["layer scale", "plain"])
def test_a_step_with_many_tiles_is_the_step_of_matrix_products(
    tower: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and every gradient to 1e-4 of the largest (fp32), stochastic depth on, last block sparse."""
    model = model_with(**tower)
    samples = [
        laid_out_sample(t, seed, 0.75, tokens_per_tile=model.tokens_per_tile) for seed, t in enumerate([9, 0, 8])
    ]
    pack = join(samples, model.tokens_per_tile, SIZE, MODULES)
    with Convolutions() as watch:
        ours = result(model, pack)
    # 4 layers of a dense block and the keys and values of the last, forward and by their inputs; and the patches
    assert watch.count == 2 * 5 + 2
    monkeypatch.setattr(products, "_TILES", 1 << 30)
    plain = result(model, pack)
    assert ours.keys() == plain.keys()
    for name, tensor in plain.items():
        assert float((ours[name] - tensor).abs().max()) <= 1e-4 * max(1e-3, float(tensor.abs().max())), name


def test_8_bit_layers_keep_the_layer_scale() -> None:
    """Folded scales come apart before layers are converted; without them the features would be others altogether."""
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=4,
        embed_dim=32,
        depth=3,
        num_heads=2,
        num_classes=0,
        init_values=1.0,
    )
    for name, parameter in vit.named_parameters():
        nn.init.normal_(parameter, std=0.02 if "gamma" in name else 0.2)
    language = LanguageModelConfig(width=32, depth=1, heads=2, kv_heads=1, mlp_width=48)
    channels = (0.5, 0.5, 0.5)
    model = VisionLanguageModel(
        vit, build_language_model(language, VOCABULARY, 0), image_size=SIZE, factor=2, mean=channels, std=channels
    )
    tiles = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        exact = model.encode(tiles)
        assert use_float8(model, emulate=True) >= 8
        assert {type(m).__name__ for m in vit.blocks[0].modules() if isinstance(m, nn.Linear)} == {"Float8Linear"}
        assert float((model.encode(tiles) - exact).norm() / exact.norm()) < 0.02
        for block in vit.blocks:
            block.ls1.gamma.fill_(1.0)
        assert float((model.encode(tiles) - exact).norm() / exact.norm()) > 0.2  # the scales are looked at
