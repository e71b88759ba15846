"""Early warning: a source whose held-out loss rises while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class _Course:
    """What is remembered of one source."""

    best: float
    best_step: int
    above: int = 0  # evaluations in a row that were worse by more than the margin


class DeclineWatch:
    """Warns when a source's loss is above its best by a margin for several evaluations in a row.

    `margin` is a share of the best loss; `patience` the number of evaluations. A source is warned of once, and again
    only after it has recovered.
    """

    def __init__(self, margin: float, patience: int) -> None:
        self.margin, self.patience = margin, patience
        self._courses: dict[str, _Course] = {}

    def take(self, step: int, losses: Mapping[str, float]) -> list[str]:
        """Take in an evaluation's losses by source; one sentence for every source that is getting worse."""
        warnings = []
        for source, loss in losses.items():
            course = self._courses.setdefault(source, _Course(loss, step))
            if loss <= course.best * (1 + self.margin):
                course.above = 0
                if loss < course.best:
                    course.best, course.best_step = loss, step
                continue
            course.above += 1
            if course.above == self.patience:
                times = f"for {self.patience} evaluations" if self.patience > 1 else "at this evaluation"
                warnings.append(
                    f"source '{source}' is getting worse: its held-out loss is {loss:.4g} at step {step}, "
                    f"{loss / course.best - 1:.0%} above its best of {course.best:.4g} at step {course.best_step}, "
                    f"and has been more than {self.margin:.0%} above it {times}; give it more weight or lower the learning rate"
                )
        return warnings
