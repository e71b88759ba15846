"""What is known about a benchmark of the paper; `vitp.datasets.catalog` holds one of these for each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Colour = tuple[int, int, int]  # red, green, blue


@dataclass(frozen=True)
class Benchmark:
    """Facts about a public data set; classes, label values and what is read are in the recipe of the same name.

    Counts are images (volumes, pairs) of the whole public set as the recipe reads it, by part. None: unknown or by choice.
    """

    name: str  # of this entry and of its recipe in recipes/finetune
    title: str
    task: Literal["segment", "change", "detect"]
    modality: str
    licence: str
    obtain: str  # in words
    page: str | None  # its official page, where one is known for sure
    layout: tuple[str, ...]  # folders as distributed, the source of `vitp prepare` where there is one
    prepared: tuple[str, ...]  # folders the recipe reads; equal to `layout` where nothing is prepared
    counts: dict[str, int | None]  # train, val, test
    splits: str  # who is in which
    paper: str  # what the paper reaches, in which metric
    notes: tuple[str, ...] = ()  # contradictions, and what is not said
    colours: tuple[
        tuple[str, Colour], ...
    ] = ()  # class -> colour in the labels as distributed, in the order of the ids

    @property
    def needs_preparation(self) -> bool:
        """Whether `vitp prepare` comes before training."""
        return self.prepared != self.layout

    @property
    def preparation(self) -> str:
        """The command, or why there is none."""
        return f"vitp prepare {self.name} SOURCE data/{self.name}" if self.needs_preparation else "none, read as it is"

    def to_json(self) -> dict[str, Any]:
        """All facts, as JSON."""
        return {**asdict(self), "preparation": self.preparation}
