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
from vitp.heads.roi import RoICoder, RoIConfig, RoIHead
from vitp.heads.rpn import RPN, RPNConfig
from vitp.heads.two_stage import TwoStage

_LOOKED_AT = 4  # levels of the second stage, strides 4 to 32; reference 7.1


class UprightRPN(RPNConfig):
    """Of a detector of upright boxes."""

    coder: DeltaCoder = DeltaCoder()  # reference 7.2


class PlainRPN(UprightRPN):
    """Of Faster and Mask R-CNN."""

    border: float = -1.0  # reference 7.3
    beta: Beta = 0.0  # L1; reference 7.3
    train_proposals: int = Field(default=1000, ge=1)  # reference 7.3
    test_proposals: int = Field(default=1000, ge=1)  # reference 7.3


class FasterRoI(RoIConfig):
    """Of Faster R-CNN."""

    coder: RoICoder = RoICoder()  # mmdetection
    class_agnostic: bool = False  # reference 7.3
    beta: Beta = 0.0  # L1; reference 7.3


class LowQualityAssigner(RoIAssigner):
    """Of Mask R-CNN: every object takes the proposals that overlap it most."""

    low_quality: bool = True  # reference 7.3


class MaskRoI(FasterRoI):
    """Of Mask R-CNN."""

    assigner: LowQualityAssigner = LowQualityAssigner()


class FasterRCNNConfig(Config):
    """Faster R-CNN: Mask R-CNN as released (reference 7.3), without masks and low-quality matches (mmdetection)."""

    kind: Literal["faster_rcnn"]
    rpn: PlainRPN = PlainRPN()
    roi: FasterRoI = FasterRoI()

    def build(self, channels: int, classes: int, strides: Sequence[int]) -> TwoStage:
        """The head over maps of `channels`; weights from torch's global generator."""
        rpn = RPN(self.rpn, channels, strides)
        return TwoStage(rpn, RoIHead(self.roi, channels, classes, strides[:_LOOKED_AT]))


class MaskRCNNConfig(Config):
    """Mask R-CNN (reference 7.3)."""

    kind: Literal["mask_rcnn"]
    rpn: PlainRPN = PlainRPN()
    roi: MaskRoI = MaskRoI()
    mask: MaskConfig = MaskConfig()

    def build(self, channels: int, classes: int, strides: Sequence[int]) -> TwoStage:
        """The head over maps of `channels`; weights from torch's global generator."""
        few = strides[:_LOOKED_AT]
        rpn, roi = RPN(self.rpn, channels, strides), RoIHead(self.roi, channels, classes, few)
        return TwoStage(rpn, roi, MaskHead(self.mask, channels, classes, few))


class CascadeRCNNConfig(Config):
    """Cascade R-CNN (reference 7.2)."""

    kind: Literal["cascade_rcnn"] = "cascade_rcnn"
    rpn: UprightRPN = UprightRPN()
    roi: CascadeConfig = CascadeConfig()

    def build(self, channels: int, classes: int, strides: Sequence[int]) -> TwoStage:
        """The head over maps of `channels`; weights from torch's global generator."""
        return TwoStage(
            RPN(self.rpn, channels, strides), CascadeHead(self.roi, channels, classes, strides[:_LOOKED_AT])
        )


DetectorConfig = Annotated[
    FasterRCNNConfig | CascadeRCNNConfig | MaskRCNNConfig | OrientedRCNNConfig, Field(discriminator="kind")
]
