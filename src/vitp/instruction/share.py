"""One rank's part of every step: which samples it lays out, in which packs, known before any of them is read."""

from __future__ import annotations

from dataclasses import dataclass

from vitp.instruction.plan import PlanConfig, SampleSize, StepPlan, plan_step
from vitp.instruction.step_sizes import StepSizer


@dataclass(frozen=True)
class Share:
    """A rank among ranks that all come to the same plan, from indexes that must be the same."""

    rank: int
    size: int  # number of ranks
    sizer: StepSizer
    lockstep: bool  # ranks compute equally many packs, and either all of them use the tower in a step or none

    def of(self, step: int, positions: range, config: PlanConfig, *, text_only: bool) -> MyPacks:
        """The packs of this rank in a step.

        A sample too large for any pack is planned as one that fills a pack. A sample that turns out to be unusable only
        when it is read is replaced by one of another size: the packs are then less even, their samples the same.
        """
        sizes = self.sizer.sizes(step, self.sizer.places(positions), text_only=text_only)
        plan = plan_step({p: _at_most(size, config) for p, size in sizes.items()}, config, self.size)
        return MyPacks(self._slots(plan, positions), any(size.tiles for size in sizes.values()))

    def _slots(self, plan: StepPlan, positions: range) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(position - positions.start for position in pack) for pack in plan.ranks[self.rank])


@dataclass(frozen=True)
class MyPacks:
    """A rank's packs of one step."""

    slots: tuple[tuple[int, ...], ...]  # of each pack, the places of its samples in the step
    tower: bool  # whether any rank's samples hold images


def _at_most(size: SampleSize, config: PlanConfig) -> SampleSize:
    tokens, tiles = min(size.tokens, config.max_tokens_per_pack), min(size.tiles, config.max_tiles_per_pack)
    return SampleSize(tiles, tokens, size.supervised, size.where)
