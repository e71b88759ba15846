"""The loss of a step and the numbers beside it, added up over the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitp.train.distributed import Ranks
from vitp.train.strategies import Strategy


class StepSums:
    """Adds up what the ranks computed in a step, in the one exchange that the loss needs anyway.

    The ranks agree on the names of the numbers at the first step, and anew when one of them has a name that is not agreed on
    (a rank may have no sample of some kind in a step); a name that a rank lacks counts as 0.
    """

    def __init__(self, ranks: Ranks, strategy: Strategy, device: torch.device) -> None:
        self._ranks, self._strategy, self._device = ranks, strategy, device
        self._names: tuple[str, ...] | None = None

    def total(self, loss: Tensor, extra: dict[str, float]) -> Tensor:
        """Sums over the ranks, float64 on the device: the loss, then what `named` can read; one process: the loss alone.

        Args:
            loss: this rank's part, float64 [] on the device.
            extra: this rank's parts of other numbers.
        """
        if self._ranks.alone:
            return loss.view(1)
        if self._names is None:
            self._agree(extra)
        return self._strategy.total(torch.cat([loss.view(1), self._row(extra)]))

    def named(self, totals: Sequence[float], extra: dict[str, float]) -> dict[str, float]:
        """The numbers of all ranks by name.

        Args:
            totals: what `total` gave, without the loss.
            extra: this rank's parts, as they were given to `total`.
        """
        if self._ranks.alone:
            return extra
        *values, unknown = totals
        if unknown:
            self._agree(extra)
            *values, _ = self._strategy.total(self._row(extra)).tolist()
        assert self._names is not None
        return dict(zip(self._names, values, strict=True))

    def _agree(self, extra: dict[str, float]) -> None:
        found = self._ranks.gather([*(self._names or ()), *extra])
        self._names = tuple(dict.fromkeys(name for names in found for name in names))

    def _row(self, extra: dict[str, float]) -> Tensor:
        """What this rank has, in the order of the names, and whether it has one without a name."""
        names = self._names or ()
        unknown = float(not extra.keys() <= set(names))
        row = [*(extra.get(name, 0.0) for name in names), unknown]
        return torch.tensor(row, dtype=torch.float64).to(self._device)
