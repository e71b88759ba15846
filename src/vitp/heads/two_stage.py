"""A detection head: proposals, then their classes and boxes, then masks where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from vitp.boxes.objects import Detections
from vitp.heads.mask import MaskHead
from vitp.heads.proposals import Sampled
from vitp.heads.rpn import RPN
from vitp.heads.truth import Key, Size, Truth


class SecondStage(Protocol):
    """What stands behind the proposals: `RoIHead`, `CascadeHead`."""

    def learn(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        truth: Sequence[Truth],
        sizes: Sequence[Size],
        keys: Sequence[Key],
    ) -> tuple[dict[str, Tensor], Sampled]:
        """The losses, and the proposals of the first of them."""

    def detect(self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """What is found in each image."""


class TwoStage(nn.Module):
    """Maps [B, C, h, w] of all levels to losses or detections."""

    def __init__(self, rpn: RPN, roi: nn.Module, mask: MaskHead | None = None, *, rotated: bool = False) -> None:
        """`roi` is a `SecondStage`; `rotated`: whether it learns boxes with an angle."""
        super().__init__()
        self.rpn, self.roi, self.mask, self.rotated = rpn, roi, mask, rotated

    @property
    def masks(self) -> bool:
        """Whether it learns from outlines and finds masks."""
        return self.mask is not None

    @property
    def second(self) -> SecondStage:
        """`roi` by its type."""
        return self.roi  # type: ignore[return-value]

    def losses(
        self, maps: Sequence[Tensor], truth: Sequence[Truth], sizes: Sequence[Size], keys: Sequence[Key]
    ) -> dict[str, Tensor]:
        """Every loss by name, each a sum over the images of means within an image."""
        found = self.rpn.losses(maps, truth, sizes, keys)
        proposals = self.rpn.propose(maps, sizes)
        more, sampled = self.second.learn(maps, proposals, truth, sizes, keys)
        found.update(more)
        if self.mask is not None:
            found["mask"] = self.mask.losses(maps, sampled, truth)
        return found

    def detect(self, maps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """What is found in each image; call in eval mode."""
        found = self.second.detect(maps, self.rpn.propose(maps, sizes), sizes)
        return found if self.mask is None else self.mask.add(maps, found)
