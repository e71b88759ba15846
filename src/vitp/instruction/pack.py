"""From a step number to packed tensors: read, decode, tile, template, choose the kept tokens, lay out.

Everything random about a sample is keyed by (seed, step, slot), slot being the sample's place in its step, so the same
step gives the same numbers in any process and however it is cut into packs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp.errors import DataError, TrainingError
from vitp.images.read import read_image
from vitp.instruction.augment import augment, recompress
from vitp.instruction.chat import ChatFormat, Encoded
from vitp.instruction.grammar import parse_boxes
from vitp.instruction.index import Index
from vitp.instruction.mixture import ATTEMPTS, Mixture, Place
from vitp.instruction.plan import PlanConfig, SampleSize, plan_step, sample_costs
from vitp.instruction.sample import IMAGE_MARK, Sample, Turn
from vitp.instruction.share import Share
from vitp.instruction.source import Source
from vitp.instruction.step_sizes import StepSizer
from vitp.instruction.tiling import TilingConfig, cut_tiles
from vitp.train.draws import Purpose, generator
from vitp.train.feeding import working_on
from vitp.train.task import StepBatch
from vitp.vlm.loss import Weighting, answer_weights
from vitp.vlm.model import PackTensors
from vitp.vlm.token_drop import TokenDropConfig, draw

_SHAPE_MULTIPLE = 128  # see `join`; at most 127 idle positions a pack of thousands
_DECODED = 64 << 20  # bytes of decoded images a worker keeps


@dataclass(frozen=True)
class LaidOut:
    """One sample ready to be packed; positions and targets are those before dropping."""

    tiles: Tensor  # uint8 [t, 3, S, S]
    depth: np.ndarray  # float32 [t, modules]
    ids: np.ndarray  # int64 [l], kept positions only
    positions: np.ndarray  # int64 [l]
    slots: np.ndarray  # int64 [k], places of visual tokens in ids
    kept: np.ndarray  # int64 [k], which visual tokens of the sample
    predict: np.ndarray  # int64 [s]
    targets: np.ndarray  # int64 [s]
    weights: np.ndarray  # float32 [s]
    visual: int  # visual tokens before dropping
    truncated: bool


def lay_out(
    encoded: Encoded,
    tiles: Tensor,
    depth: np.ndarray,
    kept: np.ndarray,
    weighting: Weighting,
    max_length: int,
    where: str,
) -> LaidOut:
    """Drop, shift and weigh one sample.

    Targets are taken before anything is dropped, so the token after a gap is never a wrong target.

    Raises:
        DataError: the visual tokens alone exceed `max_length`, or no answer is left after cutting.
    """
    ids, visual, answers = encoded.ids, encoded.visual, list(encoded.answers)
    truncated = len(ids) > max_length
    if truncated:
        if visual[max_length:].any():
            raise DataError(
                f"{int(visual.sum())} visual tokens and their text exceed max_length {max_length}: "
                "raise max_length or lower max_tiles",
                where,
            )
        ids, visual = ids[:max_length], visual[:max_length]
        answers = [(a, min(b, max_length)) for a, b in answers if a < max_length]
    if not answers:
        raise DataError(
            f"no answer is left within max_length {max_length} (the sample has {len(encoded.ids)} tokens)", where
        )
    places = np.flatnonzero(visual)
    stays = ~visual
    stays[places[kept]] = True
    positions = np.flatnonzero(stays)
    after = np.cumsum(stays) - 1  # old position -> new position of the survivors
    supervised = np.concatenate([np.arange(a, b) for a, b in answers])
    return LaidOut(
        tiles=tiles,
        depth=depth,
        ids=ids[positions].astype(np.int64),
        positions=positions,
        slots=after[places[kept]],
        kept=kept,
        predict=after[supervised - 1],
        targets=ids[supervised].astype(np.int64),
        weights=answer_weights([b - a for a, b in answers], weighting),
        visual=len(places),
        truncated=truncated,
    )


def lay_out_text(encoded: Encoded, max_length: int, where: str) -> LaidOut:
    """What the limit leaves of a sample's text and answers, for whoever only counts; raises what `lay_out` raises."""
    nothing = np.zeros(0, np.int64)
    return lay_out(encoded, torch.zeros(0), nothing, nothing, "token", max_length, where)


