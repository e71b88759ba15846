"""`vitp estimate`: what a pretraining recipe costs, before a checkpoint is downloaded or a GPU is rented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitp.commands.pretrain import recipe_tokenizer, size_rules
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import ConfigError, VitpError
from vitp.instruction.index import open_source
from vitp.instruction.mixture_sizes import MixtureSizes, assumed_sizes, given_sizes, measured_sizes
from vitp.recipes import load_recipe
from vitp.train.hardware import COMPARED, USABLE, Gpu, find_gpu
from vitp.vlm.checkpointing import Checkpointing
from vitp.vlm.fit import full_pack, memory_precision, worthwhile_pack
from vitp.vlm.flops import PartFlops, StepFlops, Trained, Work, count_flops, last_block_of
from vitp.vlm.memory import MemoryPrecision, ModelMemory, PackMemory, count_memory
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.sketch import sketch_model
from vitp.vlm.token_drop import TokenDropConfig

# Useful FLOP/s over the dense peak. Llama 3 was trained at 38 to 43 % on H100 (Grattafiori et al. 2024, Table 4); what a run
# here reaches stands in its log as `mfu`.
EFFICIENCY = 0.40
EFFICIENCY_SOURCE = "Llama 3 on H100: 38 to 43 % (Grattafiori et al. 2024, Table 4)"
GIB = 2.0**30

# The published runs: hours on so many GPUs (paper Table 8). The recipes that follow them are named.
_PAPER_RECIPES = frozenset({"remote_sensing", "remote_sensing_released"})
_PAPER_HOURS, _PAPER_GPUS, _PAPER_GPU = 23.0, 8, "a40"


@dataclass(frozen=True)
class PartEstimate:
    """One part of the model; FLOPs are useful TFLOP of an average sample, forward and backward."""

    name: str
    parameters: int
    trained: bool
    tflop: float  # with the recipe's drop
    tflop_without_vrl: float


@dataclass(frozen=True)
class SampleEstimate:
    """An average sample under one drop."""

    tiles: float
    kept: float  # visual tokens in the language model
    tokens: float
    supervised: float
    tflop: float


@dataclass(frozen=True)
class GpuEstimate:
    """A run on so many GPUs of one kind."""

    gpu: str
    gpus: int
    peak_tflops: float
    memory_gib: float
    usable_gib: float
    recipe_pack_gib: float  # what a full pack within the recipe's bounds needs
    checkpointing: Checkpointing  # the least with which packs are worth while, of those that the recipe allows
    largest_pack: dict[str, int] | None  # tiles, tokens and samples; None: not even one sample fits
    samples_per_s: float
    hours: float
    hours_without_vrl: float
    source: str


@dataclass(frozen=True)
class PaperRun:
    """The published run beside what this recipe would take on the same GPUs."""

    gpu: str
    gpus: int
    hours: float
    estimated_hours: float  # at the stated efficiency
    utilisation: float  # of the dense peak, counting what this recipe needs


@dataclass(frozen=True)
class Estimate:
    """What `vitp estimate` tells."""

    name: str
    parts: tuple[PartEstimate, ...]
    mixture: str  # index, sample, assumed or given
    mixture_told: str
    vrl: str
    sample: SampleEstimate
    sample_without_vrl: SampleEstimate
    steps: int
    batch_size: int
    precision: MemoryPrecision
    bounds_chosen: bool  # the recipe sets them; if not, training lowers them to what fits
    pack: dict[str, int]  # a full pack within the recipe's bounds
    memory: dict[str, float]  # GiB by part at this pack
    gpus: tuple[GpuEstimate, ...]
    efficiency: float
    efficiency_source: str
    paper: PaperRun | None

    @property
    def parameters(self) -> int:
        """All parts."""
        return sum(part.parameters for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "parameters": self.parameters, "speedup_by_vrl": self.speedup}

    @property
    def speedup(self) -> float:
        """FLOPs of a sample without the drop over those with it."""
        return self.sample_without_vrl.tflop / self.sample.tflop


def estimate(
    recipe: PretrainConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    gpu: str | None = None,
    gpus: int = 1,
    efficiency: float = EFFICIENCY,
    tiles: float | None = None,
    text_tokens: float | None = None,
    supervised_tokens: float | None = None,
    model: VisionLanguageModel | None = None,
) -> Estimate:
    """What a pretraining recipe costs: parameters, FLOPs, memory, the largest pack, and hours.

    Nothing is trained, decoded or downloaded, as long as the model is on this disk or a published one. Sizes of samples come
    from the indexes (`vitp index`), else from a few records of each source that is here, else from a stated assumption.

    Args:
        recipe: a PretrainConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        gpu: one kind of GPU; None: A40, A100, H100 and H200.
        gpus: how many of them share the run.
        efficiency: useful FLOP/s over the dense peak, in (0, 1].
        tiles: of every sample, in the place of the data.
        text_tokens: the same; with `tiles` alone 190.
        supervised_tokens: the same; with `tiles` alone 70.
        model: the model, in the place of the recipe's; it may lie on the meta device.

    Raises:
        ConfigError: an argument makes no sense, or the recipe is wrong.
        CheckpointError: the sizes of the recipe's model are nowhere to be found.
    """
    config = load_recipe(PretrainConfig, recipe, overrides)
    _check_arguments(gpus, efficiency, tiles, text_tokens, supervised_tokens)
    kinds = [find_gpu(key) for key in ((gpu,) if gpu else COMPARED)]
    model = model if model is not None else sketch_model(config.model)
    if tiles is not None:
        text = 190.0 if text_tokens is None else text_tokens
        supervised = min(text, 70.0) if supervised_tokens is None else supervised_tokens
        sizes = given_sizes(tiles, text, supervised, model.tokens_per_tile)
    else:
        sizes = recipe_sizes(config, model.tokens_per_tile)
    return _Estimator(config, model, sizes, gpus, efficiency).result(kinds)


def _check_arguments(
    gpus: int, efficiency: float, tiles: float | None, text: float | None, supervised: float | None
) -> None:
    if gpus < 1:
        raise ConfigError(f"gpus must be at least 1, got {gpus}")
    if not 0.0 < efficiency <= 1.0:
        raise ConfigError(f"efficiency is a share of the dense peak in (0, 1], got {efficiency:g}")
    if tiles is None and (text is not None or supervised is not None):
        raise ConfigError("text and supervised tokens are given together with tiles; add --tiles")
    if min(tiles or 0.0, text or 0.0, supervised or 0.0) < 0 or (text is not None and (supervised or 0.0) > text):
        raise ConfigError(
            "tiles, text and supervised tokens must not be negative, and no more supervised than text tokens"
        )
    if tiles == 0 and text == 0:
        raise ConfigError("a sample of no tiles and no text costs nothing; give one of them")


def recipe_sizes(config: PretrainConfig, tokens_per_tile: int) -> MixtureSizes:
    """Sizes of a recipe's samples, from the data where it is here; never raises for the data's sake."""
    sources = []
    for each in config.data.sources:
        try:
            sources.append(open_source(each, config.data.index))
        except VitpError:
            continue  # `vitp recipes` and `vitp check` say why
    if not sources:
        return assumed_sizes(config.data.tiling, tokens_per_tile, "none of the recipe's data is here")
    try:
        rules = size_rules(config, recipe_tokenizer(config, sources))
    except VitpError as error:
        return assumed_sizes(config.data.tiling, tokens_per_tile, f"their tokens cannot be counted ({error})")
    return measured_sizes(sources, rules, config.data.index, absent=len(config.data.sources) - len(sources))


@dataclass(frozen=True)
class _Estimator:
    config: PretrainConfig
    model: VisionLanguageModel
    sizes: MixtureSizes
    gpus: int
    efficiency: float

    def result(self, kinds: Sequence[Gpu]) -> Estimate:
        config, trained = self.config, self.config.trained
        dropped, whole = self.sizes.sample(config.vrl), self.sizes.sample(TokenDropConfig(preset="none"))
        flops, flops_whole = self._flops(dropped, config.vrl.kept_share), self._flops(whole, 1.0)
        precision = memory_precision(config.precision, config.weights, self.gpus, kinds[0])
        last_block = last_block_of(self.model, config.vrl.kept_share)
        memories = {
            mode: count_memory(self.model, precision, trained, mode, last_block) for mode in config.checkpointing_modes
        }
        pack = full_pack(dropped, config.max_tiles_per_pack, config.max_tokens_per_pack, self._most_samples())
        found = next(iter(memories.values())).of(pack)
        return Estimate(
            name=config.name,
            parts=_parts(self.model, trained, flops.useful, flops_whole.useful),
            mixture=self.sizes.origin,
            mixture_told=self.sizes.told,
            vrl=f"{config.vrl.ratio:.0%} of the visual tokens of {config.vrl.probability:.0%} of the samples dropped",
            sample=_sample(dropped, flops),
            sample_without_vrl=_sample(whole, flops_whole),
            steps=config.steps,
            batch_size=config.batch_size,
            precision=precision,
            bounds_chosen=config.sets_pack_bounds,
            pack=_whole_numbers(pack),
            memory=_gib(found),
            gpus=tuple(self._on(kind, memories, found, dropped, whole) for kind in kinds),
            efficiency=self.efficiency,
            efficiency_source=EFFICIENCY_SOURCE if self.efficiency == EFFICIENCY else "given",
            paper=self._paper(flops),
        )

    def _flops(self, work: Work, kept_share: float, checkpointing: Checkpointing = "none") -> StepFlops:
        last_block = last_block_of(self.model, kept_share)
        return count_flops(self.model).of(work, self.config.trained, last_block=last_block, checkpointing=checkpointing)

    def _most_samples(self) -> float:
        return float(min(self.config.batch_size, self.config.max_samples_per_pack or self.config.batch_size))

    def _hours(self, kind: Gpu, gpus: int, flops: StepFlops) -> float:
        samples = self.config.steps * self.config.batch_size
        return samples * flops.executed.total / (self._peak(kind) * gpus * self.efficiency) / 3600

    def _peak(self, kind: Gpu) -> float:
        peak = kind.peak(bf16=memory_precision(self.config.precision, self.config.weights, 1, kind) != "fp32")
        assert peak is not None, "every GPU has a peak in one of the precisions"
        return peak

    def _on(
        self,
        kind: Gpu,
        memories: Mapping[Checkpointing, ModelMemory],
        pack: PackMemory,
        sample: Work,
        whole: Work,
    ) -> GpuEstimate:
        usable = USABLE * kind.memory * GIB
        mode, largest = worthwhile_pack(memories, sample, usable)
        hours = self._hours(kind, self.gpus, self._flops(sample, self.config.vrl.kept_share, mode))
        return GpuEstimate(
            gpu=kind.key,
            gpus=self.gpus,
            peak_tflops=self._peak(kind) * 1e-12,
            memory_gib=kind.memory,
            usable_gib=usable / GIB,
            recipe_pack_gib=pack.total / GIB,
            checkpointing=mode,
            largest_pack=None if largest is None else _whole_numbers(largest),
            samples_per_s=self.config.steps * self.config.batch_size / (hours * 3600),
            hours=hours,
            hours_without_vrl=self._hours(kind, self.gpus, self._flops(whole, 1.0, mode)),
            source=kind.source,
        )

    def _paper(self, flops: StepFlops) -> PaperRun | None:
        if self.config.name not in _PAPER_RECIPES:
            return None
        kind = find_gpu(_PAPER_GPU)
        estimated = self._hours(kind, _PAPER_GPUS, flops)
        utilisation = self.efficiency * estimated / _PAPER_HOURS
        return PaperRun(_PAPER_GPU, _PAPER_GPUS, _PAPER_HOURS, estimated, utilisation)


def _parts(
    model: VisionLanguageModel, trained: Trained, flops: PartFlops, whole: PartFlops
) -> tuple[PartEstimate, ...]:
    """Tower, projector, language model and head; a tied embedding counts as the language model's."""
    language: Any = model.language_model
    head = language.get_output_embeddings().weight
    tied = head is language.get_input_embeddings().weight
    numbers = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in asdict(trained)}
    numbers["head"] = 0 if tied else head.numel()
    numbers["language_model"] -= numbers["head"]
    return tuple(
        PartEstimate(
            name=name,
            parameters=count,
            trained=getattr(trained, "language_model" if name == "head" else name),
            tflop=getattr(flops, name) * 1e-12,
            tflop_without_vrl=getattr(whole, name) * 1e-12,
        )
        for name, count in numbers.items()
    )


def _sample(work: Work, flops: StepFlops) -> SampleEstimate:
    return SampleEstimate(work.tiles, work.kept, work.tokens, work.supervised, flops.useful.total * 1e-12)


def _whole_numbers(pack: Work) -> dict[str, int]:
    return {name: int(getattr(pack, name) + 1e-6) for name in ("tiles", "tokens", "samples")}


def _gib(memory: PackMemory) -> dict[str, float]:
    return {**{name: value / GIB for name, value in asdict(memory).items()}, "total": memory.total / GIB}
