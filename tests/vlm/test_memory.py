"""Memory coefficients against what autograd really keeps."""

from __future__ import annotations

import pytest
import timm
import torch
from tests.tinyvlm import SIZE, VOCABULARY, laid_out_sample, paper_model
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import Qwen3Config, Qwen3ForCausalLM

from vitp.backbone.vit import choose_attention
from vitp.instruction.pack import LaidOut, join
from vitp.vlm.checkpointing import Checkpointing, use_checkpointing
from vitp.vlm.flops import Trained, Work, last_block_of
from vitp.vlm.memory import LOGIT_ROWS, MemoryPrecision, ModelMemory, count_memory, largest_pack
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.tiny import LanguageModelConfig, build_language_model

SAMPLES = [laid_out_sample(tiles, tiles, 0.5) for tiles in (5, 8, 3)]


def small_model(precision: MemoryPrecision = "fp32", layer_scale: float | None = 0.1) -> VisionLanguageModel:
    """Wide enough that layers outweigh what is not counted."""
    torch.manual_seed(0)
    tower = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=4, embed_dim=96, depth=3, num_heads=3, num_classes=0,
        init_values=layer_scale, class_token=False, global_pool="", norm_layer=nn.LayerNorm,
    )  # fmt: skip
    language = LanguageModelConfig(width=128, depth=3, heads=4, kv_heads=2, mlp_width=384)
    model = VisionLanguageModel(
        tower, build_language_model(language, 320, 0), image_size=SIZE, factor=2, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    return model.to(torch.bfloat16) if precision == "bf16" else model


class Kept:
    """Storages that autograd keeps, those of parameters and buffers left out; cast weights apart."""

    def __init__(self, model: nn.Module, autocast: bool) -> None:
        self._autocast = autocast
        tensors = [*model.parameters(), *model.buffers()]
        self._known = {t.untyped_storage().data_ptr() for t in tensors}
        self._shapes = {frozenset(t.shape) for t in model.parameters() if t.ndim >= 2}
        self.storages: dict[int, int] = {}
        self.casts: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known and tensor.numel():
            is_cast = (
                self._autocast
                and tensor.dtype == torch.bfloat16
                and tensor.ndim == 2
                and frozenset(tensor.shape) in self._shapes
            )
            (self.casts if is_cast else self.storages)[storage.data_ptr()] = storage.nbytes()
            self._alive.append(tensor)
        return tensor


def kept(model: VisionLanguageModel, precision: MemoryPrecision, samples: list[LaidOut]) -> tuple[float, float]:
    """Bytes kept after a forward pass, and of these the cast weights."""
    seen = Kept(model, precision == "autocast")
    pack = join(samples, model.tokens_per_tile, SIZE, 0)
    with (
        torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"),
    ):
        loss = model(pack)
    del loss
    return sum(seen.storages.values()), sum(seen.casts.values())


def work_of(samples: list[LaidOut]) -> Work:
    return Work.total(Work.of(len(s.tiles), len(s.kept), len(s.ids), len(s.targets)) for s in samples)


def memory_of(
    model: VisionLanguageModel,
    precision: MemoryPrecision = "fp32",
    trained: Trained | None = None,
    checkpointing: Checkpointing = "none",
) -> ModelMemory:
    """As the model computes `SAMPLES`, of which half is dropped."""
    return count_memory(model, precision, trained, checkpointing, last_block_of(model, 0.5))


def expected_kept(memory: ModelMemory, samples: list[LaidOut]) -> float:
    """What the coefficients say is kept after a forward pass: of the logits one fp32 number each, the log-softmax."""
    work = work_of(samples)
    pack = memory.of(work)
    logits = work.supervised * (memory.hidden_per_row + 4 * VOCABULARY)
    return pack.tower + pack.projector + pack.language_model + logits


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
def test_activations_are_what_autograd_keeps(precision: MemoryPrecision, layer_scale: float | None) -> None:
    model = small_model(precision, layer_scale)
    found, casts = kept(model, precision, SAMPLES)
    memory = memory_of(model, precision)
    expected = expected_kept(memory, SAMPLES)
    assert expected == pytest.approx(found, rel=0.06)
    one, _ = kept(model, precision, SAMPLES[:1])  # what grows with the pack, whatever is kept besides
    assert expected - expected_kept(memory, SAMPLES[:1]) == pytest.approx(found - one, rel=0.06)
    assert memory.casts == pytest.approx(casts, rel=0.1)


def peak_of(model: VisionLanguageModel, precision: MemoryPrecision) -> int:
    """Most bytes that live at once, forward and backward, with gradients of an earlier pack."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    pack = join(SAMPLES, model.tokens_per_tile, SIZE, 0)
    tracker = MemTracker()
    tracker.track_external(model, *(p.grad for p in model.parameters()), *pack.tensors().values())
    with tracker, torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        model(pack).backward()
    found: int = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    return found


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_the_peak_of_a_step_is_foretold(precision: MemoryPrecision) -> None:
    """Without the optimiser's states, which are not there."""
    model = small_model(precision)
    memory = memory_of(model, precision)
    assert memory.of(work_of(SAMPLES)).total - memory.optimizer == pytest.approx(peak_of(model, precision), rel=0.1)


def test_checkpointing_keeps_less() -> None:
    """By live tensors, since what a checkpoint keeps is not handed to the hooks."""
    peaks = {}
    for mode in ("none", "mlp", "full"):
        model = small_model()
        use_checkpointing(model, mode)
        peaks[mode] = peak_of(model, "fp32")
        memory = memory_of(model, checkpointing=mode)
        assert memory.of(work_of(SAMPLES)).total - memory.optimizer == pytest.approx(peaks[mode], rel=0.1)
    assert peaks["full"] < peaks["mlp"] < peaks["none"]


def test_attention_written_out_keeps_its_weights() -> None:
    model = small_model()
    choose_attention(model.tower, 64, torch.device("cpu"), bf16=True)
    found, _ = kept(model, "fp32", SAMPLES)
    assert expected_kept(memory_of(model, "fp32"), SAMPLES) == pytest.approx(found, rel=0.1)


def test_query_and_key_norms_and_untied_heads_are_counted() -> None:
    model = small_model()
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    other = VisionLanguageModel(
        model.tower,
        Qwen3ForCausalLM(
            Qwen3Config(
                **sizes, num_key_value_heads=2, head_dim=48, vocab_size=320, tie_word_embeddings=False, use_cache=False
            )
        ),
        image_size=SIZE,
        factor=2,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    found, _ = kept(other, "fp32", SAMPLES)
    assert expected_kept(memory_of(other, "fp32"), SAMPLES) == pytest.approx(found, rel=0.1)
    assert memory_of(other, "fp32").weights == 4 * sum(p.numel() for p in other.parameters())


def test_a_frozen_tower_keeps_nothing_and_has_no_states() -> None:
    model = small_model()
    model.tower.requires_grad_(False)
    found, _ = kept(model, "fp32", SAMPLES)
    memory = memory_of(model, "fp32", Trained(tower=False))
    assert memory.tower_per_tile == 0
    assert expected_kept(memory, SAMPLES) == pytest.approx(found, rel=0.1)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.gradients == 4 * learned
    assert memory.optimizer == 8 * learned


# kB a token and layer at the paper's width, measured with the same hooks (autocast's weight copies left out), and GB a sample
# of 200 tokens of text with three quarters of the visual tokens dropped, kept in bf16 for the backward pass.
@pytest.mark.parametrize(
    ("checkpointing", "tower", "layer"), [("none", 36.9, 59.5), ("mlp", 28.7, 40.0), ("full", 2.05, 1.8)]
)
def test_the_papers_size_keeps_what_was_measured(
    checkpointing: Checkpointing, tower: float, layer: float | None
) -> None:
    model = paper_model()
    for scale in (m for block in model.tower.blocks for m in (block.ls1, block.ls2)):
        del scale.__dict__["forward"]  # as it was measured: with layer scales that are not folded into the weights
    memory = count_memory(model, "bf16", checkpointing=checkpointing)
    assert memory.tower_per_tile / 1025 / 24 / 1e3 == pytest.approx(tower, rel=0.04)  # the tiles too
    if layer is not None:
        assert memory.layers_per_token / 24 / 1e3 == pytest.approx(layer, rel=0.15 if checkpointing == "full" else 0.03)
    if checkpointing == "none":
        for tiles, gigabytes in ((1, 1.29), (4, 4.29), (7, 7.29)):
            pack = memory.of(Work.of(tiles, 64 * tiles, 200 + 64 * tiles, 70))
            assert (pack.tower + pack.projector + pack.language_model) / 1e9 == pytest.approx(gigabytes, rel=0.01)
        assert memory.fixed / 802.3e6 == pytest.approx(2 + 4 + 12, rel=1e-3)  # bf16; fp32 gradients, copy and moments


def test_the_largest_pack_just_fits() -> None:
    memory = count_memory(paper_model(), "bf16")
    sample = Work.of(4, 256, 456, 70)
    budget = 74e9
    found = largest_pack(memory, sample, budget)
    assert found is not None
    assert memory.of(found).total <= budget
    assert memory.of(found.times(1.05)).total > budget
    assert found.samples == pytest.approx(14, abs=1)
    assert largest_pack(memory, sample, memory.fixed) is None
    assert found.supervised > LOGIT_ROWS / 2
