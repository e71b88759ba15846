"""Which detector a recipe asks for (`detector:`), every default being the released configuration's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from vitp.boxes.coders import DeltaCoder
from vitp.config import Config
from vitp.heads.box_loss import Beta
from vitp.heads.cascade import CascadeConfig, CascadeHead
from vitp.heads.mask import MaskConfig, MaskHead
from vitp.heads.oriented import OrientedRCNNConfig
from vitp.heads.proposals import RoIAssigner
from vitp.heads.roi import LOOKED_AT, RoICoder, RoIConfig, RoIHead
from vitp.heads.rpn import RPN, RPNConfig
from vitp.heads.two_stage import TwoStage


class UprightRPN(RPNConfig):
    """Of a detector of upright boxes."""

    coder: DeltaCoder = DeltaCoder()  # released Cascade R-CNN config


class PlainRPN(UprightRPN):
    """Of Faster and Mask R-CNN."""

    border: float = -1.0  # released Mask R-CNN config
    beta: Beta = 0.0  # L1; released Mask R-CNN config
    train_proposals: int = Field(default=1000, ge=1)  # released Mask R-CNN config
    test_proposals: int = Field(default=1000, ge=1)  # released Mask R-CNN config


class FasterRoI(RoIConfig):
    """Of Faster R-CNN."""

    coder: RoICoder = RoICoder()  # mmdetection
    class_agnostic: bool = False  # released Mask R-CNN config
    beta: Beta = 0.0  # L1; released Mask R-CNN config


class LowQualityAssigner(RoIAssigner):
    """Of Mask R-CNN: every object takes the proposals that overlap it most."""

    low_quality: bool = True  # released Mask R-CNN config


class MaskRoI(FasterRoI):
    """Of Mask R-CNN."""

    assigner: LowQualityAssigner = LowQualityAssigner()


class FasterRCNNConfig(Config):
    """Faster R-CNN: Mask R-CNN as released, without masks and low-quality matches (mmdetection)."""

    kind: Literal["faster_rcnn"]
    rpn: PlainRPN = PlainRPN()
    roi: FasterRoI = FasterRoI()

    def build(self, channels: int, classes: int, strides: Sequence[int]) -> TwoStage:
        """The head over maps of `channels`; weights from torch's global generator."""
        rpn = RPN(self.rpn, channels, strides)
        return TwoStage(rpn, RoIHead(self.roi, channels, classes, strides[:LOOKED_AT]))


class MaskRCNNConfig(Config):
    """Mask R-CNN (released SSDD config)."""

    kind: Literal["mask_rcnn"]
    rpn: PlainRPN = PlainRPN()
    roi: MaskRoI = MaskRoI()
    mask: MaskConfig = MaskConfig()

    def build(self, channels: int, classes: int, strides: Sequence[int]) -> TwoStage:
        """The head over maps of `channels`; weights from torch's global generator."""
        few = strides[:LOOKED_AT]
        rpn, roi = RPN(self.rpn, channels, strides), RoIHead(self.roi, channels, classes, few)
        return TwoStage(rpn, roi, MaskHead(self.mask, channels, classes, few))


class CascadeRCNNConfig(Config):
    """Cascade R-CNN (released DIOR and SARDet-100K configs, mmdetection 2.25.1)."""

    kind: Literal["cascade_rcnn"] = "cascade_rcnn"
    rpn: UprightRPN = UprightRPN()
    roi: CascadeConfig = CascadeConfig()

    def build(self, channels: int, classes: int, strides: Sequence[int]) -> TwoStage:
        """The head over maps of `channels`; weights from torch's global generator."""
        return TwoStage(RPN(self.rpn, channels, strides), CascadeHead(self.roi, channels, classes, strides[:LOOKED_AT]))


DetectorConfig = Annotated[
    FasterRCNNConfig | CascadeRCNNConfig | MaskRCNNConfig | OrientedRCNNConfig, Field(discriminator="kind")
]
