"""Oriented R-CNN (Xie et al., 2021) with the settings of the released configs (mmrotate).

The first stage is the `RPN` with the midpoint-offset coder: it assigns by the boxes around the objects, proposes rotated boxes,
and suppresses them by the boxes around those. The second is the `RoIHead` with the rotated delta coder: it looks at each
proposal in its own frame, assigns and suppresses by the exact overlap of rotated boxes, and writes them in that frame.

Boxes are computed in float32 whatever the type of the maps, so autocast does not reach them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from vitp.boxes.coders import MidpointOffsetCoder, RotatedDeltaCoder
from vitp.config import Config
from vitp.heads.pool import PoolConfig
from vitp.heads.roi import LOOKED_AT, KeepConfig, RoIConfig, RoIHead
from vitp.heads.rpn import RPN, RPNConfig
from vitp.heads.two_stage import TwoStage

Share = Annotated[float, Field(ge=0, le=1)]


class OrientedRPN(RPNConfig):
    """Of a detector of rotated boxes; what is not named here is as in `RPNConfig`, whose values are the released ones."""

    coder: MidpointOffsetCoder = MidpointOffsetCoder()  # released Oriented R-CNN config
    nms: Share = 0.8  # of the boxes around the proposals, level by level; released Oriented R-CNN config
    test_per_level: int = Field(default=2000, ge=1)  # released Oriented R-CNN config
    train_proposals: int = Field(default=2000, ge=1)  # released Oriented R-CNN config
    test_proposals: int = Field(default=2000, ge=1)  # released Oriented R-CNN config


class OrientedPool(PoolConfig):
    """RoIAlign of rotated boxes."""

    sampling: int = Field(default=2, ge=0)  # points a side of a cell; released Oriented R-CNN config


class OrientedKeep(KeepConfig):
    """Which of the scored rotated boxes are given out."""

    score: Share = 0.05  # released Oriented R-CNN config
    nms: Share = 0.1  # rotated IoU, of the same class; released Oriented R-CNN config
    limit: int = Field(default=2000, ge=1)  # an image; released Oriented R-CNN config


class OrientedRoI(RoIConfig):
    """Of a detector of rotated boxes; what is not named here is as in `RoIConfig`, whose values are the released ones."""

    pool: OrientedPool = OrientedPool()
    coder: RotatedDeltaCoder = RotatedDeltaCoder()  # released Oriented R-CNN config
    keep: OrientedKeep = OrientedKeep()


class OrientedRCNNConfig(Config):
    """Oriented R-CNN (released DIOR-R, DOTA-v2.0 and RSAR configs)."""

    kind: Literal["oriented_rcnn"]
    rpn: OrientedRPN = OrientedRPN()
    roi: OrientedRoI = OrientedRoI()

    def build(self, channels: int, classes: int, strides: Sequence[int]) -> TwoStage:
        """The head over maps of `channels`; weights from torch's global generator."""
        roi = RoIHead(self.roi, channels, classes, strides[:LOOKED_AT])
        return TwoStage(RPN(self.rpn, channels, strides), roi, rotated=True)