def _filling(length: int, multiple: int) -> int:
    """Idle positions after `length` ones: a thirty-second of them at most (or 3), and never as many as `multiple`."""
    while multiple > 4 and multiple * 32 > length:
        multiple //= 2
    return -length % multiple


def join(
    samples: Sequence[LaidOut], tokens_per_tile: int, tile_size: int, modules: int, multiple: int = 1
) -> PackTensors:
    """Lay samples one after another in a single row.

    Args:
        samples: at least one.
        tokens_per_tile: visual tokens of a tile before dropping.
        tile_size: side of a tile in pixels.
        modules: stochastic-depth modules of the tower.
        multiple: the row and the supervised rows are filled up to a multiple of this (of less where they are short), with
            positions that belong to no sample and weigh nothing, so that a run meets few different shapes: CPUs keep a
            compiled kernel for each.
    """
    length = sum(len(s.ids) for s in samples)
    filling, idle = _filling(length, multiple), _filling(sum(len(s.targets) for s in samples), multiple)
    starts = np.concatenate([[0], np.cumsum([len(s.ids) for s in samples])])[:-1]
    cells = np.concatenate([[0], np.cumsum([len(s.tiles) * tokens_per_tile for s in samples])])[:-1]

    def shifted(name: str, by: np.ndarray, fill: int = 0) -> Tensor:
        parts = [getattr(s, name) + o for s, o in zip(samples, by, strict=True)]
        return torch.from_numpy(np.concatenate([*parts, np.zeros(fill, np.int64)]))

    none = np.zeros(len(samples), np.int64)
    with_tiles = [s for s in samples if len(s.tiles)]
    if with_tiles:
        tiles, depth = torch.cat([s.tiles for s in with_tiles]), np.concatenate([s.depth for s in with_tiles])
    else:
        tiles, depth = torch.zeros(0, 3, tile_size, tile_size, dtype=torch.uint8), np.zeros((0, modules), np.float32)
    lengths = tuple(len(s.ids) for s in samples) + ((filling,) if filling else ())
    kept = shifted("kept", cells)
    return PackTensors(
        tiles=tiles,
        depth=torch.from_numpy(depth),
        ids=shifted("ids", none, filling),
        positions=shifted("positions", none, filling),
        lengths=lengths,
        ends=torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        slots=shifted("slots", starts),
        kept=kept,
        most_kept=int(torch.bincount(kept // tokens_per_tile).max()) if len(kept) else 0,
        predict=shifted("predict", starts, idle),
        targets=shifted("targets", none, idle),
        weights=torch.from_numpy(np.concatenate([*(s.weights for s in samples), np.zeros(idle, np.float32)])),
    )


def idle_sample(image_token: int, tile_size: int, modules: int, *, tower: bool) -> LaidOut:
    """A sample of one position that weighs nothing, with one black tile if the tower is to be used.

    It keeps ranks in lockstep: all parts of the model are computed, and all gradients that come of it are zero.
    """
    tiles = 1 if tower else 0
    one, some = np.zeros(1, np.int64), np.zeros(tiles, np.int64)
    return LaidOut(
        tiles=torch.zeros(tiles, 3, tile_size, tile_size, dtype=torch.uint8),
        depth=np.full((tiles, modules), 0.5, np.float32),
        ids=one + image_token,
        positions=one,
        slots=some,
        kept=some,
        predict=one,
        targets=one,
        weights=np.zeros(1, np.float32),
        visual=0,
        truncated=False,
    )


def plan_packs(samples: Sequence[LaidOut], config: PlanConfig) -> list[list[LaidOut]]:
    """As few packs as `vitp.instruction.plan` finds within the bounds, of about equal cost, dearest first.

    A sample larger than a bound gets a pack of its own, before all others.
    """
    sizes = {i: SampleSize(len(s.tiles), len(s.ids), len(s.targets)) for i, s in enumerate(samples)}
    large = [
        i for i, s in sizes.items() if s.tokens > config.max_tokens_per_pack or s.tiles > config.max_tiles_per_pack
    ]
    rest = {i: size for i, size in sizes.items() if i not in large}
    planned = plan_step(rest, config, ranks=1).ranks[0] if rest else ()
    return [[samples[i]] for i in large] + [[samples[i] for i in pack] for pack in planned]


def useful_tflop(samples: Sequence[LaidOut], config: PlanConfig) -> float:
    """Matrix products that samples need, forward and backward, in TFLOP, by the plan's cost model."""
    table = np.array([(len(s.tiles), len(s.ids), len(s.targets)) for s in samples], np.int64).reshape(-1, 3)
    return float(sample_costs(table[:, 0], table[:, 1], table[:, 2], config.cost).sum()) * 1e-3


def without_images(sample: Sample) -> Sample:
    """The sample's conversation alone, for the text-only warm start."""
    turns = tuple(Turn(t.role, t.text.replace(IMAGE_MARK + "\n", "").replace(IMAGE_MARK, "")) for t in sample.turns)
    return Sample(turns, (), sample.where)


class StepBuilder:
    """step -> StepBatch, a pure function; picklable, so that worker processes can share it."""

    def __init__(
        self,
        sources: Sequence[Source],
        chat: ChatFormat,
        *,
        seed: int,
        batch_size: int,
        tile_size: int,
        tokens_per_tile: int,
        depth_modules: int,
        tiling: TilingConfig,
        vrl: TokenDropConfig,
        weighting: Weighting,
        max_length: int,
        plan: PlanConfig,
        text_steps: int = 0,
        text_batch_size: int = 0,
    ) -> None:
        """Set up; nothing is read yet.

        Args (those that do not speak for themselves):
            max_length: tokens of a sample before dropping.
            plan: bounds and costs of a pack, which is one forward pass.
            text_steps: so many first steps hold `text_batch_size` conversations without their images.
        """
        self.sources, self.chat, self.seed, self.batch_size = list(sources), chat, seed, batch_size
        self.tile_size, self.tokens_per_tile, self.depth_modules = tile_size, tokens_per_tile, depth_modules
        self.tiling, self.vrl, self.weighting = tiling, vrl, weighting
        self.max_length, self.plan = max_length, plan
        self.text_steps, self.text_batch_size = text_steps, text_batch_size
        self.mixture = Mixture([len(s) for s in sources], [s.config.weight for s in sources], seed)
        self.share: Share | None = None
        self._images: OrderedDict[tuple[int, str], Tensor] = OrderedDict()
        self._image_bytes = 0

    def on_ranks(self, rank: int, size: int, indexes: Sequence[Index], *, lockstep: bool) -> None:
        """From now on lay out one rank's part of every step.

        Args:
            rank: which.
            size: number of ranks.
            indexes: of the sources; all ranks must have the same.
            lockstep: give all ranks equally many packs, and all of them a tile where any sample of the step has one.
        """
        sizer = StepSizer(indexes, self.sources, self.mixture, self.seed, self.vrl, self.tiling, self.tile_size)
        self.share = Share(rank, size, sizer, lockstep)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": OrderedDict(), "_image_bytes": 0}

    def _read(self, source: Source, name: str, where: str) -> Tensor:
        try:
            file = source.image_file(name)
            key = (id(source), str(file))  # two sources may read one file with different scalings
            found = self._images.get(key)
            if found is not None:
                self._images.move_to_end(key)
                return found
            image = read_image(file, source.config.images)
        except DataError as error:
            raise DataError(str(error), where) from error
        self._images[key] = image
        self._image_bytes += image.nbytes
        while self._image_bytes > _DECODED and len(self._images) > 1:
            self._image_bytes -= self._images.popitem(last=False)[1].nbytes
        return image

    def sample(self, source: Source, index: int, step: int, slot: int, *, text_only: bool) -> LaidOut:
        """Read and lay out one sample.

        Raises:
            DataError: the sample or one of its images is unusable.
        """
        sample = source.sample(index)
        for turn in sample.turns:
            if "<box>" in turn.text:
                parse_boxes(turn.text)  # what `vitp check` calls unusable is not trained on
        if text_only:
            sample = without_images(sample)
        images = [self._read(source, name, sample.where) for name in sample.images]
        rng = generator(self.seed, Purpose.AUGMENT, step, slot)
        if images:
            images, sample = augment(images, sample, source.config.augment, rng)
        tiling = self.tiling.with_most(source.config.max_tiles)
        cut = [cut_tiles(image, tiling, self.tile_size, len(images)) for image in images]
        if source.config.augment.jpeg:
            cut = [recompress(tiles, rng) for tiles in cut]
        encoded = self.chat.encode(sample.turns, [len(t) * self.tokens_per_tile for t in cut], sample.where)
        n = int(encoded.visual.sum())
        kept = draw(n, self.vrl, generator(self.seed, Purpose.TOKEN_DROP, step, slot)) if n else np.zeros(0, np.int64)
        tiles = torch.cat(cut) if cut else torch.zeros(0, 3, self.tile_size, self.tile_size, dtype=torch.uint8)
        depth = generator(self.seed, Purpose.STOCHASTIC_DEPTH, step, slot).random(
            (len(tiles), self.depth_modules), dtype=np.float32
        )
        return lay_out(encoded, tiles, depth, kept, self.weighting, self.max_length, sample.where)

    def _usable(
        self, step: int, slot: int, position: int, place: Place, skipped: list[dict[str, Any]]
    ) -> tuple[LaidOut, str]:
        working_on(slot)
        source = self.sources[place.source]
        for attempt in range(ATTEMPTS):
            try:
                laid = self.sample(source, place.index, step, slot, text_only=step < self.text_steps)
                return laid, f"{source.config.name}[{place.index}]"
            except DataError as error:
                other = self.mixture.replacement(place, position, attempt)
                skipped.append(
                    {
                        "source": source.config.name,
                        "sample": place.index,
                        "where": error.where or source.where(place.index),
                        "reason": error.reason,
                        "replaced_by": other.index,
                    }
                )
                place = other
        raise TrainingError(
            f"source '{source.config.name}': {ATTEMPTS} samples in a row are unusable, the last because "
            f"{skipped[-1]['reason']}; run `vitp check` on the recipe"
        )

    def _positions(self, step: int) -> range:
        if step < self.text_steps:
            return range(step * self.text_batch_size, (step + 1) * self.text_batch_size)
        first = (step - self.text_steps) * self.batch_size
        return range(first, first + self.batch_size)

    def where(self, step: int, slot: int) -> str:
        """``file:line`` of the sample that is due at place `slot` of a step."""
        place = self.mixture.at(self._positions(step)[slot])
        return self.sources[place.source].where(place.index)

    def step_batch(self, step: int) -> StepBatch:
        """All packs of one step, or of one rank's part of it, with their loss weight and their counts."""
        skipped: list[dict[str, Any]] = []
        positions = self._positions(step)
        due = list(zip(positions, self.mixture.at_many(positions), strict=True))
        mine, slots = None, list(range(len(due)))
        if self.share is not None:
            mine = self.share.of(step, positions, self.plan, text_only=step < self.text_steps)
            slots = sorted(slot for pack in mine.slots for slot in pack)
        drawn = {slot: self._usable(step, slot, *due[slot], skipped) for slot in slots}
        samples = [laid for laid, _ in drawn.values()]
        if mine is None or self.share is None or not self.share.lockstep:
            packs = plan_packs(samples, self.plan)
        else:
            packs = [self._in_step([drawn[slot][0] for slot in pack], mine.tower) for pack in mine.slots]
        counts = {
            "samples": len(samples),
            "tiles": sum(len(s.tiles) for s in samples),
            "lm_tokens": sum(len(s.ids) for s in samples),
            "supervised_tokens": sum(len(s.targets) for s in samples),
            "visual_tokens": sum(s.visual for s in samples),
            "visual_kept": sum(len(s.kept) for s in samples),
            "truncated": sum(s.truncated for s in samples),
            "text_only": sum(not len(s.tiles) for s in samples),
            "tflop": useful_tflop(samples, self.plan),
        }
        return StepBatch(
            micros=[join(p, self.tokens_per_tile, self.tile_size, self.depth_modules, _SHAPE_MULTIPLE) for p in packs],
            weight=float(sum(s.weights.sum(dtype=np.float64) for s in samples)),
            counts={k: float(v) for k, v in counts.items()},
            samples=[where for _, where in drawn.values()],
            skipped=skipped,
        )

    def _in_step(self, samples: list[LaidOut], tower: bool) -> list[LaidOut]:
        """A pack that uses the same parts of the model as those of all other ranks."""
        tiles = any(len(s.tiles) for s in samples)
        if tiles and not tower:
            raise TrainingError(
                "a sample has images where the index knows of none in its step: run `vitp index --rebuild` on the recipe"
            )
        if samples and tiles == tower:
            return samples
        return [*samples, idle_sample(self.chat.image_token_id, self.tile_size, self.depth_modules, tower=tower)]
